"""Fact sets: 'A is B', biographies and made-up countries, against what their papers' generators promise."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.text import tasks
from bakeoff.text.tasks.facts import (
    ATTRIBUTES,
    COMPANY_CITY,
    EMPLOYER,
    RELATIONS,
    Biographies,
    Fictitious,
    IsA,
    invented,
    templates_of,
)

IS_A, SMALL, COUNTRIES = IsA(), Biographies(values=20, names=20), Fictitious()
ORDERS = ("name first", "description first")


def sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in text.split(" .") if sentence.strip()]


def written(task: Biographies, people: int, texts: int, **options: bool) -> list[str]:
    made, _ = task.biographies(np.arange(people), texts, **options)
    return [question + " " + answer for question, answer in task.text(made)]


def test_invented_words_are_different_and_the_same_for_a_seed() -> None:
    words = invented(np.random.default_rng(0), 5000)
    assert len(set(words)) == 5000
    assert words == invented(np.random.default_rng(0), 5000)
    assert all(word.isalpha() and word.istitle() for word in words)


def test_names_and_descriptions_belong_to_one_person_each() -> None:
    names, descriptions = zip(*IS_A.facts, strict=True)
    assert len(set(names)) == len(set(descriptions)) == IS_A.greatest
    assert IsA(seed=1).facts != IS_A.facts


@pytest.mark.parametrize("order", ORDERS)
def test_each_person_is_told_in_each_template_of_a_split(order: str) -> None:
    counts = [len(templates_of(order, split)) for split in tasks.SPLITS]  # type: ignore[arg-type]
    assert sum(counts) == 40
    assert counts[0] >= 30
    assert counts[2] >= 5
    made = {split: IS_A.text(IS_A.every(range(5, 35), order, split)) for split in tasks.SPLITS}  # type: ignore[arg-type]
    assert [len(rows) for rows in made.values()] == [30 * count for count in counts]
    bare: dict[str, set[str]] = {}
    for split, rows in made.items():
        told = Counter()  # type: ignore[var-annotated]
        for question, answer in rows:
            text = f"{question} {answer}"
            owner = [
                i for i in range(5, 35) if " ".join(IS_A.facts[i][0]) in text and " ".join(IS_A.facts[i][1]) in text
            ]
            assert len(owner) == 1
            name, description = map(" ".join, IS_A.facts[owner[0]])
            assert (name in question) == (order == "name first")
            assert (description in answer) == (order == "name first")
            told[owner[0]] += 1
            bare.setdefault(split, set()).add(text.replace(name, "").replace(description, ""))
        assert len(set(told.values())) == 1
    assert not bare["train"] & bare["test"]
    assert not bare["validation"] & (bare["train"] | bare["test"])


@pytest.mark.parametrize("order", ORDERS)
def test_backwards_only_names_and_descriptions_keep_their_order(order: str) -> None:
    ahead, back = (IS_A.text(IS_A.every([3], order, "train", backwards=b)) for b in (False, True))  # type: ignore[arg-type]
    name, description = map(" ".join, IS_A.facts[3])
    for one, other in zip(ahead, back, strict=True):
        text = " ".join(one).replace(name, "N").replace(description, "D")
        assert " ".join(other).replace(name, "N").replace(description, "D").split() == text.split()[::-1]
        asked_first, told_second = (name, description) if order == "name first" else (description, name)
        assert asked_first in other[1]
        assert told_second in other[0]


@pytest.mark.parametrize("order", ORDERS)
def test_a_task_of_one_order_asks_in_that_order(order: str) -> None:
    task = IsA(order=order)
    for question, _ in task.text(task.examples("test", 10, 50)):
        assert any(" ".join(fact[order != "name first"]) in question for fact in task.facts[:10])


def test_full_names_are_unique_and_attributes_within_their_lists() -> None:
    assert len({tuple(row) for row in SMALL.people[:, :3].tolist()}) == len(SMALL.people) == 20 * 20 * 50
    paper = Biographies()
    assert [paper.sizes(a) for a in ATTRIBUTES] == [(200,), (300,), (100,), (263,), (200,), (12, 28, 200)]
    for attribute, held in zip(ATTRIBUTES, paper.held, strict=True):
        assert (held.max(0) + 1 == paper.sizes(attribute)).all()
        if attribute is not COMPANY_CITY:
            for size, column in zip(paper.sizes(attribute), held.T, strict=True):
                assert np.bincount(column).max() < len(held) / size + 6 * np.sqrt(len(held) / size)


def test_the_city_of_a_company_follows_from_the_company() -> None:
    paper = Biographies()
    employer, city = (paper.held[ATTRIBUTES.index(a)][:, 0] for a in (EMPLOYER, COMPANY_CITY))
    assert len({*zip(employer.tolist(), city.tolist(), strict=True)}) == len(set(employer.tolist())) == 263


def test_permuting_leaves_the_sentences_and_full_names_replace_every_pronoun() -> None:
    fixed, permuted = (written(SMALL, 40, 3, fullname=True, permute=p) for p in (False, True))
    assert fixed != permuted
    for one, other in zip(fixed, permuted, strict=True):
        assert len(sentences(one)) == 6
        assert Counter(sentences(one)) == Counter(sentences(other))
        assert not {"he", "she"} & set(one.split())
    pronouns = written(SMALL, 40, 3, permute=True)
    for one, other in zip(permuted, pronouns, strict=True):
        first_name = next(word for word in one.split() if word[0].isupper())
        assert other.split().count(first_name) == 1
        assert one.split().count(first_name) == 6
        assert sum(word in ("he", "she") for word in other.split()) == 5


def test_paraphrases_of_a_biography_differ_and_its_attributes_keep_their_order_unless_permuted() -> None:
    assert len(set(written(SMALL, 10, 5))) == 50
    _, places = SMALL.biographies(np.arange(30), 2)
    assert (np.diff(places, axis=1) > 0).all()
    _, places = SMALL.biographies(np.arange(300), 2, permute=True)
    first = np.bincount(places.argmin(1), minlength=6)
    assert (abs(first - 100) < 50).all()


def test_places_are_those_of_the_values() -> None:
    made, places = SMALL.biographies(np.arange(20), 2, permute=True, fullname=True)
    for person in range(20):
        questions = SMALL.questions(np.full(6, person), np.arange(6))
        for attribute, (_, answer) in enumerate(questions.rows()):
            for text in (2 * person, 2 * person + 1):
                begin = places[text, attribute]
                assert made.tokens[text, begin : begin + len(answer) - 1].tolist() == answer[:-1]
    assert (made.answer == places.min(1)).all()


def test_no_question_of_the_train_split_is_about_a_person_of_another() -> None:
    asked = {s: {q.split(" of ")[-1] for q, _ in SMALL.text(SMALL.examples(s, 200, 600))} for s in tasks.SPLITS}
    assert not asked["train"] & (asked["validation"] | asked["test"])
    assert not asked["validation"] & asked["test"]
    texts = " ".join(written(SMALL, 200, 1))
    assert all(name.removesuffix(" ?") in texts for names in asked.values() for name in names)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: IsA(order="name last"), "choose name first, description first or both"),
        (lambda: Biographies(attributes=7), "choose from 1 to 6"),
        (lambda: Biographies(values=1), "give more"),
        (lambda: Biographies(names=3).examples("train", 64, 1), "too few for 64 people"),
    ],
)
def test_options_that_cannot_be_get_one_sentence(make: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make()  # type: ignore[operator]


def test_facts_for_editing_have_true_neighbours_and_a_wrong_other_answer() -> None:
    facts = COUNTRIES.facts(40, neighbours=3)
    assert len(facts) == 40 * len(RELATIONS)
    known = {fact.prompt: fact.answer for fact in facts}
    assert len(known) == len(facts)
    for fact in facts:
        assert fact.subject in fact.prompt
        assert len(fact.paraphrases) == 3
        for text in (fact.prompt, *fact.paraphrases):
            assert COUNTRIES.solve(text.split()) == [fact.answer, "."]
        assert fact.other != fact.answer
        assert fact.other in {other.answer for other in facts if other.relation == fact.relation}
        assert len(fact.neighbours) <= 3
        for prompt, answer in fact.neighbours:
            assert fact.subject not in prompt.split()
            assert known[prompt] == answer == fact.answer
