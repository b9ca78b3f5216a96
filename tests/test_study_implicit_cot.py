"""Which tokens of a chain go at which step, what is left, and that the optimizer begins anew, after a kill too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bakeoff.budget import Budget
from bakeoff.studies import implicit_cot as study
from bakeoff.text import tasks
from bakeoff.text.tasks import Examples, TokenTask
from bakeoff.training.run import Run

TASK = "modular-chain(format='chain_of_thought')"
SMALL: dict[str, Any] = {
    "task": TASK, "separator": ".", "difficulty": 3, "rows": 4, "interval": 3, "layers": 1, "width": 8, "heads": 2,
    "rate": 1e-2, "items": 8, "right": False,
}  # fmt: skip


def written(text: str, answer: int) -> tuple[Examples, tasks.Vocabulary]:
    """One example of these words, whose answer begins at a place."""
    words = text.split()
    vocabulary = tasks.Vocabulary(dict.fromkeys(words))
    ids = np.array([vocabulary.ids(words)])
    return Examples.of(ids[:, :answer], ids[:, answer:]), vocabulary


def test_the_papers_example_loses_its_chain_from_the_left_or_the_right() -> None:
    chain = "1 7 4 3 3 + 0 6 7 8 4 1 ( 1 3 2 2 8 1 ) + 0 0 7 5 1 1 1 ( 1 3 9 7 9 2 1 ) + 0 0 0 7 5 1 1 1"
    asked, end = "9 1 7 3 * 9 4 3 3 =", "#### 1 3 9 4 5 4 2 1 ."
    made = tasks.make("multiplication(format='chain')")
    assert made.solve(asked.split()) == f"{chain} {end}".split()
    assert len(chain.split()) == 46
    example, words = written(f"{asked} {chain} {end}", 10)
    for gone, right, left in [
        (0, False, chain), (3, False, " ".join(chain.split()[3:])), (3, True, " ".join(chain.split()[:-3])),
        (46, False, ""), (46, True, ""), (10**9, False, ""),
    ]:  # fmt: skip
        short = study.shortened(example, np.array([gone]), words.id("####"), right=right)
        assert words.words(short.tokens[0]) == f"{asked} {left} {end}".split()
        assert (short.answer.item(), short.length.item()) == (10, short.tokens.shape[1])
        assert short.key == example.key


def test_rows_may_lose_different_numbers_of_tokens() -> None:
    made = tasks.make(TASK)
    examples = made.examples("train", 4, 3)
    short = study.shortened(examples, np.array([0, 2, 9]), 1)
    assert short.length.tolist() == [12, 10, 9]
    for (question, answer), (same, left), gone in zip(examples.rows(), short.rows(), (0, 2, 3), strict=True):
        assert same == question
        assert left == answer[gone:]
    plain = tasks.make("modular-chain")
    for question, answer in study.shortened(examples, np.full(3, study.WHOLE), 1).rows():
        assert made.vocabulary.words(answer) == plain.solve(made.vocabulary.words(question))


def test_tokens_go_when_the_paper_takes_them() -> None:
    """808,000 examples in batches of 32 are 25,250 steps, at 8 tokens an epoch one in 3156 steps."""
    removal = study.Removal("stepwise", 3156, 46, 0)
    scheduled = [removal.scheduled(step) for step in range(25_250)]
    assert np.flatnonzero(np.diff(scheduled)).tolist() == [3156 * i - 1 for i in range(1, 9)]
    assert scheduled[-3:] == [7, 8, 8]
    abrupt = study.Removal("abrupt", 100, 5, 0)
    assert [abrupt.scheduled(step) for step in (0, 249, 250)] == [0, 0, study.WHOLE]


def test_offsets_have_their_chances() -> None:
    offsets = study.Removal("stepwise", 1000, 10**6, 3).removed(0, 100_000)
    shares = np.bincount(offsets, minlength=3)[:3] / 100_000
    assert shares == pytest.approx([0.98168, 0.01798, 0.00033], abs=0.0015)
    assert offsets.max() <= study.GREATEST_OFFSET
    assert not study.Removal("never", 1000, 5, 3).removed(10**6, 1000).any()
    assert (study.Removal("whole", 1000, 5, 3).removed(0, 1000) == 5).all()


def test_the_optimizer_begins_anew_with_each_token_until_none_is_left() -> None:
    removal = study.Removal("stepwise", 10, 3, 0)
    assert [step for step in range(60) if removal.resets(step, 8)] == [10, 20, 30]
    assert [step for step in range(60) if study.Removal("abrupt", 10, 3, 0).resets(step, 8)] == [15]
    assert not any(study.Removal(kind, 10, 3, 0).resets(step, 8) for kind in ("never", "whole") for step in range(60))


@pytest.mark.parametrize(("schedule", "alike"), [("never", "chain_of_thought"), ("whole", "plain")])
def test_batches_without_removal_and_without_chain(schedule: str, alike: str) -> None:
    made = tasks.make(TASK)
    assert isinstance(made, TokenTask)
    batches = study.Shortened(made, 4, 16, 5, 1, study.Removal(schedule, 10, 3, 0), False)
    solver = tasks.make(f"modular-chain(format='{alike}')")
    for row, labels in zip(batches(7).input_ids.tolist(), batches(7).labels.tolist(), strict=True):
        words = made.vocabulary.words(row)
        question = words[: words.index(".") + 1]
        assert words == question + solver.solve(question)
        # What is asked and the separator after it are not learned, everything else is.
        assert labels == [-100] * len(question) + row[len(question) :]


class Killed(Exception):
    pass


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch, *, kill: int | None = None, reset: bool = True) -> Any:
    """The learning curve of a run of 12 steps, killed before step `kill` and taken up again."""
    folder.mkdir()

    def go() -> Run:
        run = Run(Budget.parse("12steps"), 0, folder, checkpoint_seconds=0)
        study.learn(run, folder, schedule="stepwise", reset=reset, **SMALL)
        return run

    if kill is not None:
        plain = study.Shortened.__call__
        with monkeypatch.context() as patch:

            def stop(self: Any, step: int) -> Any:
                if step == kill:
                    raise Killed
                return plain(self, step)

            patch.setattr(study.Shortened, "__call__", stop)
            with pytest.raises(Killed):
                go()
    return go().curve


def test_a_killed_run_resets_where_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(tmp_path / "whole", monkeypatch)
    # Steps 3 and 6 begin with a reset; the kills are right before the first one and between the two.
    for kill in (3, 5):
        assert trained(tmp_path / f"killed{kill}", monkeypatch, kill=kill) == whole
    without = trained(tmp_path / "without", monkeypatch, reset=False)
    losses, others = [value for _, _, value in whole], [value for _, _, value in without]
    # The gradient of step 3 is not changed by the reset before it, its effect on the weights is.
    assert losses[:4] == others[:4]
    assert losses[4] != others[4]
