#!/usr/bin/env python3
"""vLLM with its own attention and with SALE's: what the two cost, and what they answer. One process for each, one after
the other, on the same prompts; prints tables, and with --json writes every sample.

    first    time to first token at each length, different prompts, nothing cached; and the time of a decoded token
    mixed    many short requests and some long ones, all at once, chunked: requests a second, and p50 and p99 of the time to
             first token and between tokens, of the short and of the long
    prefix   a second request behind a cached prefix: its time to first token, and keys that were coded for it
    answers  needles and key-value pairs, alone and in one batch: how many are right
    host     microseconds of the processor a step takes in building metadata and in making our plan, of the steps above

usage: run.py --model DIR --text FILE [--parts first mixed prefix answers] [--lengths 16k 32k 64k 128k] [--json FILE]
              [--layers N --density SHARE: random weights in the shape of Llama-3.1-8B instead of DIR's, thresholds that
              keep that share of the blocks; answers left out]
              [--chunk 8192] [--long 64k] [--rounds 3] [--eager]

Thresholds are those of SALE_CALIBRATION (docs/serving.md). On a machine without a GPU: bench/serving/on_cpu.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "python/tests/serving")]
import shape  # noqa: E402

BACKENDS = ("FLASH_ATTN", "CUSTOM")
PARTS = ("first", "mixed", "prefix", "answers")


def number(text: str) -> int:
    return int(text[:-1]) * 1024 if text.lower().endswith("k") else int(text)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--text", required=True)
    p.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    p.add_argument("--lengths", nargs="+", type=number, default=[number(n) for n in ("16k", "32k", "64k", "128k")])
    p.add_argument("--long", type=number, default=65536, help="tokens of the long prompts of mixed and prefix")
    p.add_argument("--short", type=number, default=512)
    p.add_argument("--requests", type=int, nargs=2, default=(64, 4), help="short and long ones of mixed")
    p.add_argument("--new", type=int, default=64, help="tokens that requests of mixed decode")
    p.add_argument("--chunk", type=number, default=8192)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--layers", type=int, default=0)
    p.add_argument("--density", type=float, default=0.1)
    p.add_argument("--eager", action="store_true")
    p.add_argument("--json")
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # backend, file
    return p.parse_args()


# ---- one engine ------------------------------------------------------------------------------------------------------


class Clock:
    """Host time of some functions, a call each, while an engine runs."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}

    def over(self, owner, name: str, called: str) -> None:
        function = getattr(owner, name)

        def timed(*a, **k):
            begin = time.perf_counter()
            try:
                return function(*a, **k)
            finally:
                self.samples.setdefault(called, []).append(1e6 * (time.perf_counter() - begin))

        setattr(owner, name, timed)


class Engine:
    def __init__(self, args, backend: str, folder: str, cached: bool) -> None:
        from vllm import LLM

        longest = max([*args.lengths, args.long]) + 512
        cpu = {"kv_cache_memory_bytes": 1 << 29, "compilation_config": {"custom_ops": ["none"]}} if os.environ.get("VLLM_ON_CPU") else {}
        bare = {"load_format": "dummy", "skip_tokenizer_init": True} if args.layers else {}
        self.llm = LLM(
            model=folder, attention_backend=backend, max_model_len=longest, max_num_batched_tokens=args.chunk, dtype="bfloat16",
            enable_prefix_caching=cached, enforce_eager=args.eager or bool(cpu), disable_log_stats=True, seed=0, **cpu, **bare,
        )  # fmt: skip
        self._serial = 0
        if args.layers:
            worker = self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
            shape.fill(worker.model_runner.model, 40 * 128)

    def go(self, requests) -> list[dict]:
        """Requests (ids, new tokens) all at once: seconds to each one's tokens, and the tokens."""
        from vllm import SamplingParams, TokensPrompt

        core, made = self.llm.llm_engine, {}
        begin = time.perf_counter()
        for ids, new in requests:
            self._serial += 1
            made[str(self._serial)] = {"length": len(ids), "at": [], "ids": []}
            core.add_request(str(self._serial), TokensPrompt(prompt_token_ids=ids),
                             SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False))  # fmt: skip
        while core.has_unfinished_requests():
            for o in core.step():
                r, now = made[o.request_id], time.perf_counter() - begin
                tokens = list(o.outputs[0].token_ids)
                r["at"] += [now] * (len(tokens) - len(r["ids"]))
                r["ids"] = tokens
        return list(made.values())


