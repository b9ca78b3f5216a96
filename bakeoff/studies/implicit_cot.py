"""A chain of thought taken away token by token: what a model that began with it still answers once it is gone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text import tasks
from bakeoff.text.tasks import Examples, TokenTask

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bakeoff.training.batches import Batch
    from bakeoff.training.run import Run

ACCURACY = Metric("accuracy", "share", "higher", "whole answers right, in the form that the arm ends with")
SMOOTHING = 4.0
GREATEST_OFFSET = 99
WHOLE = 10**9
POINTS = 10
ARMS: dict[str, dict[str, Any]] = {
    "explicit": {"schedule": "never"},
    "no chain": {"schedule": "whole"},
    "stepwise": {"schedule": "stepwise"},
    "stepwise, no reset": {"schedule": "stepwise", "reset": False},
    "stepwise, from the right": {"schedule": "stepwise", "right": True},
    "abrupt": {"schedule": "abrupt"},
}
ABLATIONS = ("stepwise, no reset", "stepwise, from the right")
ALONG = "validation accuracy by step"


@study(
    slug="implicit-cot",
    claim="Taking a chain of thought away token by token teaches a model to answer without it what it does not learn without.",
    source="Deng, Choi and Shieber 2024, arXiv:2405.14838, and the authors' training script; task and sizes of the scales "
    "smoke and laptop are our own",
    expectation="Decoders learn the last value of a chain of small operations, the running values being the chain of "
    "thought, or at scale gpu 4-by-4 multiplication with partial products; the share of right answers is that on unseen "
    "questions after equal steps. Stepwise internalisation, asked without a chain, answers at least 20 points more than "
    "training without one (the paper: 29% against 100% at 4 by 4 digits) and no more than 10 points less than the model that "
    "writes its chain. Taking the whole chain away at once, half-way through the time that stepwise removal takes, does "
    "worse than stepwise removal. Reported without an expectation, at half of the seeds, since the paper shows one run of "
    "each: no reset of the optimizer, and removal from the right.",
    scales={
        "smoke": {
            "seeds": 1, "task": "modular-chain(format='chain_of_thought')", "separator": ".", "difficulty": 3, "steps": 8,
            "rows": 4, "interval": 2, "layers": 1, "width": 16, "heads": 2, "rate": 1e-2, "items": 8,
        },
        "laptop": {
            "seeds": 4, "task": "modular-chain(format='chain_of_thought', modulus=3, operations='+')", "separator": ".",
            "difficulty": 5, "steps": 2000, "rows": 64, "interval": 400, "layers": 2, "width": 64, "heads": 4, "rate": 2e-3,
            "items": 512,
        },
        "gpu": {
            "seeds": 3, "task": "multiplication(format='chain')", "separator": "####", "difficulty": 4, "steps": 240_000,
            "rows": 32, "interval": 3156, "layers": 12, "width": 768, "heads": 12, "rate": 5e-5, "items": 1000,
        },
    },
    parts=("text/tasks/chains.py", "text/tasks/arithmetic.py"),
)  # fmt: skip
def implicit_cot(
    lab: Lab, *, task: str, separator: str, difficulty: int, steps: int, rows: int, interval: int, layers: int, width: int,
    heads: int, rate: float, items: int,
) -> None:  # fmt: skip
    """One rate for all arms; chains of additions modulo 3 at scale laptop.

    Departures: models from scratch with rotary positions, not a pretrained GPT-2; new examples in every batch in place of
    808,000 that come back; the model is that of the last step, not the best on validation questions. At scale gpu a token
    goes every 3156 steps, as with 8 tokens an epoch of 808,000 examples.
    """
    shared: dict[str, Any] = {
        "task": task, "separator": separator, "difficulty": difficulty, "rows": rows, "interval": interval,
        "layers": layers, "width": width, "heads": heads, "rate": rate, "items": items,
    }  # fmt: skip
    some = replace(lab, seeds=lab.seeds[: (len(lab.seeds) + 1) // 2])
    arms: dict[str, Arm] = {}
    for name, own in ARMS.items():
        arms[name] = (some if name in ABLATIONS else lab).measured(
            name,
            [ACCURACY],
            learn,
            f"{steps}steps",
            dtype="bfloat16",
            **{"reset": True, "right": False, **own, **shared},
        )

    stepwise = arms["stepwise"]
    for other, bound in (("no chain", 0.2), ("explicit", -0.1), ("abrupt", 0.0)):
        effect = lab.contrast(ACCURACY.name, {stepwise: 1, arms[other]: -1})
        lab.expect(f"accuracy, stepwise less {other}", effect, above=bound)
    lab.curve(
        "Right answers, by explicit with its chain, by the others without", "step", "share of validation questions",
        {
            name: {int(done): [r["notes"][ALONG][done] for r in arm.records] for done in arm.records[0]["notes"][ALONG]}
            for name, arm in arms.items()
            if name not in ABLATIONS
        },
    )  # fmt: skip


@dataclass(frozen=True)
class Removal:
    """How many tokens of each example's chain are taken away at a step.

    scheduled(step) = step // interval, "stepwise"; "never" 0; "whole" all of them; "abrupt" 0 up to half of the steps that
    stepwise removal takes, then all. Where any are to go, each example loses o more, P(o) = (1 - e^-4) e^(-4 o).

    length: tokens of the chain. seed: of the offsets o.
    """

    schedule: str
    interval: int
    length: int
    seed: int

    def scheduled(self, step: int) -> int:
        if self.schedule == "stepwise":
            return step // self.interval
        jump = self.interval * self.length // 2
        return WHOLE if self.schedule == "whole" or (self.schedule == "abrupt" and step >= jump) else 0

    def removed(self, step: int, rows: int) -> NDArray[np.int64]:
        """[rows], at most `length`."""
        offsets = np.zeros(rows, np.int64)
        if self.schedule != "never":
            from bakeoff.training.batches import derived_seed

            draw = np.random.default_rng(derived_seed(self.seed, "offsets", step))
            offsets = np.minimum(draw.exponential(1 / SMOOTHING, rows).astype(np.int64), GREATEST_OFFSET)
        return np.minimum(self.scheduled(step) + offsets, self.length)

    def resets(self, step: int, rows: int) -> bool:
        """Whether the optimizer begins anew: more is scheduled than before, and the batch before still had some of a chain."""
        if step == 0 or self.scheduled(step) <= self.scheduled(step - 1):
            return False
        return bool((self.removed(step - 1, rows) < self.length).any())


def shortened(examples: Examples, removed: NDArray[np.int64], separator: int, *, right: bool = False) -> Examples:
    """The examples without `removed` [n] tokens of their chains, the first ones or those on the `right`.

    A chain is what stands between the question and the token `separator`; from a shorter one all of it goes.
    """
    place, begin = np.arange(examples.tokens.shape[1]), examples.answer[:, None]
    length = ((examples.tokens == separator) & (place >= begin)).argmax(1) - examples.answer
    removed = np.minimum(removed, length)
    first = (examples.answer + (length - removed if right else 0))[:, None]
    kept = (place < first) | ((place >= first + removed[:, None]) & (place < examples.length[:, None]))
    left = examples.length - removed
    tokens = np.full((len(examples), left.max()), tasks.PAD, np.int32)
    tokens[np.arange(left.max()) < left[:, None]] = examples.tokens[kept]
    return Examples(tokens, examples.answer, left, examples.key)


@dataclass(frozen=True)
class Shortened:
    """Every step `rows` new examples, their chains shortened as the removal says."""

    task: TokenTask
    difficulty: int
    rows: int
    seed: int
    separator: int
    removal: Removal
    right: bool

    def __call__(self, step: int) -> Batch:
        from bakeoff.training.batches import derived_seed
        from bakeoff.training.worlds import batch_of

        drawn = self.task.examples("train", self.difficulty, self.rows, derived_seed(self.seed, "examples", step))
        removed = self.removal.removed(step, self.rows)
        return batch_of(shortened(drawn, removed, self.separator, right=self.right))


def learn(
    run: Run, folder: Path, *, schedule: str, reset: bool, right: bool, task: str, separator: str, difficulty: int,
    rows: int, interval: int, layers: int, width: int, heads: int, rate: float,
    items: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train a decoder while its chain goes, and ask it unseen questions, with the chain where it was never taken away."""
    import torch

    from bakeoff.training.along import Along
    from bakeoff.training.schedules import constant
    from bakeoff.training.worlds import answered, decoder

    made = tasks.make(task)
    assert isinstance(made, TokenTask)
    sample = made.examples("train", difficulty, 1)
    end = made.vocabulary.id(separator)
    length = int(sample.length[0] - shortened(sample, np.array([WHOLE]), end).length[0])
    removal = Removal(schedule, interval, length, run.seed)
    model = decoder(
        run.seed, vocab_size=len(made.vocabulary), hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, initialization="fan_in",
    ).to(run.device)  # type: ignore[arg-type] # fmt: skip
    optimizers: list[torch.optim.Optimizer] = []

    def maker(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        optimizers.append(torch.optim.AdamW(parameters, lr=learning_rate))
        return optimizers[-1]

    def begin_anew(step: int) -> None:
        if reset and removal.resets(step, rows):
            optimizers[-1].state.clear()

    def asked(split: str, count: int) -> NDArray[np.float64]:
        questions = made.examples(split, difficulty, count)
        questions = questions[np.unique(questions.key, return_index=True)[1]]
        removed = np.full(len(questions), 0 if schedule == "never" else WHOLE)
        found: NDArray[np.float64] = answered(model, shortened(questions, removed, end))[:, 0]
        return found

    steps = int(run.budget.amount)
    along = Along(
        run.folder / "along.json", [steps * i // POINTS for i in range(1, POINTS + 1)],
        lambda: [float(asked("validation", items // 4).mean())],
    )  # fmt: skip
    run.train(
        model, Shortened(made, difficulty, rows, run.seed, end, removal, right), learning_rate=rate, optimizer=maker,
        schedule=constant, before_step=begin_anew, after_step=along,
    )  # fmt: skip
    run.notes[ALONG] = {str(done): values[0] for done, values in along.read().items()}
    right_answers = asked("test", items)
    return {ACCURACY.name: np.stack([right_answers, np.ones_like(right_answers)], 1)}
