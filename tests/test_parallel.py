"""Two processes of a launcher equal one: losses and weights, by rows, by FSDP2 and by tensor parallelism; and go on alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import parallel_worker
import pytest

from bakeoff.errors import UsageError
from bakeoff.training import parallel

pytest_plugins = ["helpers"]

PROCESSES = 2
KINDS = ("data", "fsdp", "tensor")


def launched(folder: Path, *command: str, **variables: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a command in two processes as a launcher does, and end them whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ, "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", **variables,
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, *command], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(PROCESSES)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [subprocess.CompletedProcess(p.args, p.returncode, *s) for p, s in zip(started, said, strict=True)]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("together")
    for process in launched(folder, parallel_worker.__file__, str(folder)):
        assert process.returncode == 0, process.stderr[-3000:]
    return folder, json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    place = tmp_path_factory.mktemp("single")
    found = {f: parallel_worker.told(*parallel_worker.train(place / f, f)) for f in parallel_worker.FAMILIES}
    found["masked"] = parallel_worker.told(
        *parallel_worker.train(place / "masked", "llama", parameters=parallel_worker.masks())
    )
    found["uneven"] = parallel_worker.told(*parallel_worker.train(place / "uneven", "llama", **parallel_worker.UNEVEN))
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert len(one["losses"]) == parallel_worker.STEPS
    assert one["losses"] == pytest.approx(other["losses"], abs=1e-4)
    for name, weights in one["weights"].items():
        assert weights == pytest.approx(other["weights"][name], abs=2e-4), name


@pytest.mark.parametrize("family", parallel_worker.FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind: str, family: str, together: Any, single: Any) -> None:
    same(together[1][f"{kind} {family}"], single[family])


def test_parts_of_differing_size_take_equally_many_turns(together: Any, single: Any) -> None:
    same(together[1]["uneven"], single["uneven"])


def test_work_is_counted_once(together: Any, single: Any) -> None:
    assert together[1]["data llama"]["flops"] == pytest.approx(single["llama"]["flops"], rel=0.1)


def test_entries_that_do_not_learn_keep_their_bits_under_fsdp(together: Any, single: Any) -> None:
    same(together[1]["masked"], single["masked"])


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_go_on_where_two_stopped(kind: str, together: Any, single: Any) -> None:
    same(together[1][f"{kind} resumed"], single["llama"])


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_where_two_stopped(kind: str, together: Any, single: Any, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(together[0] / f"{kind}-half-alone", folder)
    spread = list(folder.glob("train-0/step-*/spread/*.safetensors"))
    assert bool(spread) == (kind == "fsdp")
    run, model = parallel_worker.train(folder, "llama")
    assert len(run.step_seconds) < parallel_worker.STEPS, "it begins anew"
    same(parallel_worker.told(run, model), single["llama"])


def test_too_few_rows_for_the_processes_are_told(together: Any) -> None:
    assert "1 rows for 2 processes: launch at most 1" in together[1]["too few rows"]


def test_the_launchers_flags_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parallel.kind() == "alone"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parallel.kind() == "data"
    with parallel.alone():
        assert parallel.kind() == "alone"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="--fsdp_version 2"):
        parallel.kind()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert parallel.kind() == "fsdp"
    monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "4")
    with pytest.raises(UsageError, match="size 4 is not the number of processes, 2"):
        parallel.kind()


def test_a_launcher_with_too_few_processes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel, "PATIENCE", 1.0)
    with pytest.raises(
        UsageError, match="2 processes of the launcher did not all come within 1 seconds .* --num_processes"
    ):
        parallel.join()


def test_commands_run_together_say_and_write_once(tmp_path: Path, material: Any) -> None:
    out, store = tmp_path / "out", material.store(tmp_path / "store")
    words = material.compare(store, out, methods=("full",))
    done = launched(tmp_path, "-m", "bakeoff", *words)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert "Winner" in done[0].stdout or "No method" in done[0].stdout or "Results:" in done[0].stdout
    assert done[1].stdout == ""
    results = json.loads((out / "results.json").read_text())
    assert {trial["status"] for trial in results["trials"]} == {"done"}
    assert results["environment"]["processes"] == PROCESSES
    again = launched(tmp_path, "-m", "bakeoff", "compare", "tune", "none-such", *words[3:])
    assert [process.returncode for process in again] == [2, 2]
    assert again[0].stderr.count("bakeoff: ") == 1
    assert again[1].stderr == ""
