"""Mixed training: every step learns target rows and rows to keep together, in a fixed ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn
from transformers import PreTrainedModel

from bakeoff import lm
from bakeoff.errors import UsageError
from bakeoff.method import Range
from bakeoff.text.tokenise import Item
from bakeoff.training.batches import Batch, Shuffled, collate
from bakeoff.training.run import Run
from bakeoff.tune.contest import TuneData, tune


@dataclass(frozen=True)
class Mixed:
    """Batches of `target.rows` rows, of which target : keep is target_parts : keep_parts, target first.

    Of the first r rows of training, floor(r * keep_parts / (target_parts + keep_parts)) are rows to keep. So the ratio
    is exact in every step if the sum of the parts divides the rows, else over as few steps as it can be: of 8 rows at
    15:1, every second step has one to keep. Each kind has its own order, drawn anew for each pass over it.
    """

    target: Shuffled
    keep: Shuffled
    target_parts: int
    keep_parts: int

    def __call__(self, step: int) -> Batch:
        (target_begin, keep_begin), (target_end, keep_end) = self.seen(step), self.seen(step + 1)
        return collate(_rows(self.target, target_begin, target_end) + _rows(self.keep, keep_begin, keep_end))

    def seen(self, steps: int) -> tuple[int, int]:
        """How many target rows and rows to keep the first `steps` steps hold."""
        rows = steps * self.target.rows
        keep = rows * self.keep_parts // (self.target_parts + self.keep_parts)
        return rows - keep, keep


def _rows(order: Shuffled, begin: int, end: int) -> list[Item]:
    return [item for position in range(begin, end) for item in order.draw(position, 1)]


@tune.method(
    paper="mixed-training",
    source="Reynolds 2025, arXiv:2512.13706, section 3.2; the author's training code",
    needs=("keep set",),
    changes="data",
    departures="A decoder-only model in place of an encoder-decoder. Rows to keep are shuffled anew in each pass, "
    "where the released code repeats the same batches, and no incomplete batch is dropped. Optimizer, schedule and "
    "length of training are the contest's: both kinds of row count towards the budget, where the paper gives every "
    "ratio the same number of target examples.",
)
def mixed_training(
    model: PreTrainedModel,
    data: TuneData,
    run: Run,
    *,
    target_parts: Annotated[int, Range(0, 1000, search=False)] = 1,
    keep_parts: Annotated[int, Range(0, 1000, search=False)] = 1,
    learning_rate: Annotated[float, Range(1e-6, 1e-1, log=True)] = 3e-4,
) -> nn.Module:
    """Every step learns target rows and rows to keep together, in a fixed ratio.

    loss = mean over all labelled tokens of the step, of both kinds alike

    Source: Reynolds 2025, arXiv:2512.13706, section 3.2, and the author's code, which joins both kinds in each step.
    Args:
        target_parts, keep_parts: the ratio in rows; the paper compares 1:1, 3:1, 7:1 and 15:1. 1:0 is full fine-tuning.
        learning_rate: peak of AdamW's, after a warm-up over 5% of the budget and before a linear decay to 0.
    Departures: a step has as many rows in all as any other method's, and all rows count towards the budget.
    Limits: at an equal budget the target is seen less, by target_parts / (target_parts + keep_parts); give
        (target_parts + keep_parts) / target_parts of the budget to compare at equal target examples; `notes` has the
        rows of each kind that were learned. The ratio counts rows: a kind with longer answers has more of the loss.
        Kept loss is measured on text like the keep set, so that it says little of what else is forgotten.

    Raises:
        UsageError: both parts are 0, or there is no keep set.
    """
    if target_parts + keep_parts == 0:
        raise UsageError("mixed-training: target_parts and keep_parts are both 0: give at least one that is not.")
    batches = Mixed(data.batches(run), data.keep_batches(run, "mixed-training"), target_parts, keep_parts)
    trained = run.train(lm.clone(model), batches, learning_rate=learning_rate)
    run.notes["target rows"], run.notes["keep rows"] = batches.seen(run.meter.steps)
    return trained
