#!/usr/bin/env python3
"""Where the blocks go: of an eval.json (python -m sale.eval --json), density and error by layer and the densest heads of a
side; with A.json B.json, two calibrations, the heads whose thresholds differ most.

    heads.py eval.json SIDE
    heads.py plain.json answers.json
"""
import json
import math
import sys
from pathlib import Path


def of_side(sides, name):
    row = next((r for r in sides if r["side"] == name), None)
    if row is None:
        sys.exit(f"heads.py: no side {name}; there are {', '.join(r['side'] for r in sides)}")
    for text, s in row["statistics"].items():
        densities, errors = s["densities"], s["errors"]
        heads = sorted(((d, i, h) for i, layer in enumerate(densities) for h, d in enumerate(layer)), reverse=True)
        total = sum(d for d, _, _ in heads)
        print(f"{text}: density {s['density']:.3f}, error {s['error']:.3f}")
        print("| layer | density | error | densest head |\n|---|---|---|---|")
        for i, (d, e) in enumerate(zip(densities, errors)):
            print(f"| {i} | {sum(d) / len(d):.3f} | {sum(e) / len(e):.3f} | {d.index(max(d))}: {max(d):.3f} |")
        for share in (0.1, 0.25, 0.5):
            n = round(share * len(heads))
            print(f"the densest {n} of {len(heads)} heads have {sum(d for d, _, _ in heads[:n]) / total:.0%} of the blocks, at least {heads[n - 1][0]:.0%} each")


def of_two(a, b):
    both = [(math.log2(y / x), i, h, x, y) for i, (p, q) in enumerate(zip(a["thresholds"], b["thresholds"]))
            for h, (x, y) in enumerate(zip(p, q)) if x > 0 and y > 0]  # fmt: skip
    both.sort(key=lambda t: t[0])
    lower = sum(t[0] < -0.5 for t in both)
    print(f"{lower} of {len(both)} heads lower by more than half a power of two, {sum(t[0] > 0.5 for t in both)} higher")
    print("| layer | head | from | to |\n|---|---|---|---|")
    for _, i, h, x, y in both[:12]:
        print(f"| {i} | {h} | {x:.4f} | {y:.4f} |")


def main(first, second):
    a = json.loads(Path(first).read_text())
    if "sides" in a:
        of_side(a["sides"], second)
    else:
        of_two(a, json.loads(Path(second).read_text()))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    main(*sys.argv[1:])
