"""One model with several settings of its attention, side by side: answers, perplexity, density, error and time.

Every context runs in one prefill, its questions and their answers at its end, or with some text after them: an answer is
right when each of its tokens is the most likely one after those before it, which is what greedy decoding would write.

Sides are words:

    dense                 torch's attention (cuDNN's where there is one)
    none                  SALE without a calibration: threshold 0.004 for every head
    tau=0.016             SALE with that threshold for every head
    FILE.json             SALE with a calibration
    WORD+compensate       mean keys and values stand in for dropped blocks; WORD+sm80: on that backend
"""

from __future__ import annotations

import contextlib
import math
import pathlib
import time
from typing import NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import sale
import sale.transformers

from .._prompts import make_prompt
from .._transformers_options import attention_modules, dimensions_of, of_layer
from ..calibration import Calibration
from ..options import Options, dense_below_as_it_pays

TASKS = ("single", "numbers", "pairs", "perplexity", "time")
_MADE_OF = {"single": ("multikey", 1), "numbers": ("needle", 20), "pairs": ("kv", 20)}  # kind of sale._prompts, facts
_AUDITED = 64  # rows of every head and layer


class Side(NamedTuple):
    name: str
    options: list[Options] | None  # by layer; None: dense


def side_of(word: str, dimensions: dict) -> Side:
    """ValueError: a word that is none, or a calibration of another model."""
    if word == "dense":
        return Side(word, None)
    what, *marks = word.split("+")
    changes: dict = {}
    for mark in marks:
        if mark == "compensate":
            changes["compensate"] = True
        elif mark in sale.backends():
            changes["backend"] = mark
        else:
            raise ValueError(f"sides: {word!r}: {mark!r} is neither compensate nor a backend")
    layers = range(dimensions["layers"])
    if what == "none" or what.startswith("tau="):
        of_all = Options() if what == "none" else Options(thresholds=float(what[4:]))
        return Side(word, [of_all.replace(**changes) for _ in layers])
    calibration = Calibration.read(what)
    calibration.check(**dimensions)
    name = "+".join([pathlib.Path(what).stem, *marks])
    return Side(name, [of_layer(calibration, layer).replace(**changes) for layer in layers])


class Exam(NamedTuple):
    task: str
    ids: torch.Tensor  # [1, tokens]
    answers: list[tuple[int, list[int]]]  # where each begins, and its tokens


