"""python -m sale.eval: a model on tasks, dense (sdpa) and with SALE, both printed side by side.

    python -m sale.eval --model MODEL --tasks needle,multikey,kv --text BOOK --tokens 32k 128k
    python -m sale.eval --model MODEL --tasks longbench,ruler,infinitebench --limit 50
    python -m sale.eval --model MODEL --sides dense none a.json b.json+compensate --text BOOK --texts BOOK CODE --tokens 32k

needle, multikey and kv are prompts of this package (sale/_prompts.py). All other names are tasks of
lm-evaluation-harness (pip install lm_eval), which fetches their data itself; --include adds a folder of task files.
With --sides several settings stand side by side (sale/eval/sides.py): questions answered within one prefill, last in it
and with text behind them, perplexity, density, error and time. Tasks are then single,numbers,pairs,perplexity,time.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from . import needle


def count(text: str) -> int:
    """128k: 131072."""
    return int(text[:-1]) * 1024 if text.lower().endswith("k") else int(text)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m sale.eval", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--model", required=True, help="folder or hub name of a causal language model")
    p.add_argument("--tasks", help="comma-separated (default: needle,multikey,kv; with --sides all of its own)")
    p.add_argument("--calibration", help="calibration file (default: the one found for the model)")
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", help="such as bfloat16 (default: the weights' own on a GPU, float32 on a CPU)")
    p.add_argument("--tokens", nargs="+", type=count, default=[32768], help="lengths, such as 32k 128k")
    p.add_argument("--limit", type=int, help="samples of each harness task; prompts of each kind and length (default: all; 1)")
    p.add_argument("--text", help="a long text file to hide facts in")
    p.add_argument("--facts", type=int, default=3, help="facts asked for in a prompt (default: %(default)s)")
    p.add_argument("--chunk", type=count, default=0, help="prefill this many tokens at a time (default: all at once)")
    p.add_argument("--sides", nargs="+", metavar="SIDE",
                   help="dense, none, tau=X or a calibration file, and +compensate or +BACKEND after it; the first is the base")
    p.add_argument("--texts", nargs="+", default=[], metavar="FILE", help="with --sides: perplexity and error on these")
    p.add_argument("--after", nargs="+", type=count, default=[0, 1024], help="with --sides: tokens of text after the questions")
    p.add_argument("--contexts", type=int, default=2, help="with --sides: of 20 numbers and of 20 pairs (default: %(default)s)")
    p.add_argument("--include", help="folder with task files of one's own")
    p.add_argument("--json", help="also write every figure there")
    return p


def side_by_side(a: argparse.Namespace) -> int:
    from . import sides

    tasks = [t for t in (a.tasks or ",".join(sides.TASKS)).split(",") if t]
    asks = set(tasks) - {"perplexity", "time"}
    for needed, name, given in ((asks, "--text", a.text), (set(tasks) - asks, "--texts", a.texts)):
        if needed and not given:
            print(f"sale.eval: {name} is needed for {', '.join(sorted(needed))}", file=sys.stderr)
            return 2
    text = pathlib.Path(a.text).read_text() if a.text else ""
    texts = {pathlib.Path(t).stem: pathlib.Path(t).read_text() for t in a.texts}
    model = needle.load(a.model, a.device, a.dtype)
    rows: list[dict] = []

    def keep(row: dict) -> None:  # as it comes, so that what was found is not lost
        rows.append(row)
        print(f"{row['side']}, {row['tokens']} tokens", file=sys.stderr, flush=True)
        if a.json:
            pathlib.Path(a.json).write_text(json.dumps({"schema": 1, "model": a.model, "sides": rows}, indent=1) + "\n")

    for tokens in a.tokens:
        sides.compare(model, a.sides, tokens=tokens, tasks=tasks, text=text, texts=texts, contexts=a.contexts,
                      after=a.after, singles=a.limit or 8, report=keep)  # fmt: skip
    print(sides.table(rows))
    return 0


def main(arguments=None) -> int:
    a = parser().parse_args(arguments)
    if a.sides:
        return side_by_side(a)
    tasks = [t for t in (a.tasks or "needle,multikey,kv").split(",") if t]
    own, others = [t for t in tasks if t in needle.KINDS], [t for t in tasks if t not in needle.KINDS]
    if {"needle", "multikey"} & set(own) and not a.text:
        print("sale.eval: --text is needed to hide facts in", file=sys.stderr)
        return 2
    model = needle.load(a.model, a.device, a.dtype)
    result: dict = {"schema": 1, "model": a.model}
    if own:
        rows = []
        for tokens in a.tokens:
            rows += needle.compare(model, a.text, tokens=tokens, kinds=own, facts=a.facts,
                                   seeds=range(1, 1 + (a.limit or 1)), chunk=a.chunk, calibration=a.calibration)  # fmt: skip
        print(needle.table(rows))
        result["needle"] = rows
    if others:
        from . import harness

        scores = harness.compare(model, others, limit=a.limit, include=a.include, calibration=a.calibration,
                                 lengths=a.tokens)  # fmt: skip
        print(harness.table(scores))
        result["harness"] = scores
    if a.json:
        with open(a.json, "w") as f:
            json.dump(result, f, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
