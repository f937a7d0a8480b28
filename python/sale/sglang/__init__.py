"""SALE as an attention backend of SGLang: found by the entry point sglang.srt.plugins, taken with

    python -m sglang.launch_server --model-path MODEL --attention-backend sale --page-size 16

Prefill of long prompts is sparse; everything else is done by the backend that it stands on: fa3 on Hopper, triton on other
GPUs, torch_native on CPUs, or what SALE_SGLANG_BASE names. Limits: docs/serving.md.
"""

from __future__ import annotations

import os

NAME = "sale"
KNOWN = ("0.5.17",)  # releases that were tried


def why_not(version: str) -> str:
    """Why this release of SGLang is not served; "" when it is."""
    if version in KNOWN:
        return ""
    return f"SGLang {version} is not known to this version of SALE, which was tried with {', '.join(KNOWN)}"


def _base(device: str) -> str:
    named = os.environ.get("SALE_SGLANG_BASE")
    if named:
        return named
    if device != "cuda":
        return "torch_native"
    import torch

    return "fa3" if torch.cuda.get_device_capability()[0] == 9 else "triton"


def create(runner):
    """The backend of a model runner: the base, with ours over it where that can be; else the base alone, which the log
    says once."""
    import logging

    import sglang
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    name = _base(runner.device)
    if name not in ATTENTION_BACKENDS or name == NAME:
        raise ValueError(f"SALE_SGLANG_BASE: {name!r} is not one of {', '.join(sorted(set(ATTENTION_BACKENDS) - {NAME}))}")
    base = ATTENTION_BACKENDS[name](runner)
    why = why_not(sglang.__version__)
    if not why:
        try:
            from .backend import put_over

            return put_over(base, runner)
        except (ImportError, AttributeError, ValueError) as e:
            why = str(e).partition("\n")[0]
    logger = logging.getLogger("sale.sglang")
    logger.setLevel(logging.INFO)
    logger.warning("sale: %s; %s runs alone", why, name)
    return base


def register() -> None:
    """The entry point."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.server_args import add_attention_backend_choices

    add_attention_backend_choices([NAME])
    register_attention_backend(NAME)(create)
