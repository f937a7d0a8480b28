"""Key indexes kept with a transformers cache, so that a chunk of a prompt codes only its own keys.

An attention function is not told of the cache, and a cache layer's keys are a new tensor after every update. So a hook
in front of every attention module looks at the layer's keys before they grow: when they are, bit for bit, those that
this module saw last (the same storage, not written to since), what was remembered of them still holds.

An index is made at a prompt's second chunk, over all keys so far: prompts that come in one piece need none.
"""

from __future__ import annotations

import threading

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from . import _pieces, _torch
from .index import KeyIndex
from .options import Options

_now = threading.local()


def before_forward(module, args, kwargs) -> None:
    """Forward pre-hook: which cache layer this module is about to extend, and whether its keys are as they were."""
    if torch.compiler.is_compiling():
        return
    _now.module = _now.held = None
    cache = kwargs.get("cache") if kwargs.get("cache") is not None else kwargs.get("past_key_values")
    cache = getattr(cache, "self_attention_cache", cache)  # of an encoder-decoder's
    layers = getattr(cache, "layers", None)
    if layers is None:
        return
    if module.layer_idx >= len(layers):  # made by the update that is about to come; there is nothing to remember
        return
    layer = layers[module.layer_idx]
    if not hasattr(layer, "keys") or getattr(layer, "is_sliding", False):
        return
    held = layer.__dict__.get("_sale_held")
    if held is None:
        held = layer._sale_held = Held()
    held.look(layer.keys)
    _now.module, _now.held = module, held


def current_layer(module) -> Held | None:
    """What is held for the cache layer of the forward that is running, if any."""
    if torch.compiler.is_compiling() or getattr(_now, "module", None) is not module:
        return None
    held = _now.held
    _now.module = _now.held = None
    return held


def _identity(keys: torch.Tensor):
    """Where these keys lie and in which state; None when that cannot be told."""
    if keys is None or keys.dim() != 4 or keys.is_inference():
        return None
    return StorageWeakRef(keys.untyped_storage()), keys.data_ptr(), keys.stride()[:3], keys._version


def _same(a, b) -> bool:
    # A weak reference keeps the storage's address from being used again, so equal means the very same storage.
    return a is not None and b is not None and a[0].cdata == b[0].cdata and a[1:] == b[1:]


class Held:
    """The indexes of one cache layer, one for each sequence, and which keys they belong to."""

    def __init__(self) -> None:
        self._indexes: list[KeyIndex] = []
        self._firsts: tuple[int, ...] = ()
        self._options: Options | None = None
        self._dtype: torch.dtype | None = None
        self._seen = None
        self._tokens = 0  # that hold of the keys seen last

    def __deepcopy__(self, memo) -> Held:
        return Held()  # a copied cache has keys of its own

    def __reduce__(self):
        return Held, ()

    def look(self, keys: torch.Tensor | None) -> None:
        """Before an update: lets go of what does not belong to these keys."""
        if self._indexes and not _same(self._seen, _identity(keys)):
            self._indexes = []
        self._tokens = 0 if keys is None or keys.dim() != 4 else keys.shape[2]

    def decoded(self, keys: torch.Tensor) -> None:
        """After an update: these are the keys now, which begin with those before."""
        if self._indexes:
            self._seen = _identity(keys)

    def indexes(self, query: torch.Tensor, keys: torch.Tensor, spans, options: Options) -> tuple[KeyIndex, ...]:
        """Indexes of all keys that the query sees, one for each sequence; none for a prompt's first chunk."""
        rows = query.shape[2]
        dtype = keys.dtype
        if spans is None:
            offset = keys.shape[2] - rows
            bounds = [(0, keys.shape[2])] * keys.shape[0]
        else:
            numbers = _torch.spans("attention_mask", spans)
            offset = numbers[0][3]
            bounds = [(first, min(end, offset + rows)) for first, end, *_ in numbers]
            if not _pieces.are_ranges(numbers) or not _pieces.are_ours(numbers, keys.shape[2]):
                offset = 0  # no index is of the keys that are gathered then
        if offset <= 0 or any(first >= offset or end <= offset for first, end in bounds):
            self._indexes = []
            return ()
        firsts = tuple(first for first, _ in bounds)
        longest = max(end - first for first, end in bounds)
        if self._indexes and (
            self._firsts != firsts or self._options != options or self._dtype != dtype or self._indexes[0].capacity < longest
        ):
            self._indexes = []
        if not self._indexes:
            capacity = 2 * longest  # a cache that outgrows it is indexed anew, so at every doubling
            self._indexes = [KeyIndex(like=keys, capacity=capacity, options=options) for _ in bounds]
            self._firsts, self._options, self._dtype = firsts, options, dtype
        for b, (index, (first, end)) in enumerate(zip(self._indexes, bounds)):
            if len(index) > offset - first:
                index.truncate(offset - first)
            index.update(keys[b, :, first:end])
        return tuple(self._indexes)
