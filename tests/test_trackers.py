"""Experiment trackers: what they receive, in which order, that they fail alone, and that nothing is logged twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from bakeoff import registry
from bakeoff.budget import Budget
from bakeoff.comparison import Comparison
from bakeoff.errors import UsageError
from bakeoff.lm.tiny import save_tiny
from bakeoff.method import Spec
from bakeoff.report import trackers
from bakeoff.report.trackers import Entry, Trackers
from bakeoff.store import Store

CONFIG = {"contest": "tune", "budget": "6 steps", "question": {"model": "here", "also": ["x", "y"], "valid": None}}
DONE = {
    "method": "lora", "args": {"rank": 8, "learning_rate": 1e-3, "merge": True}, "seed": 0, "budget": "6 steps",
    "setting": {"inputs": {"model": "ab" * 32}}, "environment": {"device": "cpu", "began": "2026-01-01", "versions": {"torch": "2"}},
    "status": "done", "metrics": {"target_loss": {"value": 1.2345678901, "unit": "nats/token", "better": "lower"},
                                  "recall @ 1, new": {"value": 0.5, "unit": "share", "better": "higher"}},
    "cost": {"steps": 6, "seconds": 1.5}, "weights_sha256": "cd" * 32, "reload_difference": 0.0, "notes": {},
    "curve": [[1, 512, 5.409061908721924], [3, 1520, 5.286938667297363], [6, 3000, 4.5]],
}  # fmt: skip
FAILED = {
    **{name: DONE[name] for name in ("method", "args", "seed", "budget", "setting", "environment")},
    "status": "failed", "error": "RuntimeError: out of luck", "traceback": "Traceback...",
}  # fmt: skip
EFFECT = {
    "method": "lora(rank=8)", "baseline": "full", "metric": "target_loss", "unit": "nats/token", "better": "lower",
    "effect": 0.25, "low": 0.125, "high": None, "p": 0.01, "p_adjusted": 0.02, "per_seed": [0.25], "decided": "worse",
    "smallest_visible": 0.1,
}  # fmt: skip
RESULTS = {"comparison": {"winner": {"method": "full", "seed": 0}}, "effects": [EFFECT]}


class Memory(GeneralTracker):
    """A tracker that notes what is asked of it, and fails where it is told to."""

    name = "memory"
    requires_logging_directory = False
    runs: list[Memory]
    fail_in = ""

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self.entry, self.calls = entry, list[Any]()
        Memory.runs.append(self)

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        print("a tracker prints")
        if call[0] == Memory.fail_in:
            raise ConnectionError("the network\nis down")

    @property
    def tracker(self) -> list[Any]:
        return self.calls

    def start(self) -> None:
        self._note("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._note("configuration", values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._note("log", values, step)

    def log_table(self, table_name: str, columns: list[str], data: list[list[Any]]) -> None:
        self._note("table", table_name, [dict(zip(columns, row, strict=True)) for row in data])

    def finish(self) -> None:
        self._note("finish")


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "runs", [], raising=False)
    monkeypatch.setitem(trackers.KINDS, "memory", Memory)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["memory", "tensorboard"])


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def made(tmp_path: Path, told: list[str]) -> Callable[..., Trackers]:
    return lambda names="memory", config=CONFIG: Trackers(names, "bakeoff", tmp_path / "out", config, told.append)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"scalars": 0, "tensors": 0}).Reload()


def scalars(found: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(name)]


def hyper_parameters(found: EventAccumulator) -> dict[str, Any]:
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_a_run_is_written_in_order_and_whole(made: Callable[..., Trackers], capsys: pytest.CaptureFixture[str]) -> None:
    tracking = made()
    tracking.ended("lora(rank=8)", 0, DONE)
    (run,) = Memory.runs
    config = {
        "contest": "tune", "budget": "6 steps", "question.model": "here", "question.also": '["x", "y"]', "label": "lora(rank=8)",
        "seed": 0, "status": "done", "method": "lora", "args.rank": 8, "args.learning_rate": 1e-3, "args.merge": True,
        "weights_sha256": "cd" * 32, "setting.inputs.model": "ab" * 32, "environment.device": "cpu",
        "environment.versions.torch": "2",
    }  # fmt: skip
    finals = {"metrics/target_loss": 1.2345678901, "metrics/recall_1_new": 0.5, "cost/steps": 6.0, "cost/seconds": 1.5}
    assert run.calls == [
        ("start",), ("configuration", config), ("log", {"loss": 5.409061908721924}, 1),
        ("log", {"loss": 5.286938667297363}, 3), ("log", {"loss": 4.5}, 6), ("log", finals, 6), ("finish",),
    ]  # fmt: skip
    assert (run.entry.project, run.entry.name, run.entry.failed) == ("bakeoff", "lora(rank=8), seed 0", False)
    tracking.ended("lora(rank=8)", 0, FAILED)
    tracking.finish(RESULTS)
    _, failed, effects = Memory.runs
    assert failed.entry.failed
    assert {run.entry.group for run in Memory.runs} == {run.entry.group}
    assert dict(failed.calls[1][1])["error"] == "RuntimeError: out of luck"
    assert failed.calls[2:] == [("log", {"failed": 1.0}, 0), ("finish",)]
    assert effects.calls[1][1]["winner.method"] == "full"
    assert effects.calls[2:] == [("table", "effects", [{k: EFFECT[k] for k in trackers._EFFECT}]), ("finish",)]
    assert capsys.readouterr().out == ""


def test_tensorboard_holds_the_same_numbers(made: Callable[..., Trackers], tmp_path: Path) -> None:
    tracking = made("tensorboard")
    tracking.ended("lora(rank=8)", 0, DONE)
    tracking.ended("../../mine.py:lora", 1, FAILED)
    tracking.finish(RESULTS)
    (group,) = (tmp_path / "out" / "tensorboard").iterdir()
    assert sorted(p.name for p in group.iterdir()) == ["_.._mine.py_lora, seed 1", "effects", "lora(rank=8), seed 0"]
    assert not list(tmp_path.glob("*.py*"))
    found = events(group / "lora(rank=8), seed 0")
    assert scalars(found, "loss") == [(step, float(np.float32(loss))) for step, _, loss in DONE["curve"]]
    assert scalars(found, "metrics/target_loss") == [(6, float(np.float32(1.2345678901)))]
    assert scalars(found, "metrics/recall_1_new") == [(6, 0.5)]
    assert scalars(found, "cost/seconds") == [(6, 1.5)]
    shown = hyper_parameters(found)
    assert (shown["args.rank"], shown["args.learning_rate"], shown["args.merge"]) == (8, 1e-3, 1)
    assert (shown["setting.inputs.model"], shown["question.model"], shown["budget"]) == ("ab" * 32, "here", "6 steps")
    experiment = HParamsPluginData.FromString(
        found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    ).experiment
    assert {info.name.tag for info in experiment.metric_infos} >= {"metrics/target_loss", "cost/steps"}
    failed = events(group / "_.._mine.py_lora, seed 1")
    assert (hyper_parameters(failed)["error"], scalars(failed, "failed")) == ("RuntimeError: out of luck", [(0, 1.0)])
    (text,) = events(group / "effects").Tensors("effects/text_summary")
    assert (
        b"| target_loss | lora(rank=8) | full | 0.25 | 0.125 |  | 0.02 | worse |"
        in make_ndarray(text.tensor_proto).item()
    )


def test_what_was_logged_is_not_logged_again(made: Callable[..., Trackers], tmp_path: Path) -> None:
    made().ended("lora(rank=8)", 0, FAILED)
    for config in (CONFIG, {**CONFIG, "budget": "7 steps"}):
        tracking = made(config=config)
        tracking.ended("lora(rank=8)", 0, FAILED)
        tracking.ended("lora(rank=8)", 0, json.loads(json.dumps(DONE)))
        tracking.ended("lora(rank=8)", 1, {**DONE, "seed": 1, "curve": [tuple(p) for p in DONE["curve"]]})
        tracking.ended("lora(rank=8)", 1, {**DONE, "seed": 1, "environment": {**DONE["environment"], "began": "now"}})
    tracking.finish(RESULTS)
    made(config=config).finish(RESULTS)
    assert [run.entry.name for run in Memory.runs] == [
        "lora(rank=8), seed 0", "lora(rank=8), seed 0", "lora(rank=8), seed 1", "effects",
    ]  # fmt: skip
    both = made("memory,tensorboard")
    both.ended("lora(rank=8)", 0, DONE)
    assert len(Memory.runs) == 4
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1
    assert {kind: len(known) for kind, known in json.loads((tmp_path / "out" / "tracked.json").read_text()).items()} == {
        "memory": 4, "tensorboard": 1,
    }  # fmt: skip


@pytest.mark.parametrize("place", ["start", "configuration", "log", "finish"])
def test_a_tracker_that_fails_fails_alone(
    place: str, made: Callable[..., Trackers], told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Memory, "fail_in", place)
    tracking = made("memory, tensorboard")
    tracking.ended("lora(rank=8)", 0, DONE)
    tracking.ended("lora(rank=8)", 1, DONE)
    tracking.finish(RESULTS)
    assert told == [
        "memory gets no more of these trials (ConnectionError: the network is down): their results are complete without it, "
        "and the same command again logs what is missing."
    ]
    assert len(Memory.runs) == 1
    assert (Memory.runs[0].calls[-1] == ("finish",)) == (place != "start")
    assert len(list((tmp_path / "out" / "tensorboard").glob("*/*"))) == 3
    monkeypatch.setattr(Memory, "fail_in", "")
    made("memory,tensorboard").ended("lora(rank=8)", 0, DONE)
    assert len(Memory.runs) == 2
    assert len(list((tmp_path / "out" / "tensorboard").glob("*/*"))) == 3


def test_a_tracker_that_does_not_answer_is_left_behind(
    made: Callable[..., Trackers], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(Memory, "start", lambda self: answer.wait(60))
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    tracking, before = made(), set(threading.enumerate())
    tracking.ended("lora(rank=8)", 0, DONE)
    tracking.ended("lora(rank=8)", 1, DONE)
    assert (len(Memory.runs), tracking.tracked) == (1, {})
    assert told[0].startswith("memory gets no more of these trials (no answer within 0.05 seconds)")
    answer.set()
    for late in set(threading.enumerate()) - before:
        late.join()
    assert len(tracking.tracked["memory"]) == 1


def test_odd_numbers_and_names_are_shown(made: Callable[..., Trackers]) -> None:
    metric = {"value": float("nan"), "unit": "", "better": "lower"}
    record = {
        **DONE,
        "metrics": {"a": metric, "b": {**metric, "value": None}},
        "args": {"x y": float("inf")},
        "curve": [],
    }
    made().ended("decode", 0, record)
    (run,) = Memory.runs
    assert run.calls[1][1]["args.x_y"] == "inf"
    (_, finals, step) = run.calls[2]
    assert np.isnan(finals.pop("metrics/a"))
    assert (finals, step) == ({"cost/steps": 6.0, "cost/seconds": 1.5}, 0)


def test_the_names_are_checked_before_anything_runs(
    made: Callable[..., Trackers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made("all").kinds == ["tensorboard", "memory"]
    assert made(" memory,tensorboard, memory").kinds == ["memory", "tensorboard"]
    for names, sentence in (
        ("wandb", "wandb is not installed: run `pip install wandb`, or leave it out of --report-to."),
        ("tensorbord", "There is no experiment tracker called 'tensorbord': did you mean tensorboard?"),
        (" , ", "--report-to finds no tracker: name and install one of mlflow, wandb, tensorboard, trackio, memory."),
    ):
        with pytest.raises(UsageError) as caught:
            made(names)
        assert str(caught.value) == sentence
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(UsageError, match="finds no tracker"):
        made("all")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"memory": 3}', "\udcff"])
def test_a_damaged_record_is_told(content: str, made: Callable[..., Trackers], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tracked.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"tracked\.json is damaged .* remove it"):
        made()


def test_a_real_comparison_is_logged_as_it_runs(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", "llama", 1)
    (tmp_path / "train.txt").write_text("\n\n".join(f"the cat {n} sat on the mat {n} and ran" * 4 for n in range(30)))
    contest = registry.contest("tune")
    question = contest.question(
        model=str(tmp_path / "model"), train=str(tmp_path / "train.txt"), max_length=16, exam_items=2
    )
    comparison = Comparison(contest, question, [Spec.parse("full")], Budget.parse("3steps"), [0, 1])
    common: Mapping[str, Any] = {"contest": "tune", "question": question.model_dump(mode="json"), "budget": "3 steps"}
    for _ in range(2):
        tracking = Trackers("tensorboard", "bakeoff", tmp_path / "out", common)
        results = comparison.watched(tracking.ended).run(Store(str(tmp_path / "store")))
        tracking.finish(results)
    (group,) = (tmp_path / "out" / "tensorboard").iterdir()
    for trial in results["trials"]:
        run = group / f"full, seed {trial['seed']}"
        assert len(list(run.iterdir())) == 1
        found = events(run)
        assert scalars(found, "loss") == [(step, float(np.float32(loss))) for step, _, loss in trial["curve"]]
        for name, metric in trial["metrics"].items():
            assert scalars(found, f"metrics/{name}") == [(3, float(np.float32(metric["value"])))]
        assert hyper_parameters(found)["weights_sha256"] == trial["weights_sha256"]
        assert hyper_parameters(found)["setting.inputs.model"] == results["comparison"]["inputs"]["model"]
