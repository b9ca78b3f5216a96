"""Sums, differences and products of numbers written in digits, in the formats that make them easy or hard to learn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import NOTHING, Examples, TokenTask, Vocabulary, hashed

Array = NDArray[np.int64]
DIGITS = "0123456789abcdef"
EQUALS, END, DELIMITER, SPACE, ANSWER = "=", ".", "$", "_", "####"
EXTRA_SPACES = (0.7, 0.2, 0.1)
"""The chances of 0, 1 and 2 spaces in a gap."""
_OPERANDS = ("exact", "lengths", "numbers")
_SCRATCH = ("<scratch>", "</scratch>", "[", "]", ",", "A", "C", "->", "has", "digits", "END", "\n")


@dataclass(frozen=True)
class _Arithmetic(TokenTask):
    """Two operands, "=", and what they make; each digit is a token, and the difficulty counts the operands' digits.

    base: 2 to 16. operands: with "exact" each has as many digits as the difficulty says, and no leading zero; with
    "lengths" the number of digits of each is drawn from 1 up to it; with "numbers" each is any number of at most so many
    digits, all with equal chance. delimited: "$" before the question and, in place of ".", after the answer.

    format:
        plain             1 2 8 + 3 6 7 = 4 9 5 .
        reversed          only the answer begins with its least significant digit: 1 2 8 + 3 6 7 = 5 9 4 .
        padded            zeros fill the operands to the difficulty's digits, and the answer to those that it may need
        padded_reversed   padded, and the answer reversed
        random_space      plain, with 0, 1 or 2 "_" in each gap between the tokens before "=", by `EXTRA_SPACES`
    """

    base: int = 10
    operands: str = "exact"
    format: str = "plain"
    delimited: bool = False

    unit: ClassVar[str] = "number of digits"
    greatest: ClassVar[int] = 100
    sign: ClassVar[str]
    commutes: ClassVar[bool] = True
    formats: ClassVar[tuple[str, ...]] = ("plain", "reversed", "padded", "padded_reversed", "random_space")

    def __post_init__(self) -> None:
        if not 2 <= self.base <= 16:
            raise UsageError(f"base of {self.name} is {self.base}: choose from 2 to 16.")
        for option, values in (("format", self.formats), ("operands", _OPERANDS)):
            if getattr(self, option) not in values:
                raise UsageError(
                    f"{option} of {self.name} is {getattr(self, option)!r}: choose one of {', '.join(values)}."
                )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary([*DIGITS[: self.base], self.sign, EQUALS, END, DELIMITER, *self.further_words()])

    def further_words(self) -> Sequence[str]:
        """The words that only this format has."""
        return (SPACE,) if self.format == "random_space" else ()

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        return self.written(draw, *self.pairs(draw, difficulty, count))

    def pairs(self, draw: np.random.Generator, difficulty: int, count: int) -> tuple[Array, Array]:
        """Digits of the operands, each [count, difficulty], least significant first."""
        first, second = (self._numbers(draw, difficulty, count) for _ in range(2))
        return first, second

    def _numbers(self, draw: np.random.Generator, difficulty: int, count: int) -> Array:
        digits = draw.integers(self.base, size=(count, difficulty))
        if self.operands != "numbers":
            length = np.full(count, difficulty)
            if self.operands == "lengths":
                length = draw.integers(1, difficulty + 1, count)
            digits[np.arange(difficulty) >= length[:, None]] = 0
            long = np.flatnonzero(length > 1)
            digits[long, length[long] - 1] = draw.integers(1, self.base, len(long))
        return digits

    @abstractmethod
    def result(self, first: Array, second: Array) -> Array:
        """Digits of the answer [n, as many as it may need], least significant first."""

    def written(self, draw: np.random.Generator, first: Array, second: Array) -> Examples:
        """The questions on these operands, digits [n, any], least significant first; `draw` is for what a format draws."""
        question = np.hstack(self.asked(first, second))
        if self.format == "random_space":
            spaces = self.column(first, SPACE)
            # Every token may have spaces before it, the first one of a question none.
            begins = (question != NOTHING).argmax(1)
            extra = draw.choice(len(EXTRA_SPACES), size=question.shape, p=EXTRA_SPACES)
            extra[(question == NOTHING) | (np.arange(question.shape[1]) <= begins[:, None])] = 0
            parts = [np.where(extra > i, spaces, NOTHING) for i in range(len(EXTRA_SPACES) - 1)]
            question = np.stack([*parts, question], 2).reshape(len(question), -1)
        if self.delimited:
            question = np.hstack([self.column(first, DELIMITER), question])
        question = np.hstack([question, self.column(first, EQUALS)])
        answer = [*self.told(first, second), self.column(first, DELIMITER if self.delimited else END)]
        return Examples.of(question, np.hstack(answer), self._key(first, second))

    def asked(self, first: Array, second: Array) -> list[Array]:
        """The parts of a question before "="."""
        padded = self.format.startswith("padded")
        return [self.ids(first, padded=padded), self.column(first, self.sign), self.ids(second, padded=padded)]

    def told(self, first: Array, second: Array) -> list[Array]:
        """The parts of an answer before its end."""
        found = self.result(first, second)
        return [
            self.ids(found, padded=self.format.startswith("padded"), ascending=self.format.endswith("reversed"))
        ]  # fmt: skip

    def ids(self, digits: Array, *, padded: bool = False, ascending: bool = False) -> Array:
        """Token ids of numbers, without leading zeros unless padded, most significant digit first unless ascending."""
        there = True if padded else np.arange(digits.shape[1]) < lengths(digits)[:, None]
        found = np.where(there, digits + self.vocabulary.id("0"), NOTHING)
        return found if ascending else found[:, ::-1]

    def column(self, like: Array, word: str) -> Array:
        """[n, 1]: the word, for as many rows as `like` has."""
        return np.full((len(like), 1), self.vocabulary.id(word))

    def _key(self, first: Array, second: Array) -> NDArray[np.uint64]:
        keys = np.stack([hashed(digits, lengths(digits)) for digits in (first, second)], 1)
        return hashed(np.sort(keys, 1) if self.commutes else keys)

    def solve(self, question: Sequence[str]) -> list[str]:
        first, second = self._read(question)
        return [
            *self.plainly(first, second, question.index(self.sign) - self.delimited),
            DELIMITER if self.delimited else END,
        ]

    def _read(self, question: Sequence[str]) -> tuple[int, int]:
        digits = [w for w in question if w in (*DIGITS[: self.base], self.sign)]
        if self.format == "chain":
            digits = [*digits[: digits.index(self.sign)][::-1], self.sign, *digits[digits.index(self.sign) + 1 :][::-1]]
        first, second = "".join(digits).split(self.sign)
        return int(first, self.base), int(second, self.base)

    def plainly(self, first: int, second: int, width: int) -> list[str]:
        """The words of an answer before its end; `width` is the tokens of the first operand."""
        width = self._needed(width) if self.format.startswith("padded") else 1
        found = in_digits(self.of_integers(first, second), self.base, width)
        return list(found[::-1] if self.format.endswith("reversed") else found)

    @abstractmethod
    def of_integers(self, first: int, second: int) -> int: ...

    @abstractmethod
    def _needed(self, width: int) -> int:
        """The digits that an answer may need for operands of so many."""


@dataclass(frozen=True)
class Addition(_Arithmetic):
    """1 2 8 + 3 6 7 = 4 9 5 .

    balance: whether all numbers of carries are equally likely; the operands are uniform among those with the same number.

    hints: in formats plain and reversed, operands and answer are padded to one digit more than the longer operand has, and
    before each digit stands a hint, alike for equal places: consecutive words h0, h1, ... from the most significant digit
    on, the first of them drawn. hint_words: how many there are.

    Further formats, whose answers begin with the columns of the sum, from the right, a line for each:
        simplified_scratchpad   A -> digit , C -> carry
        scratchpad              [ digits left ] + [ digits left ] , A = [ answer so far ] , C = carry , x + y + carry = sum ,
                                A -> digit , C -> carry, after a line on the number of digits of each operand

    Source of the scratchpads and of balancing: Lee et al. 2023, arXiv:2307.03381; of hints: Zhou et al. 2023,
    arXiv:2310.16028; of random spaces: Shen et al. 2023, arXiv:2311.14737, with chances of our own.
    """

    name: ClassVar[str] = "addition"
    sign: ClassVar[str] = "+"
    formats: ClassVar[tuple[str, ...]] = (*_Arithmetic.formats, "scratchpad", "simplified_scratchpad")

    balance: bool = False
    hints: bool = False
    hint_words: int = 101

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance and self.operands == "lengths":
            raise UsageError("addition balances carries of operands 'exact' and 'numbers' only: choose one of them.")
        if self.hints and self.format not in ("plain", "reversed"):
            raise UsageError(f"addition has no hints in format {self.format!r}: choose plain or reversed.")

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        longest = difficulty if isinstance(difficulty, int) else max(difficulty)
        if self.hints and longest >= self.hint_words:
            raise UsageError(
                f"addition has {self.hint_words} hints, too few for {longest} digits and a carry: give more hint_words."
            )
        if self.format == "scratchpad" and longest > 20:
            raise UsageError(
                f"A scratchpad of {longest} digits is too long: choose at most 20 or simplified_scratchpad."
            )

    def further_words(self) -> Sequence[str]:
        if self.hints:
            return [f"h{i}" for i in range(self.hint_words)]
        return _SCRATCH if "scratchpad" in self.format else super().further_words()

    def pairs(self, draw: np.random.Generator, difficulty: int, count: int) -> tuple[Array, Array]:
        if not self.balance:
            return super().pairs(draw, difficulty, count)
        columns = [self._column_pairs(leading=i == difficulty - 1 > 0) for i in range(difficulty)]
        # chance[i][c, k]: of k carries out of columns i and later, if c is carried into column i.
        chance = [np.zeros((2, difficulty + 1)) for _ in range(difficulty + 1)]
        chance[-1][:, 0] = 1
        for i in range(difficulty - 1, -1, -1):
            for c in range(2):
                none = columns[i][2][c] / len(columns[i][0])
                chance[i][c] = none * chance[i + 1][0]
                chance[i][c, 1:] += (1 - none) * chance[i + 1][1, :-1]
        left = draw.choice(np.flatnonzero(chance[0][0]), size=count)
        carry = np.zeros(count, np.int64)
        found = np.zeros((2, count, difficulty), np.int64)
        for i, (x, y, without) in enumerate(columns):
            share = without[carry] / len(x) * chance[i + 1][0, left] / chance[i][carry, left]
            carried = draw.random(count) >= share
            first, size = (
                np.where(carried, without[carry], 0),
                np.where(carried, len(x) - without[carry], without[carry]),
            )
            chosen = first + draw.integers(size)
            found[:, :, i] = x[chosen], y[chosen]
            carry = carried.astype(np.int64)
            left = left - carry
        return found[0], found[1]

    def _column_pairs(self, *, leading: bool) -> tuple[Array, Array, Array]:
        """Pairs of digits in order of their sum, and how many of them carry nothing, if 0 and if 1 is carried in."""
        least = int(leading and self.operands == "exact")
        x, y = (part.ravel() for part in np.indices((self.base - least,) * 2) + least)
        order = np.argsort(x + y, kind="stable")
        return x[order], y[order], np.array([(x + y < self.base - carry).sum() for carry in range(2)])

    def result(self, first: Array, second: Array) -> Array:
        return added(first, second, self.base)[0]

    def written(self, draw: np.random.Generator, first: Array, second: Array) -> Examples:
        if not self.hints:
            return super().written(draw, first, second)
        width = first.shape[1] + 1
        longer = np.maximum(lengths(first), lengths(second)) + 1
        start = draw.integers(self.hint_words - longer + 1)
        place = np.arange(width)
        hint = self.vocabulary.id("h0") + (start + longer - 1)[:, None] - place

        def hinted(digits: Array, *, ascending: bool = False) -> Array:
            digits = np.pad(digits, ((0, 0), (0, width - digits.shape[1]))) + self.vocabulary.id("0")
            both = np.where((place < longer[:, None])[..., None], np.stack([hint, digits], 2), NOTHING)
            return (both if ascending else both[:, ::-1]).reshape(len(both), -1)

        begin = [self.column(first, DELIMITER)] if self.delimited else []
        question = [*begin, hinted(first), self.column(first, self.sign), hinted(second), self.column(first, EQUALS)]
        answer = hinted(self.result(first, second), ascending=self.format == "reversed")
        end = self.column(first, DELIMITER if self.delimited else END)
        return Examples.of(np.hstack(question), np.hstack([answer, end]), self._key(first, second))

    def told(self, first: Array, second: Array) -> list[Array]:
        if "scratchpad" not in self.format:
            return super().told(first, second)
        found, carries = added(first, second, self.base)
        zero, longer = self.vocabulary.id("0"), np.maximum(lengths(first), lengths(second))

        def words(text: str) -> list[Array]:
            return [self.column(first, word) for word in text.split(" ")]

        def listed(digits: Array, begin: int, end: Array) -> list[Array]:
            """Places `begin` and up, before `end`, most significant first, in brackets and with commas."""
            parts: list[Array] = []
            for place in range(digits.shape[1] - 1, begin - 1, -1):
                there = (place < end)[:, None]
                comma = np.where(there & (place > begin), self.column(first, ","), NOTHING)
                parts += [np.where(there, digits[:, [place]] + zero, NOTHING), comma]
            return [*words("["), *parts, *words("]")]

        parts = words("<scratch> \n")
        detailed = self.format == "scratchpad"
        if detailed:
            for digits in (first, second):
                own = lengths(digits)
                size = own[:, None] // self.base ** np.arange(first.shape[1].bit_length()) % self.base
                parts += [*listed(digits, 0, own), *words("has"), self.ids(size), *words("digits \n")]
        for i in range(first.shape[1]):
            line: list[Array] = []
            before = carries[:, [i - 1]] if i else np.zeros((len(first), 1), np.int64)
            if detailed:
                total = first[:, [i]] + second[:, [i]] + before
                line += [
                    *listed(first, i, lengths(first)), *words("+"), *listed(second, i, lengths(second)), *words(", A ="),
                    *listed(found[:, :i], 0, np.full(len(first), i)), *words(", C ="), before + zero, *words(","),
                    first[:, [i]] + zero, *words("+"), second[:, [i]] + zero, *words("+"), before + zero, *words("="),
                    self.ids(np.hstack([total % self.base, total // self.base])), *words(","),
                ]  # fmt: skip
            line += [*words("A ->"), found[:, [i]] + zero, *words(", C ->"), carries[:, [i]] + zero]
            line += words("\n")
            parts += [np.where((i < longer)[:, None], part, NOTHING) for part in line]
        if detailed:
            last = np.take_along_axis(carries, longer[:, None] - 1, 1)
            parts += [
                *words("[ ] + [ ] , A ="), *listed(found[:, :-1], 0, longer), *words(", C ="), last + zero, *words(", END \n"),
            ]  # fmt: skip
        return [*parts, *words("</scratch> \n"), self.ids(found)]

    def solve(self, question: Sequence[str]) -> list[str]:
        if not self.hints:
            return super().solve(question)
        hints = [word for word in question[: question.index(self.sign)] if word.startswith("h")]
        digits = in_digits(self.of_integers(*self._read(question)), self.base, len(hints))
        told = list(zip(hints, digits, strict=True))
        words = [word for pair in (told[::-1] if self.format == "reversed" else told) for word in pair]
        return [*words, DELIMITER if self.delimited else END]

    def plainly(self, first: int, second: int, width: int) -> list[str]:
        if "scratchpad" not in self.format:
            return super().plainly(first, second, width)
        base, detailed = self.base, self.format == "scratchpad"
        numbers, carry, answer = (in_digits(first, base), in_digits(second, base)), 0, ""

        def listed(digits: str) -> str:
            return f"[ {' , '.join(digits)} ]" if digits else "[ ]"

        lines = [f"{listed(n)} has {' '.join(in_digits(len(n), base))} digits" for n in numbers] if detailed else []
        for i in range(max(map(len, numbers))):
            x, y = (int(n[-1 - i], base) if i < len(n) else 0 for n in numbers)
            left = " + ".join(listed(n[: max(len(n) - i, 0)]) for n in numbers)
            total = x + y + carry
            before = f"{left} , A = {listed(answer)} , C = {carry} , "
            before += f"{DIGITS[x]} + {DIGITS[y]} + {carry} = {' '.join(in_digits(total, base))} , "
            answer, carry = DIGITS[total % base] + answer, total // base
            lines.append(f"{before if detailed else ''}A -> {answer[0]} , C -> {carry}")
        if detailed:
            lines.append(f"[ ] + [ ] , A = {listed(answer)} , C = {carry} , END")
        words = " \n ".join(["<scratch>", *lines, "</scratch>", " ".join(in_digits(first + second, base))])
        return words.split(" ")

    def of_integers(self, first: int, second: int) -> int:
        return first + second

    def _needed(self, width: int) -> int:
        return width + 1


@dataclass(frozen=True)
class Subtraction(_Arithmetic):
    """3 6 7 - 1 2 8 = 2 3 9 . The greater operand stands first."""

    name: ClassVar[str] = "subtraction"
    sign: ClassVar[str] = "-"
    commutes: ClassVar[bool] = False

    def pairs(self, draw: np.random.Generator, difficulty: int, count: int) -> tuple[Array, Array]:
        first, second = super().pairs(draw, difficulty, count)
        unlike = first[:, ::-1] != second[:, ::-1]
        leading = difficulty - 1 - unlike.argmax(1)[:, None]
        smaller = np.take_along_axis(first, leading, 1) < np.take_along_axis(second, leading, 1)
        return np.where(smaller, second, first), np.where(smaller, first, second)

    def result(self, first: Array, second: Array) -> Array:
        found, borrow = np.empty_like(first), np.zeros(len(first), np.int64)
        for place in range(first.shape[1]):
            left = first[:, place] - second[:, place] - borrow
            found[:, place], borrow = left % self.base, (left < 0).astype(np.int64)
        return found

    def of_integers(self, first: int, second: int) -> int:
        return first - second

    def _needed(self, width: int) -> int:
        return width


@dataclass(frozen=True)
class Multiplication(_Arithmetic):
    """1 3 * 2 4 = 3 1 2 .

    A further format, in which every number, of the question too, begins with its least significant digit and is padded:
        chain   9 1 7 3 * 9 4 3 3 = 1 7 4 3 3 + 0 6 7 8 4 1 ( 1 3 2 2 8 1 ) + ... #### 1 3 9 4 5 4 2 1 .
    The first operand times each digit of the second, in parentheses the sum so far, which the first and the last product
    lack, and after "####" the answer.

    Source of the chain: Deng et al. 2024, arXiv:2405.14838.
    """

    name: ClassVar[str] = "multiplication"
    sign: ClassVar[str] = "*"
    greatest: ClassVar[int] = 20
    formats: ClassVar[tuple[str, ...]] = (*_Arithmetic.formats, "chain")

    def further_words(self) -> Sequence[str]:
        return ("+", "(", ")", ANSWER) if self.format == "chain" else super().further_words()

    def result(self, first: Array, second: Array) -> Array:
        width = first.shape[1]
        sums = np.zeros((len(first), 2 * width), np.int64)
        for place in range(width):
            sums[:, place : place + width] += first * second[:, [place]]
        return carried(sums, self.base)

    def asked(self, first: Array, second: Array) -> list[Array]:
        if self.format != "chain":
            return super().asked(first, second)
        numbers = [self.ids(digits, padded=True, ascending=True) for digits in (first, second)]
        return [numbers[0], self.column(first, self.sign), numbers[1]]

    def told(self, first: Array, second: Array) -> list[Array]:
        if self.format != "chain":
            return super().told(first, second)
        width, parts = first.shape[1], []
        total = np.zeros((len(first), 2 * width), np.int64)
        for i in range(width):
            product = np.zeros_like(total)
            product[:, i : i + width] = first * second[:, [i]]
            product, size = carried(product, self.base), width + 1 + i
            total = carried(total + product, self.base)
            parts += [self.column(first, "+")] if i else []
            parts.append(self.ids(product[:, :size], padded=True, ascending=True))
            if 0 < i < width - 1:
                so_far = self.ids(total[:, :size], padded=True, ascending=True)
                parts += [self.column(first, "("), so_far, self.column(first, ")")]
        return [*parts, self.column(first, ANSWER), self.ids(total, padded=True, ascending=True)]

    def solve(self, question: Sequence[str]) -> list[str]:
        if self.format != "chain":
            return super().solve(question)
        (first, second), width, total = self._read(question), question.index(self.sign) - self.delimited, 0
        words: list[str] = []
        for i in range(width):
            product = first * (second // self.base**i % self.base) * self.base**i
            total += product
            words += [*("+" if i else ""), *in_digits(product, self.base, width + 1 + i)[::-1]]
            words += ["(", *in_digits(total, self.base, width + 1 + i)[::-1], ")"] if 0 < i < width - 1 else []
        answer = in_digits(total, self.base, 2 * width)[::-1]
        return [*words, ANSWER, *answer, DELIMITER if self.delimited else END]

    def of_integers(self, first: int, second: int) -> int:
        return first * second

    def _needed(self, width: int) -> int:
        return 2 * width


def lengths(digits: Array) -> Array:
    """[n]: the digits of numbers without their leading zeros, at least 1, of digits [n, any], least significant first."""
    there = digits[:, ::-1] != 0
    return np.where(there.any(1), digits.shape[1] - there.argmax(1), 1)


def added(first: Array, second: Array, base: int) -> tuple[Array, Array]:
    """Digits of the sums [n, any + 1] and the carry out of each column [n, any], least significant first."""
    carries = np.zeros_like(first)
    carry = np.zeros(len(first), np.int64)
    found = np.zeros((len(first), first.shape[1] + 1), np.int64)
    for place in range(first.shape[1]):
        total = first[:, place] + second[:, place] + carry
        carry = carries[:, place] = total // base
        found[:, place] = total - base * carry
    found[:, -1] = carry
    return found, carries


def carried(sums: Array, base: int) -> Array:
    """Digits of what has these sums in its columns [n, any], least significant first; it has to fit."""
    found, carry = np.empty_like(sums), np.zeros(len(sums), np.int64)
    for place in range(sums.shape[1]):
        carry, found[:, place] = np.divmod(sums[:, place] + carry, base)
    return found


def in_digits(number: int, base: int, width: int = 1) -> str:
    """A number from 0 up, written in digits, with leading zeros up to the width."""
    found = ""
    while number:
        number, digit = divmod(number, base)
        found = DIGITS[digit] + found
    return found.rjust(width, "0")


def digits_of(numbers: NDArray[Any], base: int, width: int) -> Array:
    """Digits [n, width] of integers [n] below base**width, least significant first."""
    return np.asarray(numbers)[:, None].astype(np.int64) // base ** np.arange(width) % base
