"""What a comparison tells of itself while it runs: torn and foreign lines, dead processes, a second run, two writers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bakeoff import progress
from bakeoff.progress import Journal, Reader, read

RECORD = {"status": "done", "metrics": {"loss": {"value": 1.0}}, "cost": {"seconds": 2.0}, "environment": {"cores": 2}}


def test_nothing_began(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    assert read(tmp_path / "missing") is None


def test_a_run_is_told_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN", 0.0)
    reader = Reader(tmp_path)
    with Journal(tmp_path) as journal:
        journal.watch("full, seed 0", 0, 4, 0.25, 3.0)
        journal.watch("full, seed 0", 0, 4, 0.5, 2.0)
        found = reader.read()
        assert found is not None
        assert (found.state, found.pid, found.what, found.over, found.total) == (
            "running",
            os.getpid(),
            "full, seed 0",
            0,
            4,
        )
        assert (found.fraction, found.loss) == (0.5, 2.0)
        assert found.losses == {"full, seed 0": ((0.25, 3.0), (0.5, 2.0))}
        journal.watch("full, seed 0", 1, 4, 1.0, math.nan)
        journal.ended("full", 0, RECORD)
        found = reader.read()
        assert found is not None
        assert found.loss is None
        assert found.trials == (
            {"label": "full", "seed": 0, "status": "done", "metrics": RECORD["metrics"], "cost": RECORD["cost"], "error": ""},
        )  # fmt: skip
    done = reader.read()
    assert done is not None
    assert done.state == "done"
    assert done == read(tmp_path)


def test_news_in_quick_succession_are_left_out(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for step in range(100):
            journal.watch("full, seed 0", 0, 1, step / 100, 1.0)
        journal.watch("lora, seed 0", 0, 1, 0.0, 1.0)
    events = [json.loads(line) for line in (tmp_path / progress.NAME).read_text("utf-8").splitlines()]
    told = [event["what"] for event in events if event["event"] == "progress"]
    assert told == ["full, seed 0", "lora, seed 0"]


@pytest.mark.parametrize(
    ("error", "state", "told"), [(KeyboardInterrupt(), "stopped", "KeyboardInterrupt"), (ValueError("too hot"), "failed", "too hot")]
)  # fmt: skip
def test_how_a_run_ended(error: BaseException, state: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), Journal(tmp_path):
        raise error
    found = read(tmp_path)
    assert found is not None
    assert (found.state, found.error) == (state, told)


def test_a_process_that_died_is_lost_and_the_next_run_begins_anew(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from bakeoff.progress import Journal\n"
        "j = Journal(Path(sys.argv[1])).__enter__(); j.watch('full, seed 0', 1, 2, 0.5, 1.0); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    reader = Reader(tmp_path)
    found = reader.read()
    assert found is not None
    assert (found.state, found.over) == ("lost", 1)
    with Journal(tmp_path):
        found = reader.read()
        assert found is not None
        assert (found.state, found.over, found.trials) == ("running", 0, ())


def test_a_process_number_that_is_used_again_is_no_sign_of_life(tmp_path: Path) -> None:
    event = {"event": "began", "at": "2026-01-01T00:00:00+00:00", "pid": os.getpid(), "created": 1.0}
    (tmp_path / progress.NAME).write_text(json.dumps(event) + "\n")
    found = read(tmp_path)
    assert found is not None
    assert found.state == "lost"


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / progress.NAME
    path.write_text('{"event": "trial", "at": "", "label": "full", "seed": 0}\n')
    assert read(tmp_path) is None
    with Journal(tmp_path) as journal:
        journal.watch("full, seed 0", 0, 1, 0.5, 1.0)
        reader = Reader(tmp_path)
        before = reader.read()
        with open(path, "a") as file:
            file.write("nonsense\n[1]\n" + "[" * 5000 + "\n" + '{"event": "progress"}\n{"event": "pro')
        assert reader.read() == before
        with open(path, "a") as file:
            file.write('gress", "at": "", "what": "x", "over": 1, "total": 1, "fraction": 1.0, "loss": null}\n')
        after = reader.read()
        assert after is not None
        assert (after.what, after.over) == ("x", 1)


def test_a_second_process_with_the_same_folder_writes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.watch("full, seed 0", 0, 1, 0.5, 1.0)
        before = (tmp_path / progress.NAME).read_bytes()
        with Journal(tmp_path) as second:
            second.watch("lora, seed 0", 0, 1, 0.5, 1.0)
        assert (tmp_path / progress.NAME).read_bytes() == before


def test_a_long_curve_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN", 0.0)
    with Journal(tmp_path) as journal:
        for step in range(1000):
            journal.watch("full, seed 0", 0, 1, step / 1000, 1.0)
    found = read(tmp_path)
    assert found is not None
    points = found.losses["full, seed 0"]
    assert 100 <= len(points) <= 200
    assert points[0][0] == 0.0
    assert points[-1][0] > 0.98
