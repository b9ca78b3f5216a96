"""Recall at a distance: heads that route by learned centroids against random ones, window heads and full attention."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
ARMS: dict[str, dict[str, Any]] = {
    "window": {"routing_heads": 0},
    "random routing": {"routing_decay": 1.0, "commitment": 0.0},
    "routing": {},
    "full attention": {"mixers": ["attention"]},
}
FILLERS = 32
WHOLE, PREFIX, TUNED = "recall", "recall, routed by prefix", "validation recall"
METRICS = [
    Metric(TUNED, "share", "higher", "right answers on validation rows, routed over the whole row"),
    Metric(WHOLE, "share", "higher", "right answers, routed over the whole row"),
    Metric(PREFIX, "share", "higher", "right answers, each token routed among those up to it"),
]
SLOPE = Metric(
    "slope", "", "lower", "of the logarithm of the seconds against that of the length", lambda sums: sums[..., 0]
)


@study(
    slug="routing-transformer",
    claim="Heads that route by online k-means attend to what matters at a distance, at a cost of length^1.5.",
    source="Roy et al. 2021, arXiv:2003.05997; task, sizes and bounds are our own",
    expectation="Decoders of two layers learn to recall values by keys that lie further back than their windows reach. All "
    "take equal steps, each at the rate that is best for it on validation rows. With half of its heads routing, a decoder "
    "recalls at least 10 points more than with windows alone, also where each token is routed among those up to it, as in "
    "generation; and it recalls more with learned centroids than with random ones that stay as they are, both ways. The time "
    "of routing heads with as many clusters as the root of the length grows with at most its 1.6th power, and its exponent "
    "is at least 0.25 less than that of full attention. Reported without an expectation: full attention's recall, and the "
    "share of tokens that are in a cluster.",
    scales={
        "smoke": {
            "seeds": 1, "steps": 2, "rows": 4, "length": 32, "keys": 3, "values": 4, "window": 4, "width": 16, "clusters": 4,
            "items": 4, "rates": (1e-2,), "lengths": (64, 128),
        },
        "laptop": {
            "seeds": 3, "steps": 400, "rows": 8, "length": 256, "keys": 8, "values": 4, "window": 32, "width": 64,
            "clusters": 16, "items": 64, "rates": (5e-3, 1e-2), "lengths": (2048, 4096, 8192, 16384),
        },
        "gpu": {
            "seeds": 5, "steps": 4000, "rows": 32, "length": 1024, "keys": 64, "values": 64, "window": 64, "width": 128,
            "clusters": 32, "items": 256, "rates": (1e-3, 3e-3, 1e-2), "lengths": (2048, 4096, 8192, 16384, 32768),
        },
    },
    parts=("lm/routing.py",),
)  # fmt: skip
def routing_transformer(
    lab: Lab, *, steps: int, rows: int, length: int, keys: int, values: int, window: int, width: int, clusters: int,
    items: int, rates: tuple[float, ...], lengths: tuple[int, ...],
) -> None:  # fmt: skip
    task: dict[str, Any] = {
        "rows": rows, "length": length, "keys": keys, "values": values, "window": window, "width": width,
        "clusters": clusters, "items": items,
    }  # fmt: skip
    arms: dict[str, Arm] = {}
    for name, heads in ARMS.items():

        def trained(rate: float, own: Lab, name: str = name, heads: Mapping[str, Any] = heads) -> Arm:
            return own.measured(
                f"{name} at {rate:g}", METRICS, learn, f"{steps}steps", rate=rate, heads=dict(heads), **task
            )

        first = replace(lab, seeds=lab.seeds[:1], arms={})
        tried = {f"{rate:g}": trained(rate, first).mean(TUNED) for rate in rates}
        lab.notes.setdefault("validation recall by rate, first seed", {})[name] = tried
        arms[name] = trained(float(max(tried, key=lambda rate: tried[rate])), lab)
        lab.notes.setdefault("share of tokens in a cluster and clusters of a token, by layer", {})[name] = [
            record["notes"] for record in arms[name].records
        ]

    routing = arms["routing"]
    for metric in (WHOLE, PREFIX):
        for other, bound in (("window", 0.1), ("random routing", 0.0)):
            effect = lab.contrast(metric, {routing: 1, arms[other]: -1})
            lab.expect(f"{metric}, routing less {other}", effect, above=bound)
    lab.notes["recall, full attention less routing"] = lab.contrast(
        WHOLE, {arms["full attention"]: 1, routing: -1}
    ).effect

    timed = {
        name: lab.measured(f"time of {name}", [SLOPE], clock, "1steps", form=name, lengths=list(lengths), width=width // 4)
        for name in ("routing", "full attention")
    }  # fmt: skip
    quick, slow = timed.values()
    limit = replace(quick, arrays={SLOPE.name: np.full_like(quick.arrays[SLOPE.name], 1.6)})
    lab.expect("slope of routing, less 1.6", lab.contrast(SLOPE.name, {quick: 1, limit: -1}), below=0)
    lab.expect(
        "slope of full attention less that of routing", lab.contrast(SLOPE.name, {slow: 1, quick: -1}), above=0.25
    )
    lab.notes["milliseconds by length"] = {name: arm.records[0]["notes"] for name, arm in timed.items()}


def recall(draw: np.random.Generator, rows: int, length: int, keys: int, values: int) -> tuple[Array, Array]:
    """Rows of a recall task, tokens [rows, length], and the places of the questions [rows, keys].

    A row binds each of `keys` keys to one of `values` values, all in its first quarter, each binding one token that stands
    for key and value; in its last quarter it asks for each key by a token that stands for the key alone, and the answer
    follows. Everything else is a filler. Tokens: answers below `values`, then questions, bindings and fillers.
    """
    row, quarter = np.arange(rows)[:, None], length // 4
    bound = draw.integers(values, size=(rows, keys))
    tokens = values + keys + keys * values + draw.integers(FILLERS, size=(rows, length))
    places = draw.random((rows, quarter)).argsort(1)[:, :keys]
    tokens[row, places] = values + keys + np.arange(keys) * values + bound
    asked = length - quarter + 2 * draw.random((rows, quarter // 2)).argsort(1)[:, :keys]
    tokens[row, asked] = values + np.arange(keys)
    tokens[row, asked + 1] = bound
    return tokens, asked


@dataclass(frozen=True)
class Tasks:
    """Batches of the task; only the answers are learned."""

    rows: int
    length: int
    keys: int
    values: int
    seed: int

    def __call__(self, step: int) -> Batch:
        import torch

        from bakeoff.training.batches import IGNORED, Batch, derived_seed

        draw = np.random.default_rng(derived_seed(self.seed, "tasks", step))
        ids, asked = recall(draw, self.rows, self.length, self.keys, self.values)
        labels = np.full_like(ids, IGNORED)
        np.put_along_axis(labels, asked + 1, np.take_along_axis(ids, asked + 1, 1), 1)
        return Batch(torch.from_numpy(ids), torch.from_numpy(labels), ids.size)


def learn(
    run: Run, folder: Path, *, heads: Mapping[str, Any], rate: float, rows: int, length: int, keys: int, values: int,
    window: int, width: int, clusters: int, items: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train a decoder of two layers on the task and measure its recall on rows that no seed trains on."""
    import torch

    from bakeoff.lm import DecoderConfig, DecoderForCausalLM
    from bakeoff.lm.routing import RoutingAttention, prefix_only
    from bakeoff.training.batches import derived_seed
    from bakeoff.training.schedules import cosine

    torch.manual_seed(derived_seed(run.seed, "weights"))
    shape: dict[str, Any] = {
        "vocab_size": values + keys + keys * values + FILLERS, "hidden_size": width, "num_hidden_layers": 2, "mixers": ["routing"],
        "window": window, "clusters": clusters, "routing_window": length // clusters, "max_position_embeddings": length,
        "initialization": "fan_in",
    }  # fmt: skip
    model: Any = DecoderForCausalLM(DecoderConfig(**{**shape, **heads}))
    model.to(run.device)
    run.train(model, Tasks(rows, length, keys, values, run.seed), learning_rate=rate, schedule=cosine(0.1))

    def hits(split: str) -> NDArray[np.float64]:
        """Right answers and questions of each row, [items, 2]."""
        ids, asked = recall(np.random.default_rng(derived_seed(0, split)), items, length, keys, values)
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(ids).to(run.device), rows)
            said = np.concatenate([model(part, use_cache=False).logits.argmax(-1).cpu().numpy() for part in parts])
        right = np.take_along_axis(said, asked, 1) == np.take_along_axis(ids, asked + 1, 1)
        return np.stack([right.sum(1), np.full(items, keys)], 1).astype(float)

    found = {TUNED: hits("validation"), WHOLE: hits("test")}
    for layer, module in enumerate(module for module in model.modules() if isinstance(module, RoutingAttention)):
        if module.heads:
            run.notes[f"layer {layer}"] = [float(module.coverage), float(module.multiplicity)]
    with prefix_only(model):
        found[PREFIX] = hits("test")
    return found


