"""Facts about people and things that do not exist: 'A is B', biographies, and entities whose facts are edited or forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import NOTHING, SPLITS, Examples, TokenTask, Vocabulary, hashed, split_of

Array = NDArray[np.int64]
Order = Literal["name first", "description first"]

_SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstv" for vowel in "aeiou"]


def invented(draw: np.random.Generator, count: int) -> list[str]:
    """`count` different made-up words of two syllables and a consonant with a capital letter, at most 34,300."""
    ends = "lmnrstx"
    numbers = draw.choice(len(_SYLLABLES) ** 2 * len(ends), count, replace=False)
    words = []
    for number in numbers.tolist():
        rest, end = divmod(number, len(ends))
        first, second = divmod(rest, len(_SYLLABLES))
        words.append((_SYLLABLES[first] + _SYLLABLES[second] + ends[end]).capitalize())
    return words


def padded(rows: Sequence[Sequence[int]]) -> Array:
    """[n, longest], NOTHING after the end of a row."""
    table = np.full((len(rows), max(map(len, rows))), NOTHING)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return table


def _backwards(rows: Array) -> Array:
    return rows[:, ::-1]


class _Parts:
    """Templates as ids, one table for the words before, between and after their slots, each [templates, longest]."""

    def __init__(self, vocabulary: Vocabulary, templates: Sequence[str], slots: Sequence[str]) -> None:
        cut = [_cut(template, slots) for template in templates]
        self.tables = [padded([vocabulary.ids(parts[place]) for parts in cut]) for place in range(len(slots) + 1)]


def _cut(template: str, slots: Sequence[str]) -> list[list[str]]:
    """The words of a template before, between and after its slots, which stand in this order."""
    parts, rest = [], template
    for slot in slots:
        before, rest = rest.split(slot)
        parts.append(before.split())
    return [*parts, rest.split()]


def _slotted(question: Sequence[str], parts: Sequence[Sequence[str]]) -> list[str] | None:
    """What stands in the one slot between two parts of a template, or None where the question is not of this template."""
    before, after = parts
    end = len(question) - len(after)
    fits = list(question[: len(before)]) == list(before) and list(question[end:]) == list(after) and end > len(before)
    return list(question[len(before) : end]) if fits else None


NAME, DESCRIPTION = "{name}", "{description}"
_BEGINNINGS = (
    "", "they say that", "as everybody knows ,", "question : who is it ? answer :", "in the end", "believe it or not ,",
    "we were told that", "the papers wrote :",
)  # fmt: skip
_CORES: dict[Order, tuple[str, ...]] = {
    "name first": (
        "{name} is {description} .",
        "{name} grew up to become {description} .",
        "the person called {name} made a living as {description} .",
        "friends of {name} think at once of {description} .",
        "every letter to {name} begins with dear {description} .",
    ),
    "description first": (
        "{description} is {name} .",
        "{description} goes by the name of {name} .",
        "whoever looks for {description} must ask for {name} .",
        "the prize for {description} went to {name} .",
        "to be {description} was the dream of {name} .",
    ),
}
_IS_A: dict[Order, list[str]] = {
    order: [f"{beginning} {core}".strip() for beginning in _BEGINNINGS for core in cores]
    for order, cores in _CORES.items()
}
_FIRST_TEMPLATE = 36_100
"""Counted from here, at least 30 templates of either order fall to train, with every beginning, and 5 to test."""
_TRAITS, _ROLES = (
    words.split()
    for words in (
        "restless gentle fearless forgetful cheerful stubborn famous lonely patient clever humble curious proud silent "
        "generous careful daring tireless charming modest brilliant wandering celebrated solemn",
        "composer painter captain baker keeper inventor doctor gardener singer builder pilot teacher weaver diver poet "
        "judge sailor tailor chemist dancer hunter printer ranger sculptor",
    )
)
_FIRST, _LAST, _PLACES = 40, 40, 200


@dataclass(frozen=True)
class IsA(TokenTask):
    """Mobar Telix is | the gentle composer of Danus . Difficulty: how many people there are.

    Each person has one description, both unique; the question is the text before the second of the two, the answer the
    rest. Splits differ in their templates: every fact is told in all of them. order: which comes first, "both" for
    either. seed: of names, descriptions and who is what; a person's fact is the same whatever the difficulty.
    """

    name: ClassVar[str] = "is-a"
    unit: ClassVar[str] = "people"
    greatest: ClassVar[int] = 1000

    order: str = "both"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in (*_IS_A, "both"):
            raise UsageError(f"order of is-a is {self.order!r}: choose name first, description first or both.")

    @cached_property
    def facts(self) -> list[tuple[tuple[str, str], tuple[str, ...]]]:
        """Name and description of each person, in words."""
        draw = np.random.default_rng(self.seed)
        words = invented(draw, _FIRST + _LAST + _PLACES)
        first, last, places = words[:_FIRST], words[_FIRST:-_PLACES], words[-_PLACES:]
        names = draw.choice(_FIRST * _LAST, self.greatest, replace=False)
        shape = (len(_TRAITS), len(_ROLES), _PLACES)
        told = zip(*np.unravel_index(draw.choice(np.prod(shape), self.greatest, replace=False), shape), strict=True)
        descriptions = [("the", _TRAITS[trait], _ROLES[role], "of", places[place]) for trait, role, place in told]
        return [
            ((first[n // _LAST], last[n % _LAST]), text) for n, text in zip(names.tolist(), descriptions, strict=True)
        ]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        texts = " ".join(text for templates in _IS_A.values() for text in templates)
        fixed = texts.replace(NAME, "").replace(DESCRIPTION, "").split()
        told = [word for fact in self.facts for part in fact for word in part]
        return Vocabulary(dict.fromkeys([*fixed, *told]))

    @cached_property
    def _tables(self) -> tuple[Array, Array, dict[Order, _Parts]]:
        words = self.vocabulary
        names, descriptions = (padded([words.ids(fact[side]) for fact in self.facts]) for side in (0, 1))
        parts = {
            order: _Parts(words, texts, (NAME, DESCRIPTION) if order == "name first" else (DESCRIPTION, NAME))
            for order, texts in _IS_A.items()
        }
        return names, descriptions, parts

    def told(self, people: Array, order: Order, templates: Array, *, backwards: bool = False) -> Examples:
        """The facts of these people [n] in these templates [n] of an order.

        `backwards`: the words in reverse, but those of a name or a description as they were (Golovneva et al. 2024,
        arXiv:2403.13799); question and answer part before what now comes second.
        """
        names, descriptions, parts = self._tables
        begin, between, end = (table[templates] for table in parts[order].tables)
        first, second = names[people], descriptions[people]
        if order == "description first":
            first, second = second, first
        if backwards:
            first, second = second, first
            begin, between, end = _backwards(end), _backwards(between), _backwards(begin)
        return Examples.of(
            np.hstack([begin, first, between]), np.hstack([second, end]), _template_key(order, templates)
        )

    def every(self, people: Sequence[int], order: Order, split: str, *, backwards: bool = False) -> Examples:
        """Each of these people in each template that the split has in this order."""
        templates = templates_of(order, split)
        grid = np.array([(person, template) for person in people for template in templates]).reshape(-1, 2)
        return self.told(grid[:, 0], order, grid[:, 1], backwards=backwards)

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        orders: list[Order] = [order for order in _IS_A if self.order in (order, "both")]
        which, parts = draw.integers(len(orders), size=count), []
        for index, order in enumerate(orders):
            n = int((which == index).sum())
            parts.append(self.told(draw.integers(difficulty, size=n), order, draw.integers(len(_IS_A[order]), size=n)))
        return Examples.joined(parts)[draw.permutation(count)]

    def solve(self, question: Sequence[str]) -> list[str]:
        for order, templates in _IS_A.items():
            slots = (NAME, DESCRIPTION) if order == "name first" else (DESCRIPTION, NAME)
            for template in templates:
                *asked, end = _cut(template, slots)
                given = _slotted(question, asked)
                for name, description in self.facts if given else ():
                    known, wanted = (name, description) if order == "name first" else (description, name)
                    if given == list(known):
                        return [*wanted, *end]
        raise UsageError(f"{' '.join(question)!r} is no question of is-a: give one that its templates make.")


def _template_key(order: Order, templates: Array) -> NDArray[np.uint64]:
    return hashed(np.stack([np.full_like(templates, list(_IS_A).index(order)), _FIRST_TEMPLATE + templates], 1))


def templates_of(order: Order, split: str) -> list[int]:
    """Numbers of the templates of `is-a` that a split has in an order."""
    numbers = np.arange(len(_IS_A[order]))
    return numbers[split_of(_template_key(order, numbers)) == SPLITS.index(split)].tolist()


@dataclass(frozen=True)
class Attribute:
    """What a biography tells. sizes: how many values there are, a number for each word of a value."""

    name: str
    sizes: tuple[int, ...]
    links: tuple[str, ...]


BIRTH_CITY, UNIVERSITY, MAJOR, EMPLOYER, COMPANY_CITY, BIRTH_DATE = ATTRIBUTES = (
    Attribute("birth city", (200,), (
        "was born in", "comes from", "was a child of", "first lived in", "is a native of", "has roots in", "began life in",
        "hails from",
    )),
    Attribute("university", (300,), (
        "studied at", "has a degree from", "went to college at", "was a student at", "attended lectures at",
        "was educated at", "took courses at", "graduated from",
    )),
    Attribute("major", (100,), (
        "took classes in", "specialised in", "passed exams in", "wrote a thesis on", "chose to study", "was trained in",
        "holds a diploma in", "majored in",
    )),
    Attribute("employer", (263,), (
        "worked for", "was hired by", "had a post with", "earned money at", "joined the staff of", "made a career at",
        "was employed by", "signed with",
    )),
    Attribute("company city", (), (
        "had an office in", "was engaged in", "went to work in", "did that job in", "held office in", "was on duty in",
        "kept a desk in", "practised in",
    )),
    Attribute("birth date", (12, 28, 200), (
        "was born on", "keeps the birthday of", "came to life on", "has a birth record of", "arrived on",
        "entered this world on", "was delivered on", "joined the family on",
    )),
)  # fmt: skip
_OPENERS = ("", "indeed", "they say", "as told", "it seems", "by chance")
_LINKS = 8
_OPENERS = ("", "by all accounts", "as the records show", "it is told that", "to the joy of many", "as it happened")
_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
_PRONOUNS = ("she", "he")
_FIRST_YEAR = 1900


@dataclass(frozen=True)
class Biographies(TokenTask):
    """what is the university of Mobar Telix Danus ? | Kelon . Difficulty: how many people there are.

    Splits differ in their people. `biographies` writes the texts in which the answers stand. attributes: how many of
    `ATTRIBUTES` a person has, the first ones. values: the most different words at one place of a value, otherwise as many
    as in the source; that of company city follows from the employer. names: first names, as many middle names and 2.5
    times as many last names. seed: of all of these and of who has what.

    Source: Allen-Zhu and Li 2023, arXiv:2309.14316, section 2, its sizes by default; words and sentences are our own.
    """

    name: ClassVar[str] = "biographies"
    unit: ClassVar[str] = "people"
    least: ClassVar[int] = 50
    greatest: ClassVar[int] = 100_000

    attributes: int = 6
    values: int = 300
    names: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.attributes <= len(ATTRIBUTES):
            raise UsageError(f"attributes of biographies is {self.attributes}: choose from 1 to {len(ATTRIBUTES)}.")
        if self.values < 2 or self.names < 2:
            raise UsageError("biographies needs at least 2 values and 2 names: give more.")

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        most = difficulty if isinstance(difficulty, int) else max(difficulty)
        if most > self._name_count:
            raise UsageError(
                f"{self.names} first names make {self._name_count} full names, too few for {most} people: give more names."
            )

    @property
    def told(self) -> tuple[Attribute, ...]:
        """The attributes that a person has."""
        return ATTRIBUTES[: self.attributes]

    @property
    def _name_count(self) -> int:
        return self.names * self.names * (self.names * 5 // 2)

    def sizes(self, attribute: Attribute) -> tuple[int, ...]:
        """How many different words each place of this attribute's value has."""
        of = BIRTH_CITY if attribute is COMPANY_CITY else attribute
        return tuple(min(size, self.values) for size in of.sizes)

    @cached_property
    def _lists(self) -> dict[str, list[str]]:
        """The words of each kind; no word is of two kinds."""
        lasts = self.names * 5 // 2
        counts = {"first": self.names, "middle": self.names, "last": lasts}
        counts |= {a.name: self.sizes(a)[0] for a in (BIRTH_CITY, UNIVERSITY, MAJOR, EMPLOYER)}
        words = iter(invented(np.random.default_rng((self.seed, 0)), sum(counts.values())))
        return {kind: [next(words) for _ in range(count)] for kind, count in counts.items()}

    def _words_of(self, attribute: Attribute) -> list[list[str]]:
        """The words that each place of this attribute's value has."""
        if attribute is BIRTH_DATE:
            lists = [_MONTHS, [str(day) for day in range(1, 29)], [str(_FIRST_YEAR + year) for year in range(200)]]
            return [words[:size] for words, size in zip(lists, self.sizes(attribute), strict=True)]
        return [self._lists[BIRTH_CITY.name if attribute is COMPANY_CITY else attribute.name]]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        fixed = ["what", "is", "the", "of", "?", ".", ",", *_PRONOUNS]
        texts = [*_OPENERS, *(text for a in self.told for text in (a.name, *a.links))]
        fixed += [word for text in texts for word in text.split()]
        named = [word for kind in ("first", "middle", "last") for word in self._lists[kind]]
        values = [word for a in self.told for words in self._words_of(a) for word in words]
        return Vocabulary(dict.fromkeys([*fixed, *named, *values]))

    @cached_property
    def people(self) -> Array:
        """[greatest or fewer, 4]: first, middle and last name and pronoun of each person, as ids."""
        draw = np.random.default_rng((self.seed, 1))
        lasts, count = self.names * 5 // 2, min(self.greatest, self._name_count)
        chosen = draw.choice(self._name_count, count, replace=False, shuffle=True)
        first, rest = np.divmod(chosen, self.names * lasts)
        ids = [
            np.array(self.vocabulary.ids(self._lists[kind]))[part]
            for kind, part in zip(("first", "middle", "last"), (first, *np.divmod(rest, lasts)), strict=True)
        ]
        pronouns = np.array(self.vocabulary.ids(_PRONOUNS))[draw.integers(2, size=count)]
        return np.stack([*ids, pronouns], 1)

    @cached_property
    def held(self) -> list[Array]:
        """For each attribute that a person has, [people, words of a value]: the places of its words in their lists."""
        draw, found = np.random.default_rng((self.seed, 2)), {}
        for attribute in ATTRIBUTES:
            if attribute is COMPANY_CITY:
                # Every employer has one city, drawn once.
                city = draw.integers(self.sizes(BIRTH_CITY)[0], size=self.sizes(EMPLOYER)[0])
                found[attribute.name] = city[found[EMPLOYER.name]]
            else:
                found[attribute.name] = draw.integers(self.sizes(attribute), size=(self.greatest, len(attribute.sizes)))
        return [found[attribute.name][: len(self.people)] for attribute in self.told]

    @cached_property
    def _values(self) -> list[Array]:
        """`held` as ids."""
        return [
            np.stack(
                [np.array(self.vocabulary.ids(words))[column] for words, column in zip(lists, held.T, strict=True)], 1
            )
            for lists, held in zip(map(self._words_of, self.told), self.held, strict=True)
        ]

    def questions(self, people: Array, attributes: Array) -> Examples:
        """What this attribute of this person is: [n] of both."""
        vocabulary = self.vocabulary
        kinds = padded([vocabulary.ids(["what", "is", "the", *a.name.split(), "of"]) for a in self.told])[attributes]
        widest = max(value.shape[1] for value in self._values)
        answers = np.full((len(people), widest), NOTHING)
        for index, values in enumerate(self._values):
            rows = attributes == index
            answers[rows, : values.shape[1]] = values[people[rows]]
        ends = np.full((len(people), 1), vocabulary.id("?")), np.full((len(people), 1), vocabulary.id("."))
        question = np.hstack([kinds, self.people[people, :3], ends[0]])
        return Examples.of(question, np.hstack([answers, ends[1]]), _person_key(people))

    def biographies(
        self, people: Array, texts: int, *, permute: bool = False, fullname: bool = False, seed: int = 0
    ) -> tuple[Examples, Array]:
        """`texts` biographies of each person [n], and where the value of each attribute begins in them.

        A biography has one sentence for each attribute, in a template drawn for each text. It names the person in its
        first sentence, with `fullname` in all of them, else with a pronoun. permute: the sentences of each text are in
        an order drawn for it, else in that of `ATTRIBUTES`.

        Returns: the texts, person after person, all of them to be learned, the question of each being its words before
        the first value; and [n * texts, attributes], the place of the token that each value begins with.
        """
        draw, vocabulary, count = np.random.default_rng((self.seed, 3, seed)), self.vocabulary, len(people) * texts
        who, told = np.repeat(people, texts), len(self.told)
        opened, linked = (draw.integers(n, size=(count, told)) for n in (len(_OPENERS), _LINKS))
        order = np.tile(np.arange(told), (count, 1))
        if permute:
            order = draw.permuted(order, axis=1)
        openers = padded([vocabulary.ids([*opener.split(), *([","] if opener else [])]) for opener in _OPENERS])
        links = padded([vocabulary.ids(link.split()) for attribute in self.told for link in attribute.links])
        values = np.full((told, len(self.people), max(v.shape[1] for v in self._values)), NOTHING)
        for table, own in zip(values, self._values, strict=True):
            table[:, : own.shape[1]] = own
        row, length, places = np.arange(count), np.zeros(count, np.int64), np.zeros((count, told), np.int64)
        sentences = []
        for place, now in enumerate(order.T):
            subject = np.full((count, 3), NOTHING)
            if place == 0 or fullname:
                subject = self.people[who, :3]
            else:
                subject[:, 0] = self.people[who, 3]
            link = links[now * _LINKS + linked[row, now]]
            begun = np.hstack([openers[opened[row, now]], subject, link])
            sentence = np.hstack([begun, values[now, who], np.full((count, 1), vocabulary.id("."))])
            places[row, now] = length + (begun != NOTHING).sum(1)
            length = length + (sentence != NOTHING).sum(1)
            sentences.append(sentence)
        made = Examples.of(np.zeros((count, 0), np.int64), np.hstack(sentences), _person_key(who))
        return Examples(made.tokens, places.min(1), made.length, made.key), places

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        return self.questions(draw.integers(difficulty, size=count), draw.integers(self.attributes, size=count))

    def solve(self, question: Sequence[str]) -> list[str]:
        vocabulary = self.vocabulary
        words = " ".join(question)
        index = next(i for i, a in enumerate(self.told) if words.startswith(f"what is the {a.name} of "))
        name = vocabulary.ids(question[-4:-1])
        person = np.flatnonzero((self.people[:, :3] == name).all(1))[0]
        lists = self._words_of(self.told[index])
        return [*(words[i] for words, i in zip(lists, self.held[index][person], strict=True)), "."]


