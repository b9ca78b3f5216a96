"""Impossible languages: the official orders of the shuffles, what can be undone, and where the hop family puts its markers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.text.tasks.languages import (
    FAMILIES,
    LANGUAGES,
    PLURAL,
    REVERSED,
    SINGULAR,
    admitted,
    order,
    restored,
    transform,
    verbs,
)

MARKERS = {REVERSED, SINGULAR, PLURAL}
ENGLISH = [
    ["the", "dog", "does", "n't", "like", "the", "small", "cat", "on", "the", "mat", "."],
    ["she", "says", ",", '"', "they", "are", "my", "best", "friends", "in", "the", "whole", "world", ".", '"'],
    ["they", "want", "it", ",", "and", "he", "knows", "that", "we", "have", "to", "go", "home", "now"],
    ["you", "are", "late", "."],
    ["the", "old", "man", "sat", "down", "and", "looked", "at", "the", "sea", "."],
]


def numbered(*lengths: int) -> list[list[str]]:
    return [[f"{sentence}-{place}" for place in range(length)] for sentence, length in enumerate(lengths)]


def letters(word: str) -> Sequence[str]:
    """A tokeniser that cuts words into two-letter pieces."""
    return [word[i : i + 2] for i in range(0, len(word), 2)]


def test_there_are_fifteen_languages_in_three_families() -> None:
    assert len(LANGUAGES) == 15
    assert {family: len(languages) for family, languages in FAMILIES.items()} == {"shuffle": 9, "reverse": 3, "hop": 3}
    with pytest.raises(UsageError, match="did you mean LocalShuffle"):
        next(transform("LocalShuffle(4)", [["a"]]))


@pytest.mark.parametrize(
    ("language", "length", "expected"),
    [
        # numpy's Generator.shuffle of lists, from the paper's code.
        ("DeterministicShuffle(21)", 5, (0, 1, 3, 4, 2)),
        ("DeterministicShuffle(57)", 5, (1, 2, 0, 4, 3)),
        ("DeterministicShuffle(84)", 5, (0, 3, 2, 4, 1)),
        ("LocalShuffle(3)", 3, (2, 0, 1)),
        ("LocalShuffle(3)", 6, (2, 0, 1, 5, 3, 4)),
        ("LocalShuffle(5)", 5, (2, 4, 3, 0, 1)),
        ("LocalShuffle(10)", 10, (4, 6, 2, 7, 3, 5, 9, 0, 8, 1)),
        ("EvenOddShuffle", 7, (0, 2, 4, 6, 1, 3, 5)),
        ("EvenOddShuffle", 2, (0, 1)),
        ("LocalShuffle(1)", 9, tuple(range(9))),
    ],
)
def test_orders_are_those_of_the_paper(language: str, length: int, expected: tuple[int, ...]) -> None:
    assert order(language, length) == expected


def test_the_last_window_of_a_local_shuffle_has_an_order_of_its_own() -> None:
    last = [0, 1, 2]
    np.random.default_rng(0).shuffle(last)
    assert order("LocalShuffle(5)", 8) == (2, 4, 3, 0, 1, *(5 + place for place in last))


def test_one_generator_serves_all_sentences_of_the_nondeterministic_shuffle() -> None:
    sentences, draw = numbered(6, 6, 9), np.random.default_rng(0)
    expected = [list(sentence) for sentence in sentences]
    for sentence in expected:
        draw.shuffle(sentence)
    found = list(transform("NondeterministicShuffle", sentences))
    assert found == expected
    assert [w.split("-")[1] for w in found[0]] != [w.split("-")[1] for w in found[1]]


@pytest.mark.parametrize("language", [name for name in LANGUAGES if LANGUAGES[name] != "hop"])
def test_shuffles_and_reversals_keep_the_tokens_and_can_be_undone(language: str) -> None:
    sentences = numbered(2, 3, 7, 7, 11, 24)
    control = list(transform(FAMILIES[LANGUAGES[language]][0], sentences))
    found = list(transform(language, sentences))
    # So that a unigram model has the same perplexity on all languages of a family.
    assert [Counter(tokens) for tokens in found] == [Counter(tokens) for tokens in control]
    if language == "NondeterministicShuffle":
        with pytest.raises(UsageError, match="no inverse"):
            restored(language, found[0])
    else:
        assert [restored(language, tokens) for tokens in found] == control
    if language.startswith("Deterministic"):
        assert [w.split("-")[1] for w in found[2]] == [w.split("-")[1] for w in found[3]]


def test_reversals_share_the_place_of_the_marker() -> None:
    sentences = numbered(5, 1, 9, 30)
    plain, partial, full = (list(transform(language, sentences)) for language in FAMILIES["reverse"])
    draw = np.random.default_rng(21)
    for sentence, a, b, c in zip(sentences, plain, partial, full, strict=True):
        place = int(draw.choice(len(sentence) + 1))
        assert a == [*sentence[:place], REVERSED, *sentence[place:]]
        assert b == [*sentence[:place], REVERSED, *sentence[place:][::-1]]
        assert c == a[::-1]


def test_verbs_are_found_by_their_form() -> None:
    found = [[(words[v.place], v.lemma, v.number) for v in verbs(words)] for words in ENGLISH]
    assert found == [
        [("does", "do", SINGULAR)],
        [("says", "say", SINGULAR), ("are", "be", PLURAL)],
        [("want", "want", PLURAL), ("knows", "know", SINGULAR)],
        [],
        [],
    ]
    assert [v.lemma for v in verbs(["he", "runs", "and", "tries", "as", "it", "teaches"])] == ["run", "try", "teach"]
    assert not verbs(["two", "runs", "and", "hopes", "and", "your", "needs"])


def test_markers_stand_where_the_rules_say() -> None:
    spoken = {language: [" ".join(s) for s in transform(language, ENGLISH)] for language in FAMILIES["hop"]}
    assert spoken["NoHop"][0] == "the dog do n't <S> like the small cat on the mat ."
    assert spoken["TokenHop"][0] == "the dog do n't like the small cat <S> on the mat ."
    assert spoken["WordHop"][0] == "the dog do n't like the small cat <S> on the mat ."
    # Punctuation is a token and no word.
    assert spoken["TokenHop"][1] == 'she say , " they be <S> my best friends in <P> the whole world . "'
    assert spoken["WordHop"][1] == 'she say , " they be my best <S> friends in <P> the whole world . "'
    assert spoken["WordHop"][2] == "they want it , and he know <P> that we have to <S> go home now"
    assert spoken["NoHop"][3:] == [" ".join(words) for words in ENGLISH[3:]]


def test_a_marker_goes_past_a_clitic_and_token_hops_count_pieces() -> None:
    words = ["she", "thinks", "that", "we", "all", "would", "n't", "mind"]
    assert " ".join(next(transform("WordHop", [words]))) == "she think that we all would n't <S> mind"
    assert (
        " ".join(next(transform("TokenHop", [words], letters))) == "sh e th in k th at we al <S> l wo ul d n' t mi nd"
    )


@pytest.mark.parametrize("pieces", [lambda word: (word,), letters])
def test_without_markers_the_hop_languages_are_one(pieces: object) -> None:
    kept = [words for words in ENGLISH if admitted("hop", words)]
    spoken = [list(transform(language, kept, pieces)) for language in FAMILIES["hop"]]  # type: ignore[arg-type]
    bare = [[[token for token in tokens if token not in MARKERS] for tokens in sentences] for sentences in spoken]
    assert bare[0] == bare[1] == bare[2]
    assert len({str(sentences) for sentences in spoken}) == 3


def test_who_is_admitted() -> None:
    assert [admitted("hop", words) for words in ENGLISH] == [True] * 5
    assert not admitted("hop", ["she", "says", "we", "can"])
    assert admitted("hop", ["she", "says", "we", "can", "not", "go"])
    assert not admitted("hop", ["she", "says", "we", "can", "go", ",", "."])
    assert not admitted("shuffle", ["hello"])
    assert admitted("shuffle", ["hello"], letters)
    assert not admitted("shuffle", ["a"] * 351)
    assert admitted("reverse", [])
