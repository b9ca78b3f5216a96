"""Spreading trials over the processes of one machine (joblib's loky) or over the machines of a Ray cluster.

A worker receives names and values, opens the question by itself and calls `Trial.run` on the store that all of them
share: where a trial runs changes nothing but the number of threads it computes with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal

from bakeoff import registry
from bakeoff.budget import Budget
from bakeoff.contest import Setting
from bakeoff.errors import BakeoffError, UsageError
from bakeoff.method import Method
from bakeoff.store import Busy, Store
from bakeoff.training.threads import keep_memory
from bakeoff.trial import Trial

Place = tuple[str, int]
"""The label of a method and a seed."""

_LOST_WORKERS = 3  # that a trial may have before the comparison ends
_SECONDS_TO_REACH = 3.0
_SECONDS_TO_ANSWER = 10.0
_OBJECT_STORE_BYTES = 100_000_000  # jobs and records are small; Ray's own default is a third of the memory


@dataclass(frozen=True)
class Job:
    """What a worker needs to run a trial. `question` is JSON; relative paths in it, in `method` and `store` start from `folder`."""

    key: str
    contest: str
    question: str
    method: str
    passed: Mapping[str, Any]
    seed: int
    budget: Budget
    store: str
    folder: str
    keep_result: bool
    checkpoint_seconds: float
    threads: int = 1
    wait: bool = False


Outcome = dict[str, Any] | BakeoffError
Notice = Callable[[str], None]


def perform(job: Job) -> Outcome:
    """Run a job in this process: the trial's record, or the error that must end the comparison (Busy: the trial is run elsewhere)."""
    keep_memory()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    import torch

    torch.set_num_threads(job.threads)
    try:
        os.chdir(job.folder)
    except OSError:
        return UsageError(f"The folder {job.folder} is missing on {platform.node()}: share it among all machines.")
    try:
        trial = Trial(_method(job.method), job.passed, job.seed, job.budget, _setting(job.contest, job.question))
        if trial.key != job.key:
            raise UsageError(
                f"The worker on {platform.node()} has other code, versions or data than the process that sent it "
                f"{trial.method.name}, seed {job.seed}: give every machine the same installation and the same files."
            )
        return trial.run(
            Store(job.store), keep_result=job.keep_result, checkpoint_seconds=job.checkpoint_seconds, wait=job.wait
        )
    except BakeoffError as error:
        return error


@functools.lru_cache(maxsize=1)
def _setting(contest: str, question: str) -> Setting:
    known = registry.contest(contest)
    return known.open(known.question.model_validate_json(question))


@functools.cache
def _method(reference: str) -> Method:
    return registry.method_from(reference)


