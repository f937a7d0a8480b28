"""Facts hidden in a long text, and a model asked for them: dense and sparse.

Three kinds of prompt, made from a seed alone, so that every run of a seed is the same:

    needle    " The special magic number for Oslo is 4518530." among other sentences, one or several, each asked for
    multikey  one of many such sentences, all but one of them distractors
    kv        a JSON object of random keys and values, and one key asked for
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import pathlib
import random
import re
import time

import torch

CITIES = ("Lisbon Oslo Vienna Prague Dublin Athens Helsinki Warsaw Madrid Naples Hamburg Lyon Seville Krakow Riga Sofia "
          "Cairo Tunis Nairobi Accra Dakar Delhi Mumbai Lahore Bangkok Hanoi Jakarta Manila Taipei Seoul Osaka Kyoto "
          "Sydney Perth Auckland Toronto Boston Chicago Denver Houston Havana Lima Quito Santiago Glasgow Oxford").split()  # fmt: skip
KINDS = ("needle", "multikey", "kv")
_SENTENCE_END = re.compile(r"[.!?][\"']?(?=\s)")


@dataclasses.dataclass(frozen=True)
class Fact:
    """What is hidden, how it is asked for, and the answer: what follows the question, up to what ends it."""

    key: str
    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A context and the facts in it that are asked for."""

    kind: str
    context: str
    facts: tuple[Fact, ...]


def _hidden(text: str, sentences: list[tuple[float, str]]) -> str:
    """`sentences` put into the text at the first end of a sentence after their depth (0: start, 1: end)."""
    parts, done = [], 0
    for depth, sentence in sorted(sentences):
        at = max(done, int(depth * len(text)))
        found = _SENTENCE_END.search(text, max(at - 1, 0))
        at = found.end() if found and at > 0 else at
        parts += [text[done:at], sentence]
        done = at
    return "".join(parts) + text[done:]


def _fitted(tokenizer, text: str, tokens: int, start: int, build) -> str:
    """build(a piece of the text) as long as fits into so many tokens; ValueError when the text is too short."""
    characters = int(tokens * 3.5)
    for _ in range(12):
        piece = text[start : start + characters]
        made = build(piece)
        count = len(tokenizer(made, add_special_tokens=True).input_ids)
        if count <= tokens and (count > 0.98 * tokens or characters <= 64):
            return made
        if count <= tokens and len(piece) < characters:
            break
        characters = max(64, int(characters * (0.995 * tokens / count)))
    raise ValueError(f"text: of {len(text)} characters is too short for {tokens} tokens")


def make_prompt(tokenizer, text: str, kind: str, tokens: int, *, facts: int = 1, distractors: int = 8,
                seed: int = 1) -> Prompt:  # fmt: skip
    """A prompt of at most `tokens` tokens, question and answer included. ValueError: an unknown kind, a text that is
    too short, too many facts."""
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
    draw = random.Random(f"{kind} {seed}")
    room = tokens - 96  # for a question and its answer
    if kind == "kv":
        pairs: dict[str, str] = {}
        cost = len(tokenizer('"0f1e2d3c": "4b5a6978",\n', add_special_tokens=False).input_ids)
        while len(pairs) * cost < room - 4 * cost:
            pairs[f"{draw.getrandbits(32):08x}"] = f"{draw.getrandbits(32):08x}"
        body = ",\n ".join(f'"{k}": "{v}"' for k, v in pairs.items())
        asked = draw.sample(sorted(pairs), facts)
        made = tuple(Fact(k, f'Key: "{k}"\nValue: "', f'{pairs[k]}"') for k in asked)
        return Prompt(kind, f"JSON data:\n{{{body}}}\n\n", made)
    others = distractors if kind == "multikey" else 0
    if facts + others > len(CITIES):
        raise ValueError(f"facts: {facts} with {others} distractors are more than the {len(CITIES)} keys there are")
    keys = draw.sample(CITIES, facts + others)
    numbers = [str(draw.randrange(10**6, 10**7)) for _ in keys]
    sentences = [((i + 0.5) / len(keys), f" The special magic number for {k} is {n}.")
                 for i, (k, n) in enumerate(zip(keys, numbers))]  # fmt: skip
    start = draw.randrange(max(1, len(text) - int(room * 6)))
    start = text.find("\n", start) + 1
    context = _fitted(tokenizer, text, room, start, lambda piece: _hidden(piece, sentences))
    asked = draw.sample(range(len(keys)), facts)
    made = tuple(
        Fact(keys[i], f" What is the special magic number for {keys[i]}? The special magic number for {keys[i]} is",
             f" {numbers[i]}.") for i in asked
    )  # fmt: skip
    return Prompt(kind, context, made)


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
