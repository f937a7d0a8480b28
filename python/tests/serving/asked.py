"""Prompts with known answers, as token numbers, the same for every engine."""

from __future__ import annotations

from typing import NamedTuple

from sale._prompts import make_prompt


class Asked(NamedTuple):
    ids: list[int]
    answer: str
    length: int  # tokens of the answer


def asked(tokenizer, text: str, kind: str, tokens: int, seed: int) -> list[Asked]:
    """Two questions about one context of about so many tokens, which is their common prefix."""
    made = make_prompt(tokenizer, text, kind, tokens, facts=2, seed=seed)
    begun = tokenizer(made.context).input_ids
    numbers = lambda words: tokenizer(words, add_special_tokens=False).input_ids  # noqa: E731
    return [Asked(begun + numbers(f.question), f.answer, len(numbers(f.answer)) + 2) for f in made.facts]


def right(answer: str, wanted: Asked) -> bool:
    return answer.startswith(wanted.answer)
