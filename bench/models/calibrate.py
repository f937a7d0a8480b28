#!/usr/bin/env python3
"""sale.transformers.calibrate on a folder, several goals at once, timed:

    calibrate.py --model FOLDER --text moby_dick.txt code.txt --tokens 32000 --goals budget=0.05 error=0.2 --out a.json
"""
import argparse
import time

import sale.transformers
from sale.eval.needle import load


def goal(word):
    kind, _, value = word.partition("=")
    return kind, float(value)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--text", nargs="+", required=True)
    p.add_argument("--goals", nargs="+", type=goal, required=True, metavar="KIND=VALUE")
    p.add_argument("--out", required=True, help="A.json: A_0.json, A_1.json, ... are written")
    p.add_argument("--device", default="cuda")
    p.add_argument("--dtype")
    p.add_argument("--tokens", type=int, default=32000)
    p.add_argument("--prompts", type=int, default=6)
    p.add_argument("--rank", type=int)
    p.add_argument("--format")
    p.add_argument("--backend")
    p.add_argument("--rows", type=int, default=48)
    p.add_argument("--plain", action="store_true", help="rows of answers count as any other")
    p.add_argument("--compensate", action="store_true", help="for attention that is compensated")
    a = p.parse_args()
    model, tokenizer = load(a.model, a.device, a.dtype)
    start = before = time.monotonic()

    def report(state):
        nonlocal before
        now = time.monotonic()
        print(f"{state.doing} {state.prompt} of {state.prompts}: {now - before:.1f} s", flush=True)
        before = now

    made = sale.transformers.calibrate(
        model, tokenizer, a.out, text=a.text, tokens=a.tokens, prompts=a.prompts, rank=a.rank, goals=a.goals, format=a.format,
        backend=a.backend, rows=a.rows, answers=not a.plain, compensate=a.compensate, report=report,
    )  # fmt: skip
    print(f"{len(made)} calibrations in {time.monotonic() - start:.1f} s")
    for (kind, value), c in zip(a.goals, made):
        dense = int((c.thresholds == 0).sum())
        print(f"{kind} {value}: density {c.error['density']:.4f}, error {c.error['relative_l1']:.4f}, dense heads {dense} of {c.thresholds.size}")


if __name__ == "__main__":
    main()
