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
from ._estimator import Estimator, Heads, estimator_for
from ._kept import Kept
from ._plan import Layout, Plan, Step, View
from .options import Options

_run, _select, _Call, _byref = _c.lib.sale_run, _c.lib.sale_select, _c.Call, ctypes.byref


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
    window: int = 0  # keys that a row sees; 0: all
    window_sink: bool = False


SCHEMA = {name: "Tensor?" for name in Said._fields}
SCHEMA.update(scale="float", causal="bool", q_offset="int?", window="int", window_sink="bool")
_TYPES = ("float32", "float16", "bfloat16")  # by number, as in _c


def _place(x: View) -> str:
    return f"{_TYPES[x.dtype]} {'in host memory' if x.device == _c.HOST else f'on CUDA device {x.device}'}"


AUDIT = np.dtype([("rows", "i8"), ("error", "f8"), ("size", "f8"), ("mass", "f8"), ("least_mass", "f8")])


@dataclasses.dataclass(frozen=True)
class Stats:
    """What one call did. Seconds of its stages; kept and visible blocks of all heads together; `heads`:
    [batch, q_heads, 2] int64, the same by head. Where the options ask for an audit also `audits`, [batch, q_heads] of
    AUDIT's fields: sums over audited rows of the difference from dense attention, of its size, and of the attention that
    lies in kept blocks (sale_head_audit in include/sale/sale.h)."""

    index_s: float
    select_s: float
    attend_s: float
    kept_blocks: int
    visible_blocks: int
    heads: np.ndarray
    backend: str
    audit_s: float = 0.0
    audits: np.ndarray | None = None

    @property
    def density(self) -> float:
        """Share of the visible blocks that was computed."""
        return self.kept_blocks / self.visible_blocks if self.visible_blocks else 1.0

    @property
    def head_density(self) -> np.ndarray:
        """[batch, q_heads]."""
        return self.heads[..., 0] / np.maximum(self.heads[..., 1], 1)

    @property
    def relative_l1(self) -> np.ndarray:
        """[batch, q_heads]: the audited rows' error over their size; 0 without rows. ValueError without an audit."""
        found = self._audited()
        return found["error"] / np.where(found["size"] == 0, 1, found["size"])

    @property
    def retained_mass(self) -> np.ndarray:
        """[batch, q_heads]: mean share of the audited rows' attention in kept blocks; 1 without rows. ValueError without
        an audit."""
        found = self._audited()
        return np.where(found["rows"] == 0, 1.0, found["mass"] / np.maximum(found["rows"], 1))

    def _audited(self) -> np.ndarray:
        if self.audits is None:
            raise ValueError("audit: the options of this call did not ask for one")
        return self.audits


def no_audits(*shape: int) -> np.ndarray:
    """Of no rows."""
    made = np.zeros(shape, AUDIT)
    made["least_mass"] = 1
    return made


def add_audits(to: np.ndarray, at, found: np.ndarray) -> None:
    """Adds what was found to the audits at places, which may repeat."""
    for name in ("rows", "error", "size", "mass"):
        np.add.at(to[name], at, found[name])
    np.minimum.at(to["least_mass"], at, found["least_mass"])


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


class Views(NamedTuple):
    """The tensors of one call, and the addresses of what comes with it."""

    q: View
    k: View
    v: View
    out: View
    page_table: int | None = None
    reference: object = None  # a tensor, still to be compared with the step


def _by_value(api, said: Said) -> tuple[Said, int | None]:
    """The same with numbers in tuples in place of what they were in, of a page table its shape and strides, of a reference
    that it is there; and the page table's address."""
    numbers, table = {}, None
    for name in ("cu_seqlens_q", "cu_seqlens_k", "k_lens"):
        given = getattr(said, name)
        if given is not None:
            numbers[name] = api.integers(name, given)
    if said.spans is not None:
        rows = said.spans if isinstance(said.spans, list) else api.spans("attn_mask", said.spans)
        numbers["spans"] = tuple(map(tuple, rows))
    if said.page_table is not None:
        if said.k_lens is None:
            raise ValueError("k_lens: needed with page_table")
        *numbers["page_table"], table = api.table("page_table", said.page_table)
        numbers["page_table"] = tuple(numbers["page_table"])
    if said.reference is not None:
        numbers["reference"] = True
    return said._replace(**numbers), table


