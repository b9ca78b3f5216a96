"""What people use today, from well-kept libraries: full fine-tuning and the adapters of peft."""

from __future__ import annotations

from typing import Annotated

from bakeoff import lm
from bakeoff.method import Range
from bakeoff.training.run import Run
from bakeoff.tune.contest import TuneData, tune


@tune.method(source="the usual practice", changes="weights")
def full(model, data: TuneData, run: Run, *, learning_rate: Annotated[float, Range(1e-6, 1e-1, log=True)] = 3e-4):  # type: ignore[no-untyped-def]
    """Every weight learns.

    Args: learning_rate: peak of AdamW's, after a warm-up over 5% of the budget and before a linear decay to 0.
    """
    return run.train(lm.clone(model), data.batches(run), learning_rate=learning_rate)
