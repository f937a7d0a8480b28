"""Which rows of a step's batch are ours. A row is a request's part of it: its new tokens, at the end of its keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Fewer new tokens than a query tile are decoding (or a draft to verify): every key counts for them, and a tile mostly
# empty is no work to save.
SHORTEST = 64


class Row(NamedTuple):
    """Place in the batch, first token of it in the step's tensors, new tokens, and keys with them."""

    request: int
    start: int
    tokens: int
    keys: int


def rows_of(starts: Sequence[int], keys: Sequence[int], prefilling: Sequence[bool] | None) -> list[Row]:
    """Rows that read a prompt. starts: [n + 1] tokens; keys: [n], those of other rows need not be right."""
    return [
        Row(i, start, end - start, keys[i])
        for i, (start, end) in enumerate(zip(starts, starts[1:]))
        if end - start >= SHORTEST and (prefilling is None or prefilling[i])
    ]


def chosen(rows: Sequence[Row], dense_below: int) -> list[Row]:
    """Of them, those long enough that sparse attention pays."""
    return [row for row in rows if row.keys >= dense_below]


def gaps(ours: Sequence[Row], starts: Sequence[int]) -> list[tuple[int, int]]:
    """The engine's: ranges [first, end) of requests that have tokens and are not ours."""
    mine = {row.request for row in ours}
    found: list[tuple[int, int]] = []
    for i, (start, end) in enumerate(zip(starts, starts[1:])):
        if start == end or i in mine:
            continue
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found
