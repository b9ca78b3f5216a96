"""A comparison survives kills, interrupts, full and read-only disks, damaged files, company, and methods that fail."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import METHODS, SEEDS, STEPS, Child, Finished, Material, Said, done_trials, essence

from bakeoff import trial
from bakeoff.training import checkpoint

pytest_plugins = ("helpers",)

KILLS = 20
Command = Callable[..., Said]


def without_report() -> None:
    """The report is drawn from the results when all is over; drawing it would take most of the time to be killed in."""
    from bakeoff.report import page

    page.write_report = lambda results, folder: folder / "report.html"


def logging_steps(log: str, die_at: int) -> None:
    """Write down every checkpoint, and die right after one of them."""
    without_report()
    write, count = checkpoint.write, 0

    def logged(folder: Path, step: int, state: dict[str, Any]) -> None:
        nonlocal count
        write(folder, step, state)
        count += 1
        with open(log, "a") as file:
            file.write(f"{folder.parent.name} {step}\n")
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.write = logged


def logging_trials(log: str) -> None:
    """Write down every trial that is performed."""
    without_report()
    perform = trial.Trial._perform

    def logged(self: trial.Trial, *given: Any) -> dict[str, Any]:
        with open(log, "a") as file:
            file.write(f"{self.key}\n")
        return perform(self, *given)

    trial.Trial._perform = logged  # type: ignore[method-assign]


def dying_between_renames(which: int) -> None:
    """Die when an old folder has been moved aside and the new one does not stand yet."""
    without_report()
    rename, count = os.rename, 0

    def counted(source: Any, target: Any) -> None:
        nonlocal count
        rename(source, target)
        count += str(target).endswith(".replaced")
        if count == which:
            os.kill(os.getpid(), signal.SIGKILL)

    os.rename = counted


def limiting_files(most: int) -> None:
    """No file may grow beyond this many bytes, as on a full disk."""
    without_report()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bakeoff.report.page.write_report", lambda results, folder: folder / "report.html")


def test_killed_again_and_again_it_ends_with_the_same_bits(
    material: Material, finished: Finished, tmp_path: Path
) -> None:
    expected, draw = essence(finished.out), random.Random(7)
    began = time.monotonic()
    whole = Child(tmp_path, material.compare(material.store(tmp_path / "whole"), tmp_path / "out"), without_report)
    assert whole.ended().code == 0
    duration = time.monotonic() - began
    assert essence(tmp_path / "out") == expected
    kills = rounds = compared = 0
    store, out = tmp_path / "whole", tmp_path / "out"
    while kills < KILLS:
        rounds += 1
        assert rounds < 6 * KILLS, f"only {kills} of {rounds} commands were still alive when they were killed"
        if compared == 0 or (out / "results.json").exists():
            compared += 1
            store, out = material.store(tmp_path / f"store-{compared}"), tmp_path / f"out-{compared}"
        before = done_trials(store)
        child = Child(tmp_path, material.compare(store, out), without_report)
        if child.killed(draw.uniform(0.0, duration)):
            kills += 1
        else:
            assert child.ended().code == 0
        after = done_trials(store)
        assert before == {name: after[name] for name in before}
        if child.process.exitcode == 0:
            assert essence(out) == expected
            (out / "results.json").touch()
    before = done_trials(store)
    assert Child(tmp_path, material.compare(store, out), without_report).ended().code == 0
    assert essence(out) == expected
    assert len(done_trials(store)) == len(METHODS) * SEEDS
    assert before.items() <= done_trials(store).items()
    assert not any((store / "work" / "trials").iterdir())


@pytest.mark.parametrize("steps", [2, STEPS + 1 + 2])
def test_the_interrupted_trial_goes_on_and_the_finished_are_not_run_again(
    steps: int, material: Material, finished: Finished, tmp_path: Path
) -> None:
    store, out = material.store(tmp_path / "store"), tmp_path / "out"
    words = material.compare(store, out)
    assert Child(tmp_path, words, logging_steps, str(tmp_path / "first"), steps).ended().code == -signal.SIGKILL
    first = [line.split() for line in (tmp_path / "first").read_text().splitlines()]
    before, interrupted = done_trials(store), first[-1][0]
    assert len(before) == steps // (STEPS + 1)
    states = [json.loads(p.read_text())["status"] for p in (store / "trials").glob("*.json")]
    assert states.count("running") == 1

    assert Child(tmp_path, words, logging_steps, str(tmp_path / "second"), 0).ended().code == 0
    second = [line.split() for line in (tmp_path / "second").read_text().splitlines()]
    assert next(int(step) for key, step in second if key == interrupted) == int(first[-1][1]) + 1 > 1
    assert {f"{key}.json" for key, _ in second}.isdisjoint(before)
    assert before.items() <= done_trials(store).items()
    assert essence(out) == essence(finished.out)


@pytest.mark.parametrize("which", [1, 2])
def test_killed_between_two_renames_nothing_is_lost(
    which: int, material: Material, finished: Finished, tmp_path: Path
) -> None:
    store, out = material.store(tmp_path / "store"), tmp_path / "out"
    words = material.compare(store, out)
    assert Child(tmp_path, words, dying_between_renames, which).ended().code == -signal.SIGKILL
    aside = list((store / "work").rglob(".*.replaced"))
    assert len(aside) == 1
    before = done_trials(store)
    assert Child(tmp_path, words, without_report).ended().code == 0
    assert before.items() <= done_trials(store).items()
    assert essence(out) == essence(finished.out)
    assert not [p for p in store.rglob(".*") if p.suffix in (".partial", ".replaced")]


def test_a_second_run_changes_nothing(
    material: Material, finished: Finished, tmp_path: Path, bakeoff: Command, no_report: None
) -> None:
    before = done_trials(finished.store)
    said = bakeoff(*material.compare(finished.store, tmp_path / "out"))
    assert said.code == 0, said.err
    assert done_trials(finished.store) == before
    assert essence(tmp_path / "out") == essence(finished.out)


def test_ctrl_c_says_how_to_go_on(material: Material, finished: Finished, tmp_path: Path) -> None:
    store, out = material.store(tmp_path / "store"), tmp_path / "out"
    words = material.compare(store, out)
    child = Child(tmp_path, words, without_report)
    limit = time.monotonic() + 200
    while not list(store.glob("work/trials/*/train-0/step-*")):
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert child.process.pid
    os.kill(child.process.pid, signal.SIGINT)
    said = child.ended()
    assert said.code == 130, said.err
    assert "same command again" in said.err
    assert f"bakeoff compare tune full 'lora(rank=2)' --model {material.model}" in said.err
    assert "Traceback" not in said.err
    assert len(done_trials(store)) < len(METHODS) * SEEDS
    assert Child(tmp_path, words, without_report).ended().code == 0
    assert essence(out) == essence(finished.out)


def test_a_disk_that_takes_no_large_file_is_one_sentence(
    material: Material, finished: Finished, tmp_path: Path
) -> None:
    store, out = material.store(tmp_path / "store"), tmp_path / "out"
    words = material.compare(store, out)
    said = Child(tmp_path, words, limiting_files, 50_000).ended()
    assert said.code == 1
    assert "the file is larger than" in said.sentence
    assert "choose another folder" in said.sentence
    assert not (out / "results.json").exists()
    assert Child(tmp_path, words, without_report).ended().code == 0
    assert essence(out) == essence(finished.out)


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, number: int, after: int = 0) -> Iterator[list[Any]]:
    """After some calls every sync to the disk fails, as when it is full."""
    sync, calls = os.fsync, []

    def broken(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        yield calls


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_disk_that_fills_up_loses_nothing(
    share: float,
    material: Material,
    finished: Finished,
    tmp_path: Path,
    bakeoff: Command,
    no_report: None,
    monkeypatch: pytest.MonkeyPatch,
    syncs: int,
) -> None:
    store, out = material.store(tmp_path / "store"), tmp_path / "out"
    words = material.compare(store, out)
    with failing(monkeypatch, errno.ENOSPC, int(share * syncs)):
        said = bakeoff(*words)
    assert said.code == 1
    assert "the disk is full; free some space or choose another folder" in said.sentence
    before = done_trials(store)
    assert len(before) == pytest.approx(share * len(METHODS) * SEEDS, abs=1)
    again = bakeoff(*words)
    assert again.code == 0, again.err
    assert before.items() <= done_trials(store).items()
    assert essence(out) == essence(finished.out)


@pytest.fixture(scope="session")
def syncs(material: Material, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a whole comparison syncs a file or a folder to the disk."""
    place = tmp_path_factory.mktemp("syncs")
    words = material.compare(material.store(place / "store"), place / "out")
    assert Child(place, words, counting_syncs, str(place / "count")).ended().code == 0
    return len((place / "count").read_text())


