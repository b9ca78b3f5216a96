"""Whether a little general text in every step stops forgetting, on word problems against encyclopedia articles."""

from __future__ import annotations

import re
from typing import Any

from bakeoff.method import Spec
from bakeoff.stats import Effect
from bakeoff.study import Lab, study
from bakeoff.text import installed, read

TARGET, KEPT, STORIES = "target_loss", "kept_loss", "other_loss:stories"


@study(
    slug="mixed-training",
    claim="Interleaving general examples at 1:1 to 15:1 stops forgetting at equal target quality.",
    source="Reynolds 2025, arXiv:2512.13706, table 1",
    expectation="Word problems are learned from equally many problems with and without articles in every step, at the rate "
    "that is best for the problems alone. Learning the problems alone raises the loss on held-out articles. At 1:1 it "
    "rises by less than a tenth of that, at 15:1 by less than a third, and both ratios lower the loss on held-out "
    "problems by more than nine tenths of what the problems alone lower it. Reported without an expectation: 3:1 and "
    "7:1, both sides at equal steps, and stories, which are never replayed: if they are forgotten, the claim is one "
    "about the replayed kind of text only.",
    methods=("full", "mixed-training"),
    scales={
        "smoke": {"seeds": 1, "steps": 2, "rows": 4, "length": 32, "items": 6, "rates": (1e-3,)},
        "laptop": {"seeds": 3, "steps": 28, "rows": 16, "length": 160, "items": 48, "rates": (3e-4, 1e-3, 3e-3)},
        "gpu": {"seeds": 10, "steps": 60, "rows": 32, "length": 256, "items": 128, "rates": (3e-4, 1e-3, 3e-3)},
    },
)
def mixed_training(lab: Lab, *, steps: int, rows: int, length: int, items: int, rates: tuple[float, ...]) -> None:
    paths = {name: lab.write(name, made) for name, made in _texts(lab).items()}
    setting = lab.open(
        "tune", model="reference", train=paths["problems"], keep=paths["articles"], also=(paths["stories"],),
        max_length=length, per_device_train_batch_size=rows, dtype="bfloat16", exam_items=items,
    )  # fmt: skip
    full = lab.choose("full", setting, f"{steps}steps", "learning_rate", rates, TARGET)
    rate = Spec.parse(full).arguments["learning_rate"]

    def mixed(parts: int) -> str:
        return f"mixed-training(target_parts={parts}, keep_parts=1, learning_rate={rate})"

    start, alone = lab.untouched(setting), lab.arm(full, setting, f"{steps}steps")
    by_parts = {n: lab.arm(mixed(n), setting, f"{round(steps * (n + 1) / n)}steps") for n in (1, 3, 7, 15)}
    alone_longer = lab.arm(full, setting, f"{2 * steps}steps")
    mixed_shorter = lab.arm(mixed(1), setting, f"{steps}steps")

    lab.expect("rise of kept loss, problems alone", lab.contrast(KEPT, {alone: 1, start: -1}), above=0)
    for parts, lost, words in ((1, 0.1, "a tenth"), (15, 1 / 3, "a third")):
        arm = by_parts[parts]
        rise = lab.contrast(KEPT, {arm: 1, start: lost - 1, alone: -lost})
        lab.expect(f"rise of kept loss at {parts}:1, less {words} of that of the problems alone", rise, below=0)
        gain = lab.contrast(TARGET, {arm: 1, alone: -0.9, start: -0.1})
        lab.expect(f"nine tenths of the gain on problems alone, less the gain at {parts}:1", gain, below=0)

    for steps_each, mix, single in ((2 * steps, by_parts[1], alone_longer), (steps, mixed_shorter, alone)):
        lab.notes[f"1:1 less problems alone, both at {steps_each} steps"] = {
            metric: _figures(lab.contrast(metric, {mix: 1, single: -1})) for metric in (TARGET, KEPT, STORIES)
        }
    lab.notes["rise of the loss on stories, never replayed"] = {
        name: _figures(lab.contrast(STORIES, {arm: 1, start: -1}))
        for name, arm in {"problems alone": alone, **{f"{n}:1": arm for n, arm in by_parts.items()}}.items()
    }


def _figures(effect: Effect) -> dict[str, float | None]:
    return {"effect": effect.effect, "low": effect.low, "high": effect.high}


def _texts(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    """Rows to learn, rows to replay, rows that no method sees. No article is both replayed and measured."""
    if lab.scale == "smoke":
        code, topics = installed("code", limit=20_000), installed("reference", limit=40_000)
        kinds = {"problems": code, "articles": topics[::2], "stories": topics[1::2]}
        return {name: [{"text": e.text} for e in examples] for name, examples in kinds.items()}
    problems = read(lab.corpus("reasoning/gsm8k_train.jsonl"))
    wikitext = lab.corpus("text/wikitext2_raw_test.txt").read_text("utf-8")
    # Articles begin with a line of the form " = Title = ". Their first 6000 characters are not cut before the split.
    articles = [a[:6000] for a in re.split(r"\n(?= = [^=])", wikitext) if len(a) > 1000]
    short = [e for e in problems if len(e.prompt) + len(e.completion) <= 300]
    return {
        "problems": [{"prompt": e.prompt, "completion": e.completion} for e in short],
        "articles": [{"text": a} for a in articles],
        "stories": [{"text": e.text} for e in read(lab.corpus("text/tinystories_sample.txt"))[:100]],
    }
