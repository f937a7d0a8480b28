"""Key indexes: what is remembered of a sequence's keys between calls."""

from __future__ import annotations

from collections.abc import Sequence

from . import _c
from ._arguments import INT64, instance, integer, numbers
from ._call import axes_of, expect
from ._handles import numbered
from ._plan import Layout
from ._tensors import api_of
from .options import Options


class KeyIndex:
    """Low-bit codes of one sequence's keys. Lives beside the KV cache: appended to chunk by chunk, used by every later
    query chunk. Not for two writers, or a writer and a reader, at once.

        index = sale.KeyIndex(like=k, capacity=131072)
        index.update(k[0, :, :n])                          # keys 0 .. n - 1: [kv_heads, n, head_dim]
        out = sale.attention(q, k[:, :, :n], v[:, :, :n], index=[index])

    like      a tensor [..., kv_heads, tokens, head_dim] (numpy or torch): kv heads, head dimension, type and device
    capacity  keys it can hold; all memory is taken here
    options   format, projections, backend and threads are used; attention must be given the same

    Raises ValueError, TypeError, NotImplementedError (no backend for it), MemoryError.
    """

    handle = None

    def __init__(self, *, like, capacity: int, options: Options | None = None) -> None:
        self._destroy = _c.lib.sale_index_destroy
        self._options = Options() if options is None else instance("options", options, Options, "sale.Options")
        integer("capacity", capacity, 1, INT64)
        api = api_of("like", like)
        view = api.view("like", api.cast("like", like))
        if len(view.shape) < 3:
            raise ValueError(f"like: of shape {list(view.shape)}; [..., kv_heads, tokens, head_dim] is needed")
        self.kv_heads, self.head_dim = view.shape[-3], view.shape[-1]
        self._dtype, self._device = view.dtype, view.device
        strides = (0, self.head_dim, self.head_dim)
        layout = Layout(1, self.kv_heads, self.kv_heads, self.head_dim, view.dtype, view.device, 1, 1, _c.AUTO, 0.0,
                        strides, strides, strides, strides)  # fmt: skip
        options_c = self._options.c(self.kv_heads, self.head_dim, view.device)
        try:
            self.handle = _c.created(_c.lib.sale_index_create, layout.c(), options_c, capacity)
        except MemoryError:
            raise MemoryError(f"capacity: there is no memory for {capacity} keys") from None
        self.capacity = capacity
        self.number = numbered(self)

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

    def update(self, k) -> None:
        """Brings it up to the keys k, [kv_heads, tokens, head_dim]: all of the sequence's, any strides. Those already
        held are not read again, but for the last, partial block of 32. The smoothing vector is the mean of the first
        update's keys. ValueError when there are fewer keys than it holds, or more than its capacity."""
        api = api_of("k", k)
        k = api.cast("k", k)
        view = api.view("k", k)
        expect("k", view.shape, "[kv_heads, tokens, head_dim]", 3)
        if (view.shape[0], view.shape[2]) != (self.kv_heads, self.head_dim):
            raise ValueError(f"k: of shape {list(view.shape)}; [{self.kv_heads}, tokens, {self.head_dim}] is needed")
        if (view.dtype, view.device) != (self._dtype, self._device):
            raise TypeError("k: of another type or device than the index")
        strides = _c.Strides(*axes_of("k", view, (-1, 0, 1)))
        _c.check(_c.lib.sale_index_update(self.handle, view.data, strides, view.shape[1], None, api.stream(k)))

    def set_smoothing(self, vectors: Sequence) -> None:
        """Fixes the smoothing vectors, [kv_heads, head_dim], while it holds no keys."""
        array = numbers("vectors (smoothing)", vectors)
        if array.shape != (self.kv_heads, self.head_dim):
            raise ValueError(f"vectors: of shape {list(array.shape)}; [{self.kv_heads}, {self.head_dim}] is needed")
        _c.check(_c.lib.sale_index_set_smoothing(self.handle, array.ctypes.data))

    def truncate(self, tokens: int) -> None:
        """Forgets keys from `tokens` on."""
        _c.check(_c.lib.sale_index_truncate(self.handle, integer("tokens", tokens, 0, len(self))))