_steps = Kept(64)


def step_of(api, q, k, v, said: Said, out=None) -> tuple[Step, Views]:
    """The step that a call belongs to. out: the tensor it writes; None: one like q."""
    vq, vk, vv = api.view("q", q), api.view("k", k), api.view("v", v)
    vo = vq if out is None else api.view("out", out)
    _, _, _, spans, cu_q, cu_k, pages, k_lens, reference, *_ = said
    table = None
    if not (spans is cu_q is cu_k is pages is k_lens is reference is None):
        said, table = _by_value(api, said)
    key = (vq[1:], vk[1:], vv[1:], vo[2], said)
    step = _steps.get(key)
    if step is None:
        step = Step(*_lay_out(vq, vk, vv, vo, said))
        _steps.put(key, step)
    if pages is not None and vq.device == _c.HOST:
        check_pages("page_table", pages, step.layout.page_size, [k for _, k, _ in step.layout.sequences()], vk.shape[0])
    return step, Views(vq, vk, vv, vo, table, reference)


def _lay_out(vq: View, vk: View, vv: View, vo: View, said: Said) -> tuple[Layout, tuple[int, ...]]:
    """What depends on extents, strides and numbers, not on addresses. said: by value."""
    packed, paged = said.cu_seqlens_q is not None, said.page_table is not None
    if packed:
        expect("q", vq.shape, "[tokens, heads, head_dim], since cu_seqlens_q is given,", 3)
    else:
        expect("q", vq.shape, "[batch, heads, tokens, head_dim]", 4)
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
        bounds = said.cu_seqlens_q
        lists["q_lens"], lists["q_starts"] = _differences("cu_seqlens_q", bounds, q_tokens), bounds[:-1]
        batch = len(bounds) - 1
        if not paged:
            bounds = bounds if said.cu_seqlens_k is None else said.cu_seqlens_k
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
        lists["k_lens"] = said.k_lens
        if len(lists["k_lens"]) != batch:
            raise ValueError(f"k_lens: {len(lists['k_lens'])} numbers for {batch} sequences")
        if not paged and max(lists["k_lens"]) > k_tokens:
            raise ValueError(f"k_lens: {max(lists['k_lens'])} exceeds the {k_tokens} keys of k")
    q_offset = _c.AUTO if said.q_offset is None else said.q_offset
    if not said.causal:
        if said.q_offset is not None:
            raise ValueError("q_offset: given, but causal is False")
        if said.window:
            raise ValueError("window: given, but causal is False")
        q_offset = k_tokens
        if "k_lens" in lists:
            lists["q_offsets"] = lists["k_lens"]
    if said.spans is not None:
        if packed or paged or said.k_lens is not None:
            raise ValueError("attn_mask: given together with cu_seqlens_q, page_table or k_lens, which say the same")
        lists, idle = _ranges(said.spans, q_tokens, k_tokens, batch, said.causal)
    pages = _pages(said.page_table, vk, batch) if paged else {}
    heads = Heads(q_heads, kv_heads, vq.shape[-1], vq.dtype, vq.device)
    layout = Layout(
        batch, heads, q_tokens, k_tokens, q_offset, said.scale, axes_of("q", vq, order_q), axes_of("k", vk, order_k),
        axes_of("v", vv, order_k), axes_of("out", vo, order_q), **lists, **pages, part=int(said.reference is not None),
        window=said.window, window_sink=int(said.window_sink),
    )  # fmt: skip
    return layout, idle


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


def _pages(table, vk: View, batch: int) -> dict:
    shape, strides = table
    if len(shape) != 2 or shape[0] != batch or strides != (shape[1], 1):
        raise ValueError(f"page_table: of shape {list(shape)}; a contiguous [{batch}, pages] is needed")
    return {"page_size": vk.shape[1], "pages": shape[1]}


