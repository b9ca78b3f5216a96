"""The parts of the study of over-training: choices of continuations, and laws fitted to points that follow them exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bakeoff import laws
from bakeoff.studies import overtraining_laws as study
from bakeoff.study import Arm


def point(parameters: int, tokens: float, law: Any, chance: Any) -> study.Point:
    """A point that follows the laws, in two seeds of which the second has a loss 0.1 higher."""
    losses = float(law(parameters, tokens)) + np.array([0.0, 0.1])
    arrays = {"test_loss": losses, "error": chance(losses)}
    made = {name: np.stack([values, np.ones(2)], axis=-1)[:, None] for name, values in arrays.items()}
    return study.Point(parameters, round(tokens), Arm("made up", study.METRICS, [], made))


def test_laws_foretell_points_that_follow_them() -> None:
    law, chance = laws.LossLaw(1.2, 6.0, 9.0, 0.12), laws.ErrorLaw(0.76, 1.5, 0.8)
    sizes = (4000, 8000, 16000, 32000)
    level = [point(n, 20 * n, law, chance) for n in sizes]
    second = [point(n, 160 * n, law, chance) for n in sizes[:3]]
    fitted = [*level, point(4000, 320 * 4000, law, chance)]
    aims = [point(32000, 160 * 32000, law, chance), point(64000, 20 * 64000, law, chance)]
    found = study.foretell(level, fitted, second, aims)
    for place, aim in enumerate(aims):
        assert found.loss[:, place] == pytest.approx(aim.by_seed("test_loss"), rel=1e-5)
        assert found.error[:, place] == pytest.approx(aim.by_seed("error"), rel=1e-4)
    assert [fit.irreducible for fit in found.fits] == pytest.approx([1.2, 1.3], rel=1e-4)
    assert found.slopes == pytest.approx([0, 0], abs=1e-3)
    # Of the same multiplier as its fit, the second is foretold by compute alone; the over-trained one is not.
    assert found.agnostic[:, 1] == pytest.approx(found.loss[:, 1], rel=1e-4)
    assert (np.abs(found.agnostic[:, 0] - found.loss[:, 0]) > 0.02).all()


def test_slopes_that_differ_are_seen() -> None:
    # Where D grows as N^3, and C as N^4, what N leaves falls as C^(-.35 / 4); on a line of one multiplier as C^(-.35 / 2).
    law, chance = laws.FreeExponents(1.0, 60.0, 60.0, 0.35, 0.35), laws.ErrorLaw(0.76, 1.5, 0.8)
    sizes = (4000, 8000, 16000, 32000)
    level = [point(n, 20 * n, law, chance) for n in sizes]
    bent = [point(n, 20 * 4000 * (n / 4000) ** 3, law, chance) for n in sizes]
    fitted = [*level, point(4000, 320 * 4000, law, chance)]
    assert (np.abs(study.foretell(level, fitted, bent, level[:1]).slopes) > 0.1).all()


def test_choices_hold_each_context_with_four_continuations() -> None:
    text = torch.randint(256, (4000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    found = study.choices(text, 20)
    assert found.shape == (20, 4, study.CONTEXT + max(study.CONTINUATIONS))
    assert (found[:, :, : study.CONTEXT] == found[:, :1, : study.CONTEXT]).all()
    whole = text.unfold(0, found.shape[-1], 1)
    for item in found:
        assert (whole == item[0]).all(dim=1).any()
        assert len({tuple(choice[study.CONTEXT :].tolist()) for choice in item}) == 4


def test_error_counts_the_lengths_at_which_another_choice_is_likelier() -> None:
    losses = torch.ones(2, 4, study.CONTEXT + 15).double().numpy()
    first = study.CONTEXT - 1  # the loss of the first byte of the continuation
    losses[0, 0, first:] = 0.9
    losses[1, 0, first : first + 4] = 0.5
    losses[1, 2, first + 4 : first + 16] = 0.7
    # The second item's truth is ahead by 2 after 4 bytes and by 0.8 after 8, and behind by 1.6 after 16.
    found = study.wrong_choices(losses.reshape(8, -1))
    assert found.tolist() == [[0, 1], [pytest.approx(1 / 3), 1]]


def test_losses_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    model = study._model(8, 1, 12).eval()
    windows = torch.randint(256, (150, 12))
    found = study.byte_losses(model, windows)
    assert found.shape == (150, 11)
    with torch.no_grad():
        log_probabilities = model(input_ids=windows[-1:]).logits.log_softmax(-1)
    assert found[-1, 4] == pytest.approx(-float(log_probabilities[0, 4, windows[-1, 5]]), rel=1e-5)
    assert found.mean() == pytest.approx(math.log(256), rel=0.3)
