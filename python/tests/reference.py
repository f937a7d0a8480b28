"""Attention in double precision, by the definition."""

import numpy as np


def attention(q, k, v, offset, scale=None, kept=None):
    """q [heads, rows, d], k and v [kv_heads, keys, d]; kept: None or a bool [heads, rows, keys]. Returns (out, lse)."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[0] // k.shape[0]
    k, v = k.repeat(group, 0), v.repeat(group, 0)
    scores = q @ k.swapaxes(1, 2) * (scale or q.shape[-1] ** -0.5)
    rows, keys = scores.shape[1:]
    hidden = np.arange(keys) > np.arange(rows)[:, None] + offset
    scores[:, hidden] = -np.inf
    if kept is not None:
        scores[~kept] = -np.inf
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return weights @ v / total, (top + np.log(total))[..., 0]


def kept_pairs(blocks, sequence, rows, keys):
    """bool [heads, rows, keys] of a sale.BlockList."""
    kept = np.zeros((blocks.heads, rows, keys), bool)
    for head in range(blocks.heads):
        for tile in range(blocks.tiles[sequence]):
            lines = slice(tile * blocks.q_block, (tile + 1) * blocks.q_block)
            for b in blocks.row(sequence, head, tile):
                kept[head, lines, b * blocks.k_block : (b + 1) * blocks.k_block] = True
    return kept
