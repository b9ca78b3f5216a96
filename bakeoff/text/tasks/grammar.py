"""Strings of a probabilistic grammar: functions that edit strings, applied to each other."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import NOTHING, Examples, TokenTask, Vocabulary

Ints = NDArray[np.int64]

UNARY = ("copy", "reverse", "shift", "swap", "repeat", "echo")
BINARY = ("append", "prepend", "remove_first", "remove_second")
_FUNCTIONS = (*UNARY, *BINARY)
_COMMA, SEPARATOR, END = ",", ">", "."

# What a place of the question holds: a function by its number, or one of these.
_STRING, _MARK, _EMPTY = len(_FUNCTIONS), len(_FUNCTIONS) + 1, len(_FUNCTIONS) + 2
_AT_ONCE = 1 << 13


# How many symbols a function makes of n and m, and at which place of both strings, the first followed by the second, its
# symbol j is found. A function of one string has no second.
_EDITS: dict[str, tuple[Callable[[Ints, Ints], Ints], Callable[[Ints, Ints, Ints], Ints]]] = {
    "copy": (lambda n, m: n, lambda j, n, m: j),
    "reverse": (lambda n, m: n, lambda j, n, m: n - 1 - j),
    "shift": (lambda n, m: n, lambda j, n, m: (j + 1) % n),
    "swap": (lambda n, m: n, lambda j, n, m: np.where(j == 0, n - 1, np.where(j == n - 1, 0, j))),
    "repeat": (lambda n, m: 2 * n, lambda j, n, m: j % n),
    "echo": (lambda n, m: n + 1, lambda j, n, m: np.minimum(j, n - 1)),
    "append": (lambda n, m: n + m, lambda j, n, m: j),
    "prepend": (lambda n, m: n + m, lambda j, n, m: (j + n) % (n + m)),
    "remove_first": (lambda n, m: m, lambda j, n, m: n + j),
    "remove_second": (lambda n, m: n, lambda j, n, m: j),
}


@dataclass(frozen=True)
class Pcfg(TokenTask):
    """append swap A B C , repeat D > C B A D D .

    Functions of one or two strings, a function of two having a comma between them; the answer is the string that they make.
    copy x: x. reverse x: from back to front. shift x: the first symbol goes to the end. swap x: the first and the last symbol
    change places. repeat x: x twice. echo x: the last symbol once more. append x , y: x, then y. prepend x , y: y, then x.
    remove_first x , y: y. remove_second x , y: x.

    The grammar, whose rules are drawn from left to right, all functions having the same chance:

        S -> unary S | binary S , S | string

    with a half for a string; but a string where the functions are used up, and none where otherwise some would be left
    over. The difficulty is the number of functions. symbols: how many different ones there are. longest: the greatest length
    of a string in the question; lengths have the same chance.

    This is the edit task and not the parse of a string, because its answers are unique whatever the grammar, and the number
    of functions says how much has to be composed.

    Source: the functions of PCFG SET, Hupkes et al. 2020, arXiv:1908.08351.
    Departures: its rules' chances were set so that lengths and depths resemble those of a natural corpus; here they are even.
    """

    symbols: int = 26
    longest: int = 5

    name: ClassVar[str] = "pcfg"
    unit: ClassVar[str] = "number of functions"
    greatest: ClassVar[int] = 8

    def __post_init__(self) -> None:
        if self.symbols < 2 or self.longest < 1:
            raise UsageError(f"{self.name} needs at least 2 symbols and strings of at least 1.")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        letters = string.ascii_uppercase
        symbols = (letters[i % 26] + (str(i // 26) if i >= 26 else "") for i in range(self.symbols))
        return Vocabulary([*_FUNCTIONS, _COMMA, SEPARATOR, END, *symbols])

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        return Examples.joined(
            [self._some(draw, difficulty, min(_AT_ONCE, count - begin)) for begin in range(0, count, _AT_ONCE)]
        )

    def _some(self, draw: np.random.Generator, functions: int, count: int) -> Examples:
        words = self.vocabulary
        kinds = _derived(draw, functions, count)
        turns = kinds.shape[1]
        symbols = draw.integers(self.symbols, size=(count, turns, self.longest)) + words.id("A")
        length = draw.integers(1, self.longest + 1, (count, turns))
        spelled = (kinds == _STRING)[..., None] & (np.arange(self.longest) < length[..., None])
        told = np.where(spelled, symbols, NOTHING)
        for kind, word in [*enumerate(_FUNCTIONS), (_MARK, _COMMA)]:
            told[kinds == kind, 0] = words.id(word)
        column = np.ones((count, 1), np.int64)
        made = _evaluated(kinds, symbols, length)
        question = np.hstack([told.reshape(count, -1), column * words.id(SEPARATOR)])
        return Examples.of(question, np.hstack([made, column * words.id(END)]))

    def solve(self, question: Sequence[str]) -> list[str]:
        return [*_value(list(question[:-1])[::-1]), END]


def _derived(draw: np.random.Generator, functions: int, count: int) -> Ints:
    """[count, turns]: what the places of expressions with so many functions hold, _EMPTY after the end."""
    rows = np.arange(count)
    # What is still to come, the next on top: an argument (True) or a comma.
    waiting = np.zeros((count, 2 * functions + 2), bool)
    waiting[:, 0] = True
    top, arguments, left = np.zeros(count, np.int64), np.ones(count, np.int64), np.full(count, functions)
    turns = []
    while (top >= 0).any():
        going = top >= 0
        argument = going & waiting[rows, np.maximum(top, 0)]
        function = argument & (left > 0) & ((arguments == 1) | (draw.random(count) < 0.5))
        chosen = draw.integers(len(_FUNCTIONS), size=count)
        binary = function & (chosen >= len(UNARY))
        turns.append(np.where(function, chosen, np.where(argument, _STRING, np.where(going, _MARK, _EMPTY))))
        top -= going
        for grows, what in ((binary, True), (binary, False), (function, True)):
            top += grows
            waiting[rows[grows], top[grows]] = what
        arguments += binary.astype(np.int64) - (argument & ~function)
        left -= function
    return np.stack(turns, 1)


def _evaluated(kinds: Ints, symbols: Ints, length: Ints) -> Ints:
    """[count, longest]: the strings that expressions make, NOTHING after their ends.

    The places are read from the last to the first: a string goes onto a stack, a function takes its arguments from there,
    the first one on top, and puts what it makes in their place. All strings lie one after the other in one pool.
    """
    count, turns = kinds.shape
    pool, used = symbols.ravel(), symbols.size
    begins, sizes, top = np.zeros((turns, count), np.int64), np.zeros((turns, count), np.int64), np.full(count, -1)
    for turn in range(turns - 1, -1, -1):
        for kind in range(_STRING + 1):
            rows = np.flatnonzero(kinds[:, turn] == kind)
            if kind == _STRING:
                top[rows] += 1
                begins[top[rows], rows] = (rows * turns + turn) * symbols.shape[2]
                sizes[top[rows], rows] = length[rows, turn]
                continue
            first = top[rows], rows
            top[rows] -= kind >= len(UNARY)
            second = top[rows], rows
            grown, source = _EDITS[_FUNCTIONS[kind]]
            n, m = sizes[first], sizes[second]
            size = grown(n, m)
            which, j = _spread(size)
            place, own = source(j, n[which], m[which]), n[which]
            at = np.where(place < own, begins[first][which] + place, begins[second][which] + place - own)
            if used + len(at) > len(pool):
                pool = np.concatenate([pool, np.zeros(len(pool) + len(at), np.int64)])
            pool[used : used + len(at)] = pool[at]
            begins[second], sizes[second] = used + np.cumsum(size) - size, size
            used += len(at)
    which, j = _spread(sizes[0])
    made = np.full((count, int(sizes[0].max())), NOTHING)
    made[which, j] = pool[begins[0][which] + j]
    return made


def _spread(size: Ints) -> tuple[Ints, Ints]:
    """For strings of these sizes one after the other: of each symbol the string and the place in it."""
    which = np.repeat(np.arange(len(size)), size)
    return which, np.arange(len(which)) - (np.cumsum(size) - size)[which]


def _value(rest: list[str]) -> list[str]:
    """The string that the expression at the end of `rest`, which is read from there, makes."""
    if rest[-1] not in _FUNCTIONS:
        made = []
        while rest and rest[-1] != _COMMA:
            made.append(rest.pop())
        return made
    function, x = rest.pop(), _value(rest)
    if function in BINARY:
        rest.pop()
        y = _value(rest)
        return {"append": x + y, "prepend": y + x, "remove_first": y, "remove_second": x}[function]
    edited = {"copy": x, "reverse": x[::-1], "shift": x[1:] + x[:1], "repeat": x + x, "echo": x + x[-1:]}
    return edited[function] if function != "swap" else [x[-1], *x[1:-1], x[0]] if len(x) > 1 else x
