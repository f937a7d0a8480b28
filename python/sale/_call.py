"""One call, for numpy and torch alike: from tensors and what is said about them to a plan, and the run.

`api` is the module of the kind of tensor, _numpy or _torch. What can be wrong with the tensors by themselves is refused
by the library; here only what the library cannot see: that the tensors' shapes fit together.
"""

from __future__ import annotations

import ctypes
import dataclasses
from typing import NamedTuple

import numpy as np

from . import _c, _pieces
from ._plan import Layout, Plan, View, addresses, plan_for
from .options import Options

_run = _c.lib.sale_run


class Said(NamedTuple):
    """What a caller says about the tensors; see sale.attention. torch's operator takes these fields in this order, of the
    types in SCHEMA."""

    scale: float = 0.0
    causal: bool = True
    q_offset: int | None = None
    spans: object = None  # of a mask, see _pieces.py
    cu_seqlens_q: object = None
    cu_seqlens_k: object = None
    page_table: object = None
    k_lens: object = None
    reference: object = None  # float32 [batch, q_heads, rows], see sale_problem in sale.h


SCHEMA = {"scale": "float", "causal": "bool", "q_offset": "int?", **{name: "Tensor?" for name in Said._fields[3:]}}
_TYPES = ("float32", "float16", "bfloat16")  # by number, as in _c


def _place(x: View) -> str:
    return f"{_TYPES[x.dtype]} {'in host memory' if x.device == _c.HOST else f'on CUDA device {x.device}'}"


@dataclasses.dataclass(frozen=True)
class Stats:
    """What one call did. Seconds of its stages; kept and visible blocks of all heads together; `heads`:
    [batch, q_heads, 2] int64, the same by head."""

    index_s: float
    select_s: float
    attend_s: float
    kept_blocks: int
    visible_blocks: int
    heads: np.ndarray
    backend: str

    @property
    def density(self) -> float:
        """Share of the visible blocks that was computed."""
        return self.kept_blocks / self.visible_blocks if self.visible_blocks else 1.0

    @property
    def head_density(self) -> np.ndarray:
        """[batch, q_heads]."""
        return self.heads[..., 0] / np.maximum(self.heads[..., 1], 1)


def axes_of(name: str, x: View, order: tuple[int, int, int]) -> tuple[int, int, int]:
    """Strides of batch, head and token, which stand at `order` (-1: there is no such axis). An axis of one entry gets
    the stride it would have in a dense tensor: torch and numpy leave anything there."""
    if x.strides[-1] != 1 and x.shape[-1] > 1:
        raise ValueError(f"{name}: its last axis has stride {x.strides[-1]}; head_dim must be contiguous")
    head_dim = x.shape[-1]
    return tuple(0 if a < 0 else x.strides[a] if x.shape[a] > 1 else head_dim for a in order)  # type: ignore[return-value]


_PADDED, _PACKED, _PAGES = (0, 1, 2), (-1, 1, 0), (0, 2, 1)


def expect(name: str, shape: tuple[int, ...], form: str, axes: int) -> None:
    if len(shape) != axes:
        raise ValueError(f"{name}: of shape {list(shape)}; {form} is needed")


def _pick(name: str, x: View, axis: int, wanted: int, of: str) -> None:
    if x.shape[axis] != wanted:
        raise ValueError(f"{name}: of shape {list(x.shape)}; axis {axis} must be {wanted}, as in {of}")


