"""Making calibrations: the library's calibrator (include/sale/calibration.h), shown a model's attention by whoever runs it.

    made = Calibrator(layers=32, q_heads=32, kv_heads=8, head_dim=128, dtype="bfloat16", goals=[("budget", 0.05)])
    while (state := made.state()).doing != "done":
        made.begin("a book", tokens)
        ...                          # every layer of the model: dense attention, and made.feed(layer, q, k, v)
        made.end()
    made.result().write("calibration.json")
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import NamedTuple

from . import _c
from . import _calibration_c as _cc
from ._arguments import INT32, INT64, UINT64, described, flag, integer, number, path, word
from ._arguments import text as text_of
from ._tensors import api_of
from .calibration import Calibration, _floats, _hexadecimal, _pointer

_DTYPES = {"float32": _c.F32, "float16": _c.F16, "bfloat16": _c.BF16}


class State(NamedTuple):
    """Where a calibrator is: what it is doing ("project", "measure", "check", "done"), prompts of that pass that are
    finished, of how many, the share of all the work, and how many prompts were found in the progress file."""

    doing: str
    prompt: int
    prompts: int
    done: float
    resumed: int


def _goals(goals) -> ctypes.Array:
    if not isinstance(goals, (list, tuple)) or not all(isinstance(g, (list, tuple)) and len(g) == 2 for g in goals):
        raise TypeError(f"goals: {described(goals)}; a list of pairs of a word and a number is needed")
    made = [_cc.Goal(_cc.GOALS[word("goals", kind, tuple(_cc.GOALS))], number("goals", value)) for kind, value in goals]
    return (_cc.Goal * len(made))(*made)


def _projections(projections, shape: tuple[int, ...]):
    if not isinstance(projections, (list, tuple)) or len(projections) != 2:
        raise TypeError(f"projections: {described(projections)}; a pair of arrays is needed")
    return [_floats("projections", p, *shape) for p in projections]


class Calibrator:
    """Finds thresholds for a model's heads, and projections where `rank` is below the head dimension.

    goals        pairs of a word and a number: "budget", "error", "time" or "paper", see sale_goal_kind
    dtype        of the tensors that are fed; device: where index and selection are computed, a CUDA ordinal or None
    projections  (q, k), [layers, kv_heads, head_dim, rank] each, made before
    prompts      of each pass; rows: sampled of every head and prompt
    smoothing    also the layers' own smoothing vectors ("fp8": and scales), which codes in pages need
    compensate   errors are those of compensated attention, as the thresholds are then to be used
    progress     file by which interrupted work goes on

    Copying and pickling are refused. ValueError names what is wrong; NotImplementedError: nothing here can run it.
    """

    def __init__(
        self, *, layers: int, q_heads: int, kv_heads: int, head_dim: int, goals: Sequence[tuple[str, float]],
        name: str = "", fingerprint: str | None = None, dtype: str = "bfloat16", device: int | None = None,
        backend: str | None = None, threads: int = 0, format: str = "int8", rank: int = 0, projections=None,
        prompts: int = 1, rows: int = 48, seed: int = 1, local_heads: bool = False,
        smoothing: bool = False, compensate: bool = False, progress: str | os.PathLike | None = None, command: str = "", date: str | None = None, note: str = "",
    ) -> None:  # fmt: skip
        word("dtype", dtype, tuple(_DTYPES)), word("format", format, tuple(_c.FORMATS)), text_of("name", name)
        sizes = {"layers": layers, "q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim}
        model = _cc.Model(
            ctypes.sizeof(_cc.Model), name.encode(), *(integer(n, x, 1, INT32) for n, x in sizes.items()),
            0 if fingerprint is None else _hexadecimal(fingerprint),
        )  # fmt: skip
        integer("rank", rank, 0, head_dim)
        wanted = _goals(goals)
        texts = {"command": command, "note": note, "backend": backend, "date": date}
        given = {name: text_of(name, x).encode() for name, x in texts.items() if x is not None or name in ("command", "note")}
        q, k = (None, None) if projections is None else _projections(projections, (layers, kv_heads, head_dim, rank))
        options = _cc.CalibratorOptions(
            struct_size=ctypes.sizeof(_cc.CalibratorOptions), model=ctypes.pointer(model), dtype=_DTYPES[dtype],
            device=_c.HOST if device is None else integer("device", device, 0, INT32),
            threads=integer("threads", threads, 0, INT32), format=_c.FORMATS[format], rank=rank, q_projections=_pointer(q),
            k_projections=_pointer(k), goals=wanted, n_goals=len(wanted), prompts=integer("prompts", prompts, 1, INT32),
            rows=integer("rows", rows, 1, INT32), seed=integer("seed", seed, 0, UINT64),
            local_heads=flag("local_heads", local_heads),
            smoothing=flag("smoothing", smoothing), compensate=flag("compensate", compensate),
            progress=None if progress is None else os.fsencode(path("progress", progress)), **given,
        )  # fmt: skip
        self._dtype, self._shape, self._made = _DTYPES[dtype], (q_heads, kv_heads, head_dim), None
        self._made = _c.created(_c.lib.sale_calibrator_create, ctypes.byref(options))

    def __del__(self) -> None:
        if getattr(self, "_made", None) is not None:
            _c.lib.sale_calibrator_destroy(self._made)

    def __reduce_ex__(self, protocol):
        """Of copies and pickles, which would share or lose what was measured."""
        raise TypeError("a Calibrator can be neither copied nor pickled; let progress=FILE carry its work")

    def state(self) -> State:
        s = _cc.CalibratorState(struct_size=ctypes.sizeof(_cc.CalibratorState))
        _c.check(_c.lib.sale_calibrator_get(self._made, ctypes.byref(s)))
        return State(_cc.PASSES[s.pass_], s.prompt, s.prompts, s.done, s.resumed)

    def begin(self, text: str, tokens: int, asking: Sequence[int] = ()) -> None:
        """A prompt; `text` says what it is, for the file. asking: tokens from which answers are read, ascending; errors
        there are taken by themselves (sale_calibrator_asks)."""
        what = text_of("text", text).encode()
        if not isinstance(asking, (list, tuple, range)):
            raise TypeError(f"asking: {described(asking)}; a list of numbers of tokens is needed")
        rows = (ctypes.c_int64 * len(asking))(*(integer("asking", row, 0, INT64) for row in asking))
        _c.check(_c.lib.sale_calibrator_begin(self._made, what, integer("tokens", tokens, 1, INT64)))
        try:
            _c.check(_c.lib.sale_calibrator_asks(self._made, rows, len(rows)))
        except Exception:
            self.cancel()
            raise

    def feed(self, layer: int, q, k, v, *, scale: float = 0.0) -> None:
        """Causal attention of one layer: q [1, q_heads, rows, head_dim], k and v [1, kv_heads, keys, head_dim], the rows
        at the end of the keys: the whole prompt, or its parts one after the other. On a device this waits for the
        current stream."""
        fed = _cc.CalibratorLayer(
            struct_size=ctypes.sizeof(_cc.CalibratorLayer), layer=integer("layer", layer, 0, INT32), scale=number("scale", scale)
        )
        views = {}
        for name, x in (("q", q), ("k", k), ("v", v)):
            view = views[name] = api_of(name, x).view(name, x)
            if len(view.shape) != 4 or view.shape[0] != 1 or view.strides[3] != 1:
                raise ValueError(f"{name}: of shape {list(view.shape)}; [1, heads, tokens, head_dim] is needed, the last contiguous")
            if view.dtype != self._dtype:
                raise TypeError(f"{name}: of another type than the calibrator's")
            setattr(fed, name, view.data)
            setattr(fed, f"{name}_strides", _c.Strides(*view.strides[:3]))
        q_view, k_view, v_view = views.values()
        if v_view.shape != k_view.shape or len({x.device for x in views.values()}) > 1:
            raise ValueError(f"v: of shape {list(v_view.shape)}, k of {list(k_view.shape)}; equal ones on one device are needed")
        self._check_heads(q_view.shape, k_view.shape)
        fed.device, fed.q_len, fed.k_len = q_view.device, q_view.shape[2], k_view.shape[2]
        if q_view.device != _c.HOST:
            import torch

            torch.cuda.current_stream(q.device).synchronize()
        _c.check(_c.lib.sale_calibrator_feed(self._made, ctypes.byref(fed)))

    def _check_heads(self, q: tuple, k: tuple) -> None:
        for name, shape, heads in (("q", q, self._shape[0]), ("k", k, self._shape[1])):
            if (shape[1], shape[3]) != (heads, self._shape[2]):
                raise ValueError(f"{name}: of shape {list(shape)}; [1, {heads}, tokens, {self._shape[2]}] is needed")

    def end(self) -> None:
        """Every layer was fed."""
        _c.check(_c.lib.sale_calibrator_end(self._made))

    def cancel(self) -> None:
        """Forgets the prompt begun."""
        _c.check(_c.lib.sale_calibrator_cancel(self._made))

    def result(self, goal: int = 0) -> Calibration:
        """What was found for a goal, when all is done."""
        handle = _c.created(lambda to: _c.lib.sale_calibrator_result(self._made, integer("goal", goal, 0, INT32), to))
        try:
            return Calibration._of(handle)
        finally:
            _c.lib.sale_calibration_close(handle)

    def forget(self) -> None:
        """Removes the progress file, once results are written."""
        _c.check(_c.lib.sale_calibrator_forget(self._made))
