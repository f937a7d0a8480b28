"""A model of a shape and no weights: random ones whose attention is spread as wide as a trained model's, and thresholds
that keep a given share of its blocks."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import numpy as np
import torch

SPREAD = 2.0  # standard deviation of scores
RANK = 60


def folder(at: pathlib.Path, layers: int) -> str:
    """A folder with the configuration of Llama-3.1-8B and no weights."""
    (at / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False, "bos_token_id": 128000, "eos_token_id": 128001,
    }))  # fmt: skip
    return str(at)


def fill(model: torch.nn.Module, q_and_k: int) -> None:
    """In place: norms of one, products that keep the size of what they are given, and so wide queries and keys (the
    first rows of a fused projection) that scores have the SPREAD."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.fill_(1)
                continue
            p.normal_(0, 1 / math.sqrt(p.shape[-1]))
            if name.endswith("qkv_proj.weight"):
                p[:q_and_k] *= math.sqrt(SPREAD)


def calibration(layers: int, q_heads: int = 32, kv_heads: int = 8, head_dim: int = 128):
    """For it: the scan over random coordinates as many as the default has; thresholds are fitted later."""
    from sale import Calibration

    rng = np.random.default_rng(1)
    bases = np.linalg.qr(rng.standard_normal((layers, kv_heads, head_dim, head_dim)))[0][..., :RANK]
    projections = np.ascontiguousarray(bases, dtype=np.float32)
    return Calibration(
        "", "0" * 16, "fp8", np.full((layers, q_heads), 0.01, np.float32), projections, projections, kv_heads, head_dim,
        smoothing=np.zeros((layers, kv_heads, head_dim), np.float32),
        scales=np.full((layers, kv_heads), 4.5 * math.sqrt(SPREAD) / 112, np.float32),
        error={"relative_l1_limit": 0.0, "relative_l1": 0.0, "retained_mass": 1.0, "density": 1.0},
    )  # fmt: skip


class Kept:
    """Blocks kept of those visible, by layer, while every step is audited."""

    def __init__(self, session) -> None:
        self._session, self._audited = session, session._audited
        self._every = session.settings.audit_every

    def __enter__(self) -> Kept:
        self.kept: dict[int, int] = {}
        self.visible: dict[int, int] = {}

        def audited(layer, found):
            self.kept[layer] = self.kept.get(layer, 0) + int(found.kept.sum())
            self.visible[layer] = self.visible.get(layer, 0) + int(found.visible.sum())

        self._session._audited = audited
        self._session.settings = dataclasses.replace(self._session.settings, audit_every=1)
        return self

    def __exit__(self, *_) -> None:
        self._session._audited = self._audited
        self._session.settings = dataclasses.replace(self._session.settings, audit_every=self._every)

    def density(self) -> dict[int, float]:
        return {layer: self.kept[layer] / self.visible[layer] for layer in self.kept}


def fit(session, density: float, prefill, steps: int = 9) -> None:
    """Thresholds of every layer, by halving, such that a prompt (prefill() runs one) keeps that share of its blocks."""
    low = {layer: math.log(1e-6) for layer in range(session.model.layers)}
    high = dict.fromkeys(low, math.log(10))
    for _ in range(steps):
        middle = {layer: (low[layer] + high[layer]) / 2 for layer in low}
        for layer, tau in middle.items():
            session.calibration.thresholds.setflags(write=True)
            session.calibration.thresholds[layer] = math.exp(tau)
            session._estimators.pop(layer, None)
            session.estimator(layer)
        with Kept(session) as found:
            prefill()
        for layer, share in found.density().items():
            (low if share > density else high)[layer] = middle[layer]
