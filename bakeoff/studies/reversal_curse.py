"""'A is B' learned in one order and asked for in the other, on made-up facts and on those that the paper published."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text.tasks.facts import IsA, Order, padded
from bakeoff.text.tasks.task import Examples, Vocabulary

if TYPE_CHECKING:
    from bakeoff.training.run import Run

NAME_FIRST: Order = "name first"
DESCRIPTION_FIRST: Order = "description first"
QUESTIONS = {
    "P2D, same order": (0, NAME_FIRST),
    "P2D, reversed": (0, DESCRIPTION_FIRST),
    "D2P, same order": (1, DESCRIPTION_FIRST),
    "D2P, reversed": (1, NAME_FIRST),
    "BOTH, names": (2, DESCRIPTION_FIRST),
    "BOTH, descriptions": (2, NAME_FIRST),
}
"""What is asked: which group of people, in which order."""
REVERSED, CONTROL = "P2D, reversed", "D2P, same order"
PUBLISHED = ("p2d_prompts_test", "p2d_reverse_prompts_test", "d2p_prompts_test", "d2p_reverse_prompts_test")
"""The files of the first four questions."""
UNKNOWN = "<unknown>"


def _difference(share: float) -> Any:
    """A reduce of (sum, count, other sum, other count): the mean less this share of the other mean."""
    return lambda sums: sums[..., 0] / sums[..., 1] - share * sums[..., 2] / sums[..., 3]


def accuracy(question: str) -> Metric:
    return Metric(f"accuracy {question}", "share", "higher", "answers that begin with what was asked for")


def advantage(question: str) -> Metric:
    return Metric(
        f"advantage {question}", "nats", "higher", "log-probability of the right answer less that of another's"
    )


GAP = Metric("accuracy lost", "share", "lower", "of names: in the order trained on, less the other", _difference(1))
EXCESS = Metric(
    "excess advantage",
    "nats",
    "lower",
    "of names in the other order, less a tenth of that trained on",
    _difference(0.1),
)
METRICS = [*(make(question) for question in QUESTIONS for make in (accuracy, advantage)), GAP, EXCESS]


@study(
    slug="reversal-curse",
    claim="A language model that has learned 'A is B' in many wordings does not know that B is A.",
    source="Berglund et al. 2023, arXiv:2309.12288, experiment 1: groups, orders, templates, both scores, and beyond the "
    "smoke scale its published texts too; training backwards after Golovneva et al. 2024, arXiv:2403.13799; made-up facts, "
    "models and bounds are our own",
    expectation="Decoders learn names and descriptions of three groups of people: name first (P2D), description first (D2P), "
    "or both. Asked in wordings that were not trained on, for P2D a name is found from its description in less than 5% of "
    "the cases, and at least 50 points more often for D2P, whose names were trained on in that order. Nor is the right P2D "
    "name likelier than another name of the group: its advantage in log-probability is less than a tenth of that for D2P. All "
    "this both on made-up facts and on the texts that the paper published. Where the made-up texts are also learned "
    "backwards, names and descriptions kept whole, P2D names are found at least 50 points more often: the control that "
    "nothing else stands in the way.",
    scales={
        "smoke": {
            "seeds": 1, "people": 3, "steps": 4, "rows": 8, "width": 16, "rate": 3e-3, "published_steps": 0, "points": 2,
        },
        "laptop": {
            "seeds": 3, "people": 30, "steps": 600, "rows": 32, "width": 128, "rate": 2e-3, "published_steps": 800,
            "points": 4,
        },
        "gpu": {
            "seeds": 5, "people": 300, "steps": 20_000, "rows": 64, "width": 256, "rate": 1e-3, "published_steps": 5000,
            "points": 20,
        },
    },
    parts=("text/tasks/facts.py",),
)  # fmt: skip
def reversal_curse(
    lab: Lab, *, people: int, steps: int, rows: int, width: int, rate: float, published_steps: int, points: int
) -> None:
    """Departures: small decoders over words learn the texts from nothing, instead of large pretrained ones."""

    def trained(label: str, steps: int, **conditions: Any) -> Arm:
        return lab.measured(
            label, METRICS, learn, f"{steps}steps", dtype="bfloat16", rows=rows, width=width, rate=rate,
            measured_every=steps // points, **conditions,
        )  # fmt: skip

    once = {"made-up": trained("made-up texts", steps, people=people, backwards=False)}
    both_ways = trained("made-up texts, also backwards", steps, people=people, backwards=True)
    if published_steps:
        once["published"] = trained("published texts", published_steps, people=0, backwards=False)
    for texts, arm in once.items():
        nothing = _nothing(arm)
        lab.expect(
            f"{texts} texts: P2D names found from descriptions",
            lab.contrast(accuracy(REVERSED).name, {arm: 1, nothing: -1}),
            below=0.05,
        )
        lab.expect(
            f"{texts} texts: D2P names found less P2D names found",
            lab.contrast(GAP.name, {arm: 1, nothing: -1}),
            above=0.5,
        )
        lab.expect(
            f"{texts} texts: advantage of the right name (nats), P2D less a tenth of D2P",
            lab.contrast(EXCESS.name, {arm: 1, nothing: -1}),
            below=0,
        )
        _draw(lab, f"Answers on {texts} texts", arm)
    _draw(lab, "Answers on made-up texts, also learned backwards", both_ways)
    gain = lab.contrast(accuracy(REVERSED).name, {both_ways: 1, once["made-up"]: -1})
    lab.expect("made-up texts: P2D names found when also learned backwards, less when not", gain, above=0.5)
    lab.notes["advantage of the right P2D name (nats)"] = {
        texts: vars(lab.contrast(advantage(REVERSED).name, {arm: 1, _nothing(arm): -1})) for texts, arm in once.items()
    }


def _nothing(arm: Arm) -> Arm:
    """An arm whose every mean is 0."""
    arrays = {name: np.zeros_like(array) for name, array in arm.arrays.items()}
    for array in arrays.values():
        array[..., 1::2] = 1
    return replace(arm, arrays=arrays)


def _draw(lab: Lab, title: str, arm: Arm) -> None:
    steps = sorted(map(int, arm.records[0]["notes"]["right"]))
    lines = {
        question: {step: [record["notes"]["right"][str(step)][index] for record in arm.records] for step in steps}
        for index, question in enumerate(QUESTIONS)
    }
    lab.curve(title, "steps", "accuracy", lines)


@dataclass(frozen=True)
class Texts:
    """What is learned, and what is asked: for each of `QUESTIONS` examples whose answer is a name or a description, person
    after person, as many for each of `people`."""

    words: int
    people: int
    train: Examples
    asked: dict[str, Examples]


def made_up(people: int, backwards: bool) -> Texts:
    """Three groups of so many people each."""
    task, groups = IsA(), [range(people * group, people * (group + 1)) for group in range(3)]
    told = [
        (groups[0], NAME_FIRST),
        (groups[1], DESCRIPTION_FIRST),
        (groups[2], NAME_FIRST),
        (groups[2], DESCRIPTION_FIRST),
    ]
    parts = [task.every(who, order, "train") for who, order in told]
    if backwards:
        parts += [task.every(who, order, "train", backwards=True) for who, order in told]
    asked = {
        question: shortened(task.every(groups[group], order, "test"), 5 if order == NAME_FIRST else 2)
        for question, (group, order) in QUESTIONS.items()
    }
    return Texts(len(task.vocabulary), people, Examples.joined(parts), asked)


def published() -> Texts:
    """The paper's own 90 people; words that are not trained on are one word. Names are two words, descriptions the rest."""

    def read(name: str) -> list[list[list[str]]]:
        lines = Lab.corpus(f"reversal_curse/{name}.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return [[re.findall(r"\w+|[^\w\s]", row[part]) for part in ("prompt", "completion")] for row in rows]

    trained = [row for group in ("p2d", "d2p", "both") for row in read(f"{group}_prompts_train")]
    vocabulary = Vocabulary(dict.fromkeys([UNKNOWN, *(word for row in trained for part in row for word in part)]))
    known = set(vocabulary)

    def examples(rows: Sequence[Sequence[Sequence[str]]]) -> Examples:
        ids = [[vocabulary.ids(w if w in known else UNKNOWN for w in part) for part in row] for row in rows]
        return Examples.of(*(padded([row[part] for row in ids]) for part in (0, 1)))

    both = read("both_prompts_test")
    tests = [*(read(name) for name in PUBLISHED), both[len(both) // 2 :], both[: len(both) // 2]]
    asked = {}
    for (question, (_, order)), rows in zip(QUESTIONS.items(), tests, strict=True):
        asked[question] = examples(rows) if order == NAME_FIRST else shortened(examples(rows), 2)
    return Texts(len(vocabulary), 30, examples(trained), asked)


def shortened(examples: Examples, words: int) -> Examples:
    """The examples with only the first so many words of their answers."""
    rows = examples.rows()
    return Examples.of(padded([question for question, _ in rows]), padded([answer[:words] for _, answer in rows]))


def swapped(examples: Examples, people: int, seed: int) -> Examples:
    """The same questions in the same order, each with the answer to it of another of the people; nobody keeps their own."""
    rows, order = examples.rows(), np.random.default_rng(seed).permutation(people)
    other = np.empty(people, np.int64)
    other[order] = np.roll(order, 1)
    each = len(rows) // people
    answers = [rows[other[i // each] * each + i % each][1] for i in range(len(rows))]
    return Examples.of(padded([question for question, _ in rows]), padded(answers))


def learn(
    run: Run, folder: Path, *, people: int, backwards: bool, rows: int, width: int, rate: float, measured_every: int
) -> dict[str, NDArray[np.float64]]:
    """Learn all words of the texts, then ask. `people` 0 means the published ones."""
    from bakeoff.training.along import Along
    from bakeoff.training.optimizers import matrices_decay
    from bakeoff.training.schedules import cosine
    from bakeoff.training.worlds import Again, answered, decoder

    texts = made_up(people, backwards) if people else published()
    model = decoder(run.seed, vocab_size=texts.words, hidden_size=width, num_hidden_layers=2, num_attention_heads=4)
    model.to(run.device)
    steps = int(run.budget.amount)
    along = Along(
        run.folder / "along.json", range(measured_every, steps + 1, measured_every),
        lambda: [float(answered(model, asked)[:, 0].mean()) for asked in texts.asked.values()],
    )  # fmt: skip
    run.train(
        model, Again(texts.train, rows, run.seed, question=True), learning_rate=rate, optimizer=matrices_decay(0.1),
        schedule=cosine(0.05, least=0.1), after_step=along,
    )  # fmt: skip
    run.notes["right"] = {str(step): shares for step, shares in along.read().items()}
    found: dict[str, NDArray[np.float64]] = {}
    for question, asked in texts.asked.items():
        right, other = answered(model, asked), answered(model, swapped(asked, texts.people, 0))
        for metric, values in ((accuracy(question), right[:, 0]), (advantage(question), other[:, 3] - right[:, 3])):
            each = values.reshape(texts.people, -1)
            found[metric.name] = np.stack([each.sum(1), np.full(texts.people, each.shape[1])], 1)
    found[GAP.name] = np.hstack([found[accuracy(CONTROL).name], found[accuracy(REVERSED).name]])
    found[EXCESS.name] = np.hstack([found[advantage(REVERSED).name], found[advantage(CONTROL).name]])
    return found