def check_pages(name: str, table, page_size: int, k_lens, pages: int) -> None:
    """ValueError for a table in host memory, [sequences, entries], that names a page that is not there."""
    if getattr(table, "is_cuda", False):
        raise ValueError(f"{name}: on another device than the keys")
    numbers = np.asarray(table)
    used = np.arange(numbers.shape[1]) < -(-np.asarray(k_lens) // page_size)[:, None]
    wrong = np.argwhere(used & ((numbers < 0) | (numbers >= pages)))
    if len(wrong):
        b, entry = wrong[0]
        raise ValueError(f"{name}: entry {entry} of sequence {b} is {numbers[b, entry]}; k has pages 0 .. {pages - 1}")


def _reference(api, x, step: Step) -> int:
    api.check("reference", x)
    shape = step.rows_shape
    if not api.is_float32(x) or tuple(x.shape) != shape or not api.contiguous(x):
        raise ValueError(f"reference: of type {x.dtype} and shape {list(x.shape)}; contiguous float32 {list(shape)} is needed")
    if api.view("reference", x).device != step.heads.device:
        raise ValueError("reference: on another device than q")
    return api.address(x)


def _indexes(indexes, batch: int) -> ctypes.Array | None:
    """A C array of sale_index pointers; None for none."""
    if not indexes:
        return None
    if len(indexes) != batch:
        raise ValueError(f"index: {len(indexes)} key indexes for {batch} sequences")
    return (ctypes.c_void_p * batch)(*[i.handle.value for i in indexes])


def _carry_out(function, api, q, step: Step, views: Views, estimator: Estimator, indexes, out=None, lse=None, blocks=None,
               stats=None) -> None:  # fmt: skip
    """One call of sale_run or sale_select, with a workspace of its own."""
    plan = step.plan(estimator, bool(indexes))
    listed = _indexes(indexes, step.layout.batch) if indexes else None
    reference = None if views.reference is None else _reference(api, views.reference, step)
    workspace, held = api.workspace(plan.workspace, q)
    call = _Call(_c.CALL_BYTES, views.q[0], views.k[0], views.v[0], out, lse, None, None, None, None, views.page_table,
                 reference, None if listed is None else ctypes.addressof(listed), blocks, workspace, plan.workspace,
                 None if stats is None else ctypes.addressof(stats), api.stream(q))  # fmt: skip
    status = function(plan.handle, estimator.handle, _byref(call))
    del held  # not before the call
    if status:
        _c.check(status)


def run(api, q, k, v, options: Options, said: Said, indexes=(), with_lse: bool = False, with_stats: bool = False,
        estimator: Estimator | None = None):  # fmt: skip
    """(out, lse or None, Stats or None). estimator: of these options and heads; None: the one that is kept for them."""
    if options.audit and not with_stats:
        raise ValueError(
            f"audit: options ask to audit {options.audit} rows of each head, and what is found is in statistics; ask for them "
            "with return_stats=True"
        )
    if said.spans is not None:
        rows = api.spans("attn_mask", said.spans)
        if said.spans.shape[-1] > _pieces.HEAD and not _pieces.are_ranges(rows):
            return _run_in_pieces(api, q, k, v, options, said, rows[0][3], indexes, with_lse, with_stats)
        said = said._replace(spans=rows)
    out = api.empty_like(q) if said.spans is None else api.zeros_like(q)
    step, views = step_of(api, q, k, v, said, out)
    if estimator is None:
        estimator = estimator_for(options, step.heads, api.capturing(q))
    rows = api.floats(q, step.rows_shape) if with_lse else None
    stats = heads = audits = None
    if with_stats:
        if api.capturing(q):
            raise ValueError("return_stats: statistics wait for the device, which a graph being captured cannot do")
        heads = np.empty((*step.rows_shape[:2], 2), np.int64)
        stats = _c.Stats.make(heads=heads.ctypes.data)
        if options.audit:
            audits = no_audits(*step.rows_shape[:2])
            stats.audits = audits.ctypes.data
    _carry_out(_run, api, q, step, views, estimator, indexes, views.out[0], None if rows is None else api.address(rows),
               None, stats)  # fmt: skip
    for b in step.idle:
        out[b] = 0
        if stats is not None:
            heads[b] = 0
        if audits is not None:
            audits[b] = no_audits(1)
    made = None if stats is None else Stats(
        stats.index_s, stats.select_s, stats.attend_s, *heads.sum((0, 1)).tolist(), heads, estimator.backend, stats.audit_s,
        audits,
    )  # fmt: skip
    return out, None if rows is None else _lse(api, q, rows, step, said), made


def _run_in_pieces(api, q, k, v, options, said, offset, indexes, with_lse, with_stats):
    """What run does, for masks with holes: visible rows and keys are gathered, packed, and put back."""
    if not _pieces.are_ours(api.spans("attn_mask", said.spans), k.shape[2], said.spans.shape[-1]):
        raise NotImplementedError(f"attention_mask: not for these {k.shape[2]} keys, or changed on its way to attention")
    for name, given in (("index", indexes), ("k_lens", said.k_lens), ("reference", said.reference),
                        ("cu_seqlens_q", said.cu_seqlens_q), ("page_table", said.page_table)):  # fmt: skip
        if given is not None and len(given):
            raise NotImplementedError(f"{name}: given together with an attn_mask whose visible keys are not one range")
    if said.window and not _pieces.are_whole(api.segments(said.spans)):
        raise NotImplementedError("window: given together with an attn_mask that hides keys between visible ones")
    step_of(api, q, k, v, Said(causal=False))  # that the tensors' shapes fit together
    out = api.zeros_like(q)
    lse = api.floats(q, q.shape[:3], -float("inf")) if with_lse else None
    heads = np.zeros((q.shape[0], q.shape[1], 2), np.int64)
    audits = no_audits(*q.shape[:2]) if options.audit else None
    stats = Stats(0.0, 0.0, 0.0, 0, 0, heads, "none", 0.0, audits) if with_stats else None
    found = api.gathered(said.spans, offset, q.shape[2], said.causal)
    if found is None:
        return out, lse, stats
    q_batch, q_at, k_batch, k_at, q_bounds, k_bounds, owner = found
    packed = Said(said.scale, said.causal, cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds, window=said.window,
                  window_sink=said.window_sink)  # fmt: skip
    some, some_lse, made = run(api, q[q_batch, :, q_at], k[k_batch, :, k_at], v[k_batch, :, k_at], options, packed, (),
                               with_lse, with_stats)  # fmt: skip
    out[q_batch, :, q_at] = some
    if with_lse:
        lse[q_batch, :, q_at] = some_lse.swapaxes(0, 1)
    if with_stats:
        np.add.at(heads, owner, made.heads)
        if audits is not None:
            add_audits(audits, owner, made.audits)
        stats = dataclasses.replace(made, heads=heads, audits=audits)
    return out, lse, stats


def _lse(api, q, rows, step: Step, said: Said):
    """From rows of each sequence to the caller's form: [batch, heads, tokens], or [heads, tokens] when packed."""
    layout = step.layout
    if layout.q_starts is None:
        return rows
    packed, heads = said.cu_seqlens_q is not None, step.heads.q_heads
    lse = api.floats(q, (heads, layout.q_len) if packed else (layout.batch, heads, layout.q_len), -float("inf"))
    for b, (start, count) in enumerate(zip(layout.q_starts, layout.q_lens)):
        if b not in step.idle:
            (lse if packed else lse[b])[:, start : start + count] = rows[b, :, :count]
    return lse


def select(api, q, k, options: Options, said: Said, indexes, read):
    """read(step, estimator, handle of the block list)."""
    step, views = step_of(api, q, k, k, said)
    if step.idle:
        raise ValueError(f"attn_mask: sequence {step.idle[0]} has no row to select for")
    estimator = estimator_for(options, step.heads, api.capturing(q))
    blocks = _c.created(_c.lib.sale_blocks_create, step.plan(estimator, bool(indexes)).handle)
    try:
        _carry_out(_select, api, q, step, views, estimator, indexes, blocks=blocks)
        return read(step, estimator, blocks)
    finally:
        _c.lib.sale_blocks_destroy(blocks)


def explain(api, q, k, options: Options, said: Said) -> str:
    """What the library says of a plan for this very layer."""
    step, _ = step_of(api, q, k, k, said)
    return Plan(step.layout, estimator_for(options, step.heads), False).explain()