def clock(run: Run, folder: Path, *, form: str, lengths: Sequence[int], width: int) -> dict[str, NDArray[np.float64]]:
    """Time the forward pass of one row and two heads at each length, the fastest of three, and fit the slope."""
    import torch

    from bakeoff.lm import DecoderConfig
    from bakeoff.lm.attention import Attention, Context
    from bakeoff.lm.routing import RoutingAttention

    took = {}
    for length in lengths:
        # Without `clusters` there are as many as the root of the length.
        config = DecoderConfig(
            hidden_size=2 * width,
            num_attention_heads=2,
            routing_heads=2,
            max_position_embeddings=length,
            positions="none",
        )
        torch.manual_seed(run.seed)
        layer: Any = (RoutingAttention if form == "routing" else Attention)(config, 0).to(run.device).eval()
        if form == "routing":
            layer.initialize()
        x = torch.randn(1, length, 2 * width, generator=run.generator(length)).to(run.device)
        context, taken = Context(torch.arange(length, device=run.device)[None]), []
        # The first one warms up.
        for _ in range(4):
            began = time.perf_counter()
            with torch.no_grad():
                layer(x, context)
            if run.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        took[length] = min(taken[1:])
    run.notes |= {str(length): 1000 * seconds for length, seconds in took.items()}
    return {SLOPE.name: np.array([[np.polyfit(np.log(list(took)), np.log(list(took.values())), 1)[0]]])}
