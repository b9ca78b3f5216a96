"""HFT: what is frozen keeps its bits, the halves are exact, and one stage is projected gradient descent."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from bakeoff import lm
from bakeoff.budget import Budget
from bakeoff.lm.tiny import FAMILIES, tiny
from bakeoff.training.batches import Batch
from bakeoff.training.objectives import cross_entropy
from bakeoff.training.run import Run
from bakeoff.tune.baselines import full
from bakeoff.tune.contest import planted
from bakeoff.tune.hft import draw, hft

torch.set_num_threads(1)


class Spy(Run):
    """Keeps the masks and copies of the weights at the beginning of every stage."""

    def train(self, model: nn.Module, *inputs: Any, **arguments: Any) -> nn.Module:
        self.stages = [*getattr(self, "stages", []), (arguments["parameters"], copied(model), self.meter.steps)]
        return super().train(model, *inputs, **arguments)


def trial(folder: Path, steps: int, seed: int = 0) -> Spy:
    return Spy(Budget(steps, "steps"), seed, folder / f"run-{len(list(folder.iterdir()))}")


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def entries(parts: list[lm.Part]) -> int:
    return sum(part.numel for part in parts)


def test_quota_of_the_paper_is_exact() -> None:
    # 4 blocks of 4 attention matrices 8x8 and 3 MLP matrices 8x32: half of 4*256 + 4*768 = 4096 entries is 2048.
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=16,
    )
    blocks = lm.anatomy(AutoModelForCausalLM.from_config(config)).blocks
    for seed in range(5):
        drawn = set(draw(blocks, 0.5, "category", generator(seed)))
        attention, mlp, norms = (
            [len(drawn & set(getattr(b, kind))) for b in blocks] for kind in ("attention", "mlp", "norms")
        )
        assert attention == [2, 2, 2, 2]
        assert sorted(mlp) == [1, 1, 2, 2]
        assert norms == [1, 1, 1, 1]
        assert entries([part for part in drawn if part.role != "norm"]) == 2048


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_every_category_has_its_share(family: str, fraction: float) -> None:
    blocks = lm.anatomy(tiny(family, layers=3)).blocks
    drawn = set(draw(blocks, fraction, "category", generator(0)))
    for kind in ("attention", "mlp", "norms", "other"):
        of_block = [len(drawn & set(getattr(b, kind))) for b in blocks]
        assert abs(sum(of_block) - fraction * sum(len(getattr(b, kind)) for b in blocks)) <= 0.5
        assert max(of_block) - min(of_block) <= 1


def test_units_draw_blocks_or_matrices() -> None:
    blocks = lm.anatomy(tiny("llama", layers=4)).blocks
    of_block = [len(set(draw(blocks, 0.5, "layer", generator(0))) & set(b.parts)) for b in blocks]
    assert sorted(of_block) == [0, 0, 9, 9]
    drawn = [draw(blocks, 0.5, "model", generator(seed)) for seed in range(20)]
    assert {len(parts) for parts in drawn} == {18}
    assert len({len(set(parts) & set(blocks[0].attention)) for parts in drawn}) > 1


def test_redraw_differs_and_overlaps_by_chance(tmp_path: Path) -> None:
    blocks = lm.anatomy(tiny("llama", layers=4)).blocks
    run = trial(tmp_path, 1)
    # 8 of 16 attention matrices, 6 of 12 MLP matrices and 4 of 8 norms are 18 of 36 parts.
    drawn = [set(draw(blocks, 0.5, "category", run.generator("hft", stage))) for stage in range(40)]
    assert drawn[0] == set(draw(blocks, 0.5, "category", trial(tmp_path, 1).generator("hft", 0)))
    assert drawn[0] != set(draw(blocks, 0.5, "category", trial(tmp_path, 1, seed=1).generator("hft", 0)))
    assert len({frozenset(parts) for parts in drawn}) == 40
    overlaps = [len(a & b) / 18 for a, b in pairwise(drawn)]
    assert sum(overlaps) / len(overlaps) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_entries_keep_their_bits_and_all_others_change(family: str, tmp_path: Path) -> None:
    setting = planted(family)
    before, run = lm.weights_digest(setting.model), trial(tmp_path, 5)
    tuned = copied(hft(setting.model, setting.data, run, stages=2))
    assert lm.weights_digest(setting.model) == before
    assert run.meter.steps == 5
    assert [begin for *_, begin in run.stages] == [0, 2]
    (first, start, _), (second, middle, _) = run.stages
    assert any(not torch.equal(first.get(n, torch.tensor(0)), second.get(n, torch.tensor(0))) for n in start)
    for masks, old, new in ((first, start, middle), (second, middle, tuned)):
        for name, p in old.items():
            mask = masks.get(name, torch.zeros_like(p, dtype=torch.bool))
            assert torch.equal(p[~mask], new[name][~mask])
            # Every part that learns moves; rows of tokens or positions that no batch holds need not.
        for part in lm.anatomy(setting.model).parts:
            if masks.get(part.name, torch.zeros(1)).any():
                chosen = part.mask()[part.name] & masks[part.name]
                assert not chosen.any() or not torch.equal(old[part.name][chosen], new[part.name][chosen])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_fused_projection_is_split_into_its_parts(family: str, tmp_path: Path) -> None:
    setting = planted(family)
    run = trial(tmp_path, 2)
    tuned = lm.anatomy(hft(setting.model, setting.data, run))
    counts = []
    for old, new in zip(lm.anatomy(setting.model).blocks, tuned.blocks, strict=True):
        weights = [not torch.equal(a.read(), b.read()) for a, b in zip(old.attention, new.attention, strict=True)]
        # The bias of the keys has no gradient: it adds the same to every score of a query.
        biases = [
            not torch.equal(a.read_bias(), b.read_bias())  # type: ignore[arg-type]
            for a, b in zip(old.attention, new.attention, strict=True)
        ]
        assert [b for p, b in zip(old.attention, biases, strict=True) if p.role != "k"] == [
            w for p, w in zip(old.attention, weights, strict=True) if p.role != "k"
        ]
        counts.append(sum(weights))
    assert counts == [2, 2]


def test_fraction_one_is_full_fine_tuning_and_zero_trains_the_ends(tmp_path: Path) -> None:
    setting = planted("qwen2")
    whole = hft(setting.model, setting.data, trial(tmp_path, 4), fraction=1.0)
    assert lm.weights_digest(whole) == lm.weights_digest(
        full(setting.model, setting.data, Run(Budget(4, "steps"), 0, tmp_path / "full"))
    )
    ends = copied(hft(setting.model, setting.data, trial(tmp_path, 4), fraction=0.0))
    changed = {name for name, p in setting.model.named_parameters() if not torch.equal(p, ends[name])}
    assert changed == {"model.embed_tokens.weight", "model.norm.weight"}


def test_frozen_weights_share_memory_with_the_input(tmp_path: Path) -> None:
    setting = planted("llama")
    run = trial(tmp_path, 1)
    tuned = dict(hft(setting.model, setting.data, run).named_parameters())
    for name, p in setting.model.named_parameters():
        assert (tuned[name].data_ptr() == p.data_ptr()) == (name not in run.stages[0][0])


def test_one_stage_is_projected_gradient_descent(tmp_path: Path) -> None:
    # GPT-NeoX has a fused projection, and no dropout.
    setting = planted("gpt_neox")
    run, model = trial(tmp_path, 1), setting.model
    anatomy, batch, rate = lm.anatomy(model), setting.data.batches(trial(tmp_path, 1))(0), 0.5
    masks = anatomy.mask(draw(anatomy.blocks, 0.5, "category", run.generator("hft", 0)))
    cross_entropy(model, batch, 0).backward()
    expected = {
        name: p.detach() - rate * masks.get(name, torch.tensor(0.0)) * p.grad for name, p in model.named_parameters()
    }
    tuned: PreTrainedModel = lm.clone(model)
    run.train(
        tuned, lambda step: batch, learning_rate=rate, parameters=masks, clip=0, schedule=lambda fraction: 1.0,
        optimizer=lambda parameters, learning_rate: torch.optim.SGD(parameters, learning_rate),
    )  # fmt: skip
    for name, p in tuned.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=0, atol=1e-6)


def test_second_task_leaves_what_the_first_learned(tmp_path: Path) -> None:
    # From (0, 0) towards (1, 1) with x alone, then towards (2, 2) with y alone: (1, 2), at distance 1 from either goal.
    # With both coordinates at both tasks: (2, 2), at squared distances 2 and 0.
    def solve(stages: list[tuple[list[str], float]]) -> list[float]:
        point = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in "xy"})
        run = trial(tmp_path, 400)
        batch = Batch(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long), 2)
        for names, goal in stages:
            run.train(
                point, lambda step: batch, learning_rate=0.1, parameters=names, share=1 / len(stages),
                objective=lambda model, batch, step, goal=goal: (model["x"] - goal) ** 2 + (model["y"] - goal) ** 2,
                optimizer=lambda parameters, learning_rate: torch.optim.SGD(parameters, learning_rate),
            )  # fmt: skip
        x, y = (point[name].item() for name in "xy")
        return [x, y, (x - 1) ** 2 + (y - 1) ** 2, (x - 2) ** 2 + (y - 2) ** 2]

    assert solve([(["x"], 1.0)])[:3] == pytest.approx([1, 0, 1], abs=1e-3)
    assert solve([(["x"], 1.0), (["y"], 2.0)]) == pytest.approx([1, 2, 1, 1], abs=1e-3)
    assert solve([(["x", "y"], 1.0), (["x", "y"], 2.0)]) == pytest.approx([2, 2, 2, 0], abs=1e-3)


def test_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    setting = planted("llama")

    def kill(fraction: float, loss: float) -> None:
        if fraction > 0.5:
            raise KeyboardInterrupt

    first = Run(Budget(7, "steps"), 0, tmp_path / "killed", checkpoint_seconds=0, progress=kill)
    with pytest.raises(KeyboardInterrupt):
        hft(setting.model, setting.data, first, stages=3)
    second = Run(Budget(7, "steps"), 0, tmp_path / "killed", checkpoint_seconds=0)
    resumed = hft(setting.model, setting.data, second, stages=3)
    whole = hft(setting.model, setting.data, Run(Budget(7, "steps"), 0, tmp_path / "whole"), stages=3)
    assert lm.weights_digest(resumed) == lm.weights_digest(whole)
    assert second.meter.steps == 7


@pytest.mark.parametrize("unit", ["category", "layer", "model"])
def test_learns_the_planted_rule(unit: str, tmp_path: Path) -> None:
    setting = planted("llama")
    tuned = hft(setting.model, setting.data, trial(tmp_path, 40), unit=unit)
    gained = setting.exam(setting.model)["target_loss"].value - setting.exam(tuned)["target_loss"].value
    assert gained > 0.5


def test_zero_budget_changes_nothing(tmp_path: Path) -> None:
    setting = planted("llama")
    tuned = hft(setting.model, setting.data, trial(tmp_path, 0), stages=2)
    assert lm.weights_digest(tuned) == lm.weights_digest(setting.model)
