"""One family of models, their answers scored by exact match and by edit distance: whether abilities emerge in both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text import tasks

if TYPE_CHECKING:
    from bakeoff.training.run import Run

Array = NDArray[np.float64]
EXACT = Metric("exact match", "share", "higher", "generated answers that are right as a whole")
EDITS = Metric(
    "edit distance", "share", "lower", "insertions, deletions and substitutions to the right answer, over its length"
)
TOKENS = Metric("right tokens", "share", "higher", "tokens that are likeliest after the right ones before them")
LOSS = Metric("loss", "nats", "lower", "negative log-likelihood of a token after the right ones before it")


def _made(name: str, description: str) -> Metric:
    return Metric(name, "share", "higher", description, lambda sums: sums[..., 0])


LAG = _made(
    "lag", "mean over the sizes of the share of its range that edit distance has gone, less that of exact match"
)
STEP = _made(
    "largest step",
    "greatest share of its range that a metric goes from one size to the next, exact match less edit distance",
)
GAP = _made(
    "gap",
    "mean over the sizes of the distance between exact match and the share of right tokens to the power of the length",
)


@study(
    slug="emergence-mirage",
    claim="An ability that appears suddenly with scale by exact match grows gradually by edit distance on the same outputs.",
    source="Schaeffer et al. 2023, arXiv:2304.15004; models and task are our own",
    expectation="Decoders of growing width, trained alike to copy five of a thousand symbols, generate answers once; the same "
    "answers are scored by exact match and by token edit distance. From size to size exact match lags behind: averaged over "
    "the sizes, edit distance has gone at least a tenth more of its way from the smallest model to the largest. The largest "
    "step between neighbouring sizes is a greater share of that way for exact match. And exact match is what the mathematical "
    "model says, the share p of right tokens to the power of the length: within 0.1, averaged over the sizes. Reported "
    "without an expectation: emergence scores, and on how few right answers the accuracies of small models rest.",
    scales={
        "smoke": {
            "seeds": 1, "widths": (8, 12, 16), "task": "copying(symbols=8)", "length": 3, "steps": 3, "rows": 8, "test": 40,
            "rate": 4e-3,
        },
        "laptop": {
            "seeds": 5, "widths": (6, 8, 10, 12, 14, 16, 20), "task": "copying(symbols=1000)", "length": 5, "steps": 500, "rows": 64,
            "test": 2000, "rate": 4e-3,
        },
        "gpu": {
            "seeds": 5, "widths": (8, 16, 32, 64, 128, 256, 512), "task": "addition(format='padded_reversed')", "length": 4,
            "steps": 10000, "rows": 256, "test": 10000, "rate": 1e-3,
        },
    },
    parts=("text/tasks/sequences.py", "text/tasks/arithmetic.py"),
)  # fmt: skip
def emergence_mirage(
    lab: Lab, *, widths: Sequence[int], task: str, length: int, steps: int, rows: int, test: int, rate: float
) -> None:
    """At scale gpu the task is the paper's addition of two numbers of four digits, padded and with the answer reversed.

    Departures: a family of decoders trained from scratch in place of GPT-3, and no solved examples before a question. At scale
    laptop a task whose loss falls gradually with width, since in pilots sums and products did not: on those, tiny decoders
    learn one digit after the other at once or not at all, so that all metrics jump.
    """
    arms = {
        width: lab.measured(
            f"width {width}", [EXACT, EDITS, TOKENS, LOSS], grow, f"{steps}steps", dtype="bfloat16", width=width, task=task,
            length=length, rows=rows, test=test, rate=rate,
        )
        for width in widths
    }  # fmt: skip
    exact, edits, tokens = (
        np.array([arm.arrays[m.name].sum(1) for arm in arms.values()]).transpose(1, 0, 2)
        for m in (EXACT, EDITS, TOKENS)
    )
    exact, edits, tokens = (sums[..., 0] / sums[..., 1] for sums in (exact, edits, tokens))
    # [seeds, sizes] each.
    lag = (gone(edits) - gone(exact)).mean(1)
    step = np.abs(np.diff(gone(exact))).max(1) - np.abs(np.diff(gone(edits))).max(1)
    answer = len(arms[widths[0]].records[0]["notes"]["prefixes"])
    gap = np.abs(exact - tokens**answer).mean(1)
    for metric, values, bound in ((LAG, lag, {"above": 0.1}), (STEP, step, {"above": 0.0}), (GAP, gap, {"below": 0.1})):
        effect = lab.contrast(metric.name, {_arm(metric, values): 1, _arm(metric, 0 * values): -1})
        lab.expect(f"{metric.name}: {metric.description}", effect, **bound)
    sizes = [arm.records[0]["notes"]["parameters"] for arm in arms.values()]
    lines = {EXACT.name: exact, f"1 - {EDITS.name}": 1 - edits, TOKENS.name: tokens}
    lab.curve(
        "The same outputs by two metrics", "logarithm of the parameters, base 10", "share",
        {label: dict(zip(np.log10(sizes).tolist(), y.T.tolist(), strict=True)) for label, y in lines.items()},
    )  # fmt: skip
    prefixes = {
        f"width {width}": {
            float(k): [record["notes"]["prefixes"][k - 1] for record in arm.records] for k in range(1, answer + 1)
        }
        for width, arm in arms.items()
    }
    lab.curve("Exact match by length", "first tokens of the answer", "share whose first tokens are all right", prefixes)
    lab.notes["emergence score"] = {
        metric: [emergence(y, 1 / (len(arms) * test)) for y in values]
        for metric, values in ((EXACT.name, exact), (EDITS.name, -edits))
    }
    lab.notes["right answers, with Wilson intervals of their share"] = {
        label: [[int(hits), *wilson(int(hits), test)] for hits in arms[width].arrays[EXACT.name].sum(1)[:, 0]]
        for width, label in ((width, f"width {width}") for width in widths)
    }


def _arm(metric: Metric, values: Array) -> Arm:
    """An arm of one value a seed."""
    return Arm(metric.name, [metric], [], {metric.name: values[:, None, None]})


def gone(values: Array) -> Array:
    """[seeds, sizes]: how much of the way from the first size's value to the last one's is gone; all of it from equal ones."""
    way = values[:, -1:] - values[:, :1]
    return np.divide(values - values[:, :1], way, out=np.ones_like(values), where=way != 0)


def emergence(values: Sequence[float] | Array, floor: float) -> float:
    """BIG-Bench's score of values in the order of scale: their range over the root of the median squared step, with a sign.

    sign(argmax - argmin) (max - min) / sqrt(median (y_i - y_(i-1))^2)

    Where the root is less than `floor`, the floor stands for it. Source: arXiv:2304.15004, section 4, from memory.
    """
    y = np.asarray(values)
    middle = max(float(np.sqrt(np.median(np.diff(y) ** 2))), floor)
    return float(np.sign(y.argmax() - y.argmin()) * (y.max() - y.min()) / middle)


def wilson(hits: int, items: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share by Wilson's score."""
    share, unit = hits / items, z**2 / items
    middle, half = share + unit / 2, z * np.sqrt(share * (1 - share) / items + unit / items / 4)
    return float((middle - half) / (1 + unit)), float((middle + half) / (1 + unit))