def exam(tokenizer, text: str, task: str, tokens: int, *, after: int = 0, seed: int = 1) -> Exam:
    """A context of at most `tokens` tokens with questions and answers, and the last `after` tokens of text behind them.
    Shorter contexts than 5,120 tokens ask for less than 20 facts."""
    ids = lambda words, **how: tokenizer(words, **how).input_ids  # noqa: E731
    kind, most = _MADE_OF[task]
    facts = max(1, min(most, (tokens - after) // 256))
    prompt = make_prompt(tokenizer, text, kind, tokens - after - 64 * facts, facts=facts, seed=seed)
    whole, answers = ids(prompt.context), []
    for f in prompt.facts:
        whole += ids(f.question, add_special_tokens=False)
        answer = ids(f.answer, add_special_tokens=False)
        answers.append((len(whole), answer))
        whole += answer
    if after:
        tail = ids(text[-8 * after :], add_special_tokens=False)
        if len(tail) < after:
            raise ValueError(f"text: is too short for {after} tokens after the questions")
        whole += tail[-after:]
    if len(whole) > tokens:
        raise ValueError(f"tokens: {tokens} are too few for {facts} questions of {task}")
    return Exam(task, torch.tensor([whole]), answers)


class Sides:
    """A model whose attention is one side's at a time."""

    NAME = "sale_eval"

    def __init__(self, model, tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.dimensions = dimensions_of(model.config)
        self._side = Side("dense", None)
        self._look = None  # called with what a layer's attention takes and how to run it
        self._cuda = model.device.type == "cuda"
        AttentionInterface.register(self.NAME, self)

    def __call__(self, module, query, key, value, attention_mask, **keywords):
        function = sdpa_attention_forward if self._side.options is None else sale.transformers.attention
        run = lambda: function(module, query, key, value, attention_mask, **keywords)  # noqa: E731
        return run() if self._look is None else self._look(module, query, key, value, keywords.get("scaling"), run)

    @contextlib.contextmanager
    def _as(self, side: Side, look=None):
        before = self.model.config._attn_implementation
        self._side, self._look = side, look
        AttentionMaskInterface.register(self.NAME, sdpa_mask if side.options is None else sale.transformers.mask)
        if side.options is not None:
            sale.transformers.use(self.model, options=side.options[0])
            for module in attention_modules(self.model):
                module._sale_options = side.options[module.layer_idx]
        self.model.set_attn_implementation(self.NAME)
        try:
            with torch.no_grad(), _dense_kernels(self._cuda and side.options is None):
                yield
        finally:
            self.model.set_attn_implementation(before)
            self._look = None

    def _logits(self, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ids = ids.to(self.model.device)
        return self.model(ids, use_cache=False, logits_to_keep=rows.to(self.model.device)).logits[0]

    def right(self, side: Side, exam: Exam) -> int:
        """Answers of the exam that are right."""
        rows = torch.tensor([at - 1 + i for at, answer in exam.answers for i in range(len(answer))])
        with self._as(side):
            likeliest = self._logits(exam.ids, rows).argmax(-1).tolist()
        count = 0
        for _, answer in exam.answers:
            said, likeliest = likeliest[: len(answer)], likeliest[len(answer) :]
            count += self._equal(said, answer)
        return count

    def _equal(self, said: list[int], answer: list[int]) -> bool:
        for i, token in enumerate(said):
            if token != answer[i]:  # one token may hold the rest of the answer and what comes after it
                return self.tokenizer.decode([token]).startswith(self.tokenizer.decode(answer[i:]))
        return True

    def loss(self, side: Side, ids: torch.Tensor) -> float:
        """Mean of -log p over the second half of the window."""
        tokens = ids.shape[1]
        rows = torch.arange(tokens // 2, tokens - 1)
        with self._as(side):
            logits = self._logits(ids, rows)
        targets = ids[0, rows + 1].to(logits.device)
        total = sum(
            torch.nn.functional.cross_entropy(a.float(), b, reduction="sum").item()
            for a, b in zip(logits.split(1024), targets.split(1024))
        )
        return total / len(rows)

    def statistics(self, side: Side, ids: torch.Tensor) -> dict:
        """Density, relative L1 error of the outputs (mean over heads, worst head), and both by layer and head; of a dense
        side nothing."""
        if side.options is None:
            return {"density": 1.0, "error": 0.0, "worst": 0.0}
        kept, errors = {}, {}

        def look(module, query, key, value, scale, run):
            options = side.options[module.layer_idx].replace(audit=_AUDITED)
            out, stats = sale.attention(query, key, value, options=options, scale=scale, return_stats=True)
            kept[module.layer_idx] = stats.heads[0]
            errors[module.layer_idx] = stats.relative_l1[0]
            return out.transpose(1, 2), None

        with self._as(side, look):
            self._logits(ids, torch.tensor([ids.shape[1] - 1]))
        heads = [kept[layer] for layer in sorted(kept)]
        error = [errors[layer].tolist() for layer in sorted(errors)]
        blocks = sum(h.sum(0) for h in heads)
        flat = [e for layer in error for e in layer]
        return {"density": float(blocks[0] / blocks[1]), "error": sum(flat) / len(flat), "worst": max(flat),
                "densities": [(h[:, 0] / h[:, 1]).round(4).tolist() for h in heads],
                "errors": [[round(e, 4) for e in layer] for layer in error]}  # fmt: skip

    def times(self, side: Side, ids: torch.Tensor, repeats: int = 5) -> dict:
        """Seconds of a prefill up to its first token, and of attention in it, selection included: the least of `repeats`
        each, in runs of their own, since looking at attention takes time too."""
        ids = ids.to(self.model.device)
        marks = []

        def look(module, query, key, value, scale, run):
            start = self._mark()
            out = run()
            marks.append((start, self._mark()))
            return out

        def prefill() -> float:
            self._wait()
            start = time.perf_counter()
            self.model(ids, logits_to_keep=1).logits.argmax().item()
            return time.perf_counter() - start

        with self._as(side):
            whole = min([prefill() for _ in range(repeats + 1)][1:])
        attention = []
        with self._as(side, look):
            for _ in range(repeats):
                marks.clear()
                prefill()
                self._wait()
                attention.append(sum(self._seconds(a, b) for a, b in marks))
        return {"first_token_s": whole, "attention_s": min(attention)}

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def _mark(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, a, b) -> float:
        return a.elapsed_time(b) / 1000 if self._cuda else b - a


def _dense_kernels(on: bool):
    if not on:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], set_priority=True)


def _window(tokenizer, text: str, tokens: int, share: float) -> torch.Tensor:
    """A window of the text that begins at a share of it."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    if ids.shape[1] < tokens:
        raise ValueError(f"texts: one of {ids.shape[1]} tokens; {tokens} are needed")
    at = int((ids.shape[1] - tokens) * share)
    return ids[:, at : at + tokens]


def compare(model: tuple, words: list[str], *, tokens: int, tasks=TASKS, text: str = "", texts: dict[str, str] | None = None,
            contexts: int = 1, singles: int = 8, after=(0, 1024), windows: int = 2, repeats: int = 5,
            report=None) -> list[dict]:  # fmt: skip
    """One row for each side, with what the tasks found. text: facts are hidden in it; texts: by name, what perplexity,
    density and error are measured on. contexts: of numbers and pairs, 20 questions each; singles: of one question each.
    after: tokens of text after the questions, each a column."""
    if unknown := set(tasks) - set(TASKS):
        raise ValueError(f"tasks: {min(unknown)!r} is not one of {', '.join(TASKS)}")
    network, tokenizer = model
    sides = Sides(network, tokenizer)
    asked = [t for t in tasks if t in _MADE_OF]
    exams = {
        (task, behind): [exam(tokenizer, text, task, tokens, after=behind, seed=1 + i)
                         for i in range(singles if task == "single" else contexts)]
        for task in asked for behind in after
    }  # fmt: skip
    pieces = {name: [_window(tokenizer, t, tokens, (w + 0.5) / windows) for w in range(windows)] for name, t in (texts or {}).items()}
    rows = []
    for word in words:
        side = side_of(word, sides.dimensions)
        row: dict = {"side": side.name, "tokens": tokens}
        if "time" in tasks and pieces:
            row |= sides.times(side, next(iter(pieces.values()))[0], repeats)
        if "perplexity" in tasks:
            row["perplexity"] = {n: math.exp(sum(sides.loss(side, w) for w in ws) / len(ws)) for n, ws in pieces.items()}
            row["statistics"] = {n: sides.statistics(side, ws[0]) for n, ws in pieces.items()}
        row["answers"] = [
            {"task": task, "after": behind, "right": sum(sides.right(side, e) for e in of), "of": sum(len(e.answers) for e in of)}
            for (task, behind), of in exams.items()
        ]
        rows.append(row)
        if report is not None:
            report(row)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: a table for each length, the first side what others are compared with."""
    parts = []
    for tokens in dict.fromkeys(r["tokens"] for r in rows):
        of = [r for r in rows if r["tokens"] == tokens]
        parts.append("\n".join(_lines(of, tokens)))
    return "\n\n".join(parts)


def _lines(of: list[dict], tokens: int) -> list[str]:
    first = of[0]
    names = list(first.get("perplexity", {}))
    columns = sorted({a["after"] for a in first["answers"]})
    asked = ", ".join(dict.fromkeys(a["task"] for a in first["answers"]))
    head = [f"{tokens} tokens"]
    head += [f"{n}: density, error (worst head), perplexity" for n in names]
    head += [f"{asked}" + (f"; {n} tokens after" if n else "") for n in columns]
    head += ["attention", "first token"] * ("attention_s" in first)
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for r in of:
        cells = [r["side"]]
        for n in names:
            s, p, base = r["statistics"][n], r["perplexity"][n], first["perplexity"][n]
            change = f"{p:.3f}" if r is first else f"{100 * (p / base - 1):+.2f} %"
            cells.append(f"{100 * s['density']:.1f} %, {100 * s['error']:.1f} % ({100 * s['worst']:.0f} %), {change}")
        for n in columns:
            cells.append(" ".join(f"{a['right']}/{a['of']}" for a in r["answers"] if a["after"] == n))
        if "attention_s" in first:
            for what in ("attention_s", "first_token_s"):
                cells.append(f"{1000 * r[what]:.1f} ms, {first[what] / r[what]:.2f}×")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
