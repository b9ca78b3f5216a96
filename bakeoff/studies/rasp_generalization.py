"""Tasks with a short RASP-L program and tasks without one: which of them a transformer carries on to longer inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study

if TYPE_CHECKING:
    from torch import nn

    from bakeoff.training.run import Run

SHORT = {
    "count": "counting(greatest_number={numbers})",
    "mode": "mode(symbols={size})",
    "copy, all different": "copying(symbols={size}, unique=True)",
    "sort": "sorting(symbols={size}, unique=True)",
}
LONG = {
    "copy, two symbols": "copying(symbols=2)",
    "parity": "parity",
    "addition": "addition(balance=True)",
}
HINTED = {
    "parity, hints": "parity(hints=True, scratchpad=True, marks={size})",
    "addition, hints": "addition(format='reversed', hints=True, balance=True, hint_words={size})",
}
TASKS = {**SHORT, **LONG, **HINTED}
GUESSED = {"parity": 0.5}
FEW = {
    "count": 1500, "mode": 1000, "copy, all different": 5000, "copy, two symbols": 5000, "parity": 2500, "parity, hints": 2500,
}  # fmt: skip


@study(
    slug="rasp-generalization",
    claim="A transformer goes on to longer inputs than those of training on the tasks that a short RASP-L program solves, and "
    "not on others, unless they are rewritten so that a short program solves them.",
    source="Zhou et al. 2023, arXiv:2310.16028; sizes and bounds are our own, the scratchpad of parity is from memory of it",
    expectation="Small decoders whose positions are all trained alike each learn one task on inputs of up to a given length. "
    "On inputs that are 10 longer (laptop: 6 longer, which is twice as long), the share of answers without a mistake, "
    "corrected for guessing, is at least 30 points higher on average over the tasks with a short program (counting, the "
    "mode, copying different symbols; at the gpu scale sorting too) than over those without (copying sequences of two "
    "symbols, parity; at the gpu scale forward addition too). It is at least 30 points higher for copying different symbols "
    "than for copying two, and for parity with index hints and a scratchpad than for parity alone. The gpu scale holds the "
    "claim, with learned positions and lengths up to 40; the laptop scale, with relative positions and lengths up to 6, "
    "shows the mechanism: a task that is not learned there at the trained length says little, and is named.",
    scales={
        "smoke": {
            "seeds": 1, "tasks": dict.fromkeys(FEW, 3), "rows": 4, "longest": 6, "beyond": (0, 6), "size": 16, "items": 8,
            "width": 16, "layers": 1, "heads": 1, "positions": "learned", "rate": 1e-3,
        },
        "laptop": {
            "seeds": 3, "tasks": FEW, "rows": 32, "longest": 6, "beyond": (0, 2, 4, 6), "size": 64, "items": 256,
            "width": 64, "layers": 2, "heads": 4, "positions": "relative", "rate": 2e-3,
        },
        "gpu": {
            "seeds": 10, "tasks": dict.fromkeys(TASKS, 20_000), "rows": 128, "longest": 40, "beyond": (0, 5, 10, 20),
            "size": 256, "items": 1024, "width": 512, "layers": 6, "heads": 8, "positions": "learned", "rate": 3e-4,
        },
    },
    parts=("text/tasks/counting.py", "text/tasks/sequences.py", "text/tasks/arithmetic.py"),
)  # fmt: skip
def rasp_generalization(
    lab: Lab, *, tasks: Mapping[str, int], longest: int, beyond: tuple[int, ...], size: int, **conditions: Any
) -> None:
    """tasks: the steps of each. beyond: by how much test inputs are longer than the longest of training.

    The two tasks of a pair that is compared take equally many steps; the paper trains each until it is learned.

    Departures: learned positions are trained alike by one example a row with a random first position, in place of examples
    packed into a long context; relative ones, which tell the last four tokens apart, are alike everywhere. Our sizes and
    balanced carries; copying in two symbols stands for copying with repeats.
    """
    metrics = [
        Metric(
            _at(more), "share", "higher", "answers without a mistake beyond guessing: (right - chance) / (1 - chance)"
        )
        for more in beyond
    ]
    arms = {
        label: lab.measured(
            label, metrics, learn, f"{steps}steps", dtype="bfloat16", task=TASKS[label].format(size=size, numbers=4 * size), steps=steps,
            longest=longest, beyond=list(beyond), guessed=GUESSED.get(label, 0.0), **conditions,
        )
        for label, steps in tasks.items()
    }  # fmt: skip
    short, long = ([arm for label, arm in arms.items() if label in kind] for kind in (SHORT, LONG))
    means: dict[Arm, float] = {a: 1 / len(short) for a in short} | {a: -1 / len(long) for a in long}
    far = _at(10 if 10 in beyond else beyond[-1])
    for sentence, weights in (
        ("mean of the tasks with a short program less that of those without", means),
        ("copying different symbols less copying two", {arms["copy, all different"]: 1, arms["copy, two symbols"]: -1}),
        ("parity with hints and scratchpad less parity", {arms["parity, hints"]: 1, arms["parity"]: -1}),
    ):
        lab.expect(f"{far}, {sentence}", lab.contrast(far, weights), above=0.3)
    lab.notes[
        f"{far}, pairs of a task with and one without a short program in which the former is better, ties as half"
    ] = float(np.mean([np.sign(a.mean(far) - b.mean(far)) / 2 + 0.5 for a in short for b in long]))
    lab.notes["not learned at the trained length (below 0.9)"] = [
        label for label, arm in arms.items() if arm.mean(_at(0)) < 0.9
    ]
    lab.curve("Answers without a mistake, beyond guessing", "length", "share", {
        label: {
            longest + more: arm.metric(_at(more)).reduce(arm.arrays[_at(more)].sum(axis=1)).tolist() for more in beyond
        }
        for label, arm in arms.items()
    })  # fmt: skip


def _at(more: int) -> str:
    return f"exact at +{more}" if more else "exact as trained"


def placed(model: nn.Module, positions: int, offset: int) -> nn.Module:
    """The model with rows that begin at a random one of its learned positions in training, and at `offset` afterwards."""
    import torch
    from torch import Tensor, nn

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
            rows, length = input_ids.shape
            begin = torch.full((rows, 1), offset, device=input_ids.device)
            if self.training:
                begin = torch.randint(positions - length + 1, (rows, 1)).to(input_ids.device)
            places = begin + torch.arange(length, device=input_ids.device)
            return self.model(input_ids=input_ids, position_ids=places, use_cache=use_cache)

    return Placed()


def learn(
    run: Run, folder: Path, *, task: str, guessed: float, steps: int, rows: int, longest: int, beyond: Sequence[int],
    items: int, width: int, layers: int, heads: int, positions: str, rate: float,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train on new examples of lengths up to `longest`, all equally often, and answer test questions of greater lengths.

    There are so many positions that rows of training, wherever they begin, cover those of the longest test row at least
    half as often as any other.
    """
    from bakeoff.text import tasks
    from bakeoff.training.batches import Batch
    from bakeoff.training.optimizers import matrices_decay
    from bakeoff.training.schedules import cosine
    from bakeoff.training.worlds import answered, batch_of, decoder

    made: Any = tasks.make(task)
    examples = made.examples("train", range(2, longest + 1), steps * rows, run.seed)
    tested = {more: made.examples("test", longest + more, items) for more in beyond}
    trained, needed = examples.tokens.shape[1], max(test.tokens.shape[1] for test in tested.values())
    model: nn.Module = decoder(
        run.seed, vocab_size=len(made.vocabulary), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        positions=positions, relative_distance=4, max_position_embeddings=trained + needed, initialization="fan_in",
    ).to(run.device)  # type: ignore[arg-type] # fmt: skip
    if positions == "learned":
        model = placed(model, trained + needed, trained // 2)

    def batches(step: int) -> Batch:
        return batch_of(examples[step * rows : (step + 1) * rows])

    run.train(
        model,
        batches,
        learning_rate=rate,
        schedule=cosine(0.05, least=0.1),
        optimizer=matrices_decay(0.0),
    )
    return {
        _at(more): np.stack([answered(model, test)[:, 0] - guessed, np.full(items, 1 - guessed)], 1)
        for more, test in tested.items()
    }  # fmt: skip
