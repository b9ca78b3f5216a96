"""The demonstration: five ways of fine-tuning the packaged model on real text that every installation carries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bakeoff import files, registry
from bakeoff.budget import Budget
from bakeoff.comparison import Comparison, Watch
from bakeoff.method import Spec
from bakeoff.text import installed

METHODS = ("full", "lora", "hft", "minifinetuning", "mixed-training")
BUDGET, SEEDS = "40steps", 3


def comparison(out: Path, watch: Watch, notice: Callable[[str], None]) -> Comparison:
    """The question: the model learns the Python language reference, and should not forget other packages' docstrings."""
    tune = registry.contest("tune")
    data = out / "data"
    learned = _write(data / "language_reference.jsonl", [e.text for e in installed("reference")])
    known = _write(
        data / "docstrings.jsonl", [e.text for e in installed("docstrings", limit=400_000, packages=["numpy", "scipy"])]
    )
    question = tune.question(
        model="reference", train=learned, keep=known, max_length=128, per_device_train_batch_size=8, exam_items=48, dtype="bfloat16"
    )  # fmt: skip
    notice(
        f"The packaged model learns the Python language reference ({learned}) and should go on knowing docstrings ({known})."
    )
    return Comparison(
        tune, question, [Spec.parse(m) for m in METHODS], Budget.parse(BUDGET), range(SEEDS), watch=watch, notice=notice
    )


def next_commands(out: Path) -> str:
    """What to type next: the same on one's own model and text."""
    return f"""
Next:
  open {out / "report.html"}
  bakeoff score --model {out / "winner"} --text {out / "data" / "docstrings.jsonl"}
  bakeoff compare tune full "lora(rank=8)" hft --model YOUR_MODEL_FOLDER --train YOUR_TEXT --keep TEXT_IT_KNOWS \\
      --budget 60steps --seeds 3 --out results
  bakeoff list"""


def _write(path: Path, texts: list[str]) -> str:
    files.write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)
