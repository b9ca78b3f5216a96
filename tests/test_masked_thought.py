"""What is hidden and what is not, the schedule's numbers, and a mask that behaves as a further token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bakeoff.tune.masked_thought as module
from bakeoff import lm
from bakeoff.budget import Budget
from bakeoff.lm.tiny import FAMILIES, tiny
from bakeoff.text.tokenise import Item
from bakeoff.training.batches import Batch
from bakeoff.training.objectives import cross_entropy
from bakeoff.training.run import Run
from bakeoff.tune.baselines import full
from bakeoff.tune.contest import TuneSetting, planted

masked_thought = module.masked_thought
END = 256


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def setting() -> TuneSetting:
    return planted("llama")


def a_run(folder: Path, budget: str, seed: int = 0, **options: Any) -> Run:
    return Run(Budget.parse(budget), seed, folder, **options)


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def with_mask_token(model: Any) -> Any:
    """The model with one more token in its vocabulary, whose embedding is the mean of the others."""
    count = model.get_input_embeddings().num_embeddings
    larger = lm.clone(model)
    larger.resize_token_embeddings(count + 1, mean_resizing=False)
    with torch.no_grad():
        larger.get_input_embeddings().weight[count] = model.get_input_embeddings().weight.mean(0)
    return larger


def test_the_rate_rises_as_in_the_released_code() -> None:
    rates = [module.mask_rate(step, 1000, 0.4, 0.66) for step in (0, 330, 660, 661, 999)]
    assert rates == pytest.approx([0, 0.4 * 330 / 661, 0.4 * 660 / 661, 0.4, 0.4])
    assert rates[1] == pytest.approx(0.1997, abs=1e-4)
    assert module.mask_rate(0, 1000, 0.4, 0) == 0
    assert module.mask_rate(1, 1000, 0.4, 0) == 0.4


def test_response_tokens_are_masked_at_the_rate_and_nothing_else_ever_is() -> None:
    labels = torch.full((400, 300), -100)
    labels[:, 40:290] = 1  # a prompt of 40 tokens, a response of 250, padding of 10: 100,000 response tokens
    masked = module.masked_positions(labels, 0.4, torch.Generator().manual_seed(0))
    assert float(masked[:, 40:290].float().mean()) == pytest.approx(0.4, abs=0.0046)  # 3 sqrt(.4 * .6 / 1e5)
    assert not masked[:, :40].any()
    assert not masked[:, 290:].any()


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (1.0, 5)])
def test_at_rate_0_nothing_is_masked_and_at_1_all_but_a_rows_first_token(rate: float, count: int) -> None:
    masked = module.masked_positions(torch.zeros(1, 6, dtype=torch.long), rate, torch.Generator())
    assert int(masked.sum()) == count
    assert not masked[0, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_is_what_a_further_token_of_the_vocabulary_would_be(family: str) -> None:
    model: Any = tiny(family)
    embedding = model.get_input_embeddings()
    ids = torch.randint(END, (2, 9), generator=torch.Generator().manual_seed(1))
    masked = torch.rand(2, 9, generator=torch.Generator().manual_seed(2)) < 0.4
    row = embedding.weight.detach().mean(0, keepdim=True)
    with torch.no_grad():
        found = model(inputs_embeds=module.masked_embeddings(embedding, row, ids, masked)).logits
        count = embedding.num_embeddings
        expected = with_mask_token(model)(ids.masked_fill(masked, count)).logits[..., :count]
        plain = model(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_the_loss_is_that_of_the_true_labels_given_the_masked_input(
    setting: TuneSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Prompt 7 8, response 1 2 3 END, of which 2 and END are hidden: the input is 7 8 1 M 3 M, and there are 4 terms.
    item = Item(torch.tensor([7, 8, 1, 2, 3, END]), torch.tensor([-100, -100, 1, 2, 3, END]), "")
    hidden = torch.tensor([[False, False, False, True, False, True]])
    monkeypatch.setattr(module, "masked_positions", lambda labels, rate, generator: hidden)
    run = a_run(tmp_path, "1step")
    masked_thought(setting.model, dataclasses.replace(setting.data, train=[item], rows=1), run)
    mask = with_mask_token(setting.model).config.vocab_size - 1
    with torch.no_grad():
        logits = with_mask_token(setting.model)(torch.tensor([[7, 8, 1, mask, 3, mask]])).logits[0, :, :mask]
    terms = [-logits[place].log_softmax(-1)[token] for place, token in ((1, 1), (2, 2), (3, 3), (4, END))]
    assert run.curve[0][2] == pytest.approx(float(sum(terms)) / 4, abs=1e-5)


@pytest.mark.parametrize("response", [[1, 2, 3, END], [3, 1, 2, END]])
def test_with_everything_masked_predictions_see_the_prompt_and_a_count_of_masks(
    response: list[int], setting: TuneSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Were any response token seen, the term of END would depend on the order of those before it.
    monkeypatch.setattr(module, "mask_rate", lambda *_: 1.0)
    item = Item(torch.tensor([7, 8, *response]), torch.tensor([-100, -100, *response]), "")
    run = a_run(tmp_path, "1step")
    masked_thought(setting.model, dataclasses.replace(setting.data, train=[item], rows=1), run)
    mask = with_mask_token(setting.model).config.vocab_size - 1
    with torch.no_grad():
        logits = with_mask_token(setting.model)(torch.tensor([[7, 8, mask, mask, mask, mask]])).logits[0, 1:5, :mask]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(response))
    assert run.curve[0][2] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("replacement", ["mask", "random"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_at_rate_0_it_is_full_fine_tuning_bit_for_bit(family: str, replacement: str, tmp_path: Path) -> None:
    setting = planted(family)
    plain = full(setting.model, setting.data, a_run(tmp_path / "full", "5steps"))
    same = masked_thought(setting.model, setting.data, a_run(tmp_path / "m", "5steps"), rate=0, replacement=replacement)
    assert lm.weights_digest(plain) == lm.weights_digest(same)


def test_random_replacement_changes_part_of_the_response_only_and_anew_in_each_step(
    setting: TuneSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Batch] = []

    def watched(model: torch.nn.Module, batch: Batch, step: int) -> Tensor:
        seen.append(batch)
        return cross_entropy(model, batch, step)

    monkeypatch.setattr(module, "cross_entropy", watched)
    ids = setting.data.train[0].input_ids
    item = Item(ids, torch.cat([torch.full((10,), -100), ids[10:]]), "")
    data = dataclasses.replace(setting.data, train=[item], rows=2)
    masked_thought(setting.model, data, a_run(tmp_path, "6steps"), replacement="random", warm_up=0)
    assert torch.equal(seen[0].input_ids, ids.expand(2, -1))  # the rate is 0 in the first step
    for batch in seen[1:]:
        assert torch.equal(batch.labels, item.labels.expand(2, -1))
        assert torch.equal(batch.input_ids[:, :10], ids[:10].expand(2, -1))
        changed = batch.input_ids != ids
        assert 0 < int(changed.sum()) < 44
        assert int(batch.input_ids.max()) < setting.data.tokenizer.vocab_size
    changes = [(batch.input_ids != ids).tolist() for batch in seen[1:]]
    assert all(a != b for a, b in pairwise(changes))
    assert all(change[0] != change[1] for change in changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_returns_is_an_ordinary_model_of_the_same_vocabulary(family: str, tmp_path: Path) -> None:
    setting = planted(family)
    before = state(setting.model)
    trained = masked_thought(setting.model, setting.data, a_run(tmp_path / "run", "4steps"), warm_up=0)
    after, unchanged = state(trained), state(setting.model)
    assert {name: value.shape for name, value in after.items()} == {name: v.shape for name, v in before.items()}
    assert [name for name, _ in trained.named_parameters()] == [name for name, _ in setting.model.named_parameters()]
    assert all(torch.equal(before[name], unchanged[name]) for name in before)
    assert not trained.training
    lm.save(trained, setting.data.tokenizer, tmp_path / "saved")
    assert lm.weights_digest(lm.load(tmp_path / "saved").model) == lm.weights_digest(trained)


def test_the_masks_embedding_is_learned(setting: TuneSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Tensor] = []
    plain = module.masked_embeddings

    def watched(embedding: torch.nn.Embedding, mask_row: Tensor, input_ids: Tensor, masked: Tensor) -> Tensor:
        rows.append(mask_row.detach().clone())
        return plain(embedding, mask_row, input_ids, masked)

    monkeypatch.setattr(module, "masked_embeddings", watched)
    masked_thought(setting.model, setting.data, a_run(tmp_path, "6steps"), warm_up=0)
    assert torch.equal(rows[0], with_mask_token(setting.model).get_input_embeddings().weight[-1:])
    assert bool((rows[-1] != rows[0]).all())


@pytest.mark.parametrize("replacement", ["mask", "random"])
def test_an_interrupted_training_goes_on_to_the_same_bits(replacement: str, tmp_path: Path) -> None:
    setting = planted("gpt2")
    whole = masked_thought(setting.model, setting.data, a_run(tmp_path / "a", "8steps"), replacement=replacement)

    def stop(fraction: float, loss: float) -> None:
        if fraction >= 5 / 8:
            raise KeyboardInterrupt

    interrupted = a_run(tmp_path / "b", "8steps", checkpoint_seconds=0, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        masked_thought(setting.model, setting.data, interrupted, replacement=replacement)
    again = a_run(tmp_path / "b", "8steps")
    resumed = masked_thought(setting.model, setting.data, again, replacement=replacement)
    assert len(again.step_seconds) == 4  # the fifth step was made, but not yet saved
    assert lm.weights_digest(resumed) == lm.weights_digest(whole)
    other = masked_thought(
        setting.model, setting.data, a_run(tmp_path / "c", "8steps", seed=1), replacement=replacement
    )
    assert lm.weights_digest(other) != lm.weights_digest(whole)


@pytest.mark.parametrize("replacement", ["mask", "random"])
def test_it_learns_the_planted_rule(replacement: str, setting: TuneSetting, tmp_path: Path) -> None:
    run = a_run(tmp_path, "60steps")
    trained = masked_thought(setting.model, setting.data, run, replacement=replacement, learning_rate=3e-3)
    assert setting.exam(trained)["target_loss"].value < setting.exam(setting.model)["target_loss"].value - 1
