"""Associative recall with keys that are bound anew: DeltaNet against additive linear attention, and what each costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study

if TYPE_CHECKING:
    from bakeoff.training.batches import Batch
    from bakeoff.training.run import Run

Array = NDArray[np.int64]
MIXERS = {
    "attention": ("attention", "attention"),
    "linear attention": ("linear", "linear"),
    "deltanet": ("deltanet", "deltanet"),
    "deltanet and window": ("deltanet", "window"),
    "deltanet and attention": ("deltanet", "attention"),
}
ONCE, ANEW = 1, 2
TUNED = Metric("validation recall", "share", "higher", "right answers on validation rows of all sizes")
SLOPE = Metric(
    "slope", "", "lower", "of the logarithm of the seconds against that of the length", lambda sums: sums[..., 0]
)
TIMES = Metric("recurrence over chunks", "times", "higher", "seconds of the plain recurrence over those in chunks")


@study(
    slug="deltanet",
    claim="The delta rule recalls what additive linear attention mixes up, in time linear in length.",
    source="Yang et al. 2024, arXiv:2406.06484; task, sizes and bounds are our own",
    expectation="Decoders of two layers learn to recall values by key, where half of the keys are bound a second time, to "
    "another value. All take equal steps, each at the rate that is best for it on validation rows. With as many keys as the "
    "heads are wide, DeltaNet recalls at least 10 points more of them than additive linear attention with the same feature "
    "map, norm and convolution, and the difference is greater for keys that were bound anew than for those bound once. With "
    "half as many keys it recalls at least 95%. The chunked form takes time that grows with at most the 1.2th power of the "
    "length, and at the shortest length a fifth of the plain recurrence's time at most. Reported without an expectation: "
    "softmax attention, and DeltaNet with a layer of window or full attention.",
    scales={
        "smoke": {
            "seeds": 1, "steps": 2, "rows": 4, "sizes": (2, 4), "symbols": 8, "width": 16, "head_dim": 4, "items": 4,
            "rates": (1e-2,), "lengths": (64, 128),
        },
        "laptop": {
            "seeds": 3, "steps": 800, "rows": 16, "sizes": (4, 8, 16), "symbols": 32, "width": 64, "head_dim": 16,
            "items": 128, "rates": (5e-3, 1e-2), "lengths": (512, 1024, 2048, 4096, 8192),
        },
        "gpu": {
            "seeds": 5, "steps": 6000, "rows": 128, "sizes": (8, 16, 32, 64), "symbols": 128, "width": 128, "head_dim": 64,
            "items": 512, "rates": (1e-3, 3e-3, 1e-2), "lengths": (512, 1024, 2048, 4096, 8192),
        },
    },
    parts=("lm/delta_rule.py",),
)  # fmt: skip
def deltanet(
    lab: Lab, *, steps: int, rows: int, sizes: tuple[int, ...], symbols: int, width: int, head_dim: int, items: int,
    rates: tuple[float, ...], lengths: tuple[int, ...],
) -> None:  # fmt: skip
    """The last of the sizes is the width of a head, the one before it half of that."""
    metrics = [TUNED, *(Metric(name, "share", "higher", "right answers") for keys in sizes for name in _names(keys))]
    task: dict[str, Any] = {
        "rows": rows, "sizes": list(sizes), "symbols": symbols, "width": width, "head_dim": head_dim, "items": items,
    }  # fmt: skip
    arms: dict[str, Arm] = {}
    for name, mixers in MIXERS.items():

        def trained(rate: float, own: Lab, name: str = name, mixers: Sequence[str] = mixers) -> Arm:
            own_task = {"mixers": list(mixers), "rate": rate, **task}
            return own.measured(f"{name} at {rate:g}", metrics, learn, f"{steps}steps", **own_task)

        first = replace(lab, seeds=lab.seeds[:1], arms={})
        tried = {f"{rate:g}": trained(rate, first).mean(TUNED.name) for rate in rates}
        best = float(max(tried, key=lambda rate: tried[rate]))
        lab.notes.setdefault("validation recall by rate, first seed", {})[name] = tried
        arms[name] = trained(best, lab)

    delta, linear = arms["deltanet"], arms["linear attention"]
    names, half = _names(sizes[-1]), _names(sizes[-2])[0]
    difference = lab.contrast(names[0], {delta: 1, linear: -1})
    lab.expect(f"{names[0]}, deltanet less linear attention", difference, above=0.1)
    lab.expect(
        f"the same difference for keys bound anew, less that for keys bound once, of {sizes[-1]}",
        lab.contrast(
            "recall",
            _over(delta, names[2], 1)
            | _over(linear, names[2], -1)
            | _over(delta, names[1], -1)
            | _over(linear, names[1], 1),
        ),
        above=0,
    )
    lab.expect(f"{half}, deltanet less 0.95", lab.contrast(half, {delta: 1, _constant(delta, half, 0.95): -1}), above=0)

    timed = {
        name: lab.measured(f"time of {name}", [SLOPE, TIMES], clock, "1steps", form=name, lengths=list(lengths), width=head_dim)
        for name in ("chunks", "linear attention", "attention")
    }  # fmt: skip
    chunks = timed["chunks"]
    for metric, bound in ((SLOPE, {"below": 0.0}), (TIMES, {"above": 0.0})):
        limit = 1.2 if metric is SLOPE else 5.0
        effect = lab.contrast(metric.name, {chunks: 1, _constant(chunks, metric.name, limit): -1})
        lab.expect(f"{metric.name} of the chunked form, less {limit:g}", effect, **bound)
    lab.notes["milliseconds by length"] = {name: arm.records[0]["notes"] for name, arm in timed.items()}
    lab.notes["recall less that of linear attention"] = {
        name: {metric: lab.contrast(metric, {arm: 1, linear: -1}).effect for metric in names}
        for name, arm in arms.items()
        if arm is not linear
    }


def _over(arm: Arm, metric: str, weight: float) -> dict[Arm, float]:
    """An arm whose only metric, called recall, is one of the arm's, to be set against another of its metrics."""
    own = Metric("recall", "share", "higher", "right answers")
    return {replace(arm, metrics=[own], arrays={"recall": arm.arrays[metric]}): weight}


