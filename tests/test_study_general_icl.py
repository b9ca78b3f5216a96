"""What the study of general-purpose learning in context asks, and its linear probe."""

from __future__ import annotations

import numpy as np

from bakeoff.studies.general_icl import _questions, linear_probe
from bakeoff.text.tasks.in_context import PermutedClassification


def test_questions_differ_in_what_is_new() -> None:
    task = {"data": "clusters", "examples_each": 6, "classes": 3, "pool": 4}
    trained = PermutedClassification(**task).examples("train", 5, 200)  # type: ignore[arg-type]
    asked = {kind: one.examples(split, 5, 50) for kind, (one, split) in _questions(task, "digits").items()}
    points = {row.tobytes() for row in trained.inputs[..., 3:].reshape(-1, 5)}
    known = set(trained.key.tolist())
    assert set(asked["seen tasks"].key.tolist()) == known
    assert not set(asked["unseen tasks"].key.tolist()) & known
    assert not set(asked["unseen data"].key.tolist()) & known
    for one in asked.values():
        assert not points & {row.tobytes() for row in one.inputs[..., 3:].reshape(-1, 5)}
    assert asked["unseen data"].inputs.shape == asked["unseen tasks"].inputs.shape == (50, 6, 8)


def test_the_probe_is_ridge_regression_on_what_came_before() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((3, 12, 4)).astype(np.float32), draw.integers(3, size=(3, 12))
    said = linear_probe(x, y)
    assert not said[:, 0].any()
    for row in range(3):
        for place in (1, 5, 11):
            inputs = np.hstack([x[row, :place], np.ones((place, 1))])
            ridge = np.vstack([inputs, np.eye(5)])
            labels = np.vstack([np.eye(3)[y[row, :place]], np.zeros((5, 3))])
            weights = np.linalg.lstsq(ridge, labels, rcond=None)[0]
            assert said[row, place] == (np.append(x[row, place], 1) @ weights).argmax()


def test_the_probe_learns_separable_classes() -> None:
    points = PermutedClassification(classes=3, examples_each=60).draw(np.random.default_rng(0), 8, 40)
    said = linear_probe(points.inputs[..., 3:], points.targets)
    assert (said == points.targets)[:, 40:].mean() > 0.9
