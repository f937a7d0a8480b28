"""Facts hidden in a long text, and a model asked for them: dense and sparse. The prompts are those of sale._prompts."""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import time

import torch

from .._prompts import KINDS, Fact, Prompt, make_prompt

__all__ = ["KINDS", "Fact", "Prompt", "answer", "cache_argument", "compare", "load", "make_prompt", "table", "write"]


def cache_argument(model) -> str:
    """What a model's forward calls its cache: transformers renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@torch.no_grad()
def answer(model, tokenizer, prompt: Prompt, *, chunk: int = 0) -> tuple[list[str], float]:
    """Greedy answers to the prompt's questions, as long as the expected ones, and the seconds its context took. The
    context runs once, `chunk` tokens at a time (0: all at once); each question goes on from its cache."""
    from transformers import DynamicCache

    name = cache_argument(model)
    context = tokenizer(prompt.context, return_tensors="pt").input_ids.to(model.device)
    cache = DynamicCache()

    def run(ids):
        return model(ids, use_cache=True, logits_to_keep=1, **{name: cache}).logits[0, -1].argmax().item()

    start = time.perf_counter()
    for piece in context.split(chunk or context.shape[1], dim=1):
        run(piece)
    seconds = time.perf_counter() - start
    answers = []
    for fact in prompt.facts:
        length = cache.get_seq_length()
        ids = tokenizer(fact.question, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
        generated = [run(ids)]
        while len(tokenizer.decode(generated)) < len(fact.answer):
            generated.append(run(torch.tensor([generated[-1:]], device=model.device)))
        answers.append(tokenizer.decode(generated)[: len(fact.answer)])
        cache.crop(length - cache.get_seq_length())
    return answers, seconds


def load(folder: str | os.PathLike, device: str = "cpu", dtype: str | None = None):
    """(model, tokenizer) of a folder or a hub name. dtype: None means the weights' own on a GPU and float32 on a CPU,
    few of which multiply 16-bit numbers fast."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = dtype or ("float32" if device == "cpu" else "auto")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval(), tokenizer


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
    import sale.transformers

    model, tokenizer = model if isinstance(model, tuple) else load(model, device, dtype)
    words = pathlib.Path(text).read_text()
    sale.transformers.use(model, calibration)
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