def counting_syncs(log: str) -> None:
    without_report()
    sync = os.fsync

    def counted(descriptor: int) -> None:
        with open(log, "a") as file:
            file.write(".")
        sync(descriptor)

    os.fsync = counted


@pytest.mark.parametrize("begun", [False, True], ids=["fresh", "begun"])
def test_a_read_only_store_is_one_sentence(
    begun: bool,
    material: Material,
    finished: Finished,
    tmp_path: Path,
    bakeoff: Command,
    no_report: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    shutil.copytree(finished.store if begun else material.checked, store)
    if begun:
        next(iter((store / "trials").glob("*.json"))).unlink()
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}

    def guard(original: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def guarded(path: Any, *given: Any, **named: Any) -> Any:
            if isinstance(path, (str, Path)) and Path(path).is_relative_to(store) and writes(path, *given):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return original(path, *given, **named)

        return guarded

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", guard(os.open, lambda path, flags, *_: bool(flags & (os.O_WRONLY | os.O_RDWR))))
        patch.setattr(os, "mkdir", guard(os.mkdir, lambda path, *_: not os.path.isdir(path)))
        for name in ("rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, guard(getattr(os, name), lambda path, *_: True))
        said = bakeoff(*material.compare(store, out))
    assert said.code == 1
    assert "the file system is read-only" in said.sentence
    assert "--store" in said.sentence
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file()} == before
    assert not (out / "results.json").exists()


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    place = len(data) * 2 // 3
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


def emptied(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncated, flipped])
@pytest.mark.parametrize("kind", ["trials", "items"])
def test_a_damaged_record_is_kept_aside_and_made_again(
    kind: str,
    damage: Callable[[bytes], bytes],
    material: Material,
    finished: Finished,
    tmp_path: Path,
    bakeoff: Command,
    no_report: None,
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished.store, store)
    # One that is not the winner's, whose model would have to be made again.
    key = next(t["key"] for t in finished.results["trials"] if t["seed"] == SEEDS - 1)
    path = store / kind / f"{key}.json"
    path.write_bytes(wrong := damage(path.read_bytes()))
    others = {name: kept for name, kept in done_trials(finished.store).items() if name != path.name}
    said = bakeoff(*material.compare(store, tmp_path / "out"))
    assert said.code == 0, said.err
    assert f"{kind}/{key}.json in the store" in said.sentence
    assert "damaged, kept as" in said.sentence
    assert path.with_name(f"{path.name}.damaged-1").read_bytes() == wrong
    assert {name: when for name, (when, _) in done_trials(store).items() if name in others}.keys() == others.keys()
    assert all((store / "trials" / name).read_bytes() == data for name, (_, data) in others.items())
    assert essence(tmp_path / "out") == essence(finished.out)


