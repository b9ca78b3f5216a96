"""What people use today to train from scratch: AdamW with one of two schedules."""

from __future__ import annotations

from typing import Annotated

from torch import nn
from transformers import PreTrainedModel

from bakeoff import lm
from bakeoff.method import Range
from bakeoff.pretrain.contest import pretrain
from bakeoff.training.optimizers import matrices_decay
from bakeoff.training.run import Run
from bakeoff.training.schedules import Schedule, cosine
from bakeoff.training.sources import PretrainData

LearningRate = Annotated[float, Range(1e-5, 1e-1, log=True)]
WeightDecay = Annotated[float, Range(0.0, 1.0)]
WarmUp = Annotated[float, Range(0.0, 0.5, search=False)]


@pretrain.method(
    source="Brown et al. 2020, arXiv:2005.14165, appendix B",
    departures="The warm-up and the decay are shares of the budget, where the paper's are numbers of tokens.",
)
def adamw(
    model: PreTrainedModel,
    data: PretrainData,
    run: Run,
    *,
    learning_rate: LearningRate = 3e-3,
    weight_decay: WeightDecay = 0.1,
    warm_up: WarmUp = 0.05,
) -> nn.Module:
    """AdamW with a warm-up and a cosine down to a tenth of the learning rate.

    Betas 0.9 and 0.95, gradient norms of at most 1, weight decay of matrices only.

    Source: Brown et al. 2020, arXiv:2005.14165, appendix B.
    Args: learning_rate: the peak. weight_decay: coefficient, multiplied by the learning rate. warm_up: share of the budget.
    Departures: warm-up and decay are shares of the budget, where the paper's are numbers of tokens.
    """
    return _trained(model, data, run, learning_rate, weight_decay, cosine(warm_up, least=0.1))


@pretrain.method(
    source="Hu et al. 2024, arXiv:2404.06395, section 4",
    departures="The rate falls on a line to 0 (Hägele et al. 2024, arXiv:2405.18392), where the paper's falls exponentially.",
)
def wsd(
    model: PreTrainedModel,
    data: PretrainData,
    run: Run,
    *,
    learning_rate: LearningRate = 3e-3,
    weight_decay: WeightDecay = 0.1,
    warm_up: WarmUp = 0.05,
    decay: Annotated[float, Range(0.01, 0.5, search=False)] = 0.2,
) -> nn.Module:
    """AdamW whose learning rate rises, stays, and falls to 0 only at the end, so that a longer run can begin in its middle.

    Source: Hu et al. 2024, arXiv:2404.06395, section 4 (warm-up, stable, decay).
    Args: as of adamw. decay: share of the budget, at its end, over which the rate falls.
    Departures: it falls on a line to 0 (Hägele et al. 2024, arXiv:2405.18392), where the paper's falls exponentially.
    """

    def factor(fraction: float) -> float:
        rising = fraction / warm_up if warm_up else 1.0
        return max(0.0, min(1.0, rising, (1.0 - fraction) / decay))

    return _trained(model, data, run, learning_rate, weight_decay, factor)


def _trained(
    model: PreTrainedModel, data: PretrainData, run: Run, learning_rate: float, weight_decay: float, schedule: Schedule
) -> nn.Module:
    return run.train(
        lm.clone(model),
        data.batches(run),
        learning_rate=learning_rate,
        optimizer=matrices_decay(weight_decay),
        schedule=schedule,
        clip=1.0,
    )
