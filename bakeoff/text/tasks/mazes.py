"""Mazes, the trace of the A* search through them, and a shortest way, with parts of the trace left out if wanted."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import NOTHING, Examples, TokenTask, Vocabulary, hashed

Ints = NDArray[Any]

COMPLETE = (1.0, 0.0, 0.0, 0.0, 0.0)
"""Shares of the levels of dropping: every trace whole."""
SOLUTION_ONLY = (0.0, 0.0, 0.0, 0.0, 1.0)
"""Shares of the levels of dropping: no trace at all."""

_WORDS = ("side", "start", "goal", "wall", "create", "close", "plan", "bos", "eos")
# Up, down, left, right, as (x, y).
_STEPS = ((0, 1), (0, -1), (-1, 0), (1, 0))
_ORDERS = np.array(
    [(a, b, c, d) for a in range(4) for b in range(4) for c in range(4) for d in range(4) if len({a, b, c, d}) == 4]
)
_TIES = ("fixed", "random")
# A search's key is cost, chance and cell in one number: 10, 11 and 10 bits.
_CELL, _CHANCE, _NEVER = 10, 11, np.int32(2**31 - 1)
_UNREACHED, _WALL = np.int16(2**15 - 1), np.int16(-1)
_AT_ONCE = 1 << 13
# As many cells of 2 bits as a float64 holds exactly.
_PACKED = 26


@dataclass(frozen=True)
class Maze(TokenTask):
    """side 3 start 0 0 goal 2 1 wall 1 0 ... bos create 0 0 c0 c3 close 0 0 c0 c3 create 0 1 c1 c2 ... plan 0 0 plan 0 1 ... eos

    A square of cells, some of them walls, two of them start and goal; the difficulty is its side. The answer is what an A*
    search with the Manhattan heuristic and steps of cost 1 does, then a shortest way as "plan x y" for each cell. "create"
    puts a cell on the frontier, "close" takes it off to be expanded, both with the cost from the start and the heuristic.
    The goal is at least as many cells away as the side is long, start and goal counted.

    walls: least and greatest share of the cells that are walls; their number is drawn between. ties: "fixed": of cells of
    equal cost the one with the least y, then the least x, is expanded first, and neighbours are looked at in one order (up,
    down, left, right), so that the answer follows from the maze; "random": both are drawn, so that a maze has many traces.
    levels: shares of five levels of dropping, one drawn for each example: 0 the whole trace; 1 without close clauses; 2 also
    without costs; 3 as 1, but without a tenth to four tenths of the create clauses, drawn; 4 without a trace. The mazes and
    their searches are the same whatever the levels. largest: the longest side that the vocabulary has words for.

    Mazes that turn into each other by rotation or reflection are one question to the splits. The papers' prompts do not
    name the side, since theirs have only one.

    Source: Lehnert et al. 2024, arXiv:2402.14083 (mazes, traces); Su et al. 2024, arXiv:2410.09918 (dropping; level 3 as in
    its released program, which keeps the costs that the text says are gone).
    """

    walls: tuple[float, float] = (0.3, 0.5)
    ties: str = "fixed"
    levels: tuple[float, ...] = field(default=COMPLETE, repr=False)
    largest: int = 10

    name: ClassVar[str] = "maze"
    unit: ClassVar[str] = "side"
    least: ClassVar[int] = 3
    greatest: ClassVar[int] = 30

    def __post_init__(self) -> None:
        if self.ties not in _TIES:
            raise UsageError(f"ties of {self.name} is {self.ties!r}: choose fixed or random.")
        if len(self.walls) != 2 or not 0 <= self.walls[0] <= self.walls[1] <= 0.6:
            raise UsageError(f"walls of {self.name} is {self.walls}: give a least and a greatest share from 0 to 0.6.")
        if len(self.levels) != 5 or min(self.levels) < 0 or abs(sum(self.levels) - 1) > 1e-6:
            raise UsageError(f"levels of {self.name} is {self.levels}: give five shares that add up to 1.")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(
            [*_WORDS, *map(str, range(self.largest + 1)), *(f"c{cost}" for cost in range(self.largest**2))]
        )

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        longest = difficulty if isinstance(difficulty, int) else max(difficulty)
        if longest > self.largest:
            raise UsageError(f"{self.name} has words for sides up to {self.largest}: give it largest={longest}.")

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        # What is dropped is drawn apart, so that the mazes do not depend on it.
        dropping = draw.spawn(1)[0]
        sizes = [min(_AT_ONCE, count - begin) for begin in range(0, count, _AT_ONCE)]
        return Examples.joined([self.drop(self._complete(draw, difficulty, size), dropping) for size in sizes])

    def drop(self, examples: Examples, draw: np.random.Generator) -> Examples:
        """Examples with whole traces without what their levels, which are drawn, leave out."""
        if self.levels == COMPLETE:
            return examples
        create, close, plan = self.vocabulary.ids(("create", "close", "plan"))
        place = np.arange(examples.tokens.shape[1], dtype=np.int16)
        begin = examples.answer[:, None].astype(np.int16)
        traced = (place >= begin) & (place < (examples.tokens == plan).argmax(1)[:, None])
        since = np.where(traced, place - begin, 0)
        part = since - since // 5 * 5
        # Where a token's clause begins, and with which word.
        head = (begin + since - part).astype(np.int64)
        kind = np.where(traced, np.take_along_axis(examples.tokens, head, 1), 0)
        level = np.searchsorted(np.cumsum(self.levels)[:-1], draw.random(len(examples)), side="right")[:, None]
        gone = traced & ((level == 4) | ((level > 0) & (kind == close)) | ((level == 2) & (part >= 3)))
        (thinned,) = np.nonzero(level[:, 0] == 3)
        first = (kind[thinned] == create) & (part[thinned] == 0)
        number = first.sum(1, keepdims=True) * draw.integers(10, 41, (len(thinned), 1)) // 100
        chosen = np.where(first, draw.random(first.shape, dtype=np.float32), 2).argsort(1).argsort(1) < number
        gone[thinned] |= traced[thinned] & np.take_along_axis(chosen, head[thinned], 1)
        there = (place < examples.length[:, None]) & ~gone
        question = np.where(there & (place < begin), examples.tokens, NOTHING)
        return Examples.of(question, np.where(there & (place >= begin), examples.tokens, NOTHING), examples.key)

    def _complete(self, draw: np.random.Generator, side: int, count: int) -> Examples:
        """Examples with whole traces."""
        wall, start, goal = self._mazes(draw, side, count)
        rows, places, events, parents = _searched(wall, start, goal, side, draw if self.ties == "random" else None)
        trace = np.full((count, places.max() + 1, 5), NOTHING, np.int16)
        trace[rows, places] = self._clauses(events, goal[rows], side)
        plan = self._at("plan", np.stack(_ways(parents, start, goal)[::-1], 1), side).reshape(count, -1)
        column = np.ones((count, 1), np.int16)
        walls = np.where(wall.T, np.arange(side * side, dtype=np.int16), side * side)
        walls.sort(1)
        walls = walls[:, : int(wall.sum(0).max(initial=0))]
        question = [
            column * self.vocabulary.id("side"), column * self.vocabulary.id(str(side)),
            self._at("start", start, side), self._at("goal", goal, side),
            self._at("wall", np.where(walls < side * side, walls, NOTHING), side).reshape(count, -1),
            column * self.vocabulary.id("bos"),
        ]  # fmt: skip
        answer = [trace.reshape(count, -1), plan, column * self.vocabulary.id("eos")]
        return Examples.of(np.hstack(question), np.hstack(answer), _same_by_symmetry(wall, start, goal, side))

    def _mazes(self, draw: np.random.Generator, side: int, count: int) -> tuple[NDArray[np.bool_], Ints, Ints]:
        """Walls [cells, count], starts and goals [count], of mazes whose goal can be reached and is far enough away."""
        cells, found, missing = side * side, [], count
        fewest, most = (int(share * cells) for share in self.walls)
        while missing:
            tried = 3 * missing + 64
            order = draw.random((tried, cells), dtype=np.float32).argsort(1).astype(np.int16)
            number = draw.integers(fewest, most + 1, tried)
            wall = np.zeros((cells, tried), bool)
            for place in range(most):
                wall[order[:, place], np.arange(tried)] = place < number
            start, goal = order[:, -1], order[:, -2]
            good = np.flatnonzero(_distance(wall, start, goal, side) >= side - 1)[:missing]
            found.append((wall[:, good], start[good], goal[good]))
            missing -= len(good)
        walls, starts, goals = zip(*found, strict=True)
        return np.concatenate(walls, 1), np.concatenate(starts), np.concatenate(goals)

    def _at(self, word: str, cells: Ints, side: int) -> Ints:
        """[..., 3]: the word, x and y of each cell; NOTHING where there is no cell."""
        zero = self.vocabulary.id("0")
        clause = np.stack(
            [np.full_like(cells, self.vocabulary.id(word)), zero + cells % side, zero + cells // side], -1
        )
        return np.where(cells[..., None] == NOTHING, NOTHING, clause).astype(np.int16)

    def _clauses(self, events: Ints, goal: Ints, side: int) -> Ints:
        """[n, 5]: word, x, y, cost from the start and heuristic of each event of a search."""
        cell, closed, cost = events & 1023, (events >> 10) & 1, events >> 11
        zero, free = self.vocabulary.id("0"), self.vocabulary.id("c0")
        word = np.where(closed, self.vocabulary.id("close"), self.vocabulary.id("create"))
        y, x = np.divmod(cell, side)
        far = abs(x - goal % side) + abs(y - goal // side)
        return np.stack([word, zero + x, zero + y, free + cost, free + far], 1).astype(np.int16)

    def solve(self, question: Sequence[str]) -> list[str]:
        """The answer, where the options leave only one."""
        level = int(np.argmax(self.levels))
        if self.ties == "random" or max(self.levels) < 1 or level == 3:
            raise UsageError(
                f"{self.name} has many answers with these ties and levels: judge one by its `efficiency`, or give ties='fixed' "
                "and one level other than 3."
            )
        events, way = _astar(*_read(question))
        kept = [
            [word, str(x), str(y), *([] if level == 2 else [f"c{g}", f"c{h}"])]
            for word, x, y, g, h in events
            if level == 0 or (level < 4 and word == "create")
        ]
        return [w for clause in [*kept, *(["plan", str(x), str(y)] for x, y in way)] for w in clause] + ["eos"]

    def efficiency(self, question: Sequence[str], answer: Sequence[str]) -> float:
        """Steps of a shortest way over those of the answer's plan, in (0, 1]; 0 where the plan does not lead from start to
        goal over neighbouring cells that are no walls. What stands before the first "plan" is not looked at."""
        start, goal, walls, side = _read(question)
        plan = _plan(answer)
        if len(plan) < 2 or plan[0] != start or plan[-1] != goal:
            return 0.0
        if any(step not in _neighbours(cell, walls, side) for cell, step in itertools.pairwise(plan)):
            return 0.0
        return _steps(start, goal, walls, side) / (len(plan) - 1)


def trace_length(answer: Sequence[str]) -> int:
    """Words of an answer before its plan."""
    return list(answer).index("plan") if "plan" in answer else len(answer)


def _searched(
    wall: NDArray[np.bool_], start: Ints, goal: Ints, side: int, draw: np.random.Generator | None
) -> tuple[Ints, Ints, Ints, Ints]:
    """A* through all mazes at once, each of which expands one cell a turn.

    Returns the rows, places in the trace, and kinds [events] of what happened: cell + 1024 * closed + 2048 * cost from the
    start; and the cell from which each cell was reached at the least cost, [cells + 1, mazes].
    """
    cells, count = wall.shape
    # One cell more, which is a wall, stands for all that is outside.
    cost = np.where(np.vstack([wall, np.ones((1, count), bool)]), _WALL, _UNREACHED)
    parent, key = np.zeros((cells + 1, count), np.int16), np.full((cells, count), _NEVER)
    towards, x, y = _towards(side), np.arange(cells) % side, np.arange(cells) // side
    goal_x, goal_y, happened = goal % side, goal // side, np.zeros(count, np.int64)
    rows, places, kinds = [], [], []

    def note(row: Ints, kind: Ints) -> None:
        rows.append(row)
        places.append(happened[row])
        kinds.append(kind)
        happened[row] += 1

    def put(row: Ints, cell: Ints, spent: Ints) -> None:
        cost[cell, row] = spent
        chance = draw.integers(1 << _CHANCE, size=len(row), dtype=np.int32) if draw else 0
        total = spent + abs(x[cell] - goal_x[row]) + abs(y[cell] - goal_y[row])
        key[cell, row] = (((total << _CHANCE) + chance) << _CELL) + cell
        note(row, cell + (spent << 11))

    active = np.arange(count)
    put(active, start.astype(np.int64), np.zeros(count, np.int64))
    while len(active):
        cell = (key.min(0)[active] & ((1 << _CELL) - 1)).astype(np.int64)
        key[cell, active] = _NEVER
        spent = cost[cell, active].astype(np.int64)
        note(active, cell + 1024 + (spent << 11))
        unfinished = cell != goal[active]
        active, cell, spent = active[unfinished], cell[unfinished], spent[unfinished] + 1
        order = _ORDERS[draw.integers(len(_ORDERS), size=len(active))] if draw else _ORDERS[:1]
        for turn in range(4):
            next_one = towards[order[:, turn], cell]
            better = np.flatnonzero(spent < cost[next_one, active])
            row, chosen = active[better], next_one[better]
            parent[chosen, row] = cell[better]
            put(row, chosen, spent[better])
    return np.concatenate(rows), np.concatenate(places), np.concatenate(kinds), parent


def _towards(side: int) -> Ints:
    """[4, cells]: the cell above, below, to the left and to the right of each, `cells` where that is outside."""
    y, x = np.divmod(np.arange(side * side), side)
    there = np.array([((x + i), (y + j)) for i, j in _STEPS])
    inside = ((there >= 0) & (there < side)).all(1)
    return np.where(inside, there[:, 1] * side + there[:, 0], side * side)


def _ways(parent: Ints, start: Ints, goal: Ints) -> list[Ints]:
    """The cells of each maze's way from its goal back to its start, [mazes] each, NOTHING once it has ended."""
    count, cell, way = len(start), goal.astype(np.int64), []
    while (cell != NOTHING).any():
        way.append(cell)
        cell = np.where((cell == NOTHING) | (cell == start), NOTHING, parent[cell, np.arange(count)])
    return way