def _differences(name: str, bounds: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != tokens or any(a > b for a, b in zip(bounds, bounds[1:])):
        raise ValueError(f"{name}: {list(bounds)[:8]} does not ascend from 0 to the {tokens} tokens")
    return tuple(b - a for a, b in zip(bounds, bounds[1:]))


def lay_out(api, q, k, v, said: Said) -> tuple[Layout, tuple[View, View, View], tuple[int, ...]]:
    """The layout, the three tensors, and the sequences that have no row to compute (they are laid out as one row)."""
    vq, vk, vv = api.view("q", q), api.view("k", k), api.view("v", v)
    packed, paged = said.cu_seqlens_q is not None, said.page_table is not None
    if packed:
        expect("q", vq.shape, "[tokens, heads, head_dim], since cu_seqlens_q is given,", 3)
    else:
        expect("q", vq.shape, "[batch, heads, tokens, head_dim]", 4)
    if paged:
        api.table("page_table", said.page_table)
    keys_form = "[pages, page_size, heads, head_dim]" if paged else "q's form"
    for name, x in (("k", vk), ("v", vv)):
        expect(name, x.shape, keys_form, 4 if paged else len(vq.shape))
        if x.dtype != vq.dtype or x.device != vq.device:
            raise TypeError(f"{name}: of another type or device than q: {_place(x)}, q is {_place(vq)}")
        _pick(name, x, -1, vq.shape[-1], "q")
    if vv.shape != vk.shape:
        raise ValueError(f"v: of shape {list(vv.shape)}; k's is {list(vk.shape)}")

    order_q, order_k = (_PACKED if packed else _PADDED), (_PAGES if paged else _PACKED if packed else _PADDED)
    q_heads, kv_heads = vq.shape[1], vk.shape[order_k[1]]
    q_tokens, k_tokens = vq.shape[order_q[2]], vk.shape[order_k[2]]
    lists: dict = {}
    idle: tuple[int, ...] = ()
    if packed:
        bounds = api.integers("cu_seqlens_q", said.cu_seqlens_q)
        lists["q_lens"], lists["q_starts"] = _differences("cu_seqlens_q", bounds, q_tokens), bounds[:-1]
        batch = len(bounds) - 1
        if not paged:
            bounds = bounds if said.cu_seqlens_k is None else api.integers("cu_seqlens_k", said.cu_seqlens_k)
            lists["k_lens"], lists["k_starts"] = _differences("cu_seqlens_k", bounds, k_tokens), bounds[:-1]
            if len(bounds) != batch + 1:
                raise ValueError(f"cu_seqlens_k: {len(bounds) - 1} sequences, cu_seqlens_q has {batch}")
        idle = tuple(b for b in range(batch) if lists["q_lens"][b] == 0)
        if idle:
            raise ValueError(f"cu_seqlens_q: sequence {idle[0]} has no tokens")
    else:
        batch = vq.shape[0]
        if not paged:
            _pick("k", vk, 0, batch, "q")
    if said.k_lens is not None:
        if packed and not paged:
            raise ValueError("k_lens: given, but cu_seqlens_k says how long sequences are")
        lists["k_lens"] = api.integers("k_lens", said.k_lens)
        if len(lists["k_lens"]) != batch:
            raise ValueError(f"k_lens: {len(lists['k_lens'])} numbers for {batch} sequences")
        if not paged and max(lists["k_lens"]) > k_tokens:
            raise ValueError(f"k_lens: {max(lists['k_lens'])} exceeds the {k_tokens} keys of k")
    elif paged:
        raise ValueError("k_lens: needed with page_table")
    q_offset = _c.AUTO if said.q_offset is None else said.q_offset
    if not said.causal:
        if said.q_offset is not None:
            raise ValueError("q_offset: given, but causal is False")
        q_offset = k_tokens
        if "k_lens" in lists:
            lists["q_offsets"] = lists["k_lens"]
    if said.spans is not None:
        if packed or paged or said.k_lens is not None:
            raise ValueError("attn_mask: given together with cu_seqlens_q, page_table or k_lens, which say the same")
        spans = said.spans if isinstance(said.spans, list) else api.spans("attn_mask", said.spans)
        lists, idle = _ranges(spans, q_tokens, k_tokens, batch, said.causal)
    more = {}
    if paged:
        more = _pages(api, said.page_table, vk, batch)
    if said.reference is not None:
        more["reference"] = _reference(api, said.reference, (batch, q_heads, max(lists.get("q_lens", (q_tokens,)))), vq)
    layout = Layout(
        batch, q_heads, kv_heads, vq.shape[-1], vq.dtype, vq.device, q_tokens, k_tokens, q_offset, said.scale,
        axes_of("q", vq, order_q), axes_of("k", vk, order_k), axes_of("v", vv, order_k), (0, 0, 0), **lists, **more,
    )  # fmt: skip
    return layout, (vq, vk, vv), idle


def _ranges(spans, q_tokens: int, k_tokens: int, batch: int, causal: bool) -> tuple[dict, tuple[int, ...]]:
    """Each sequence cut down to its visible keys and the rows that stand at them."""
    if len(spans) != batch:
        raise ValueError(f"attn_mask: for {len(spans)} sequences, q has {batch}")
    q_starts, q_lens, k_starts, k_lens, q_offsets, idle = [], [], [], [], [], []
    if not _pieces.are_ours(spans, k_tokens):
        raise NotImplementedError(f"attention_mask: not for these {k_tokens} keys, or changed on its way to attention")
    for b, (first, end, count, offset, *_) in enumerate(spans):
        if not _pieces.are_ranges(spans[b : b + 1]):
            raise NotImplementedError(f"attn_mask: the visible keys of sequence {b} are not one range")
        begin, stop = (max(first - offset, 0), min(end - offset, q_tokens)) if causal else (0, q_tokens)
        if count == 0 or begin >= stop:
            idle.append(b)
            begin, stop, first, end = 0, 1, 0, 1
            offset = 0
        q_starts.append(begin), q_lens.append(stop - begin)
        k_starts.append(first), k_lens.append(min(end, offset + stop) - first if causal else end - first)
        q_offsets.append(offset + begin - first if causal else end - first)
    names = {"q_starts": q_starts, "q_lens": q_lens, "k_starts": k_starts, "k_lens": k_lens, "q_offsets": q_offsets}
    return {name: tuple(numbers) for name, numbers in names.items()}, tuple(idle)


def _pages(api, table, vk: View, batch: int) -> dict:
    shape, strides, address = api.table("page_table", table)
    if len(shape) != 2 or shape[0] != batch or strides != (shape[1], 1):
        raise ValueError(f"page_table: of shape {list(shape)}; a contiguous [{batch}, pages] is needed")
    return {"page_size": vk.shape[1], "pages": shape[1], "page_table": address}


def _reference(api, x, shape: tuple[int, int, int], like: View) -> int:
    api.check("reference", x)
    if not api.is_float32(x) or tuple(x.shape) != shape or not api.contiguous(x):
        raise ValueError(f"reference: of type {x.dtype} and shape {list(x.shape)}; contiguous float32 {list(shape)} is needed")
    if api.view("reference", x).device != like.device:
        raise ValueError("reference: on another device than q")
    return api.address(x)


def planned(api, q, k, v, options: Options, said: Said, with_index: bool, out=None) -> tuple:
    """(plan, views, idle sequences). out: the tensor the plan writes; None for plans that write none."""
    layout, views, idle = lay_out(api, q, k, v, said)
    order = _PACKED if said.cu_seqlens_q is not None else _PADDED
    strides = layout.q if out is None else axes_of("out", api.view("out", out), order)
    layout = layout._replace(out=strides)
    return plan_for(layout, options, with_index, api.capturing(q)), views, idle


def run(api, q, k, v, options: Options, said: Said, indexes=(), with_lse: bool = False, with_stats: bool = False):
    """(out, lse or None, Stats or None)."""
    if said.spans is not None:
        rows = api.spans("attn_mask", said.spans)
        if said.spans.shape[-1] > _pieces.HEAD and not _pieces.are_ranges(rows):
            return _run_in_pieces(api, q, k, v, options, said, rows[0][3], indexes, with_lse, with_stats)
        said = said._replace(spans=rows)
    out = api.empty_like(q) if said.spans is None else api.zeros_like(q)
    plan, (vq, vk, vv), idle = planned(api, q, k, v, options, said, bool(indexes), out)
    layout = plan.layout
    handles = _handles(indexes, layout.batch)
    rows = api.floats(q, (layout.batch, layout.q_heads, layout.lse_rows)) if with_lse else None
    stats = heads = None
    if with_stats:
        if api.capturing(q):
            raise ValueError("return_stats: statistics wait for the device, which a graph being captured cannot do")
        heads = np.empty((layout.batch, layout.q_heads, 2), np.int64)
        stats = _c.Stats(heads=heads.ctypes.data_as(ctypes.POINTER(_c.HeadStats)))
    address, held = api.workspace(plan.workspace, q)
    status = _run(
        plan.handle, vq.data, vk.data, vv.data, api.view("out", out).data,
        None if rows is None else api.address(rows), addresses(handles), address, plan.workspace,
        None if stats is None else ctypes.byref(stats), api.stream(q),
    )  # fmt: skip
    del held
    if status:
        _c.check(status)
    for b in idle:
        out[b] = 0
    made = None if stats is None else Stats(
        stats.index_s, stats.select_s, stats.attend_s, stats.kept_blocks, stats.visible_blocks, heads, plan.backend
    )  # fmt: skip
    return out, None if rows is None else _lse(api, q, rows, layout, said, idle), made


def _run_in_pieces(api, q, k, v, options, said, offset, indexes, with_lse, with_stats):
    """What run does, for masks with holes: visible rows and keys are gathered, packed, and put back."""
    if not _pieces.are_ours(api.spans("attn_mask", said.spans), k.shape[2], said.spans.shape[-1]):
        raise NotImplementedError(f"attention_mask: not for these {k.shape[2]} keys, or changed on its way to attention")
    for name, given in (("index", indexes), ("k_lens", said.k_lens), ("reference", said.reference),
                        ("cu_seqlens_q", said.cu_seqlens_q), ("page_table", said.page_table)):  # fmt: skip
        if given is not None and len(given):
            raise NotImplementedError(f"{name}: given together with an attn_mask whose visible keys are not one range")
    lay_out(api, q, k, v, Said(causal=False))  # that the tensors' shapes fit together
    out = api.zeros_like(q)
    lse = api.floats(q, q.shape[:3], -float("inf")) if with_lse else None
    heads = np.zeros((q.shape[0], q.shape[1], 2), np.int64)
    stats = Stats(0.0, 0.0, 0.0, 0, 0, heads, "none") if with_stats else None
    found = api.gathered(said.spans, offset, q.shape[2], said.causal)
    if found is None:
        return out, lse, stats
    q_batch, q_at, k_batch, k_at, q_bounds, k_bounds, owner = found
    packed = Said(said.scale, said.causal, None, None, q_bounds, k_bounds)
    some, some_lse, made = run(api, q[q_batch, :, q_at], k[k_batch, :, k_at], v[k_batch, :, k_at], options, packed, (),
                               with_lse, with_stats)  # fmt: skip
    out[q_batch, :, q_at] = some
    if with_lse:
        lse[q_batch, :, q_at] = some_lse.swapaxes(0, 1)
    if with_stats:
        np.add.at(heads, owner, made.heads)
        stats = dataclasses.replace(made, heads=heads)
    return out, lse, stats


def _lse(api, q, rows, layout: Layout, said: Said, idle):
    """From rows of each sequence to the caller's form: [batch, heads, tokens], or [heads, tokens] when packed."""
    if layout.q_starts is None:
        return rows
    packed = said.cu_seqlens_q is not None
    lse = api.floats(q, (layout.q_heads, layout.q_len) if packed else (layout.batch, layout.q_heads, layout.q_len),
                     -float("inf"))  # fmt: skip
    for b, (start, count) in enumerate(zip(layout.q_starts, layout.q_lens)):
        if b not in idle:
            (lse if packed else lse[b])[:, start : start + count] = rows[b, :, :count]
    return lse


def _handles(indexes, batch: int):
    if indexes and len(indexes) != batch:
        raise ValueError(f"index: {len(indexes)} key indexes for {batch} sequences")
    return [i.handle for i in indexes]


def select(api, q, k, v, options: Options, said: Said, indexes=()) -> tuple[Plan, object]:
    """(plan, handle of the block list)."""
    plan, (vq, vk, _), idle = planned(api, q, k, v, options, said, bool(indexes))
    if idle:
        raise ValueError(f"attn_mask: sequence {idle[0]} has no row to select for")
    blocks = _c.created(_c.lib.sale_blocks_create, plan.handle)
    try:
        address, held = api.workspace(plan.workspace, q)
        _c.check(_c.lib.sale_select(plan.handle, vq.data, vk.data, addresses(_handles(indexes, plan.layout.batch)),
                                    blocks, address, plan.workspace, None, api.stream(q)))  # fmt: skip
        del held
    except BaseException:
        _c.lib.sale_blocks_destroy(blocks)
        raise
    return plan, blocks
