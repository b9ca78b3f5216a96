"""Insertions into a stream: they replace, never overlap, never cross a window, and are the same for the same seed."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeoff.errors import DataError, UsageError
from bakeoff.text.insert import DynamicControl, Experiment, Insertions
from bakeoff.training.batches import Stream

EOS = 0


def texts(count: int, length: int, first: int = 100) -> list[list[int]]:
    return [[first + number] * length for number in range(count)]


def plan(tokens: int, length: int = 16) -> Insertions:
    return Insertions(tokens, length, EOS)


def intervals(insertions: Insertions) -> list[tuple[int, int]]:
    return [(i.begin, i.end) for i in insertions.placed]


def counts(insertions: Insertions, experiment: str) -> Counter[int]:
    """How often each text of an experiment stands in the stream."""
    return Counter(i.text for i in insertions.placed if i.experiment == experiment)


def disjoint(insertions: Insertions) -> bool:
    found = intervals(insertions)
    return all(before[1] <= after[0] for before, after in itertools.pairwise(found))


def test_texts_replace_tokens_within_windows() -> None:
    stream = torch.arange(1, 33, dtype=torch.int32)
    insertions = plan(32)
    insertions.place([Experiment("three", texts(3, 5))], seed=0)
    assert len(insertions.placed) == 3
    assert disjoint(insertions)
    assert all(begin // 16 == (end - 1) // 16 for begin, end in intervals(insertions))
    changed = insertions.inserted(stream)
    assert (changed.shape, changed.dtype) == (stream.shape, stream.dtype)
    assert int((changed != stream).sum()) == sum(end - begin for begin, end in intervals(insertions)) == 3 * 7
    assert stream.tolist() == list(range(1, 33))
    for insertion in insertions.placed:
        assert insertion.tokens == (EOS, *[100 + insertion.text] * 5, EOS)
        assert changed[insertion.begin : insertion.end].tolist() == list(insertion.tokens)


def test_no_experiment_leaves_the_stream_as_it_is() -> None:
    stream = torch.arange(64)
    insertions = plan(64)
    insertions.place([], seed=0)
    assert torch.equal(insertions.inserted(stream), stream)
    insertions.place([Experiment("nothing", [])], seed=0)
    assert torch.equal(insertions.inserted(stream), stream)


@pytest.mark.parametrize(("repetitions", "placed"), [(0.5, 5), (0.09, 0), (1, 10), (1.9, 10), (2.5, 20), (4, 40)])
def test_repetitions(repetitions: float, placed: int) -> None:
    insertions = plan(16 * 200)
    insertions.place([Experiment("ten", texts(10, 3), repetitions)], seed=3)
    found = counts(insertions, "ten")
    assert sum(found.values()) == len(insertions.placed) == placed
    assert set(found.values()) <= {max(1, int(repetitions))}


def test_a_fraction_draws_with_the_seed_and_the_place_of_the_experiment() -> None:
    ten = texts(10, 3)
    insertions = plan(16 * 100)
    insertions.place([Experiment("a", ten, 0.4), Experiment("b", ten, 0.4)], seed=7)
    for index, name in enumerate("ab"):
        assert set(counts(insertions, name)) == set(np.random.default_rng(7 + index).choice(10, 4, replace=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([5] * 3, (EOS, 5, 5, 5, EOS)),
        ([5, 5, EOS], (EOS, 5, 5, EOS)),
        ([EOS, 5], (EOS, 5, EOS)),
        ([5] * 6, (EOS, *[5] * 6, EOS)),
        ([5] * 7, (*[5] * 7, EOS)),
        ([5] * 8, (5,) * 8),
        ([5] * 7 + [EOS], (*[5] * 7, EOS)),
    ],
)
def test_end_of_text_stands_around_a_text_where_it_fits(text: list[int], expected: tuple[int, ...]) -> None:
    insertions = plan(8, 8)
    insertions.place([Experiment("one", [text])], seed=0)
    assert [i.tokens for i in insertions.placed] == [expected]


def test_empty_and_too_long_texts_are_reported() -> None:
    insertions = plan(64)
    insertions.place([Experiment("mixed", [[], [5] * 17, [5] * 16, [5]], 2)], seed=0)
    assert insertions.left_out == [("mixed", 0, "empty"), ("mixed", 1, "too long")] * 2
    assert counts(insertions, "mixed") == {2: 2, 3: 2}


def test_what_finds_no_room_is_reported() -> None:
    insertions = plan(32)
    insertions.place([Experiment("first", texts(2, 16)), Experiment("second", texts(3, 2))], seed=0)
    assert counts(insertions, "first") == {0: 1, 1: 1}
    assert insertions.left_out == [("second", number, "no room") for number in range(3)]


def test_rejections_are_ten_for_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    insertions = plan(16)
    insertions.place([Experiment("full", [[5] * 16])], seed=0)
    tried: list[int] = []
    free = Insertions._free

    def counted(self: Insertions, begin: int, end: int) -> bool:
        tried.append(begin)
        return free(self, begin, end)

    monkeypatch.setattr(Insertions, "_free", counted)
    insertions.place([Experiment("more", texts(4, 3))], seed=0)
    assert len(tried) == 40


def test_positions_come_first_and_stay() -> None:
    insertions = plan(64)
    insertions.place(
        [Experiment("random", texts(5, 3)), Experiment("fixed", [[7] * 10, [8] * 4], positions=[12, 40])], seed=1
    )
    fixed = {i.text: (i.begin, i.tokens) for i in insertions.placed if i.experiment == "fixed"}
    assert fixed == {0: (12, (7,) * 10), 1: (40, (8,) * 4)}
    assert counts(insertions, "random") == dict.fromkeys(range(5), 1)
    assert disjoint(insertions)


@pytest.mark.parametrize("positions", [[0, 3], [3, 0], [5, 5]])
def test_overlapping_positions_are_refused(positions: list[int]) -> None:
    with pytest.raises(DataError, match="Text 1 of experiment fixed .* overlaps"):
        plan(64).place([Experiment("fixed", texts(2, 4), positions=positions)], seed=0)


@pytest.mark.parametrize("position", [-1, 61])
def test_positions_outside_the_stream_are_refused(position: int) -> None:
    with pytest.raises(DataError, match="leaves the stream"):
        plan(64).place([Experiment("fixed", texts(1, 4), positions=[position])], seed=0)


def test_ranges_bound_the_places() -> None:
    insertions = plan(160)
    insertions.place([Experiment("middle", texts(6, 3), between=(48, 96))], seed=0)
    assert len(insertions.placed) == 6
    assert all(48 <= begin < end <= 96 for begin, end in intervals(insertions))
    rest = plan(70)
    rest.place([Experiment("whole windows", texts(8, 5), 1)], seed=0)
    assert all(end <= 64 for _, end in intervals(rest))


@pytest.mark.parametrize("between", [(0, 40), (8, 32), (32, 32), (48, 32), (0, 80), (-16, 16)])
def test_bad_ranges_are_refused(between: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="multiples of 16"):
        plan(64).place([Experiment("bad", texts(1, 3), between=between)], seed=0)


def test_bad_experiments_are_refused_before_anything_is_placed() -> None:
    insertions = plan(64)
    good = Experiment("good", texts(1, 3))
    with pytest.raises(UsageError, match="above 0"):
        insertions.place([good, Experiment("bad", texts(1, 3), 0)], seed=0)
    with pytest.raises(UsageError, match="one position for each text"):
        insertions.place([good, Experiment("bad", texts(2, 3), positions=[0])], seed=0)
    assert not insertions.placed
    with pytest.raises(UsageError, match="The stream has 65 tokens"):
        insertions.inserted(torch.arange(65))


def test_offset_and_window_are_uniform() -> None:
    windows, offsets = Counter[int](), Counter[int]()
    for seed in range(1200):
        insertions = plan(4 * 8, 8)
        insertions.place([Experiment("one", [[5, 5]])], seed=seed)
        windows[insertions.placed[0].begin // 8] += 1
        offsets[insertions.placed[0].begin % 8] += 1
    # Five offsets (a text of 2 + 2 tokens in 8) and four windows; the bound is four standard deviations of a binomial.
    assert sorted(offsets) == list(range(5))
    assert max(abs(n - 240) for n in offsets.values()) < 4 * (1200 * 0.2 * 0.8) ** 0.5
    assert max(abs(n - 300) for n in windows.values()) < 4 * (1200 * 0.25 * 0.75) ** 0.5


def test_same_seed_same_places_and_order_of_experiments_changes_places_not_counts() -> None:
    def placed(names: str, seed: int) -> Insertions:
        insertions = plan(16 * 60)
        insertions.place([Experiment(n, texts(6, 4), 3) for n in names], seed=seed)
        return insertions

    assert placed("ab", 1).placed == placed("ab", 1).placed
    assert intervals(placed("ab", 1)) != intervals(placed("ab", 2))
    one, other = placed("ab", 1), placed("ba", 1)
    assert [i for i in one.placed if i.experiment == "a"] != [i for i in other.placed if i.experiment == "a"]
    assert all(counts(one, n) == counts(other, n) for n in "ab")


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(0, 12), max_size=8), max_size=4),
    repetitions=st.sampled_from([0.5, 1.0, 3.0]),
    windows=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_whatever_is_asked_nothing_overlaps_and_everything_is_accounted_for(
    lengths: list[list[int]], repetitions: float, windows: int, seed: int
) -> None:
    experiments = [Experiment(str(n), [[9] * m for m in own], repetitions) for n, own in enumerate(lengths)]
    insertions = plan(windows * 10, 10)
    insertions.place(experiments, seed=seed)
    asked = sum(len(own) * int(repetitions) if repetitions >= 1 else int(len(own) * repetitions) for own in lengths)
    assert disjoint(insertions)
    assert len(insertions.placed) + len(insertions.left_out) == asked
    assert all(begin // 10 == (end - 1) // 10 and end <= windows * 10 for begin, end in intervals(insertions))


def test_one_experiment_alone_stands_where_it_stands_beside_the_others() -> None:
    stream = torch.full((320,), 50)
    insertions = plan(320)
    insertions.place([Experiment("a", texts(5, 4, 100)), Experiment("b", texts(5, 4, 200))], seed=0)
    both, alone = insertions.inserted(stream), insertions.inserted(stream, {"b"})
    places = torch.cat([torch.arange(i.begin, i.end) for i in insertions.placed if i.experiment == "b"])
    assert torch.equal(both[places], alone[places])
    assert int((alone != stream).sum()) == len(places)


def test_the_control_overwrites_the_same_places_with_ordinary_text() -> None:
    source = torch.arange(1000, 2000)
    insertions = plan(320)
    insertions.place([Experiment("a", texts(5, 4), 3), Experiment("b", [[7] * 16])], seed=0)
    control = insertions.ordinary(source, seed=1)
    assert intervals(control) == intervals(insertions)
    for own, other in zip(control.placed, insertions.placed, strict=True):
        assert (own.experiment, own.text) == (other.experiment, other.text)
        inner = [t for t in own.tokens if t != EOS]
        assert [t == EOS for t in own.tokens] == [t == EOS for t in other.tokens]
        assert inner == list(range(inner[0], inner[0] + len(inner)))
    assert len({i.tokens for i in control.placed}) == len(control.placed)
    assert control.ordinary(source, seed=1).placed == insertions.ordinary(source, seed=1).placed
    with pytest.raises(DataError, match="give more text"):
        insertions.ordinary(source[:3], seed=0)


def test_the_map_is_json() -> None:
    insertions = plan(32)
    insertions.place([Experiment("a", [[5, 5], []])], seed=0)
    (placed,) = insertions.placed
    assert json.loads(json.dumps(insertions.as_json())) == {
        "tokens": 32, "length": 16, "end_of_text": EOS, "placed": [[placed.begin, [EOS, 5, 5, EOS], "a", 0]],
        "left_out": [["a", 1, "empty"]],
    }  # fmt: skip


class Recorder:
    """Two texts whenever it is asked, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Any]] = []

    def __call__(self, step: int, state: Any) -> tuple[Sequence[Sequence[int]], Any]:
        self.asked.append((step, state))
        return [[500 + step] * 3, [600 + step] * 3], state + 1


