"""Key indexes: what is remembered of a sequence's keys between calls."""

from __future__ import annotations

import ctypes

from . import _c
from ._arguments import INT32, INT64, instance, integer
from ._call import axes_of, check_pages, expect
from ._estimator import Estimator, Heads, estimator_for
from ._handles import numbered
from ._tensors import api_of
from .options import Options


def _estimator(like, options: Options | None) -> Estimator:
    """Of keys like these. It codes keys as any estimator of these options does, whatever queries come later."""
    options = Options() if options is None else instance("options", options, Options, "sale.Options")
    api = api_of("like", like)
    view = api.view("like", api.cast("like", like))
    if len(view.shape) < 3:
        raise ValueError(f"like: of shape {list(view.shape)}; [..., kv_heads, tokens, head_dim] is needed")
    kv_heads = view.shape[-3]
    q_heads = kv_heads if len(options.thresholds) == 1 else len(options.thresholds)
    return estimator_for(options, Heads(q_heads, kv_heads, view.shape[-1], view.dtype, view.device), api.capturing(like))


class KeyIndex:
    """Low-bit codes of one sequence's keys. Lives beside the KV cache: appended to chunk by chunk, used by every later
    query chunk. Not for two writers, or a writer and a reader, at once.

        index = sale.KeyIndex(like=k, capacity=131072)
        index.update(k[0, :, :n])                          # keys 0 .. n - 1: [kv_heads, n, head_dim]
        out = sale.attention(q, k[:, :, :n], v[:, :, :n], index=[index])

    like       a tensor [..., kv_heads, tokens, head_dim] (numpy or torch): kv heads, head dimension, type and device
    capacity   keys it can hold; all memory is taken here
    options    format, projections, smoothing, key_scales, backend and threads are used; attention must be given the same
    page_size  0, or keys of a page, a multiple of 16: `update` then reads them from pages
    memory     where it is to live: contiguous uint8 on the device of `like`, at least memory_bytes(...), its first byte at
               a multiple of 64. It is kept, and must not be written to. None: memory of its own

    Copying and pickling are refused. Raises ValueError, TypeError, NotImplementedError (no backend for it), MemoryError.
    """

    handle = None

    def __init__(self, *, like, capacity: int, options: Options | None = None, page_size: int = 0, memory=None) -> None:
        self._destroy = _c.lib.sale_index_destroy
        integer("capacity", capacity, 1, INT64), integer("page_size", page_size, 0, INT32)
        self._estimator = _estimator(like, options)
        heads = self._estimator.heads
        self.kv_heads, self.head_dim, self.capacity, self.page_size = heads.kv_heads, heads.head_dim, capacity, page_size
        wanted = _c.IndexOptions.make(capacity=capacity, page_size=page_size)
        self._memory = memory
        if memory is not None:
            wanted.memory, wanted.memory_bytes, device = api_of("memory", memory).memory("memory", memory)
            if device != heads.device:
                raise ValueError("memory: on another device than like")
        try:
            self.handle = _c.created(_c.lib.sale_index_create, self._estimator.handle, ctypes.byref(wanted))
        except MemoryError:
            raise MemoryError(f"capacity: there is no memory for {capacity} keys") from None
        self.number = numbered(self)

    @staticmethod
    def memory_bytes(*, like, capacity: int, options: Options | None = None) -> int:
        """Bytes that such an index takes in memory that is given to it. ValueError when there is no such index."""
        integer("capacity", capacity, 1, INT64)
        found = _c.lib.sale_index_memory(_estimator(like, options).handle, capacity)
        if found == 0:
            raise ValueError(f"capacity: there is no index of {capacity} keys")
        return found

    def __del__(self) -> None:
        if self.handle is not None:
            self._destroy(self.handle)

    def __reduce_ex__(self, protocol):
        """Of copies and pickles, which would share or lose its memory."""
        raise TypeError("a KeyIndex can be neither copied nor pickled; make one of the copied keys")

    def __len__(self) -> int:
        """Keys it holds."""
        return _c.lib.sale_index_length(self.handle)

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return _c.lib.sale_index_bytes(self.handle)

    def update(self, k, *, tokens: int | None = None, pages=None) -> None:
        """Brings it up to the keys k, [kv_heads, tokens, head_dim]: all of the sequence's, any strides. Those already
        held are not read again, but for the last, partial block of 32. A smoothing vector that the options do not give is
        the mean of the first update's keys. ValueError when there are fewer keys than it holds, or more than its capacity.

        Of an index made with a page_size: k is [pages, page_size, kv_heads, head_dim] as in sale.attention, pages this
        sequence's row of the page table, int32, and tokens how many keys it has."""
        api, heads = api_of("k", k), self._estimator.heads
        k = api.cast("k", k)
        view = api.view("k", k)
        row = None
        if self.page_size:
            expect("k", view.shape, "[pages, page_size, kv_heads, head_dim]", 4)
            form, order = (view.shape[0], self.page_size, self.kv_heads, self.head_dim), (0, 2, 1)
            if tokens is None or pages is None:
                raise ValueError(f"{'tokens' if tokens is None else 'pages'}: needed, since the index has a page_size")
            row = self._row(pages, integer("tokens", tokens, 1, INT64), view.shape[0])
        else:
            expect("k", view.shape, "[kv_heads, tokens, head_dim]", 3)
            form, order = (self.kv_heads, view.shape[1], self.head_dim), (-1, 0, 1)
            for name, given in (("tokens", tokens), ("pages", pages)):
                if given is not None:
                    raise ValueError(f"{name}: given, but the index has no page_size")
            tokens = view.shape[1]
        if view.shape != form:
            raise ValueError(f"k: of shape {list(view.shape)}; {list(form)} is needed")
        if (view.dtype, view.device) != (heads.dtype, heads.device):
            raise TypeError("k: of another type or device than the index")
        strides = _c.Strides(*axes_of("k", view, order))
        _c.check(_c.lib.sale_index_update(self.handle, view.data, strides, tokens, row, api.stream(k)))

    def set_smoothing(self, smoothing) -> None:
        """There is no such call: what is taken from keys belongs to the layer, and all of an index's codes are made with
        it. TypeError, saying where it is given."""
        raise TypeError(
            "smoothing: not set on an index; give sale.Options(smoothing=..., key_scales=...) to the KeyIndex when it is made "
            "and to attention"
        )

    def _row(self, pages, tokens: int, there: int) -> int:
        shape, strides, address = api_of("pages", pages).table("pages", pages)
        needed = -(-tokens // self.page_size)
        if len(shape) != 1 or shape[0] < needed or (shape[0] > 1 and strides != (1,)):
            raise ValueError(f"pages: of shape {list(shape)}; {needed} contiguous numbers or more are needed")
        if self._estimator.heads.device == _c.HOST:
            check_pages("pages", pages[None], self.page_size, [tokens], there)
        return address

    def truncate(self, tokens: int) -> None:
        """Forgets keys from `tokens` on."""
        _c.check(_c.lib.sale_index_truncate(self.handle, integer("tokens", tokens, 0, len(self))))
