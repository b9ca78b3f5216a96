"""A part of the training text comes again and again: loss and copying against how often, at equal tokens."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bakeoff import stats
from bakeoff.metric import Metric
from bakeoff.store import address
from bakeoff.study import Arm, Lab, study
from bakeoff.text import installed, read

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bakeoff.training.batches import Batch
    from bakeoff.training.run import Run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOSS = Metric("test loss", "nats/byte", "lower", "on text of which nothing was learned")
VALIDATION = Metric(
    "validation loss", "nats/byte", "lower", "on other such text, to choose the worst number of repeats"
)
COPIES = Metric("loss on copies", "nats/byte", "lower", "on the beginnings of the test windows, repeated")
STRINGS = Metric("loss on repeated strings", "nats/byte", "lower", "on shuffled alphabets, from the second time on")
MATCHING = Metric(
    "prefix matching", "share", "higher", "attention to what followed the same letter before, mean over heads"
)
METRICS = (LOSS, VALIDATION, COPIES, STRINGS, MATCHING)
TIMES = 4  # that a beginning is repeated
SEEN = "loss on what was repeated"


@study(
    slug="repeated-data",
    claim="A part of the data that is repeated an intermediate number of times hurts more than one repeated seldom or very "
    "often, and it hurts copying more than the loss.",
    source="Hernandez et al. 2022, arXiv:2205.10487; model, text and sizes of the scales are our own",
    expectation="Decoders learn equally many bytes of text, of which a fraction is a random part that comes E times, the rest "
    "being new; E is set by how large that part is, the greatest by one window. At the E with the worst validation loss, of "
    "those between the least and the greatest, the test loss is above that without repeats, and above that at the greatest "
    "E, where the part is small and soon known by heart (double descent). In terms of the size of a model without repeats that "
    "does as well, interpolated on the logarithm of the parameters, copying, the loss on repeated passages, falls further than "
    "the test loss. Reported without an expectation: the new part alone, the loss on the repeated part, that on repeated random "
    "strings, and how strongly heads attend to what followed a token's last occurrence (the paper: 32% less at 3% repeated).",
    scales={
        "smoke": {
            "seeds": 1, "texts": (), "bytes": 8192, "fraction": 0.5, "epochs": (1, 4, 64), "rows": 4, "length": 64,
            "widths": (8, 16), "layers": 1, "rate": 1e-2, "windows": 8,
        },
        "laptop": {
            "seeds": 3, "texts": ("tinystories_sample.txt",), "bytes": 1_310_720, "fraction": 0.5,
            "epochs": (1, 16, 64, 256, 1024, 5120), "rows": 16, "length": 128, "widths": (16, 24), "layers": 2,
            "rate": 6e-3, "windows": 256,
        },
        "gpu": {
            "seeds": 5,
            "texts": ("tinystories_sample.txt", "masc_plain.jsonl", "wikitext2_raw_test.txt", "wikitext2_raw_valid.txt"),
            "bytes": 6_553_600, "fraction": 0.5, "epochs": (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 12_800),
            "rows": 16, "length": 256, "widths": (128, 256), "layers": 4, "rate": 2e-3, "windows": 1024,
        },
    },
)  # fmt: skip
def repeated_data(
    lab: Lab, *, texts: Sequence[str], bytes: int, fraction: float, epochs: Sequence[int], rows: int, length: int,
    widths: Sequence[int], layers: int, rate: float, windows: int,
) -> None:  # fmt: skip
    """`bytes` are learned in windows of `length`, a document each; `widths` are those of a smaller model, for the size that
    a damaged model is worth, and of the model itself.

    Departures: text in bytes; 20 thousand parameters and 1.3 million bytes at scale laptop, where the paper has 1.5 to 800
    million and 100 billion tokens; copies fill one window; a size's worth is interpolated between two sizes.
    Limits: in a pilot the laptop's models hardly copied even without repeats, so that there is little copying to damage.
    """
    text = _text(lab, texts)
    work = functools.partial(_learned, text)
    slots = bytes // length
    steps = slots // rows
    shared: dict[str, Any] = {
        "text": address({"text": text}), "slots": slots, "fraction": fraction, "rows": rows, "length": length,
        "layers": layers, "rate": rate, "windows": windows,
    }  # fmt: skip

    def learn(label: str, epochs: int, width: int, steps: int = steps) -> Arm:
        given = {"epochs": epochs, "width": width, **shared}
        return lab.measured(label, METRICS, work, f"{steps}steps", dtype="bfloat16", **given)

    repeated = {
        times: learn(f"repeated {times} times" if times > 1 else "no repeats", times, widths[1]) for times in epochs
    }
    learn("the new part alone", 0, widths[1], round((1 - fraction) * slots) // rows)

    clean, most = repeated[epochs[0]], repeated[epochs[-1]]
    worst_times = max(epochs[1:-1], key=lambda times: repeated[times].mean(VALIDATION.name))
    worst = repeated[worst_times]
    lab.expect("test loss, worst repeats less none", lab.contrast(LOSS.name, {worst: 1, clean: -1}), above=0)
    lab.expect("test loss, worst repeats less most", lab.contrast(LOSS.name, {worst: 1, most: -1}), above=0)
    small = learn("smaller, no repeats", 1, widths[0])
    lab.expect(
        "share of the step to the smaller size that the worst repeats cost, copying less test loss",
        stats.paired_effect(_side_by_side(worst, clean, small), _side_by_side(clean, clean, small), further),
        above=0,
    )
    lab.notes["worst number of repeats"] = worst_times
    lab.notes[SEEN] = {
        str(times): float(np.mean([r["notes"][SEEN] for r in arm.records])) for times, arm in repeated.items()
    }
    for metric in (LOSS, COPIES, STRINGS, MATCHING):
        lines = {
            metric.name: {
                float(times): metric.reduce(arm.arrays[metric.name].sum(1)).tolist() for times, arm in repeated.items()
            }
        }
        lab.curve(f"{metric.name} by repeats", "times that the repeated part comes", metric.unit, lines)


def _side_by_side(*arms: Arm) -> Floats:
    """[seeds, windows, 2 * 2 * arms]: sums and counts of the loss on copies by arm, then of the test loss."""
    return np.concatenate([arm.arrays[metric.name] for metric in (COPIES, LOSS) for arm in arms], axis=-1)


def further(sums: Floats) -> Floats:
    """How much further copying falls than the test loss, as shares of the way from the size to the smaller one.

    share = (damaged - clean) / (smaller - clean), so that log N_eff = log N - share * log(N / N_small).

    sums: [..., 12], sums and counts of the damaged, the clean and the smaller model's loss on copies, then of test loss.
    """
    losses = sums[..., 0::2] / sums[..., 1::2]
    damaged, clean, smaller = (losses[..., i::3] for i in range(3))
    shares = (damaged - clean) / (smaller - clean)
    return np.asarray(shares[..., 0] - shares[..., 1])


def _text(lab: Lab, names: Sequence[str]) -> str:
    if lab.scale == "smoke":
        return "\n".join(example.text for example in installed("docstrings", limit=40_000, packages=["stdlib"]))
    paths = [lab.corpus(f"text/{name}") for name in names]
    return "\n".join(
        "\n".join(example.text for example in read(str(path))) if path.suffix == ".jsonl" else path.read_text("utf-8")
        for path in paths
    )


def order_of(draw: np.random.Generator, slots: int, fraction: float, epochs: int) -> Ints:
    """[slots], windows of the text in the order in which they are learned.

    The first `fraction` of them, rounded, is filled with windows of which each comes `epochs` times (less than one time
    more or fewer where that does not divide), the rest with windows that come once; then all are shuffled. The latter are
    the same for all numbers of epochs, and with 0 they are all there is.
    """
    windows, again = draw.permutation(slots), round(fraction * slots)
    repeated = np.resize(windows[: max(1, round(again / epochs))], again) if epochs else windows[:0]
    return draw.permutation(np.concatenate([repeated, windows[again:]]))


@dataclass(frozen=True)
class Ordered:
    """`rows` windows of `length` bytes a step, in a given order; every byte but a window's first is learned."""

    windows: Tensor
    order: Ints
    rows: int
    fixed_length: ClassVar[bool] = True

    def __call__(self, step: int) -> Batch:
        from bakeoff.training.batches import Batch

        chosen = self.windows[self.order[step * self.rows : (step + 1) * self.rows]].long()
        return Batch(chosen, chosen, chosen.numel())