@pytest.mark.parametrize("damage", [truncated, flipped, emptied])
def test_a_damaged_model_in_the_store_is_kept_aside_and_made_again(
    damage: Callable[[bytes], bytes],
    material: Material,
    finished: Finished,
    tmp_path: Path,
    bakeoff: Command,
    no_report: None,
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished.store, store)
    (path,) = store.glob("artifacts/trials/*/model.safetensors")
    path.write_bytes(wrong := damage(path.read_bytes()))
    said = bakeoff(*material.compare(store, tmp_path / "out"))
    assert said.code == 0, said.err
    assert "is damaged, kept as" in said.sentence
    aside = path.parent.with_name(f"{path.parent.name}.damaged-1")
    assert (aside / path.name).read_bytes() == wrong
    assert essence(tmp_path / "out") == essence(finished.out)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("tensors.safetensors", truncated), ("tensors.safetensors", flipped), ("state.json", truncated)],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    name: str,
    damage: Callable[[bytes], bytes],
    material: Material,
    finished: Finished,
    tmp_path: Path,
    killed_store: Path,
) -> None:
    store = tmp_path / "store"
    shutil.copytree(killed_store, store)
    newest = max(store.glob("work/trials/*/train-0/step-*"))
    (newest / name).write_bytes(damage((newest / name).read_bytes()))
    words = material.compare(store, tmp_path / "out")
    assert Child(tmp_path, words, logging_steps, str(tmp_path / "log"), 0).ended().code == 0
    assert (tmp_path / "log").read_text().splitlines()[0].endswith(" 3"), "the checkpoint of step 2 is whole"
    assert essence(tmp_path / "out") == essence(finished.out)


