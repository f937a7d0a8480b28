"""Heads that lose too much on what is served go dense: judged by audits (sale_options.audit in sale.h)."""

from __future__ import annotations

import numpy as np

from ..options import Options
from .settings import Settings


class Guard:
    """Two audits running over the limit, so that one odd prompt does not do it; or a row that is not finite."""

    RUNNING = 2

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.audit_limit
        self._strikes: dict[int, np.ndarray] = {}
        self.dense: dict[int, set[int]] = {}  # by layer, heads of the whole model

    def judge(self, layer: int, found, first: int = 0) -> list[int]:
        """Heads that go dense now. first: number in the model of the first head found."""
        over = ~(found.relative <= self._limit)  # NaN is over
        before = self._strikes.get(layer)
        strikes = self._strikes[layer] = np.where(over, 1 if before is None else before + 1, 0)
        dense = self.dense.setdefault(layer, set())
        gone = [first + int(h) for h in np.flatnonzero(strikes >= self.RUNNING) if first + int(h) not in dense]
        dense.update(gone)
        return gone

    def applied(self, layer: int, options: Options, q_heads: int) -> Options:
        """A layer's options with its dense heads dense."""
        dense = self.dense.get(layer)
        if not dense:
            return options
        thresholds = np.broadcast_to(np.array(options.thresholds, np.float32), q_heads).copy()
        thresholds[sorted(dense)] = 0
        return options.replace(thresholds=thresholds)
