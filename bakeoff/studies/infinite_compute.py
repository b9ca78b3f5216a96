"""What a fixed amount of text is worth when compute costs nothing: weight decay, ensembles, and their distillation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from bakeoff.training.batches import Batches
    from bakeoff.training.run import Run

Floats = NDArray[np.float64]
Values = dict[str, float]

LOSS = Metric("test_loss", "nats/byte", "lower", "on held-out text")
VALIDATION = Metric("validation_loss", "nats/byte", "lower", "of one model, on other held-out text, for choosing")
GROUPS = 64  # of test windows, that are an item each
DECAY = 0.1  # of the standard recipe
STUDENT_SHARE = 0.75  # of a student's rows that its teacher sampled
MOST_EFFICIENT = 64.0  # a data efficiency above it, infinite ones too, counts as this


def of_members(count: int) -> Metric:
    """The loss of the average of `count` members' logits."""
    return Metric(f"test_loss_{count}", "nats/byte", "lower", f"of {count} members' mean logits, on held-out text")


@study(
    slug="infinite-compute",
    claim="On fixed data without a limit on compute, strong weight decay makes the loss fall with size, ensembles reach a "
    "lower limit than any single model, and a student keeps most of what they gain.",
    source="Kim et al. 2025, arXiv:2509.14786, abstract, the authors' training scripts and secondary summaries",
    expectation=(
        "The loss is that of test text of the same kind. Learning rate, epochs and weight decay tuned together on validation "
        "text, the best single model is below the best with weight decay 0.1, whose rate, epochs and size are "
        "tuned as well; the decay chosen is 3 to 30 times as strong, and the largest model is below the one before. The mean "
        "logits of five models of the third size are below the largest single model by 0.02 nats or more, and the limit of "
        "infinitely many by the power law over members is below that of infinitely large single models by the power law "
        "over size. Members trained for twice the epochs with half the decay are worse one by one and better as five. A student of the "
        "third size, trained on the text and on three times as much that the five sampled, keeps at least half of their gain. "
        "Refuted if the tuned decay is at most 0.1 or if the limit over members is not below that over size. Noted without "
        "weight: a baseline with tuned dropout, the joint limit over members and size, a student of a single model, and how "
        "many times the text the standard recipe would need (the paper: 2.3 times for the best single model, 3.7 times for five)."
    ),
    scales={
        "smoke": {
            "seeds": 1, "widths": (4, 6, 8, 10), "layers": 1, "tokens": 128, "rows": 4, "length": 16, "members": 3,
            "multiples": (0.5, 2), "rates": (1e-2,), "epochs": (1, 2), "decays": (0.4, 1.6), "dropouts": (0.1,),
            "sampled": 16, "windows": 64,
        },
        "laptop": {
            "seeds": 3, "widths": (12, 16, 24, 40), "layers": 2, "tokens": 4608, "rows": 8, "length": 64, "members": 5,
            "multiples": (0.5, 2), "rates": (3e-3, 1e-2, 3e-2), "epochs": (8, 16, 32, 64), "decays": (0.1, 0.3, 1.0, 3.0),
            "dropouts": (0.0, 0.1, 0.2), "sampled": 2048, "windows": 512,
        },
        "gpu": {
            "seeds": 5, "widths": (32, 64, 96, 128), "layers": 3, "tokens": 65536, "rows": 8, "length": 64, "members": 5,
            "multiples": (0.5, 2), "rates": (1e-3, 3e-3, 1e-2, 3e-2), "epochs": (4, 8, 16, 32, 64),
            "decays": (0.1, 0.2, 0.4, 0.8, 1.6, 3.2), "dropouts": (0.0, 0.1, 0.2, 0.4), "sampled": 12288, "windows": 2048,
        },
    },
    parts=("laws.py", "text/byte_stream.py"),
)  # fmt: skip
def infinite_compute(
    lab: Lab,
    *,
    widths: Sequence[int],
    layers: int,
    tokens: int,
    rows: int,
    length: int,
    members: int,
    multiples: Sequence[float],
    rates: Sequence[float],
    epochs: Sequence[int],
    decays: Sequence[float],
    dropouts: Sequence[float],
    sampled: int,
    windows: int,
) -> None:
    """Tune each recipe at each size, train ensembles and students, fit the laws, and compare.

    `tokens` are the bytes to learn from, and `multiples` of it those at which the standard recipe is trained too, for its
    law over data; `members` are those of an ensemble; `sampled` is the number of windows that a teacher writes.
    """
    texts = _texts(lab)
    held = _Held(texts, round(max(multiples) * tokens), windows, length)
    shared = {
        "text": address({"stories": texts}), "layers": layers, "rows": rows, "length": length, "windows": windows
    }  # fmt: skip

    def learn(
        own: Lab, label: str, count: int, values: Values, *, size: int = tokens, teachers: int = 0, samples: Sequence[Path] = (),
        sampled: int = 0,
    ) -> Arm:  # fmt: skip
        """`count` members of one recipe on `size` bytes, and what the first `teachers` members of others wrote."""
        steps = max(2, round(values["epochs"] * size / (rows * length) / (1 - (STUDENT_SHARE if samples else 0))))
        places = dict(zip(own.seeds, samples, strict=False))

        def work(run: Run, folder: Path, **given: Any) -> Mapping[str, Floats]:
            written = places[run.seed] / f"written_by_{teachers}.safetensors" if samples else None
            return _learn(run, folder, held, given, written)

        metrics = (*(of_members(k + 1) for k in range(count)), VALIDATION)
        conditions: dict[str, Any] = {"members": count, "tokens": size, "teachers": teachers, "sampled": sampled}
        return own.measured(label, metrics, work, f"{steps * count}steps", **conditions, **values, **shared)

    first = replace(lab, seeds=lab.seeds[:1])

    def tuned(name: str, start: Values, size: int = tokens, **grid: Sequence[float]) -> Values:
        """The locally best values, by the validation loss of one model at the first seed."""
        tried: dict[str, float] = {}

        def loss(values: Values) -> float:
            label = f"{name}, " + ", ".join(f"{key} {value:g}" for key, value in values.items())
            tried[label] = learn(first, label, 1, values, size=size).mean(VALIDATION.name)
            lab.arms.pop(label)
            return tried[label]

        best = locally_best(loss, grid, start)
        lab.notes.setdefault("tuned", {})[name] = {"best": best, "tried": len(tried), "loss": min(tried.values())}
        return best

    middle: Values = {"rate": rates[len(rates) // 2], "epochs": epochs[len(epochs) // 2]}
    start: Values = {"width": widths[1], **middle, "decay": DECAY, "dropout": 0.0}
    usual = tuned("standard", start, width=widths, rate=rates, epochs=epochs)
    standard = {1.0: learn(lab, "standard", 1, usual)}
    for multiple in multiples:
        size = round(multiple * tokens)
        values = tuned(f"standard, {multiple:g} times the text", usual, size, epochs=epochs)
        standard[multiple] = learn(lab, f"standard, {multiple:g} times the text", 1, values, size=size)

    regularised: dict[int, Values] = {}
    start = {**middle, "decay": decays[1], "dropout": 0.0}
    for width in widths:
        found = tuned(f"regularised, width {width}", {"width": width, **start}, rate=rates, epochs=epochs, decay=decays)
        regularised[width] = found
        start = {name: found[name] for name in start}
    largest = widths[-1]
    dropout_start = {**regularised[largest], "decay": DECAY, "dropout": dropouts[len(dropouts) // 2]}
    with_dropout = tuned("dropout, largest", dropout_start, rate=rates, epochs=epochs, dropout=dropouts)
    dropped = learn(lab, "dropout, largest", 1, with_dropout)

    third = widths[2]
    ensembles = {
        width: learn(lab, f"regularised, width {width}", members, values, sampled=sampled if width == third else 0)
        for width, values in regularised.items()
    }
    longer = {
        **regularised[third], "epochs": 2 * regularised[third]["epochs"], "decay": regularised[third]["decay"] / 2
    }  # fmt: skip
    retuned = learn(lab, f"re-tuned, width {third}", members, longer)
    student_values = {**regularised[third], "decay": DECAY}
    students = {
        count: learn(
            own, f"student of {count}", 1, student_values, teachers=count, samples=ensembles[third].results
        )
        for count, own in ((members, lab), (1, first))
    }  # fmt: skip

    single = {width: _of(ensemble, 1) for width, ensemble in ensembles.items()}
    together, alone = _of(ensembles[third], members), single[third]
    best = single[min(widths, key=lambda width: ensembles[width].mean(VALIDATION.name))]
    plain = _of(standard[1.0], 1)
    student = _of(students[members], 1)

    def expect(sentence: str, weights: Mapping[Arm, float], **bounds: float) -> None:
        lab.expect(sentence, lab.contrast(LOSS.name, weights), **bounds)

    expect("loss, best single model with tuned decay less standard", {best: 1, plain: -1}, below=0)
    expect("loss with tuned decay, largest less the size before", {single[largest]: 1, alone: -1}, below=0)
    expect("loss, ensemble of the third size less largest single", {together: 1, single[largest]: -1}, below=-0.02)
    expect("loss, re-tuned less plain members, one", {_of(retuned, 1): 1, alone: -1}, above=0)
    expect("loss, re-tuned less plain members, all", {_of(retuned, members): 1, together: -1}, below=0)
    expect(
        "loss, student less halfway from single model to teachers", {student: 1, alone: -0.5, together: -0.5}, below=0
    )

    sizes = [_model(width, layers, length, 0.0).num_parameters() for width in widths]
    over_size = _fits(sizes, [_loss(arm) for arm in single.values()])
    over_members = {
        width: _fits(range(1, members + 1), [_loss(_of(arm, k + 1)) for k in range(members)])
        for width, arm in ensembles.items()
    }
    over_retuned = _fits(range(1, members + 1), [_loss(_of(retuned, k + 1)) for k in range(members)])
    over_data = _fits([multiple * tokens for multiple in standard], [_loss(_of(arm, 1)) for arm in standard.values()])

    def limits(fits: Sequence[laws.PowerLaw]) -> Floats:
        return np.array([law.asymptote for law in fits])

    limit = stats.paired_effect_by_seed(limits(over_members[third]), limits(over_size))
    lab.expect("limit over members of the third size less limit over single models' size", limit, below=0)
    worth = {
        name: np.minimum([laws.data_efficiency(f, tokens, y) for f, y in zip(over_data, _loss(arm), strict=True)], MOST_EFFICIENT)
        for name, arm in {"tuned decay": best, "ensemble": together, "re-tuned ensemble": _of(retuned, members)}.items()
    }  # fmt: skip
    joint = _fits(sizes, [limits(fits) for fits in over_members.values()])
    lab.notes["limits by seed"] = {
        "over size, single models": limits(over_size).tolist(),
        **{f"over members, width {width}": limits(fits).tolist() for width, fits in over_members.items()},
        "over re-tuned members": limits(over_retuned).tolist(), "over members and size": limits(joint).tolist(),
    }  # fmt: skip
    lab.notes["laws at their bounds"] = sorted(
        {
            name
            for fits in (over_size, over_data, joint, *over_members.values())
            for law in fits
            for name in law.at_bound
        }
    )
    lab.notes["text that the standard recipe would need, times, by seed"] = {
        name: values.tolist() for name, values in worth.items()
    }
    lab.notes["loss less the standard recipe's"] = {
        name: _figures(lab.contrast(LOSS.name, {arm: 1, plain: -1}))
        for name, arm in {"dropout, largest": _of(dropped, 1), "tuned decay": best, "ensemble": together}.items()
    }
    lab.notes["loss, ensemble less dropout, largest"] = _figures(
        lab.contrast(LOSS.name, {together: 1, _of(dropped, 1): -1})
    )
    kept = (_loss(alone) - _loss(student)) / (_loss(alone) - _loss(together))
    lab.notes["share of the ensemble's gain that its student keeps, by seed"] = kept.tolist()
    lab.notes["loss of a student of one model, first seed"] = students[1].mean(of_members(1).name)


def locally_best(loss: Callable[[Values], float], grid: Mapping[str, Sequence[float]], start: Values) -> Values:
    """The values that no step to a neighbour in `grid`, one name at a time, improves; names not in it stay.

    A walk along each name in turn, in either direction for as long as the loss falls, until a whole turn changes nothing.
    Values of `start` that are not in the grid begin at the nearest that is.
    """
    known: dict[tuple[float, ...], float] = {}

    def at(values: Values) -> float:
        key = tuple(values.values())
        if key not in known:
            known[key] = loss(values)
        return known[key]

    best = {**start, **{name: min(axis, key=lambda value: abs(value - start[name])) for name, axis in grid.items()}}
    before = None
    while before != best:
        before = best
        for name, direction in itertools.product(grid, (1, -1)):
            axis = sorted(grid[name])
            while 0 <= (place := axis.index(best[name]) + direction) < len(axis):
                step = {**best, name: axis[place]}
                if at(step) >= at(best):
                    break
                best = step
    at(best)
    return best


def _of(arm: Arm, count: int) -> Arm:
    """The arm with the loss of so many members as its only metric."""
    return replace(arm, metrics=(LOSS,), arrays={LOSS.name: arm.arrays[of_members(count).name]})


def _loss(arm: Arm) -> Floats:
    """[seeds]"""
    return LOSS.reduce(arm.arrays[LOSS.name].sum(axis=1))


def _fits(x: Sequence[float], losses: Sequence[Floats]) -> list[laws.PowerLaw]:
    """The power law of each seed; losses: for each x [seeds]."""
    return [laws.fit_power(list(x), values) for values in np.stack(losses, axis=1)]


def _figures(effect: stats.Effect) -> dict[str, float | None]:
    return {"effect": effect.effect, "low": effect.low, "high": effect.high}


class _Held:
    """The text as bytes: what may be learned, and the windows that are measured, the same for every model."""

    def __init__(self, texts: Sequence[str], most: int, windows: int, length: int) -> None:
        from bakeoff.text.byte_stream import byte_stream, evenly

        self.length = length
        test, validation, learned = (
            byte_stream(part) for part in (texts[::4], texts[1::4], [*texts[2::4], *texts[3::4]])
        )
        self.learned = learned[:most]
        self.test, self.validation = (evenly(part, windows, length) for part in (test, validation))


def _model(width: int, layers: int, length: int, dropout: float) -> PreTrainedModel:
    from bakeoff.lm import DecoderConfig, DecoderForCausalLM
    from bakeoff.text.byte_stream import BYTES

    return DecoderForCausalLM(
        DecoderConfig(
            vocab_size=BYTES, hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(1, width // 16), mlp="gelu",
            max_position_embeddings=length, dropout=dropout,
            initialization="fan_in",
        )
    )  # fmt: skip


def _learn(run: Run, folder: Path, held: _Held, values: Mapping[str, Any], written: Path | None) -> dict[str, Floats]:
    """Train the members one after the other, each with its own weights and order, and measure them together.

    The decay is AdamW's, times the learning rate; it shrinks all matrices, the embedding too, and no norm's gains.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from bakeoff.training.batches import Windows, derived_seed
    from bakeoff.training.schedules import cosine

    def adamw(parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
        matrices, gains = ([p for p in parameters if (p.dim() > 1) == wanted] for wanted in (True, False))
        groups = [{"params": matrices, "weight_decay": values["decay"]}, {"params": gains, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=rate, fused=True)

    count, rows, text = values["members"], values["rows"], held.learned[: values["tokens"]]
    models = []
    for member in range(count):
        torch.manual_seed(derived_seed(run.seed, "weights", member))
        model = _model(values["width"], values["layers"], held.length, values["dropout"])
        model.to(run.device)  # type: ignore[arg-type]
        seed = derived_seed(run.seed, "order", member)
        batches: Batches = Windows(text, rows, held.length, seed)
        if written:
            batches = mixed(text, load_file(written)["windows"], rows, held.length, seed)
        run.train(
            model, batches, learning_rate=values["rate"], share=1 / count, schedule=cosine(0.01),
            optimizer=adamw,
        )  # fmt: skip
        models.append(model)
    if values["sampled"]:
        for teachers in sorted({1, count}):
            found = written_by(
                models[:teachers], text, values["sampled"], held.length, run.generator("written", teachers)
            )
            save_file({"windows": found}, folder / f"written_by_{teachers}.safetensors")
    losses = ensemble_losses(models, held.test)
    of_count = {of_members(k + 1).name: _grouped(losses[k], held.length) for k in range(count)}
    return {**of_count, VALIDATION.name: _grouped(ensemble_losses(models[:1], held.validation)[0], held.length)}


def _grouped(sums: Floats, length: int) -> Floats:
    parts = np.array_split(sums, GROUPS)
    return np.array([(part.sum(), part.size * (length - 1)) for part in parts])


def mixed(text: Tensor, written: Tensor, rows: int, length: int, seed: int) -> Batches:
    """Batches of rows of the text and, for the share of a student, of whole windows that its teacher wrote [n, length]."""
    import torch

    from bakeoff.training.batches import Batch, Windows, derived_seed

    taught = round(STUDENT_SHARE * rows)
    real = Windows(text, rows - taught, length, seed)

    def batches(step: int) -> Batch:
        places = np.arange(step * taught, (step + 1) * taught)
        orders = {p: np.random.default_rng(derived_seed(seed, "written", p)) for p in set(places // len(written))}
        order = {p: draw.permutation(len(written)) for p, draw in orders.items()}
        chosen = [int(order[place // len(written)][place % len(written)]) for place in places]
        input_ids = torch.cat([real(step).input_ids, written[chosen].long()])
        return Batch(input_ids, input_ids, input_ids.numel())

    return batches


def written_by(
    models: Sequence[PreTrainedModel], text: Tensor, windows: int, length: int, generator: torch.Generator
) -> Tensor:
    """[windows, length], int32: sampled at temperature 1 from the mean of the models' logits.

    The first byte, which no model foretells, is one of the text's.
    """
    import torch

    first = text[torch.randint(len(text), (windows, 1), generator=generator)].long()
    found = []
    with torch.inference_mode():
        for begin in first.split(1024):
            tokens = [begin]
            caches: list[Any] = [None] * len(models)
            for _ in range(length - 1):
                logits = torch.zeros(())
                for place, model in enumerate(models):
                    output: Any = model(
                        input_ids=tokens[-1].to(model.device), past_key_values=caches[place], use_cache=True
                    )
                    caches[place] = output.past_key_values
                    logits = logits + output.logits[:, -1].float().cpu() / len(models)
                tokens.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            found.append(torch.cat(tokens, dim=1))
    return torch.cat(found).int()


def ensemble_losses(models: Sequence[PreTrainedModel], windows: Tensor) -> Floats:
    """[models, windows]: at k the sum of each window's losses (nats) under the mean of k + 1 models' logits.

    Of the choices of k + 1 models those that follow each other in a circle are averaged over.
    """
    import torch

    from bakeoff.training.objectives import logits_of

    count = len(models)
    found = []
    with torch.inference_mode():
        for part in windows.to(models[0].device).split(64):
            logits = torch.stack([logits_of(model, part)[:, :-1].float() for model in models])
            rows = []
            for size in range(1, count + 1):
                begins = range(count if size < count else 1)
                losses = [
                    torch.nn.functional.cross_entropy(
                        logits[[(begin + i) % count for i in range(size)]].mean(0).mT, part[:, 1:], reduction="none"
                    )
                    for begin in begins
                ]
                rows.append(torch.stack(losses).double().mean(0).sum(-1))
            found.append(torch.stack(rows).cpu())
    return torch.cat(found, dim=1).numpy()


def _texts(lab: Lab) -> list[str]:
    """Short stories; at smoke scale docstrings."""
    if lab.scale == "smoke":
        return [piece.text for piece in documents(installed("docstrings", limit=60_000, packages=["stdlib"]), 1000)]
    return lab.corpus("text/tinystories_sample.txt").read_text("utf-8").split("<|endoftext|>")
