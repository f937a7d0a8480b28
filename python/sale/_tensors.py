"""Which kind of tensor this is. torch is used where the caller's tensors are its, and never imported otherwise."""

from __future__ import annotations

import numpy as np

from . import _numpy


def api_of(name: str, x):
    """The module that knows this kind of tensor: _numpy or _torch, of one face:

    view(name, x) -> View           empty_like(x), zeros_like(x)       floats(like, shape, value=None) -> float32
    integers(name, x) -> tuple      spans(name, x), spans_of(mask, offset)    address(x), table(name, x)
    workspace(bytes, like) -> (address, what keeps it)                 stream(like), capturing(like)
    """
    if isinstance(x, np.ndarray):
        return _numpy
    if type(x).__module__.partition(".")[0] == "torch" or hasattr(x, "__torch_function__"):
        from . import _torch

        return _torch
    raise TypeError(f"{name}: a {type(x).__name__}; a numpy array or a torch tensor is needed")
