"""numpy arrays: what attention asks of a kind of tensor (see _tensors.py)."""

from __future__ import annotations

import threading

import numpy as np

from . import _c, _pieces
from ._arguments import INT64, described
from ._pieces import HEAD, MARK
from ._plan import View

_DTYPES = {"float32": _c.F32, "float16": _c.F16, "bfloat16": _c.BF16}  # bfloat16: ml_dtypes' numpy type
_CODES = {np.dtype(np.float32): _c.F32, np.dtype(np.float16): _c.F16}
_local = threading.local()


def plain(name: str, x) -> None:
    """TypeError where an array's bytes are not its numbers as they lie there."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: a masked array, and the numbers behind its mask would count; fill it first")
    if not x.dtype.isnative:
        raise TypeError(f"{name}: of the other byte order; use {name}.astype({name}.dtype.newbyteorder('='))")


def view(name: str, x) -> View:
    code = _CODES.get(x.dtype)  # of this machine's byte order
    if code is None or type(x) is not np.ndarray:
        plain(name, x)
        code = _DTYPES.get(x.dtype.name)
        if code is None:
            raise TypeError(f"{name}: of type {x.dtype}; float32, float16 and bfloat16 (ml_dtypes) are supported")
    size, strides = x.itemsize, x.strides
    for s in strides:
        if s % size:
            raise ValueError(f"{name}: strides of {strides} bytes are not multiples of its elements' {size}")
    return View(x.__array_interface__["data"][0], x.shape, tuple([s // size for s in strides]), code, _c.HOST)


def empty_like(x):
    made = np.empty_like(x)  # in x's order of axes, which of one head repeated puts the heads last
    return made if made.strides[-1:] == (made.itemsize,) else np.empty(x.shape, x.dtype)


def zeros_like(x):
    return np.zeros_like(x)


def floats(like, shape: tuple[int, ...], value: float | None = None):
    """float32, uninitialised or all `value`."""
    return np.empty(shape, np.float32) if value is None else np.full(shape, value, np.float32)


def integers(name: str, x) -> tuple[int, ...]:
    """A list of integers, as a tuple of them."""
    try:
        array = np.asarray(x)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: of torch tensors that are not plain numbers
        array = np.empty(0, object)
    if isinstance(x, np.ma.MaskedArray) or array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(f"{name}: {described(x)}; a list of integers is needed")
    return within(name, array.tolist())


def within(name: str, numbers: list[int]) -> tuple[int, ...]:
    """ValueError for what is no length or place in memory."""
    for n in numbers:
        if not 0 <= n <= INT64:
            raise ValueError(f"{name}: {n} is not in 0 .. {INT64}")
    return tuple(numbers)


def shape(name: str, x) -> tuple[int, ...]:
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: a {type(x).__name__}; one of q's kind is needed")
    return tuple(x.shape)


def bools(name: str, x) -> bool:
    return isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray) and x.dtype == bool


def spans(name: str, x) -> list[list[int]]:
    """Of each sequence the numbers at the start of its row; see spans_of."""
    return x[:, :HEAD].tolist()


def segments(spans) -> np.ndarray:
    """[batch, keys] of a mask that has them."""
    return spans[:, HEAD:]


def gathered(spans, offset: int, rows: int, causal: bool):
    """See _pieces.gathered."""
    return _pieces.gathered(spans[:, HEAD:], offset, rows, causal)


def spans_of(mask, offset: int):
    """[batch, HEAD + keys] of a mask [batch, keys]; see _pieces.py."""
    keys = mask.shape[1]
    at = np.arange(keys)
    first, end = np.where(mask, at, keys).min(1), np.where(mask, at + 1, 0).max(1)
    made = np.empty((mask.shape[0], HEAD + keys), np.int64)
    for column, numbers in enumerate((first, end, mask.sum(1), offset, 1, keys, 0, MARK)):
        made[:, column] = numbers
    made[:, HEAD:] = mask
    return made


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


def memory(name: str, x) -> tuple[int, int, int]:
    """Address, bytes and device of memory that is given to the library."""
    if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray) or x.dtype != np.uint8:
        raise TypeError(f"{name}: {described(x)}; a uint8 array is needed")
    if not x.flags.c_contiguous or not x.flags.writeable:
        raise ValueError(f"{name}: of strides {x.strides}, or read-only; contiguous, writable bytes are needed")
    return address(x), x.nbytes, _c.HOST


def is_float32(x) -> bool:
    return isinstance(x, np.ndarray) and x.dtype == np.float32 and x.dtype.isnative and not isinstance(x, np.ma.MaskedArray)


def table(name: str, x) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides in elements and address of an int32 table."""
    if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray) or x.dtype != np.int32 or not x.dtype.isnative:
        raise TypeError(f"{name}: {described(x)}; an int32 array is needed")
    return x.shape, tuple(s // 4 for s in x.strides), address(x)


def check(name: str, x):
    """The array, refused where it is none."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: a {type(x).__name__}; a numpy array is needed, as q is")
    return x


cast = check
