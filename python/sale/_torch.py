"""torch tensors: what attention asks of a kind of tensor (see _tensors.py). Imported only where torch already is."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import _c, _pieces
from ._arguments import described
from ._call import SCHEMA, Said, run
from ._handles import index_of
from ._numpy import host_workspace, within
from ._pieces import HEAD, MARK
from ._plan import View
from .options import options_of

_this = sys.modules[__name__]

_DTYPES = {torch.float32: _c.F32, torch.float16: _c.F16, torch.bfloat16: _c.BF16}


def ordinal_of(device: torch.device) -> int:
    """sale_problem.device; the current CUDA device's where none is said."""
    if device.type == "cpu":
        return _c.HOST
    return torch.cuda.current_device() if device.index is None else device.index


def supports(x: torch.Tensor) -> bool:
    """Whether tensors of this type and on this device are the library's."""
    return x.dtype in _DTYPES and x.device.type in ("cpu", "cuda")


def plain(name: str, x: torch.Tensor) -> None:
    """TypeError where a tensor's bytes are not its numbers as they lie there."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: a {type(x).__name__}; a torch tensor is needed, as q is")
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: of layout {x.layout}; a dense, strided tensor is needed")
    if type(x) is not torch.Tensor and is_traceable_wrapper_subclass(x):
        raise TypeError(f"{name}: a {type(x).__name__}, which has no memory of its own; a plain tensor is needed")
    if x.is_neg() or x.is_conj():
        raise TypeError(f"{name}: a view that negates when read; use {name}.resolve_neg()")


def view(name: str, x: torch.Tensor) -> View:
    plain(name, x)
    dtype = _DTYPES.get(x.dtype)
    if dtype is None:
        raise TypeError(f"{name}: of type {x.dtype}; float32, float16 and bfloat16 are supported")
    if x.device.type not in ("cpu", "cuda"):
        raise NotImplementedError(f"{name}: on {x.device}; tensors on the CPU and on CUDA devices are supported")
    return View(x.data_ptr(), tuple(x.shape), x.stride(), dtype, ordinal_of(x.device))


def empty_like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def zeros_like(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


def floats(like: torch.Tensor, shape: tuple[int, ...], value: float | None = None) -> torch.Tensor:
    """float32, uninitialised or all `value`."""
    made = like.new_empty(shape, dtype=torch.float32)
    return made if value is None else made.fill_(value)


def _on_host(name: str, x: torch.Tensor) -> list:
    """Its numbers. Read at every call: that a tensor was not written to cannot be told, since memory may be shared with
    numpy, with another tensor or with a kernel. Reading a device waits for it."""
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"{name}: on a device, and what it says is needed on the host, which a graph being captured cannot wait "
            "for; give a list"
        )
    return x.tolist()


def integers(name: str, x) -> tuple[int, ...]:
    """A list of integers, as a tuple of them."""
    if not isinstance(x, torch.Tensor):
        x = _listed(name, x)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool or x.dim() != 1:
        raise ValueError(f"{name}: of type {x.dtype} and shape {tuple(x.shape)}; a list of integers is needed")
    return within(name, _on_host(name, x))


def _listed(name: str, x):
    """Lists of integers travel as tensors of the host."""
    if x is None or isinstance(x, torch.Tensor):
        return x
    try:
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError
        return torch.tensor(x, dtype=None if len(x) else torch.int64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name}: {described(x)}; a list of integers is needed") from None


class Spans:
    """What a mask that this package made says, read once: it is written to nowhere else. Kept with the tensor."""

    def __init__(self, rows: list[list[int]] | None = None, window: int = 0) -> None:
        self.rows = rows
        self.window = window
        self.pieces: dict = {}


def spans(name: str, x: torch.Tensor) -> list[list[int]]:
    """The numbers at the start of each row; see _pieces.py."""
    held = getattr(x, "_sale_spans", None)
    if held is not None and held.rows is not None:
        return held.rows
    rows = _on_host(name, x.reshape(x.shape[0], -1)[:, :HEAD])
    if held is not None:
        held.rows = rows
    return rows


def spans_of(mask: torch.Tensor, offset, window: int = 0) -> torch.Tensor:
    """[batch, HEAD + keys] of a mask [batch, keys], bool or of segment numbers; see _pieces.py."""
    seen = mask != 0
    keys = mask.shape[1]
    at = torch.arange(keys, device=mask.device)
    first, end = torch.where(seen, at, keys).amin(1), torch.where(seen, at + 1, 0).amax(1)
    segments = torch.ones_like(first) if mask.dtype == torch.bool else mask.amax(1)
    numbers = (first, end, seen.sum(1), offset, segments, keys, window, MARK)
    return torch.cat([torch.stack([torch.zeros_like(first) + n for n in numbers], 1), mask.long()], 1)


def segments(x: torch.Tensor) -> np.ndarray:
    """[batch, keys] of a mask that has them."""
    return x.reshape(x.shape[0], -1)[:, HEAD:].cpu().numpy()


def gathered(x: torch.Tensor, offset: int, rows: int, causal: bool):
    """See _pieces.gathered; what tensors are indexed with lies on their device."""
    held = getattr(x, "_sale_spans", None)
    key = (offset, rows, causal)
    if held is not None and key in held.pieces:
        return held.pieces[key]
    found = _pieces.gathered(segments(x), offset, rows, causal)
    if found is not None:
        found = (*(torch.from_numpy(i).to(x.device) for i in found[:4]), *found[4:])
    if held is not None:
        held.pieces[key] = found
    return found


def shape(name: str, x) -> tuple[int, ...]:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: a {type(x).__name__}; one of q's kind is needed")
    return tuple(x.shape)


def bools(name: str, x) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype == torch.bool


def workspace(size: int, like: torch.Tensor) -> tuple[int, object]:
    """On a device from torch's allocator, which reuses memory in the order of the stream and knows of graphs."""
    if not like.is_cuda:
        return host_workspace(size), None
    memory = torch.empty(size, dtype=torch.uint8, device=like.device)
    return memory.data_ptr(), memory