def _constant(arm: Arm, metric: str, value: float) -> Arm:
    """An arm that has this value of the metric everywhere."""
    array = np.ones_like(arm.arrays[metric])
    array[..., 0] = value
    return replace(arm, arrays={metric: array})


def recall(draw: np.random.Generator, rows: int, keys: int, symbols: int) -> tuple[Array, Array]:
    """Rows of a recall task, [rows, 5 * keys] tokens below 2 * symbols, and what is asked at each place.

    A row binds `keys` keys, half of them twice, the second time to another value, in random order: key, value, key,
    value ... Then it asks for each key once, in random order, and gives the value of the last binding after it. Keys are
    tokens below `symbols`, values the others. At an asked key stands ONCE, or ANEW if it was bound twice; 0 elsewhere.
    """
    twice = keys // 2
    chosen = draw.random((rows, symbols)).argsort(1)[:, :keys]
    events = draw.random((rows, keys + twice)).argsort(1) % keys
    row = np.arange(rows)[:, None]
    values, given = draw.integers(symbols, size=(rows, keys)), np.zeros_like(events)
    for place in range(keys + twice):
        key = events[:, place]
        # A step of 1 to symbols - 1 from the value before, so that a second binding is another value.
        values[row[:, 0], key] = (values[row[:, 0], key] + draw.integers(1, symbols, rows)) % symbols
        given[:, place] = values[row[:, 0], key]
    asked = draw.random((rows, keys)).argsort(1)
    order = np.concatenate([events, asked], 1)
    told = np.concatenate([given, values[row, asked]], 1) + symbols
    kinds = np.zeros((rows, 2 * order.shape[1]), np.int64)
    kinds[:, 2 * events.shape[1] :: 2] = np.where(asked < twice, ANEW, ONCE)
    return np.stack([chosen[row, order], told], 2).reshape(rows, -1), kinds


