"""How attention is to be done: thresholds, estimator, regions. Immutable, compared and hashed by content."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from . import _c


def _projection(name: str, value) -> np.ndarray | None:
    if value is None:
        return None
    array = np.ascontiguousarray(value, dtype=np.float32)
    if array.ndim != 3:
        raise ValueError(f"{name}: has {array.ndim} axes; [kv_heads, head_dim, rank] is needed")
    array.flags.writeable = False
    return array


@functools.cache
def has_4_bit_products(device: int) -> bool:
    """Whether a GPU is of a generation whose tensor cores multiply 4-bit numbers: Ampere, Ada."""
    import torch

    return torch.cuda.get_device_capability(device)[0] == 8


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """What `sale_options` says (include/sale/sale.h), as a value.

    thresholds    tau >= 0: one for all query heads, or one each; 0 makes a head dense
    format        of the estimate: "int8", "int4" (not on Hopper), "fp8" (Hopper); "auto": int8 in host memory, fp8 on
                  Hopper, int4 on GPUs of compute capability 8.x and wherever backend "sm80" is asked for
    q_projection, k_projection
                  [kv_heads, head_dim, rank] float32 each, or None: all coordinates are scanned
    sink, local   keys that are always kept, at the start and before each row: multiples of 32
    dense_below   sequences with fewer keys run dense
    compute       products of attention: "exact", "int8" (CPUs, sm80), "fp8" (GPUs) or "f16" (sm80)
    backend       a name of `sale.backends()`, or None: the fastest that can
    threads       of CPU backends; 0: one per CPU
    compensate    mean keys and values stand in for dropped blocks (GPUs; CPUs with exact products)

    `number` stands for it in torch operators. Raises ValueError, TypeError where a value cannot be right whatever the tensors; the rest is checked with them.
    """

    thresholds: float | Sequence[float] = 0.004
    format: str = "auto"
    q_projection: np.ndarray | None = None
    k_projection: np.ndarray | None = None
    sink: int = 32
    local: int = 128
    dense_below: int = 1024
    compute: str = "exact"
    backend: str | None = None
    threads: int = 0
    compensate: bool = False

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        try:
            thresholds = np.ascontiguousarray(np.atleast_1d(self.thresholds), dtype=np.float32)
        except (TypeError, ValueError):
            raise TypeError(f"thresholds: {self.thresholds!r} is neither a number nor a list of numbers") from None
        if thresholds.ndim != 1 or thresholds.size == 0:
            raise ValueError(f"thresholds: of shape {thresholds.shape}; one number or one per query head is needed")
        put("thresholds", tuple(float(t) for t in thresholds))
        if self.format != "auto" and self.format not in _c.FORMATS:
            raise ValueError(f"format: {self.format!r} is not one of 'auto', 'int4', 'int8', 'fp8'")
        if self.compute not in _c.COMPUTES:
            raise ValueError(f"compute: {self.compute!r} is not one of 'exact', 'int8', 'fp8', 'f16'")
        if (self.q_projection is None) != (self.k_projection is None):
            raise ValueError("q_projection, k_projection: one is given without the other")
        put("q_projection", _projection("q_projection", self.q_projection))
        put("k_projection", _projection("k_projection", self.k_projection))
        if self.q_projection is not None and self.q_projection.shape != self.k_projection.shape:
            raise ValueError(
                f"k_projection: of shape {self.k_projection.shape}, q_projection of {self.q_projection.shape}"
            )
        for name in ("sink", "local", "dense_below", "threads"):
            put(name, int(getattr(self, name)))
        digest = hashlib.blake2b(digest_size=16)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            digest.update(value.tobytes() + repr(value.shape).encode() if isinstance(value, np.ndarray)
                          else repr(value).encode())  # fmt: skip
            digest.update(b";")
        put("_digest", digest.digest())
        put("_c_options", {})
        put("number", _number(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        rank = "all" if self.q_projection is None else self.q_projection.shape[2]
        return f"Options(thresholds={self.thresholds}, format={self.format!r}, rank={rank}, backend={self.backend!r})"

    @property
    def rank(self) -> int:
        """Coordinates scanned; 0: all, without a projection."""
        return 0 if self.q_projection is None else self.q_projection.shape[2]

    def replace(self, **changes) -> Options:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)

    def dense(self) -> Options:
        """Attention over every key by the same kernels: no estimate, no selection."""
        return self.replace(dense_below=2**62)

    def heads(self, first: int, count: int, group: int) -> Options:
        """Those of query heads first .. first + count - 1, `group` query heads to a kv head: a rank's slice in tensor
        parallelism. ValueError unless the slice is made of whole kv heads or lies within one."""
        if count % group and group % count:
            raise ValueError(f"heads: {count} of groups of {group} are neither whole groups nor a part of one")
        changes: dict = {}
        if len(self.thresholds) > 1:
            if first < 0 or first + count > len(self.thresholds):
                raise ValueError(f"heads: {first} .. {first + count - 1} of {len(self.thresholds)}")
            changes["thresholds"] = self.thresholds[first : first + count]
        if self.q_projection is not None:
            kv = slice(first // group, first // group + max(1, count // group))
            changes["q_projection"], changes["k_projection"] = self.q_projection[kv], self.k_projection[kv]
        return self.replace(**changes) if changes else self

    def format_on(self, device: int) -> str:
        """The format on a device; "auto" is what its tensor cores multiply fastest."""
        if self.format != "auto":
            return self.format
        if device == _c.HOST:
            return "int8"
        return "int4" if self.backend == "sm80" or has_4_bit_products(device) else "fp8"

    def c(self, kv_heads: int, head_dim: int, device: int) -> _c.Options:
        """The C struct for a problem of that shape on that device; valid as long as this object. ValueError when the
        projections are not of that shape, which the C side cannot see."""
        if self.q_projection is not None and self.q_projection.shape[:2] != (kv_heads, head_dim):
            raise ValueError(
                f"q_projection: of shape {list(self.q_projection.shape)}; [{kv_heads}, {head_dim}, rank] is needed"
            )
        form = self.format_on(device)
        made = self._c_options.get(form)
        if made is None:
            thresholds = (ctypes.c_float * len(self.thresholds))(*self.thresholds)
            made = _c.Options(
                struct_size=ctypes.sizeof(_c.Options), thresholds=thresholds, n_thresholds=len(self.thresholds),
                format=_c.FORMATS[form], rank=self.rank, sink=self.sink, local=self.local,
                dense_below=self.dense_below, compute=_c.COMPUTES[self.compute],
                backend=None if self.backend is None else self.backend.encode(), threads=self.threads,
                compensate=int(self.compensate),
            )  # fmt: skip
            if self.q_projection is not None:
                made.q_projection = self.q_projection.ctypes.data
                made.k_projection = self.k_projection.ctypes.data
            self._c_options[form] = made
        return made


# An operator takes numbers, not objects: every Options has one. Equal ones share it, so the table is as long as there
# are different settings in a process.
_lock = threading.Lock()
_numbers: dict[bytes, int] = {}
_numbered: list[Options] = []


def _number(options: Options) -> int:
    with _lock:
        number = _numbers.setdefault(options._digest, len(_numbered))
        if number == len(_numbered):
            _numbered.append(options)
    return number


def options_of(number: int) -> Options:
    """The options of that number."""
    return _numbered[number]