@dataclass(frozen=True)
class Executor:
    """Runs trials in other processes, each with its share of the cores.

    Args:
        kind: `joblib`: processes on this machine. `ray`: wherever a Ray cluster has room.
        workers: trials that run at once, at least 1; each computes with cores // workers threads, at least 1. Default: one
            for each core; with `joblib` on a GPU one, with `ray` on GPUs one for each.
        address: HOST:PORT of a running Ray cluster, or `auto` for the one of this machine. Default: Ray is started here, on the
            loopback interface, and ended with the run.

    Raises:
        UsageError: Ray is not installed, or nothing answers at `address`.
    """

    kind: Literal["joblib", "ray"]
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"The number of workers must be at least 1, not {self.workers}.")
        if self.kind == "ray" and importlib.util.find_spec("ray") is None:
            raise UsageError("Ray is not installed: run `pip install 'bakeoff[ray]'`, or take --executor joblib.")
        if self.address and self.address != "auto":
            _reach(self.address)

    def run(
        self, trials: Mapping[Place, Trial], store: Store, *, keep_results: Collection[Place], checkpoint_seconds: float, notice: Notice
    ) -> Generator[tuple[Place, dict[str, Any]]]:  # fmt: skip
        """Each trial's place and record as it ends, in whichever order. Close the iterator to end the workers.

        A trial whose worker is killed goes on from its last checkpoint in another one, and `notice` is told. Trials that another
        command runs already come last. What `Trial.run` raises ends the run, as does a trial that loses its worker too often.

        Raises:
            UsageError: a worker would run something else than `trials`; the cluster cannot be used.
        """
        jobs = {
            place: Job(
                trial.key, trial.method.contest, trial.setting.question.model_dump_json(), _reference(trial.method),
                trial.passed, trial.seed, trial.budget, store.url, os.getcwd(), place in keep_results, checkpoint_seconds,
            )
            for place, trial in trials.items()
        }  # fmt: skip
        on_gpu = any(trial.setting.surroundings()["device"].type == "cuda" for trial in trials.values())
        spread = self._in_processes if self.kind == "joblib" else self._on_ray
        for waits in (False, True):
            if not jobs:
                return
            asked = {place: dataclasses.replace(job, wait=waits) for place, job in jobs.items()}
            with contextlib.closing(spread(asked, on_gpu, notice)) as ended:
                for place, outcome in ended:
                    if isinstance(outcome, Busy):
                        continue
                    if isinstance(outcome, BakeoffError):
                        raise outcome
                    del jobs[place]
                    yield place, outcome

    def _in_processes(
        self, jobs: Mapping[Place, Job], on_gpu: bool, notice: Notice
    ) -> Generator[tuple[Place, Outcome]]:
        from joblib import cpu_count
        from joblib.externals.loky import ProcessPoolExecutor

        # A worker whose memory grew is replaced between two trials, which loses nothing.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)
        workers = self.workers or (1 if on_gpu else cpu_count())
        threads = max(1, cpu_count() // workers)
        left, lost = dict(jobs), 0
        while left:
            pool = ProcessPoolExecutor(min(workers, len(left)), env={"OMP_NUM_THREADS": str(threads)})
            waiting, running = list(left), dict[Future[Outcome], Place]()
            try:
                while left:
                    # No more than there are workers: a pool that is ended with calls still queued fails noisily.
                    with _ctrl_c_blocked():
                        while waiting and len(running) < workers:
                            place = waiting.pop(0)
                            running[pool.submit(perform, dataclasses.replace(left[place], threads=threads))] = place
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        place = running.pop(future)
                        outcome, lost = future.result(), 0
                        del left[place]
                        yield place, outcome
            except BrokenProcessPool:
                lost += 1
                _take_up_again("a trial", lost, notice)
            finally:
                pool.shutdown(kill_workers=True)

    def _on_ray(self, jobs: Mapping[Place, Job], on_gpu: bool, notice: Notice) -> Generator[tuple[Place, Outcome]]:
        running: dict[Any, Place] = {}
        self._connect()
        ray = _ray()
        killed = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
        try:
            workers, threads = self._room(on_gpu)
            # Ray could retry by itself, but would not tell.
            remote = ray.remote(num_cpus=threads, num_gpus=int(on_gpu), max_retries=0)(perform)
            waiting, lost = list(jobs), Counter[Place]()
            while waiting or running:
                while waiting and len(running) < workers:
                    place = waiting.pop(0)
                    running[remote.remote(dataclasses.replace(jobs[place], threads=threads))] = place
                (ended,), _ = ray.wait(list(running), num_returns=1)
                place = running.pop(ended)
                try:
                    outcome = ray.get(ended)
                except killed:
                    lost[place] += 1
                    _take_up_again(f"{place[0]}, seed {place[1]}", lost[place], notice)
                    waiting.append(place)
                else:
                    yield place, outcome
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            ray.shutdown()

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self.address:
            try:
                _ray().init(self.address, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise _unreachable(self.address, str(error).strip().partition("\n")[0]) from error
            return
        from joblib import cpu_count

        cores = cpu_count()
        workers = self.workers or cores
        # Ray reads this when it is imported; without it, it listens on every network of the machine, `_node_ip_address` or not.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        _ray().init(
            "local", num_cpus=workers * max(1, cores // workers), include_dashboard=False, logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )  # fmt: skip

    def _room(self, on_gpu: bool) -> tuple[int, int]:
        """Trials at once and threads of each, so that each finds room on every machine of the cluster that has cores."""
        ray = _ray()
        unit = "GPU" if on_gpu else "CPU"
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(unit, 0) >= 1]
        if not machines:
            raise UsageError(f"No machine of the Ray cluster offers a {unit}: start its workers with some.")
        workers = self.workers or int(sum(machine[unit] for machine in machines))
        cores = [int(machine.get("CPU", 0)) for machine in machines]
        return workers, max(1, min(sum(cores) // workers, *cores))


def _ray() -> Any:
    return importlib.import_module("ray")


def _reference(method: Method) -> str:
    """What `registry.method_from` finds the method by, in any process."""
    module = method.function.__module__
    return f"{module if '.' in module else method.file.resolve()}:{method.name}"


def _take_up_again(what: str, lost: int, notice: Notice) -> None:
    """Tell that a worker was killed; BakeoffError after too many."""
    if lost > _LOST_WORKERS:
        raise BakeoffError(
            f"Workers were killed {lost} times while they ran {what}, most likely for want of memory: "
            "give the same command again with fewer --workers; what was finished is kept."
        )
    notice(f"A worker was killed while it ran {what}; it goes on from the last checkpoint in another one.")


def _reach(address: str) -> None:
    """UsageError unless something answers there within seconds; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--ray-address must be HOST:PORT or auto, not {address!r}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_REACH).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(getattr(error, "strerror", None) or error)) from error
    asked = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(asked, check=True, capture_output=True, timeout=_SECONDS_TO_ANSWER)
    except subprocess.SubprocessError as error:
        raise _unreachable(address, "what answers there is no Ray cluster of this version") from error


def _unreachable(address: str, why: str) -> UsageError:
    return UsageError(
        f"No Ray cluster can be used at {address} ({why}): check --ray-address, or start one with `ray start --head`."
    )


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Processes that start meanwhile never see Ctrl-C: this process ends them, so that they print nothing."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
