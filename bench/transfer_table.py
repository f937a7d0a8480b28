#!/usr/bin/env python3
"""The matrix of bench/transfer as Markdown: transfer_table.py FOLDER NAME VERSION."""
import datetime
import json
import pathlib
import sys


def load(folder):
    path = folder / "eval.json"
    return json.loads(path.read_text()) if path.exists() else None


def tokens(n):
    return f"{n // 1024}K"


def main():
    at, name, version = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    tests = {kind: found for kind in ("prose", "code") if (found := load(at / kind))}
    first = next(iter(tests.values()))
    sides = [s["name"] for s in first["settings"]["sides"]]
    lengths = sorted({r["tokens"] for r in first["results"]})
    print(f"# Transfer of calibrations: {name}\n")
    print(f"Printed by `bench/transfer {name}`, {version}, {datetime.date.today()}. {first['machine']}\n")
    print("Rows: what a calibration was made from, and at which length. Columns: what it was tried on. Perplexity against dense attention; "
          "answers right, and how many dense attention gets right where that is another number; density of the blocks. Estimators: "
          + ", ".join(sorted({s["estimator"] for s in first["settings"]["sides"]})) + ".\n")
    head = ["made from"]
    for n in lengths:
        head += [f"{kind} {tokens(n)}: perplexity, density, needles" for kind in tests] + [f"pairs {tokens(n)}: answers"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for side in sides:
        cells = [side]
        for n in lengths:
            for found in tests.values():
                dense = next(r for r in found["results"] if r["side"] == "dense" and r["tokens"] == n)
                mine = next(r for r in found["results"] if r["side"] == side and r["tokens"] == n)
                ratio = 100 * (mine["perplexity"] / dense["perplexity"] - 1)
                cells.append(f"{ratio:+.2f} %, {100 * mine['density']:.1f} %, {share(mine, dense, 'multikey')}")
            found = first
            dense = next(r for r in found["results"] if r["side"] == "dense" and r["tokens"] == n)
            mine = next(r for r in found["results"] if r["side"] == side and r["tokens"] == n)
            cells.append(share(mine, dense, "keyvalue"))
        print("| " + " | ".join(cells) + " |")


def share(mine, dense, task):
    count = dense["tasks"][task]["questions"]
    right, by_dense = (round(side["tasks"][task]["accuracy"] * count) for side in (mine, dense))
    return f"{right} of {count}" + (f" (dense {by_dense})" if by_dense != right else "")


if __name__ == "__main__":
    main()
