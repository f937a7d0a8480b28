"""Estimators: what belongs to a layer, made once and looked up by content afterwards."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

from . import _c
from ._kept import Kept
from .options import Options


class Heads(NamedTuple):
    """The tensors that a layer's estimator is for."""

    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: int
    device: int


class Estimator:
    """A sale_estimator, of options and heads, and what plans depend on of it."""

    handle = None

    def __init__(self, options: Options, heads: Heads) -> None:
        self._destroy = _c.lib.sale_estimator_destroy
        self.options, self.heads = options, heads
        thresholds = np.array(options.thresholds, np.float32)
        form = options.format_on(heads.device)
        arrays = {
            "q_projection": (options.q_projection, (heads.kv_heads, heads.head_dim, options.rank)),
            "k_projection": (options.k_projection, (heads.kv_heads, heads.head_dim, options.rank)),
            "smoothing": (options.smoothing, (heads.kv_heads, heads.head_dim)),
            "key_scales": (options.key_scales, (heads.kv_heads,)),
        }
        layer = _c.Layer.make(
            **heads._asdict(), thresholds=thresholds.ctypes.data, n_thresholds=thresholds.size, format=_c.FORMATS[form],
            rank=options.rank, sink=options.sink, local=options.local, threads=options.threads,
            backend=None if options.backend is None else options.backend.encode(),
        )  # fmt: skip
        for name, (array, shape) in arrays.items():
            if array is None:
                continue
            if array.shape != shape:  # which the library cannot see
                raise ValueError(f"{name}: of shape {list(array.shape)}; {list(shape)} is needed")
            setattr(layer, name, array.ctypes.data)
        self.handle = _c.created(_c.lib.sale_estimator_create, ctypes.byref(layer))
        self.backend = _c.lib.sale_estimator_backend(self.handle).decode()
        self.q_block = _c.lib.sale_estimator_q_block(self.handle)
        self.nbytes = thresholds.nbytes + sum(a.nbytes for a, _ in arrays.values() if a is not None)
        self.dense_below = options.dense_below_on(heads.device)
        # Estimators that share plans: of one form, on the same threads, for steps done alike. Text, which keeps its hash.
        dense = not any(options.thresholds)
        alike = (self.backend, form, options.rank, options.threads, dense, options.sink, options.local, self.dense_below,
                 options.compute, options.compensate, options.audit, options.audit_seed)  # fmt: skip
        self.kinds = (repr(alike), repr((*alike, "index")), repr((*alike, "pages")))  # by sale_index_source

    def __del__(self) -> None:
        if self.handle is not None:
            self._destroy(self.handle)

    def __reduce_ex__(self, protocol):
        raise TypeError("an estimator can be neither copied nor pickled")

    def step(self, source: int) -> _c.Options:
        """How steps of this layer are done."""
        o = self.options
        return _c.Options.make(dense_below=self.dense_below, compute=_c.COMPUTES[o.compute],
                               compensate=int(o.compensate), audit=o.audit, with_index=int(source),
                               audit_seed=o.audit_seed)  # fmt: skip


_estimators = Kept(512, 128 << 20)
_pinned: set[Estimator] = set()


def estimator_for(options: Options, heads: Heads, capturing: bool = False) -> Estimator:
    """The estimator of these. While a graph is being captured it must have been made before (ValueError), since making
    one takes memory of the device and waits for it; and it is then kept for good, since the graph goes on using it."""
    key = (options.key, heads)
    found = _estimators.get(key)
    if capturing:
        if found is None:
            raise ValueError(
                "attention: a graph is being captured, but these options are new to this device; call it once with the "
                "same options, heads and type before capturing"
            )
        _pinned.add(found)
    if found is None:
        found = Estimator(options, heads)
        _estimators.put(key, found, found.nbytes)
    return found
