"""What every benchmark shares: two sides timed in turn in one process, a table, and one last line of JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """Our speed over the peer's, in the same unit of work per second, and what it should be at least."""

    ours: float
    peer: float
    goal: float

    @property
    def ratio(self) -> float:
        return self.ours / self.peer


def arguments(description: str, repeats: int = 5) -> argparse.Namespace:
    """The flags of every benchmark, read from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print nothing but the last line, which is JSON")
    parser.add_argument("--repeats", type=int, default=repeats, help="times that each side is measured")
    return parser.parse_args()


def seconds(work: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(ours: Callable[[], Any], peer: Callable[[], Any], amount: float, *, goal: float, repeats: int = 5) -> Ratio:
    """Time both sides in turn, the first of each pair changing every time, and take each side's median.

    Args:
        amount: units of work in one call, the same for both sides.
        goal: the ratio that is aimed at.
    """
    sides = {"ours": ours, "peer": peer}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in sorted(sides, reverse=repeat % 2 == 1):
            taken[name].append(seconds(sides[name]))
    return Ratio(*(amount / statistics.median(taken[name]) for name in ("ours", "peer")), goal=goal)


def report(benchmark: str, unit: str, ratios: dict[str, Ratio], *, json_only: bool) -> None:
    """Print the table, unless only JSON is wanted, and the line of JSON."""
    if not json_only:
        width = max(map(len, ratios))
        print(f"{'':{width}}  {'ours':>12}  {'peer':>12}  {'ratio':>6}  {'goal':>6}   ({unit})")
        for label, row in ratios.items():
            print(f"{label:{width}}  {row.ours:12,.0f}  {row.peer:12,.0f}  {row.ratio:6.2f}  {row.goal:6.2f}")
    rows = {
        label: {"ours": row.ours, "peer": row.peer, "ratio": row.ratio, "goal": row.goal}
        for label, row in ratios.items()
    }
    print(json.dumps({"benchmark": benchmark, "ratios": rows}))
