"""SALE as an attention backend of vLLM: found by the entry point vllm.general_plugins, taken with

    vllm serve MODEL --attention-backend CUSTOM

Prefill of long prompts is sparse; decoding, short prompts and everything else are FlashAttention's, as before. What is
served, settings and limits: docs/serving.md. This module is imported in every process of vLLM's and does nothing there but
to say where the backend is.
"""

from __future__ import annotations

OLDEST, NEWEST = (0, 26), (0, 33)  # releases that were tried


def release(version: str) -> tuple[int, int] | None:
    """The first two numbers of a version; None when it has none."""
    parts = version.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return None


def why_not(version: str) -> str:
    """Why this release of vLLM is not served; "" when it is."""
    if (at := release(version)) is not None and OLDEST <= at <= NEWEST:
        return ""
    known = " .. ".join(f"{a}.{b}" for a, b in (OLDEST, NEWEST))
    return f"vLLM {version} is not known to this version of SALE, which was tried with {known}"


def register() -> None:
    """The entry point. Which class it will be is decided when the backend is asked for (chosen.py)."""
    from vllm.v1.attention.backends import registry

    registry.register_backend(registry.AttentionBackendEnum.CUSTOM, "sale.vllm.chosen.Custom")
    members = registry.AttentionBackendEnum
    if hasattr(members, "register") and "SALE" not in members.__members__:  # releases that take names of one's own
        members.register("SALE", "sale.vllm.chosen.Sale")
