"""Calibration files: a threshold per layer and head, and the projections they belong to.

The format, and who refuses what in them, is the library's: include/sale/calibration.h. Written by `sale calibrate` or
sale.transformers.calibrate.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re

import numpy as np

from . import _c
from . import _calibration_c as _cc
from ._arguments import INT32, INT64, described, instance, integer, number, numbers, path as path_of, text, word
from .options import Options

LOCAL = float(np.finfo(np.float32).max)  # the threshold of a head that sees its sink and local keys alone

_FORMATS = {number: name for name, number in _c.FORMATS.items()}


def fingerprint(*parts: bytes) -> int:
    """FNV-1a, 64 bits, over the parts one after the other."""
    value = _cc.FINGERPRINT_START
    for part in parts:
        value = _c.lib.sale_fingerprint(value, bytes(part), len(part))
    return value


def _array(pointer, *shape: int) -> np.ndarray | None:
    if not pointer:
        return None
    return np.ctypeslib.as_array(pointer, shape).copy()


def _pointer(array: np.ndarray | None):
    return None if array is None else array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def _floats(name: str, value, *shape: int) -> np.ndarray | None:
    if value is None:
        return None
    array = numbers(name, value)
    if array.shape != shape:
        raise ValueError(f"{name}: of shape {list(array.shape)}; {list(shape)} is needed")
    array.flags.writeable = False
    return array


def _hexadecimal(mark: str) -> int:
    """A fingerprint's number."""
    if not re.fullmatch("[0-9a-fA-F]{16}", text("fingerprint", mark)):
        raise ValueError(f"fingerprint: {described(mark)}; 16 hexadecimal digits are needed")
    return int(mark, 16)


