"""One model in one process: what its layers run with, the memory that is set aside, and whether we run at all.

A session is idle (the engine's own attention does everything; the log says why, once), measuring (the same, and prompts
are shown to a calibrator) or sparse. Whatever goes wrong makes it idle: an engine goes on without us.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .. import _c
from .._estimator import Estimator, Heads
from .._torch import _DTYPES, ordinal_of
from .._transformers_options import find_calibration, folder_of, model_fingerprint, of_layer
from ..calibration import Calibration
from ..options import Options
from . import steps
from .batch import Row, chosen
from .guard import Guard
from .measure import Measuring
from .metrics import METRICS
from .pages import Pages, page_bytes
from .settings import AUTO, FOUND, OFF, Settings

IDLE, MEASURING, SPARSE = "idle", "measuring", "sparse"


class Model(NamedTuple):
    """All of it, not this process's part. name: as the engine was given it, a folder or a hub's name."""

    name: str
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int


class Share(NamedTuple):
    """This process's part in tensor parallelism, and how many parts layers are in (pipeline parallelism)."""

    rank: int = 0
    of: int = 1
    stages: int = 1


def shelf(name: str, form: str) -> pathlib.Path:
    """Where a calibration that was measured goes, and find_calibration looks."""
    folder = os.environ.get("SALE_CALIBRATIONS")
    made = pathlib.Path(folder) if folder else pathlib.Path.home() / ".cache/sale/calibrations"
    return made / f"{name.strip('/').replace('/', '--')}{'-fp8' if form == 'fp8' else ''}.json"


class Step(NamedTuple):
    """What a session does of one step of the engine's: its rows, and a plan once the first layer was seen."""

    rows: list[Row]
    held: dict  # "plan", "table", "codes": made where the first layer is run
    whole: bool = False  # all of the rows or none

    @property
    def tokens(self) -> int:
        return sum(r.tokens for r in self.rows)


