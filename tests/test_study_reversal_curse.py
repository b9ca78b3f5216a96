"""What the reversal-curse study asks: counts, groups, the scorer, the other name, and a model in which the curse is exact."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bakeoff.studies.reversal_curse import (
    DESCRIPTION_FIRST,
    NAME_FIRST,
    QUESTIONS,
    _difference,
    made_up,
    published,
    shortened,
    swapped,
)
from bakeoff.text.tasks.facts import IsA, templates_of
from bakeoff.text.tasks.task import Examples
from bakeoff.training.worlds import answered, decoder

PEOPLE = 6
TASK = IsA()


def questions(examples: Any) -> list[list[int]]:
    return [question for question, _ in examples.rows()]


def answers(examples: Any) -> list[list[int]]:
    return [answer for _, answer in examples.rows()]


def test_counts_of_what_is_learned_and_asked() -> None:
    per = {
        (order, split): len(templates_of(order, split))
        for order in (NAME_FIRST, DESCRIPTION_FIRST)
        for split in ("train", "test")
    }
    once, both_ways = made_up(PEOPLE, False), made_up(PEOPLE, True)
    assert len(once.train) == 2 * PEOPLE * (per[NAME_FIRST, "train"] + per[DESCRIPTION_FIRST, "train"])
    assert len(both_ways.train) == 2 * len(once.train)
    for question, (_, order) in QUESTIONS.items():
        assert len(once.asked[question]) == PEOPLE * per[order, "test"]


def test_only_the_group_of_both_is_told_in_both_orders() -> None:
    words, texts = TASK.vocabulary, made_up(PEOPLE, False)
    orders: dict[int, set[bool]] = {}
    for question, answer in texts.train.rows():
        text = " ".join(words.words(question + answer))
        (person,) = [i for i in range(3 * PEOPLE) if " ".join(TASK.facts[i][0]) in text]
        name, description = map(" ".join, TASK.facts[person])
        assert description in text
        orders.setdefault(person, set()).add(text.index(name) < text.index(description))
    assert [orders[person] for person in range(3 * PEOPLE)] == [{True}] * PEOPLE + [{False}] * PEOPLE + [
        {True, False}
    ] * PEOPLE


def test_nothing_that_is_asked_was_learned_and_answers_are_bare() -> None:
    texts = made_up(PEOPLE, True)
    learned = {tuple(question + answer) for question, answer in texts.train.rows()}
    for question, (group, order) in QUESTIONS.items():
        for row, (asked, answer) in enumerate(texts.asked[question].rows()):
            person = TASK.facts[PEOPLE * group + row // (len(texts.asked[question]) // PEOPLE)]
            assert TASK.vocabulary.words(answer) == list(person[1 if order == NAME_FIRST else 0])
            assert not any(text[: len(asked)] == tuple(asked) for text in learned)


def test_other_answers_are_to_the_same_questions_and_all_differ() -> None:
    asked = made_up(PEOPLE, False).asked["P2D, reversed"]
    other = swapped(asked, PEOPLE, 0)
    assert questions(other) == questions(asked)
    assert all(one != two for one, two in zip(answers(other), answers(asked), strict=True))
    each = len(asked) // PEOPLE
    owners = [answers(asked)[::each].index(answer) for answer in answers(other)]
    assert owners == [owners[row // each * each] for row in range(len(asked))]
    assert sorted(owners[::each]) == list(range(PEOPLE))


def test_an_answer_is_right_if_it_begins_with_what_was_asked_for() -> None:
    """Greedy text 1 -> 2 -> 3 -> 4: "2 3" is a beginning of it, "3" is not."""

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(9.0))

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(logits=self.scale * torch.nn.functional.one_hot((input_ids + 1) % 8, 8))

    asked = Examples.of(np.array([[1], [1], [1]]), np.array([[2, 3, 4], [2, 3, 5], [3, 4, 5]]))
    assert answered(Counting(), asked)[:, 0].tolist() == [1, 0, 0]
    assert answered(Counting(), shortened(asked, 2))[:, 0].tolist() == [1, 1, 0]


def test_an_untrained_model_finds_no_name_likelier_than_another() -> None:
    asked = made_up(30, False).asked["P2D, reversed"]
    model = decoder(0, vocab_size=len(TASK.vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    difference = answered(model, swapped(asked, 30, 0))[:, 3] - answered(model, asked)[:, 3]
    each = difference.reshape(30, -1).mean(1)
    assert abs(each.mean()) < 2 * each.std(ddof=1) / math.sqrt(30)


def test_in_a_table_of_pairs_the_curse_is_exact() -> None:
    """Logits W[previous, next], trained on A -> B alone: the row of B keeps its bits, so that A after B stays at 1 in V."""
    table, pairs = torch.zeros(8, 8, requires_grad=True), torch.tensor([[0, 4], [1, 5], [2, 6]])
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(table[pairs[:, 0]], pairs[:, 1])
        (gradient,) = torch.autograd.grad(loss, table)
        table = (table - gradient).detach().requires_grad_()
    ahead, back = (table.log_softmax(-1)[pairs[:, a], pairs[:, b]] for a, b in ((0, 1), (1, 0)))
    assert torch.equal(table[4:], torch.zeros(4, 8))
    assert back.tolist() == pytest.approx([-math.log(8)] * 3)
    assert ahead.min() > -math.log(3)


def test_differences_of_means() -> None:
    assert _difference(0.1)(np.array([6.0, 2.0, 20.0, 4.0])) == pytest.approx(3 - 0.5)


@pytest.mark.corpora
def test_the_published_texts_have_the_counts_of_the_paper() -> None:
    texts = published()
    assert len(texts.train) == 900 + 900 + 1800
    assert {question: len(asked) for question, asked in texts.asked.items()} == dict.fromkeys(QUESTIONS, 300)
    for question, (_, order) in QUESTIONS.items():
        rows = answers(texts.asked[question])
        if order == DESCRIPTION_FIRST:
            assert all(len(answer) == 2 for answer in rows)
            assert [rows[i] == rows[i // 10 * 10] for i in range(300)] == [True] * 300
            assert len({tuple(answer) for answer in rows}) == 30
    names = [
        {tuple(answer) for answer in answers(texts.asked[question])}
        for question in ("P2D, reversed", "D2P, same order", "BOTH, names")
    ]
    assert not names[0] & names[1]
    assert not names[2] & (names[0] | names[1])
