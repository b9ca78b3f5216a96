"""What the study on knowledge storage and extraction asks and reads off states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bakeoff.budget import Budget
from bakeoff.studies.physics_3_1 import asked, probed, world
from bakeoff.training.run import Run
from bakeoff.training.worlds import decoder

PEOPLE, STEPS = 120, 60


def test_questions_are_about_each_person_in_turn() -> None:
    task = world(5, 8)
    rows = task.text(asked(task, np.array([7, 3])))
    assert len(rows) == 6
    names = [" ".join(task.vocabulary.words(task.people[person, :3])) for person in (7, 3)]
    assert [names[0] in question for question, _ in rows] == [True] * 3 + [False] * 3
    assert [names[1] in question for question, _ in rows] == [False] * 3 + [True] * 3
    assert len({question for question, _ in rows}) == 6
    for question, answer in rows:
        assert task.solve(question.split()) == answer.split()


def test_guessing_is_right_as_often_as_the_values_are_many() -> None:
    task = world(20, 40)
    for held in task.held:
        assert np.bincount(held[:, 0]).max() / len(held) == pytest.approx(1 / 20, rel=0.1)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """A probe of values that the last token of the text tells, and of values drawn at random, on an untrained model."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 5, size=(PEOPLE, 4)).astype(np.int32)
    place = np.full(PEOPLE, 2)
    model = decoder(0, vocab_size=6, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = {}
    for name, values in (("told", tokens[:, 2:3] - 1), ("drawn", draw.integers(4, size=(PEOPLE, 1)))):
        run = Run(Budget.parse(f"{STEPS}steps"), 0, tmp_path_factory.mktemp("run"))
        found[name] = probed(run, model, tokens, place, values.astype(np.int64), rank=2, steps=STEPS)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())
    return found


def test_a_probe_reads_what_its_token_tells_of_people_it_did_not_learn(reading: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    assert reading["told"].shape == (PEOPLE // 2, 1)
    assert reading["told"].mean() > 0.95


def test_a_probe_of_random_values_is_at_chance(reading: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    assert reading["drawn"].mean() == pytest.approx(0.25, abs=0.2)


def test_a_probe_does_not_see_beyond_its_place(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    tokens = draw.integers(1, 5, size=(PEOPLE, 4)).astype(np.int32)
    model = decoder(0, vocab_size=6, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    run = Run(Budget.parse(f"{STEPS}steps"), 0, tmp_path)
    right = probed(run, model, tokens, np.full(PEOPLE, 2), tokens[:, 3:].astype(np.int64) - 1, rank=2, steps=STEPS)
    assert right.mean() == pytest.approx(0.25, abs=0.2)
