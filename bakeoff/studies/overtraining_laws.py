"""Whether a law fitted to small models foretells the loss and the errors of larger and of over-trained ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff import laws, stats
from bakeoff.metric import Metric
from bakeoff.store import address
from bakeoff.study import Arm, Lab, study
from bakeoff.text import documents, installed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from bakeoff.training.run import Run

Floats = NDArray[np.float64]

METRICS = (
    Metric("test_loss", "nats/byte", "lower", "on held-out text"),
    Metric("validation_loss", "nats/byte", "lower", "on other held-out text, for choosing the learning rate"),
    Metric("error", "share", "lower", "wrong choices of the true continuation among four, mean over three lengths"),
)
CONTEXT, CONTINUATIONS = 32, (4, 8, 16)  # bytes
CHOICES = 4
GROUPS = 64  # of windows, that are an item each
RATE = 0.32  # learning rate times width, in the middle of those that are tried


@dataclass(frozen=True)
class Point:
    """A model of `parameters` after `tokens`: its arm has test loss and error by seed."""

    parameters: int
    tokens: int
    arm: Arm

    def by_seed(self, metric: str) -> Floats:
        """[seeds]"""
        return self.arm.metric(metric).reduce(self.arm.arrays[metric].sum(axis=1))


@study(
    slug="overtraining-laws",
    claim="Loss of an over-trained model and its average error on tasks follow a law fitted to small, less trained models.",
    source="Gadre et al. 2024, arXiv:2403.08540, with the authors' fits, settings and losses (GitHub: mlfoundations/scaling); "
    "here without z-loss, with a warm-up of 5% of each run, and with one batch size",
    expectation=(
        "The loss law is fitted, seed by seed, to four models at 20 tokens a parameter and to the smallest at 320, each at the "
        "learning rate that is best for its size at 20 on validation text. It foretells the test loss of the fourth at 160 "
        "tokens a parameter and of one 2.4 times larger at 20 to within 3% (the paper: 0.7% at 300 times the compute of the "
        "whole fit; here at 3 to 4 times), the over-trained one better than a power law in compute alone fitted at 20. Lines "
        "of the logarithm of the reducible loss over that of compute have slopes at 160 tokens a parameter that differ from "
        "those at 20 by less than a quarter. The error law, fitted to the same five models, foretells from "
        "the foretold losses the error in choosing true continuations to within 5%, and better than the error of the largest "
        "model in its fit. Refuted if the law without multiplier does as well, if the lines are not parallel, or if a loss is "
        "more than 5% off. Noted without weight: errors relative to the reducible loss, what leaving out each point changes, "
        "exponents fitted freely."
    ),
    scales={
        "smoke": {
            "seeds": 1, "widths": (4, 6, 8, 10, 14), "rows": 4, "layers": 1, "length": 16, "multipliers": (0.5, 1, 4),
            "rates": (1.0,), "windows": 64, "items": 16,
        },
        "laptop": {
            "seeds": 3, "widths": (8, 12, 16, 24, 40), "rows": 4, "layers": 2, "length": 64, "multipliers": (20, 160, 320),
            "rates": (0.5, 1.0, 2.0), "windows": 1024, "items": 512,
        },
        "gpu": {
            "seeds": 5, "widths": (8, 12, 16, 24, 64), "rows": 4, "layers": 2, "length": 64, "multipliers": (20, 160, 640),
            "rates": (0.25, 0.5, 1.0, 2.0, 4.0), "windows": 4096, "items": 2048,
        },
    },
    parts=("laws.py", "text/byte_stream.py"),
)  # fmt: skip
def overtraining_laws(
    lab: Lab,
    *,
    widths: Sequence[int],
    rows: int,
    layers: int,
    length: int,
    multipliers: Sequence[float],
    rates: Sequence[float],
    windows: int,
    items: int,
) -> None:
    """Choose a rate for every size, train the models of the fit and those to be foretold, and compare.

    `widths` are four of the fit and the larger one to foretell. `multipliers` are the tokens per parameter of the fit, of
    the over-trained model to foretell and of the line that it ends, and of the fit's smallest model once more. `rates` are
    the learning rates to try, in units of `RATE` / width.
    """
    base, over, most = multipliers
    texts = _texts(lab)
    held = _Held(texts, windows, length, items)
    shared = {
        "text": address({"pieces": texts}), "rows": rows, "layers": layers, "length": length, "windows": windows, "items": items
    }  # fmt: skip
    best: dict[int, float] = {}

    def learn(own: Lab, width: int, multiplier: float, rate: float) -> Point:
        parameters, size = _model(width, layers, length).num_parameters(), rows * length
        steps = max(2, round(multiplier * parameters / size))

        def work(run: Run, folder: Path, **given: Any) -> Mapping[str, Floats]:
            return _learn(run, held, width=width, rows=rows, rate=rate, layers=layers)

        label = f"{parameters} parameters, {multiplier:g} tokens each, rate {rate:g}"
        arm = own.measured(label, METRICS, work, f"{steps}steps", width=width, rate=rate, **shared)
        return Point(parameters, steps * size, arm)

    first = replace(lab, seeds=lab.seeds[:1])
    for width in widths:
        of_width = [factor * RATE / width for factor in rates]
        tried = {rate: learn(first, width, base, rate).arm.mean("validation_loss") for rate in of_width}
        best[width] = min(tried, key=lambda rate: tried[rate])
        lab.notes.setdefault("validation loss by rate, first seed", {})[f"width {width}"] = {
            f"{rate:g}": loss for rate, loss in tried.items()
        }

    def point(width: int, multiplier: float) -> Point:
        return learn(lab, width, multiplier, best[width])

    *small, largest = widths
    level = [point(width, base) for width in small]
    fitted = [*level, point(small[0], most)]
    aims = {"over-trained": point(small[-1], over), "larger": point(largest, base)}
    second = [point(small[0], over), aims["over-trained"]]

    outcome = foretell(level, fitted, second, list(aims.values()))
    for place, (name, aim) in enumerate(aims.items()):
        relative = np.abs(outcome.loss[:, place] / aim.by_seed("test_loss") - 1)
        lab.expect(f"relative error of the loss, {name} model", _by_seed(relative), below=0.03)
    true = aims["over-trained"].by_seed("test_loss")
    better = (np.abs(outcome.loss[:, 0] - true) - np.abs(outcome.agnostic[:, 0] - true)) / true
    lab.expect(
        "relative error of the loss, over-trained model, less that of the law in compute alone",
        _by_seed(better),
        below=0,
    )
    lab.expect(
        "relative difference of the lines' slopes at two multipliers", _by_seed(np.abs(outcome.slopes)), below=0.25
    )
    for place, (name, aim) in enumerate(aims.items()):
        wrong = aim.by_seed("error")
        relative, carried = np.abs(outcome.error[:, place] / wrong - 1), np.abs(level[-1].by_seed("error") / wrong - 1)
        lab.expect(f"relative error of the error rate, {name} model", _by_seed(relative), below=0.05)
        lab.expect(
            f"relative error of the error rate, {name} model, less that of carrying over the last model's",
            _by_seed(relative - carried),
            below=0,
        )
    _note(lab, fitted, second, aims, outcome)


@dataclass(frozen=True)
class Outcome:
    """What the laws of each seed say of the points to be foretold, and by how much the slopes differ.

    loss, agnostic, error: [seeds, points], by the loss law, by the law in compute alone, by the error law at the loss law's
    losses. slopes: [seeds], (slope at the second multiplier - slope at the first) / slope at the first.
    """

    loss: Floats
    agnostic: Floats
    error: Floats
    slopes: Floats
    fits: list[laws.LossLaw]


def foretell(
    level: Sequence[Point], fitted: Sequence[Point], second: Sequence[Point], aims: Sequence[Point]
) -> Outcome:  # fmt: skip
    """Fit the laws of each seed, in compute to `level`, of loss and error to `fitted`, and foretell `aims`."""
    seeds = range(len(level[0].by_seed("test_loss")))
    loss, agnostic, error, slopes, fits = [], [], [], [], []
    for seed in seeds:
        law = laws.fit_loss(*_design(fitted), _values(fitted, "test_loss")[seed])
        loss.append(law(*_design(aims)))
        alone = laws.fit_power(_compute(level), _values(level, "test_loss")[seed])
        agnostic.append(alone(_compute(aims)))
        of_error = laws.fit_error(_values(fitted, "test_loss")[seed], _values(fitted, "error")[seed])
        error.append(of_error(loss[-1]))
        lines = [*level, *second]
        irreducible = laws.fit_loss(*_design(lines), _values(lines, "test_loss")[seed]).irreducible
        one, other = (_slope(line, _values(line, "test_loss")[seed] - irreducible) for line in (level, second))
        slopes.append(other / one - 1)
        fits.append(law)
    return Outcome(np.array(loss), np.array(agnostic), np.array(error), np.array(slopes), fits)


def _slope(line: Sequence[Point], reducible: Floats) -> float:
    # Models that learned nothing may lie below the law's floor.
    return float(np.polyfit(np.log(_compute(line)), np.log(np.maximum(reducible, 1e-3)), 1)[0])


def _design(points: Sequence[Point]) -> tuple[Floats, Floats]:
    return np.array([p.parameters for p in points], float), np.array([p.tokens for p in points], float)


def _compute(points: Sequence[Point]) -> Floats:
    parameters, tokens = _design(points)
    return laws.FLOPS * parameters * tokens


def _values(points: Sequence[Point], metric: str) -> Floats:
    """[seeds, points]"""
    return np.stack([p.by_seed(metric) for p in points], axis=1)


def _by_seed(values: Floats) -> stats.Effect:
    return stats.paired_effect_by_seed(values, np.zeros_like(values))


def _note(
    lab: Lab, fitted: Sequence[Point], second: Sequence[Point], aims: Mapping[str, Point], outcome: Outcome
) -> None:
    of_fit = _values(fitted, "test_loss")
    lab.notes["loss law by seed"] = [vars(law) | {"best_multiplier": law.best_multiplier} for law in outcome.fits]
    lab.notes["compute of the model to foretell, over that of the whole fit"] = {
        name: float(_compute([aim])[0] / _compute(fitted).sum()) for name, aim in aims.items()
    }
    every = [*fitted, *second, aims["larger"]]
    for name, (fit, points) in {
        "loss law": (laws.fit_loss, fitted),
        "free exponents, fitted to the second line's smaller models too": (
            laws.fit_free_exponents,
            [*fitted, *second[:-1]],
        ),
    }.items():
        values = _values(points, "test_loss")
        told = {}
        for place, (aim_name, aim) in enumerate(aims.items()):
            found = laws.predict(fit, _design(points), values, (aim.parameters, aim.tokens))
            measured = float(aim.by_seed("test_loss").mean())
            told[aim_name] = {
                "measured": measured, "foretold": found.value, "low": found.low, "high": found.high,
                "without each point": list(found.leave_one_out),
            }  # fmt: skip
            if fit is laws.fit_loss:
                reducible = aim.by_seed("test_loss") - np.array([law.irreducible for law in outcome.fits])
                told[aim_name] |= {
                    "relative error of the reducible loss": float(
                        np.mean(np.abs((outcome.loss[:, place] - aim.by_seed("test_loss")) / reducible))
                    ),
                    "by the law in compute alone": float(outcome.agnostic[:, place].mean()),
                }
        lab.notes[name] = told
    everywhere = laws.fit_free_exponents(*_design(every), _values(every, "test_loss").mean(axis=0))
    lab.notes["free exponents, fitted to all points"] = vars(everywhere)
    lab.notes["seeds' standard deviation of the loss, greatest"] = (
        float(np.std(of_fit, axis=0, ddof=1).max()) if len(of_fit) > 1 else None
    )


class _Held:
    """The text as bytes: what is learned, and the windows and choices that are measured, the same for every model."""

    def __init__(self, texts: Sequence[str], windows: int, length: int, items: int) -> None:
        from bakeoff.text.byte_stream import byte_stream, evenly

        self.length = length
        self.learned = byte_stream(text for i, text in enumerate(texts) if i % 20 > 1)
        test, validation = byte_stream(texts[::20]), byte_stream(texts[1::20])
        self.test, self.validation = (evenly(part, windows, length) for part in (test, validation))
        self.choices = choices(test, items)


def choices(text: Tensor, items: int) -> Tensor:
    """[items, choices, bytes]: a context with its true continuation first, then with those of contexts elsewhere."""
    import torch

    from bakeoff.text.byte_stream import evenly

    rows = evenly(text, items, CONTEXT + max(CONTINUATIONS))
    turns = [rows.roll(items * turn // CHOICES, dims=0) for turn in range(CHOICES)]
    return torch.stack([torch.cat([rows[:, :CONTEXT], turn[:, CONTEXT:]], dim=1) for turn in turns], dim=1)


def _model(width: int, layers: int, length: int) -> PreTrainedModel:
    from bakeoff.lm import DecoderConfig, DecoderForCausalLM
    from bakeoff.text.byte_stream import BYTES

    return DecoderForCausalLM(
        DecoderConfig(
            vocab_size=BYTES, hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(1, width // 16), mlp="gelu",
            qk_norm=True, max_position_embeddings=length, initialization="fan_in",
        )
    )  # fmt: skip


def _learn(run: Run, held: _Held, *, width: int, rows: int, rate: float, layers: int) -> dict[str, Floats]:
    """One training whose rate decays fully, and its measures."""
    import torch

    from bakeoff.training.batches import Windows, derived_seed
    from bakeoff.training.schedules import cosine

    def adamw(parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.033, fused=True)

    torch.manual_seed(derived_seed(run.seed, "weights"))
    model = _model(width, layers, held.length)
    model.to(run.device)  # type: ignore[arg-type]
    run.train(
        model, Windows(held.learned, rows, held.length, derived_seed(run.seed, "order")), learning_rate=rate,
        optimizer=adamw, schedule=cosine(0.05, least=0.01),
    )  # fmt: skip
    found = {}
    for name, windows in (("test_loss", held.test), ("validation_loss", held.validation)):
        sums = byte_losses(model, windows).sum(axis=1)
        found[name] = np.stack([part.sum() for part in np.array_split(sums, GROUPS)])[:, None]
        counts = [part.size * (held.length - 1) for part in np.array_split(sums, GROUPS)]
        found[name] = np.concatenate([found[name], np.array(counts, float)[:, None]], axis=1)
    return {**found, "error": wrong_choices(byte_losses(model, held.choices.flatten(0, 1)))}


def byte_losses(model: PreTrainedModel, windows: Tensor) -> Floats:
    """[windows, length - 1]: the loss (nats) of every byte but the first of [windows, length]."""
    import torch

    from bakeoff.training.objectives import logits_of

    found = []
    with torch.inference_mode():
        for part in windows.to(model.device).split(128):
            logits = logits_of(model, part)[:, :-1].float()
            found.append(torch.nn.functional.cross_entropy(logits.mT, part[:, 1:], reduction="none").double().cpu())
    return torch.cat(found).numpy()


def wrong_choices(losses: Floats) -> Floats:
    """[items, 2], the share of the continuations' lengths at which another than the first choice is likeliest, and 1.

    losses: [items * choices, bytes - 1], as of `choices`.
    """
    of_continuation = losses.reshape(-1, CHOICES, losses.shape[-1])[..., CONTEXT - 1 :].cumsum(axis=-1)
    wrong = np.mean([of_continuation[..., n - 1].argmin(axis=1) != 0 for n in CONTINUATIONS], axis=0)
    return np.stack([wrong, np.ones_like(wrong)], axis=1)


def _texts(lab: Lab) -> list[str]:
    """Pieces of encyclopedia articles and of many genres; at smoke scale of docstrings."""
    if lab.scale == "smoke":
        return [piece.text for piece in documents(installed("docstrings", limit=60_000, packages=["stdlib"]), 1000)]
    from bakeoff.text import read

    names = ("wikitext2_raw_valid.txt", "wikitext2_raw_test.txt", "masc_plain.jsonl", "c4_demo.jsonl")
    examples = [example for name in names for example in read(lab.corpus(f"text/{name}"))]
    return [piece.text for piece in documents(examples, 4000)]