def controlled(journal: Path, control: Recorder, steps: int = 6) -> DynamicControl:
    insertions = plan(32 * steps)
    insertions.place([Experiment("static", texts(steps, 4))], seed=0)
    stream = insertions.inserted(torch.full((32 * steps,), 50))
    return DynamicControl(insertions, stream, 32, 2, control, 0, 0, journal)


def test_dynamic_texts_enter_the_steps_to_come_beside_the_static_ones(tmp_path: Path) -> None:
    control = Recorder()
    dynamic = controlled(tmp_path / "journal.json", control)
    before = dynamic.stream.clone()
    for step in range(7):
        unread = dynamic.stream[step * 32 :].clone()
        read = dynamic.stream[: step * 32].clone()
        dynamic(step)
        assert torch.equal(dynamic.stream[: step * 32], read)
        changed = (dynamic.stream[step * 32 :] != unread).nonzero().flatten()
        assert (len(changed) > 0) == (step in (0, 2, 4))
        assert all(changed < 64)
    assert control.asked == [(0, 0), (2, 1), (4, 2)]
    assert dynamic.decided == {0: 2, 2: 2, 4: 2}
    assert dynamic.state == 3
    assert disjoint(dynamic.insertions)
    assert counts(dynamic.insertions, "dynamic at step 2") == {0: 1, 1: 1}
    for insertion in dynamic.insertions.placed:
        assert tuple(dynamic.stream[insertion.begin : insertion.end].tolist()) == insertion.tokens
    static = [i for i in dynamic.insertions.placed if i.experiment == "static"]
    assert all(torch.equal(before[i.begin : i.end], dynamic.stream[i.begin : i.end]) for i in static)
    places = [[i.begin % 64 for i in dynamic.insertions.placed if i.experiment.endswith(f" {s}")] for s in (0, 2, 4)]
    assert places[0] != places[1] != places[2]


