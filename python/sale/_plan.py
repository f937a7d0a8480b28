"""Plans, kept: what a problem and its options come to, made once and looked up afterwards.

A `Layout` is everything about the tensors that a plan depends on. Two calls with equal layouts and options use one plan,
so a call costs a dictionary look-up and one call into the library.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

from . import _c
from .options import Options

_MOST_PLANS = 256


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
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: int
    device: int
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
    page_table: int = 0
    reference: int = 0

    @property
    def lse_rows(self) -> int:
        return max(self.q_lens) if self.q_lens else self.q_len

    def c(self) -> _c.Problem:
        """The C struct; its arrays live as long as it."""
        p = _c.Problem(struct_size=ctypes.sizeof(_c.Problem))
        for name in ("batch", "q_heads", "kv_heads", "head_dim", "dtype", "device", "q_len", "k_len", "q_offset",
                     "scale", "page_size", "pages"):  # fmt: skip
            setattr(p, name, getattr(self, name))
        p.page_table, p.reference = self.page_table or None, self.reference or None
        for name in ("q", "k", "v", "out"):
            setattr(p, name, _c.Strides(*getattr(self, name)))
        for name in ("q_lens", "k_lens", "q_offsets", "q_starts", "k_starts"):
            numbers = getattr(self, name)
            if numbers is not None:
                setattr(p, name, (ctypes.c_int64 * len(numbers))(*numbers))
        return p


class Plan:
    """A sale_plan and what every call asks of it."""

    handle = None

    def __init__(self, layout: Layout, options: Options, with_index: bool) -> None:
        self._destroy = _c.lib.sale_plan_destroy
        self.layout, self.options = layout, options
        problem, wanted = layout.c(), options.c(layout.kv_heads, layout.head_dim, layout.device)
        self.handle = _c.created(_c.lib.sale_plan_create, problem, wanted, int(with_index))
        self.workspace = _c.lib.sale_plan_workspace(self.handle).total
        self.q_block = _c.lib.sale_plan_q_block(self.handle)
        self.backend = _c.lib.sale_plan_backend(self.handle).decode()

    def __del__(self) -> None:
        if self.handle is not None:
            self._destroy(self.handle)

    def __reduce_ex__(self, protocol):
        raise TypeError("a plan can be neither copied nor pickled")

    def explain(self) -> str:
        """Backend chosen and why the others were not, estimator, bytes: one fact a line."""
        return _c.lib.sale_plan_explain(self.handle).decode()


_lock = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock()))  # another thread may have held it
_plans: dict[tuple, Plan] = {}
_pinned: set[Plan] = set()


def plan_for(layout: Layout, options: Options, with_index: bool, capturing: bool = False) -> Plan:
    """The plan of these. While a graph is being captured it must have been made before (ValueError), since making one
    may allocate; and it is then kept for good, since the graph goes on using its memory."""
    key = (layout, options, with_index)
    plan = _plans.get(key)
    if capturing:
        if plan is None:
            raise ValueError(
                "attention: a graph is being captured, but this problem has no plan yet; call it once with the same "
                "shapes, strides and options before capturing"
            )
        _pinned.add(plan)
    if plan is None:
        plan = Plan(layout, options, with_index)
        with _lock:
            while len(_plans) >= _MOST_PLANS:
                del _plans[next(iter(_plans))]
            _plans[key] = plan
    return plan


def addresses(handles: Sequence) -> ctypes.Array | None:
    """A C array of sale_index pointers; None for none."""
    return (ctypes.c_void_p * len(handles))(*[h.value for h in handles]) if handles else None
