"""SubTuning: the search on tables with a known answer, and the training on models where the right block is planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bakeoff import lm
from bakeoff.budget import Budget
from bakeoff.lm.tiny import FAMILIES, tiny, tiny_tokenizer
from bakeoff.text.tokenise import Item
from bakeoff.training.run import Run
from bakeoff.tune.contest import TuneData, planted
from bakeoff.tune.subtuning import Subset, greedy, subtuning, trainings

torch.set_num_threads(1)

A, B, C = 0, 1, 2


def table(all_three: float) -> Callable[[Subset], float]:
    scores = {(): 0.5, (A,): 0.6, (B,): 0.62, (C,): 0.55, (A, B): 0.7, (B, C): 0.63, (A, B, C): all_three}
    return lambda subset: scores[tuple(sorted(subset))]


class Spy(Run):
    """Keeps what every training learned, its first weights, and which modules were in training mode."""

    def train(self, model: nn.Module, *inputs: Any, before_step: Any, **arguments: Any) -> nn.Module:
        seen: set[str] = set()

        def look(step: int) -> None:
            before_step(step)
            seen.update(name for name, module in model.named_modules() if module.training)

        start = lm.weights_digest(model)
        self.seen = [*getattr(self, "seen", []), (frozenset(arguments["parameters"]), start, seen)]
        return super().train(model, *inputs, before_step=look, **arguments)


def trial(folder: Path, budget: str) -> Spy:
    return Spy(Budget.parse(budget), 0, folder / f"run-{len(list(folder.iterdir()))}")


def test_gain_rule_adds_only_what_gains_more_than_epsilon() -> None:
    # .62 > .50 + .01, .70 > .62 + .01, but .695 and .705 are not > .70 + .01.
    for all_three in (0.695, 0.705):
        assert greedy(3, table(all_three), rule="gain", epsilon=0.01, most=3) == (B, A)
    assert greedy(3, table(0.72), rule="gain", epsilon=0.01, most=3) == (B, A, C)
    assert greedy(3, table(0.72), rule="gain", epsilon=0.01, most=1) == (B,)
    assert greedy(3, table(0.72), rule="gain", epsilon=0.5, most=3) == ()


def test_walk_goes_on_and_returns_the_best_so_far() -> None:
    visited: list[Subset] = []

    def watched(subset: Subset) -> float:
        visited.append(subset)
        return table(0.695)(subset)

    assert greedy(3, watched, rule="walk", epsilon=0.01, most=3) == (B, A)
    assert visited[-1] == (B, A, C)
    assert greedy(3, table(0.705), rule="walk", epsilon=0.01, most=3) == (B, A, C)
    # .60 is not below .62 - .03, so the walk crosses it to .80; with a smaller epsilon it stops.
    dip = {0: 0.5, 1: 0.62, 2: 0.6, 3: 0.8}
    assert greedy(3, lambda subset: dip[len(subset)], rule="walk", epsilon=0.03, most=3) == (0, 1, 2)
    assert greedy(3, lambda subset: dip[len(subset)], rule="walk", epsilon=0.01, most=3) == (0,)


def test_ties_go_to_the_first() -> None:
    assert greedy(4, lambda subset: float(bool(subset)), rule="gain", epsilon=0.01, most=4) == (0,)


def test_number_of_trainings() -> None:
    # 12 units, three accepted and a fourth round that fails: 12 + 11 + 10 + 9.
    made: list[Subset] = []

    def three_gain(subset: Subset) -> float:
        made.append(subset)
        return float(min(len(subset), 3))

    greedy(12, three_gain, rule="gain", epsilon=0.01, most=12)
    assert len(made) - 1 == trainings(12, 4) == 42


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_chosen_blocks_change(family: str, tmp_path: Path) -> None:
    setting = planted(family)
    model, before, run = setting.model, lm.weights_digest(setting.model), trial(tmp_path, "12steps")
    tuned = subtuning(model, setting.data, run, most_blocks=1, validation_rows=4)
    assert lm.weights_digest(model) == before
    assert run.meter.steps == 12
    # Untouched, and two candidates with 3 of the 6 steps of the search each; 4 rows of 32 tokens.
    assert run.meter.forward_tokens == 3 * 4 * 32
    assert {start for _, start, _ in run.seen} == {before}
    (chosen,) = run.notes["blocks"]
    assert run.notes["profile"][chosen] == max(run.notes["profile"].values())
    path = lm.anatomy(model).blocks[int(chosen.split()[1])].path
    for (name, old), new in zip(model.named_parameters(), tuned.parameters(), strict=True):
        inside = name.startswith(f"{path}.")
        assert (old.data_ptr() == new.data_ptr()) == (not inside)
        if not inside:
            assert torch.equal(old, new)
    assert {n for n, p in model.named_parameters() if not torch.equal(p, tuned.get_parameter(n))}
    assert run.seen[-1][2] == {n for n, _ in model.named_modules() if n == path or n.startswith(f"{path}.")}


@pytest.mark.parametrize("family", FAMILIES)
def test_halves_of_a_block_are_units(family: str, tmp_path: Path) -> None:
    setting = planted(family)
    run = trial(tmp_path, "16steps")
    subtuning(setting.model, setting.data, run, unit="half", most_blocks=1, validation_rows=2)
    learned = [names for names, *_ in run.seen[:4]]
    assert list(run.notes["profile"]) == ["block 0 attention", "block 0 mlp", "block 1 attention", "block 1 mlp"]
    inside = {f"{b.path}.{n}" for b in lm.anatomy(setting.model).blocks for n, _ in b.module.named_parameters()}
    assert sum(map(len, learned)) == len(inside)
    assert frozenset().union(*learned) == inside


@pytest.mark.parametrize(
    ("budget", "searched", "steps"),
    # 4 blocks: 2 rounds need 7 trainings. 20 steps give the search 10, one each; 10 give it 5, enough for one round;
    # 6 give it 3, too few: all blocks are trained. A batch has 8 rows of 32 tokens.
    [("20steps", 2, 20), ("10steps", 1, 10), ("6steps", 0, 6), ("2560tokens", 1, 10), ("0steps", 0, 0)],
)
def test_search_fits_the_budget(budget: str, searched: int, steps: int, tmp_path: Path) -> None:
    run, data = trial(tmp_path, budget), planted("llama").data
    subtuning(tiny("llama", layers=4), data, run, most_blocks=2, epsilon=0.0, validation_rows=2, learning_rate=3e-3)
    blocks_tried = {len({name.split(".")[2] for name in names}) for names, *_ in run.seen[:-1]}
    assert max(blocks_tried, default=0) == searched
    assert len(run.seen) - 1 == trainings(4, searched)
    assert run.meter.steps == steps
    assert ("profile" in run.notes) == (searched > 0)


def test_search_ends_when_its_seconds_are_spent(tmp_path: Path) -> None:
    setting, run = planted("llama"), trial(tmp_path, "0.000001s")
    tuned = subtuning(setting.model, setting.data, run, validation_rows=2)
    assert len(run.seen) == 2
    assert run.meter.steps == 0
    assert run.notes["blocks"] == ["block 0"]
    assert lm.weights_digest(tuned) == lm.weights_digest(setting.model)


def test_all_blocks_are_trained_as_fine_tuning_of_the_blocks(tmp_path: Path) -> None:
    setting, run = planted("llama"), trial(tmp_path, "4steps")
    tuned = subtuning(setting.model, setting.data, run, search_share=0.0)
    plain, other = lm.clone(setting.model), Run(Budget(4, "steps"), 0, tmp_path / "plain")
    names = [name for name, _ in plain.named_parameters() if ".layers." in name]
    other.train(plain, setting.data.batches(other), learning_rate=1e-3, parameters=names)
    assert lm.weights_digest(tuned) == lm.weights_digest(plain)


def test_best_block_is_trained_where_none_gains(tmp_path: Path) -> None:
    setting, run = planted("llama"), trial(tmp_path, "8steps")
    tuned = subtuning(setting.model, setting.data, run, epsilon=1.0, learning_rate=1e-5, validation_rows=4)
    assert run.notes["blocks"] == [max(run.notes["profile"], key=run.notes["profile"].get)]
    assert lm.weights_digest(tuned) != lm.weights_digest(setting.model)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_untouched_score_is_that_of_the_validation_rows(metric: str, tmp_path: Path) -> None:
    setting, run = planted("gemma"), trial(tmp_path, "8steps")
    subtuning(setting.model, setting.data, run, metric=metric)
    measured = setting.tuning().exam(setting.model)
    expected = -measured["target_loss"].value if metric == "loss" else measured["target_accuracy"].value
    assert run.notes["untouched"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rule", ["gain", "walk"])
def test_killed_run_goes_on_to_the_same_bits(rule: str, tmp_path: Path) -> None:
    setting = planted("llama")

    def kill(fraction: float, loss: float) -> None:
        if fraction > 0.35:
            raise KeyboardInterrupt

    results = []
    for name, progress in (("killed", kill), ("killed", None), ("whole", None)):
        run = Run(Budget(12, "steps"), 0, tmp_path / name, checkpoint_seconds=0)
        if progress:
            run.progress = progress
            with pytest.raises(KeyboardInterrupt):
                subtuning(setting.model, setting.data, run, rule=rule)
        else:
            tuned = subtuning(setting.model, setting.data, run, rule=rule)
            results.append((lm.weights_digest(tuned), run.notes, run.meter.steps, run.meter.forward_tokens))
    assert results[0] == results[1]


@pytest.mark.parametrize(("family", "planted_block"), [("llama", 3), ("gpt2", 1)])
def test_profile_peaks_where_the_teacher_differs(family: str, planted_block: int, tmp_path: Path) -> None:
    model = tiny(family, layers=4)
    teacher, other = lm.clone(model), lm.anatomy(tiny(family, seed=99, layers=4)).blocks[planted_block].module
    with torch.no_grad():
        for p, q in zip(lm.anatomy(teacher).blocks[planted_block].module.parameters(), other.parameters(), strict=True):
            p.add_(3 * (q - q.mean()))

    def rows(count: int, seed: int) -> list[Item]:
        input_ids = torch.randint(0, 256, (count, 32), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            answers = teacher(input_ids=input_ids).logits.argmax(-1)[:, :-1]
        labels = torch.cat([torch.full((count, 1), -100), answers], 1)
        return [Item(i, answer, "planted") for i, answer in zip(input_ids, labels, strict=True)]

    data = TuneData(rows(256, 1), None, rows(32, 2), tiny_tokenizer(), 16)
    run = trial(tmp_path, "112steps")
    subtuning(model, data, run, most_blocks=1, search_share=1.0, learning_rate=1e-2)
    assert run.notes["blocks"] == [f"block {planted_block}"]


def test_learns_the_planted_rule(tmp_path: Path) -> None:
    setting = planted("llama")
    tuned = subtuning(setting.model, setting.data, trial(tmp_path, "40steps"))
    assert setting.exam(setting.model)["target_loss"].value - setting.exam(tuned)["target_loss"].value > 0.5
