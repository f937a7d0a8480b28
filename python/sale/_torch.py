"""torch tensors: what attention asks of a kind of tensor (see _tensors.py). Imported only where torch already is."""

from __future__ import annotations

import sys

import torch

from . import _c
from ._call import Said, run
from ._numpy import host_workspace
from ._plan import View
from .index import index_of
from .options import options_of

_this = sys.modules[__name__]

_DTYPES = {torch.float32: _c.F32, torch.float16: _c.F16, torch.bfloat16: _c.BF16}


def ordinal_of(device: torch.device) -> int:
    """sale_problem.device; the current CUDA device's where none is said."""
    if device.type == "cpu":
        return _c.HOST
    return torch.cuda.current_device() if device.index is None else device.index


def view(name: str, x: torch.Tensor) -> View:
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


def _remembered(name: str, x: torch.Tensor, read):
    """read(x on the host), remembered with the tensor until it is written to: reading a device waits for it, and one
    tensor of lengths serves all layers of a model."""
    if x.is_inference():  # such tensors do not tell when they are written to
        version = None
    else:
        version = x._version
        held = getattr(x, "_sale_host", None)
        if held is not None and held[0] == version and held[1] is read:
            return held[2]
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"{name}: on a device, and what it says is needed on the host, which a graph being captured cannot wait "
            "for; give a list, or call once with the same tensor before capturing"
        )
    value = read(x)
    if version is not None:
        x._sale_host = (version, read, value)
    return value


def _list(x: torch.Tensor) -> list:
    return x.tolist()


def integers(name: str, x) -> tuple[int, ...]:
    """A list of integers, as a tuple of them."""
    if not isinstance(x, torch.Tensor):
        x = torch.as_tensor(x)
    if x.is_floating_point() or x.dtype == torch.bool or x.dim() != 1:
        raise ValueError(f"{name}: of type {x.dtype} and shape {tuple(x.shape)}; a list of integers is needed")
    return tuple(_remembered(name, x, _list))


def _rows(x: torch.Tensor) -> list[list[int]]:
    return x.reshape(-1, 4).tolist()


def spans(name: str, x: torch.Tensor) -> list[list[int]]:
    """Rows of four; see spans_of."""
    return _remembered(name, x, _rows)


def spans_of(mask: torch.Tensor, offset: int) -> torch.Tensor:
    """[batch, 4] of a mask [batch, keys]: first visible key, end of the visible keys, how many, offset as given."""
    keys = mask.shape[1]
    at = torch.arange(keys, device=mask.device)
    first, end = torch.where(mask, at, keys).amin(1), torch.where(mask, at + 1, 0).amax(1)
    return torch.stack([first, end, mask.sum(1), torch.full_like(first, offset)], 1)


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


def check(name: str, x: torch.Tensor) -> None:
    """Refuses what would be computed wrongly or not differentiated."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: a {type(x).__name__}; a torch tensor is needed, as q is")
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: of layout {x.layout}; a dense, strided tensor is needed")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: requires grad, and attention has no backward; use torch.no_grad() or detach()")


# ---- the operator ----------------------------------------------------------------------------------------------------

_NAME = "sale::attention"
torch.library.define(
    _NAME,
    "(Tensor q, Tensor k, Tensor v, int options, float scale, bool causal, int? q_offset, Tensor? spans, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? page_table, Tensor? k_lens, Tensor? reference, int[] indexes, "
    "bool with_lse)"
    " -> (Tensor, Tensor)",
)


def _operator(q, k, v, options, scale, causal, q_offset, spans, cu_seqlens_q, cu_seqlens_k, page_table, k_lens,
              reference, indexes, with_lse):  # fmt: skip
    said = Said(scale, causal, q_offset, spans, cu_seqlens_q, cu_seqlens_k, page_table, k_lens, reference)
    found = [index_of(i) for i in indexes]
    out, lse, _ = run(_this, q, k, v, options_of(options), said, found, with_lse)
    return out, q.new_empty(0, dtype=torch.float32) if lse is None else lse


def _fake(q, k, v, options, scale, causal, q_offset, spans, cu_seqlens_q, cu_seqlens_k, page_table, k_lens, reference,
          indexes, with_lse):  # fmt: skip
    shape = (0,)
    if with_lse:
        shape = (q.shape[1], q.shape[0]) if cu_seqlens_q is not None else q.shape[:3]
    return torch.empty_like(q), q.new_empty(shape, dtype=torch.float32)


torch.library.impl(_NAME, ("CPU", "CUDA"), _operator)
torch.library.register_fake(_NAME, _fake)
_attention = torch.ops.sale.attention.default


def _listed(x):
    """Lists of integers travel as tensors of the host."""
    return x if x is None or isinstance(x, torch.Tensor) else torch.tensor(x, dtype=torch.int64)


def attention(q, k, v, number: int, said: Said, indexes=(), with_lse: bool = False):
    """(out, lse or None) through the operator; see sale.attention."""
    check("q", q), check("k", k), check("v", v)
    out, lse = _attention(
        q, k, v, number, said.scale, said.causal, said.q_offset, said.spans, _listed(said.cu_seqlens_q),
        _listed(said.cu_seqlens_k), said.page_table, _listed(said.k_lens), said.reference, [i.number for i in indexes], with_lse,
    )  # fmt: skip
    return out, lse if with_lse else None
