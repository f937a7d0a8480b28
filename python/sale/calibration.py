"""Calibration files: a threshold per layer and head, and the projections they belong to.

The format is that of include/sale/calibration.hpp, written by `sale calibrate` or sale.transformers.calibrate. Files
are not trusted: what is missing, unknown or out of range is refused with a sentence that names file and field.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import numpy as np

from .options import Options

_MOST_JSON = 16 << 20
_MOST_PROJECTIONS = 4 << 30


def fingerprint(*parts: bytes) -> int:
    """FNV-1a, 64 bits, over the parts one after the other."""
    value = 0xCBF29CE484222325
    for part in parts:
        for byte in part:
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


class _Fields:
    """One JSON object, each field of which must be asked for."""

    def __init__(self, tree, where: str) -> None:
        if not isinstance(tree, dict):
            raise ValueError(f"{where}: not an object")
        self.tree, self.where = dict(tree), where

    def take(self, name: str, kind, low=None, high=None):
        if name not in self.tree:
            raise ValueError(f"{self.where}: {name} is missing")
        value = self.tree.pop(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{self.where}: {name} is {value!r:.60}")
        if low is not None and not low <= value <= high:
            raise ValueError(f"{self.where}: {name} is {value}; {low} to {high} are allowed")
        return value

    def inner(self, name: str) -> _Fields:
        return _Fields(self.take(name, dict), f"{self.where}: {name}")

    def finish(self) -> None:
        if self.tree:
            raise ValueError(f"{self.where}: {next(iter(self.tree))!r} is not a known field")


def _no_repeats(pairs):
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a field stands there twice")
    return tree


def _read(path: pathlib.Path, most: int) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size > most:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes; at most {most} are read")
    return path.read_bytes()


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """What was measured about one model. Read it with `sale.Calibration.read(path)`.

    thresholds            [layers, q_heads] float32
    q_projections, k_projections
                          [layers, kv_heads, head_dim, rank] float32, or None: all coordinates are scanned
    name, fingerprint     of the model it was made for
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
        if not 0 <= layer < self.layers:
            raise IndexError(f"layer: {layer} is not in 0 .. {self.layers - 1}")
        projections = {}
        if self.q_projections is not None:
            projections = {"q_projection": self.q_projections[layer], "k_projection": self.k_projections[layer]}
        made = Options(thresholds=self.thresholds[layer], format=self.format, sink=self.sink, local=self.local,
                       dense_below=self.dense_below, **projections)  # fmt: skip
        return made.replace(**changes) if changes else made

    @classmethod
    def read(cls, path: str | os.PathLike) -> Calibration:
        """Reads the JSON file and the projections it names, beside it. ValueError when something is wrong there."""
        path = pathlib.Path(path)
        try:
            tree = json.loads(_read(path, _MOST_JSON), object_pairs_hook=_no_repeats)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
            raise ValueError(f"{path}: not JSON: {e}") from None
        f = _Fields(tree, str(path))
        f.take("schema", int, 1, 1)
        f.take("library", str)
        model = f.inner("model")
        name, mark = model.take("name", str), model.take("fingerprint", str)
        layers, q_heads = model.take("layers", int, 1, 4096), model.take("q_heads", int, 1, 65536)
        kv_heads, head_dim = model.take("kv_heads", int, 1, q_heads), model.take("head_dim", int, 16, 256)
        model.finish()
        estimator = f.inner("estimator")
        form, rank = estimator.take("format", str), estimator.take("rank", int, 4, head_dim)
        estimator.finish()
        blocks = f.inner("blocks")
        blocks.take("query", int, 64, 64), blocks.take("key", int, 32, 32)
        regions = {"sink": blocks.take("sink", int, 32, 256), "local": blocks.take("local", int, 32, 1024),
                   "dense_below": blocks.take("dense_below", int, 0, 1 << 40)}  # fmt: skip
        blocks.finish()
        thresholds = _thresholds(f.take("thresholds", list), f"{path}: thresholds", layers, q_heads)
        provenance, error = f.take("provenance", dict), f.take("error", dict)
        entry = f.take("projections", (dict, type(None)))
        f.finish()
        q = k = None
        if (entry is None) != (rank == head_dim):
            raise ValueError(f"{path}: projections: rank {rank} of {head_dim} {'needs' if entry is None else 'takes no'} file")
        if entry is not None:
            shape = (kv_heads, head_dim, rank)
            q, k = _projections(path, _Fields(entry, f"{path}: projections"), layers, shape)
        return cls(name, mark, form, thresholds, q, k, kv_heads, head_dim, **regions, provenance=provenance, error=error)

    def check(self, *, layers: int, q_heads: int, kv_heads: int, head_dim: int, fingerprint: str | None = None) -> None:
        """ValueError when it was made for another model, naming the first thing that differs."""
        for what, theirs in (("layers", layers), ("q_heads", q_heads), ("kv_heads", kv_heads), ("head_dim", head_dim),
                             ("fingerprint", fingerprint)):  # fmt: skip
            if theirs is not None and getattr(self, what) != theirs:
                raise ValueError(
                    f"calibration: made for a model with {what} {getattr(self, what)} ({self.name!r}); "
                    f"this one has {theirs}"
                )

    def write(self, path: str | os.PathLike) -> None:
        """Writes the JSON file and, beside it with the extension .safetensors, the projections."""
        from . import __version__

        path = pathlib.Path(path)
        entry = None
        if self.q_projections is not None:
            data = _print_projections(self.q_projections, self.k_projections)
            file = path.with_suffix(".safetensors")
            file.write_bytes(data)
            entry = {"file": file.name, "fingerprint": f"{fingerprint(data):016x}"}
        tree = {
            "schema": 1,
            "library": __version__,
            "model": {"name": self.name, "layers": self.layers, "q_heads": self.q_heads, "kv_heads": self.kv_heads,
                      "head_dim": self.head_dim, "fingerprint": self.fingerprint},
            "estimator": {"format": self.format, "rank": self.rank},
            "projections": entry,
            "blocks": {"query": 64, "key": 32, "sink": self.sink, "local": self.local,
                       "dense_below": self.dense_below},
            "thresholds": self.thresholds.tolist(),
            "provenance": self.provenance,
            "error": self.error,
        }  # fmt: skip
        path.write_text(json.dumps(tree, indent=1) + "\n")


