"""A step: one plan for all layers, made from lengths alone, and the calls with it.

Made where the first layer of the step is run, since only there the cache's pages and strides are seen; what later
layers change of a call is five addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from .. import _c
from .._estimator import Estimator
from .._plan import Layout
from .._torch import _DTYPES
from .batch import SHORTEST, Row

_run, _byref = _c.lib.sale_run, ctypes.byref
_AUDIT = np.dtype([("rows", "i8"), ("error", "f8"), ("size", "f8"), ("mass", "f8"), ("least_mass", "f8")])


def _packed(x: torch.Tensor) -> tuple[int, int, int]:
    """Strides of batch, head and token of [tokens, heads, head_dim]."""
    token, head, _ = x.stride()
    return 0, (x.shape[2] if x.shape[1] == 1 else head), token


def _paged(x: torch.Tensor) -> tuple[int, int, int]:
    """Strides of page, head and token of [pages, page_size, heads, head_dim]."""
    page, token, head, _ = x.stride()
    return page, (x.shape[3] if x.shape[2] == 1 else head), token


class Found:
    """What an audited call found: blocks kept and visible, and the audit's sums, by head over the step's sequences."""

    def __init__(self, kept: np.ndarray, audits: np.ndarray, q_heads: int) -> None:
        kept = kept.reshape(-1, q_heads, 2).sum(0)
        self.kept, self.visible = kept[:, 0], kept[:, 1]
        audits = audits.reshape(-1, q_heads)
        self.error, self.size = audits["error"].sum(0), audits["size"].sum(0)

    @property
    def relative(self) -> np.ndarray:
        """Relative L1 error of each head; NaN where a row was not finite."""
        return self.error / np.maximum(self.size, np.finfo(np.float64).tiny)


class Drafts:
    """The C structs that a session's plans are made from: from step to step little of them changes."""

    def __init__(self) -> None:
        self._fixed = self._problem = self._of = self._handles = None
        self._needed = _c.Workspace.make()

    def problem(self, layout: Layout) -> _c.Problem:
        fixed = (layout.heads, layout.q_offset, layout.scale, layout.q, layout.k, layout.v, layout.out,
                 layout.page_size, layout.kv_dtype)  # fmt: skip
        if fixed != self._fixed:
            self._fixed, self._problem = fixed, layout.c()
            return self._problem
        p = self._problem
        numbers = ctypes.c_int64 * layout.batch
        p.batch, p.q_len, p.k_len, p.pages = layout.batch, layout.q_len, layout.k_len, layout.pages
        p.q_lens, p.k_lens, p.q_starts = numbers(*layout.q_lens), numbers(*layout.k_lens), numbers(*layout.q_starts)
        return p

    def handles(self, estimators: Sequence[Estimator]):
        """The same list, the same array: a session makes a new one when a layer's estimator changes."""
        if estimators is not self._of:
            self._of = estimators
            self._handles = (ctypes.c_void_p * len(estimators))(*(e.handle.value for e in estimators))
        return self._handles

    def workspace(self, handle) -> int:
        _c.check(_c.lib.sale_plan_workspace(handle, _byref(self._needed)))
        return self._needed.total


