"""Calibration of a transformers model in Python: the library's calibrator, shown the model's dense attention over
prompts of text, hidden facts and key-value pairs."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ._arguments import path as path_of
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


class _Prompt(NamedTuple):
    what: str
    ids: torch.Tensor  # [1, tokens]
    asking: list[int]  # tokens from which answers are read


def _asked(tokenizer, words: str, kind: str, what: str, tokens: int, seed: int) -> _Prompt:
    """A prompt with facts, and every one of them asked for and answered at its end."""
    ids = lambda text, **how: tokenizer(text, return_tensors="pt", **how).input_ids  # noqa: E731
    room = min(1536, tokens // 4)
    facts = max(1, min(16, room // 96))
    prompt = make_prompt(tokenizer, words, kind, tokens - room, facts=facts, seed=seed)
    parts, asking = [ids(prompt.context)], []
    length = parts[0].shape[1]
    for f in prompt.facts:
        question, answer = (ids(text, add_special_tokens=False) for text in (f.question, f.answer))
        if length + question.shape[1] + answer.shape[1] > tokens:
            break
        parts += [question, answer]
        length += question.shape[1]
        asking += range(length - 1, length - 1 + answer.shape[1])
        length += answer.shape[1]
    return _Prompt(what, torch.cat(parts, 1), asking)


def _prompts(tokenizer, words: list[str], tokens: int, count: int, seed: int) -> list[_Prompt]:
    """Of at most `tokens` tokens each: windows of the texts, facts hidden in them, and key-value pairs in turn; of no text
    pairs alone."""
    kinds = ("text", "needle", "kv") if words else ("kv",)
    windows = (count + len(kinds) - 1) // len(kinds)
    made, whole = [], {}
    for i in range(count):
        kind, turn = kinds[i % len(kinds)], i // len(kinds)
        at = turn % max(1, len(words))
        if kind == "text":
            if at not in whole:
                whole[at] = tokenizer(words[at], return_tensors="pt").input_ids
            spare = whole[at].shape[1] - tokens
            if spare < 0:
                raise ValueError(f"text: has {whole[at].shape[1]} tokens; tokens asks for {tokens}")
            of_this = (windows - at + len(words) - 1) // len(words)  # windows of this text, evenly spread
            first = spare * (turn // len(words)) // max(1, of_this - 1)
            made.append(_Prompt(f"text {at + 1} from token {first}", whole[at][:, first : first + tokens], []))
        elif kind == "needle":
            made.append(_asked(tokenizer, words[at], kind, f"numbers hidden in text {at + 1}", tokens, seed + i))
        else:
            made.append(_asked(tokenizer, "", kind, "JSON key-value pairs", tokens, seed + i))
    return made


def _texts(text) -> list[str]:
    if text is None:
        return []
    if not isinstance(text, (list, tuple)):
        text = [text]
    return [pathlib.Path(path_of("text", t)).read_text() for t in text]


def calibrate(
    model,
    tokenizer,
    path: str | os.PathLike | None = None,
    *,
    text: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    tokens: int = 32768,
    prompts: int = 3,
    rank: int | None = None,
    budget: float = 0.05,
    error: float | None = None,
    goals: Sequence[tuple[str, float]] | None = None,
    format: str | None = None,
    backend: str | None = None,
    rows: int = 48,
    seed: int = 1,
    local_heads: bool = False,
    smoothing: bool = False,
    answers: bool = True,
    compensate: bool = False,
    progress: str | os.PathLike | None = None,
    report=None,
) -> Calibration | list[Calibration]:
    """Measures a model and returns its Calibration; with `path`, also writes it there. The model runs over the prompts
    three times: for projections, for errors at a ladder of thresholds, and to check what was chosen.

    text         long text files: prompts are windows of them, facts hidden in them and JSON key-value pairs, in turn.
                 None: pairs only, which serve prose badly. Facts and pairs are asked for and answered at a prompt's end
    tokens       length of a prompt: the model's working length, since longer prompts than calibrated for lose more
    rank         coordinates scanned; default 64 (INT8), on Hopper 60 (FP8); the head dimension: all, no projection
    budget       relative L1 error allowed to the whole model, root mean square over heads
    error        instead: the largest relative L1 error of any head's output
    goals        instead: several of them, pairs of a word and a number as in sale.calibrator.Calibrator, measured once.
                 Returned is a list then, and files are PATH_0.json, PATH_1.json, ...
    format       of the estimate: "fp8" on Hopper, else "int8"; on Hopper backend="sm80" makes "int8" and "int4" ones, as
                 CPUs and other GPUs need them
    rows         sampled of every head and prompt
    local_heads  heads that lose no more than the budget by it see sink and local keys alone
    smoothing    also the layers' own smoothing vectors (and, on Hopper, scales), which codes in pages need
    answers      errors where answers are read are measured by themselves; False: as any other rows near the end
    compensate   errors are those of compensated attention; give `use` the options with compensate=True then
    progress     file by which an interrupted calibration goes on; removed in the end
    report       called with a sale.calibrator.State after every prompt

    ValueError: a rank that the format does not take, a text too short, prompts too short, a progress file of other work.
    """
    device = model.device
    d = dimensions_of(model.config)
    form = format or ("fp8" if Options().format_on(ordinal_of(device)) == "fp8" else "int8")
    rank = min(d["head_dim"], 60 if form == "fp8" else 64) if rank is None else rank
    made = _prompts(tokenizer, _texts(text), tokens, prompts, seed)
    name = model.config._name_or_path
    folder = folder_of(name)
    wanted = list(goals) if goals is not None else [("budget", budget) if error is None else ("error", error)]
    calibrator = Calibrator(
        **d, goals=wanted, backend=backend, name=pathlib.Path(name).name if pathlib.Path(name).is_dir() else name,
        fingerprint=(model_fingerprint(folder) if folder else None), dtype=str(model.dtype).removeprefix("torch."),
        device=None if device.type == "cpu" else ordinal_of(device), format=form, rank=rank, prompts=prompts, rows=rows,
        seed=seed, local_heads=local_heads, smoothing=smoothing, compensate=compensate, progress=progress,
        command=f"sale.transformers.calibrate(tokens={tokens}, prompts={prompts}, rank={rank}, "
                f"goals={wanted}, rows={rows}, seed={seed}, answers={answers}, compensate={compensate})",
    )  # fmt: skip

    watching = _Watching(lambda layer, q, k, v, scale: calibrator.feed(layer, q, k, v, scale=scale or 0.0))
    while (state := calibrator.state()).doing != "done":
        prompt = made[state.prompt]
        calibrator.begin(prompt.what, prompt.ids.shape[1], prompt.asking if answers else [])
        watching.run(model, prompt.ids.to(device))
        calibrator.end()
        if report is not None:
            report(calibrator.state())
    results = [calibrator.result(i) for i in range(len(wanted))]
    if path is not None:
        path = pathlib.Path(path)
        for i, result in enumerate(results):
            result.write(path if goals is None else path.with_name(f"{path.stem}_{i}{path.suffix}"))
    calibrator.forget()
    return results[0] if goals is None else results
