"""Impossible languages: English whose word order or agreement follows rules that no human language is known to have."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from bakeoff.errors import UsageError
from bakeoff.registry import pick

T = TypeVar("T")
Pieces = Callable[[str], Sequence[str]]

REVERSED, SINGULAR, PLURAL = "<R>", "<S>", "<P>"
CLITICS = frozenset({"n't", "'ll", "'s", "'re", "'ve", "'m"})
HOPS = 4
"""Tokens or words between a verb and its marker in TokenHop and WordHop."""

FAMILIES = {
    "shuffle": (
        "NoShuffle", "NondeterministicShuffle", "DeterministicShuffle(21)", "DeterministicShuffle(57)",
        "DeterministicShuffle(84)", "LocalShuffle(3)", "LocalShuffle(5)", "LocalShuffle(10)", "EvenOddShuffle",
    ),
    "reverse": ("NoReverse", "PartialReverse", "FullReverse"),
    "hop": ("NoHop", "TokenHop", "WordHop"),
}  # fmt: skip
"""The fifteen languages. The first of a family is its control, English with the same markers and the same sentences."""

LANGUAGES = {language: family for family, languages in FAMILIES.items() for language in languages}

_SHORTEST, _LONGEST = 2, 350
_VERBS = (
    "add allow appear ask become begin believe belong bring build choose come consist contain continue create decide depend "
    "describe eat enjoy exist explain feel find follow forget get give go grow happen hear hold hope include involve keep know "
    "lead learn let like live lose love make mean meet need provide put read realize receive remain remember represent require "
    "run say see seem send serve sing sit speak spend stand suggest take teach tell think throw try understand use want wear "
    "write"
)
# Its third person is more often a noun or a name, so that it counts after a pronoun only.
_OFTEN_NOUNS = frozenset(["hope", "like", "live", "need", "run", "sing", "stand", "use"])


def _third_person(verb: str) -> str:
    if re.search(r"(?:s|sh|ch|x|z|o)$", verb):
        return verb + "es"
    return verb[:-1] + "ies" if re.search(r"[^aeiou]y$", verb) else verb + "s"


_PLURALS = frozenset([*_VERBS.split(), "have", "do"])
_SINGULARS = {_third_person(verb): verb for verb in _VERBS.split()} | {"is": "be", "has": "have", "does": "do"}
_DOUBTFUL = frozenset(map(_third_person, _OFTEN_NOUNS))
_SINGULAR_PRONOUNS = frozenset({"he", "she", "it", "who", "that", "which"})


class Verb(NamedTuple):
    """A verb in the third person of the present: its place among the words, its lemma, SINGULAR or PLURAL."""

    place: int
    lemma: str
    number: str


def verbs(words: Sequence[str]) -> list[Verb]:
    """The finite verbs in the third person of the present that words in lower case show by their form.

    Singular: is, has, does and the third person of common verbs, of those that are nouns as well (likes, runs) only after a
    pronoun such as "she". Plural: "are", unless "you" or "we" stands beside it, and a common verb right after "they".
    """
    found = []
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        after = words[place + 1] if place + 1 < len(words) else ""
        if word in _SINGULARS and (word not in _DOUBTFUL or before in _SINGULAR_PRONOUNS):
            found.append(Verb(place, _SINGULARS[word], SINGULAR))
        elif word == "are" and not {before, after} & {"you", "we"}:
            found.append(Verb(place, "be", PLURAL))
        elif before == "they" and word in _PLURALS:
            found.append(Verb(place, word, PLURAL))
    return found


def transform(
    language: str, sentences: Iterable[Sequence[str]], pieces: Pieces = lambda word: (word,)
) -> Iterator[list[str]]:
    """Each English sentence in one of the LANGUAGES, as tokens.

    Args:
        sentences: words, punctuation and clitics apart; those that the language's family does not admit are to be left
            out beforehand. The hop family looks for verbs in lower case.
        pieces: the tokens of a word; default the word itself.

    A family's languages use the same random numbers for the same sentences: of NondeterministicShuffle and of the reverse
    family one generator serves all sentences in turn, so that one call is to be made for a whole text.

    Source: Kallini et al. 2024, arXiv:2401.06416, and its code for seeds and for what counts as a word.
    Raises: UsageError for an unknown language.
    Departures: the paper tags verbs with a parser, here they are found by form (`verbs`); clitics keep tokens of their own.
    """
    family = LANGUAGES[pick(language, LANGUAGES, "language")]
    draw = np.random.default_rng(21 if family == "reverse" else 0)
    for words in sentences:
        if family == "hop":
            yield _hopped(language, words, pieces)
            continue
        tokens = [token for word in words for token in pieces(word)]
        if family == "reverse":
            yield _turned(language, tokens, int(draw.integers(len(tokens) + 1)))
        elif language == "NondeterministicShuffle":
            draw.shuffle(tokens)
            yield tokens
        else:
            yield [tokens[place] for place in order(language, len(tokens))]


def restored(language: str, tokens: Sequence[T]) -> list[T]:
    """The tokens that the family's control has: the inverse of a shuffle or a reversal.

    Raises: UsageError for NondeterministicShuffle, which has no inverse, and for the hop family, where the markers are
        simply to be taken out.
    """
    family = LANGUAGES[pick(language, LANGUAGES, "language")]
    if family == "hop" or language == "NondeterministicShuffle":
        raise UsageError(f"{language} has no inverse: choose another shuffle or a reversal.")
    if family == "shuffle":
        restored = list(tokens)
        for place, token in zip(order(language, len(tokens)), tokens, strict=True):
            restored[place] = token
        return restored
    if language == "FullReverse":
        return list(tokens[::-1])
    begin = list(tokens).index(REVERSED) + 1  # type: ignore[arg-type]
    return [*tokens[:begin], *(tokens[begin:] if language == "NoReverse" else tokens[begin:][::-1])]


@functools.lru_cache(maxsize=4096)
def order(language: str, length: int) -> tuple[int, ...]:
    """For each place of a shuffled sentence of `length` tokens, the place in English of the token that stands there.

    DeterministicShuffle(s) draws one order for each length from seed s. LocalShuffle(w) shuffles windows of w tokens, all
    full ones alike. EvenOddShuffle puts the tokens at even places, counted from 0, before the others.
    """
    name, argument = re.fullmatch(r"(\w+)(?:\((\d+)\))?", language).groups()  # type: ignore[union-attr]
    if name == "EvenOddShuffle":
        return (*range(0, length, 2), *range(1, length, 2))
    if name == "DeterministicShuffle":
        return tuple(_drawn(int(argument), length))
    if name == "LocalShuffle":
        window = int(argument)
        begins = range(0, length, window)
        return tuple(begin + place for begin in begins for place in _drawn(0, min(window, length - begin)))
    return tuple(range(length))


def _drawn(seed: int, length: int) -> list[int]:
    places = list(range(length))
    np.random.default_rng(seed).shuffle(places)
    return places


def admitted(family: str, words: Sequence[str], pieces: Pieces = lambda word: (word,)) -> bool:
    """Whether the family's languages have this sentence.

    shuffle: 2 to 350 tokens. reverse: all. hop: each of its verbs, if it has any, is followed by words enough to hop over.
    """
    pick(family, FAMILIES, "family of languages")
    if family == "shuffle":
        return _SHORTEST <= sum(len(pieces(word)) for word in words) <= _LONGEST
    return family == "reverse" or all(_landing(words, verb) is not None for verb in verbs(words))


def _turned(language: str, tokens: list[str], place: int) -> list[str]:
    begin, end = [*tokens[:place], REVERSED], tokens[place:]
    if language == "PartialReverse":
        return begin + end[::-1]
    return (begin + end)[::-1] if language == "FullReverse" else begin + end


def _hopped(language: str, words: Sequence[str], pieces: Pieces) -> list[str]:
    """Verbs become their lemma; a marker of their number stands right after them, or some tokens or words further on."""
    found = verbs(words)
    lemmas = {verb.place: verb.lemma for verb in found}
    tokens: list[str] = []
    ends = []
    for place, word in enumerate(words):
        tokens += pieces(lemmas.get(place, word))
        ends.append(len(tokens))
    for verb in reversed(found):
        if language == "WordHop":
            landing = _landing(words, verb)
            at = len(tokens) if landing is None else ends[landing]
        else:
            at = ends[_with_clitic(words, verb.place)] + (HOPS if language == "TokenHop" else 0)
        tokens.insert(at, verb.number)
    return tokens


def _landing(words: Sequence[str], verb: Verb) -> int | None:
    """The place of the last word that WordHop's marker hops over, None if the sentence ends before."""
    hopped = 0
    for place in range(verb.place + 1, len(words)):
        hopped += words[place] not in CLITICS and any(map(str.isalnum, words[place]))
        if hopped == HOPS:
            return _with_clitic(words, place)
    return None


def _with_clitic(words: Sequence[str], place: int) -> int:
    return place + (place + 1 < len(words) and words[place + 1] in CLITICS)
