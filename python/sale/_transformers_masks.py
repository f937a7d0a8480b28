"""The masks of transformers: what its models make of them once per forward, small whatever the length.

Causal attention (of a whole prompt, over a cache, with padding, of packed sequences, within a window) is int64 [batch, 1, 1, HEAD] or
[batch, 1, 1, HEAD + keys], see _pieces.py; everything else is the bool mask that sdpa would get. Both know when a model
computes with them instead of handing them to its attention, and refuse that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers.masking_utils import causal_mask_function, sdpa_mask

from . import _pieces, _torch
from ._pieces import HEAD, MARK


def mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=causal_mask_function,
         attention_mask=None, **kwargs):  # fmt: skip
    """What transformers asks for. Its arguments are those of transformers.masking_utils.sdpa_mask."""
    packed, window = _recognised(mask_function)
    # Of a compiled mask no window can be read; and on a GPU the library takes windows only when its backend is named.
    elsewhere = torch.compiler.is_compiling() or torch.device(kwargs.get("device", "cpu")).type != "cpu"
    if window is None or (window and elsewhere):
        # No mask means plain causal attention where models are compiled, and that everything is visible where they are
        # not, whatever sdpa would take it for: see transformers._is_causal.
        compiling = torch.compiler.is_compiling()
        if compiling:
            kwargs["allow_is_bidirectional_skip"] = False
        made = sdpa_mask(batch_size, q_length, kv_length, q_offset=q_offset, kv_offset=kv_offset,
                         mask_function=mask_function, attention_mask=attention_mask, **kwargs)  # fmt: skip
        if made is not None and not compiling:
            return made.as_subclass(Bools)
        if made is not None or compiling or not kwargs.get("allow_is_causal_skip", True):
            return made
        # A window or a chunk that holds all keys: plain causal, made below.
        packed = None
    window = 0 if window is None or window >= kv_length else window
    device = kwargs.get("device", "cpu")
    offset = q_offset - kv_offset
    moving = isinstance(q_offset, torch.Tensor)
    if packed is not None:
        return _marked(_torch.spans_of(packed.to(device).expand(batch_size, -1) + 1, offset, window), None, window)
    if attention_mask is None and not moving:
        if torch.compiler.is_compiling() and offset + q_length == kv_length and (offset == 0 or q_length == 1):
            return None
        rows = [[0, offset + q_length, offset + q_length, offset, 1, kv_length, window, MARK]] * batch_size
        return _marked(torch.tensor(rows, dtype=torch.int64, device=device), rows, window)
    seen = torch.arange(kv_length, device=device) < offset + q_length
    if attention_mask is None:
        visible = seen[None].expand(batch_size, -1)
    else:  # from the first key on; keys that it does not reach are of a static cache and not there yet
        padding = attention_mask[:, kv_offset : kv_offset + kv_length].to(torch.bool)
        visible = F.pad(padding, (0, kv_length - padding.shape[1])) & seen
    return _marked(_torch.spans_of(visible, offset, window), None, window)


def _marked(spans: torch.Tensor, rows: list | None, window: int) -> torch.Tensor:
    spans = spans[:, None, None, :]
    return spans if torch.compiler.is_compiling() else Mask.of(spans, _torch.Spans(rows, window))


def _refused(what: str) -> NotImplementedError:
    return NotImplementedError(
        f"sale: this model computes with its attention mask ({what}) outside of the attention that it lets others do; use "
        "attn_implementation 'eager' or 'sdpa' for it"
    )


class Mask(torch.Tensor):
    """Spans on their way through a model. It may be looked at, moved and cut to its keys; whatever else a model does with
    its mask would be done to numbers that it does not know."""

    @staticmethod
    def of(spans: torch.Tensor, held: _torch.Spans) -> Mask:
        made = spans.as_subclass(Mask)
        made._sale_spans = held
        return made

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        given = getattr(function, "__name__", str(function))
        name = given.strip("_")
        if name == "getitem" and _cuts_nothing(*args):
            return args[0]
        if name in _CHANGES or (given.endswith("_") and not given.startswith("_")):  # or writes to it
            raise _refused(name)
        with torch._C.DisableTorchFunctionSubclass():
            made = function(*args, **(kwargs or {}))
        if name in _MOVES and made.dtype == torch.int64:
            return cls.of(made.as_subclass(torch.Tensor), args[0]._sale_spans)
        return made  # a tensor like any other, which no attention of ours takes for spans

    def plain(self) -> torch.Tensor:
        """An ordinary tensor, with what is remembered of it."""
        made = _plain(self)
        if not torch.compiler.is_compiling():
            made._sale_spans = self._sale_spans
        return made


class Bools(torch.Tensor):
    """A bool mask on its way through a model. What has it added to scores would add ones."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", str(function))
        if name.strip("_") in _SUMS:
            raise _refused(name)
        made = super().__torch_function__(function, types, args, kwargs or {})
        return made.plain() if isinstance(made, Bools) and made.dtype != torch.bool else made

    def plain(self) -> torch.Tensor:
        return _plain(self)


def _plain(x: torch.Tensor) -> torch.Tensor:
    if torch.compiler.is_compiling():  # as_subclass cannot be traced; this is what __torch_function__ takes for no move
        return torch.ops.aten.clone.default(x)
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(torch.Tensor)


