"""Mazes: A* traces, levels of dropping, symmetry, and the judge of plans."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.text import tasks
from bakeoff.text.tasks.mazes import COMPLETE, SOLUTION_ONLY, Maze, trace_length
from bakeoff.text.tasks.task import hashed

MIXED = (0.45, 1 / 6, 1 / 6, 1 / 6, 0.05)
QUESTION = ["side", "3", "start", "0", "0", "goal", "2", "0", "wall", "1", "0", "bos"]


def words(task: Maze, examples: tasks.Examples) -> list[tuple[list[str], list[str]]]:
    return [(task.vocabulary.words(q), task.vocabulary.words(a)) for q, a in examples.rows()]


def clauses(answer: list[str]) -> list[list[str]]:
    """The answer's clauses, each with its word first."""
    begins = [i for i, word in enumerate(answer) if word in ("create", "close", "plan", "eos")]
    return [answer[i:j] for i, j in itertools.pairwise([*begins, len(answer)])]


def test_a_search_by_hand() -> None:
    # . . .      From (0, 0) up, right twice and down again; (0, 2) costs 2 + 4 and waits for (1, 1) with 2 + 2.
    # . . .      (2, 0) has cost 4 and is closed before (0, 2), which has 6, and (1, 2), which has 6.
    # S # G
    answer = Maze().solve(QUESTION)
    assert " ".join(answer) == (
        "create 0 0 c0 c2 close 0 0 c0 c2 create 0 1 c1 c3 close 0 1 c1 c3 create 0 2 c2 c4 create 1 1 c2 c2 "
        "close 1 1 c2 c2 create 1 2 c3 c3 create 2 1 c3 c1 close 2 1 c3 c1 create 2 2 c4 c2 create 2 0 c4 c0 "
        "close 2 0 c4 c0 plan 0 0 plan 0 1 plan 1 1 plan 2 1 plan 2 0 eos"
    )
    assert trace_length(answer) == 13 * 5


PLAN = "plan 0 0 plan 0 1 eos"


def dropped(trace: str, levels: tuple[float, ...], count: int = 1) -> list[str]:
    """What is left of an answer with this trace, many times."""
    task = Maze(levels=levels)
    question, answer = (
        np.array([task.vocabulary.ids(text.split())] * count) for text in ("start bos", f"{trace} {PLAN}")
    )
    left = task.drop(tasks.Examples.of(question, answer), np.random.default_rng(0)).tokens
    _, first, which = np.unique(hashed(left), return_index=True, return_inverse=True)
    answers = []
    for row in left[first]:
        begun, bos, *rest = task.vocabulary.words(row[row != tasks.PAD])
        assert (begun, bos) == ("start", "bos")
        answers.append(" ".join(rest))
    return [answers[i] for i in which]


def only(level: int) -> tuple[float, ...]:
    return tuple(float(i == level) for i in range(5))


def test_levels_of_dropping_on_a_short_trace() -> None:
    trace = "create 0 0 c0 c2 close 0 0 c0 c2 create 0 1 c1 c1"
    assert dropped(trace, only(0)) == [f"{trace} {PLAN}"]
    assert dropped(trace, only(1)) == [f"create 0 0 c0 c2 create 0 1 c1 c1 {PLAN}"]
    assert dropped(trace, only(2)) == [f"create 0 0 create 0 1 {PLAN}"]
    assert dropped(trace, only(4)) == [PLAN]


def test_level_3_keeps_all_but_ten_to_forty_percent_of_the_creates_in_order() -> None:
    created = [f"create {i} 0 c{i} c0" for i in range(10)]
    left = dropped(" close 0 0 c0 c2 ".join(created), only(3), 4000)
    kept = np.array([[clause in answer for clause in created] for answer in left])
    for answer, row in zip(left, kept, strict=True):
        assert answer == " ".join([clause for clause, there in zip(created, row, strict=True) if there] + [PLAN])
    # floor(10 r / 100) for r from 10 to 40: 1, 2 and 3 ten times each, 4 once.
    shares = np.bincount(kept.sum(1), minlength=11) / 4000
    assert shares == pytest.approx(np.array([0, 0, 0, 0, 0, 0, 1, 10, 10, 10, 0]) / 31, abs=0.03)
    assert kept.mean(0) == pytest.approx(kept.mean(), abs=0.03)


def test_levels_leave_mazes_prompts_and_plans_as_they_are() -> None:
    complete, mixed = (Maze(ties="random", levels=levels) for levels in (COMPLETE, MIXED))
    whole, thinned = (words(task, task.examples("train", [4, 5], 300, 1)) for task in (complete, mixed))
    for (question, answer), (same, left) in zip(whole, thinned, strict=True):
        assert question == same
        full, rest = clauses(answer), clauses(left)
        assert [c for c in full if c[0] in ("plan", "eos")] == [c for c in rest if c[0] in ("plan", "eos")]
        left_over = iter([c for c in full if c[0] != "plan"])
        assert all(any(c == other[: len(c)] for other in left_over) for c in rest if c[0] != "plan")


def test_levels_come_in_their_shares() -> None:
    created, count = "create 0 0 c0 c0 " * 3, 100_000
    left = dropped(f"{created}close 0 0 c0 c0", MIXED, count)
    # Of three create clauses a tenth to four tenths are none or, from r = 34 on, one: 7 of 31.
    none, one = 24 / 31 / 6, 7 / 31 / 6
    expected = {
        f"{created}close 0 0 c0 c0 {PLAN}": 0.45, f"{created}{PLAN}": 1 / 6 + none, f"{'create 0 0 ' * 3}{PLAN}": 1 / 6,
        f"{'create 0 0 c0 c0 ' * 2}{PLAN}": one, PLAN: 0.05,
    }  # fmt: skip
    counts = Counter(left)
    assert counts.keys() == expected.keys()
    for answer, share in expected.items():
        assert abs(counts[answer] / count - share) < 3 * np.sqrt(share * (1 - share) / count)


