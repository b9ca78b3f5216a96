"""Half fine-tuning: half of the matrices of every block learn, the other half stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from bakeoff import lm
from bakeoff.method import Range
from bakeoff.training.run import Run
from bakeoff.tune.contest import TuneData, tune

T = TypeVar("T")


@tune.method(
    paper="hft",
    source="Hui et al. 2024, arXiv:2404.18466, section 3",
    changes="weights",
    departures="The paper's stages are successive tasks; here they are equal parts of the budget, by default one.",
)
def hft(
    model: PreTrainedModel,
    data: TuneData,
    run: Run,
    *,
    fraction: Annotated[float, Range(0, 1)] = 0.5,
    unit: Literal["category", "layer", "model"] = "category",
    stages: Annotated[int, Range(1, 64, log=True, search=False)] = 1,
    learning_rate: Annotated[float, Range(1e-6, 1e-1, log=True)] = 3e-4,
) -> nn.Module:
    """Half of each block's matrices learn, the other half keep their bits; the halves are drawn anew at each stage.

    theta <- theta - lr * m * grad,  m in {0, 1} drawn once per matrix and stage

    Source: Hui et al. 2024, arXiv:2404.18466, section 3.
    Args: fraction: share of the blocks' matrices that learns; 1 is full fine-tuning. What lies outside the blocks
            (embeddings, final norm, head) always learns; with a fraction of 0, that alone.
        unit: "category" draws the share among attention matrices, MLP matrices and norms each, as evenly over the
            blocks as whole matrices allow (2 of 4, 2 of 3 in half of the blocks and 1 of 3 in the rest, 1 of 2);
            "layer" draws whole blocks; "model" draws among all matrices and norms of the blocks.
        stages: equal parts of the budget, each with its own draw, optimizer state and warm-up.
    Departures: the paper's stages are successive tasks; here they are parts of one budget. A bias goes with its matrix,
        the norms of queries and keys are a category, and the final norm learns as embeddings and head do: the paper's
        model has no bias and no such norms, and of the final norm it does not speak. A fused projection is split into
        queries, keys and values.
    """
    anatomy = lm.anatomy(model)
    inside = {id(part) for block in anatomy.blocks for part in block.parts}
    outside = [part for part in anatomy.parts if id(part) not in inside]
    drawn = [outside + draw(anatomy.blocks, fraction, unit, run.generator("hft", stage)) for stage in range(stages)]
    names = {name for parts in drawn for part in parts for name in (part.name, part.bias_name) if name}
    tuned: nn.Module = lm.clone(model, learning=names)
    batches = data.batches(run)
    for stage, parts in enumerate(drawn):
        begin = run.meter.steps
        run.train(
            tuned,
            lambda step, begin=begin: batches(begin + step),
            learning_rate=learning_rate,
            parameters=anatomy.mask(parts),
            # The tiny surplus keeps rounding from costing a step.
            share=min((stage + 1) / stages - run.fraction + 1e-12, 1.0),
        )
    return tuned.requires_grad_(True)


def draw(blocks: Sequence[lm.Block], fraction: float, unit: str, generator: torch.Generator) -> list[lm.Part]:
    """The parts of the blocks that learn."""
    if unit == "layer":
        return [part for block in _share([blocks], fraction, generator) for part in block.parts]
    if unit == "model":
        return _share([[part for block in blocks for part in block.parts]], fraction, generator)
    categories = [[getattr(block, kind) for block in blocks] for kind in ("attention", "mlp", "norms", "other")]
    return [part for groups in categories for part in _share(groups, fraction, generator)]


def _share(groups: Sequence[Sequence[T]], fraction: float, generator: torch.Generator) -> list[T]:
    """A fraction of all members, a half rounded up; groups have one size, and give numbers that differ by at most 1."""
    total = int(fraction * sum(map(len, groups)) + 0.5)
    each, more = divmod(total, len(groups))
    luckier = torch.randperm(len(groups), generator=generator)[:more].tolist()
    return [
        group[i]
        for place, group in enumerate(groups)
        for i in torch.randperm(len(group), generator=generator)[: each + (place in luckier)].tolist()
    ]
