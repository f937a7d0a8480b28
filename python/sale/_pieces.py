"""Which keys a row may see, where that is not simply those before it: what travels, and what is made of it.

A mask travels as `spans`, [batch, HEAD + keys] integers, of each sequence

    first, end   its first visible key, and the end of its visible keys
    count        how many there are: fewer than end - first where there are holes
    offset       key position of the first query
    segments     how many there are: keys of one do not see another's
    keys         all of them, hidden or not
    window       how many keys up to its own a row sees at most; 0: all. Of masks that transformers makes; of others a
                 window is said beside the mask
    mark         MARK; anything else was changed on the way

and behind them, unless every sequence is one visible range of one segment, for every key the number of its segment, 1, 2,
..., and 0 where it is hidden. Such ranges are lengths and starts, which the library knows (_call._ranges). Of everything
else the visible rows and keys of every segment are gathered one after the other, computed as packed sequences, and put
back.
"""

from __future__ import annotations

import numpy as np

HEAD = 8
MARK = 0x53414C45


def are_ranges(rows: list[list[int]]) -> bool:
    """Whether each sequence's visible keys are one range of one segment (or none at all)."""
    return all(count in (0, end - first) and segments <= 1 for first, end, count, _, segments, *_ in rows)


def are_ours(rows: list[list[int]], keys: int, width: int = HEAD) -> bool:
    """Whether these rows, the first of so many numbers, are as they were made, for so many keys."""
    return width in (HEAD, HEAD + keys) and all(mark == MARK and of == keys for *_, of, _, mark in rows)


def are_whole(segments: np.ndarray) -> bool:
    """Whether the keys of every segment stand one behind the other: what is gathered is then as far apart as it was."""
    for line in segments:
        used = line[line > 0]
        starts = np.flatnonzero((line > 0) & (np.diff(line, prepend=0) != 0))
        if len(starts) != len(np.unique(used)):
            return False
    return True


def gathered(segments: np.ndarray, offset: int, rows: int, causal: bool):
    """What is computed of [batch, keys] segment numbers, by sequences that are packed one after the other: of every row
    its batch and its number, of every key its batch and its number, cumulative lengths of both, and the sequences'
    batches. A row whose own key is hidden is left out (causal False: none is)."""
    row_batch, row_at, key_batch, key_at, owner, q_lens, k_lens = [], [], [], [], [], [0], [0]
    for b, line in enumerate(segments):
        line = line[: offset + rows] if causal else line
        for segment in np.unique(line[line > 0]):
            keys = np.flatnonzero(line == segment)
            mine = keys[keys >= offset] - offset if causal else np.arange(rows)
            if not len(mine):
                continue
            row_batch.append(np.full(len(mine), b)), row_at.append(mine)
            key_batch.append(np.full(len(keys), b)), key_at.append(keys)
            q_lens.append(len(mine)), k_lens.append(len(keys)), owner.append(b)
    if not owner:
        return None
    return (*(np.concatenate(x) for x in (row_batch, row_at, key_batch, key_at)), np.cumsum(q_lens).tolist(),
            np.cumsum(k_lens).tolist(), np.array(owner))  # fmt: skip
