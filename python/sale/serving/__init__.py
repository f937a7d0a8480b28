"""SALE in engines that serve many requests from a paged cache of keys and values: what is the same for all of them.

An engine's own package (sale/vllm, sale/sglang) says how it is plugged in and what its batches look like; here is what
is done with them. No engine is imported. docs/serving.md is the user's page.

    batch.py     which rows of a step are ours
    steps.py     a step's plan and calls: one for all layers
    session.py   one model in one process: its layers, memory, state
    measure.py   a calibration from the prompts that are served
    guard.py     audits, and heads that go dense by them
    metrics.py   what is counted
    settings.py  what the environment says
"""

from .batch import Row, chosen, gaps
from .session import Model, Session, Share
from .settings import Settings

__all__ = ["Model", "Row", "Session", "Settings", "Share", "chosen", "gaps"]
