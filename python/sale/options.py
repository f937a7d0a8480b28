"""How attention is to be done: thresholds, estimator, regions. Immutable, compared and hashed by content."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from . import _c
from ._arguments import INT32, INT64, flag, integer, numbers, text, word

DENSE = 2**62  # dense_below of attention that is dense whatever the length
SHORT = 1024  # the library's own dense_below


def _projection(name: str, value) -> np.ndarray | None:
    if value is None:
        return None
    array = numbers(name, value)  # a copy: whoever gave it may go on writing to his
    if array.ndim != 3:
        raise ValueError(f"{name}: has {array.ndim} axes; [kv_heads, head_dim, rank] is needed")
    array.flags.writeable = False
    return array


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability(device)


def has_4_bit_products(device: int) -> bool:
    """Whether a GPU is of a generation whose tensor cores multiply 4-bit numbers: Ampere, Ada."""
    return _capability(device)[0] == 8


def pays_from(device: int, rank: int) -> int:
    """Keys from which on sparse attention is faster than dense, in a device's memory, by a scan of so many coordinates
    (0: all). Hopper: measured on an H100, 32 query heads of 128, at 4K, 8K and 16K tokens, with ranks 28 and 60, whose
    times cross those of the dense path near 4.8K and 8.6K. Elsewhere it has not been measured, and this is the library's
    own default."""
    if device == _c.HOST or _capability(device)[0] != 9:
        return SHORT
    return 5120 if 0 < rank <= 32 else 9216


def dense_below_as_it_pays(options: Options) -> Options:
    """Options of a calibration: 1024, which calibrators write whatever the machine, stands for "auto"."""
    return options.replace(dense_below="auto") if options.dense_below == SHORT else options


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """What `sale_options` says (include/sale/sale.h), as a value.

    thresholds    tau >= 0: one for all query heads, or one each; 0 makes a head dense
    format        of the estimate: "int8", "int4" (not on Hopper), "fp8" (Hopper); "auto": int8 in host memory, fp8 on
                  Hopper, int4 on GPUs of compute capability 8.x and wherever backend "sm80" is asked for
    q_projection, k_projection
                  [kv_heads, head_dim, rank] float32 each, or None: all coordinates are scanned
    sink, local   keys that are always kept, at the start and before each row: multiples of 32
    dense_below   sequences with fewer keys run dense; "auto": where sparse attention is not faster yet, 1024 keys in host
                  memory, on Hopper 9216, 5120 for projections of up to 32 coordinates
    compute       products of attention: "exact", "int8" (CPUs, sm80), "fp8" (GPUs) or "f16" (sm80)
    backend       a name of `sale.backends()`, or None: the fastest that can
    threads       of CPU backends; 0: one per CPU
    compensate    a pseudo-key stands in for every dropped block (GPUs; CPUs with exact products)

    Copies and pickles of it are equal to it, in this process and in others. Raises ValueError, TypeError where a value
    cannot be right whatever the tensors; the rest is checked with them.
    """

    thresholds: float | Sequence[float] = 0.004
    format: str = "auto"
    q_projection: np.ndarray | None = None
    k_projection: np.ndarray | None = None
    sink: int = 32
    local: int = 128
    dense_below: int | str = "auto"
    compute: str = "exact"
    backend: str | None = None
    threads: int = 0
    compensate: bool = False

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        thresholds = np.atleast_1d(numbers("thresholds", self.thresholds))
        if thresholds.ndim != 1 or thresholds.size == 0:
            raise ValueError(f"thresholds: of shape {thresholds.shape}; one number or one per query head is needed")
        if (thresholds < 0).any():
            at = int((thresholds < 0).argmax())
            raise ValueError(f"thresholds: element {at} is {thresholds[at]}; 0 and more is allowed")
        put("thresholds", tuple(float(t) for t in thresholds))
        word("format", self.format, ("auto", *_c.FORMATS))
        word("compute", self.compute, tuple(_c.COMPUTES))
        if (self.q_projection is None) != (self.k_projection is None):
            raise ValueError("q_projection, k_projection: one is given without the other")
        put("q_projection", _projection("q_projection", self.q_projection))
        put("k_projection", _projection("k_projection", self.k_projection))
        if self.q_projection is not None and self.q_projection.shape != self.k_projection.shape:
            raise ValueError(
                f"k_projection: of shape {self.k_projection.shape}, q_projection of {self.q_projection.shape}"
            )
        for name in ("sink", "local", "threads"):
            put(name, integer(name, getattr(self, name), 0, INT32))
        if not (isinstance(self.dense_below, str) and self.dense_below == "auto"):
            put("dense_below", integer("dense_below", self.dense_below, 0, INT64))
        if self.backend is not None:
            text("backend", self.backend)
        put("compensate", flag("compensate", self.compensate))
        put("key", _key(self))
        put("_c_options", {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self):
        return Options, tuple(getattr(self, f.name) for f in dataclasses.fields(self))

    def __copy__(self) -> Options:
        return self

    def __deepcopy__(self, memo: dict) -> Options:
        return self

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
        return self.replace(dense_below=DENSE)

    def heads(self, first: int, count: int, group: int) -> Options:
        """Those of query heads first .. first + count - 1, `group` query heads to a kv head: a rank's slice in tensor
        parallelism. ValueError unless the slice is made of whole kv heads or lies within one."""
        integer("first", first, 0, INT32), integer("count", count, 1, INT32), integer("group", group, 1, INT32)
        if count % group and group % count:
            raise ValueError(f"first, count, group: {count} heads of groups of {group} are neither whole groups nor a part of one")
        changes: dict = {}
        if len(self.thresholds) > 1:
            if first + count > len(self.thresholds):
                raise ValueError(f"first, count: heads {first} .. {first + count - 1} of {len(self.thresholds)}")
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

    def dense_below_on(self, device: int) -> int:
        """The length on a device; "auto" is where sparse attention begins to pay."""
        return pays_from(device, self.rank) if self.dense_below == "auto" else self.dense_below

    def c(self, kv_heads: int, head_dim: int, device: int) -> _c.Options:
        """The C struct for a problem of that shape on that device; valid as long as this object. ValueError when the
        projections are not of that shape, which the C side cannot see."""
        if self.q_projection is not None and self.q_projection.shape[:2] != (kv_heads, head_dim):
            raise ValueError(
                f"q_projection: of shape {list(self.q_projection.shape)}; [{kv_heads}, {head_dim}, rank] is needed"
            )
        form, dense_below = self.format_on(device), self.dense_below_on(device)
        made = self._c_options.get((form, dense_below))
        if made is None:
            thresholds = (ctypes.c_float * len(self.thresholds))(*self.thresholds)
            made = _c.Options(
                struct_size=ctypes.sizeof(_c.Options), thresholds=thresholds, n_thresholds=len(self.thresholds),
                format=_c.FORMATS[form], rank=self.rank, sink=self.sink, local=self.local,
                dense_below=dense_below, compute=_c.COMPUTES[self.compute],
                backend=None if self.backend is None else self.backend.encode(), threads=self.threads,
                compensate=int(self.compensate),
            )  # fmt: skip
            if self.q_projection is not None:
                made.q_projection = self.q_projection.ctypes.data
                made.k_projection = self.k_projection.ctypes.data
            self._c_options[form, dense_below] = made
        return made


# An operator takes text, not objects: `Options.key` says everything, but for projections, of which it has a digest. So it
# means the same in every process, or is refused there; it is never taken for other options.
_known: dict[str, Options] = {}  # as long as there are different settings in a process


def _key(options: Options) -> str:
    said = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, np.ndarray):
            digest = hashlib.blake2b(value.astype("<f4").tobytes(), digest_size=16)
            value = f"{'x'.join(map(str, value.shape))}:{digest.hexdigest()}"
        if value != field.default:
            said[field.name] = value
    key = json.dumps(said, separators=(",", ":"))
    _known.setdefault(key, options)
    return key


def options_of(key: str) -> Options:
    """The options of that key. ValueError: they have projections that this process does not know."""
    found = _known.get(key)
    if found is None:
        said = json.loads(key)
        if "q_projection" in said:
            raise ValueError(
                "options: of projections that this process has not seen; make the same sale.Options here before running "
                "what was traced with them"
            )
        found = Options(**said)
    return found