_SUMS = {"add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "mul", "rmul", "imul", "multiply", "baddbmm"}
_MOVES = {"to", "cuda", "cpu", "clone", "contiguous", "detach", "pin_memory"}
_CHANGES = set(
    "getitem setitem add radd iadd sub rsub isub mul rmul imul truediv rtruediv div neg abs invert and rand or ror xor "
    "eq ne lt le gt ge where logical_not logical_and logical_or bitwise_not bitwise_and bitwise_or masked_fill cat concat "
    "stack expand repeat repeat_interleave float half bfloat16 double int bool type type_as view reshape flatten "
    "transpose permute unsqueeze squeeze select narrow index_select gather chunk split triu tril max min sum cumsum any "
    "all mean baddbmm matmul softmax pad".split()
)


def _cuts_nothing(spans: torch.Tensor, at) -> bool:
    """Whether at is [:, :, :, :n], as models cut masks to their keys, of no fewer than all."""
    if not isinstance(at, tuple):
        return False
    if not all(isinstance(i, slice) and i.start in (None, 0) and i.step in (None, 1) for i in at):
        return False
    keys = spans.shape[3] - HEAD
    whole = (*spans.shape[:3], keys if keys else HEAD)
    return len(at) <= 4 and all(i.stop is None or i.stop >= n for i, n in zip(at, whole))


def _recognised(mask_function) -> tuple[torch.Tensor | None, int | None]:
    """What of a causal mask that transformers makes: of packed sequences, each causal, [batch, keys] number of the
    sequence, from 0, else None; and its window, 0 where there is none. (None, None) of any other mask. (When transformers
    is compiled it takes sequences for packed whenever it was given no mask: there may be one.)"""
    window = _window(mask_function)
    if window is not None:
        return None, window
    parts = _closed_over(mask_function, "and_masks", 1)
    if parts is None or len(parts[0]) != 2:
        return None, None
    causal, apart = parts[0]
    inner = _closed_over(causal, "remap_positions_for_packed_sequence", 2)
    window = _window(causal if inner is None else inner[0])
    numbers = _closed_over(apart, "packed_sequence_mask_function", 1)
    return (None, None) if window is None or numbers is None else (numbers[0], window)


def _window(mask_function) -> int | None:
    """Of a causal mask its window, 0: none; None of a mask that is something else."""
    if mask_function is causal_mask_function:
        return 0
    parts = _closed_over(mask_function, "and_masks", 1)
    if parts is None or len(parts[0]) != 2 or parts[0][1] is not causal_mask_function:
        return None
    window = _closed_over(parts[0][0], "sliding_window_overlay", 1)
    return window[0] if window is not None and type(window[0]) is int and window[0] > 0 else None


def _closed_over(function, maker: str, count: int) -> list | None:
    """What a function made inside `maker`, of transformers.masking_utils, closes over, in the order of its names; None
    when it is not one of those."""
    if function.__module__ != "transformers.masking_utils" or not function.__qualname__.startswith(f"{maker}.<locals>."):
        return None
    cells = function.__closure__
    return None if cells is None or len(cells) != count else [c.cell_contents for c in cells]


def is_spans(x, keys: int) -> bool:
    """Whether a mask for so many keys is one of this module's."""
    if x is None or x.dtype != torch.int64 or x.dim() != 4 or x.shape[1] != 1 or x.shape[2] != 1:
        return False
    return x.shape[3] in (HEAD, HEAD + keys) and (torch.compiler.is_compiling() or hasattr(x, "_sale_spans"))


def as_bools(spans: torch.Tensor, rows: int, keys: int) -> torch.Tensor:
    """bool [batch, 1, rows, keys]: what sdpa needs to do the same."""
    at = torch.arange(keys, device=spans.device)
    first, end, offset, segments = spans[..., 0:1], spans[..., 1:2], spans[..., 3:4], spans[..., 4:5]
    window = spans[..., 6:7]
    row = torch.arange(rows, device=spans.device)[:, None] + offset
    visible = (at >= first) & (at < end) & (at <= row) & ((window == 0) | (at > row - window))
    if spans.shape[3] > HEAD:
        numbers = spans[..., HEAD:]
        own = numbers.gather(3, row.mT).mT
        visible = visible & (numbers > 0) & ((numbers == own) | (segments <= 1))
    return visible


def window_of(spans) -> int:
    """How many keys a row sees at most, 0: all. Not while compiling."""
    return spans._sale_spans.window


def are_gathered(spans) -> bool:
    """Whether rows would be gathered from between hidden ones, so that keys come nearer than they were."""
    if spans.shape[3] == HEAD or _pieces.are_ranges(_torch.spans("attention_mask", spans)):
        return False
    return not _pieces.are_whole(_torch.segments(spans))


def says_nothing(query, key, spans) -> bool:
    """Whether spans are those of plain causal attention, within a window or not: no padding, and keys end at the last row
    or are cut off there. Not while compiling: it reads them."""
    rows = _torch.spans("attention_mask", spans)
    first, end, count, offset, segments, keys, _, mark = rows[0]
    whole = first == 0 and count == end == offset + query.shape[2] and segments == 1 and mark == MARK
    return whole and keys == key.shape[2] and all(r == rows[0] for r in rows)


def plainly(query, key, value, spans):
    """(key, value, spans), without spans where they say nothing but a window, and without keys behind the last row
    then."""
    if spans is None or not says_nothing(query, key, spans):
        return key, value, spans
    end = _torch.spans("attention_mask", spans)[0][1]
    return key[:, :, :end], value[:, :, :end], None


def for_sdpa(query, key, spans) -> torch.Tensor | None:
    """The bool mask of spans; None where sdpa has its own word for it, which is faster: all keys for one row, or is_causal
    for as many rows as keys."""
    held = getattr(spans, "_sale_spans", None)
    if held is not None and held.rows is not None and says_nothing(query, key, spans) and not window_of(spans):
        end = held.rows[0][1]
        if end == key.shape[2] and query.shape[2] in (1, end):
            return None
    return as_bools(spans, query.shape[2], key.shape[2])
