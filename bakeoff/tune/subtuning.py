"""SubTuning: find the blocks whose training helps most on held-out rows, and train those alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from bakeoff import lm
from bakeoff.lm.score import token_statistics
from bakeoff.method import Range
from bakeoff.training.run import Run
from bakeoff.tune.contest import TuneData, tune

Subset = tuple[int, ...]


@tune.method(
    paper="subtuning",
    source="Kaplun et al. 2023, arXiv:2302.06354, section 2 and algorithm 1",
    changes="weights",
    departures="No new head is trained, so the empty subset is the untouched model; where no block gains more than "
    "epsilon, the best one is trained. Candidates are scored by loss, where the paper uses accuracy. "
    "The search spends a part of the budget, so its trainings are shorter than the last.",
)
def subtuning(
    model: PreTrainedModel,
    data: TuneData,
    run: Run,
    *,
    unit: Literal["block", "half"] = "block",
    rule: Literal["gain", "walk"] = "gain",
    epsilon: Annotated[float, Range(0, 1, search=False)] = 0.01,
    metric: Literal["loss", "accuracy"] = "loss",
    most_blocks: Annotated[int, Range(1, 1000, log=True, search=False)] = 3,
    search_share: Annotated[float, Range(0, 1, search=False)] = 0.5,
    validation_rows: Annotated[int, Range(1, 100000, log=True, search=False)] = 64,
    learning_rate: Annotated[float, Range(1e-6, 1e-1, log=True)] = 1e-3,
) -> nn.Module:
    """A greedy search on validation rows picks the blocks worth training; they learn, and all else keeps its bits.

    S <- S + {argmax_b score(S + {b})} while that gains more than epsilon; every score is of a training from the start

    Source: Kaplun et al. 2023, arXiv:2302.06354, section 2 and algorithm 1; the walk, and evaluation mode in what is
        frozen, from its published code.
    Args: unit: "block", or "half": attention or MLP of a block, each with its norm.
        rule: "gain" adds a block only if the score rises by more than epsilon; "walk" always goes on to the best one
            until the score falls more than epsilon below the best so far, which it returns.
        metric: of the validation rows: negative mean loss (nats), or the share of tokens predicted first.
        most_blocks: units chosen, at most. search_share: of the budget, divided evenly over the most trainings the
            search may make. validation_rows: rows scored, at most.
    Departures: the paper trains a new classification head with every subset; a language model has its own, which stays,
        as embeddings and final norm do. So the empty subset is the untouched model, and where no block gains more than
        epsilon the best one is trained. The paper scores accuracy, which a short training of a language model hardly
        moves; loss is the default here. Searching costs budget: its trainings are shorter than the last.
    Limits: where the search's share does not give every candidate a step, the search is for fewer blocks than
        most_blocks; where not even single blocks get one, all blocks are trained without a search. `notes` has the
        validation score of every single block ("profile"), of the untouched model ("untouched"), and the chosen blocks.
    """
    units = _units(lm.anatomy(model), unit)
    batches = data.batches(run)
    order = torch.randperm(len(data.validation), generator=run.generator("subtuning"))[:validation_rows].tolist()
    rows = [(data.validation[i].input_ids, data.validation[i].labels) for i in order]

    def train(subset: Subset, share: float) -> nn.Module:
        names = {name for i in subset for part in units[i].parts for name in (part.name, part.bias_name) if name}
        tuned = lm.clone(model, learning=names)
        own = _units(lm.anatomy(tuned), unit)
        learning = [module for i in subset for module in own[i].modules]

        def modes(step: int) -> None:
            tuned.eval()
            for module in learning:
                module.train()

        return run.train(tuned, batches, learning_rate=learning_rate, parameters=names, share=share, before_step=modes)

    step = {"steps": 1.0, "tokens": float(batches(0).tokens), "seconds": 0.0}[run.budget.unit]
    most = min(most_blocks, len(units))
    while most and run.budget.amount * search_share < step * trainings(len(units), most):
        most -= 1
    share = search_share / trainings(len(units), most) + _ROUNDING if most and run.budget.amount * search_share else 0.0
    scores: dict[Subset, float] = {}

    def evaluate(subset: Subset) -> float:
        if len(scores) > 1 and run.fraction >= search_share:
            return -math.inf
        found = token_statistics(train(subset, share) if subset else model, rows)  # type: ignore[arg-type]
        run.meter.forward_tokens += sum(len(input_ids) for input_ids, _ in rows)
        run.tick()
        tokens = sum(s.tokens for s in found)
        total = sum(s.hits for s in found) if metric == "accuracy" else -sum(s.total for s in found)
        scores[subset] = total / tokens
        return scores[subset]

    chosen: Subset = tuple(range(len(units)))
    if share:
        chosen = greedy(len(units), evaluate, rule=rule, epsilon=epsilon, most=most)
        profile = {subset[0]: score for subset, score in scores.items() if len(subset) == 1}
        chosen = chosen or (max(profile, key=lambda i: profile[i]),)
        run.notes["untouched"] = scores[()]
        run.notes["profile"] = {units[i].name: score for i, score in profile.items()}
    run.notes["blocks"] = [units[i].name for i in chosen]
    return train(chosen, min(1.0 - run.fraction + _ROUNDING, 1.0)).requires_grad_(True)


def greedy(count: int, evaluate: Callable[[Subset], float], *, rule: str, epsilon: float, most: int) -> Subset:
    """A good subset of range(count) with at most `most` members, in the order they were added; ties go to the first."""
    best: Subset = ()
    current: Subset = ()
    best_score = evaluate(())
    while len(current) < most:
        candidates = [(*current, i) for i in range(count) if i not in current]
        found = [evaluate(candidate) for candidate in candidates]
        score = max(found)
        current = candidates[found.index(score)]
        if score > best_score + (epsilon if rule == "gain" else 0.0):
            best, best_score = current, score
        elif rule == "gain" or score < best_score - epsilon:
            break
    return best


def trainings(count: int, most: int) -> int:
    """The most trainings that a search for at most `most` of `count` units makes."""
    return sum(count - taken for taken in range(most))


_ROUNDING = 1e-12
"""Added to shares so that rounding never costs a step."""


@dataclass(frozen=True)
class _Unit:
    """What is trained or left as a whole: its parameters, and the modules that go into training mode with it."""

    name: str
    parts: Sequence[lm.Part]
    modules: Sequence[nn.Module]


def _units(anatomy: lm.Anatomy, unit: str) -> list[_Unit]:
    if unit == "block":
        return [_Unit(f"block {b.index}", b.parts, [b.module]) for b in anatomy.blocks]
    halves = []
    for b in anatomy.blocks:
        attention, mlp = (*b.attention, *b.norms[:1], *b.other), (*b.mlp, *b.norms[1:])
        halves.append(_Unit(f"block {b.index} attention", attention, [b.attention_module]))
        # OPT keeps the dropout of its MLP in the block itself, where it stays off.
        halves.append(_Unit(f"block {b.index} mlp", mlp, [b.mlp_module] if b.mlp_module else []))
    return halves
