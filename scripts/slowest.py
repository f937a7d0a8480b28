#!/usr/bin/env python3
"""The slowest tests of a run: reads the JUnit files that GoogleTest and pytest leave.

usage: slowest.py FOLDER [COUNT]     FOLDER/STAGE/*.xml
"""
import pathlib
import sys
from xml.etree import ElementTree


def main(folder, count="10"):
    tests = []
    for path in pathlib.Path(folder).rglob("*.xml"):
        try:
            cases = ElementTree.parse(path).iter("testcase")
        except ElementTree.ParseError:
            continue  # a program that was stopped while it wrote; its own stage says so
        stage = path.relative_to(folder).parts[0]
        tests += [(float(t.get("time", 0)), stage, f"{t.get('classname')}.{t.get('name')}") for t in cases]
    for seconds, stage, name in sorted(tests, reverse=True)[: int(count)]:
        print(f"{seconds:7.1f} s  {stage:9} {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