def _thresholds(rows, where: str, layers: int, heads: int) -> np.ndarray:
    if len(rows) != layers:
        raise ValueError(f"{where} has {len(rows)} rows; {layers} are needed, one per layer")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != heads:
            raise ValueError(f"{where}[{i}]: a list of {heads} numbers is needed, one per query head")
        for t in row:
            if not isinstance(t, (int, float)) or isinstance(t, bool) or not 0 <= t <= 1e6:
                raise ValueError(f"{where}[{i}]: {t!r:.40} is not a number in 0 .. 1e6")
    return np.array(rows, np.float32)


def _projections(path: pathlib.Path, entry: _Fields, layers: int, shape: tuple[int, int, int]):
    name, mark = entry.take("file", str), entry.take("fingerprint", str)
    entry.finish()
    if not name or name[0] == "." or any(c in name for c in "/\\:\0"):
        raise ValueError(f"{entry.where}: file is {name!r}; a file name without folders is needed")
    data = _read(path.parent / name, _MOST_PROJECTIONS)
    where = f"{path.parent / name}"
    if f"{fingerprint(data):016x}" != mark:
        raise ValueError(f"{where}: not the file this calibration was written with (fingerprint differs)")
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ValueError(f"{where}: its header does not fit")
    header, body = json.loads(data[8 : 8 + size]), np.frombuffer(data, np.uint8, offset=8 + size)
    count = int(np.prod(shape)) * 4
    made = np.empty((2, layers, *shape), np.float32)
    for layer in range(layers):
        for which, to in zip("qk", made):
            tensor = header.get(f"layer.{layer}.{which}_projection")
            if not isinstance(tensor, dict) or tensor.get("dtype") != "F32" or tensor.get("shape") != list(shape):
                raise ValueError(f"{where}: layer.{layer}.{which}_projection is not F32 of shape {list(shape)}")
            begin, end = tensor.get("data_offsets", (0, 0))
            if end - begin != count or begin < 0 or end > body.size or begin % 4:
                raise ValueError(f"{where}: layer.{layer}.{which}_projection: bad data_offsets")
            to[layer] = body[begin:end].view(np.float32).reshape(shape)
    if not (np.abs(made) <= 1e6).all():
        raise ValueError(f"{where}: holds numbers beyond -1e6 .. 1e6")
    return made[0], made[1]


def _print_projections(q: np.ndarray, k: np.ndarray) -> bytes:
    header, parts, at = {}, [], 0
    for layer in range(q.shape[0]):
        for which, from_ in (("q", q), ("k", k)):
            data = np.ascontiguousarray(from_[layer], "<f4").tobytes()
            header[f"layer.{layer}.{which}_projection"] = {
                "dtype": "F32", "shape": list(q.shape[1:]), "data_offsets": [at, at + len(data)]
            }  # fmt: skip
            parts.append(data)
            at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the data aligned
    return len(text).to_bytes(8, "little") + text + b"".join(parts)
