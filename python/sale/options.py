"""How attention is to be done: thresholds, estimator, regions. Immutable, compared and hashed by content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import weakref
from collections.abc import Sequence

import numpy as np

from . import _c
from ._arguments import INT32, INT64, UINT64, flag, integer, numbers, text, word
from ._backends import Facts, facts_on

DENSE = 2**62  # dense_below of attention that is dense whatever the length
SHORT = 1024  # what calibrators write
MOST_AUDITED = 65536  # rows, as in sale_options


def _array(name: str, value, form: str) -> np.ndarray | None:
    """Of as many axes as `form` has names."""
    if value is None:
        return None
    array = numbers(name, value)  # a copy: whoever gave it may go on writing to his
    if array.ndim != form.count(",") + 1:
        raise ValueError(f"{name}: has {array.ndim} axes; {form} is needed")
    array.flags.writeable = False
    return array


_ARRAYS = {
    "q_projection": "[kv_heads, head_dim, rank]",
    "k_projection": "[kv_heads, head_dim, rank]",
    "smoothing": "[kv_heads, head_dim]",
    "key_scales": "[kv_heads]",
}


def pays_from(facts: Facts, rank: int) -> int:
    """Keys from which on sparse attention is faster than dense by a scan of so many coordinates (0: all), as the library
    has it for each backend."""
    return facts.dense_below_projected if 0 < rank <= 32 else facts.dense_below


def dense_below_as_it_pays(options: Options) -> Options:
    """Options of a calibration: 1024, which calibrators write whatever the machine, stands for "auto"."""
    return options.replace(dense_below="auto") if options.dense_below == SHORT else options


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """What `sale_options` says (include/sale/sale.h), as a value.

    thresholds    tau >= 0: one for all query heads, or one each; 0 makes a head dense
    format        of the estimate: "int8", "int4" (CPUs, 8.x), "fp4" (CPUs), "fp8" (Hopper); "auto": what the backend
                  scans fastest, int8 in host memory and on Blackwell, fp8 on Hopper, int4 on compute capability 8.x
    q_projection, k_projection
                  [kv_heads, head_dim, rank] float32 each, or None: all coordinates are scanned
    smoothing     [kv_heads, head_dim] float32: what is taken from keys before they are coded, the mean of many keys of the
                  layer; None: the mean of the sequence's own (of an index's first update)
    key_scales    [kv_heads] float32, "fp8" with smoothing: largest magnitude of a coordinate scanned / 112; None: from the
                  sequence's own keys
    sink, local   keys that are always kept, at the start and before each row: multiples of 32
    dense_below   sequences with fewer keys run dense; "auto": where sparse attention is not faster yet, 1024 keys in host
                  memory, on Hopper 9216, 5120 for projections of up to 32 coordinates
    compute       products of attention: "exact", "int8" (not on Hopper), "fp8" (GPUs) or "f16" (GPUs but Hopper)
    backend       a name of `sale.backends()`, or None: the fastest that can
    threads       of CPU backends; 0: one per CPU
    compensate    mean keys and values stand in for dropped blocks (GPUs; CPUs with exact products)
    audit         rows of every sequence and query head, 0 .. 65536, that are computed again over all keys they see; more
                  than there are: all. What was found is in Stats, so attention must be asked for it (return_stats=True)
    audit_seed    chooses the rows: one in each of `audit` equal parts (docs/numerics.md, 8)

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
    smoothing: np.ndarray | None = None
    key_scales: np.ndarray | None = None
    audit: int = 0
    audit_seed: int = 0

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
        for name, form in _ARRAYS.items():
            put(name, _array(name, getattr(self, name), form))
        if self.q_projection is not None and self.q_projection.shape != self.k_projection.shape:
            raise ValueError(
                f"k_projection: of shape {self.k_projection.shape}, q_projection of {self.q_projection.shape}"
            )
        for name in ("sink", "local", "threads"):
            put(name, integer(name, getattr(self, name), 0, INT32))
        put("audit", integer("audit", self.audit, 0, MOST_AUDITED))
        put("audit_seed", integer("audit_seed", self.audit_seed, 0, UINT64))
        if not (isinstance(self.dense_below, str) and self.dense_below == "auto"):
            put("dense_below", integer("dense_below", self.dense_below, 0, INT64))
        if self.backend is not None:
            text("backend", self.backend)
        put("compensate", flag("compensate", self.compensate))
        put("key", _key(self))
        first = _known.setdefault(self.key, self)
        put("_first", None if first is self else first)  # lives, and is found by the key, as long as any that is equal

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

    @property
    def by_head(self) -> bool:
        """Whether anything in it differs from head to head."""
        return len(self.thresholds) > 1 or any(getattr(self, name) is not None for name in _ARRAYS)

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
        kv = slice(first // group, first // group + max(1, count // group))
        for name in _ARRAYS:
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)[kv]
        return self.replace(**changes) if changes else self

    def format_on(self, device: int) -> str:
        """The format on a device (a CUDA ordinal; -1: host memory); "auto" is what its backend scans fastest."""
        integer("device", device, _c.HOST, INT32)
        return self.format if self.format != "auto" else facts_on(device, self.backend).format

    def dense_below_on(self, device: int) -> int:
        """The length on a device; "auto" is where sparse attention begins to pay."""
        integer("device", device, _c.HOST, INT32)
        return pays_from(facts_on(device, self.backend), self.rank) if self.dense_below == "auto" else self.dense_below


# An operator takes text, not objects: `Options.key` says everything, but for arrays, of which it has a digest. So it means
# the same in every process, or is refused there; it is never taken for other options.
_known: weakref.WeakValueDictionary[str, Options] = weakref.WeakValueDictionary()


def _key(options: Options) -> str:
    said = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, np.ndarray):
            digest = hashlib.blake2b(value.astype("<f4").tobytes(), digest_size=16)
            value = f"{'x'.join(map(str, value.shape))}:{digest.hexdigest()}"
        if value != field.default:
            said[field.name] = value
    return json.dumps(said, separators=(",", ":"))


def options_of(key: str) -> Options:
    """The options of that key. ValueError: they have arrays, and no such options are alive in this process."""
    found = _known.get(key)
    if found is None:
        said = json.loads(key)
        if not said.keys().isdisjoint(_ARRAYS):
            raise ValueError(
                "options: of projections that this process has not seen, or has let go of; make and keep the same sale.Options "
                "here before running what was traced with them"
            )
        found = Options(**said)
    return found
