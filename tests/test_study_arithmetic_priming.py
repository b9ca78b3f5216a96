"""The problems of the priming study, reading all digits at once, and what its relative positions can tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bakeoff.lm.attention import RelativePositions
from bakeoff.studies.arithmetic_priming import (
    BLANK,
    SLOT,
    asked,
    exactly_read,
    needed,
    problems,
    read_at_once,
    vocabulary,
)
from bakeoff.text.tasks.task import Examples
from bakeoff.training.worlds import Again, batch_of, decoder


def written(examples: Examples, base: int = 10) -> list[str]:
    return ["".join(vocabulary(base).words(row)) for row in examples.tokens]


def value(text: str, base: int = 10) -> int:
    return int(text.replace(BLANK, ""), base)


@pytest.mark.parametrize(
    ("kind", "factor", "base"), [("addition", 1, 10), ("multiplication", 3, 10), ("multiplication", 1, 4)]
)
def test_answers_are_those_of_integers_and_numbers_stand_at_the_right(kind: str, factor: int, base: int) -> None:
    for row in written(problems(kind, range(1, 6), 8, factor, base, 300, "train", 0), base):
        question, answer = row.split("=")
        first, second = question.split("*")
        assert value(answer, base) == (
            value(first, base) + value(second, base) if kind == "addition" else value(first, base) * value(second, base)
        )
        assert [len(part) for part in (first, second, answer)] == (
            [8, 8, 9] if kind == "addition" else [8, factor, 8 + factor]
        )
        for number in (first, second, answer):
            digits = number.lstrip(BLANK)
            assert BLANK not in digits
            assert digits[0] != "0"
        assert len(first.lstrip(BLANK)) <= 5
        if kind == "multiplication":
            assert BLANK not in second


def test_known_product() -> None:
    # 12345 * 678 = 8369910; 35-digit numbers times 3-digit ones have 37 or 38 digits.
    assert 12345 * 678 == 8369910
    rows = written(problems("multiplication", [35], 35, 3, 10, 200, "test", 0))
    assert {len(row.split("=")[1].lstrip(BLANK)) for row in rows} == {37, 38}
    assert {len(row) for row in rows} == {35 + 1 + 3 + 1 + 38}


def test_lengths_are_balanced_and_splits_share_nothing() -> None:
    train, test = (problems("addition", range(1, 5), 6, 1, 4, 4000, split, 0) for split in ("train", "test"))
    sizes = [len(row.split("*")[0].lstrip(BLANK)) for row in written(train, 4)]
    assert np.bincount(sizes)[1:] / len(sizes) == pytest.approx([0.25] * 4, abs=0.04)
    assert not {*train.key.tolist()} & {*test.key.tolist()}
    again, other = (problems("addition", range(1, 5), 6, 1, 4, 50, "train", seed) for seed in (0, 1))
    assert np.array_equal(train.tokens[:50], again.tokens)
    assert not np.array_equal(again.tokens, other.tokens)


def test_answers_are_read_in_slots_that_show_nothing_of_them() -> None:
    examples = problems("multiplication", [2], 4, 1, 4, 40, "train", 0)
    batch = batch_of(examples)
    words = vocabulary(4)
    ids, mask = asked(batch, words.id(SLOT))
    begin = int(examples.answer[0])
    assert torch.equal(ids[:, :begin], batch.input_ids[:, :begin])
    assert (ids[:, begin:] == words.id(SLOT)).all()
    assert mask.all()
    assert mask.shape == (1, 1, ids.shape[1], ids.shape[1])
    model = decoder(
        0, vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, positions="none"
    )
    read_at_once(model, batch, 0).backward()
    model.eval()
    likely = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.argmax(-1).numpy()
    # Problems whose answers are what the model says are right, and the others wrong.
    tokens = examples.tokens.copy()
    tokens[::2, begin:] = likely[::2, begin:]
    right = exactly_read(model, Examples(tokens, examples.answer, examples.length, examples.key), rows=7)
    assert right[::2].all()
    assert not right[1::2].any()


def test_every_token_sees_those_after_it() -> None:
    model = decoder(
        0, vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, positions="relative"
    ).eval()
    ids = torch.randint(0, 8, (1, 6))
    other = ids.clone()
    other[0, 5] = 8
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    before, after = (model(input_ids=i, attention_mask=mask, use_cache=False).logits[0, 0] for i in (ids, other))
    assert not torch.allclose(before, after, atol=1e-6)


def test_relative_positions_know_distances_alone() -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 2, 9, 4)
    relative = RelativePositions(4, 4)
    added = relative(q, 9)
    shifted = relative(q.roll(2, 2), 9)
    assert torch.allclose(added[:, :, :7, :7], shifted[:, :, 2:, 2:], atol=1e-6)
    # A distance of -7 counts as -4, one of 3 as itself.
    assert torch.allclose(added[0, 0, 8, 1], added[0, 0, 8, 4])
    assert not torch.allclose(added[0, 0, 0, 3], added[0, 0, 0, 4])


def test_one_vector_for_all_distances_is_no_position_at_all() -> None:
    shape = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    one, none = decoder(0, positions="relative", relative_distance=1, **shape), decoder(0, positions="none", **shape)
    none.load_state_dict(one.state_dict(), strict=False)
    with torch.no_grad():
        for layer in one.model.layers:
            layer.mixer.relative.vectors.weight[:] = torch.randn(8)
    ids, mask = torch.randint(0, 9, (2, 7)), torch.ones(1, 1, 7, 7, dtype=torch.bool)
    logits = [model.eval()(input_ids=ids, attention_mask=mask, use_cache=False).logits for model in (one, none)]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)


def test_no_primers_leave_the_short_problems_as_they_are() -> None:
    short = problems("multiplication", range(1, 3), 4, 1, 4, 60, "train", 3)
    longer = problems("multiplication", range(1, 3), 4, 1, 4, 80, "train", 3)
    assert np.array_equal(short.tokens, longer.tokens[:60])
    assert np.array_equal(Again(short, 8, 3)(5).input_ids, Again(longer[:60], 8, 3)(5).input_ids)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.6, 0.9, 1.0], 10.0), ([0.0, 0.5, 1.0], 100.0), ([0.0, 0.1, 0.2], 7000.0),
        ([0.0, 0.25, 0.75], 10**2.5), ([0.25, 0.75, 0.0], 10**1.5),
    ],
)  # fmt: skip
def test_need_is_read_off_between_the_counts(shares: list[float], expected: float) -> None:
    assert needed((10, 100, 1000), shares, 7000) == pytest.approx(expected)


def test_a_logarithmic_need_grows_by_the_same_number_where_a_proportional_one_multiplies() -> None:
    counts = np.logspace(0, 4, 200)

    def need(half: float) -> float:
        return needed(counts.tolist(), (counts / (counts + half)).tolist(), 1e5)

    logarithmic = [need(10 + 15 * np.log10(size)) for size in (1e3, 1e4, 1e5)]
    assert np.diff(logarithmic) == pytest.approx([15, 15], rel=0.02)
    proportional = [need(size / 100) for size in (1e3, 1e4, 1e5)]
    assert np.divide(proportional[1:], proportional[:-1]) == pytest.approx([10, 10], rel=0.02)