def distances(found: NDArray[np.int64], length: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n]: Levenshtein's distance of the first `length` tokens of `found` [n, any] from `wanted` [n, any]."""
    rows = np.empty((found.shape[1] + 1, len(wanted), wanted.shape[1] + 1), np.int64)
    rows[0] = np.arange(wanted.shape[1] + 1)
    for i in range(found.shape[1]):
        rows[i + 1, :, 0] = i + 1
        for j in range(wanted.shape[1]):
            changed = rows[i, :, j] + (found[:, i] != wanted[:, j])
            rows[i + 1, :, j + 1] = np.minimum(changed, 1 + np.minimum(rows[i, :, j + 1], rows[i + 1, :, j]))
    return rows[length, np.arange(len(found)), -1]


def grow(
    run: Run, folder: Path, *, width: int, task: str, length: int, rows: int, test: int, rate: float
) -> dict[str, Array]:
    """Train a decoder of this width, generate the answers to test questions, and score them in two ways."""
    import torch

    from bakeoff.training.worlds import Fresh, from_scratch

    made: Any = tasks.make(task)
    asked = made.examples("test", length, test)
    model: Any = from_scratch(
        run, Fresh(made, length, rows, run.seed), learning_rate=rate, vocab_size=len(made.vocabulary), hidden_size=width,
        num_hidden_layers=2, num_attention_heads=2, positions="learned", max_position_embeddings=asked.tokens.shape[1],
        tie_word_embeddings=False, initializer_range=0.1,
    )  # fmt: skip
    begin = int(asked.answer[0])
    whole = torch.from_numpy(asked.tokens.astype(np.int64)).to(run.device)
    ids, answers = whole[:, :begin], whole[:, begin:-1]
    with torch.no_grad(), run.autocast():
        while ids.shape[1] < asked.tokens.shape[1]:
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        logits = model(input_ids=whole[:, :-2], use_cache=False).logits[:, begin - 1 :].float()
    losses = -logits.log_softmax(-1).gather(2, answers[..., None])[..., 0].sum(1)
    likeliest = (logits.argmax(-1) == answers).sum(1)
    generated, wanted = ids[:, begin:].cpu().numpy(), answers.cpu().numpy()
    ended = generated == asked.tokens[0, -1]
    said = np.where(ended.any(1), ended.argmax(1), generated.shape[1])
    edits = distances(generated, said, wanted)
    run.notes["parameters"] = sum(p.numel() for p in model.parameters())
    right = generated[:, :-1] == wanted
    run.notes["prefixes"] = [float(right[:, : k + 1].all(1).mean()) for k in range(wanted.shape[1])]
    many, tokens = np.ones(test), np.full(test, wanted.shape[1])
    return {
        EXACT.name: np.column_stack([edits == 0, many]),
        EDITS.name: np.column_stack([edits, tokens]),
        TOKENS.name: np.column_stack([likeliest.cpu().numpy(), tokens]),
        LOSS.name: np.column_stack([losses.cpu().numpy(), tokens]),
    }
