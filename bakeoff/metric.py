"""A number with a name, a unit and a direction, measured item by item so that two models can be compared in pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Direction = Literal["lower", "higher"]
Reduce = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """First component over second: a mean weighted by tokens when they are (sum of losses, number of tokens)."""
    return np.asarray(sums[..., 0] / sums[..., 1])


@dataclass(frozen=True)
class Metric:
    """What is measured. `reduce` turns additive components, summed over items ([..., C]), into the value ([...])."""

    name: str
    unit: str
    better: Direction
    description: str
    reduce: Reduce = ratio

    def describe(self, value: float) -> dict[str, Any]:
        return {"value": value, "unit": self.unit, "better": self.better}


@dataclass(frozen=True)
class Measured:
    """One metric on one model: additive components of every exam item, an array of shape [items, components]."""

    metric: Metric
    components: NDArray[np.float64]

    @property
    def value(self) -> float:
        return float(self.metric.reduce(self.components.sum(axis=0)))
