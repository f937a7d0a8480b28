"""Prompts with facts hidden in them, for calibration and evaluation alike.

Three kinds, made from a seed alone, so that every run of a seed is the same:

    needle    " The special magic number for Oslo is 4518530." among other sentences, one or several, each asked for
    multikey  one of many such sentences, all but one of them distractors
    kv        a JSON object of random keys and values, and one key asked for
"""

from __future__ import annotations

import dataclasses
import random
import re

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
