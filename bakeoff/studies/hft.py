"""Three tasks learned one after the other: what is left of the earlier ones under half and under full fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from bakeoff.method import Spec
from bakeoff.study import Arm, Lab, study
from bakeoff.text import installed

if TYPE_CHECKING:
    from bakeoff.tune.contest import TuneSetting

RATES = {"full": (1e-3, 2e-3, 4e-3, 8e-3), "hft": (1e-3, 2e-3, 4e-3, 8e-3), "lora": (5e-3, 1e-2, 2e-2, 4e-2)}


class Course(NamedTuple):
    """One configuration's way through the tasks: `last` is the arm of the last stage.

    `learned` and `after` have as target loss that of all tasks, each task counting the same: `learned` as it was at the
    end of the task's own stage, `after` as it was at the end of the last.
    """

    learned: Arm
    after: Arm
    last: Arm


@study(
    slug="hft",
    claim="Half fine-tuning forgets less than full fine-tuning at equal quality on the current task.",
    source="Hui et al. 2024, arXiv:2404.18466, sections 3 and 4",
    expectation=(
        "With learning rates tuned on the first task alone, hft forgets earlier tasks and general text less than full, "
        "keeps at least 90% of what full gains on each task while it is learned, and forgets earlier tasks less than the "
        "strongest full, at its own or a lower rate, that learns no more. Forgetting is the rise of a task's loss until "
        "the end of the last stage, in nats/token. By the paper's figures it should be 20 to 50% less; that is noted."
    ),
    methods=("full", "hft", "lora"),
    scales={
        "smoke": {"seeds": 1, "seeds_beside": 1, "steps": 3, "rows": 4, "length": 32, "items": 4},
        "laptop": {"seeds": 5, "seeds_beside": 1, "steps": 40, "rows": 6, "length": 64, "items": 32},
        "gpu": {"seeds": 8, "seeds_beside": 8, "steps": 150, "rows": 16, "length": 128, "items": 256},
    },
)
def hft(lab: Lab, *, seeds_beside: int, steps: int, rows: int, length: int, items: int) -> None:
    """Tune the rates, learn the tasks in turn with each configuration, compare what was learned and what was lost.

    `seeds_beside` is the number of seeds of the configurations that are there for the notes alone.
    """
    stages, budget = _stages(lab, rows, length, items), f"{steps}steps"
    first = next(iter(stages.values()))
    tuned = {
        method: Spec.parse(lab.choose(method, first, budget, "learning_rate", values, "target_loss"))
        for method, values in RATES.items()
    }
    start = lab.untouched(first)
    untouched = _course(stages, [start] * len(stages))
    courses: dict[str, Course] = {}

    def learn(method: str, own: Lab = lab, **changed: object) -> Course:
        spec = str(Spec(method, {**tuned[method].arguments, **changed}))
        if spec not in courses:
            courses[spec] = _course(stages, _learn(own, spec, stages, budget))
        return courses[spec]

    half, full = learn("hft"), learn("full")
    for power in range(12):
        matched = learn("full", learning_rate=float(f"{0.7**power * tuned['full'].arguments['learning_rate']:.3g}"))
        if matched.learned.mean("target_loss") >= half.learned.mean("target_loss"):
            break
    beside = replace(lab, seeds=lab.seeds[:seeds_beside])
    for method, changed in (("hft", {"unit": "layer"}), ("hft", {"unit": "model"}), ("lora", {})):
        learn(method, beside, **changed)

    # The rise of the last task's own loss is 0, so a mean over the earlier tasks is larger than one over all.
    scaled = len(stages) / (len(stages) - 1)
    for label, course in courses.items():
        forgetting, of_full = (scaled * (_by_seed(c.after) - _by_seed(c.learned)) for c in (course, full))
        lab.notes[label] = {
            "loss on the tasks as learned": course.learned.mean("target_loss"),
            "loss on the tasks at the end": course.after.mean("target_loss"),
            "rise of the kept loss": course.last.mean("kept_loss") - start.mean("kept_loss"),
            "forgetting": float(forgetting.mean()),
            "forgetting over that of full": float(forgetting.mean() / of_full[: len(forgetting)].mean()),
            "forgetting by seed": forgetting.tolist(),
        }
    lab.notes["full at equal learning"] = next(label for label, course in courses.items() if course is matched)

    def forgets_less_than(other: Course) -> dict[Arm, float]:
        return {half.after: scaled, half.learned: -scaled, other.after: -scaled, other.learned: scaled}

    share = {half.learned: 1.0, full.learned: -0.9, untouched.learned: -0.1}
    kept = {half.last: 1.0, full.last: -1.0}
    lab.expect("forgetting, hft minus full", lab.contrast("target_loss", forgets_less_than(full)), below=0)
    lab.expect("loss of general text at the end, hft minus full", lab.contrast("kept_loss", kept), below=0)
    lab.expect("loss as learned, hft minus 90% of full's gain", lab.contrast("target_loss", share), below=0)
    lab.expect(
        "forgetting, hft minus full at equal learning", lab.contrast("target_loss", forgets_less_than(matched)), below=0
    )


def _stages(lab: Lab, rows: int, length: int, items: int) -> dict[str, TuneSetting]:
    """The tasks in order; the exam of each holds the held-out text of all of them, and general text as kept."""
    if lab.scale == "smoke":
        texts = {
            "reference": [{"text": example.text} for example in installed("reference", limit=60_000)],
            "code": [{"text": example.text} for example in installed("code", limit=60_000)],
            "general": [
                {"text": example.text} for example in installed("docstrings", limit=60_000, packages=["stdlib"])
            ],
        }
    else:
        problems = lab.corpus("reasoning/gsm8k_train.jsonl").read_text("utf-8").splitlines()[:2000]
        articles = json.loads(lab.corpus("qa/xquad.de.json").read_text("utf-8"))["data"]
        texts = {
            "drama": [{"text": lab.corpus("text/tinyshakespeare_first_half.txt").read_text("utf-8")}],
            "arithmetic": [{"text": "{question}\n{answer}".format(**json.loads(line))} for line in problems],
            "German": [{"text": part["context"]} for article in articles for part in article["paragraphs"]],
            "general": [{"text": lab.corpus("text/wikitext2_raw_test.txt").read_text("utf-8")}],
        }
    question = {"max_length": length, "per_device_train_batch_size": rows, "exam_items": items, "dtype": "bfloat16"}
    opened = {
        name: cast("TuneSetting", lab.open("tune", model="reference", train=lab.write(name, text), **question))
        for name, text in texts.items()
    }
    exam = {name: setting.exam_rows["target"] for name, setting in opened.items()}
    origin = {f"exam {name}": setting.origin["train"] for name, setting in opened.items()}
    kept = exam.pop("general")
    return {
        name: replace(
            opened[name],
            exam_rows={"target": exam[name], "kept": kept, **exam},
            origin={**opened[name].origin, **origin},
        )
        for name in exam
    }


def _learn(lab: Lab, spec: str, stages: Mapping[str, TuneSetting], budget: str) -> list[Arm]:
    """The arm of each stage, which starts from the result of the one before, seed by seed."""
    from bakeoff import lm

    arms: list[Arm] = []
    for number, (name, setting) in enumerate(stages.items()):
        starts = [setting] * len(lab.seeds)
        if arms:
            starts = [
                replace(
                    setting, model=setting.reload(folder), origin={**setting.origin, "model": lm.fingerprint(folder)}
                )
                for folder in arms[-1].results
            ]
        # Other seeds at each stage: the masks are drawn anew for every task.
        own = replace(lab, seeds=[seed + 1000 * number for seed in lab.seeds])
        arms.append(own.arm(spec, starts, budget, label=f"{spec} after {name}", keep=number + 1 < len(stages)))
    return arms


def _course(stages: Mapping[str, TuneSetting], arms: Sequence[Arm]) -> Course:
    def pooled(own: Sequence[Arm]) -> Arm:
        parts = [arm.arrays[f"other_loss:{name}"] for name, arm in zip(stages, own, strict=True)]
        # The components are loss and number of tokens: over the task's number of tokens, each task weighs 1.
        equal = [part / part[..., 1:].sum(axis=1, keepdims=True) for part in parts]
        return replace(arms[-1], arrays={"target_loss": np.concatenate(equal, axis=1)})

    return Course(pooled(arms), pooled([arms[-1]] * len(arms)), arms[-1])


def _by_seed(arm: Arm) -> NDArray[np.float64]:
    sums = arm.arrays["target_loss"].sum(axis=1)
    return np.asarray(sums[:, 0] / sums[:, 1])
