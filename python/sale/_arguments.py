"""Arguments of a wrong type or out of range, refused by name: TypeError and ValueError.

What Python would take silently is refused here too: a float where a count is meant, a string that is true, numbers that
ctypes would cut to the bits it has room for.
"""

from __future__ import annotations

import os

import numpy as np

INT32, INT64, UINT64 = 2**31 - 1, 2**62, 2**64 - 1


def described(x) -> str:
    """A value for a message: short."""
    text = f"{type(x).__name__} {x!r}".partition("\n")[0]
    return text if len(text) <= 60 else f"{text[:57]}..."


def flag(name: str, x) -> bool:
    if not isinstance(x, (bool, np.bool_)):
        raise TypeError(f"{name}: {described(x)}; True or False is needed")
    return bool(x)


def integer(name: str, x, low: int, high: int) -> int:
    if isinstance(x, (bool, np.bool_)) or not isinstance(x, (int, np.integer)):
        raise TypeError(f"{name}: {described(x)}; an integer is needed")
    if not low <= x <= high:
        raise ValueError(f"{name}: {x} is not in {low} .. {high}")
    return x if isinstance(x, int) else int(x)


def number(name: str, x) -> float:
    """A real number; whether it is finite is for the caller."""
    if isinstance(x, (bool, np.bool_)) or not isinstance(x, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: {described(x)}; a number is needed")
    try:
        return x if isinstance(x, float) else float(x)
    except OverflowError:
        raise ValueError(f"{name}: {described(x)} is beyond every float") from None


def word(name: str, x, allowed) -> str:
    """One of some words."""
    if not isinstance(x, str):
        raise TypeError(f"{name}: {described(x)}; one of {', '.join(map(repr, allowed))} is needed")
    if x not in allowed:
        raise ValueError(f"{name}: {x!r} is not one of {', '.join(map(repr, allowed))}")
    return x


def text(name: str, x) -> str:
    if not isinstance(x, str):
        raise TypeError(f"{name}: {described(x)}; a str is needed")
    if "\0" in x:
        raise ValueError(f"{name}: {x!r} has a NUL in it")
    return x


def instance(name: str, x, kind: type, called: str):
    if not isinstance(x, kind):
        raise TypeError(f"{name}: {described(x)}; {called} is needed")
    return x


def path(name: str, x) -> str:
    if not isinstance(x, (str, os.PathLike)):
        raise TypeError(f"{name}: {described(x)}; a path is needed")
    x = os.fspath(x)
    return text(name, x)


def numbers(name: str, x) -> np.ndarray:
    """Real numbers in a list, a tuple, a range, an array or a torch tensor, as float32 of our own; ValueError where one
    is not finite there."""
    if hasattr(type(x), "__torch_function__"):
        try:
            x = (x.detach().double() if x.is_floating_point() else x.detach()).cpu().numpy()
        except (TypeError, RuntimeError, NotImplementedError) as e:  # sparse, on no device, ...
            raise TypeError(f"{name}: a tensor whose numbers cannot be read: {str(e).partition(chr(10))[0]}") from None
    if not isinstance(x, (bool, np.bool_, int, float, np.integer, np.floating, list, tuple, range, np.ndarray)):
        raise TypeError(f"{name}: {described(x)} is neither a number nor a list of numbers")
    try:
        array = np.asarray(float(x) if isinstance(x, int) and not isinstance(x, bool) else x)
    except OverflowError:
        raise ValueError(f"{name}: {described(x)} is beyond every float") from None
    except ValueError:  # rows of different lengths
        raise ValueError(f"{name}: {described(x)} is not a rectangle of numbers") from None
    if isinstance(x, np.ma.MaskedArray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: a masked array; fill it first")
    if array.size and array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: {described(x)} is neither a number nor a list of numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.array(array, np.float32, order="C")
    bad = ~np.isfinite(array)
    if bad.any():
        at = int(bad.ravel().argmax())
        raise ValueError(f"{name}: element {at} is {np.asarray(x).ravel()[at]}, not a finite float32")
    return array
