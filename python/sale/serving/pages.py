"""Codes in pages beside an engine's cache: of keys of page p of a layer's cache in page p of the layer's codes.

What a page holds is known to the device alone: calls raise it, and the engine lowers it, slot by slot, before it writes
keys (sale_index_pages.coded in include/sale/sale.h). So whoever shares, frees or reuses a page needs to say nothing.
"""

from __future__ import annotations

import ctypes

import torch

from .. import _c
from .._estimator import Estimator


def page_bytes(estimator: Estimator, page_size: int) -> int:
    """0 where a key's code depends on more than the key: the calibration has no smoothing, or pages cut blocks."""
    return _c.lib.sale_index_page_bytes(estimator.handle, page_size)


class Pages:
    """Of layers whose keys are written to the same slots. Not for layers of dense heads alone."""

    def __init__(self, estimators: dict[int, Estimator], pages: int, page_size: int, device: torch.device) -> None:
        size = -(-max(page_bytes(e, page_size) for e in estimators.values()) // 64) * 64
        self._memory = torch.empty((len(estimators), pages, size), dtype=torch.uint8, device=device)
        self._coded = torch.zeros((len(estimators), pages), dtype=torch.int32, device=device)
        self._made = torch.zeros(len(estimators), dtype=torch.int64, device=device)
        self._structs = {
            layer: _c.IndexPages.make(memory=self._memory[i].data_ptr(), page_bytes=size, pages=pages,
                                      coded=self._coded[i].data_ptr(), made=self._made[i : i + 1].data_ptr())
            for i, layer in enumerate(estimators)
        }  # fmt: skip
        self._of = {layer: ctypes.addressof(s) for layer, s in self._structs.items()}
        self._any = next(iter(estimators.values()))
        self._slots = _c.IndexSlots.make(coded=self._coded.data_ptr(), layers=len(estimators), layer_stride=pages,
                                         pages=pages, page_size=page_size)  # fmt: skip
        self.key = (pages, page_size)

    def of(self, layer: int) -> int | None:
        """Address of a call's sale_index_pages."""
        return self._of.get(layer)

    def forget(self, slots: torch.Tensor, stream: int | None) -> None:
        """Keys are about to be written to these slots: int64, negative ones are padding."""
        if slots.dtype != torch.int64 or not slots.is_contiguous() or slots.device != self._coded.device:
            raise ValueError(f"slots: {slots.dtype} on {slots.device}; contiguous int64 beside the cache is needed")
        s = self._slots
        s.slots, s.n_slots, s.stream = slots.data_ptr(), slots.numel(), stream
        _c.check(_c.lib.sale_index_forget(self._any.handle, ctypes.byref(s)))

    @property
    def made(self) -> int:
        """Keys that were coded, a layer's. Waits for the device."""
        return int(self._made.max())
