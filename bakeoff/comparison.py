"""All trials of one question, paired by seed, and what they show."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bakeoff import check, files, registry, stats
from bakeoff.budget import Budget
from bakeoff.contest import UNTOUCHED, Contest, Question, Setting
from bakeoff.errors import StoreError, UsageError
from bakeoff.executor import Executor, Place
from bakeoff.method import Method, Spec
from bakeoff.metric import Metric
from bakeoff.store import Busy, Store
from bakeoff.training import parallel
from bakeoff.trial import PeakMemory, Trial, components, environment

ALPHA = 0.05

Watch = Callable[[str, int, int, float, float], None]
"""Called with what runs, how many trials are over, how many there are, the fraction done of this one, and its loss."""

Ended = Callable[[str, int, Mapping[str, Any]], None]
"""Called with label, seed and record of each trial that is over, in the order in which they end."""


@dataclass(frozen=True)
class Comparison:
    """A question put to several methods.

    Args:
        specs: the methods with the arguments given; the first is the baseline unless `baseline` names another.
        budget: what each trial may spend.
        seeds: one trial of each method for each of them.
        tune: Optuna trials for each method on the validation split before the seeds run; 0 takes defaults.
        executor: spreads the trials of the seeds over other processes; None runs them here, one after the other.
    """

    contest: Contest
    question: Question
    specs: Sequence[Spec]
    budget: Budget
    seeds: Sequence[int]
    baseline: str | None = None
    tune: int = 0
    checkpoint_seconds: float = 30.0
    watch: Watch = lambda what, over, total, fraction, loss: None
    notice: Callable[[str], None] = lambda sentence: None
    ended: Ended = lambda label, seed, record: None
    setting: Setting | None = None
    executor: Executor | None = None
    methods: dict[str, Method] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.specs:
            raise UsageError(
                f"No method is named: give at least one of those that `bakeoff list {self.contest.name}` shows."
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError("The seeds must be at least one and all different.")
        labels = [str(spec) for spec in self.specs]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise UsageError(f"{min(twice)} is named twice: name each method with the same values once.")
        for spec in self.specs:
            method = registry.method(self.contest.name, spec.name)
            if method.contest != self.contest.name:
                raise UsageError(
                    f"{spec.name} is a method of the contest {method.contest}, not of {self.contest.name}."
                )
            method.resolve(spec.arguments)
            self.methods[str(spec)] = method
        if self.baseline and self.baseline not in (*labels, UNTOUCHED):
            registry.pick(self.baseline, [*labels, UNTOUCHED], "baseline among the methods named")

    def opened(self) -> Setting:
        return self.setting or self.contest.open(self.question)

    def prepared(self) -> Comparison:
        """The same comparison with its inputs read; UsageError if a method needs what they do not hold."""
        setting = self.opened()
        for method in self.methods.values():
            if lacking := setting.lacks(method):
                raise UsageError(lacking)
        return dataclasses.replace(self, setting=setting)

    def watched(self, ended: Ended, watch: Watch = lambda what, over, total, fraction, loss: None) -> Comparison:
        """The same comparison, which tells these as well."""

        def also_watch(what: str, over: int, total: int, fraction: float, loss: float) -> None:
            self.watch(what, over, total, fraction, loss)
            watch(what, over, total, fraction, loss)

        def also_ended(label: str, seed: int, record: Mapping[str, Any]) -> None:
            self.ended(label, seed, record)
            ended(label, seed, record)

        return dataclasses.replace(self, watch=also_watch, ended=also_ended)

    def run(self, store: Store) -> dict[str, Any]:
        """Run what is not in the store yet and return the results, in the form of `results.json`.

        A method that fails its quick checks gets no trials; one that raises gets a failed trial. StoreError ends the run.
        """
        setting = self.opened()
        refused = {label: why for label, m in self.methods.items() if (why := check.quick_verdict(m, store))}
        for label, why in refused.items():
            self.notice(f"{label} gets no row: {why}")
        specs = [spec for spec in self.specs if str(spec) not in refused]
        tuned = {str(spec): self._tune(spec, setting.tuning(), store) for spec in specs} if self.tune else {}
        trials = {
            (str(spec), seed): Trial(
                self.methods[str(spec)],
                {**tuned.get(str(spec), {}).get("best", {}), **spec.arguments},
                seed,
                self.budget,
                setting,
            )
            for seed in self.seeds
            for spec in specs
        }
        records = self._run_all(trials, store)
        began = time.monotonic()
        start = setting.exam(setting.untouched())
        exam_seconds = time.monotonic() - began
        items = {place: components(store, t.key) for place, t in trials.items() if records[place]["status"] == "done"}
        labels = [str(spec) for spec in specs]
        whole = [label for label in labels if all((label, seed) in items for seed in self.seeds)]
        arrays = {
            (label, m.name): np.stack([items[label, seed][m.name] for seed in self.seeds])
            for label in whole
            for m in setting.metrics()
            if m.name in start
        }
        for name, measured in start.items():
            arrays[UNTOUCHED, name] = np.stack([measured.components] * len(self.seeds))
        metrics = [m for m in setting.metrics() if m.name in start]
        first = self.baseline or str(self.specs[0])
        baselines = [b for b in dict.fromkeys((first, UNTOUCHED)) if (b, metrics[0].name) in arrays]
        effects = [e for b in baselines for m in metrics for e in effects_against(b, whole, m, arrays)]
        environments = [r["environment"] for r in records.values() if "environment" in r]
        return {
            "comparison": {
                "contest": self.contest.name,
                "makes": self.contest.makes,
                "question": self.question.model_dump(mode="json"),
                "methods": [str(spec) for spec in self.specs],
                "budget": str(self.budget),
                "seeds": list(self.seeds),
                "baseline": first,
                "benefit": self.contest.benefit,
                "harm": self.contest.harm,
                "tune": self.tune,
                "facts": setting.facts(),
                "inputs": setting.made_by()["inputs"],
                "untouched": {name: m.metric.describe(m.value) for name, m in start.items()},
                "exam_seconds": exam_seconds,
                "refused": refused,
                "tuning": tuned,
                "winner": self._winner(whole, arrays, metrics, effects, records),
            },
            "trials": [
                {"label": label, "key": trials[label, seed].key, **_shown(records[label, seed])}
                for label, seed in trials
            ],
            "effects": effects,
            "environment": environments[-1] if environments else environment(),
        }

    def _run_all(self, trials: dict[Place, Trial], store: Store) -> dict[Place, dict[str, Any]]:
        records: dict[Place, dict[str, Any]] = {}

        def ended(place: Place, record: dict[str, Any]) -> None:
            records[place] = record
            what = f"{place[0]}, seed {place[1]}"
            if record["status"] == "failed":
                self.notice(
                    f"{what} failed: {record['error']} (traceback in trials/{trials[place].key}.json of the store)"
                )
            self.watch(what, len(records), len(trials), 1.0, math.nan)
            self.ended(*place, record)

        if self.executor:
            for place, trial in trials.items():
                record = store.get("trials", trial.key)
                if record and record["status"] == "done" and store.get("items", trial.key):
                    ended(place, record)
            left = {place: trial for place, trial in trials.items() if place not in records}
            self.watch(f"in {self.executor.kind} workers", len(records), len(trials), 0.0, math.nan)
            running = self.executor.run(
                left, store, keep_results=[place for place in left if place[1] == self.seeds[0]],
                checkpoint_seconds=self.checkpoint_seconds, notice=self.notice,
            )  # fmt: skip
            with contextlib.closing(running):
                for place, record in running:
                    ended(place, record)
            return records
        for wait in (False, True):
            for place in [p for p in trials if p not in records]:
                label, seed = place

                def progress(fraction: float, loss: float, what: str = f"{label}, seed {seed}") -> None:
                    self.watch(what, len(records), len(trials), fraction, loss)

                try:
                    record = trials[place].run(
                        store, keep_result=seed == self.seeds[0], checkpoint_seconds=self.checkpoint_seconds,
                        progress=progress, notice=self.notice, wait=wait,
                    )  # fmt: skip
                except Busy:
                    continue
                ended(place, record)
        return records

    def _tune(self, spec: Spec, setting: Setting, store: Store) -> dict[str, Any]:
        """The best of `tune` configurations by the benefit metric on the validation split; each one is a stored trial."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        method = self.methods[str(spec)]
        free = [p for p in method.parameters if p.searched and p.name not in spec.arguments]
        better = next(m.better for m in self.contest.metrics if m.name == self.contest.benefit)
        tried: list[dict[str, Any]] = []

        def objective(suggested: Any) -> float:
            arguments = {p.name: p.suggest(suggested) for p in free}
            trial = Trial(method, {**spec.arguments, **arguments}, self.seeds[0], self.budget, setting)
            record = trial.run(
                store, checkpoint_seconds=self.checkpoint_seconds,
                progress=lambda fraction, loss: self.watch(f"{spec}, choosing values", len(tried), self.tune, fraction, loss),
            )  # fmt: skip
            if record["status"] == "failed":
                tried.append({"args": arguments, "value": None, "error": record["error"]})
                raise optuna.TrialPruned
            tried.append({"args": arguments, "value": record["metrics"][self.contest.benefit]["value"]})
            return float(tried[-1]["value"])

        study = optuna.create_study(
            direction="minimize" if better == "lower" else "maximize",
            sampler=optuna.samplers.TPESampler(seed=self.seeds[0]),
        )
        study.enqueue_trial({p.name: p.default for p in free})
        study.optimize(objective, n_trials=self.tune if free else 1)
        good = [t for t in tried if t["value"] is not None]
        best = (min if better == "lower" else max)(good, key=lambda t: float(t["value"]))["args"] if good else {}
        return {"best": best, "tried": tried, "metric": self.contest.benefit, "split": "validation"}

    def _winner(
        self, labels: list[str], arrays: dict[tuple[str, str], Any], metrics: Sequence[Metric],
        effects: Iterable[dict[str, Any]], records: dict[tuple[str, int], dict[str, Any]],
    ) -> dict[str, Any] | None:  # fmt: skip
        """Of the methods not decidedly behind the best in benefit, the one that harms least; None if nothing helped.

        Where the exam could not measure the benefit, as without right answers, there is no winner either.
        """
        benefit = next((m for m in metrics if m.name == self.contest.benefit), None)
        if benefit is None:
            return None
        harm = next((m for m in metrics if m.name == self.contest.harm), benefit)

        def mean(label: str, metric: Metric) -> float:
            value = statistics.fmean(float(v) for v in metric.reduce(arrays[label, metric.name].sum(axis=1)))
            return value if metric.better == "lower" else -value

        gain = {e["method"]: e for e in effects if e["baseline"] == UNTOUCHED and e["metric"] == benefit.name}
        helped = [
            label for label in labels
            if gain[label]["decided"] == "better" or (len(self.seeds) == 1 and mean(label, benefit) < mean(UNTOUCHED, benefit))
        ]  # fmt: skip
        if not helped:
            return None
        best = min(helped, key=lambda label: mean(label, benefit))
        against = {
            e["method"]: e["decided"] for e in effects_against(best, [h for h in helped if h != best], benefit, arrays)
        }
        level = [label for label in helped if label == best or (against[label] == "undecided" and len(self.seeds) > 1)]
        chosen = min(level, key=lambda label: mean(label, harm))
        return {
            "method": chosen, "seed": self.seeds[0], "best_benefit": best, "undecided_with_best": level,
            "args": records[chosen, self.seeds[0]]["args"], "weights_sha256": records[chosen, self.seeds[0]]["weights_sha256"],
            "rule": f"least {harm.name} among the methods that no decided difference in {benefit.name} separates from the best",
        }  # fmt: skip

    def export_winner(
        self, results: dict[str, Any], store: Store, folder: Path, card: Callable[[dict[str, Any]], str]
    ) -> bool:
        """Write the winner's model of the first seed into `folder`, proven to be the one measured. False without a winner.

        Results of other methods that the store still keeps are removed. `card` makes the model card from the trial.
        """
        winner = results["comparison"]["winner"]
        if winner:
            chosen = next(t for t in results["trials"] if (t["label"], t["seed"]) == (winner["method"], winner["seed"]))
            self.export(chosen, store, folder, card(chosen))
        for other in results["trials"]:
            if not winner or other is not chosen:
                files.remove_folder(store.artifact("trials", other["key"]))
        return winner is not None

    def export(self, shown: dict[str, Any], store: Store, folder: Path, card: str) -> None:
        """Write the result of a trial of these results and its card into `folder`, proven to be the one measured."""
        source = self.kept(shown, store)

        def write() -> None:
            with files.replace_folder(folder) as new:
                shutil.copytree(source, new, dirs_exist_ok=True)
                (new / "README.md").write_text(card, "utf-8")

        parallel.on_first(write)

    def kept(self, shown: dict[str, Any], store: Store) -> Path:
        """The folder in the store that holds the result of a trial of these results, proven to be the one measured.

        A result that is missing there is made again; one that is damaged is moved aside first.
        """
        return parallel.on_first(lambda: self._kept(shown, store))

    def _kept(self, shown: dict[str, Any], store: Store) -> Path:
        setting = self.opened()
        trial = Trial(self.methods[shown["label"]], shown["args_passed"], shown["seed"], self.budget, setting)
        source = store.artifact("trials", trial.key)

        def is_whole() -> bool:
            trial.run(store, need_result=True, checkpoint_seconds=self.checkpoint_seconds)
            try:
                return bool(setting.digest(setting.reload(source)) == shown["weights_sha256"])
            except UsageError:
                return False

        if not is_whole():
            number = 1 + len(list(source.parent.glob(f"{source.name}.damaged-*")))
            aside = source.with_name(f"{source.name}.damaged-{number}")
            with files.writing(aside):
                source.rename(aside)
            self.notice(f"The model in {source} is damaged, kept as {aside.name}; it is made again.")
            if not is_whole():
                raise StoreError(
                    f"The model that {shown['label']} makes is not the one that was measured: run it with another --store."
                )
        return source

    def predict(self) -> list[dict[str, Any]]:
        """What each trial will take, from a short run of each method: tokens, seconds, peak memory in bytes."""
        from bakeoff.training.run import Run

        setting = self.opened()
        began = time.monotonic()
        setting.exam(setting.untouched())
        exam_seconds = time.monotonic() - began
        planned = []
        for spec in self.specs:
            method = self.methods[str(spec)]
            probe = _probe(self.budget)
            with tempfile.TemporaryDirectory() as folder:
                memory = PeakMemory(setting)
                run = Run(probe, self.seeds[0], Path(folder), checkpoint_seconds=math.inf, **setting.surroundings())
                setting.perform(method, method.resolve(spec.arguments), run)
                run.tick()
            m, steps = run.meter, max(run.meter.steps, 1)
            a_step = statistics.median(run.step_seconds[1:] or run.step_seconds or [0.0])
            aside = m.seconds - sum(run.step_seconds)
            scale = self.budget.amount / m.spent(probe.unit) if m.spent(probe.unit) else 0.0
            total = m.steps * scale
            planned.append(
                {
                    "method": spec.name, "label": str(spec), "args": method.resolve(spec.arguments),
                    "steps": round(total), "tokens": round(m.tokens / steps * total),
                    "seconds": self.budget.amount if self.budget.unit == "seconds" else aside + a_step * total,
                    "peak_memory_bytes": memory.peak(), "exam_seconds": exam_seconds,
                    "trials": len(self.seeds) + self.tune,
                }
            )  # fmt: skip
        return planned


