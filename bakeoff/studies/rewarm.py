"""Whether a model whose learning rate has decayed must be warmed up again before it learns from new text."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff import stats
from bakeoff.errors import StoreError
from bakeoff.metric import Metric, ratio
from bakeoff.store import address
from bakeoff.study import Arm, Lab, study
from bakeoff.text import installed

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from bakeoff.training.run import Run

UPSTREAM, DOWNSTREAM = "upstream", "downstream"
METRICS = (
    Metric("downstream_loss", "nats/byte", "lower", "on held-out downstream text at the end"),
    Metric("upstream_loss", "nats/byte", "lower", "on held-out upstream text at the end"),
    Metric("tuning_loss", "nats/byte", "lower", "on downstream text for choosing the rate from scratch"),
    Metric("downstream_early", "nats/byte", "lower", "mean downstream loss in the first tenth of the run"),
    Metric(
        "downstream_rise", "nats/byte", "lower", "greatest downstream loss in the first tenth, above that before it"
    ),
    Metric("upstream_rise", "nats/byte", "lower", "greatest upstream loss in the first tenth, above that before it"),
)
LEAST = 0.1  # of the greatest learning rate, where every cosine ends
WARM_UP = 0.01


@study(
    slug="rewarm",
    claim=(
        "Continuing from a decayed checkpoint, raising the learning rate again first raises the loss, and in the "
        "long run gives a lower downstream loss than keeping it low or training from scratch."
    ),
    source=(
        "Gupta et al. 2023, arXiv:2308.04014, abstract and conclusion; warm-up lengths, factors on the greatest "
        "rate, its floor and the optimizer's constants from memory of the paper"
    ),
    expectation=(
        "All runs of one length, their decay completed. Re-warmed to the upstream run's greatest rate, the model "
        "ends with a lower downstream loss than at the constant final rate, by 0.02 to 0.1 nats at this scale, and "
        "than one trained from scratch on the downstream text at its own tuned rate. Re-warmed to twice the rate it "
        "also ends below the constant rate. The upstream loss at the end is higher after twice the rate than after "
        "half. The length of the warm-up, none against 2%, changes the downstream loss by less than 0.02 nats. Re-"
        "warming first raises the upstream loss, raises it when the text stays the same too, and is early on worse "
        "downstream than the constant rate. Refuted if the constant rate ends lowest downstream, or if training from "
        "scratch beats re-warming. Noted without weight: the checkpoint halfway, the optimizer's state loaded, a "
        "short run, and the continuation of the same text at the constant rate with the state loaded, which must go "
        "on without a jump."
    ),
    scales={
        "smoke": {
            "seeds": 1, "seeds_beside": 1, "upstream_steps": 6, "steps": 6, "short_steps": 3,
            "rows": 2, "length": 16, "width": 16, "layers": 1,
            "rate": 3e-3, "tried": (1.0,), "exam_windows": 4, "along_windows": 2,
        },
        "laptop": {
            "seeds": 4, "seeds_beside": 1, "upstream_steps": 2000, "steps": 1000, "short_steps": 250,
            "rows": 8, "length": 64, "width": 32, "layers": 2, "rate": 1.2e-2,
            "tried": (0.5, 1.0, 2.0, 4.0), "exam_windows": 128, "along_windows": 32,
        },
        "gpu": {
            "seeds": 5, "seeds_beside": 5, "upstream_steps": 8000, "steps": 4000, "short_steps": 1000,
            "rows": 16, "length": 128, "width": 128, "layers": 4, "rate": 4e-3,
            "tried": (0.5, 1.0, 2.0, 4.0), "exam_windows": 256, "along_windows": 64,
        },
    },
    parts=("training/optimizers.py", "text/byte_stream.py"),
)  # fmt: skip
def rewarm(
    lab: Lab,
    *,
    seeds_beside: int,
    upstream_steps: int,
    steps: int,
    short_steps: int,
    rows: int,
    length: int,
    width: int,
    layers: int,
    rate: float,
    tried: tuple[float, ...],
    exam_windows: int,
    along_windows: int,
) -> None:
    """Train upstream once for every seed, then go on from there in every way that the expectation names.

    `rate` is the upstream run's greatest learning rate; a run from scratch may take any of its multiples in `tried`.
    `short_steps` is the length of the short downstream runs. `seeds_beside` is the number of seeds of the configurations
    that are there for the notes alone.
    """
    texts = _texts(lab)
    shared: dict[str, Any] = {
        "text": address(texts), "rows": rows, "length": length, "width": width, "layers": layers,
        "exam_windows": exam_windows, "along_windows": along_windows, "upstream_steps": upstream_steps, "upstream_rate": rate,
    }  # fmt: skip
    streams = Streams(texts)

    def learn(label: str, starts: Sequence[Path] = (), own: Lab = lab, budget: int = steps, **conditions: Any) -> Arm:
        values: dict[str, Any] = {
            "on": DOWNSTREAM, "rate": rate, "warm_up": WARM_UP, "least": LEAST, "begin": "scratch", "state": "fresh",
            "snapshots": (), "steps": budget, **conditions,
        }  # fmt: skip
        places = dict(zip(own.seeds, starts, strict=False))

        def work(run: Run, folder: Path, **given: Any) -> Mapping[str, NDArray[np.float64]]:
            return _learn(run, folder, streams, places.get(run.seed), given)

        return own.measured(label, METRICS, work, f"{budget}steps", **values, **shared)

    upstream = learn(UPSTREAM, budget=upstream_steps, on=UPSTREAM, snapshots=(upstream_steps // 2, upstream_steps))

    def go_on(label: str, **conditions: Any) -> Arm:
        return learn(label, upstream.results, **{"begin": upstream_steps, **conditions})

    few = replace(lab, seeds=lab.seeds[:seeds_beside])
    low = {"rate": LEAST * rate, "least": 1.0, "warm_up": 0.0}
    constant = go_on("constant", **low)
    warmed = {factor: go_on(f"re-warmed to {factor:g}x", rate=factor * rate) for factor in (0.5, 1.0, 2.0)}
    by_warm_up = {share: go_on(f"warm-up {share:.1%}", warm_up=share) for share in (0.0, 0.02)}
    from_scratch = {
        factor: learn(f"scratch at {factor:g}x, first seed", own=replace(lab, seeds=lab.seeds[:1]), rate=factor * rate)
        for factor in tried
    }
    best = min(from_scratch, key=lambda factor: from_scratch[factor].mean("tuning_loss"))
    scratch = learn("scratch", rate=best * rate)
    same = go_on("re-warmed on the same text", on=UPSTREAM)
    beside = {
        "warm-up 0.5%": go_on("warm-up 0.5%", own=few, warm_up=0.005),
        "from the checkpoint halfway": go_on("re-warmed from halfway", own=few, begin=upstream_steps // 2),
        "optimizer's state loaded": go_on("re-warmed, state loaded", own=few, state="loaded"),
        "constant, optimizer's state loaded": go_on("constant, state loaded", own=few, state="loaded", **low),
    }
    control = go_on("the same text, constant, state loaded", own=few, on=UPSTREAM, state="loaded", **low)
    short = {
        "constant": go_on("constant, short", own=few, budget=short_steps, **low),
        "re-warmed": go_on("re-warmed, short", own=few, budget=short_steps),
    }

    def expect(sentence: str, metric: str, one: Arm, other: Arm, **bounds: float) -> None:
        lab.expect(sentence, lab.contrast(metric, {one: 1, other: -1}), **bounds)

    rewarmed = warmed[1.0]
    expect("downstream loss, re-warmed less constant", "downstream_loss", rewarmed, constant, below=0)
    expect("downstream loss, re-warmed less scratch", "downstream_loss", rewarmed, scratch, below=0)
    expect("downstream loss, re-warmed to 2x less constant", "downstream_loss", warmed[2.0], constant, below=0)
    expect("upstream loss, re-warmed to 2x less to 0.5x", "upstream_loss", warmed[2.0], warmed[0.5], above=0)
    for bound in ({"above": -0.02}, {"below": 0.02}):
        expect("downstream loss, no warm-up less 2%", "downstream_loss", by_warm_up[0.0], by_warm_up[0.02], **bound)
    for sentence, arm in (("re-warmed", rewarmed), ("re-warmed on the same text", same)):
        rise = arm.arrays["upstream_rise"][:, 0, 0]
        effect = stats.paired_effect_by_seed(rise, np.zeros_like(rise))
        lab.expect(f"rise of the upstream loss in the first tenth, {sentence}", effect, above=0)
    expect(
        "downstream loss in the first tenth, re-warmed less constant", "downstream_early", rewarmed, constant, above=0
    )

    def against(arm: Arm, whole: Arm) -> dict[str, dict[str, float | None]]:
        other = replace(whole, arrays={name: values[:seeds_beside] for name, values in whole.arrays.items()})
        effects = {metric: lab.contrast(metric, {arm: 1, other: -1}) for metric in ("downstream_loss", "upstream_loss")}
        return {metric: {"effect": e.effect, "low": e.low, "high": e.high} for metric, e in effects.items()}

    lab.notes["rate from scratch, in upstream rates"] = {
        "tuning loss": {f"{factor:g}": arm.mean("tuning_loss") for factor, arm in from_scratch.items()},
        "best": best,
    }
    lab.notes["less the re-warmed"] = {name: against(arm, rewarmed) for name, arm in beside.items()}
    lab.notes["re-warmed less constant, short run"] = against(short["re-warmed"], short["constant"])
    lab.notes["greatest rise in the first tenth, downstream"] = {
        arm.label: arm.mean("downstream_rise") for arm in (constant, *warmed.values(), *by_warm_up.values())
    }
    lab.notes["greatest rise in the first tenth, same text, state loaded, constant rate"] = control.mean(
        "upstream_rise"
    )
    lab.notes["steps done: upstream/downstream loss"] = {
        arm.label: _along(arm) for arm in (constant, *warmed.values(), by_warm_up[0.0], scratch, same, control)
    }


class Streams:
    """The texts as bytes: four fifths are learned, one document in ten is for the exam, one for choosing a rate."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        from bakeoff.text.byte_stream import byte_stream

        self.learned: dict[str, Tensor] = {}
        self.exam: dict[str, Tensor] = {}
        for name in (UPSTREAM, DOWNSTREAM):
            documents = texts[name]
            self.learned[name] = byte_stream(text for i, text in enumerate(documents) if i % 10 > 1)
            self.exam[name] = byte_stream(documents[::10])
        self.tuning = byte_stream(texts[DOWNSTREAM][1::10])