def _learned(
    text: str, run: Run, folder: Path, /, *, epochs: int, width: int, slots: int, fraction: float, rows: int, length: int,
    layers: int, rate: float, windows: int, **_: Any,
) -> Mapping[str, Floats]:  # fmt: skip
    """Train on the windows in their order and measure."""
    import torch

    from bakeoff.text.byte_stream import BYTES, byte_stream, evenly
    from bakeoff.training.batches import derived_seed
    from bakeoff.training.worlds import from_scratch

    stream = byte_stream([text])
    learned, held = stream[: slots * length].view(slots, length), stream[slots * length :]
    test, validation = (evenly(part, windows, length) for part in held.tensor_split(2))
    order = order_of(np.random.default_rng(derived_seed(run.seed, "windows")), slots, fraction, epochs)
    model = from_scratch(
        run, Ordered(learned, order, rows), learning_rate=rate, vocab_size=BYTES, hidden_size=width,
        num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=length, initialization="fan_in",
    )  # fmt: skip
    numbers, counts = np.unique(order, return_counts=True)
    often = numbers[counts == counts.max()][:windows]
    run.notes[SEEN] = float(losses(model, learned[often].long()).mean())
    copies = test[:, : length // TIMES].repeat(1, TIMES)
    draw = np.random.default_rng(derived_seed(0, "strings"))
    alphabet = np.arange(ord("a"), ord("z") + 1)[: length // 2]
    strings = torch.from_numpy(np.stack([np.resize(draw.permutation(alphabet), length) for _ in range(windows)]))
    found = {m.name: losses(model, rows) for m, rows in ((LOSS, test), (VALIDATION, validation), (COPIES, copies))}
    found[STRINGS.name] = losses(model, strings)[:, len(alphabet) - 1 :]
    found[MATCHING.name] = matching(model, strings, len(alphabet))
    return {name: np.stack([values.sum(1), np.full(windows, values.shape[1])], 1) for name, values in found.items()}


def losses(model: nn.Module, windows: Tensor) -> Floats:
    """[n, length - 1]: negative log-likelihoods in nats of all bytes but the first."""
    import torch

    from bakeoff.training.objectives import logits_of

    device, found = next(model.parameters()).device, []
    with torch.no_grad():
        for part in torch.split(windows.to(device), 64):
            logits = logits_of(model, part)[:, :-1].float()
            found.append(torch.nn.functional.cross_entropy(logits.mT, part[:, 1:], reduction="none").double().cpu())
    return np.asarray(torch.cat(found))


def matching(model: nn.Module, strings: Tensor, period: int) -> Floats:
    """[n, heads of all layers]: prefix-matching scores on rows that repeat after `period` tokens.

    The attention from each token of the second time to the token after its first occurrence, mean over tokens.

    Source: Olsson et al. 2022, arXiv:2209.11895.
    """
    import torch

    device, found = next(model.parameters()).device, []
    second = torch.arange(period, 2 * period)
    with torch.no_grad():
        for part in torch.split(strings[:, : 2 * period].to(device), 64):
            attentions = model(input_ids=part, use_cache=False, output_attentions=True).attentions
            found.append(torch.cat([a[:, :, second, second - period + 1].mean(-1) for a in attentions], 1).cpu())
    return np.asarray(torch.cat(found).double())