def _provenance(said: dict) -> None:
    """TypeError, ValueError where a file has no room for it."""
    instance("provenance", said, dict, "a dict")
    if unknown := said.keys() - {"prompts", "command", "date", "note"}:
        raise ValueError(f"provenance: {described(min(unknown, key=str))} is not one of prompts, command, date, note")
    for name in ("command", "date", "note"):
        text(f"provenance[{name!r}]", said.get(name, ""))
    prompts = said.get("prompts", [])
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(p, dict) and p.keys() == {"text", "tokens"} for p in prompts):
        raise TypeError(f"provenance['prompts']: {described(prompts)}; a list of dicts of text and tokens is needed")
    for p in prompts:
        text("provenance['prompts']: text", p["text"]), integer("provenance['prompts']: tokens", p["tokens"], 0, INT64)


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What was measured about one model. Read it with `sale.Calibration.read(path)`.

    thresholds            [layers, q_heads] float32; sale.calibration.LOCAL: sink and local keys alone
    q_projections, k_projections
                          [layers, kv_heads, head_dim, rank] float32, or None: all coordinates are scanned
    name, fingerprint     of the model it was made for
    smoothing, scales     [layers, kv_heads, head_dim] and [layers, kv_heads] float32, or None

    Copies and pickles are of the same content. TypeError, ValueError name a field that cannot be right; what a file does not
    allow besides is said by `write`.
    """

    name: str
    fingerprint: str
    format: str
    thresholds: np.ndarray
    q_projections: np.ndarray | None
    k_projections: np.ndarray | None
    kv_heads: int
    head_dim: int
    sink: int = 32
    local: int = 128
    dense_below: int = 1024
    provenance: dict = dataclasses.field(default_factory=dict)
    error: dict = dataclasses.field(default_factory=dict)
    smoothing: np.ndarray | None = None
    scales: np.ndarray | None = None

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        text("name", self.name), _hexadecimal(self.fingerprint), word("format", self.format, tuple(_c.FORMATS))
        for name in ("kv_heads", "head_dim"):
            put(name, integer(name, getattr(self, name), 1, INT32))
        for name in ("sink", "local"):
            put(name, integer(name, getattr(self, name), 0, INT32))
        put("dense_below", integer("dense_below", self.dense_below, 0, INT64))
        thresholds = numbers("thresholds", self.thresholds)
        if thresholds.ndim != 2 or thresholds.size == 0:
            raise ValueError(f"thresholds: of shape {list(thresholds.shape)}; [layers, q_heads] is needed")
        put("thresholds", _floats("thresholds", thresholds, *thresholds.shape))
        if (self.q_projections is None) != (self.k_projections is None):
            raise ValueError("q_projections, k_projections: one is given without the other")
        if self.q_projections is not None:
            q = numbers("q_projections", self.q_projections)
            if q.ndim != 4:
                raise ValueError(f"q_projections: of {q.ndim} axes; [layers, kv_heads, head_dim, rank] is needed")
            for name, value in (("q_projections", q), ("k_projections", self.k_projections)):
                put(name, _floats(name, value, self.layers, self.kv_heads, self.head_dim, q.shape[3]))
        put("smoothing", _floats("smoothing", self.smoothing, self.layers, self.kv_heads, self.head_dim))
        put("scales", _floats("scales", self.scales, self.layers, self.kv_heads))
        if self.scales is not None and self.smoothing is None:
            raise ValueError("scales: given without smoothing")
        _provenance(self.provenance)
        instance("error", self.error, dict, "a dict")
        if unknown := self.error.keys() - _ERROR.keys():
            raise ValueError(f"error: {described(min(unknown, key=str))} is not one of {', '.join(_ERROR)}")
        for name, value in self.error.items():
            number(f"error[{name!r}]", value)

    @property
    def layers(self) -> int:
        return self.thresholds.shape[0]

    @property
    def q_heads(self) -> int:
        return self.thresholds.shape[1]

    @property
    def rank(self) -> int:
        return self.head_dim if self.q_projections is None else self.q_projections.shape[3]

    def options(self, layer: int, **changes) -> Options:
        """Of one layer; `changes` as in Options.replace. IndexError when there is no such layer."""
        if not 0 <= integer("layer", layer, -INT32, INT32) < self.layers:
            raise IndexError(f"layer: {layer} is not in 0 .. {self.layers - 1}")
        arrays = {"q_projection": self.q_projections, "k_projection": self.k_projections, "smoothing": self.smoothing,
                  "key_scales": self.scales}  # fmt: skip
        of_layer = {name: array[layer] for name, array in arrays.items() if array is not None}
        made = Options(thresholds=self.thresholds[layer], format=self.format, sink=self.sink, local=self.local,
                       dense_below=self.dense_below, **of_layer)  # fmt: skip
        return made.replace(**changes) if changes else made

    @classmethod
    def read(cls, path: str | os.PathLike) -> Calibration:
        """Reads the JSON file and the tensors it names, beside it. ValueError when something is wrong there."""
        handle = _c.created(_c.lib.sale_calibration_open, os.fsencode(path_of("path", path)))
        try:
            return cls._of(handle)
        finally:
            _c.lib.sale_calibration_close(handle)

    @classmethod
    def _of(cls, handle: ctypes.c_void_p) -> Calibration:
        d = _cc.Data(struct_size=ctypes.sizeof(_cc.Data))
        _c.check(_c.lib.sale_calibration_get(handle, ctypes.byref(d)))
        kv = (d.layers, d.kv_heads)
        return cls(
            d.name.decode(), f"{d.fingerprint:016x}", _FORMATS[d.format], _array(d.thresholds, d.layers, d.q_heads),
            _array(d.q_projections, *kv, d.head_dim, d.rank), _array(d.k_projections, *kv, d.head_dim, d.rank),
            d.kv_heads, d.head_dim, d.sink, d.local, d.dense_below,
            provenance={
                "prompts": [{"text": p.text.decode(), "tokens": p.tokens} for p in d.prompts[: d.n_prompts]],
                "command": d.command.decode(), "date": d.date.decode(), "note": d.note.decode(),
            },
            error={name: getattr(d, name) for name in _ERROR},
            smoothing=_array(d.smoothing, *kv, d.head_dim), scales=_array(d.scales, *kv),
        )  # fmt: skip

    @contextlib.contextmanager
    def _handle(self):
        """The library's object for it; ValueError where it is none that could be read back."""
        p, e = self.provenance, self.error
        prompts = p.get("prompts", [])
        texts = (_cc.Text * len(prompts))(*(_cc.Text(t["text"].encode(), t["tokens"]) for t in prompts))
        data = _cc.Data(
            struct_size=ctypes.sizeof(_cc.Data), name=self.name.encode(), layers=self.layers, q_heads=self.q_heads,
            kv_heads=self.kv_heads, head_dim=self.head_dim, fingerprint=_hexadecimal(self.fingerprint),
            format=_c.FORMATS[self.format], rank=self.rank, sink=self.sink, local=self.local,
            dense_below=self.dense_below, thresholds=_pointer(self.thresholds),
            q_projections=_pointer(self.q_projections), k_projections=_pointer(self.k_projections),
            smoothing=_pointer(self.smoothing), scales=_pointer(self.scales), prompts=texts,
            n_prompts=len(prompts), command=p.get("command", "").encode(), date=p.get("date", "").encode(),
            note=p.get("note", "").encode(), **{name: e.get(name, otherwise) for name, otherwise in _ERROR.items()},
        )  # fmt: skip
        handle = _c.created(_c.lib.sale_calibration_create, ctypes.byref(data))
        try:
            yield handle
        finally:
            _c.lib.sale_calibration_close(handle)

    def check(self, *, layers: int, q_heads: int, kv_heads: int, head_dim: int, fingerprint: str | None = None) -> None:
        """ValueError when it was made for another model, naming the first thing that differs. fingerprint None: unknown,
        not compared."""
        sizes = {"layers": layers, "q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim}
        model = _cc.Model(
            struct_size=ctypes.sizeof(_cc.Model), **{name: integer(name, n, 1, INT32) for name, n in sizes.items()},
            fingerprint=0 if fingerprint is None else _hexadecimal(fingerprint),
        )  # fmt: skip
        with self._handle() as handle:
            why = _c.lib.sale_calibration_why_not(handle, ctypes.byref(model)).decode()
        if why:
            raise ValueError(why)

    def write(self, path: str | os.PathLike) -> None:
        """Writes the JSON file and, beside it with the extension .tensors, what it names."""
        file = os.fsencode(path_of("path", path))
        with self._handle() as handle:
            _c.check(_c.lib.sale_calibration_write(handle, file))


_ERROR = {"relative_l1_limit": 0.0, "relative_l1": 0.0, "retained_mass": 1.0, "density": 1.0}