def child(args) -> None:
    """Every sample of one backend, to a file."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that the core's host time is seen here
    backend, file = args.child
    from vllm.v1.attention.backends.flash_attn import FlashAttentionMetadataBuilder

    clock, found = Clock(), {"backend": backend}
    if backend == "CUSTOM":
        from sale.serving.session import Session
        from sale.vllm.backend import Builder, _Batch

        clock.over(Builder, "build", "build")
        clock.over(Session, "begin", "plan")
        clock.over(_Batch, "cut", "plan")
    else:
        clock.over(FlashAttentionMetadataBuilder, "build", "build")
    with tempfile.TemporaryDirectory() as t:
        if args.layers and backend == "CUSTOM":
            os.environ["SALE_CALIBRATION"] = f"{t}/thresholds.json"
            shape.calibration(args.layers).write(os.environ["SALE_CALIBRATION"])
        folder = shape.folder(pathlib.Path(t), args.layers) if args.layers else args.model
        measure(args, backend, folder, found)
    found["host"] = clock.samples
    pathlib.Path(file).write_text(json.dumps(found))


def session_of(engine: Engine):
    from sale.vllm.backend import _sessions

    return next(iter(_sessions.values()))


def measure(args, backend: str, folder: str, found: dict) -> None:
    from asked import asked, right
    from sale.serving.metrics import METRICS
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    text = pathlib.Path(args.text).read_text(encoding="utf-8")
    words = tokenizer(text).input_ids

    def piece(at: int, n: int) -> list[int]:
        """n tokens of the text from some place on, over and over where it ends."""
        at %= len(words)
        return [words[0], *(words * (2 + n // len(words)))[at : at + n - 1]]

    def started(cached: bool):
        engine = Engine(args, backend, folder, cached)
        engine.go([(piece(7, min(args.lengths)), 2)])  # kernels that are compiled at their first use
        session = session_of(engine) if backend == "CUSTOM" else None
        if session is not None and args.layers:
            places = itertools.count(11, 16384)  # what is cached is not read again
            shape.fit(session, args.density, lambda: engine.go([(piece(next(places), 16384), 1)]))
        return engine, session

    engine, session = started(cached=False)
    if "first" in args.parts:
        found["first"] = {}
        for n in args.lengths:
            runs = [engine.go([(piece(7919 * (i + 1) + n, n), 9)])[0] for i in range(args.rounds)]
            if session is not None:
                with shape.Kept(session) as kept:
                    engine.go([(piece(13, n), 1)])
                found.setdefault("density", {})[n] = sum(kept.kept.values()) / max(1, sum(kept.visible.values()))
            found["first"][n] = {"first": [r["at"][0] for r in runs], "token": [(r["at"][-1] - r["at"][0]) / 8 for r in runs]}
    if "mixed" in args.parts:
        short, long = args.requests
        requests = [(piece(104_729 * i, args.short), args.new) for i in range(short)]
        for i in range(long):
            requests.insert((i + 1) * len(requests) // (long + 1), (piece(31 * i + 5, args.long), args.new))
        found["mixed"] = [{k: r[k] for k in ("length", "at")} for r in engine.go(requests)]
    if "answers" in args.parts and not args.layers:
        prompts = [p for n in args.lengths for kind in ("needle", "kv") for p in asked(tokenizer, text, kind, n, seed=n)]
        alone = [engine.go([(p.ids, p.length)])[0]["ids"] for p in prompts]
        mixed = [r["ids"] for r in engine.go([(p.ids, p.length) for p in prompts])]
        found["answers"] = {
            "lengths": [len(p.ids) for p in prompts], "tokens": alone,
            **{name: [right(tokenizer.decode(x), p) for x, p in zip(made, prompts)] for name, made in (("alone", alone), ("mixed", mixed))},
        }  # fmt: skip
    del engine, session
    gc.collect()
    if "prefix" in args.parts:
        engine, session = started(cached=True)
        begun = piece(17, args.long - 4096 if args.long > 8192 else args.long // 2)
        found["prefix"] = []
        for i in range(2):
            before = METRICS.coded_keys
            r = engine.go([(begun + piece(50_000 + 999 * i, args.long - len(begun)), 2)])[0]
            found["prefix"].append({"first": r["at"][0], "coded": METRICS.coded_keys - before})


# ---- both, and what is printed ---------------------------------------------------------------------------------------


def quantile(values: list[float], q: float) -> float:
    values = sorted(values)
    return values[min(len(values) - 1, round(q * (len(values) - 1)))]


def show(args, engine: dict, ours: dict) -> None:
    from markdown import table

    print(f"vLLM, {'random weights of the 8B shape, ' + str(args.layers) + ' layers' if args.layers else args.model}: "
          "its own attention, and SALE's")  # fmt: skip
    both = (("FlashAttention", engine), ("SALE", ours))
    if "first" in args.parts:
        value = lambda x, n, what: statistics.median(x["first"][str(n)][what])  # noqa: E731
        rows = [(f"{name}, {words} (ms)", lambda n, x=x, what=what: f"{1e3 * value(x, int(n), what):.1f}")
                for what, words in (("first", "first token"), ("token", "a decoded token")) for name, x in both]  # fmt: skip
        rows += [(f"{words}, ratio", lambda n, what=what: f"{value(engine, int(n), what) / value(ours, int(n), what):.2f}×")
                 for what, words in (("first", "first token"), ("token", "decoded token"))]  # fmt: skip
        density = ours.get("density", {})
        rows.append(("blocks kept", lambda n: f"{density[n]:.1%}" if density.get(n) else "all"))
        table("One prompt", [str(n) for n in args.lengths], rows)
    if "mixed" in args.parts:
        columns = ["requests/s", "first p50, short", "first p99, short", "first p50, long", "between p50", "between p99"]

        def cell(x, column):
            runs = x["mixed"]
            if column == "requests/s":
                return f"{len(runs) / max(r['at'][-1] for r in runs):.2f}"
            wanted = [r for r in runs if (r["length"] == args.long) == column.endswith("long")] if "first" in column else runs
            values = [r["at"][0] for r in wanted] if "first" in column else [b - a for r in wanted for a, b in zip(r["at"], r["at"][1:])]
            return f"{1e3 * quantile(values, 0.99 if 'p99' in column else 0.5):.1f} ms"

        print(f"\n## {args.requests[0]} requests of {args.short} tokens and {args.requests[1]} of {args.long}, chunks of {args.chunk}\n")
        print("| | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
        for name, x in both:
            print(f"| {name} | " + " | ".join(cell(x, c) for c in columns) + " |")
    if "prefix" in args.parts:
        print("\n## A cached prefix\n\n| | first request | second | keys coded for it |\n|---|---|---|---|")
        for name, x in both:
            a, b = x["prefix"]
            print(f"| {name} | {1e3 * a['first']:.1f} ms | {1e3 * b['first']:.1f} ms | {b['coded']} |")
    if "answers" in engine:
        same = sum(a == b for a, b in zip(engine["answers"]["tokens"], ours["answers"]["tokens"]))
        print("\n## Answers\n\n| | right, alone | right, all in one batch |\n|---|---|---|")
        for name, x in both:
            print(f"| {name} | {sum(x['answers']['alone'])} of {len(x['answers']['alone'])} | {sum(x['answers']['mixed'])} |")
        print(f"\nThe same tokens from both: {same} of {len(engine['answers']['tokens'])}.")
    print("\n## Host time a step (us)\n\n| | median | p99 | calls |\n|---|---|---|---|")
    for name, x in both:
        for what, samples in x["host"].items():
            print(f"| {name}, {what} | {statistics.median(samples):.0f} | {quantile(samples, 0.99):.0f} | {len(samples)} |")


def main() -> None:
    args = arguments()
    if args.child:
        return child(args)
    found = []
    with tempfile.TemporaryDirectory() as t:
        for backend in BACKENDS:
            file = pathlib.Path(t) / f"{backend}.json"
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", backend, str(file)], check=True, stdout=sys.stderr)
            found.append(json.loads(file.read_text()))
    show(args, *found)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"arguments": vars(args), "runs": found}, indent=1))


if __name__ == "__main__":
    main()