def _distance(wall: NDArray[np.bool_], start: Ints, goal: Ints, side: int) -> Ints:
    """Steps from start to goal of each maze, -1 where there is no way."""
    count = wall.shape[1]
    free = np.zeros((side + 2, side + 2, count), bool)
    free[1:-1, 1:-1] = ~wall.reshape(side, side, count)
    reached = np.zeros_like(free)
    mazes = np.arange(count)
    reached[start // side + 1, start % side + 1, mazes] = True
    steps = np.full(count, -1)
    for turn in range(side * side):
        steps[(steps < 0) & reached[goal // side + 1, goal % side + 1, mazes]] = turn
        inner = reached[1:-1, 1:-1]
        spread = inner | reached[2:, 1:-1] | reached[:-2, 1:-1] | reached[1:-1, 2:] | reached[1:-1, :-2]
        spread &= free[1:-1, 1:-1]
        if np.array_equal(spread, inner):
            break
        reached[1:-1, 1:-1] = spread
    return steps


def _same_by_symmetry(wall: NDArray[np.bool_], start: Ints, goal: Ints, side: int) -> NDArray[np.uint64]:
    """[mazes]: a number that is the same for a maze and its rotations and reflections."""
    mazes = np.arange(len(start))
    grid = wall.astype(np.float64)
    grid[start, mazes], grid[goal, mazes] = 2, 3
    square, forms = np.arange(side * side).reshape(side, side), []
    for turns in range(4):
        turned = np.rot90(square, turns)
        forms += [turned.ravel(), turned.T.ravel()]
    digits = 4.0 ** (np.arange(side * side) % _PACKED)
    hashes = []
    for form in forms:
        weight = np.zeros((-(-side * side // _PACKED), side * side))
        weight[np.arange(side * side) // _PACKED, form] = digits
        hashes.append(hashed(np.vstack([np.full(len(start), side), weight @ grid]).T))
    smallest: NDArray[np.uint64] = np.minimum.reduce(hashes)
    return smallest


Cell = tuple[int, int]


def _read(question: Sequence[str]) -> tuple[Cell, Cell, set[Cell], int]:
    """Start, goal, walls and side of a question in words."""
    words = list(question)
    at = {i: (int(words[i + 1]), int(words[i + 2])) for i in range(2, len(words) - 1, 3)}
    return at[2], at[5], {cell for i, cell in at.items() if i > 5}, int(words[1])


def _plan(answer: Sequence[str]) -> list[Cell]:
    """The cells of an answer's plan; none where it is not one clause after the other."""
    words = list(answer)[trace_length(answer) :]
    if words and words[-1] == "eos":
        words.pop()
    clauses = [words[i : i + 3] for i in range(0, len(words), 3)]
    if not all(len(c) == 3 and c[0] == "plan" and c[1].isdigit() and c[2].isdigit() for c in clauses):
        return []
    return [(int(x), int(y)) for _, x, y in clauses]


def _neighbours(cell: Cell, walls: set[Cell], side: int) -> Iterable[Cell]:
    around = [(cell[0] + i, cell[1] + j) for i, j in _STEPS]
    return [(x, y) for x, y in around if 0 <= x < side and 0 <= y < side and (x, y) not in walls]


def _steps(start: Cell, goal: Cell, walls: set[Cell], side: int) -> int:
    """Steps of a shortest way, by searching in breadth."""
    steps, queue = {start: 0}, deque([start])
    while goal not in steps:
        cell = queue.popleft()
        for near in _neighbours(cell, walls, side):
            if near not in steps:
                steps[near] = steps[cell] + 1
                queue.append(near)
    return steps[goal]


def _astar(
    start: Cell, goal: Cell, walls: set[Cell], side: int
) -> tuple[list[tuple[str, int, int, int, int]], list[Cell]]:
    """The trace (word, x, y, cost, heuristic) and the way of one search whose ties are broken by y, then x."""

    def far(cell: Cell) -> int:
        return abs(cell[0] - goal[0]) + abs(cell[1] - goal[1])

    cost, parent, frontier = {start: 0}, {}, [(far(start), start[1], start[0])]
    trace = [("create", *start, 0, far(start))]
    closed: set[Cell] = set()
    while True:
        _, y, x = heapq.heappop(frontier)
        if (x, y) in closed:
            continue
        closed.add((x, y))
        trace.append(("close", x, y, cost[x, y], far((x, y))))
        if (x, y) == goal:
            break
        for near in _neighbours((x, y), walls, side):
            if near not in cost or cost[x, y] + 1 < cost[near]:
                cost[near], parent[near] = cost[x, y] + 1, (x, y)
                heapq.heappush(frontier, (cost[near] + far(near), near[1], near[0]))
                trace.append(("create", *near, cost[near], far(near)))
    way = [goal]
    while way[-1] != start:
        way.append(parent[way[-1]])
    return trace, way[::-1]