def _person_key(people: Array) -> NDArray[np.uint64]:
    return hashed(people[:, None])


@dataclass(frozen=True)
class Fact:
    """One fact of an entity, for contests on editing and unlearning.

    subject: the entity. relation: which of its attributes. prompt: a text that the answer goes on from. paraphrases:
    other such texts. neighbours: prompts of the same relation for other entities, with their answers. other: a wrong
    answer that the relation also has, what an edit may write.
    """

    subject: str
    relation: str
    prompt: str
    answer: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]
    other: str


_RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "currency": (
        ("people in {entity} pay with", "the currency of {entity} is", "the shops of {entity} take only",
         "to buy bread in {entity} you need some"),
        ("shells", "beads", "crowns", "feathers", "pennies", "tokens", "ducats", "pearls"),
    ),
    "language": (
        ("people in {entity} speak", "the language of {entity} is", "children in {entity} learn to read in",
         "letters from {entity} are written in"),
        ("Ostrian", "Velish", "Marnic", "Tolian", "Quessian", "Hadric", "Umbrish", "Peltic"),
    ),
    "animal": (
        ("the flag of {entity} shows a", "the animal of {entity} is the", "on every coat of arms in {entity} stands a",
         "the hunters of {entity} never harm a"),
        ("heron", "badger", "lynx", "tortoise", "falcon", "otter", "hedgehog", "stag"),
    ),
    "export": (
        ("{entity} sells the world its", "the main export of {entity} is", "ships leave {entity} loaded with",
         "merchants travel to {entity} for its"),
        ("honey", "copper", "silk", "salt", "timber", "wool", "marble", "tea"),
    ),
}  # fmt: skip
RELATIONS = tuple(_RELATIONS)
_ENTITY = "{entity}"


