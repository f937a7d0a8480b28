"""What the library's backends are made for, asked of its list."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import NamedTuple

from . import _c

_FORMAT_NAMES = {number: name for name, number in _c.FORMATS.items()}


class Facts(NamedTuple):
    """See sale_backend_facts."""

    name: str
    on_device: bool
    q_block: int
    format: str  # what it scans fastest
    dense_below_projected: int
    dense_below: int


@functools.cache
def all_facts() -> tuple[Facts, ...]:
    """Of every backend, fastest first, whether this machine can run it or not."""
    found = []
    for i in range(_c.lib.sale_backend_count()):
        facts = _c.BackendFacts.make()
        _c.check(_c.lib.sale_backend_describe(i, ctypes.byref(facts)))
        found.append(Facts(_c.lib.sale_backend_name(i).decode(), bool(facts.on_device), facts.q_block,
                           _FORMAT_NAMES[facts.format], facts.dense_below_projected, facts.dense_below))  # fmt: skip
    return tuple(found)


@functools.cache
def _first_for(device: int) -> Facts:
    i = _c.lib.sale_backend_for(device)
    if i >= 0:
        return all_facts()[i]
    # None runs here; the library will say why.
    return next(f for f in all_facts() if f.on_device == (device != _c.HOST))


def facts_on(device: int, backend: str | None) -> Facts:
    """Of the backend that tensors on a device get, asked for by name or not; an unknown name is the library's to refuse."""
    wanted = backend or os.environ.get("SALE_BACKEND")
    return next((f for f in all_facts() if f.name == wanted), None) or _first_for(device)
