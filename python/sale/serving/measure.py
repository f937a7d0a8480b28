"""A calibration from the prompts that are served: the library's calibrator, shown one request at a time while the
engine computes everything itself.

Every prompt counts as its first `tokens` tokens, since attention over a beginning does not depend on what comes after
it: so nobody has to know how long a prompt will be, and a chunk that reaches further is cut. Requests that begin behind a
cached prefix are not taken, nor those that end or are preempted before they reach that length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .._transformers_options import folder_of, model_fingerprint
from ..calibrator import Calibrator
from .batch import Row
from .settings import Settings

_NAMES = ("float32", "float16", "bfloat16")  # by number, as in _c
_REFUSALS = 8  # prompts refused running, after which it is given up


class Target(NamedTuple):
    """The request that is followed, in this step: its row, and how many of the row's tokens are shown."""

    row: Row
    tokens: int


class Measuring:
    """done: called with the Calibration. say: takes a line for the log."""

    def __init__(self, model, heads, form: str, tokens: int, settings: Settings, done: Callable, say: Callable) -> None:
        folder = folder_of(model.name)
        rank = min(model.head_dim, 60 if form == "fp8" else 64)
        self._made = Calibrator(
            layers=model.layers, q_heads=model.q_heads, kv_heads=model.kv_heads, head_dim=model.head_dim,
            goals=[("budget", settings.budget)], name=model.name, dtype=_NAMES[heads.dtype],
            fingerprint=model_fingerprint(folder) if folder else None,
            device=None if heads.device < 0 else heads.device,
            format=form, rank=rank, prompts=settings.prompts, smoothing=True,
            command=f"SALE_CALIBRATION=auto, {tokens} tokens, {settings.prompts} prompts, budget {settings.budget}",
        )  # fmt: skip
        self._layers, self._tokens, self._done, self._say = model.layers, tokens, done, say
        self.needed = 3 * settings.prompts  # of each pass: smoothing vectors ask for the first whatever the rank
        self._page: int | None = None  # the first of the request that is followed
        self._seen = 0  # of its tokens
        self._fed: set[int] = set()  # layers, of this step
        self._refused = 0

    def drop(self) -> None:
        """Forgets the prompt begun."""
        if self._page is not None:
            self._made.cancel()
        self._page, self._seen = None, 0
        self._fed.clear()

    def follow(self, rows: Sequence[Row], first_page: Callable[[Row], int]) -> Target | None:
        """Before a step with these prompts' rows: what of it is to be shown. first_page may wait for the device."""
        if self._fed:  # a step of which not all layers were shown
            seen = len(self._fed)
            self.drop()
            self._refused += 1
            if self._refused == _REFUSALS:
                raise ValueError(f"calibration: {seen} of {self._layers} layers have plain attention; all are needed")
        if self._page is not None:
            for row in rows:
                if row.keys - row.tokens == self._seen and first_page(row) == self._page:
                    return Target(row, min(row.tokens, self._tokens - self._seen))
            self.drop()
        begins = [row for row in rows if row.keys == row.tokens]
        if not begins:
            return None
        row = max(begins, key=lambda r: r.tokens)
        self._made.begin("a prompt that was served", self._tokens)
        self._page, self._seen = first_page(row), 0
        return Target(row, min(row.tokens, self._tokens))

    def look(self, target: Target, layer: int, q, k, v, table, scale: float) -> None:
        """Attention of one layer: q [tokens, q_heads, head_dim], k and v [pages, page_size, kv_heads, head_dim], table
        [requests, pages]. Keys are gathered: the calibrator takes them in one piece."""
        if self._page is None:
            return
        row, rows = target
        keys = self._seen + rows
        pages = table[row.request, : -(-keys // k.shape[1])].long()
        put = lambda x: x.transpose(0, 1)[None]  # noqa: E731
        whole = lambda x: put(x[pages].flatten(0, 1)[:keys])  # noqa: E731
        try:
            with torch.no_grad():
                self._made.feed(layer, put(q[row.start : row.start + rows]), whole(k), whole(v), scale=scale)
            self._fed.add(layer)
            if len(self._fed) == self._layers:
                self._fed.clear()
                self._seen = keys
                if keys == self._tokens:
                    self._made.end()
                    self._page, self._seen, self._refused = None, 0, 0
        except ValueError as e:  # of this prompt: numbers that are not finite, say
            self.drop()
            self._refused += 1
            if self._refused == _REFUSALS:
                raise
            self._say(f"a prompt was not measured: {e}")
            return
        state = self._made.state()
        if state.doing == "done":
            self._done(self._made.result())
