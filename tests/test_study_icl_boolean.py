"""The learners that the study of Boolean functions in context measures itself by."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bakeoff.studies.icl_boolean import bayes, elimination
from bakeoff.text.tasks.in_context import Boolean


def test_the_bayes_rule_is_that_of_a_plain_sum_over_functions() -> None:
    points = Boolean(examples_each=5, chance=0.4).draw(np.random.default_rng(0), 2, 30)
    x, y = points.inputs[:, ::2], points.targets[:, ::2]
    said = bayes(x, y, 0.4)
    for inputs, labels, answers in zip(x, y, said, strict=True):
        for place in range(5):
            weight = {0: 0.0, 1: 0.0}
            for w in itertools.product((0, 1, -1), repeat=2):
                k = sum(map(abs, w))
                law = 0.2**k * 0.6 ** (2 - k)
                for before in range(place + 1):
                    true = all(v == 0 or v == inputs[before][i] for i, v in enumerate(w))
                    law *= 0.7 * 0.25 + (0.3 * 0.25 * 2**k if true else 0)
                    if before < place:
                        law *= true == labels[before]
                    else:
                        weight[int(true)] += law
            assert answers[place] == int(weight[1] > weight[0])


def test_the_bayes_rule_is_exact_after_a_teaching_sequence_and_better_than_the_prior() -> None:
    taught = Boolean(examples_each=14, chance=0.5, teaching=1.0).examples("test", 6, 60)
    x, y = taught.inputs[:, ::2], taught.targets[:, ::2]
    assert np.array_equal(bayes(x, y, 0.5)[:, 8:], y[:, 8:])
    plain = Boolean(examples_each=14, chance=0.5).examples("test", 6, 200)
    right = bayes(plain.inputs[:, ::2], plain.targets[:, ::2], 0.5) == plain.targets[:, ::2]
    assert right[:, -4:].mean() > right[:, :4].mean() + 0.05


@pytest.mark.parametrize("function", ["parity", "sparse parity"])
def test_elimination_solves_parities_once_the_inputs_span_and_never_errs_within_their_span(function: str) -> None:
    points = Boolean(function=function, examples_each=30).examples("test", 10, 100)
    x, y = points.inputs[:, ::2], points.targets[:, ::2]
    said = elimination(x, y)
    assert (said == y)[:, 25:].mean() > 0.999
    assert (said == y)[:, :5].mean() < 0.7
    for inputs, answers, labels in zip((x > 0).astype(int), said, y, strict=True):
        for place in range(1, 12):
            spanned = {tuple(row @ inputs[:place] % 2) for row in itertools.islice(_bits(place), 2**place)}
            if tuple(inputs[place]) in spanned:
                assert answers[place] == labels[place]
        break


def _bits(count: int) -> itertools.starmap[np.ndarray]:  # type: ignore[type-arg]
    return itertools.starmap(lambda *bits: np.array(bits), itertools.product((0, 1), repeat=count))
