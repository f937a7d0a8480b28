"""What is counted, as Prometheus metrics where prometheus_client is there.

An engine's core is often another process than its server: with PROMETHEUS_MULTIPROC_DIR set before the start both
write to that folder, and the server shows all of it.
"""

from __future__ import annotations

import weakref

try:
    import prometheus_client as _prometheus
except ImportError:
    _prometheus = None

_STATES = {"idle": 0, "measuring": 1, "sparse": 2}


class Metrics:
    """Totals as plain numbers too, for engines and tests that want them here."""

    def __init__(self) -> None:
        self._shown: dict = {}
        self._pages: weakref.WeakSet = weakref.WeakSet()
        self._told = 0  # keys, to Prometheus
        self.reset()

    def reset(self) -> None:
        """Totals start again; Prometheus counts on."""
        self.steps = self.tokens = self.audits = self.dense_heads = 0
        self._coded = 0  # by calls that code all of their keys
        self._before = weakref.WeakKeyDictionary({pages: pages.made for pages in self._pages})
        self.density: dict[int, float] = {}
        self.error: dict[int, float] = {}
        self.last_state = "idle"

    def _show(self, kind: str, name: str, words: str, labels: tuple[str, ...] = ()):
        found = self._shown.get(name)
        if found is None and _prometheus is not None:
            how = {"multiprocess_mode": "mostrecent"} if kind == "Gauge" else {}
            found = self._shown[name] = getattr(_prometheus, kind)(f"sale_{name}", words, labels, **how)
        return found

    def _count(self, name: str, words: str, by: int) -> None:
        shown = self._show("Counter", name, words)
        if shown is not None:
            shown.inc(by)

    def _set(self, name: str, words: str, value: float, layer: int | None = None) -> None:
        shown = self._show("Gauge", name, words, () if layer is None else ("layer",))
        if shown is not None:
            (shown if layer is None else shown.labels(str(layer))).set(value)

    def state(self, state: str) -> None:
        self.last_state = state
        self._set("state", "0: the engine's own attention; 1: measuring a calibration; 2: sparse", _STATES[state])

    def coding(self, pages) -> None:
        """Pages of codes count for themselves, on their device."""
        self._pages.add(pages)
        self._before[pages] = 0

    @property
    def coded_keys(self) -> int:
        """Keys that were coded, a layer's. Waits for the device."""
        return self._coded + sum(p.made - self._before[p] for p in self._pages)

    def step(self, tokens: int, coded_keys: int) -> None:
        self.steps += 1
        self.tokens += tokens
        self._coded += coded_keys
        self._count("steps", "Steps of the engine with sparse prefill in them", 1)
        self._count("tokens", "Prompt tokens whose attention was sparse", tokens)

    def audited(self, layer: int, found) -> None:
        self.audits += 1
        density = self.density[layer] = int(found.kept.sum()) / max(1, int(found.visible.sum()))
        error = self.error[layer] = float(found.error.sum() / max(found.size.sum(), 1e-300))
        coded = self.coded_keys
        self._count("coded_keys", "Keys that were coded, of each layer, up to the last audit", max(0, coded - self._told))
        self._told = coded
        self._count("audits", "Calls whose result was compared with dense attention on some rows", 1)
        self._set("density", "Share of the visible key blocks that was computed, at the last audit", density, layer)
        self._set("audited_error", "Relative L1 error against dense attention, at the last audit", error, layer)

    def gone(self, heads: int) -> None:
        self.dense_heads += heads
        self._count("dense_heads", "Heads that audits made dense", heads)


METRICS = Metrics()
