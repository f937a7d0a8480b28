#!/usr/bin/env python3
"""A kernel's source as C++ for language.hpp: translate.py FROM TO. What the language adds to C++'s grammar goes:
launches become calls, dynamic shared memory a pointer; all else stays as it is."""
import pathlib
import re
import sys

source, to = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
text = source.read_text()
text = re.sub(r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];", r"auto* \2 = reinterpret_cast<\1*>(emulation::shared_memory);", text)
launch = re.compile(r"([\w.]+(?:<[^<>;{}]*>)?)\s*<<<(.*?)>>>\s*\((.*?)\);", re.S)
text = launch.sub(lambda m: f"emulation::launch({m[2]}, [=] {{ {m[1]}({m[3]}); }});", text)
for left in ("<<<", "extern __shared__", "asm("):
    if left in text:
        sys.exit(f"{source}: {left} is left")
to.parent.mkdir(parents=True, exist_ok=True)
to.write_text(f'#include "language.hpp"\n#line 1 "{source}"\n{text}')