class Session:
    """log: a function that takes one line. tokens, keys: the longest chunk and the longest sequence there will be."""

    def __init__(
        self, model: Model, share: Share, dtype: torch.dtype, device: torch.device, scale: float, *,
        tokens: int, keys: int, settings: Settings, log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.model, self.share, self.settings = model, share, settings
        self.device, self.scale = device, scale
        self._log = log
        self._told: set[str] = set()
        self._most = (tokens, keys)
        self._estimators: dict[int, Estimator] = {}
        self._every: list[Estimator] | None = None  # of them, for plans
        self._drafts = steps.Drafts()
        self._layers: dict[int, str] = {}  # whose number it is
        self._memory: torch.Tensor | None = None
        self._prepared: object = None  # the plan whose tables are in the memory
        self._codes: dict[tuple[int, ...], Pages | None] = {}  # by the layers whose keys they are of
        self._aside: torch.Tensor | None = None  # memory that codes will take
        self._steps = 0
        self.calibration: Calibration | None = None
        self.measuring: Measuring | None = None
        self.guard = Guard(settings)
        self.state = IDLE
        self.dense_below = 0
        if dtype not in _DTYPES:
            return self.stop(f"attention in {dtype} is not supported")
        if model.head_dim % 16 or not 16 <= model.head_dim <= 256:
            return self.stop(f"heads of {model.head_dim} coordinates are not supported")
        self.heads = Heads(max(1, model.q_heads // share.of), max(1, model.kv_heads // share.of), model.head_dim,
                           _DTYPES[dtype], ordinal_of(device))  # fmt: skip
        with self.guarded():
            self._begin()

    # ---- states --------------------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """Once."""
        if line not in self._told:
            self._told.add(line)
            self._log(f"sale: {line}")

    def stop(self, why: str) -> None:
        """The engine goes on without us."""
        self.state = IDLE
        if self.measuring is not None:
            self.measuring.drop()
        self.measuring = self._memory = self._prepared = None
        self._estimators, self._every = {}, None
        self._codes, self._aside = {}, None
        METRICS.state(IDLE)
        self.say(f"{why}; the engine's own attention runs")

    @contextlib.contextmanager
    def guarded(self):
        """Errors of the library, and memory that is not there, stop the session; others are faults and are seen."""
        try:
            yield
        except (ValueError, NotImplementedError, MemoryError, _c.InternalError, torch.OutOfMemoryError, OSError) as e:
            self.stop(str(e).partition("\n")[0] or type(e).__name__)

    def _begin(self) -> None:
        said, model = self.settings.calibration, self.model
        form = Options().format_on(self.heads.device)
        if said == OFF:
            self.dense_below = Options().dense_below_on(self.heads.device)
            self.state = SPARSE
            self.say("no calibration is used (SALE_CALIBRATION=off): every head runs with threshold 0.004")
        else:
            file = find_calibration(model.name, form) if said in (FOUND, AUTO) else pathlib.Path(said)
            if file is not None:
                self._use(Calibration.read(file), str(file))
            elif said == AUTO:
                self._measure(form)
            else:
                self.say(
                    f"no calibration was found for {model.name}; the engine's own attention runs. "
                    "SALE_CALIBRATION=auto makes one from the first long prompts, SALE_CALIBRATION=FILE names one, "
                    "SALE_CALIBRATION=off does without"
                )
        METRICS.state(self.state)

    def _use(self, calibration: Calibration, where: str) -> None:
        model, folder = self.model, folder_of(self.model.name)
        calibration.check(layers=model.layers, q_heads=model.q_heads, kv_heads=model.kv_heads, head_dim=model.head_dim,
                          fingerprint=model_fingerprint(folder) if folder else None)  # fmt: skip
        self.calibration = calibration
        self.dense_below = of_layer(calibration, 0).dense_below_on(self.heads.device)
        self.state = SPARSE
        error = calibration.error
        self.say(f"calibration {where}: density {error['density']:.1%} at relative error {error['relative_l1']:.1%} where "
                 f"it was made; prompts of {self.dense_below} tokens and more are sparse")  # fmt: skip

    def _measure(self, form: str) -> None:
        if self.share.of > 1 or self.share.stages > 1:
            raise NotImplementedError(
                "SALE_CALIBRATION=auto needs all heads and layers in one process; calibrate with one GPU, or with "
                "sale.transformers.calibrate, and name the file"
            )
        tokens = min(self.settings.tokens, self._most[1])
        self.measuring = Measuring(self.model, self.heads, form, tokens, self.settings, self._measured, self.say)
        self.state = MEASURING
        self.say(f"no calibration was found for {self.model.name}: one is made from prompts of {tokens} tokens and "
                 f"more, {self.measuring.needed} of them, which run densely")  # fmt: skip

    def _measured(self, calibration: Calibration) -> None:
        """Of the measuring: what was found."""
        self.measuring = None
        file = shelf(self.model.name, calibration.format)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            calibration.write(file)
            where = str(file)
        except (OSError, ValueError) as e:
            where = f"that was measured (not kept: {e})"
        self._use(calibration, where)
        self.reserve()
        METRICS.state(self.state)

    # ---- layers --------------------------------------------------------------------------------------------------

    def claims(self, layer: int, name: str) -> bool:
        """Whether this layer's number is its own: of a draft beside the model another one has it already."""
        return 0 <= layer < self.model.layers and self._layers.setdefault(layer, name) == name

    def estimator(self, layer: int) -> Estimator:
        """Made once: belongs where weights are loaded."""
        found = self._estimators.get(layer)
        if found is None:
            options = Options() if self.calibration is None else of_layer(self.calibration, layer)
            options = self.guard.applied(layer, options, self.model.q_heads)
            if self.share.of > 1:
                count, group = self.heads.q_heads, self.model.q_heads // self.model.kv_heads
                options = options.heads(self.share.rank * count, count, group)
            found = self._estimators[layer] = Estimator(options, self.heads)
            self._every = None
        return found

    # ---- memory --------------------------------------------------------------------------------------------------

    def reserve(self, layers: Sequence[int] = ()) -> None:
        """Estimators of these layers, and the workspace of the longest chunk of the longest sequence: called while the
        engine measures what memory its model takes, and before it sizes its cache."""
        if self.state != SPARSE:
            return
        with self.guarded():
            for layer in layers:
                self.estimator(layer)
            if not self._estimators:
                return
            layout = steps.longest_layout(self.heads, self.scale, *self._most)
            audit = self.settings.audit_rows if self.settings.audit_every else 0
            estimators = list(self._estimators.values())
            paged = all(page_bytes(e, layout.page_size) for e in estimators)
            plan = steps.Plan(steps.Drafts(), layout, estimators, audit, 0, _c.PAGES if paged else _c.OF_CALL)
            if self._memory is None or self._memory.numel() < plan.workspace:
                self._memory = self._prepared = None
                self._memory = memory(plan.workspace, self.device)

    def set_aside(self, room: int) -> None:
        """The same for the codes beside the cache: their part of the bytes that the engine is about to give it."""
        if self.state != SPARSE or self._aside is not None or self._codes or not self._estimators:
            return
        heads = self.heads
        share = page_bytes(next(iter(self._estimators.values())), 32) / (
            32 * heads.kv_heads * 2 * heads.head_dim * (4 if heads.dtype == _c.F32 else 2)
        )
        with contextlib.suppress(MemoryError, torch.OutOfMemoryError):  # `codes` says so, when it has none either
            self._aside = memory(int(max(0, room) * share / (1 + share)), self.device)

    def codes(self, layers: tuple[int, ...], cache: torch.Tensor) -> Pages | None:
        """Pages of codes of the layers whose keys go to the same slots of caches like this one, [pages, page_size, ..];
        made at the first step. None where every call has to code its keys anew, which is said once."""
        pages, size = cache.shape[:2]
        found = self._codes.get(layers)
        if layers in self._codes and (found is None or found.key == (pages, size)):
            return found
        self._codes[layers] = self._aside = None
        estimators = {layer: self.estimator(layer) for layer in layers}
        why = ""
        if size % _c.K_BLOCK:
            why = f"pages of {size} tokens are no multiple of {_c.K_BLOCK}"
        elif not all(page_bytes(e, size) for e in estimators.values()):
            why = "the calibration has no smoothing vectors (sale calibrate --smoothing)"
        else:
            try:
                found = self._codes[layers] = Pages(estimators, pages, size, self.device)
                METRICS.coding(found)
                return found
            except (MemoryError, torch.OutOfMemoryError):
                why = "there is no memory for codes beside the cache"
        self.say(f"{why}: keys are coded anew by every call")
        return None

    def written(self, layers: tuple[int, ...], slots: torch.Tensor) -> None:
        """Keys of these layers are about to be written, by whomever."""
        codes = self._codes.get(layers)
        if codes is not None:
            with self.guarded():
                codes.forget(slots, torch.cuda.current_stream(self.device).cuda_stream if slots.is_cuda else None)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def step(self, rows: Sequence[Row], every: Sequence[Row] | None = None) -> Step | None:
        """rows: those of prompts (batch.rows_of). None: nothing in this step is ours. every: all rows of the step, of
        an engine that cannot do a part of a step: then all are ours where one is, short ones densely."""
        if self.state != SPARSE:
            return None
        ours = chosen(rows, self.dense_below)
        if not ours:
            return None
        return Step(ours, {}) if every is None else Step(list(every), {}, True)

    def _plan(self, rows: list[Row], whole: bool, paged: bool, q, k, v, table, out) -> steps.Plan | None:
        """For as many of the rows as there is memory for; those left over are taken out of the list."""
        every = self.settings.audit_every
        self._steps += 1
        audit = self.settings.audit_rows if every and self._steps % every == 0 else 0
        if self._every is None:
            self._every = list(self._estimators.values())
        while rows:
            layout = steps.layout_of(rows, self.heads, self.scale, q, k, v, table, out)
            source = _c.PAGES if paged else _c.OF_CALL
            plan = steps.Plan(self._drafts, layout, self._every, audit, self._steps, source)
            if self._memory is not None and plan.workspace <= self._memory.numel():
                return plan
            del rows[0 if whole else -1 :]
        return None

    def begin(self, step: Step, layer: int, q, k, v, table, out, layers: tuple[int, ...] = ()) -> bool:
        """Before the first layer of a step that this layer's cache belongs to: whether its rows are done by us. Rows
        for which there is no memory are dropped from step.rows. layers: those whose writes are told to `written`, this
        one among them; none: nothing is told, and keys are coded anew by every call."""
        if self.state != SPARSE:
            return False
        with self.guarded():
            self.estimator(layer)
            if self._memory is None:
                self.reserve()
            before = len(step.rows)
            codes = step.held["codes"] = self.codes(layers, k) if layers else None
            plan = self._plan(step.rows, step.whole, codes is not None, q, k, v, checked(table), out)
            if len(step.rows) < before:
                self.say(f"{before - len(step.rows)} of {before} prompts of a step were left to the engine: there was "
                         "no memory set aside for them all at once")  # fmt: skip
            if plan is None:
                return False
            step.held["plan"] = plan
            step.held["table"] = steps.table_of(step.rows, table)
            METRICS.step(step.tokens, 0 if codes else sum(r.keys for r in step.rows))
            return True
        return False

    def run(self, step: Step, layer: int, q, k, v, out, scales: tuple | None = None) -> bool:
        """Attention of the step's rows: q and out [tokens, q_heads, head_dim], k and v [pages, page_size, kv_heads,
        head_dim] as they lie in the cache. scales: where these are float8_e4m3fn, what keys and what values are
        multiplied by, float32 [kv_heads] each. False: out is untouched, and the engine has to do it."""
        if self.state != SPARSE:
            return False
        plan: steps.Plan = step.held["plan"]
        with self.guarded():
            estimator = self.estimator(layer)
            stream = torch.cuda.current_stream(self.device).cuda_stream if q.is_cuda else None
            workspace = self._memory.data_ptr()
            if self._prepared is not plan:
                plan.prepare(workspace, stream)
                self._prepared = plan
            codes = step.held["codes"]
            found = plan.run(estimator, q, k, v, step.held["table"], out, workspace, stream,
                             codes and codes.of(layer), scales)  # fmt: skip
            if found is not None:
                self._audited(layer, found)
            return True
        return False

    def _audited(self, layer: int, found: steps.Found) -> None:
        METRICS.audited(layer, found)
        first = self.share.rank * self.heads.q_heads
        gone = self.guard.judge(layer, found, first)
        if gone:
            METRICS.gone(len(gone))
            self._estimators.pop(layer, None)
            self.estimator(layer)
            heads = ", ".join(map(str, gone))
            self._log(f"sale: layer {layer}: heads {heads} lost more than {self.settings.audit_limit:.0%} of their output "
                      "in two audits running, and are dense from now on")  # fmt: skip


def memory(size: int, device: torch.device) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def checked(table: torch.Tensor) -> torch.Tensor:
    if table.dtype != torch.int32 or table.dim() != 2:
        raise ValueError(f"page table: of type {table.dtype} and {table.dim()} axes; int32 [requests, pages] is needed")
    return table
