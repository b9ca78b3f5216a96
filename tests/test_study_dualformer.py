"""What the Dualformer study adds to the mazes: its arms, the dropping that is drawn anew, modes and their measures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bakeoff.budget import Budget
from bakeoff.lm import sampling
from bakeoff.studies import dualformer as study
from bakeoff.text.tasks.mazes import COMPLETE, Maze, trace_length
from bakeoff.training.run import Run


def test_shares_of_the_arms_add_up_and_only_the_whole_and_the_empty_trace_are_the_baselines() -> None:
    assert {name: levels for name, (levels, _) in study.ARMS.items()} == {
        "Dualformer": (0.45, 1 / 6, 1 / 6, 1 / 6, 0.05), "Complete-Trace": (1, 0, 0, 0, 0), "Solution-Only": (0, 0, 0, 0, 1),
    }  # fmt: skip
    for levels, _ in study.ARMS.values():
        assert sum(levels) == pytest.approx(1)


def test_all_arms_see_the_same_mazes_and_dropping_is_drawn_anew_each_time() -> None:
    task = Maze(ties="random", largest=3)
    examples = task.examples("train", 3, 50)
    seen: dict[str, list[list[tuple[list[int], list[int]]]]] = {}
    for name, (levels, _) in study.ARMS.items():
        own = Maze(ties="random", largest=3, levels=levels)
        batches = study.Dropping(own, examples, 20, 1)
        seen[name] = []
        for step in range(30):
            batch = batches(step)
            again = batches(step)
            assert torch.equal(batch.input_ids, again.input_ids)
            rows = []
            for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
                begin = next(i for i, label in enumerate(labels) if label >= 0)
                answer = [label for label in labels if label >= 0]
                assert ids[begin : begin + len(answer)] == answer, "the whole answer is learned"
                rows.append((ids[:begin], answer))
            seen[name].append(rows)
    dual, whole, solutions = (seen[name] for name in study.ARMS)
    lengths: dict[tuple[int, ...], set[int]] = {}
    for step in range(30):
        for (question, left), (same, full), (also, plan) in zip(dual[step], whole[step], solutions[step], strict=True):
            assert question == same == also
            assert full[-len(plan) :] == plan == left[-len(plan) :]
            lengths.setdefault(tuple(question), set()).add(len(left))
    assert max(map(len, lengths.values())) >= 4


ANSWERS = {
    "wrong": "create 0 0 c0 c2 plan 0 0 plan 2 0 eos",
    "long": "plan 0 0 plan 0 1 plan 0 2 plan 1 2 plan 2 2 plan 2 1 plan 2 0 eos",
    "best": "create 0 0 c0 c2 close 0 0 c0 c2 plan 0 0 plan 0 1 plan 1 1 plan 2 1 plan 2 0 eos",
}


def test_measures_of_made_up_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Maze(ties="random", largest=3)
    words, asked = task.vocabulary, []
    question = words.ids(["side", "3", "start", "0", "0", "goal", "2", "0", "wall", "1", "0", "bos"])

    def sample(model: Any, prompts: list[list[int]], *, temperature: float = 0.0, **options: Any) -> list[list[int]]:
        asked.append(prompts)
        kinds = (
            ["best"] * len(prompts)
            if not temperature
            else ["wrong", "long", "best", "best", "wrong", "wrong", "wrong", "long"]
        )
        return [words.ids(ANSWERS[kind].split()) for kind in kinds]

    monkeypatch.setattr(sampling, "sample", sample)
    run: Any = SimpleNamespace(generator=lambda *names: None)
    found = study.answers_in("auto", None, task, [question, question], 50, 4, run)
    assert [len(prompts) for prompts in asked] == [2, 8]
    values = {name.removeprefix("auto: "): (column[:, 0] / column[:, 1]).tolist() for name, column in found.items()}
    assert values == {
        "optimal": [1, 1], "optimal drawn": [0.5, 0], "optimal once": [1, 0], "solved once": [1, 1],
        "weighted cost": [1, 4 / 6], "different plans": [1, 0], "trace": [6.25, 3.75],
        "tokens": [12 + 22 + 26 + 26, 12 * 3 + 22],
    }  # fmt: skip


@pytest.mark.parametrize(("mode", "first"), [("fast", "plan"), ("slow", "create"), ("auto", None)])
def test_the_first_word_of_an_answer_is_forced(mode: str, first: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    task, asked = Maze(largest=3), []

    def sample(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        asked.extend(prompts)
        return [[options["stop"]] for _ in prompts]

    monkeypatch.setattr(sampling, "sample", sample)
    question = task.examples("test", 3, 1).rows()[0][0]
    run: Any = SimpleNamespace(generator=lambda *names: None)
    study.answers_in(mode, None, task, [question], 50, 2, run)
    assert asked == [[*question, *([task.vocabulary.id(first)] if first else [])]] * 3


def test_share_of_mazes_solved_by_number_of_answers() -> None:
    # 4 answers, of which 0, 1 or 4 are right: one of 2 is right with chances 0, 1 - 3 / 6 and 1.
    right = np.array([[[0, 4], [1, 4], [4, 4]]], float)
    found = study._by_samples(right)
    assert found[1] == pytest.approx([(0 + 1 / 4 + 1) / 3])
    assert found[2] == pytest.approx([(0 + 1 / 2 + 1) / 3])
    assert found[4] == pytest.approx([2 / 3])


def test_answers_are_as_long_as_the_longest_whole_trace_at_most(tmp_path: Path) -> None:
    run = Run(Budget(1, "steps"), 0, tmp_path)
    found = study.learn(
        run, tmp_path, levels=COMPLETE, modes=["slow"], mazes=10, rows=2, sides=[3], items=3, samples=2, width=16, layers=1,
        heads=2, rate=1e-3,
    )  # fmt: skip
    task = Maze(ties="random", largest=3)
    test = task.examples("test", 3, 3)
    longest = max(len(answer) for _, answer in test.rows())
    assert (found["slow: trace"][:, 0] <= 2 * longest).all()
    assert max(trace_length(task.vocabulary.words(answer)) for _, answer in test.rows()) < longest
