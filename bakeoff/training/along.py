"""What a training looked like on its way, kept so that it is still known after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bakeoff import files


class Along:
    """Numbers measured after some steps of a training, in a file of the run's folder.

    It is an `after_step` hook: once `step + 1` steps are done it calls `measure` if that number is among `steps`. A run
    that was killed measures the steps after its last checkpoint again, with the same result.
    """

    def __init__(self, path: Path, steps: Iterable[int], measure: Callable[[], Sequence[float]]) -> None:
        self.path, self.steps, self.measure = path, frozenset(steps), measure

    def __call__(self, step: int) -> None:
        if step + 1 in self.steps:
            values = [value if math.isfinite(value) else None for value in self.measure()]
            files.write_json(self.path, {str(done): v for done, v in sorted({**self.read(), step + 1: values}.items())})

    def read(self) -> dict[int, list[float | None]]:
        """What was measured, by the number of steps done; None stands for infinities and NaN."""
        if not self.path.exists():
            return {}
        return {int(done): values for done, values in json.loads(self.path.read_text("utf-8")).items()}