@dataclass(frozen=True)
class Tasks:
    """Batches of the task; the steps take the sizes in turn."""

    rows: int
    sizes: Sequence[int]
    symbols: int
    seed: int

    def __call__(self, step: int) -> Batch:
        import torch

        from bakeoff.training.batches import IGNORED, Batch, derived_seed

        draw = np.random.default_rng(derived_seed(self.seed, "tasks", step))
        ids, kinds = recall(draw, self.rows, self.sizes[step % len(self.sizes)], self.symbols)
        labels = np.full_like(ids, IGNORED)
        labels[:, 1:] = np.where(kinds[:, :-1] > 0, ids[:, 1:], IGNORED)
        return Batch(torch.from_numpy(ids), torch.from_numpy(labels), ids.size)


def learn(
    run: Run, folder: Path, *, mixers: Sequence[str], rate: float, rows: int, sizes: Sequence[int], symbols: int, width: int,
    head_dim: int, items: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train a decoder of two layers on the task and measure its recall on rows that no seed trains on."""
    import torch

    from bakeoff.lm import DecoderConfig, DecoderForCausalLM
    from bakeoff.training.batches import derived_seed
    from bakeoff.training.schedules import cosine

    torch.manual_seed(derived_seed(run.seed, "weights"))
    config = DecoderConfig(
        vocab_size=2 * symbols, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, head_dim=head_dim,
        mixers=tuple(mixers), window=16, initialization="fan_in",
    )  # fmt: skip
    model: Any = DecoderForCausalLM(config)
    model.to(run.device)
    run.train(model, Tasks(rows, sizes, symbols, run.seed), learning_rate=rate, schedule=cosine(0.1))
    found: dict[str, NDArray[np.float64]] = {}
    for split in ("validation", "test"):
        hits = {keys: _hits(model, derived_seed(0, split, keys), items, keys, symbols) for keys in sizes}
        if split == "validation":
            found[TUNED.name] = np.concatenate(list(hits.values()))[:, [0, 1]]
        else:
            for keys, sums in hits.items():
                found |= {name: sums[:, [2 * i, 2 * i + 1]] for i, name in enumerate(_names(keys))}
    return found


def _names(keys: int) -> tuple[str, str, str]:
    return f"recall of {keys}", f"recall of {keys}, bound once", f"recall of {keys}, bound anew"


def _hits(model: Any, seed: int, items: int, keys: int, symbols: int) -> NDArray[np.float64]:
    """Right answers and questions of each row: of all keys, of those bound once, of those bound anew, [items, 6]."""
    import torch

    ids, kinds = recall(np.random.default_rng(seed), items, keys, symbols)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids).to(model.device), use_cache=False).logits[:, :-1]
    right = logits.argmax(-1).cpu().numpy() == ids[:, 1:]
    asked = [kinds[:, :-1] > 0, kinds[:, :-1] == ONCE, kinds[:, :-1] == ANEW]
    return np.stack([part.sum(1) for mask in asked for part in (right & mask, mask)], 1).astype(float)


def clock(run: Run, folder: Path, *, form: str, lengths: Sequence[int], width: int) -> dict[str, NDArray[np.float64]]:
    """Time the forward pass of one row with two heads at each length, the fastest of five, and fit the slope."""
    import torch
    from torch.nn import functional

    from bakeoff.lm.delta_rule import delta_rule, delta_rule_recurrent, linear_attention

    def seconds(rule: Any, length: int, times: int = 5) -> float:
        q, k, v = torch.randn(3, 1, 2, length, width, generator=run.generator(length)).to(run.device)
        beta = torch.rand(1, 2, length, generator=run.generator(length)).to(run.device)
        k, taken = functional.normalize(k, dim=-1), []
        # The first one warms up.
        for _ in range(times + 1):
            began = time.perf_counter()
            rule(q, k, v, beta)
            if run.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return min(taken[1:])

    rules = {
        "chunks": delta_rule,
        "linear attention": lambda q, k, v, beta: linear_attention(q, k, v),
        "attention": lambda q, k, v, beta: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    with torch.no_grad():
        took = {length: seconds(rules[form], length) for length in lengths}
        recurrent = seconds(delta_rule_recurrent, lengths[0], 2)
    run.notes |= {str(length): 1000 * s for length, s in took.items()} | {f"recurrence {lengths[0]}": 1000 * recurrent}
    slope = np.polyfit(np.log(list(took)), np.log(list(took.values())), 1)[0]
    return {SLOPE.name: np.array([[slope]]), TIMES.name: np.array([[recurrent, took[lengths[0]]]])}
