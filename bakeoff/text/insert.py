"""Texts that overwrite places of a training stream, so that many experiments share one training run.

A stream is one long sequence of tokens that training reads once, in windows of fixed length, from the first to the last:
a token's position is when it is trained on. Insertions replace tokens and add none, so that the number of tokens, their
order and the schedule are those of the run without them.

Source: Bordt and Pawelczyk 2025, arXiv:2509.23383, and its code, github.com/sbordt/pretrain-experiments.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bakeoff import files
from bakeoff.errors import DataError, UsageError

REJECTIONS = 10
"""Rejected draws for each text of an experiment after which no more of its texts are placed."""

Reason = Literal["empty", "too long", "no room"]
Control = Callable[[int, Any], tuple[Sequence[Sequence[int]], Any]]


@dataclass(frozen=True)
class Experiment:
    """What one experiment inserts.

    texts: the tokens of each text.
    repetitions: k >= 1 inserts every text int(k) times; 0 < k < 1 inserts int(k n) of the n texts, drawn without
        replacement.
    between: the first token and the one after the last of the part of the stream that is inserted into, both multiples
        of the window's length; all of it by default.
    positions: the token at which each text begins. The texts are then inserted once, as they are: without end-of-text
        tokens added, and across the end of a window if they reach it.
    """

    name: str
    texts: Sequence[Sequence[int]]
    repetitions: float = 1.0
    between: tuple[int, int] | None = None
    positions: Sequence[int] | None = None


@dataclass(frozen=True, order=True)
class Insertion:
    """Tokens that stand from position `begin` on: text number `text` of an experiment, with its end-of-text tokens."""

    begin: int
    tokens: tuple[int, ...]
    experiment: str
    text: int

    @property
    def end(self) -> int:
        return self.begin + len(self.tokens)


@dataclass
class Insertions:
    """What is inserted where in a stream of `tokens` tokens that is read in windows of `length`, by all experiments.

    Attributes:
        placed: the insertions by position; no two overlap.
        left_out: experiment, number of the text and the reason, for every text that was not placed.
    """

    tokens: int
    length: int
    end_of_text: int
    placed: list[Insertion] = field(default_factory=list)
    left_out: list[tuple[str, int, Reason]] = field(default_factory=list)

    def place(self, experiments: Sequence[Experiment], *, seed: int) -> None:
        """Find places for all texts, none of which overlaps another or one that was placed before.

        Texts with positions come first. Any other text gets an end-of-text token behind it, and one before it where
        that still fits into a window, unless it has them; its window and its offset in the window are drawn uniformly,
        and drawn again where they overlap a text in place. Empty and too long texts are left out, and so are the texts
        that remain when an experiment has had 10 rejected draws for each of its texts. Which texts a fraction of
        repetitions takes is drawn from seed + the experiment's index, the places of all experiments in turn from seed.

        Raises:
            DataError: a text with a position overlaps another or leaves the stream.
            UsageError: repetitions of 0 or less, positions that are not as many as texts, or a range that is empty,
                outside the stream or cuts a window.
        """
        for experiment in experiments:
            self._refuse(experiment)
        for experiment in experiments:
            for number, position in enumerate(experiment.positions or ()):
                self._add(Insertion(position, tuple(experiment.texts[number]), experiment.name, number))
        draw = np.random.default_rng(seed)
        for index, experiment in enumerate(experiments):
            if experiment.positions is None:
                self._place_at_random(experiment, _repeated(experiment, seed + index), draw)

    def inserted(self, stream: Tensor, only: Collection[str] | None = None) -> Tensor:
        """A copy of the stream [tokens] with the insertions of all experiments, or of those named.

        One experiment alone thus stands where it stands beside the others.
        """
        if len(stream) != self.tokens:
            raise UsageError(f"The stream has {len(stream)} tokens and the insertions are for {self.tokens}.")
        changed = stream.clone()
        _overwrite(changed, [i for i in self.placed if only is None or i.experiment in only])
        return changed

    def ordinary(self, source: Tensor, seed: int) -> Insertions:
        """The control: the same places overwritten with runs of `source` [n], each drawn uniformly.

        End-of-text tokens stay where they stand at the ends of the insertions. What the experiments remove is thus
        removed, and nothing of what they bring is brought.

        Raises: DataError where an insertion is longer than the source.
        """
        draw = np.random.default_rng(seed)
        control = Insertions(self.tokens, self.length, self.end_of_text, left_out=list(self.left_out))
        for insertion in self.placed:
            if len(insertion.tokens) > len(source):
                raise DataError(
                    f"An insertion has {len(insertion.tokens)} tokens and the ordinary text {len(source)}: give more text."
                )
            offset = int(draw.integers(len(source) - len(insertion.tokens) + 1))
            run = source[offset : offset + len(insertion.tokens)].tolist()
            for end in (0, -1):
                if insertion.tokens[end] == self.end_of_text:
                    run[end] = self.end_of_text
            control.placed.append(Insertion(insertion.begin, tuple(run), insertion.experiment, insertion.text))
        return control

    def as_json(self) -> dict[str, Any]:
        """The whole map as plain JSON values: of each insertion its begin, tokens, experiment and text number."""
        return {
            "tokens": self.tokens,
            "length": self.length,
            "end_of_text": self.end_of_text,
            "placed": [[i.begin, list(i.tokens), i.experiment, i.text] for i in self.placed],
            "left_out": [list(left) for left in self.left_out],
        }

    def _refuse(self, experiment: Experiment) -> None:
        name = experiment.name
        if not experiment.repetitions > 0:
            raise UsageError(f"Experiment {name} has {experiment.repetitions:g} repetitions: give a number above 0.")
        if experiment.positions is not None and len(experiment.positions) != len(experiment.texts):
            raise UsageError(
                f"Experiment {name} has {len(experiment.texts)} texts and {len(experiment.positions)} positions: "
                "give one position for each text."
            )
        if experiment.positions is None:
            begin, end = self._range(experiment)
            if begin % self.length or end % self.length or not 0 <= begin < end <= self.tokens:
                raise UsageError(
                    f"Experiment {name} inserts between tokens {begin} and {end} of {self.tokens}: "
                    f"give multiples of {self.length}, the first below the second, within the stream."
                )

    def _range(self, experiment: Experiment) -> tuple[int, int]:
        return experiment.between or (0, self.tokens // self.length * self.length)

    def _free(self, begin: int, end: int) -> bool:
        after = bisect_left(self.placed, begin, key=lambda insertion: insertion.begin)
        return (after == 0 or self.placed[after - 1].end <= begin) and (
            after == len(self.placed) or self.placed[after].begin >= end
        )

    def _add(self, insertion: Insertion) -> None:
        if not insertion.tokens:
            self.left_out.append((insertion.experiment, insertion.text, "empty"))
            return
        where = f"Text {insertion.text} of experiment {insertion.experiment} stands at {insertion.begin}"
        if insertion.begin < 0 or insertion.end > self.tokens:
            raise DataError(f"{where} and leaves the stream of {self.tokens} tokens: move it.")
        if not self._free(insertion.begin, insertion.end):
            raise DataError(f"{where} and overlaps another insertion: move one of them.")
        insort(self.placed, insertion)

    def _place_at_random(self, experiment: Experiment, numbers: Sequence[int], draw: np.random.Generator) -> None:
        begin, end = self._range(experiment)
        rejected = 0
        for place, number in enumerate(numbers):
            tokens = self._wrapped(experiment.texts[number])
            if not tokens or len(tokens) > self.length:
                self.left_out.append((experiment.name, number, "too long" if tokens else "empty"))
                continue
            while True:
                window = begin // self.length + int(draw.integers((end - begin) // self.length))
                at = window * self.length + int(draw.integers(self.length - len(tokens) + 1))
                if self._free(at, at + len(tokens)):
                    insort(self.placed, Insertion(at, tokens, experiment.name, number))
                    break
                rejected += 1
                if rejected >= REJECTIONS * len(numbers):
                    self.left_out += [(experiment.name, left, "no room") for left in numbers[place:]]
                    return

    def _wrapped(self, text: Sequence[int]) -> tuple[int, ...]:
        tokens = tuple(text)
        if not tokens or len(tokens) >= self.length:
            return tokens
        if tokens[-1] != self.end_of_text:
            tokens = (*tokens, self.end_of_text)
        if len(tokens) < self.length and tokens[0] != self.end_of_text:
            tokens = (self.end_of_text, *tokens)
        return tokens


@dataclass
class DynamicControl:
    """Texts chosen while the model trains: every `every` steps `control` says what the next `every` steps insert.

    Call it with the step before the step's batch is read. It overwrites `stream` in place, within the windows of the
    steps to come, and places its texts in `insertions`, beside those of every other experiment.

    Args:
        tokens_per_step: a multiple of the window's length.
        control: of (step, state): the token texts to insert, and its next state (plain JSON values).
        state: the first.
        seed: of the places; every call draws others.
        journal: a JSON file of what was decided. With it a training that was interrupted finds its decisions again,
            where the model that made them is gone.
        name: of the experiment; the texts of a step are those of the experiment "NAME at step STEP".
    """

    insertions: Insertions
    stream: Tensor
    tokens_per_step: int
    every: int
    control: Control
    state: Any
    seed: int
    journal: Path
    name: str = "dynamic"
    _decided: dict[int, tuple[list[list[int]], Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokens_per_step % self.insertions.length:
            raise UsageError(
                f"A step of {self.tokens_per_step} tokens cuts a window of {self.insertions.length}: give a multiple."
            )
        if self.journal.exists():
            for step, texts, state in json.loads(self.journal.read_text("utf-8")):
                self._insert(step, texts, state)

    def __call__(self, step: int) -> None:
        begin = step * self.tokens_per_step
        if step % self.every or step in self._decided or begin + self.insertions.length > self.insertions.tokens:
            return
        texts, state = self.control(step, self.state)
        self._insert(step, [list(text) for text in texts], state)
        files.write_json(self.journal, [[step, *decided] for step, decided in sorted(self._decided.items())])

    @property
    def decided(self) -> dict[int, int]:
        """How many texts were chosen at each step."""
        return {step: len(texts) for step, (texts, _) in self._decided.items()}

    def _insert(self, step: int, texts: list[list[int]], state: Any) -> None:
        self._decided[step], self.state = (texts, state), state
        begin, length = step * self.tokens_per_step, self.insertions.length
        end = min(begin + self.every * self.tokens_per_step, self.insertions.tokens // length * length)
        name = f"{self.name} at step {step}"
        # The base seed itself places the static experiments: the same draws again would mostly meet their texts.
        seed = int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0])
        self.insertions.place([Experiment(name, texts, between=(begin, end))], seed=seed)
        _overwrite(self.stream, [i for i in self.insertions.placed if i.experiment == name])


def _overwrite(stream: Tensor, insertions: Iterable[Insertion]) -> None:
    for insertion in insertions:
        stream[insertion.begin : insertion.end] = torch.tensor(insertion.tokens, dtype=stream.dtype)


def _repeated(experiment: Experiment, seed: int) -> list[int]:
    """The numbers of the texts to place, in order."""
    count, times = len(experiment.texts), experiment.repetitions
    if times >= 1:
        return [*range(count)] * int(times)
    return [int(n) for n in np.random.default_rng(seed).choice(count, size=int(times * count), replace=False)]