def effects_against(
    baseline: str, labels: Iterable[str], metric: Metric, arrays: dict[tuple[str, str], Any]
) -> list[dict[str, Any]]:
    """The paired effect of every label on a metric against a baseline, Holm-adjusted over the labels."""
    compared = [label for label in labels if label != baseline]
    effects = [
        stats.paired_effect(arrays[label, metric.name], arrays[baseline, metric.name], metric.reduce)
        for label in compared
    ]
    adjusted = stats.holm([effect.p for effect in effects])
    return [
        {
            "method": label, "baseline": baseline, "metric": metric.name, "unit": metric.unit, "better": metric.better,
            "effect": effect.effect, "low": effect.low, "high": effect.high, "p": effect.p, "p_adjusted": p,
            "per_seed": list(effect.per_seed),
            "decided": stats.decide(effect, p, metric.better, ALPHA),
            "smallest_visible": None if effect.p is None else stats.smallest_visible(effect, alpha=ALPHA, comparisons=len(compared)),
        }
        for label, effect, p in zip(compared, effects, adjusted, strict=True)
    ]  # fmt: skip


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    left_out = ("environment", "setting", "schema", "contest", "traceback")
    return {"metrics": {}, "cost": {}, **{name: value for name, value in record.items() if name not in left_out}}


def _probe(budget: Budget) -> Budget:
    least = {"steps": 4, "tokens": 4096, "seconds": 2.0}[budget.unit]
    return dataclasses.replace(budget, amount=min(budget.amount, max(least, math.ceil(budget.amount / 10))))