class Plan:
    """A sale_plan of a step, what it was made for, and a call to be filled in."""

    handle = None

    def __init__(
        self, drafts: Drafts, layout: Layout, estimators: Sequence[Estimator], audit: int, seed: int, source: int
    ) -> None:
        self._destroy = _c.lib.sale_plan_destroy
        self.layout = layout
        options = estimators[0].step(source)
        options.audit, options.audit_seed = audit, seed
        self.handle = _c.created(_c.lib.sale_plan_create, _byref(drafts.problem(layout)), _byref(options),
                                 drafts.handles(estimators), len(estimators))  # fmt: skip
        self.workspace = drafts.workspace(self.handle)
        self._call = _c.Call.make(workspace_bytes=self.workspace, prepared=1)
        self._strides = (layout.q, layout.k, layout.v, layout.out)
        if audit:
            heads = layout.batch * layout.heads.q_heads
            self._kept, self._audits = np.zeros((heads, 2), np.int64), np.zeros(heads, _AUDIT)
            self._stats = _c.Stats.make(heads=self._kept.ctypes.data, audits=self._audits.ctypes.data)
            self._call.stats = ctypes.addressof(self._stats)
        self.audit = audit

    def __del__(self) -> None:
        if self.handle is not None:
            self._destroy(self.handle)

    def prepare(self, workspace: int, stream: int | None) -> None:
        """Once before the calls, and again when another plan used the workspace in between."""
        _c.check(_c.lib.sale_plan_prepare(self.handle, workspace, self.workspace, stream))

    def run(
        self, estimator: Estimator, q, k, v, table, out, workspace: int, stream: int | None, codes: int | None = None,
        scales: tuple | None = None,
    ) -> Found | None:  # fmt: skip
        """Attention of one layer; codes: the address of its sale_index_pages, of plans made for them; scales: of keys
        and of values of 8 bits. What was found, of plans that audit, for which a device is waited for."""
        call = self._call
        strides = (_packed(q), _paged(k), _paged(v), _packed(out))
        keep = ()
        if strides == self._strides:
            call.q_strides = call.k_strides = call.v_strides = call.out_strides = None
        else:
            keep = tuple(_c.Strides(*s) for s in strides)
            call.q_strides, call.k_strides, call.v_strides, call.out_strides = map(ctypes.addressof, keep)
        call.q, call.k, call.v, call.out = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
        call.page_table, call.workspace, call.stream = table.data_ptr(), workspace, stream
        call.index_pages = codes
        call.k_scales, call.v_scales = (x.data_ptr() for x in scales) if scales else (None, None)
        status = _run(self.handle, estimator.handle, _byref(call))
        del keep
        if status:
            _c.check(status)
        return Found(self._kept, self._audits, self.layout.heads.q_heads) if self.audit else None


def layout_of(rows: Sequence[Row], heads, scale: float, q, k, v, table, out) -> Layout:
    """Of rows of packed queries against pages; table: [rows, pages]."""
    lengths, keys = tuple(r.tokens for r in rows), tuple(r.keys for r in rows)
    return Layout(
        len(rows), heads, max(lengths), max(keys), _c.AUTO, scale, _packed(q), _paged(k), _paged(v), _packed(out),
        q_lens=lengths, k_lens=keys, q_starts=tuple(r.start for r in rows), page_size=k.shape[1], pages=table.shape[1],
        kv_dtype=_kv_dtype(heads, k, v),
    )  # fmt: skip


def _kv_dtype(heads, k, v) -> int:
    """A sale_kv_dtype."""
    if k.dtype == v.dtype == torch.float8_e4m3fn:
        return 1
    if k.dtype != v.dtype or _DTYPES.get(k.dtype) != heads.dtype:
        raise ValueError(f"a cache of {k.dtype} keys and {v.dtype} values is not supported")
    return 0


def longest_layout(heads, scale: float, tokens: int, keys: int, page_size: int = 32) -> Layout:
    """Of a step of so many tokens, filled with prompts of the longest length, of which one ends and another begins:
    what memory is set aside for."""
    d, pages = heads.head_dim, -(-keys // page_size)
    lengths = [keys] * (tokens // keys) + ([tokens % keys] if tokens % keys else [])
    if lengths[0] > SHORTEST:
        lengths = [lengths[0] - SHORTEST, *lengths[1:], SHORTEST]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    q = (0, d, heads.q_heads * d)
    k = (page_size * heads.kv_heads * 2 * d, 2 * d, heads.kv_heads * 2 * d)
    return Layout(
        len(lengths), heads, max(lengths), keys, _c.AUTO, scale, q, k, k, q, q_lens=tuple(lengths),
        k_lens=(keys,) * len(lengths), q_starts=tuple(starts), page_size=page_size, pages=pages,
    )  # fmt: skip


def table_of(rows: Sequence[Row], table: torch.Tensor) -> torch.Tensor:
    """The rows' part of an engine's table [requests, pages], contiguous: as it lies where they follow each other."""
    first, last = rows[0].request, rows[-1].request
    if last - first + 1 == len(rows):
        part = table[first : last + 1]
    else:
        part = torch.cat([table[r.request : r.request + 1] for r in rows])
    return part if part.is_contiguous() else part.contiguous()
