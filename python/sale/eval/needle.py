"""Facts hidden in a long text, and a model asked for them. The prompts are those of sale._prompts."""

from __future__ import annotations

import inspect
import os
import time

import torch

from .._prompts import KINDS, Fact, Prompt, make_prompt

__all__ = ["KINDS", "Fact", "Prompt", "answer", "cache_argument", "load", "make_prompt"]


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
