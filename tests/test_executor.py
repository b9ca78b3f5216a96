"""Trials spread over processes: the same bits as one by one, killed workers survived, and one sentence for what is wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import METHODS, SEEDS, STEPS, Child, Finished, Material, Said, done_trials, essence

from bakeoff import executor, registry
from bakeoff.budget import Budget
from bakeoff.errors import BakeoffError, UsageError
from bakeoff.executor import Executor, Place
from bakeoff.store import Store
from bakeoff.trial import Trial

pytest_plugins = ("helpers",)

Command = Callable[..., Said]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
OWN = '''
import os, signal
from pathlib import Path
from bakeoff import lm
from bakeoff.tune.contest import tune

HERE = Path(__file__).parent

@tune.method()
def dies_once(model, data, run):
    """Trains; the first process that comes to the third step with seed 0 is killed there."""
    def note(step):
        with (HERE / "steps").open("a") as file:
            file.write(f"{run.seed} {step}\\n")
        if run.seed == 0 and step == 2 and not (HERE / "died").exists():
            (HERE / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return run.train(lm.clone(model), data.batches(run), learning_rate=1e-3, before_step=note)

@tune.method()
def dies_always(model, data, run):
    os.kill(os.getpid(), signal.SIGKILL)

@tune.method()
def raises(model, data, run):
    raise RuntimeError("no")
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own_methods.py"
    path.write_text(OWN)
    return path


def trials(material: Material, own: Path, names: list[str], seeds: int) -> dict[Place, Trial]:
    tune = registry.contest("tune")
    question = tune.question(
        model=str(material.model), train=str(material.train), max_length=32, exam_items=4, per_device_train_batch_size=2
    )
    setting = tune.open(question)
    methods = {name: registry.method("tune", name.replace("OWN", str(own))) for name in names}
    budget = Budget(STEPS, "steps")
    return {(n, seed): Trial(m, {}, seed, budget, setting) for seed in range(seeds) for n, m in methods.items()}


def spread(
    how: Executor, asked: dict[Place, Trial], store: Path, said: list[str] | None = None
) -> dict[Place, dict[str, Any]]:
    notice = print if said is None else said.append
    return dict(how.run(asked, Store(store), keep_results=[], checkpoint_seconds=0.0, notice=notice))


def content(records: dict[Place, dict[str, Any]]) -> dict[Place, Any]:
    stored = json.loads(
        json.dumps(list(records.values()))
    )  # a record that was read from the store has lists for tuples
    return {p: (r["weights_sha256"], r["metrics"], r["curve"]) for p, r in zip(records, stored, strict=True)}


@pytest.mark.parametrize("kind", ["joblib", pytest.param("ray", marks=needs_ray)])
def test_a_killed_workers_trial_goes_on_in_another(kind: Any, material: Material, own: Path, tmp_path: Path) -> None:
    asked, said = trials(material, own, ["full", "OWN:dies-once"], 2), list[str]()
    spread_out = content(spread(Executor(kind, 2), asked, tmp_path / "spread", said))
    assert (own.parent / "died").exists()
    assert len(said) == 1
    assert "killed" in said[0]
    taken = [line for line in (own.parent / "steps").read_text().splitlines() if line.startswith("0 ")]
    assert taken == [f"0 {step}" for step in (0, 1, 2, 2, 3)]
    one_by_one = {place: t.run(Store(tmp_path / "serial"), checkpoint_seconds=0.0) for place, t in asked.items()}
    assert spread_out == content(one_by_one)
    assert len(done_trials(tmp_path / "spread")) == len(asked)


@pytest.mark.parametrize("kind", ["joblib", pytest.param("ray", marks=needs_ray)])
def test_a_trial_that_always_kills_its_worker_ends_the_run(
    kind: Any, material: Material, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_LOST_WORKERS", 1)
    said: list[str] = []
    with pytest.raises(BakeoffError, match=r"^Workers were killed 2 times .* fewer --workers"):
        spread(Executor(kind, 1), trials(material, own, ["OWN:dies-always"], 1), tmp_path / "store", said)
    assert len(said) == 1


def test_a_method_that_raises_fails_alone(material: Material, own: Path, tmp_path: Path) -> None:
    asked = trials(material, own, ["OWN:raises", "full"], 1)
    records = spread(Executor("joblib", 2), asked, tmp_path / "store")
    assert {place[0]: r["status"] for place, r in records.items()} == {"OWN:raises": "failed", "full": "done"}
    assert records["OWN:raises", 0]["error"] == "RuntimeError: no"


def test_a_worker_that_would_run_something_else_ends_the_run(material: Material, own: Path, tmp_path: Path) -> None:
    asked = trials(material, own, ["full"], 1)
    apart = {p: dataclasses.replace(t, setting=dataclasses.replace(t.setting, origin={})) for p, t in asked.items()}
    with pytest.raises(UsageError, match="other code, versions or data"):
        spread(Executor("joblib", 1), apart, tmp_path / "store")
    assert not list((tmp_path / "store").rglob("*.json"))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster of two machines with one core each, both of them this one."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100_000_000}
    made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    made.add_node(**small)
    yield made.address
    made.shutdown()


@needs_ray
def test_two_machines_of_a_cluster_give_the_same_bits(
    cluster: str, material: Material, own: Path, tmp_path: Path
) -> None:
    assert cluster.startswith("127.0.0.1:")
    asked = trials(material, own, ["full"], 2)
    spread_out = content(spread(Executor("ray", address=cluster), asked, tmp_path / "spread"))
    assert spread_out == content({place: t.run(Store(tmp_path / "serial")) for place, t in asked.items()})


def test_a_comparison_in_processes_is_that_of_one_process(
    material: Material, finished: Finished, tmp_path: Path
) -> None:
    """Interrupted first: Ctrl-C ends the workers and says how to go on."""
    store, out = material.store(tmp_path / "store"), tmp_path / "out"
    words = material.compare(store, out, "--executor", "joblib", "--workers", "2")
    child = Child(tmp_path, words)
    limit = time.monotonic() + 200
    while not list(store.glob("work/trials/*/train-0/step-*")):
        assert time.monotonic() < limit
        time.sleep(0.01)
    workers = psutil.Process(child.process.pid).children(recursive=True)
    assert len(workers) >= 2
    assert child.process.pid
    os.kill(child.process.pid, signal.SIGINT)
    said = child.ended()
    assert said.code == 130, said.err
    assert "same command again" in said.err
    assert "Traceback" not in said.err
    assert not psutil.wait_procs(workers, timeout=20)[1]

    before = done_trials(store)
    assert len(before) < len(METHODS) * SEEDS
    said = Child(tmp_path, words).ended()
    assert said.code == 0, said.err
    assert not said.err
    assert essence(out) == essence(finished.out)
    assert before.items() <= done_trials(store).items()


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "ray", "sentence"),
    [
        ("--workers 0", True, "'--workers': Input should be greater than or equal to 1"),
        ("--workers 2", True, "--workers needs other processes to work in: give --executor joblib"),
        ("--ray-address auto", True, "--ray-address names a Ray cluster: give --executor ray"),
        ("--executor joblib --ray-address auto", True, "--ray-address names a Ray cluster: give --executor ray"),
        ("--executor ray --ray-address here", True, "--ray-address must be HOST:PORT or auto, not 'here'"),
        ("--executor ray --ray-address 127.0.0.1:PORT", True, "No Ray cluster can be used at 127.0.0.1"),
        ("--executor ray", False, "pip install 'bakeoff[ray]'"),
        ("--config CONFIG", True, "did you mean ray?"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    options: str, ray: bool, sentence: str, bakeoff: Command, material: Material, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: (ray or None) if name == "ray" else find(name, *more)
    )
    (tmp_path / "config.yaml").write_text("executor: rya")
    words = options.replace("PORT", str(unused_port())).replace("CONFIG", str(tmp_path / "config.yaml")).split()
    said = bakeoff(*material.compare(tmp_path / "store", tmp_path / "out", *words))
    assert said.code == 2
    assert sentence in said.sentence
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()
