"""The backend that vLLM gets: ours, or FlashAttention's own where ours cannot be, which the log then says, once."""

from __future__ import annotations

import vllm
from vllm.logger import init_logger

from . import why_not

_why = why_not(vllm.__version__)
if not _why:
    try:
        from .backend import Custom, Sale
    except (ImportError, AttributeError) as e:  # no libsale; a release whose parts are named otherwise
        _why = str(e).partition("\n")[0]
if _why:
    from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend as Custom

    Sale = Custom
    init_logger("vllm.sale").warning("sale: %s; the engine's own attention runs", _why)

__all__ = ["Custom", "Sale"]
