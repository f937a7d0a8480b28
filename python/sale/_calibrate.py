"""Calibration of a transformers model in Python: the library's calibrator, shown the model's dense attention over
prompts of text, hidden facts and key-value pairs."""

from __future__ import annotations

import os
import pathlib

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ._prompts import make_prompt
from ._torch import ordinal_of
from ._transformers_options import dimensions_of, folder_of, model_fingerprint
from .calibration import Calibration
from .calibrator import Calibrator
from .options import Options


class _Watching:
    """A dense attention function that shows every layer's q, k, v to `look` on the way."""

    NAME = "sale_calibration"

    def __init__(self, look) -> None:
        self.look = look

    def __call__(self, module, query, key, value, attention_mask, **keywords):
        self.look(module.layer_idx, query, key, value, keywords.get("scaling"))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **keywords)

    @torch.no_grad()
    def run(self, model, ids) -> None:
        before = model.config._attn_implementation
        AttentionInterface.register(self.NAME, self)
        AttentionMaskInterface.register(self.NAME, sdpa_mask)
        model.set_attn_implementation(self.NAME)
        try:
            model(ids, use_cache=False, logits_to_keep=1)
        finally:
            model.set_attn_implementation(before)


def _prompts(tokenizer, words: str, tokens: int, count: int, seed: int) -> list[tuple[str, torch.Tensor]]:
    """What each is, and its ids [1, tokens or a little less]: of the text windows, facts hidden in it, and key-value
    pairs in turn; of nothing pairs alone. Facts are asked for and answered at the end, so that the rows where retrieval
    happens are in the prompt."""
    ids = lambda text, **how: tokenizer(text, return_tensors="pt", **how).input_ids  # noqa: E731
    kinds = ("text", "needle", "kv") if words else ("kv",)
    made, whole = [], None
    for i in range(count):
        kind = kinds[i % len(kinds)]
        if kind == "text":
            whole = ids(words) if whole is None else whole
            if whole.shape[1] < tokens:
                raise ValueError(f"text: has {whole.shape[1]} tokens; tokens asks for {tokens}")
            windows = (count + len(kinds) - 1) // len(kinds)
            first = (whole.shape[1] - tokens) * (i // len(kinds)) // max(1, windows - 1)
            made.append((f"text from token {first}", whole[:, first : first + tokens]))
            continue
        prompt = make_prompt(tokenizer, words, kind, tokens - 256, seed=seed + i)
        parts = [ids(prompt.context)] + [ids(f.question + f.answer, add_special_tokens=False) for f in prompt.facts]
        made.append(("numbers hidden in text" if kind == "needle" else "JSON key-value pairs", torch.cat(parts, 1)[:, :tokens]))
    return made


def calibrate(
    model,
    tokenizer,
    path: str | os.PathLike | None = None,
    *,
    text: str | os.PathLike | None = None,
    tokens: int = 32768,
    prompts: int = 3,
    rank: int | None = None,
    budget: float = 0.05,
    error: float | None = None,
    rows: int = 48,
    seed: int = 1,
    local_heads: bool = False,
    smoothing: bool = False,
    progress: str | os.PathLike | None = None,
    report=None,
) -> Calibration:
    """Measures a model and returns its Calibration; with `path`, also writes it there. The model runs over the prompts
    three times: for projections, for errors at a ladder of thresholds, and to check what was chosen.

    text         a long text file: prompts are windows of it, facts hidden in it and JSON key-value pairs, in turn. None:
                 pairs only, which serve prose badly
    tokens       length of a prompt: the model's working length, since longer prompts than calibrated for lose more
    rank         coordinates scanned; default 64 (INT8), on Hopper 60 (FP8); the head dimension: all, no projection
    budget       relative L1 error allowed to the whole model, root mean square over heads
    error        instead: the largest relative L1 error of any head's output
    rows         sampled of every head and prompt
    local_heads  heads that lose no more than the budget by it see sink and local keys alone
    smoothing    also the layers' own smoothing vectors (and, on Hopper, scales), which codes in pages need
    progress     file by which an interrupted calibration goes on; removed in the end
    report       called with a sale.calibrator.State after every prompt

    ValueError: a rank that the format does not take, a text too short, prompts too short, a progress file of other work.
    """
    device = model.device
    d = dimensions_of(model.config)
    form = "fp8" if Options().format_on(ordinal_of(device)) == "fp8" else "int8"
    rank = min(d["head_dim"], 60 if form == "fp8" else 64) if rank is None else rank
    words = pathlib.Path(text).read_text() if text is not None else ""
    made = _prompts(tokenizer, words, tokens, prompts, seed)
    name = model.config._name_or_path
    folder = folder_of(name)
    goal = ("budget", budget) if error is None else ("error", error)
    calibrator = Calibrator(
        **d, goals=[goal], name=pathlib.Path(name).name if pathlib.Path(name).is_dir() else name,
        fingerprint=(model_fingerprint(folder) if folder else None), dtype=str(model.dtype).removeprefix("torch."),
        device=None if device.type == "cpu" else ordinal_of(device), format=form, rank=rank, prompts=prompts, rows=rows,
        seed=seed, local_heads=local_heads, smoothing=smoothing, progress=progress,
        command=f"sale.transformers.calibrate(tokens={tokens}, prompts={prompts}, rank={rank}, {goal[0]}={goal[1]}, "
                f"rows={rows}, seed={seed})",
    )  # fmt: skip

    watching = _Watching(lambda layer, q, k, v, scale: calibrator.feed(layer, q, k, v, scale=scale or 0.0))
    while (state := calibrator.state()).doing != "done":
        what, ids = made[state.prompt]
        calibrator.begin(what, ids.shape[1])
        watching.run(model, ids.to(device))
        calibrator.end()
        if report is not None:
            report(calibrator.state())
    result = calibrator.result()
    if path is not None:
        result.write(path)
    calibrator.forget()
    return result
