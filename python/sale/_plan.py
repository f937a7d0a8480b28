"""Steps: what the layers of a model share while the lengths stay the same, made once and looked up afterwards.

A `Layout` is everything about the tensors that a plan depends on, a `Step` a layout with its plans: one for all layers
whose estimators are of one kind.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from . import _c
from ._estimator import Estimator, Heads


class View(NamedTuple):
    """One tensor as the library sees it: address, extents, strides in elements, type and device."""

    data: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: int
    device: int


class Layout(NamedTuple):
    """See sale_problem in include/sale/sale.h. Lists are tuples of one number per sequence, or None."""

    batch: int
    heads: Heads
    q_len: int
    k_len: int
    q_offset: int
    scale: float
    q: tuple[int, int, int]  # strides of batch, head, token
    k: tuple[int, int, int]
    v: tuple[int, int, int]
    out: tuple[int, int, int]
    q_lens: tuple[int, ...] | None = None
    k_lens: tuple[int, ...] | None = None
    q_offsets: tuple[int, ...] | None = None
    q_starts: tuple[int, ...] | None = None
    k_starts: tuple[int, ...] | None = None
    page_size: int = 0
    pages: int = 0
    part: int = 0
    k_coded: tuple[int, ...] | None = None
    kv_dtype: int = 0
    window: int = 0
    window_sink: int = 0

    @property
    def rows(self) -> int:
        """Of lse and reference: the longest sequence's."""
        return max(self.q_lens) if self.q_lens else self.q_len

    def sequences(self) -> list[tuple[int, int, int]]:
        """Rows, keys and q_offset of each sequence."""
        q_lens = self.q_lens or (self.q_len,) * self.batch
        k_lens = self.k_lens or (self.k_len,) * self.batch
        offsets = self.q_offsets or (self.q_offset,) * self.batch
        return [(n, m, m - n if at == _c.AUTO else at) for n, m, at in zip(q_lens, k_lens, offsets)]

    def c(self) -> _c.Problem:
        """The C struct; its arrays live as long as it."""
        p = _c.Problem.make(**self.heads._asdict())
        for name in ("batch", "q_len", "k_len", "q_offset", "scale", "page_size", "pages", "part", "kv_dtype", "window",
                     "window_sink"):  # fmt: skip
            setattr(p, name, getattr(self, name))
        for name in ("q", "k", "v", "out"):
            setattr(p, name, _c.Strides(*getattr(self, name)))
        for name in ("q_lens", "k_lens", "q_offsets", "q_starts", "k_starts", "k_coded"):
            numbers = getattr(self, name)
            if numbers is not None:
                setattr(p, name, (ctypes.c_int64 * len(numbers))(*numbers))
        return p


class Plan:
    """A sale_plan, and the bytes of workspace that calls with it need."""

    handle = None

    def __init__(self, layout: Layout, estimator: Estimator, source: int) -> None:
        self._destroy = _c.lib.sale_plan_destroy
        problem, options = layout.c(), estimator.step(source)
        self.handle = _c.created(_c.lib.sale_plan_create, ctypes.byref(problem), ctypes.byref(options),
                                 ctypes.byref(estimator.handle), 1)  # fmt: skip
        workspace = _c.Workspace.make()
        _c.check(_c.lib.sale_plan_workspace(self.handle, ctypes.byref(workspace)))
        self.workspace = workspace.total

    def __del__(self) -> None:
        if self.handle is not None:
            self._destroy(self.handle)

    def __reduce_ex__(self, protocol):
        raise TypeError("a plan can be neither copied nor pickled")

    def explain(self) -> str:
        """Backend chosen and why the others were not, estimator, bytes: one fact a line."""
        return _c.lib.sale_plan_explain(self.handle).decode()


_MOST_KINDS = 16


class Step:
    """A layout, the sequences of it that have no row to compute (they are laid out as one row), and its plans."""

    def __init__(self, layout: Layout, idle: tuple[int, ...]) -> None:
        self.layout, self.idle = layout, idle
        self.heads = layout.heads
        self.rows_shape = (layout.batch, layout.heads.q_heads, layout.rows)
        self._plans: dict[str, Plan] = {}

    def plan(self, estimator: Estimator, source: int) -> Plan:
        """Made here if there is none yet: host memory only, and no waiting. source: where codes of keys are found, a
        sale_index_source."""
        kind = estimator.kinds[source]
        plan = self._plans.get(kind)
        if plan is None:
            plan = Plan(self.layout, estimator, source)
            if len(self._plans) >= _MOST_KINDS:
                self._plans = {}
            self._plans[kind] = plan
        return plan