def test_an_interrupted_control_finds_its_decisions(tmp_path: Path) -> None:
    whole = controlled(tmp_path / "whole.json", Recorder())
    for step in range(6):
        whole(step)
    first = controlled(tmp_path / "cut.json", Recorder())
    for step in range(3):
        first(step)
    again = Recorder()
    second = controlled(tmp_path / "cut.json", again)
    for step in range(1, 6):
        second(step)
    assert again.asked == [(4, 2)]
    assert torch.equal(second.stream, whole.stream)
    assert second.insertions.placed == whole.insertions.placed
    assert (second.state, second.decided) == (whole.state, whole.decided)


def test_a_step_that_cuts_a_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give a multiple"):
        DynamicControl(plan(64), torch.zeros(64), 24, 1, Recorder(), 0, 0, tmp_path / "journal.json")


def test_stream_reads_each_window_once_in_order() -> None:
    stream = Stream(torch.arange(70, dtype=torch.int32), rows=2, length=8)
    assert stream.steps == 4
    batches = [stream(step) for step in range(4)]
    assert torch.cat([b.input_ids.flatten() for b in batches]).tolist() == list(range(64))
    assert {(b.tokens, b.input_ids.dtype, b.input_ids.shape) for b in batches} == {(16, torch.int64, (2, 8))}
    assert batches[1].where == ("window 2", "window 3")
    with pytest.raises(UsageError, match="enough for 4 steps"):
        stream(4)
    stream.tokens[16] = 999
    assert stream(1).input_ids[0, 0] == 999