def _learn(
    run: Run, folder: Path, streams: Streams, start: Path | None, values: Mapping[str, Any]
) -> dict[str, NDArray[np.float64]]:
    """One training, from scratch or from a snapshot of the upstream run in `start`, and its losses."""
    import torch

    from bakeoff.lm import DecoderConfig, DecoderForCausalLM
    from bakeoff.text.byte_stream import BYTES, evenly
    from bakeoff.training import checkpoint
    from bakeoff.training.along import Along
    from bakeoff.training.batches import Windows, derived_seed
    from bakeoff.training.optimizers import adamw
    from bakeoff.training.schedules import cosine

    torch.manual_seed(derived_seed(run.seed, "weights"))
    width, length, steps, text = values["width"], values["length"], values["steps"], values["on"]
    model = DecoderForCausalLM(
        DecoderConfig(
            vocab_size=BYTES, hidden_size=width, num_hidden_layers=values["layers"],
            num_attention_heads=max(1, width // 32), max_position_embeddings=length,
        )
    ).to(run.device)  # type: ignore[arg-type]  # fmt: skip
    state: Mapping[str, Any] | None = None
    read = 0
    if start is not None:
        saved = checkpoint.read(start / str(values["begin"]))
        if saved is None:
            raise StoreError(
                f"The upstream run's snapshot in {start} is damaged: remove that folder and run the study again."
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(saved["parameters"][name])
        state = saved["optimizer"]["state"] if values["state"] == "loaded" else None
        # More of the upstream text begins where the upstream run stopped reading.
        read = values["begin"] if text == UPSTREAM else 0

    windows = Windows(streams.learned[text], values["rows"], length, derived_seed(run.seed, text))
    few = {name: evenly(held, values["along_windows"], length) for name, held in streams.exam.items()}

    def measure() -> list[float]:
        return [float(ratio(losses(model, few[name]).sum(axis=0))) for name in (UPSTREAM, DOWNSTREAM)]

    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
        made.append(adamw(decay=0.1, independent=False)(parameters, rate))
        if state is not None:
            made[0].load_state_dict({"state": state, "param_groups": made[0].state_dict()["param_groups"]})
        return made[0]

    # Many looks where the loss may rise, few later.
    tenth = max(1, steps // 10)
    looks = {max(1, round(tenth * i / 8)) for i in range(1, 9)} | {tenth * i for i in range(2, 10)} | {steps}
    along, snapshots = Along(run.folder / "along.json", looks, measure), run.folder / "snapshots"

    def after_step(step: int) -> None:
        along(step)
        if step + 1 in values["snapshots"]:
            kept = {"parameters": dict(model.named_parameters()), "optimizer": made[0].state_dict()}
            checkpoint.write(snapshots / str(step + 1), step + 1, kept)

    before = measure()
    run.train(
        model, lambda step: windows(step + read), learning_rate=values["rate"], optimizer=optimizer,
        schedule=cosine(values["warm_up"], least=values["least"]), after_step=after_step, spike=math.inf,
    )  # fmt: skip
    if snapshots.exists():
        shutil.copytree(snapshots, folder, dirs_exist_ok=True)
    seen = {0: before, **along.read()}
    run.notes["along"] = {str(done): pair for done, pair in seen.items()}
    early = np.array([pair for done, pair in seen.items() if 0 < done <= tenth])
    rise = early.max(axis=0) - np.array(before)
    exams = {
        "downstream_loss": streams.exam[DOWNSTREAM], "upstream_loss": streams.exam[UPSTREAM], "tuning_loss": streams.tuning
    }  # fmt: skip
    return {
        **{name: losses(model, evenly(held, values["exam_windows"], length)) for name, held in exams.items()},
        "downstream_early": np.array([[early[:, 1].mean(), 1.0]]),
        "downstream_rise": np.array([[rise[1], 1.0]]),
        "upstream_rise": np.array([[rise[0], 1.0]]),
    }


def losses(model: PreTrainedModel, windows: Tensor) -> NDArray[np.float64]:
    """[windows, 2]: the sum of each window's losses (nats) and the number of tokens that it sums."""
    from bakeoff.lm.score import token_statistics

    found = token_statistics(model, [(window, window) for window in windows])
    return np.array([(each.total, each.tokens) for each in found], float)


def _along(arm: Arm) -> str:
    """Number of steps done, upstream and downstream loss, mean over the seeds."""
    by_seed = [record["notes"]["along"] for record in arm.records]
    means = {done: np.mean([notes[done] for notes in by_seed], axis=0) for done in by_seed[0]}
    return ", ".join(f"{done}: {up:.3f}/{down:.3f}" for done, (up, down) in means.items())


def _texts(lab: Lab) -> dict[str, list[str]]:
    """Documents of encyclopedia articles, then of many genres; at smoke scale of the Python reference, then of docstrings."""
    if lab.scale == "smoke":
        kinds = {
            UPSTREAM: installed("reference", limit=60_000),
            DOWNSTREAM: installed("docstrings", limit=60_000, packages=["stdlib"]),
        }
        return {name: [example.text for example in examples] for name, examples in kinds.items()}
    parts = [lab.corpus(f"text/wikitext2_raw_{part}.txt").read_text("utf-8") for part in ("valid", "test")]
    # Articles begin with a line of the form " = Title = ".
    articles = [article for part in parts for article in re.split(r"\n(?= = [^=])", part)]
    genres = [json.loads(line)["text"] for line in lab.corpus("text/masc_plain.jsonl").read_text("utf-8").splitlines()]
    return {UPSTREAM: articles, DOWNSTREAM: genres}
