"""Which kind of tensor this is. torch is used where the caller's tensors are its, and never imported otherwise."""

from __future__ import annotations

import numpy as np

from . import _numpy


def api_of(name: str, x):
    """The module that knows this kind of tensor: _numpy or _torch, of one face:

    cast(name, x) -> x as it is computed   check(name, x): the same, refused where derivatives are asked for
    view(name, x) -> View                  empty_like(x), zeros_like(x)
    floats(like, shape, value=None)        integers(name, x) -> tuple
    is_float32(x), contiguous(x), bools(name, x), shape(name, x)
    spans_of(mask, offset), spans(name, x), segments(spans), gathered(spans, offset, rows, causal): see _pieces.py
    address(x), table(name, x)             workspace(bytes, like) -> (address, what keeps it)
    stream(like), capturing(like)
    """
    if isinstance(x, np.ndarray):
        return _numpy
    if hasattr(type(x), "__torch_function__"):
        from . import _torch

        return _torch
    raise TypeError(f"{name}: a {type(x).__name__}; a numpy array or a torch tensor is needed")
