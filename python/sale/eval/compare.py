"""Facts hidden in a long text, and a model asked for them: dense and sparse, side by side."""

from __future__ import annotations

import json
import os
import pathlib

from ..transformers import use
from .needle import KINDS, answer, load, make_prompt


def compare(
    model: str | os.PathLike | tuple,
    text: str | os.PathLike,
    *,
    tokens: int,
    kinds=KINDS,
    facts: int = 3,
    seeds=(1,),
    device: str = "cpu",
    dtype: str | None = None,
    chunk: int = 0,
    calibration=None,
) -> list[dict]:
    """One row for each fact asked for: kind, seed, key, asked (the right answer), dense, sale, seconds of both.

    model: a folder, a hub name, or (model, tokenizer) as loaded. text: a file to hide facts in."""
    model, tokenizer = model if isinstance(model, tuple) else load(model, device, dtype)
    words = pathlib.Path(text).read_text()
    use(model, calibration)
    rows = []
    for seed in seeds:
        for kind in kinds:
            prompt = make_prompt(tokenizer, words, kind, tokens, facts=facts, seed=seed)
            model.set_attn_implementation("sdpa")
            dense, dense_s = answer(model, tokenizer, prompt, chunk=chunk)
            model.set_attn_implementation("sale")
            sparse, sparse_s = answer(model, tokenizer, prompt, chunk=chunk)
            for fact, a, b in zip(prompt.facts, dense, sparse):
                rows.append({"kind": kind, "tokens": tokens, "seed": seed, "key": fact.key, "asked": fact.answer,
                             "dense": a, "sale": b, "dense_s": dense_s, "sale_s": sparse_s})  # fmt: skip
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: right answers of both by kind and length, and prefill seconds."""
    lines = ["| prompt | tokens | dense | SALE | equal answers | prefill, dense | prefill, SALE |", "|---|---|---|---|---|---|---|"]
    for kind, tokens in dict.fromkeys((r["kind"], r["tokens"]) for r in rows):
        of = [r for r in rows if (r["kind"], r["tokens"]) == (kind, tokens)]
        right = {form: sum(r[form] == r["asked"] for r in of) for form in ("dense", "sale")}
        mean = {form: sum(r[form] for r in of) / len(of) for form in ("dense_s", "sale_s")}
        lines.append(f"| {kind} | {tokens} | {right['dense']} of {len(of)} | {right['sale']} of {len(of)} | "
                     f"{sum(r['dense'] == r['sale'] for r in of)} of {len(of)} | {mean['dense_s']:.2f} s | "
                     f"{mean['sale_s']:.2f} s |")  # fmt: skip
    return "\n".join(lines)


def write(rows: list[dict], path: str | os.PathLike) -> None:
    pathlib.Path(path).write_text(json.dumps({"schema": 1, "rows": rows}, indent=1) + "\n")
