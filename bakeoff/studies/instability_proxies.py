"""How much the final loss depends on the learning rate, with and without what is said to keep large models stable."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff import stats
from bakeoff.errors import TrainingDiverged
from bakeoff.metric import Metric
from bakeoff.store import address
from bakeoff.study import Arm, Lab, study
from bakeoff.text import installed

if TYPE_CHECKING:
    from torch import Tensor

    from bakeoff.training.run import Run

METRICS = (
    Metric(
        "sensitivity", "nats", "lower", "loss above the sweep's best, at most that at initialisation, mean over rates"
    ),
    Metric("best_loss", "nats", "lower", "held-out loss at the sweep's best learning rate"),
    Metric("loss", "nats", "lower", "held-out loss at each rate, that at initialisation where training diverged"),
    Metric("breaking_rate", "log10", "higher", "rate from which the loss lies 0.2 nats above the sweep's best"),
    Metric("diverged", "share", "lower", "runs that ended with an infinite loss or one above that at initialisation"),
    Metric("attention_logit", "log10", "lower", "greatest attention logit early in training, at each rate"),
    Metric("log_z", "nats", "lower", "distance from 0 of the mean log Z at the end, at each rate"),
    Metric("parameters", "parameters", "lower", "size of the model"),
)
# What an arm may change; the other values of a sweep come from the scale.
DEFAULT: Mapping[str, Any] = {
    "qk_norm": True, "z": 1e-4, "decayed": True, "independent": True, "warm_up_factor": 1, "muparam": False, "depth": 1,
    "epsilon": 1e-8,
}  # fmt: skip
BARE, DEFAULTS = "no qk-norm", "default"
BESIDE: Mapping[str, Mapping[str, Any]] = {
    "no qk-norm, no z-loss": {"qk_norm": False, "z": 0.0},
    "no z-loss": {"z": 0.0},
    "coupled decay": {"independent": False},
    "muParam": {"muparam": True},
    "muParam, no qk-norm": {"muparam": True, "qk_norm": False},
    "twice as deep": {"depth": 2},
    "twice as deep, no qk-norm": {"depth": 2, "qk_norm": False},
    "Adam's epsilon 1e-15": {"epsilon": 1e-15},
    "Adam's epsilon 1e-6": {"epsilon": 1e-6},
}


@study(
    slug="instability-proxies",
    claim=(
        "Growth of attention logits and of output logits at high learning rates appears in small models, and qk-"
        "norm, z-loss and a long warm-up lower the sensitivity of the final loss to the learning rate."
    ),
    source=(
        "Wortsman et al. 2023, arXiv:2309.14322, section 3; the form of the extrapolation and of muParam from memory "
        "of the paper"
    ),
    expectation=(
        "Sensitivity is the mean over the sweep's learning rates of the final held-out loss, at most that at "
        "initialisation, less the sweep's best. At the greatest width qk-norm lowers it, to at most 0.7 of what it "
        "is without. Without qk-norm the greatest attention logit, measured early, rises with the learning rate, and "
        "the rate from which the loss lies 0.2 nats above its best is lower at the greatest width than at the "
        "smallest. The best loss with qk-norm lies within 0.1 nats of that without. Without weight decay, z-loss "
        "brings log Z nearer to 0 at the end. A warm-up of a quarter of the steps raises sensitivity. Refuted if "
        "sensitivity is not lower with qk-norm at the greatest width, or if the logit does not rise with the rate "
        "without it. Noted without weight: z-loss without qk-norm, coupled decay, muParam, depth, Adam's epsilon, "
        "sensitivity by width, and how well the logits of the largest model are foretold by those of the smaller "
        "ones."
    ),
    scales={
        "smoke": {
            "seeds": 1, "seeds_beside": 1, "steps": 6, "early": 3, "warm_up": 2, "rows": 2, "length": 16, "windows": 2,
            "layers": 1, "head_width": 4, "widths": (8, 16), "rates": (1e-3, 1e-2), "decay": 1e-3,
            "beside": ("muParam",),
        },
        "laptop": {
            "seeds": 3, "seeds_beside": 1, "steps": 160, "early": 60, "warm_up": 40, "rows": 8, "length": 64, "windows": 64,
            "layers": 2, "head_width": 16, "widths": (32, 64), "rates": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
            "decay": 1e-3, "beside": ("no qk-norm, no z-loss", "coupled decay", "muParam", "twice as deep, no qk-norm"),
        },
        "gpu": {
            "seeds": 3, "seeds_beside": 3, "steps": 2000, "early": 200, "warm_up": 200, "rows": 32, "length": 256,
            "windows": 128, "layers": 4, "head_width": 32, "widths": (64, 128, 256, 512),
            "rates": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1), "decay": 1e-4, "beside": tuple(BESIDE),
        },
    },
    parts=("training/stability.py", "training/optimizers.py", "text/byte_stream.py"),
)  # fmt: skip
def instability_proxies(
    lab: Lab,
    *,
    seeds_beside: int,
    steps: int,
    early: int,
    warm_up: int,
    rows: int,
    length: int,
    windows: int,
    layers: int,
    head_width: int,
    widths: tuple[int, ...],
    rates: tuple[float, ...],
    decay: float,
    beside: tuple[str, ...],
) -> None:
    """Train at every rate of the sweep: with and without qk-norm at all widths, the other arms at the greatest.

    `steps` and `warm_up` are of each run; after `early` steps the attention logits are looked at. `rates` are equally
    spaced in their logarithm. `decay` is the share of the weights that a step takes away at the full rate. `seeds_beside`
    is the number of seeds of the arms named in `beside`, which are there for the notes alone.
    """
    from bakeoff.text.byte_stream import byte_stream

    texts = _texts(lab)
    learned, held = map(byte_stream, texts)
    shared = {
        "rates": rates, "steps": steps, "early": early, "warm_up": warm_up, "rows": rows, "length": length,
        "windows": windows, "layers": layers, "head_width": head_width, "base_width": min(widths), "decay": decay,
        "text": address({"learned": texts[0], "held": texts[1]}),
    }  # fmt: skip
    swept: dict[str, Arm] = {}

    def sweep(name: str, width: int = max(widths), own: Lab = lab, **changed: object) -> Arm:
        label, conditions = f"{name}, width {width}", {**DEFAULT, **changed, **shared, "width": width}

        def work(run: Run, folder: Path, **values: Any) -> Mapping[str, NDArray[np.float64]]:
            return _sweep(run, learned, held, values)

        swept[label] = own.measured(label, METRICS, work, f"{steps * len(rates)}steps", **conditions)
        return swept[label]

    stable = [sweep(DEFAULTS, width) for width in widths]
    bare = [sweep(BARE, width, qk_norm=False) for width in widths]
    hasty = sweep("short warm-up", warm_up_factor=0.25)
    drifting, held_down = sweep("no decay, no z-loss", decayed=False, z=0.0), sweep("no decay", decayed=False)
    for name in beside:
        sweep(name, own=replace(lab, seeds=lab.seeds[:seeds_beside]), **BESIDE[name])

    def expect(sentence: str, values: NDArray[np.float64], **bounds: float) -> None:
        lab.expect(sentence, stats.paired_effect_by_seed(values, np.zeros_like(values)), **bounds)

    with_norm, without = (_by_seed(arm, "sensitivity") for arm in (stable[-1], bare[-1]))
    expect("sensitivity at the greatest width, with qk-norm less without", with_norm - without, below=0)
    expect("sensitivity with qk-norm less 0.7 of that without", with_norm - 0.7 * without, below=0)
    expect("decades of attention logit a decade of learning rate, without qk-norm", _slopes(bare[-1], rates), above=0)
    breaks = _by_seed(bare[-1], "breaking_rate") - _by_seed(bare[0], "breaking_rate")
    expect("rate where training breaks without qk-norm, greatest width less smallest, decades", breaks, below=0)
    best = _by_seed(stable[-1], "best_loss") - _by_seed(bare[-1], "best_loss")
    for bound in ({"above": -0.1}, {"below": 0.1}):
        expect("loss at the best rate, with qk-norm less without", best, **bound)
    drift = _by_seed(held_down, "log_z") - _by_seed(drifting, "log_z")
    expect("distance of log Z from 0 without decay, with z-loss less without", drift, below=0)
    expect("sensitivity, short warm-up less four times as long", _by_seed(hasty, "sensitivity") - with_norm, above=0)

    lab.notes["by learning rate"] = {
        label: {metric: _by_rate(arm, metric, rates) for metric in ("loss", "attention_logit", "log_z")}
        for label, arm in swept.items()
    }
    lab.notes["attention logits of the largest model without qk-norm"] = _foretold(
        [arm for label, arm in swept.items() if label.startswith((BARE + ", width", "twice as deep, no qk"))], rates
    )


def _sweep(run: Run, learned: Tensor, held: Tensor, values: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Train the same initial model at every rate, and measure. Rows are rates, or the one row of the whole sweep."""
    import torch

    from bakeoff.lm import DecoderConfig, DecoderForCausalLM
    from bakeoff.text.byte_stream import BYTES, evenly
    from bakeoff.training.along import Along
    from bakeoff.training.batches import Windows, derived_seed
    from bakeoff.training.optimizers import adamw, hidden_matrices
    from bakeoff.training.schedules import cosine
    from bakeoff.training.stability import breaking_rate, sensitivity, z_loss

    width, steps, rates = values["width"], values["steps"], values["rates"]
    narrower = values["base_width"] / width if values["muparam"] else 1.0
    config = DecoderConfig(
        vocab_size=BYTES, hidden_size=width, num_hidden_layers=values["layers"] * values["depth"],
        num_attention_heads=width // values["head_width"], intermediate_size=4 * width,
        max_position_embeddings=values["length"], mlp="gelu", norm="layer", qk_norm=values["qk_norm"],
        tie_word_embeddings=False, initialization="fan_in", logit_scale=narrower,
    )  # fmt: skip
    batches = Windows(learned, values["rows"], values["length"], derived_seed(run.seed, "batches"))
    exam = evenly(held, values["windows"], values["length"]).to(run.device)
    few = exam[: max(1, len(exam) // 4)]

    def made() -> DecoderForCausalLM:
        torch.manual_seed(derived_seed(run.seed, "weights"))
        model = DecoderForCausalLM(config)
        model.to(run.device)  # type: ignore[arg-type]
        return model

    initial, _, _ = examined(made(), exam)
    results: list[dict[str, float | None]] = []
    for number, rate in enumerate(rates):
        model = made()

        def logit(model: DecoderForCausalLM = model) -> list[float]:
            return [examined(model, few)[2]]

        along = Along(run.folder / f"logit-{number}.json", [values["early"]], logit)
        multipliers = dict.fromkeys(hidden_matrices(model), narrower) if values["muparam"] else None
        # Coupled decay takes as much as independent decay at the middle of the sweep, whose rate is 1e-2.
        decay = (values["decay"] if values["independent"] else values["decay"] / 1e-2) if values["decayed"] else 0.0
        loss, log_z = math.inf, None
        try:
            run.train(
                model, batches, learning_rate=rate, objective=z_loss(values["z"]), share=1 / len(rates),
                after_step=along, spike=math.inf,
                optimizer=adamw(
                    decay=decay, independent=values["independent"], epsilon=values["epsilon"], multipliers=multipliers
                ),
                schedule=cosine(values["warm_up"] * values["warm_up_factor"] / steps, least=min(1.0, 1e-5 / rate)),
            )  # fmt: skip
            loss, log_z, _ = examined(model, exam)
        except TrainingDiverged as stopped:
            run.notes.setdefault("diverged", {})[f"{rate:g}"] = str(stopped)
        greatest = along.read().get(values["early"], [None])[0]
        results.append(
            {
                "loss": loss,
                "attention_logit": math.log10(greatest) if greatest else None,
                "log_z": None if log_z is None else abs(log_z),
            }
        )
    losses = [math.inf if result["loss"] is None else result["loss"] for result in results]
    capped = [min(loss, initial) if math.isfinite(loss) else initial for loss in losses]
    run.notes["loss at initialisation"] = initial
    return {
        "sensitivity": np.array([[sensitivity(losses, initial), 1.0]]),
        "best_loss": np.array([[min(capped), 1.0]]),
        "breaking_rate": np.array([[math.log10(breaking_rate(rates, capped, 0.2)), 1.0]]),
        "loss": np.array([[loss, 1.0] for loss in capped]),
        "diverged": np.array([[float(not loss < initial), 1.0] for loss in losses]),
        "parameters": np.array([[float(sum(p.numel() for p in made().parameters())), 1.0]]),
        **{name: np.array([_known(result[name]) for result in results]) for name in ("attention_logit", "log_z")},
    }


def examined(model: Any, windows: Tensor) -> tuple[float, float, float]:
    """Mean loss and mean log Z over the windows [n, length], and the greatest attention logit in them."""
    import torch

    from bakeoff.lm.attention import watch_attention

    learning = model.training
    model.eval()
    with torch.inference_mode(), watch_attention(model) as watch:
        logits = model(input_ids=windows, use_cache=False).logits[:, :-1].float()
        log_z = logits.logsumexp(-1)
        loss = (log_z - logits.gather(-1, windows[:, 1:, None])[..., 0]).mean()
    model.train(learning)
    return float(loss), float(log_z.mean()), watch.greatest


def _known(value: float | None) -> list[float]:
    """A value and how often it counts: not at all where a run diverged before it could be measured."""
    return [0.0, 0.0] if value is None or not math.isfinite(value) else [value, 1.0]


def _by_seed(arm: Arm, metric: str) -> NDArray[np.float64]:
    sums = arm.arrays[metric].sum(axis=1)
    return np.asarray(sums[:, 0] / sums[:, 1])


def _by_rate(arm: Arm, metric: str, rates: Sequence[float]) -> dict[str, float | None]:
    sums = arm.arrays[metric].sum(axis=0)
    return {
        f"{rate:g}": float(total / count) if count else None for rate, (total, count) in zip(rates, sums, strict=True)
    }


def _slopes(arm: Arm, rates: Sequence[float]) -> NDArray[np.float64]:
    """Each seed's slope of log10 of the greatest attention logit over log10 of the rate, where it was measured."""
    slopes = []
    for values in arm.arrays["attention_logit"]:
        kept = values[:, 1] > 0
        slopes.append(np.polyfit(np.log10(np.array(rates)[kept]), values[kept, 0], 1)[0])
    return np.array(slopes)


def _foretold(arms: Sequence[Arm], rates: Sequence[float]) -> dict[str, Any]:
    """The logits of the largest of these models, measured and as the smaller ones let one expect."""
    from bakeoff.training.stability import extrapolate

    *smaller, largest = sorted(arms, key=lambda arm: arm.mean("parameters"))
    if len(smaller) < 2:
        return {"too few sizes": len(arms)}
    points = [
        (arm.mean("parameters"), rate, 10.0**value)
        for arm in smaller
        for of_seed in arm.arrays["attention_logit"]
        for rate, (value, known) in zip(rates, of_seed, strict=True)
        if known
    ]
    sizes, at, logits = (list(column) for column in zip(*points, strict=True))
    foretold = extrapolate(sizes, at, logits, largest.mean("parameters"), rates)
    measured = _by_rate(largest, "attention_logit", rates)
    pairs = {rate: (logit, 10.0**seen) for (rate, seen), logit in zip(measured.items(), foretold, strict=True) if seen}
    return {
        "largest": largest.label,
        "foretold and measured": {rate: list(pair) for rate, pair in pairs.items()},
        "mean error, decades": float(np.mean([abs(math.log10(one / other)) for one, other in pairs.values()])),
    }


def _texts(lab: Lab) -> tuple[list[str], list[str]]:
    """Documents to learn, and one in ten held out."""
    if lab.scale == "smoke":
        documents = [example.text for example in installed("reference", limit=60_000)]
    else:
        parts = [lab.corpus(f"text/wikitext2_raw_{part}.txt").read_text("utf-8") for part in ("valid", "test")]
        # Articles begin with a line of the form " = Title = ".
        documents = [article for part in parts for article in re.split(r"\n(?= = [^=])", part)]
    return [text for i, text in enumerate(documents) if i % 10], documents[::10]