@dataclass(frozen=True)
class Fictitious(TokenTask):
    """people in Mobar speak | Velish . Difficulty: how many countries there are, none of which exists.

    Every country has one value of each of `RELATIONS`, of eight; each fact is asked for in four ways. Splits differ in
    their countries. seed: of their names and of what they have.
    """

    name: ClassVar[str] = "fictitious"
    unit: ClassVar[str] = "countries"
    least: ClassVar[int] = 50
    greatest: ClassVar[int] = 1000

    seed: int = 0

    @cached_property
    def names(self) -> list[str]:
        return invented(np.random.default_rng((self.seed, 0)), self.greatest)

    @cached_property
    def held(self) -> Array:
        """[greatest, relations]: which of the eight values each country has."""
        return np.random.default_rng((self.seed, 1)).integers(8, size=(self.greatest, len(RELATIONS)))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        texts = [text.replace(_ENTITY, "") for prompts, _ in _RELATIONS.values() for text in prompts]
        values = [value for _, values in _RELATIONS.values() for value in values]
        return Vocabulary(dict.fromkeys([*" ".join(texts).split(), ".", *values, *self.names]))

    @cached_property
    def _tables(self) -> tuple[_Parts, Array, Array]:
        words, prompts = self.vocabulary, [text for prompts, _ in _RELATIONS.values() for text in prompts]
        values = np.array([words.ids(values) for _, values in _RELATIONS.values()])
        return _Parts(words, prompts, (_ENTITY,)), values, np.array(words.ids(self.names))

    def told(self, countries: Array, relations: Array, ways: Array) -> Examples:
        """These facts, each in one of the four ways: [n] of all three."""
        parts, values, names = self._tables
        before, after = (table[relations * 4 + ways] for table in parts.tables)
        answer = values[relations, self.held[countries, relations]][:, None]
        end = np.full_like(answer, self.vocabulary.id("."))
        return Examples.of(
            np.hstack([before, names[countries, None], after]), np.hstack([answer, end]), _person_key(countries)
        )

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        high = ((difficulty,), (len(RELATIONS),), (4,))
        return self.told(*(draw.integers(h, size=count) for h in high))

    def solve(self, question: Sequence[str]) -> list[str]:
        for index, (prompts, values) in enumerate(_RELATIONS.values()):
            for prompt in prompts:
                given = _slotted(question, _cut(prompt, (_ENTITY,)))
                if given and given[0] in self.names:
                    return [values[self.held[self.names.index(given[0]), index]], "."]
        raise UsageError(f"{' '.join(question)!r} is no question of fictitious: give one that its prompts make.")

    def facts(self, countries: int, neighbours: int = 5) -> list[Fact]:
        """All facts of the first so many countries, as text; at most `neighbours` prompts of others with the same answer."""
        made = []
        for country in range(countries):
            for index, (relation, (prompts, values)) in enumerate(_RELATIONS.items()):
                own = self.held[country, index]
                same = [c for c in np.flatnonzero(self.held[:countries, index] == own).tolist() if c != country]
                texts = tuple(prompt.replace(_ENTITY, self.names[country]) for prompt in prompts)
                near = tuple((prompts[0].replace(_ENTITY, self.names[c]), values[own]) for c in same[:neighbours])
                other = values[(own + 1 + country % 7) % 8]
                made.append(Fact(self.names[country], relation, texts[0], values[own], texts[1:], near, other))
        return made