def test_shares_of_one_are_the_complete_stream_and_the_solutions_alone() -> None:
    complete, solutions = (Maze(levels=levels).examples("train", 5, 200, 2) for levels in (COMPLETE, SOLUTION_ONLY))
    assert np.array_equal(Maze().examples("train", 5, 200, 2).tokens, complete.tokens)
    task = Maze()
    for (question, answer), (same, plan) in zip(words(task, complete), words(task, solutions), strict=True):
        assert question == same
        assert plan == answer[trace_length(answer) :]
        assert plan[0] == "plan"


@pytest.mark.parametrize("level", [1, 2])
def test_whole_levels_have_plain_solutions(level: int) -> None:
    task = Maze(levels=only(level))
    for question, answer in words(task, task.examples("validation", 4, 30)):
        assert answer == task.solve(question)


def test_random_ties_give_several_traces_and_always_a_shortest_way() -> None:
    task = Maze(ties="random", walls=(0.3, 0.3))
    traces: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for question, answer in words(task, task.examples("train", 3, 2000)):
        assert task.efficiency(question, answer) == 1
        traces.setdefault(tuple(question), set()).add(tuple(answer))
        own = clauses(answer)[:-1]
        created = [tuple(c[1:3]) for c in own if c[0] == "create"]
        closed = [c for c in own if c[0] == "close"]
        assert {tuple(c[1:3]) for c in closed} <= set(created)
        totals = [int(c[3][1:]) + int(c[4][1:]) for c in closed]
        assert totals == sorted(totals), "with this heuristic the cost of what is expanded never falls"
    assert max(map(len, traces.values())) > 2
    with pytest.raises(UsageError, match="efficiency"):
        task.solve(QUESTION)


def test_mazes_are_as_asked_for() -> None:
    task, walls = Maze(), set()
    for question, answer in words(task, task.examples("test", 5, 300)):
        walls.add(question.count("wall"))
        places = [tuple(question[i + 1 : i + 3]) for i in range(2, len(question) - 1, 3)]
        assert len(set(places)) == len(places)
        assert answer.count("plan") >= 5
    assert walls == set(range(7, 13))


def test_what_turns_into_each_other_is_one_question() -> None:
    task, size = Maze(walls=(0.2, 0.4)), 4
    seen = {
        tuple(q): key
        for e in [task.examples("train", size, 4000)]
        for (q, _), key in zip(words(task, e), e.key, strict=True)
    }

    def turned(question: tuple[str, ...]) -> tuple[str, ...]:
        def cell(x: str, y: str) -> tuple[str, str]:
            return str(size - 1 - int(y)), x

        clauses = [(question[i], *cell(*question[i + 1 : i + 3])) for i in range(2, len(question) - 1, 3)]
        rest = sorted(clauses[2:], key=lambda c: (int(c[2]), int(c[1])))
        return (*question[:2], *(w for c in [*clauses[:2], *rest] for w in c), "bos")

    def mirrored(question: tuple[str, ...]) -> tuple[str, ...]:
        clauses = [(question[i], question[i + 2], question[i + 1]) for i in range(2, len(question) - 1, 3)]
        rest = sorted(clauses[2:], key=lambda c: (int(c[2]), int(c[1])))
        return (*question[:2], *(w for c in [*clauses[:2], *rest] for w in c), "bos")

    pairs = [(key, seen[form(q)]) for q, key in seen.items() for form in (turned, mirrored) if form(q) in seen]
    assert len(pairs) > 100
    assert all(key == other for key, other in pairs)
    assert len(set(seen.values())) > len(seen) / 8


def test_the_judge_of_plans() -> None:
    task = Maze()
    judged = {
        "plan 0 0 plan 0 1 plan 1 1 plan 2 1 plan 2 0 eos": 1.0,
        "create 9 nonsense plan 0 0 plan 0 1 plan 1 1 plan 2 1 plan 2 0": 1.0,
        "plan 0 0 plan 0 1 plan 0 2 plan 1 2 plan 2 2 plan 2 1 plan 2 0 eos": 4 / 6,
        "plan 0 0 plan 1 0 plan 2 0 eos": 0.0,
        "plan 0 0 plan 0 1 plan 2 1 plan 2 0 eos": 0.0,
        "plan 0 1 plan 1 1 plan 2 1 plan 2 0 eos": 0.0,
        "plan 0 0 plan 0 1 plan 1 1 plan 2 1 eos": 0.0,
        "plan 0 0 plan 0 1 plan 1 1 plan 2 1 plan 3 1 plan 3 0 plan 2 0 eos": 0.0,
        "plan 0 0 plan 0 1 plan 1 1 plan 2 plan 2 0 eos": 0.0,
        "plan 0 0 plan 0 1 plan 1 1 plan 2 c1 plan 2 0 eos": 0.0,
        "create 0 0 c0 c2": 0.0,
        "eos": 0.0,
    }
    for answer, efficiency in judged.items():
        assert task.efficiency(QUESTION, answer.split()) == efficiency, answer


def test_options_that_cannot_be_get_one_sentence() -> None:
    with pytest.raises(UsageError, match="largest=12"):
        Maze().examples("train", 12, 1)
    assert len(Maze(largest=12).examples("train", 12, 3)) == 3
    for wrong in ("ties='some'", "walls=(0.5, 0.3)", "walls=(0.1, 0.9)", "levels=(0.5, 0.1)", "levels=(1, 1, 0, 0, 0)"):
        with pytest.raises(UsageError, match=wrong.split("=")[0]):
            tasks.make(f"maze({wrong})")
