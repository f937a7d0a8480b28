"""What lets the Python part of a vLLM wheel, built for GPUs, run where there is none, for tests of attention backends.

vLLM's scheduler, engine core, model runner and FlashAttention backend are its own, and so is what is tested over them.
Ours are a platform that lets any backend be asked for (platform.py), and the functions that its compiled extensions would
bring (functions.py). Found by vLLM's entry points where this folder is on the path; VLLM_ON_CPU=1 turns it on.
"""

import os

_ON = os.environ.get("VLLM_ON_CPU") == "1"


def platform() -> str | None:
    return "vllm_on_cpu.platform.OnCpu" if _ON else None


def functions() -> None:
    if _ON:
        from .functions import install

        install()
