"""The column adder: its prompts, the program that walks the columns, the mask, the model's size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bakeoff.studies.alga_addition import (
    ANSWER,
    NOTHING,
    PROMPT,
    UNSEEN,
    WORDS,
    Array,
    Columns,
    adder,
    answer_loss,
    columns,
    generated,
    long_sum,
    operands,
    prompts,
    read,
    remembered,
    strings,
    table,
    visible,
)


def text(tokens: Array) -> str:
    return "".join(WORDS[token] for token in tokens)


def solved(prompt: str, *, carrying: bool = True) -> str:
    """What a perfect column adder answers to a prompt."""
    before, _, pair = prompt.rstrip("P").rpartition("C")
    total = int(pair[0]) + int(pair[1]) + (carrying and len(before) == 2)
    return f"\n{total}S".ljust(ANSWER, "P")


def perfect(asked: Array, *, carrying: bool = True) -> Array:
    return np.array([[WORDS.index(c) for c in solved(text(row), carrying=carrying)] for row in asked])


def digits(numbers: list[int], length: int) -> Array:
    return np.array([[int(c) for c in str(number).zfill(length)] for number in numbers])


@pytest.mark.parametrize(
    ("x", "y", "asked", "result"),
    [
        (47, 38, ["78PPP", "15C43"], "085"),
        (999, 1, ["91PPP", "10C90", "10C90"], "1000"),
        (99, 99, ["99PPP", "18C99"], "198"),
        (999, 999, ["99PPP", "18C99", "19C99"], "1998"),
        (0, 0, ["00PPP"], "00"),
        (123, 4567, ["37PPP", "10C26", "9C15P", "6C04P"], "04690"),
    ],
)
def test_columns_are_asked_from_right_to_left(x: int, y: int, asked: list[str], result: str) -> None:
    seen: list[str] = []

    def column(prompts: Array) -> Array:
        seen.extend(map(text, prompts))
        return perfect(prompts)

    length = max(len(str(x)), len(str(y)))
    found = long_sum(digits([x], length), digits([y], length), column)
    assert (seen, "".join(map(str, found[0]))) == (asked, result)


@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_program_with_a_perfect_column_adds_like_integers(length: int) -> None:
    draw = np.random.default_rng(length)
    shown = np.arange(length) >= draw.integers(length, size=(2, 2500, 1))
    x, y = draw.choice(10, size=(2, 2500, length), p=[0.28, *[0.05] * 8, 0.32]) * shown
    found = long_sum(x, y, remembered(perfect))
    for row in range(len(x)):
        first, second, total = (int("".join(map(str, one[row]))) for one in (x, y, found))
        assert total == first + second


def test_program_with_a_column_that_forgets_the_carry_adds_digit_by_digit() -> None:
    x, y = np.random.default_rng(0).integers(10, size=(2, 500, 6))
    found = long_sum(x, y, remembered(lambda asked: perfect(asked, carrying=False)))
    assert np.array_equal(found[:, 1:], (x + y) % 10)
    assert np.array_equal(found[:, 0], (x + y)[:, 0] // 10)


def test_what_is_no_answer_is_no_digit() -> None:
    rows = np.array(
        [[WORDS.index(c) for c in answer] for answer in ("\n15S", "\n8SP", "\nSSS", "\nC12", "\n153", "\n1C5")]
    )
    assert read(rows).tolist() == [[1, 5], [NOTHING, 8], [NOTHING] * 2, [NOTHING] * 2, [1, 5], [NOTHING, 1]]
    assert text(prompts(np.full((1, 2), NOTHING), np.array([[3, 4]]))[0]) == "34PPP"
    assert text(prompts(np.array([[NOTHING, 0]]), np.array([[0, 7]]))[0]) == "0C07P"
    broken = long_sum(
        np.array([[1, 2]]), np.array([[1, 2]]), lambda asked: np.full((len(asked), ANSWER), WORDS.index("S"))
    )
    assert (broken[:, 1:] == NOTHING).all()


def test_table_has_every_prompt_once_and_training_all_but_those_with_19() -> None:
    asked, wanted, trained = table()
    assert len({text(row) for row in asked}) == len(asked) == 2100
    assert np.array_equal(wanted, perfect(asked))
    assert {text(row)[:3] for row in asked[~trained]} == {f"{UNSEEN}C"}
    made, answered = columns(np.random.default_rng(0), 400_000)
    assert np.array_equal(answered[:500], perfect(made[:500]))
    codes, other = (np.unique(rows @ 14 ** np.arange(PROMPT)) for rows in (made, asked[trained]))
    assert np.array_equal(codes, other)
    assert np.mean([text(row).endswith("PPP") for row in made[:5000]]) == pytest.approx(0.5, abs=0.03)


def test_remembered_column_is_asked_once_for_each_prompt() -> None:
    counted: list[str] = []

    def column(prompts: Array) -> Array:
        counted.extend(map(text, prompts))
        return perfect(prompts)

    asked = table()[0][np.random.default_rng(0).integers(2100, size=400)]
    once = remembered(column)
    for _ in range(2):
        assert np.array_equal(once(asked), perfect(asked))
    assert len(counted) == len(set(counted)) == len({text(row) for row in asked})


def test_model_has_the_paper_s_size_and_a_padding_that_stays_zero() -> None:
    assert sum(parameter.numel() for parameter in adder(0, 64, 0.2).parameters()) == 102_464
    model, batch = adder(0, 16, 0.1), Columns(8, 0)(0)
    assert batch.labels[:, : PROMPT + 1].eq(-100).all()
    answer_loss(model, batch, 0).backward()
    embedding = model.model.embed_tokens
    assert not embedding.weight[0].any()
    assert not embedding.weight.grad[0].any()
    assert embedding.weight.grad[1:].any()


def test_prompt_sees_itself_and_answers_what_is_before_them() -> None:
    model = adder(0, 16, 0.0).eval()
    ids = torch.randint(2, 12, (1, PROMPT + ANSWER))

    def changed(place: int) -> list[int]:
        """The places whose logits change with the token at a place."""
        other = ids.clone()
        other[0, place] = 13
        before, after = (
            model(input_ids=i, attention_mask=visible(i.shape[1]), use_cache=False).logits[0] for i in (ids, other)
        )
        return [i for i in range(ids.shape[1]) if not torch.allclose(before[i], after[i], atol=1e-6)]

    assert changed(PROMPT - 1) == [*range(PROMPT + ANSWER)]
    assert changed(PROMPT + 1) == [*range(PROMPT + 1, PROMPT + ANSWER)]
    assert changed(PROMPT + ANSWER - 1) == [PROMPT + ANSWER - 1]


def test_answers_are_generated_greedily() -> None:
    model, asked = adder(0, 16, 0.0).eval(), table()[0][::300]
    found = generated(model, asked)
    assert (found[:, 0] == WORDS.index("\n")).all()
    ids = torch.from_numpy(np.hstack([asked, found]))
    logits = model(input_ids=ids, attention_mask=visible(ids.shape[1]), use_cache=False).logits
    assert np.array_equal(logits[:, PROMPT:-1].argmax(-1).numpy(), found[:, 1:])


def test_strings_are_of_the_same_sums() -> None:
    x, y = operands(4, 20)
    for form in ("plain", "reversed"):
        for row, (question, answer) in enumerate(strings(form, 4, 20).rows()):
            # Ids of digits follow padding.
            assert [token - 1 for token in question[:4] + question[5:9]] == [*x[row], *y[row]]
            told = "".join(str(token - 1) for token in answer[:-1])
            total = sum(int("".join(map(str, one[row]))) for one in (x, y))
            assert told == (str(total) if form == "plain" else str(total)[::-1])
