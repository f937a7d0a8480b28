"""The masks of transformers: what its models make of them once per forward, small whatever the length.

Plain causal attention of a whole prompt is None. Other causal attention (over a cache, with padding, of packed sequences)
is int64 [batch, 1, 1, HEAD] or [batch, 1, 1, HEAD + keys], see _pieces.py. Everything else is the bool mask that sdpa
would get.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers.masking_utils import causal_mask_function, sdpa_mask

from . import _torch
from ._pieces import HEAD, MARK


def mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=causal_mask_function,
         attention_mask=None, **kwargs):  # fmt: skip
    """What transformers asks for. Its arguments are those of transformers.masking_utils.sdpa_mask."""
    packed = None if mask_function is causal_mask_function else _packed(mask_function)
    if mask_function is not causal_mask_function and packed is None:
        return sdpa_mask(batch_size, q_length, kv_length, q_offset=q_offset, kv_offset=kv_offset,
                         mask_function=mask_function, attention_mask=attention_mask, **kwargs)  # fmt: skip
    device = kwargs.get("device", "cpu")
    offset = q_offset - kv_offset
    moving = isinstance(q_offset, torch.Tensor)
    if packed is not None:
        return _marked(_torch.spans_of(packed.to(device).expand(batch_size, -1) + 1, offset))
    if attention_mask is None and not moving:
        if offset + q_length == kv_length and (offset == 0 or q_length == 1):
            return None
        rows = [[0, offset + q_length, offset + q_length, offset, 1, kv_length, MARK]] * batch_size
        return _marked(torch.tensor(rows, dtype=torch.int64, device=device), rows)
    seen = torch.arange(kv_length, device=device) < offset + q_length
    if attention_mask is None:
        visible = seen[None].expand(batch_size, -1)
    else:  # from the first key on; keys that it does not reach are of a static cache and not there yet
        padding = attention_mask[:, kv_offset : kv_offset + kv_length].to(torch.bool)
        visible = F.pad(padding, (0, kv_length - padding.shape[1])) & seen
    return _marked(_torch.spans_of(visible, offset))


def _marked(spans: torch.Tensor, rows: list | None = None) -> torch.Tensor:
    spans = spans[:, None, None, :]
    if not torch.compiler.is_compiling():
        spans._sale_spans = _torch.Spans(rows)
    return spans


def _packed(mask_function) -> torch.Tensor | None:
    """[batch, keys] number of the sequence, from 0, of a mask that transformers makes of packed sequences, each causal;
    None of any other. (When it is compiled it makes one whenever it was given no mask: there may be one sequence.)"""
    parts = _closed_over(mask_function, "and_masks", 1)
    if parts is None or len(parts[0]) != 2:
        return None
    causal, apart = parts[0]
    if causal is not causal_mask_function:
        inner = _closed_over(causal, "remap_positions_for_packed_sequence", 2)
        if inner is None or inner[0] is not causal_mask_function:
            return None
    numbers = _closed_over(apart, "packed_sequence_mask_function", 1)
    return None if numbers is None else numbers[0]


def _closed_over(function, maker: str, count: int) -> list | None:
    """What a function made inside `maker`, of transformers.masking_utils, closes over, in the order of its names; None
    when it is not one of those."""
    if function.__module__ != "transformers.masking_utils" or not function.__qualname__.startswith(f"{maker}.<locals>."):
        return None
    cells = function.__closure__
    return None if cells is None or len(cells) != count else [c.cell_contents for c in cells]


def is_spans(x) -> bool:
    """Whether a mask is one of this module's."""
    return x is not None and x.dtype == torch.int64 and x.dim() == 4 and x.shape[1] == x.shape[2] == 1 and x.shape[3] >= HEAD


def as_bools(spans: torch.Tensor, rows: int, keys: int) -> torch.Tensor:
    """bool [batch, 1, rows, keys]: what sdpa needs to do the same."""
    at = torch.arange(keys, device=spans.device)
    first, end, offset, segments = spans[..., 0:1], spans[..., 1:2], spans[..., 3:4], spans[..., 4:5]
    row = torch.arange(rows, device=spans.device)[:, None] + offset
    visible = (at >= first) & (at < end) & (at <= row)
    if spans.shape[3] > HEAD:
        numbers = spans[..., HEAD:]
        own = numbers.gather(3, row.mT).mT
        visible = visible & (numbers > 0) & ((numbers == own) | (segments <= 1))
    return visible


def plainly(query, key, value, spans):
    """(key, value, spans), without spans where they say nothing: no padding, and keys end at the last row (those behind
    it are cut off). Not while compiling: it reads them."""
    if spans is None:
        return key, value, None
    rows = _torch.spans("attention_mask", spans)
    first, end, count, offset, segments, keys, mark = rows[0]
    whole = first == 0 and count == end == offset + query.shape[2] and segments == 1 and mark == MARK
    if whole and keys == key.shape[2] and all(r == rows[0] for r in rows):
        return key[:, :, :end], value[:, :, :end], None
    return key, value, spans
