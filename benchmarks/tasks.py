"""Seconds in which each synthetic task yields a million examples of its train split, on one core.

They are drawn in blocks, as a training does it, and not kept. Without names all tasks are measured, each at the third of its
difficulties; what is aimed at is 20 s.
"""

from __future__ import annotations

import argparse
import json

from common import seconds

from bakeoff.text import tasks
from bakeoff.training.threads import keep_memory

MILLION = 1_000_000
BLOCK = 50_000
GOAL = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="tasks, as in sorting or \"maze(ties='random')\"; default: all")
    parser.add_argument(
        "--count", type=int, default=MILLION, help="examples that are drawn; the seconds are for a million"
    )
    parser.add_argument("--difficulty", type=int, help="default: the third that a task has")
    parser.add_argument("--json", action="store_true", help="print nothing but the last line, which is JSON")
    options = parser.parse_args()
    keep_memory()
    rows = {}
    if not options.json:
        print(f"{'task':36}{'difficulty':>24}{'tokens':>8}{'seconds':>9}   (a million examples; goal {GOAL:g} s)")
    for spec in options.names or sorted(tasks.found()):
        task = tasks.make(spec)
        difficulty = options.difficulty or min(task.least + 2, task.greatest)
        tokens = 0

        def draw(task: tasks.Task = task, difficulty: int = difficulty) -> None:
            nonlocal tokens
            for seed, begin in enumerate(range(0, options.count, BLOCK)):
                drawn = task.examples("train", difficulty, min(BLOCK, options.count - begin), seed)
                tokens += int(drawn.length.sum()) if isinstance(drawn, tasks.Examples) else drawn.targets.size

        took = seconds(draw) * MILLION / options.count
        rows[spec] = {
            "difficulty": difficulty, "unit": task.unit, "tokens": tokens / options.count, "seconds": took, "goal": GOAL,
        }  # fmt: skip
        if not options.json:
            print(f"{spec:36}{f'{task.unit} {difficulty}':>24}{tokens / options.count:8.1f}{took:9.2f}", flush=True)
    print(json.dumps({"benchmark": "tasks", "tasks": rows}))


if __name__ == "__main__":
    main()
