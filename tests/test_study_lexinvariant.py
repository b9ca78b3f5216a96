"""What the study on lexinvariant models rests on: equivariance, tables, ciphers, look-ups, the probe and frequency analysis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bakeoff.studies.lexinvariant import (
    COUNT,
    PAIRS,
    WithTables,
    bayes_bound,
    character_model,
    draw_tables,
    enciphered,
    fitted_probe,
    look_ups,
    next_symbol,
    read_by_frequency,
    to_ids,
    voted,
    windows,
)
from bakeoff.training.batches import Windows

SHAPE = {"length": 40, "width": 32, "layers": 2, "heads": 2, "embedding": 16}


def untrained(tables: str, **shape: int) -> Any:
    """A model whose read-out is no longer 0."""
    model: Any = character_model(3, tables, **shape)
    with torch.no_grad():
        model.read_out.weight.copy_(
            torch.randn(model.read_out.weight.shape, generator=torch.Generator().manual_seed(0))
        )
    return model


TEXT = to_ids("It's a small, small world; and the cat sat on the mat!\n\nThe end. " * 20)


@torch.no_grad()
def test_exchanging_symbols_together_with_their_rows_exchanges_the_logits() -> None:
    model = untrained("sequence", **SHAPE)
    x = torch.from_numpy(windows(TEXT, 5, 40))
    tables = draw_tables(5, 16, False, 0)
    permutation = torch.from_numpy(np.random.default_rng(0).permutation(COUNT))
    exchanged = torch.empty_like(tables)
    exchanged[:, permutation] = tables
    plain, _ = model(x, tables)
    other, _ = model(permutation[x], exchanged)
    assert torch.allclose(other[..., permutation], plain, atol=1e-5)
    assert not torch.allclose(model(x, exchanged)[0], plain, atol=1e-2)


def test_nothing_learned_knows_a_symbol() -> None:
    model = character_model(0, "sequence", **SHAPE)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learned
    assert all(COUNT not in p.shape for p in learned.values())
    assert "table" in dict(character_model(0, "learned", **SHAPE).named_parameters())


@torch.no_grad()
def test_a_fixed_table_makes_an_ordinary_model() -> None:
    ordinary, invariant = (untrained(tables, **SHAPE) for tables in ("learned", "sequence"))
    x = torch.from_numpy(windows(TEXT, 3, 40))
    same = ordinary.table.detach().expand(3, -1, -1)
    assert torch.allclose(ordinary(x, draw_tables(3, 16, False, 1))[0], invariant(x, same)[0], atol=1e-6)


@torch.no_grad()
def test_symbols_not_yet_seen_are_equally_likely_in_the_mean() -> None:
    model, rows = untrained("sequence", length=4, width=16, layers=1, heads=1, embedding=8), 4000
    x = torch.full((rows, 1), 5)
    shares = model(x, draw_tables(rows, 8, False, 0))[0][:, 0].softmax(-1)
    unseen = torch.arange(COUNT) != 5
    error = shares.std(0) / rows**0.5
    mean = shares.mean(0)
    assert ((mean - mean[unseen].mean()).abs() < 5 * error)[unseen].all()
    # So nobody does better than chance on what follows a first symbol, unless it is the same one again.
    assert -shares.log()[:, unseen].mean() > np.log(COUNT - 1)


def test_tables_are_drawn_for_each_row_and_step_or_shared_by_a_batch() -> None:
    made = Windows(torch.from_numpy(TEXT.astype(np.int32)), 3, 16, 0)
    own, shared = (WithTables(made, 8, False, 0, shared) for shared in (False, True))
    tables = own(0).extra["tables"]
    assert tables.shape == (3, COUNT, 8)
    assert not torch.equal(tables[0], tables[1])
    assert not torch.equal(tables, own(1).extra["tables"])
    assert torch.equal(tables, own(0).extra["tables"])
    assert torch.equal(own(0).input_ids, shared(0).input_ids)
    rows = shared(0).extra["tables"]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows, shared(1).extra["tables"])
    assert tables.std() == pytest.approx(1, abs=0.1)


def test_orthogonal_tables_tell_symbols_apart_exactly() -> None:
    tables = draw_tables(4, 32, True, 0)
    products = tables @ tables.transpose(1, 2) / 32
    assert torch.allclose(products, torch.eye(COUNT).expand(4, -1, -1), atol=1e-5)
    assert abs(float((tables[0] @ tables[1].T / 32).mean())) < 0.1


def test_the_loss_is_that_of_every_symbol_but_the_first() -> None:
    model = untrained("sequence", **SHAPE)
    batch = WithTables(Windows(torch.from_numpy(TEXT.astype(np.int32)), 2, 16, 0), 16, False, 0, False)(0)
    likelihood = model(batch.input_ids, batch.extra["tables"])[0].log_softmax(-1)
    losses = [-likelihood[row, at - 1, batch.input_ids[row, at]] for row in range(2) for at in range(1, 16)]
    assert float(next_symbol(model, batch, 0).detach()) == pytest.approx(
        sum(loss.item() for loss in losses) / 30, rel=1e-5
    )


def test_the_bound_of_the_ideal_model() -> None:
    assert 512 * bayes_bound(26, 512) == pytest.approx(61.26, abs=0.01)
    assert 512 * bayes_bound(128, 512) == pytest.approx(496.4, abs=0.1)


def test_text_is_27_symbols() -> None:
    assert to_ids("It's  9 o'clock, Zoë").tolist() == [9, 20, 19, 0, 15, 3, 12, 15, 3, 11, 0, 26, 15, 0]
    assert windows(TEXT, 3, 40).shape == (3, 40)


def test_ciphers_are_one_to_one_and_differ() -> None:
    plain = windows(TEXT, 4, 200)
    found = enciphered(plain, 0)
    keys = [dict(zip(a, b, strict=True)) for a, b in zip(plain.tolist(), found.tolist(), strict=True)]
    for key, a, b in zip(keys, plain.tolist(), found.tolist(), strict=True):
        assert [key[symbol] for symbol in a] == b
        assert len(set(key.values())) == len(key)
    assert len({tuple(sorted(key.items())) for key in keys}) == 4


def test_look_ups_have_one_answer() -> None:
    questions, answers = look_ups(50, 0)
    assert questions.shape == (50, 3 * PAIRS + 1)
    for question, answer in zip(questions.tolist(), answers.tolist(), strict=True):
        pairs = dict(zip(question[:-1:3], question[1:-1:3], strict=True))
        assert len(pairs) == PAIRS
        assert not any(question[2:-1:3])
        assert pairs[question[-1]] == answer
        assert 0 not in {*pairs, *pairs.values()}
    assert len(set(answers.tolist())) > 15


def test_reading_by_frequency_and_by_votes() -> None:
    common = np.repeat([0, 5, 1], [9, 5, 2])
    ciphers = np.repeat([[7, 3, 2], [1, 2, 3]], [6, 4, 1], axis=1)
    assert read_by_frequency(ciphers, common).tolist() == np.repeat([[0, 5, 1]] * 2, [6, 4, 1], axis=1).tolist()
    # One symbol stands for one letter, whatever a single place says.
    scores = np.zeros((1, 4, COUNT))
    scores[0, [0, 1, 2, 3], [4, 4, 9, 8]] = [1, 1, 1.5, 1]
    assert voted(scores, np.array([[6, 6, 6, 2]])).tolist() == [[4, 4, 4, 8]]


def test_a_probe_reads_what_is_linear_in_the_states() -> None:
    draw = np.random.default_rng(0)
    wanted, embedding = draw.integers(COUNT, size=(20, 30)), draw.normal(size=(COUNT, 40))
    states = embedding[wanted] + 0.01 * draw.normal(size=(20, 30, 40))
    probe = fitted_probe(states[:10], wanted[:10])
    assert ((states[10:] @ probe[:-1] + probe[-1]).argmax(-1) == wanted[10:]).all()
