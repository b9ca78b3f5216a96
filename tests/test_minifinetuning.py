"""The corrected targets against numbers worked by hand, and both ends of the threshold: the teacher and the labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bakeoff import lm
from bakeoff.budget import Budget
from bakeoff.lm.tiny import FAMILIES
from bakeoff.text.tokenise import Item
from bakeoff.training.batches import collate
from bakeoff.training.objectives import cross_entropy, logits_of, predicted
from bakeoff.training.run import Run
from bakeoff.tune.baselines import full
from bakeoff.tune.contest import TuneSetting, planted
from bakeoff.tune.minifinetuning import corrected, divergence, minifinetuning


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def setting() -> TuneSetting:
    return planted("llama")


def a_run(folder: Path, budget: str, seed: int = 0) -> Run:
    return Run(Budget.parse(budget), seed, folder)


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def one(p: list[float], label: int, threshold: float, **options: Any) -> list[float]:
    return corrected(torch.tensor([p]).log(), torch.tensor([label]), threshold, **options)[0].tolist()


# p, label, threshold -> q, from the two formulas of `corrected`:
WORKED = [
    ([0.6, 0.3, 0.1], 1, 0.2, [4.8 / 13, 7.4 / 13, 0.8 / 13]),  # weight (.6 - .3 + .2) / (1 + .6 - .3) = 5/13
    ([0.7, 0.2, 0.1], 0, 0.2, [0.9, 1 / 15, 1 / 30]),  # weight (.9 - .7) / (1 - .7) = 2/3
    ([0.85, 0.1, 0.05], 0, 0.2, [1, 0, 0]),  # .85 + .2 > 1, so weight 1
    ([0.98, 0.01, 0.01], 1, 0.2, [0.784 / 1.97, 1.178 / 1.97, 0.008 / 1.97]),  # weight (.97 + .2) / 1.97
    ([0.6, 0.3, 0.1], 1, 0.0, [0.6 / 1.3, 0.6 / 1.3, 0.1 / 1.3]),  # weight .3 / 1.3: a tie
    ([0.7, 0.2, 0.1], 0, 0.0, [0.7, 0.2, 0.1]),  # right, and no lead asked for: unchanged
]


@pytest.mark.parametrize(("p", "label", "threshold", "expected"), WORKED)
def test_corrected_gives_the_numbers_worked_by_hand(
    p: list[float], label: int, threshold: float, expected: list[float]
) -> None:
    assert one(p, label, threshold) == pytest.approx(expected, abs=1e-6)


def test_a_surprising_token_gets_a_bounded_target() -> None:
    assert one([0.98, 0.01, 0.01], 1, 0.2) == pytest.approx([0.3980, 0.5980, 0.0041], abs=1e-4)


def test_without_correction_everywhere_a_right_teacher_is_left_alone_and_a_wrong_one_is_not() -> None:
    assert one([0.7, 0.2, 0.1], 0, 0.2, correct_everywhere=False) == pytest.approx([0.7, 0.2, 0.1], abs=1e-6)
    assert one([0.6, 0.3, 0.1], 1, 0.2, correct_everywhere=False) == pytest.approx(WORKED[0][3], abs=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.2, 0.7, 1.0])
def test_corrected_is_a_distribution_led_by_the_label_that_keeps_all_other_ratios(threshold: float) -> None:
    draw = torch.Generator().manual_seed(3)
    logits, labels = 3 * torch.randn(300, 17, generator=draw), torch.randint(17, (300,), generator=draw)
    q, p, rows = corrected(logits, labels, threshold).double(), logits.double().softmax(-1), torch.arange(300)
    first = p.argmax(-1)
    wrong = first != labels
    assert 0 < int(wrong.sum()) < 300
    assert bool((q >= 0).all())
    torch.testing.assert_close(q.sum(-1), torch.ones(300).double(), atol=1e-6, rtol=0)
    lead = q[rows, labels] - q[rows, first]
    torch.testing.assert_close(lead[wrong], torch.full_like(lead[wrong], threshold), atol=1e-6, rtol=0)
    raised = (p[rows, labels] + threshold).clamp(max=1)
    torch.testing.assert_close(q[rows, labels][~wrong], raised[~wrong], atol=1e-6, rtol=0)
    others = torch.nn.functional.one_hot(labels, 17) == 0
    ratio = (q / p)[others].view(300, 16)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("label", [0, 1])
def test_a_teacher_that_is_certain_gives_finite_targets(label: int) -> None:
    q = corrected(torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([label]), 0.2)
    assert q.isfinite().all()
    expected = [1.0, 0.0, 0.0] if label == 0 else [0.4, 0.6, 0.0]  # weight (1 + .2) / 2
    assert q[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_temperature_softens_the_teacher_before_it_is_corrected() -> None:
    p = torch.tensor([0.6, 0.3, 0.1])
    softened = (p**0.5 / (p**0.5).sum()).tolist()
    assert one(p.tolist(), 1, 0.2, temperature=2.0) == pytest.approx(one(softened, 1, 0.2), abs=1e-6)


def test_constant_mixing_gives_every_token_the_mean_weight() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1], [0.7, 0.2, 0.1]])
    q = corrected(p.log(), torch.tensor([1, 0]), 0.2, mixing="constant")
    weight = (5 / 13 + 2 / 3) / 2
    expected = (1 - weight) * p + weight * torch.tensor([[0.0, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(q, expected, atol=1e-6, rtol=0)


def test_the_gradient_is_the_students_distribution_less_the_target() -> None:
    draw = torch.Generator().manual_seed(1)
    student = torch.randn(5, 11, generator=draw).requires_grad_()
    q = corrected(torch.randn(5, 11, generator=draw), torch.randint(11, (5,), generator=draw), 0.2)
    divergence(student, q).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(student.grad, (student.softmax(-1).detach() - q) / 5, atol=1e-7, rtol=0)


def test_divergence_is_forward_kl_times_the_squared_temperature() -> None:
    draw = torch.Generator().manual_seed(2)
    student, q = torch.randn(4, 9, generator=draw), torch.randn(4, 9, generator=draw).softmax(-1)
    s = (student.double() / 2).softmax(-1)
    expected = 4 * (q.double() * (q.double().log() - s.log())).sum() / 4
    assert float(divergence(student, q, 2.0)) == pytest.approx(float(expected), abs=1e-6)


def test_at_threshold_1_loss_and_gradient_are_those_of_cross_entropy(setting: TuneSetting) -> None:
    batch = collate(list(setting.data.train[:4]))
    gradients = []
    for corrective in (True, False):
        student = lm.clone(setting.model)
        logits, labels = predicted(logits_of(student, batch.input_ids), batch.labels)
        q = corrected(logits.detach(), labels, 1.0)
        loss = divergence(logits, q) if corrective else cross_entropy(student, batch, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append((float(loss.detach()), torch.cat([p.grad.flatten() for p in student.parameters()])))
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=1e-6)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_at_threshold_1_training_is_full_fine_tuning(family: str, tmp_path: Path) -> None:
    # gpt2 has dropout: the teacher must not draw any, or the student's would differ from that of `full`.
    setting = planted(family)
    plain, same = a_run(tmp_path / "full", "6steps"), a_run(tmp_path / "corrective", "6steps")
    full(setting.model, setting.data, plain)
    minifinetuning(setting.model, setting.data, same, threshold=1.0)
    losses = [[point[2] for point in run.curve] for run in (plain, same)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    other = a_run(tmp_path / "other", "6steps")
    minifinetuning(setting.model, setting.data, other, threshold=0.2)
    assert [point[2] for point in other.curve] != pytest.approx(losses[0], abs=1e-2)


def test_where_the_teacher_is_right_and_no_lead_is_asked_for_nothing_is_to_be_learned(setting: TuneSetting) -> None:
    student = lm.clone(setting.model)
    logits = logits_of(student, setting.data.train[0].input_ids[None])[0]
    loss = divergence(logits, corrected(logits.detach(), logits.argmax(-1), 0.0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert abs(float(loss.detach())) < 1e-6
    assert max(float(p.grad.abs().max()) for p in student.parameters()) < 1e-6


def test_only_labelled_tokens_are_learned(setting: TuneSetting, tmp_path: Path) -> None:
    ids = setting.data.train[0].input_ids
    items = [Item(ids, torch.cat([torch.full((20,), -100), ids[20:]]), ""), Item(ids[:9], torch.full((9,), -100), "")]
    data = dataclasses.replace(setting.data, train=items, rows=2)
    run = a_run(tmp_path, "1step")
    minifinetuning(setting.model, data, run)
    with torch.no_grad():
        logits = setting.model(ids[None]).logits[0, 19:31]
    expected = divergence(logits, corrected(logits, ids[20:], 0.2))
    assert run.curve[0][2] == pytest.approx(float(expected), abs=1e-5)
    assert (run.meter.tokens, run.meter.forward_tokens) == (41, 41)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_runs_on_every_family_and_leaves_the_given_model_as_it_was(family: str, tmp_path: Path) -> None:
    setting = planted(family)
    before = state(setting.model)
    trained = [minifinetuning(setting.model, setting.data, a_run(tmp_path / name, "2steps")) for name in "ab"]
    first, second, after = state(trained[0]), state(trained[1]), state(setting.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], before[name]) for name in before)
    assert not setting.model.training
    assert all(p.grad is None for p in setting.model.parameters())


@pytest.mark.parametrize("mixing", ["corrective", "constant"])
def test_it_learns_the_planted_rule(mixing: str, setting: TuneSetting, tmp_path: Path) -> None:
    trained = minifinetuning(setting.model, setting.data, a_run(tmp_path, "60steps"), mixing=mixing, learning_rate=3e-3)
    assert setting.exam(trained)["target_loss"].value < setting.exam(setting.model)["target_loss"].value - 1
