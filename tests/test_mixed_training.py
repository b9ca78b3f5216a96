"""The ratio of the rows, exact over steps; the order of each kind; and a gradient that weighs both by their tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bakeoff import lm
from bakeoff.budget import Budget
from bakeoff.errors import UsageError
from bakeoff.lm.tiny import FAMILIES
from bakeoff.text.tokenise import Item
from bakeoff.training.batches import Batch, Shuffled, collate
from bakeoff.training.objectives import cross_entropy
from bakeoff.training.run import Run
from bakeoff.tune.baselines import full
from bakeoff.tune.contest import TuneSetting, planted
from bakeoff.tune.mixed_training import Mixed, mixed_training


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def setting() -> TuneSetting:
    return planted("llama")


def a_run(folder: Path, budget: str) -> Run:
    return Run(Budget.parse(budget), 0, folder)


def numbered(count: int, first: int) -> list[Item]:
    return [Item(torch.tensor([n, n]), torch.tensor([n, n]), "") for n in range(first, first + count)]


def mixed(rows: int, target_parts: int, keep_parts: int, target: int = 50, keep: int = 20) -> Mixed:
    """Target rows are numbered from 0, rows to keep from 1000."""
    orders = Shuffled(numbered(target, 0), rows, 0), Shuffled(numbered(keep, 1000), rows, 1)
    return Mixed(*orders, target_parts, keep_parts)


def kinds(batch: Batch) -> tuple[list[int], list[int]]:
    numbers = batch.input_ids[:, 0].tolist()
    return [n for n in numbers if n < 1000], [n for n in numbers if n >= 1000]


@pytest.mark.parametrize(
    ("rows", "target_parts", "keep_parts", "target", "keep"),
    [(256, 1, 1, 128, 128), (256, 3, 1, 192, 64), (256, 7, 1, 224, 32), (256, 15, 1, 240, 16), (6, 1, 2, 2, 4)],
)
def test_every_step_has_the_papers_rows_where_the_parts_divide_them(
    rows: int, target_parts: int, keep_parts: int, target: int, keep: int
) -> None:
    batches = mixed(rows, target_parts, keep_parts)
    for step in range(3):
        found = kinds(batches(step))
        assert (len(found[0]), len(found[1])) == (target, keep)


def test_a_small_batch_keeps_the_ratio_over_steps() -> None:
    batches = mixed(8, 15, 1)
    assert [len(kinds(batches(step))[1]) for step in range(6)] == [0, 1, 0, 1, 0, 1]
    batches = mixed(5, 2, 1)
    counts = [len(kinds(batches(step))[1]) for step in range(9)]
    assert counts == [1, 2, 2] * 3  # floor(5/3), floor(10/3), floor(15/3), ... less the one before


def test_each_kind_keeps_its_own_order_and_comes_once_in_each_pass() -> None:
    batches = mixed(6, 3, 2)
    both = [kinds(batches(step)) for step in range(60)]
    target, keep = ([n for step in both for n in step[kind]] for kind in (0, 1))
    assert (len(target), len(keep)) == batches.seen(60) == (216, 144)
    alone = Shuffled(numbered(50, 0), 1, 0)
    assert target == [int(alone(step).input_ids[0, 0]) for step in range(216)]
    for numbers, count in ((target, 50), (keep, 20)):
        passes = [numbers[i : i + count] for i in range(0, len(numbers) - count + 1, count)]
        assert all(len(set(one)) == count for one in passes)
        assert passes[0] != passes[1]


def test_target_rows_come_first_and_all_tokens_are_counted() -> None:
    batch = mixed(8, 1, 1)(3)
    assert sorted(batch.input_ids[:, 0].tolist()[:4])[-1] < 1000 <= min(batch.input_ids[:, 0].tolist()[4:])
    assert batch.tokens == 16


def test_without_rows_to_keep_it_is_full_fine_tuning_bit_for_bit(setting: TuneSetting, tmp_path: Path) -> None:
    plain = full(setting.model, setting.data, a_run(tmp_path / "full", "10steps"))  # more than a pass of 8 steps
    run = a_run(tmp_path / "mixed", "10steps")
    same = mixed_training(setting.model, setting.data, run, target_parts=7, keep_parts=0)
    assert lm.weights_digest(plain) == lm.weights_digest(same)
    assert run.notes == {"target rows": 80, "keep rows": 0}


def test_without_target_rows_it_is_training_on_the_keep_set_bit_for_bit(setting: TuneSetting, tmp_path: Path) -> None:
    plain_run = a_run(tmp_path / "keep", "6steps")
    batches = setting.data.keep_batches(plain_run, "keep")
    plain = plain_run.train(lm.clone(setting.model), batches, learning_rate=3e-4)
    same = mixed_training(setting.model, setting.data, a_run(tmp_path / "mixed", "6steps"), target_parts=0)
    assert lm.weights_digest(plain) == lm.weights_digest(same)


def test_the_gradient_weighs_both_kinds_by_their_labelled_tokens(setting: TuneSetting) -> None:
    def cut(item: Item, length: int, prompt: int) -> Item:
        labels = torch.cat([torch.full((prompt,), -100), item.labels[prompt:length]])
        return Item(item.input_ids[:length], labels, "")

    assert setting.data.keep
    target = [cut(item, 30, 25) for item in setting.data.train[:3]]  # 3 rows of 5 labelled tokens
    keep = [cut(item, 20, 0) for item in setting.data.keep[:1]]  # 1 row of 20, the first of which is not predicted
    gradients = []
    for items in (target + keep, target, keep):
        model = lm.clone(setting.model)
        cross_entropy(model, collate(items), 0).backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    whole, of_target, of_keep = gradients
    torch.testing.assert_close(whole, (15 * of_target + 19 * of_keep) / 34, atol=1e-6, rtol=1e-4)


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_runs_on_every_family_and_leaves_the_given_model_as_it_was(family: str, tmp_path: Path) -> None:
    setting = planted(family)
    before = state(setting.model)
    trained = [mixed_training(setting.model, setting.data, a_run(tmp_path / n, "2steps"), target_parts=3) for n in "ab"]
    after = state(setting.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert lm.weights_digest(trained[0]) == lm.weights_digest(trained[1]) != lm.weights_digest(setting.model)


def test_an_interrupted_training_goes_on_to_the_same_bits_and_notes(setting: TuneSetting, tmp_path: Path) -> None:
    def stop(fraction: float, loss: float) -> None:
        if fraction >= 0.5:
            raise KeyboardInterrupt

    whole_run, again = a_run(tmp_path / "a", "8steps"), a_run(tmp_path / "b", "8steps")
    whole = mixed_training(setting.model, setting.data, whole_run, target_parts=15)
    interrupted = dataclasses.replace(a_run(tmp_path / "b", "8steps"), checkpoint_seconds=0, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        mixed_training(setting.model, setting.data, interrupted, target_parts=15)
    resumed = mixed_training(setting.model, setting.data, again, target_parts=15)
    assert lm.weights_digest(resumed) == lm.weights_digest(whole)
    assert again.notes == whole_run.notes == {"target rows": 60, "keep rows": 4}


def test_rows_to_keep_are_kept(setting: TuneSetting, tmp_path: Path) -> None:
    losses = {}
    for parts in (0, 1):
        run = a_run(tmp_path / str(parts), "60steps")
        trained = mixed_training(setting.model, setting.data, run, keep_parts=parts, learning_rate=3e-3)
        losses[parts] = {name: measured.value for name, measured in setting.exam(trained).items()}
    start = setting.exam(setting.model)["target_loss"].value
    assert losses[1]["kept_loss"] < losses[0]["kept_loss"] - 1
    assert losses[0]["target_loss"] < losses[1]["target_loss"] < start - 1


def test_it_says_what_is_missing(setting: TuneSetting, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give at least one"):
        mixed_training(setting.model, setting.data, a_run(tmp_path, "1step"), target_parts=0, keep_parts=0)
    with pytest.raises(UsageError, match="mixed-training learns from a keep set"):
        mixed_training(setting.model, dataclasses.replace(setting.data, keep=None), a_run(tmp_path, "1step"))
