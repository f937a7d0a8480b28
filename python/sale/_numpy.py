"""numpy arrays: what attention asks of a kind of tensor (see _tensors.py)."""

from __future__ import annotations

import threading

import numpy as np

from . import _c
from ._plan import View

_DTYPES = {"float32": _c.F32, "float16": _c.F16, "bfloat16": _c.BF16}  # bfloat16: ml_dtypes' numpy type
_local = threading.local()


def view(name: str, x) -> View:
    dtype = _DTYPES.get(x.dtype.name)
    if dtype is None:
        raise TypeError(f"{name}: of type {x.dtype}; float32, float16 and bfloat16 (ml_dtypes) are supported")
    size = x.dtype.itemsize
    if any(s % size for s in x.strides):
        raise ValueError(f"{name}: strides of {x.strides} bytes are not multiples of its elements' {size}")
    interface = x.__array_interface__
    return View(interface["data"][0], x.shape, tuple(s // size for s in x.strides), dtype, _c.HOST)


def empty_like(x):
    return np.empty_like(x)


def zeros_like(x):
    return np.zeros_like(x)


def floats(like, shape: tuple[int, ...], value: float | None = None):
    """float32, uninitialised or all `value`."""
    return np.empty(shape, np.float32) if value is None else np.full(shape, value, np.float32)


def integers(name: str, x) -> tuple[int, ...]:
    """A list of integers, as a tuple of them."""
    array = np.asarray(x)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(f"{name}: of type {array.dtype} and shape {array.shape}; a list of integers is needed")
    return tuple(array.tolist())


def spans(name: str, x) -> list[list[int]]:
    return np.asarray(x).tolist()


def spans_of(mask, offset: int):
    """[batch, 4] of a mask [batch, keys]: first visible key, end of the visible keys, how many, offset as given."""
    keys = mask.shape[1]
    at = np.arange(keys)
    first, end = np.where(mask, at, keys).min(1), np.where(mask, at + 1, 0).max(1)
    return np.stack([first, end, mask.sum(1), np.full_like(first, offset)], 1)


def host_workspace(size: int) -> int:
    """Address of at least `size` bytes at a multiple of 64, kept per thread and grown when needed."""
    held = getattr(_local, "workspace", None)
    if held is None or held[1] < size:
        _local.workspace = None  # let go of the old before asking for the new
        memory = np.empty(size + 64, np.uint8)
        start = memory.__array_interface__["data"][0]
        held = _local.workspace = (memory, size, (start + 63) // 64 * 64)
    return held[2]


def workspace(size: int, like) -> tuple[int, object]:
    return host_workspace(size), None


def capturing(like) -> bool:
    return False


def stream(like) -> int | None:
    return None


def address(x) -> int:
    return x.__array_interface__["data"][0]


def contiguous(x) -> bool:
    return x.flags.c_contiguous


def table(name: str, x) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides in elements and address of an int32 table."""
    raise NotImplementedError(f"{name}: paged keys are supported on CUDA devices only")


def check(name: str, x) -> None:
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: a {type(x).__name__}; a numpy array is needed, as q is")