def capturing(like: torch.Tensor) -> bool:
    return like.is_cuda and torch.cuda.is_current_stream_capturing()


def stream(like: torch.Tensor) -> int | None:
    return torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else None


def address(x: torch.Tensor) -> int:
    return x.data_ptr()


def contiguous(x: torch.Tensor) -> bool:
    return x.is_contiguous()


def table(name: str, x: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides in elements and address of an int32 table."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.int32:
        raise TypeError(f"{name}: an int32 tensor is needed")
    return tuple(x.shape), x.stride(), x.data_ptr()


def memory(name: str, x: torch.Tensor) -> tuple[int, int, int]:
    """Address, bytes and device of memory that is given to the library."""
    plain(name, x)
    if x.dtype != torch.uint8 or x.device.type not in ("cpu", "cuda"):
        raise TypeError(f"{name}: of type {x.dtype} on {x.device.type}; uint8 on the CPU or a CUDA device is needed")
    if not x.is_contiguous():
        raise ValueError(f"{name}: of strides {x.stride()}; contiguous bytes are needed")
    return x.data_ptr(), x.numel(), ordinal_of(x.device)


def is_float32(x: torch.Tensor) -> bool:
    return x.dtype == torch.float32


def cast(name: str, x: torch.Tensor) -> torch.Tensor:
    """The tensor as attention takes it: under autocast in its type, as torch's own attention."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: a {type(x).__name__}; a torch tensor is needed, as q is")
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: of layout {x.layout}; a dense, strided tensor is needed")
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and x.dtype in _DTYPES:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def beside(name: str, x, q: torch.Tensor) -> None:
    """TypeError for what is no tensor in host memory or on q's device."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: {described(x)}; a torch tensor is needed, as q is")
    if x.layout is not torch.strided or x.device.type not in ("cpu", q.device.type):
        raise TypeError(f"{name}: of layout {x.layout} on {x.device}; a dense tensor on {q.device} is needed, as q is")


def check(name: str, x: torch.Tensor) -> torch.Tensor:
    """Refuses what would not be differentiated."""
    x = cast(name, x)
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: requires grad, and attention has no backward; use torch.no_grad() or detach()")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(f"{name}: has a tangent, and attention has no derivative in forward mode")
    return x


# ---- the operator ----------------------------------------------------------------------------------------------------

_NAME = "sale::attention"
_SAID = ", ".join(f"{kind} {name}" for name, kind in SCHEMA.items())
torch.library.define(
    _NAME, f"(Tensor q, Tensor k, Tensor v, str options, {_SAID}, int[] indexes, bool with_lse) -> (Tensor, Tensor)"
)


def _operator(q, k, v, options, *rest):
    *said, indexes, with_lse = rest
    found = [index_of(i) for i in indexes]
    out, lse, _ = run(_this, q, k, v, options_of(options), Said(*said), found, with_lse)
    return out, q.new_empty(0, dtype=torch.float32) if lse is None else lse


def _fake(q, k, v, options, *rest):
    *said, _, with_lse = rest
    shape = (0,)
    if with_lse:
        shape = (q.shape[1], q.shape[0]) if Said(*said).cu_seqlens_q is not None else q.shape[:3]
    return torch.empty_like(q), q.new_empty(shape, dtype=torch.float32)


torch.library.impl(_NAME, ("CPU", "CUDA"), _operator)
torch.library.register_fake(_NAME, _fake)
_attention = torch.ops.sale.attention.default


def _lists_of(q: torch.Tensor, said: Said) -> Said:
    """The same with lists as tensors, everything looked at."""
    lists = {name: _listed(name, getattr(said, name)) for name in ("cu_seqlens_q", "cu_seqlens_k", "k_lens")}
    if said.reference is not None:
        check("reference", said.reference)
    for name, x in (*lists.items(), ("page_table", said.page_table), ("attn_mask", said.spans), ("reference", said.reference)):
        if x is not None:
            beside(name, x, q)
    return said._replace(**lists)


def attention(q, k, v, key: str, said: Said, indexes=(), with_lse: bool = False):
    """(out, lse or None) through the operator; key: Options.key. See sale.attention."""
    q, k, v = check("q", q), check("k", k), check("v", v)
    _, _, _, spans, cu_q, cu_k, pages, k_lens, reference, *_ = said
    if not (spans is cu_q is cu_k is pages is k_lens is reference is None):
        said = _lists_of(q, said)
    for name, x in (("k", k), ("v", v)):
        if x.device.type != q.device.type:  # torch would take the device of either
            raise TypeError(f"{name}: on {x.device}; q is on {q.device}")
    out, lse = _attention(q, k, v, key, *said, [i.number for i in indexes], with_lse)
    return out, lse if with_lse else None
