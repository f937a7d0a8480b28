#!/usr/bin/env python3
"""Source code of Python's own library as two texts: texts.py FOLDER writes code.txt (asyncio: what is measured) and
code-other.txt (email, http, importlib, json, logging, unittest, xml: what calibrations are made from)."""
import sys
import sysconfig
from pathlib import Path

OTHER = "email http importlib json logging unittest xml".split()


def main(folder):
    library, folder = Path(sysconfig.get_path("stdlib")), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, packages in (("code", ["asyncio"]), ("code-other", OTHER)):
        files = [f for p in packages for f in sorted((library / p).rglob("*.py"))]
        (folder / f"{name}.txt").write_text("\n".join(f.read_text() for f in files))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    main(sys.argv[1])
