"""What the environment says about serving. Read once, where the engine makes its first layer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

FOUND, AUTO, OFF = "found", "auto", "off"


def _number(environment: Mapping[str, str], name: str, otherwise, low, high):
    said = environment.get(name, "").strip()
    if not said:
        return otherwise
    kind = type(otherwise)
    try:
        value = kind(said)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise ValueError(f"{name}: {said!r} is not {'an integer' if kind is int else 'a number'} in {low} .. {high}")
    return value


@dataclasses.dataclass(frozen=True)
class Settings:
    """calibration   SALE_CALIBRATION: the path of a file; "auto": one is found or measured; "off": threshold 0.004 for
                  every head; unset ("found"): one is found, or the engine's own attention runs
    tokens        SALE_CALIBRATION_TOKENS: of each prompt that are measured; longer ones than calibrated for lose more
    prompts       SALE_CALIBRATION_PROMPTS: of each of the three passes
    budget        SALE_CALIBRATION_BUDGET: relative error allowed, see docs/calibration.md
    audit_every   SALE_AUDIT_EVERY: of so many steps of ours one is audited; 0: none
    audit_rows    SALE_AUDIT_ROWS: of every sequence and head
    audit_limit   SALE_AUDIT_LIMIT: relative error of a head from which on, found twice running, it goes dense
    """

    calibration: str = FOUND
    tokens: int = 16384
    prompts: int = 2
    budget: float = 0.05
    audit_every: int = 256
    audit_rows: int = 32
    audit_limit: float = 0.4

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """ValueError names the variable that is wrong, and what is allowed."""
        number = lambda name, otherwise, low, high: _number(environment, name, otherwise, low, high)  # noqa: E731
        return cls(
            environment.get("SALE_CALIBRATION", "").strip() or FOUND,
            number("SALE_CALIBRATION_TOKENS", cls.tokens, 2048, 1 << 21),
            number("SALE_CALIBRATION_PROMPTS", cls.prompts, 1, 1000),
            number("SALE_CALIBRATION_BUDGET", cls.budget, 0.001, 1.0),
            number("SALE_AUDIT_EVERY", cls.audit_every, 0, 1 << 30),
            number("SALE_AUDIT_ROWS", cls.audit_rows, 1, 65536),
            number("SALE_AUDIT_LIMIT", cls.audit_limit, 0.001, 1000.0),
        )
