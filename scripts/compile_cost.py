#!/usr/bin/env python3
"""What compiling a file costs: runs a compiler and leaves OBJECT.cost beside the object; or judges those of a build.

  compile_cost.py COMPILER ARGUMENTS...     as CMAKE_CUDA_COMPILER_LAUNCHER
  compile_cost.py --judge FOLDER            30 s and 1.5 GB per unit are allowed
"""
import json
import pathlib
import resource
import subprocess
import sys
import time

SECONDS, GIGABYTES = 30, 1.5


def run(command):
    start = time.monotonic()
    status = subprocess.call(command)
    wall = time.monotonic() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if status == 0 and "-c" in command and "-o" in command:
        target = command[command.index("-o") + 1]
        cost = {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "gigabytes": used.ru_maxrss / 2**20}
        pathlib.Path(target + ".cost").write_text(json.dumps(cost))
    return status


def judge(folder):
    costs = sorted(pathlib.Path(folder).rglob("*.cu.o.cost"))
    if not costs:
        sys.exit(f"no compiled CUDA unit under {folder}")
    over = False
    for path in costs:
        cost = json.loads(path.read_text())
        # nvcc works on one core: where others are busy too, CPU time is what it would have taken alone.
        seconds = min(cost["wall"], cost["cpu"])
        bad = seconds > SECONDS or cost["gigabytes"] > GIGABYTES
        over = over or bad
        print(f"{path.name[:-7]:12} {seconds:5.1f} s {cost['gigabytes']:5.2f} GB{'  over the budget' if bad else ''}")
    if over:
        sys.exit(f"a unit takes more than {SECONDS} s or {GIGABYTES} GB")


if __name__ == "__main__":
    if sys.argv[1] == "--judge":
        judge(sys.argv[2])
    else:
        sys.exit(run(sys.argv[1:]))