@pytest.fixture(scope="session")
def killed_store(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose first trial was killed right after its third step."""
    place = tmp_path_factory.mktemp("killed")
    words = material.compare(material.store(place / "store"), place / "out")
    assert Child(place, words, logging_steps, str(place / "log"), 3).ended().code == -signal.SIGKILL
    return place / "store"


def test_two_processes_share_the_work_of_one_command(material: Material, finished: Finished, tmp_path: Path) -> None:
    store, out, log = material.store(tmp_path / "store"), tmp_path / "out", tmp_path / "log"
    words = material.compare(store, out)
    children = [Child(tmp_path, words, logging_trials, str(log)) for _ in range(2)]
    for child in children:
        said = child.ended()
        assert said.code == 0, said.err
    performed = log.read_text().splitlines()
    assert sorted(performed) == sorted(t["key"] for t in finished.results["trials"])
    assert essence(out) == essence(finished.out)
    assert not [p for p in tmp_path.rglob(".*") if p.suffix in (".partial", ".replaced")]


def test_a_model_folder_that_vanishes_is_one_sentence(
    material: Material, finished: Finished, tmp_path: Path, bakeoff: Command, no_report: None, killed_store: Path
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    shutil.copytree(killed_store, store)
    model = tmp_path / "model"
    words = material.compare(store, out)
    words[words.index("--model") + 1] = str(model)
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    said = bakeoff(*words)
    assert said.code == 2
    assert said.sentence == f"bakeoff: There is no model folder {model}: check the path."
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file()} == before
    assert not out.exists()
    # The folder comes back elsewhere: what was begun goes on, as a model is known by its content.
    shutil.copytree(material.model, model)
    log = tmp_path / "log"
    assert Child(tmp_path, words, logging_steps, str(log), 0).ended().code == 0
    assert log.read_text().splitlines()[0].endswith(" 4")
    assert essence(out) == essence(finished.out)


FAILS = '''
from bakeoff.tune.contest import tune
from bakeoff import lm

@tune.method()
def fails_at_seven(model, data, run, *, learning_rate: float = 1e-3):
    """Trains, except with seed 7."""
    tuned = run.train(lm.clone(model), data.batches(run), learning_rate=learning_rate)
    if run.seed == 7:
        raise RuntimeError("seven is too many")
    return tuned

@tune.method()
def spoils(model, data, run, *, learning_rate: float = 1e-3):
    """Trains the model that it was given, which the quick checks catch."""
    return run.train(model, data.batches(run), learning_rate=learning_rate)
'''


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "own_methods.py"
    path.write_text(FAILS)
    return path


def test_a_method_that_raises_fails_alone(material: Material, tmp_path: Path, bakeoff: Command, outside: Path) -> None:
    store, out = material.store(tmp_path / "store"), tmp_path / "out"
    label = f"{outside}:fails_at_seven"
    words = material.compare(store, out, "--seed-base", "7", methods=[label, "full"])
    said = bakeoff(*words)
    assert said.code == 1
    results = json.loads((out / "results.json").read_text())
    key = next(t["key"] for t in results["trials"] if t["status"] == "failed")
    place = f"(traceback in trials/{key}.json of the store)"
    assert said.sentence == f"bakeoff: {label}, seed 7 failed: RuntimeError: seven is too many {place}"
    assert "seven is too many" in json.loads((store / "trials" / f"{key}.json").read_text())["traceback"]
    status = {(t["label"], t["seed"]): t["status"] for t in results["trials"]}
    assert status == {(name, seed): "done" for name in (label, "full") for seed in (7, 8, 9)} | {(label, 7): "failed"}
    assert (out / "report.html").exists()
    assert "seven is too many" in (out / "report.html").read_text()
    assert "Traceback" not in said.out + (out / "results.json").read_text()
    before = done_trials(store)
    assert bakeoff(*words).code == 1
    assert done_trials(store) == before


def test_a_method_that_its_quick_checks_refuse_gets_no_row(
    material: Material, tmp_path: Path, bakeoff: Command, outside: Path, no_report: None
) -> None:
    store, out = material.store(tmp_path / "store"), tmp_path / "out"
    label = f"{outside}:spoils"
    said = bakeoff(*material.compare(store, out, methods=["full", label]))
    assert said.code == 1
    assert f"{label} gets no row" in said.sentence
    assert "input" in said.sentence
    results = json.loads((out / "results.json").read_text())
    assert list(results["comparison"]["refused"]) == [label]
    assert {t["label"] for t in results["trials"]} == {"full"}
    assert {e["method"] for e in results["effects"]} == {"full"}


def test_an_output_folder_that_is_a_file_is_one_sentence(material: Material, tmp_path: Path, bakeoff: Command) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    said = bakeoff(*material.compare(tmp_path / "store", out))
    assert said.code == 1
    assert str(out) in said.sentence
    assert out.read_text() == "mine"
    assert not (tmp_path / "store").exists()
