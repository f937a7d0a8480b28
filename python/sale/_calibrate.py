"""Calibration of a transformers model in Python: projections and a threshold for every layer and head.

Two passes over prompts, both with dense attention, so that what is measured is the model as it is:

    1  second moments of smoothed keys and of queries, layer by layer: the projections (docs/method.md, section 1)
    2  for a falling ladder of thresholds, the error of every head's sparse output; each head gets the largest
       threshold whose relative L1 error stays within the limit on every prompt
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from . import transformers as adapter
from ._torch import ordinal_of
from .attention import attention
from .calibration import Calibration
from .eval.needle import make_prompt
from .options import Options

LADDER = tuple(2.0**-i for i in range(3, 13))  # 0.125 .. 0.00024; below that a head is dense


@dataclasses.dataclass
class _Moments:
    queries: torch.Tensor | float = 0.0  # [kv_heads, d, d], float64
    keys: torch.Tensor | float = 0.0

    def add(self, q: torch.Tensor, k: torch.Tensor) -> None:
        kv_heads, d = k.shape[1], k.shape[3]
        k = k[0].double()
        k = k - k.mean(1, keepdim=True)
        q = q[0].double().reshape(kv_heads, -1, d)
        self.keys = self.keys + (k.mT @ k / k.shape[1]).cpu()
        self.queries = self.queries + (q.mT @ q / q.shape[1]).cpu()

    def projections(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """A, B [kv_heads, d, rank] such that (Aᵀq)·(Bᵀk) is nearest to q·k in the mean square."""
        roots = []
        for m in (self.queries, self.keys):
            values, vectors = torch.linalg.eigh(m)
            values = values.clamp_min(values.amax(-1, keepdim=True) * 1e-9).sqrt()
            roots.append(((vectors * values[:, None]) @ vectors.mT, (vectors / values[:, None]) @ vectors.mT))
        (root_q, inverse_q), (root_k, inverse_k) = roots
        u, s, vt = torch.linalg.svd(root_q @ root_k)
        s = s[:, None, :rank].sqrt()
        return (inverse_q @ u[..., :rank] * s).float().numpy(), (inverse_k @ vt.mT[..., :rank] * s).float().numpy()


class _Watching:
    """A dense attention function that shows every layer's q, k, v to `look` on the way."""

    NAME = "sale_calibration"

    def __init__(self, look) -> None:
        self.look = look

    def __call__(self, module, query, key, value, attention_mask, **keywords):
        self.look(module.layer_idx, query, key, value, keywords.get("scaling"))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **keywords)

    @torch.no_grad()
    def run(self, model, prompts) -> None:
        before = model.config._attn_implementation
        AttentionInterface.register(self.NAME, self)
        AttentionMaskInterface.register(self.NAME, adapter.sdpa_mask)
        model.set_attn_implementation(self.NAME)
        try:
            for ids in prompts:
                model(ids, use_cache=False, logits_to_keep=1)
        finally:
            model.set_attn_implementation(before)


def calibrate(
    model,
    tokenizer,
    path: str | os.PathLike | None = None,
    *,
    text: str | os.PathLike | None = None,
    tokens: int = 32768,
    prompts: int = 2,
    rank: int | None = None,
    limit: float = 0.1,
    seed: int = 1,
) -> Calibration:
    """Measures a model and returns its Calibration; with `path`, also writes it there.

    text     a long text file: half of the prompts are facts hidden in it, the others JSON key-value pairs. None: pairs only
    tokens   length of a prompt: the model's working length, since longer prompts than calibrated for lose more
    rank     coordinates scanned; default 64 (INT8), on Hopper 28 (FP8); the head dimension: all, no projection
    limit    largest relative L1 error of a head's output

    ValueError: a rank that the format does not take, a text too short.
    """
    device = model.device
    d = adapter._dimensions(model.config)
    form = "fp8" if Options().format_on(ordinal_of(device)) == "fp8" else "int8"
    rank = min(d["head_dim"], 28 if form == "fp8" else 64) if rank is None else rank
    words = pathlib.Path(text).read_text() if text is not None else ""
    made = [make_prompt(tokenizer, words, "needle" if words and i % 2 else "kv", tokens, seed=seed + i)
            for i in range(prompts)]  # fmt: skip
    ids = [tokenizer(p.context, return_tensors="pt").input_ids.to(device) for p in made]

    moments = [_Moments() for _ in range(d["layers"])]
    projections: list[tuple] = [(None, None)] * d["layers"]
    if rank < d["head_dim"]:
        _Watching(lambda layer, q, k, v, scale: moments[layer].add(q, k)).run(model, ids)
        projections = [m.projections(rank) for m in moments]

    layers, heads = d["layers"], d["q_heads"]
    thresholds = np.full((layers, heads), LADDER[0], np.float32)
    errors, kept, seen, masses = np.zeros((layers, heads)), 0, 0, []

    def measure(layer, q, k, v, scale) -> None:
        """Lowers this layer's thresholds until every head's error is within the limit on this prompt too."""
        nonlocal kept, seen
        a, b = projections[layer]
        base = Options(format=form, q_projection=a, k_projection=b)
        exact, whole = attention(q, k, v, options=base.dense(), scale=scale, return_lse=True)
        exact = exact.float()
        size = exact.abs().sum((0, 2, 3)).clamp_min(1e-30)
        for _ in range(len(LADDER) + 1):
            options = base.replace(thresholds=thresholds[layer])
            out, lse, stats = attention(q, k, v, options=options, scale=scale, return_lse=True, return_stats=True)
            error = ((out.float() - exact).abs().sum((0, 2, 3)) / size).cpu().numpy()
            over = (error > limit) & (thresholds[layer] > 0)
            if not over.any():
                break
            lower = thresholds[layer][over] / 2
            thresholds[layer][over] = np.where(lower < LADDER[-1], 0, lower)
        errors[layer] = np.maximum(errors[layer], error)
        kept, seen = kept + stats.kept_blocks, seen + stats.visible_blocks
        masses.append((lse - whole).exp().mean().item())  # the share of the weights that the kept blocks have

    _Watching(measure).run(model, ids)
    name = model.config._name_or_path
    folder = adapter.folder_of(name)
    mark = adapter.model_fingerprint(folder) if folder else None
    q, k = (np.stack(x) if x[0] is not None else None for x in zip(*projections))
    result = Calibration(
        pathlib.Path(name).name if pathlib.Path(name).is_dir() else name, mark or "0" * 16, form, thresholds, q, k, d["kv_heads"], d["head_dim"],
        provenance={
            "prompts": [{"text": p.kind, "tokens": int(i.shape[1])} for p, i in zip(made, ids)],
            "command": f"sale.transformers.calibrate(tokens={tokens}, prompts={prompts}, rank={rank}, limit={limit}, seed={seed})",
            "date": datetime.date.today().isoformat(), "note": "",
        },
        error={"relative_l1_limit": limit, "relative_l1": float(errors.mean()), "retained_mass": min(1.0, float(np.mean(masses))),
               "density": kept / max(seen, 1)},
    )  # fmt: skip
    if path is not None:
        result.write(path)
    return result
