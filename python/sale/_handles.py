"""Key indexes by number: operators take numbers, not objects. A number is of one index of one process: it starts where no
other process starts, so that one from elsewhere is not found, instead of being some other index's."""

from __future__ import annotations

import itertools
import secrets
import weakref

_numbers = itertools.count(secrets.randbits(61))
_indexes: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def numbered(index) -> int:
    """A number for an index, for as long as it lives."""
    number = next(_numbers)
    _indexes[number] = index
    return number


def index_of(number: int):
    """The index of that number. ValueError when it is gone, or of another process."""
    index = _indexes.get(number)
    if index is None:
        raise ValueError("index: of a key index that is gone, or of another process")
    return index
