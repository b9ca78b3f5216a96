"""What every method of a comparison may spend, and the meter that counts it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Literal

from bakeoff.errors import UsageError

Unit = Literal["steps", "tokens", "seconds"]

_UNITS: dict[str, tuple[Unit, float]] = {
    "step": ("steps", 1), "steps": ("steps", 1),
    "token": ("tokens", 1), "tokens": ("tokens", 1),
    "s": ("seconds", 1), "second": ("seconds", 1), "seconds": ("seconds", 1),
    "min": ("seconds", 60), "minute": ("seconds", 60), "minutes": ("seconds", 60),
    "h": ("seconds", 3600), "hour": ("seconds", 3600), "hours": ("seconds", 3600),
}  # fmt: skip
_MULTIPLES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Budget:
    """An amount (at least 0) of training steps, of training tokens, or of seconds of wall time."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read '60steps', '200k tokens', '1.5Mtokens', '30s' or '10min'; UsageError otherwise."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMG]?)\s*([a-z]+)\s*", text)
        if not match or match[3] not in _UNITS:
            raise UsageError(
                f"The budget {text!r} is not understood: write a number and a unit, such as 60steps, 200ktokens or 10min."
            )
        unit, factor = _UNITS[match[3]]
        amount = float(match[1]) * _MULTIPLES[match[2].lower()] * factor
        if unit != "seconds" and amount != int(amount):
            raise UsageError(f"The budget {text!r} is not a whole number of {unit}: write one that is.")
        return cls(amount, unit)

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}" if self.unit == "seconds" else f"{int(self.amount)} {self.unit}"


@dataclass
class Meter:
    """What has been spent so far: optimizer steps, training tokens (without padding), seconds, floating-point operations.

    `forward_tokens` counts tokens that a method read without learning from them: calibration, candidate scoring.
    """

    steps: int = 0
    tokens: int = 0
    forward_tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0

    def spent(self, unit: Unit) -> float:
        return float({"steps": self.steps, "tokens": self.tokens, "seconds": self.seconds}[unit])

    def as_dict(self) -> dict[str, float]:
        return asdict(self)
