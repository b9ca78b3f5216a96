"""Factors on the learning rate as functions of the spent fraction (0 to 1) of the budget."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def linear_decay(fraction: float) -> float:
    """Up over the first 5%, then down to 0 on a line."""
    warm_up = 0.05
    return min(max(fraction, 1e-3) / warm_up, 1.0, (1.0 - fraction) / (1.0 - warm_up))


def cosine(warm_up: float = 0.01, least: float = 0.0, begin: float = 0.0) -> Schedule:
    """From `begin` up to 1 on a line over the first `warm_up` of the budget, then down to `least` on a half cosine."""

    def factor(fraction: float) -> float:
        if fraction < warm_up:
            return begin + (1.0 - begin) * fraction / warm_up
        done = (fraction - warm_up) / (1.0 - warm_up)
        return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

    return factor


def constant(fraction: float) -> float:
    """1 throughout."""
    return 1.0
