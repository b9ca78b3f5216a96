"""The parts of the study of infinite compute: the search, averages of logits, samples, and the student's batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bakeoff.budget import Budget
from bakeoff.studies import infinite_compute as study
from bakeoff.training.run import Run


def models(count: int) -> list[torch.nn.Module]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = study._model(8, 1, 12, 0.0).eval()
        model.get_input_embeddings().weight.data *= 4  # so that the models disagree
        made.append(model)
    return made


def test_search_ends_where_no_neighbour_is_better() -> None:
    grid = {"a": (1.0, 2.0, 4.0, 8.0), "b": (0.1, 0.4, 1.6)}
    asked: list[tuple[float, float]] = []

    def loss(values: study.Values) -> float:
        assert values["c"] == 7
        asked.append((values["a"], values["b"]))
        # A valley along a * b = 3.2 that falls towards a = 8: no walk along one name alone finds its end.
        return abs(np.log2(values["a"] * values["b"] / 3.2)) + 0.1 * abs(np.log2(values["a"] / 8))

    best = study.locally_best(loss, grid, {"a": 1.1, "b": 3.0, "c": 7.0})
    assert best == {"a": 2.0, "b": 1.6, "c": 7.0}
    assert len(asked) == len(set(asked))
    here = loss(best)
    assert min(loss({**best, "a": 1.0}), loss({**best, "a": 4.0}), loss({**best, "b": 0.4})) > here


def test_search_of_one_value_asks_once() -> None:
    asked = []
    assert study.locally_best(lambda values: asked.append(1) or 1.0, {"a": (2.0,)}, {"a": 5.0}) == {"a": 2.0}
    assert asked == [1]


def test_losses_of_ensembles() -> None:
    made, windows = models(3), torch.randint(256, (70, 12), generator=torch.Generator().manual_seed(5))
    found = study.ensemble_losses(made, windows)
    assert found.shape == (3, 70)
    with torch.no_grad():
        logits = torch.stack([model(input_ids=windows).logits[:, :-1] for model in made])
    own = torch.stack([torch.nn.functional.cross_entropy(each.mT, windows[:, 1:], reduction="none") for each in logits])
    assert found[0] == pytest.approx(own.mean(0).sum(-1).numpy(), rel=1e-5)
    of_all = torch.nn.functional.cross_entropy(logits.mean(0).mT, windows[:, 1:], reduction="none").sum(-1)
    assert found[2] == pytest.approx(of_all.numpy(), rel=1e-5)
    # Cross-entropy is convex in the logits, so that the mean's is at most the members' mean.
    assert (np.diff(found, axis=0) < 0).all()
    # Equal members are as good as one.
    assert study.ensemble_losses(made[:1] * 3, windows) == pytest.approx(np.stack([found_one(made[0], windows)] * 3))


def found_one(model: torch.nn.Module, windows: torch.Tensor) -> np.ndarray:
    return study.ensemble_losses([model], windows)[0]


def test_logits_are_averaged_and_not_probabilities() -> None:
    # p = (.9, .1) and (.8, .2): the mean of the logits is (log 9 + log 4) / 2 = log 6, so that p = 6/7 and not .85.
    logits = torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log()
    assert float(logits.mean(0).softmax(-1)[0]) == pytest.approx(6 / 7)


def test_samples_follow_the_mean_of_the_logits() -> None:
    made, text = models(2), torch.tensor([65, 66], dtype=torch.int32)
    found = study.written_by(made, text, 3000, 3, torch.Generator().manual_seed(0))
    assert found.shape == (3000, 3)
    assert set(found[:, 0].tolist()) == {65, 66}
    begin = found[found[:, 0] == 65][:, :2].long()
    with torch.no_grad():
        logits = torch.stack([model(input_ids=torch.tensor([[65]])).logits[0, -1] for model in made]).mean(0)
    expected = logits.softmax(-1)
    observed = torch.bincount(begin[:, 1], minlength=256) / len(begin)
    # Standard errors of the shares are at most .5 / sqrt(1500) = .013.
    assert float((observed - expected).abs().max()) < 0.05
    # What follows depends on what was drawn: the caches hold each row's own tokens.
    torch.manual_seed(0)
    again = study.written_by(made, text, 3000, 3, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    row = found[:1].long()
    with torch.no_grad():
        whole = torch.stack([model(input_ids=row[:, :2]).logits[0, -1] for model in made]).mean(0).softmax(-1)
    same = found[(found[:, :2] == found[0, :2]).all(1)][:, 2].long()
    assert float(whole[same].mean()) > 1 / 256 / 4


def test_student_reads_text_and_samples() -> None:
    text, written = torch.arange(100, dtype=torch.int32), 200 + torch.arange(20, dtype=torch.int32).view(5, 4)
    batches = study.mixed(text, written, 8, 4, seed=3)
    seen = []
    for step in range(5):
        batch = batches(step)
        assert batch.input_ids.shape == (8, 4)
        assert (batch.input_ids[:2] < 100).all()
        assert (batch.input_ids[2:] >= 200).all()
        assert torch.equal(batch.input_ids, batches(step).input_ids)
        seen += batch.input_ids[2:].tolist()
    # 30 rows are six passes over five windows, each in an order of its own.
    passes = [tuple(row[0] for row in seen[begin : begin + 5]) for begin in range(0, 30, 5)]
    assert all(sorted(order) == written[:, 0].tolist() for order in passes)
    assert len(set(passes)) > 1


def test_members_differ_in_weights_and_order(tmp_path: Path) -> None:
    text = torch.randint(256, (400,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    held = study._Held.__new__(study._Held)
    held.length, held.learned = 8, text
    held.test = held.validation = torch.randint(256, (64, 8))
    values = {
        "members": 2, "rows": 2, "tokens": 400, "width": 8, "layers": 1, "dropout": 0.0, "decay": 0.1, "rate": 1e-2,
        "sampled": 3,
    }  # fmt: skip
    found = study._learn(Run(Budget.parse("4steps"), 0, tmp_path / "run"), tmp_path, held, values, None)
    assert found["test_loss_1"].shape == (study.GROUPS, 2)
    assert found["test_loss_1"][:, 1].sum() == 64 * 7
    assert found["test_loss_2"][:, 0].sum() < found["test_loss_1"][:, 0].sum()
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "written_by_1.safetensors",
        "written_by_2.safetensors",
    }
