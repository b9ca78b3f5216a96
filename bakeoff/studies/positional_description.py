"""Where a digit stands: formats of products, and ways to keep a model of sums from leaning on positions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff import stats
from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text.tasks.arithmetic import EXTRA_SPACES, Addition, Multiplication

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from bakeoff.text.tasks.task import Examples
    from bakeoff.training.batches import Batch
    from bakeoff.training.objectives import Objective
    from bakeoff.training.run import Run

FORMATS = {"basic": "plain", "padded": "padded", "reversed": "reversed", "padded and reversed": "padded_reversed"}
BASIC, SPACE, SHIFT, TAGS, NONE = "basic", "random space", "random shift", "random tags", "no positions"
WAYS = (BASIC, SPACE, SHIFT, TAGS, NONE)
DRAWS = 3


@study(
    slug="positional-description",
    claim="How digits are placed decides what a transformer learns of arithmetic: padding and reversal make products learnable, "
    "random spaces carry sums beyond the lengths of training.",
    source="Shen et al. 2023, arXiv:2311.14737; sizes, the chances of spaces, the random shift and bounds are our own",
    expectation="Small decoders learn products from equally many examples, with the number of digits of each factor drawn "
    "evenly. With factors and products padded to one length and the product's digits reversed, at least 20 points more of "
    "held-out products of the longest factors are right than with neither, and more than with either alone. Of sums that are "
    "one digit longer than any of training, a decoder with learned positions gets fewer than 5% right; with random spaces "
    "between the symbols in training it gets at least 30 points more, and more than with a random shift of all positions, "
    "which spaces bring along. Reported without an expectation: a random unit vector in every token's embedding in place of "
    "positions, and no positions.",
    scales={
        "smoke": {
            "seeds": 1, "steps": 2, "rows": 8, "factor_digits": 2, "products": 60, "sum_digits": 2, "beyond": (1, 2),
            "sums": 60, "base": 10, "items": 6, "width": 16, "layers": 1, "heads": 2, "tag_width": 4, "rate": 5e-3,
        },
        "laptop": {
            "seeds": 3, "steps": 2400, "rows": 64, "factor_digits": 3, "products": 30_000, "sum_digits": 3,
            "beyond": (1, 2), "sums": 30_000, "base": 4, "items": 400, "width": 64, "layers": 2, "heads": 4, "tag_width": 16,
            "rate": 5e-3,
        },
        "gpu": {
            "seeds": 3, "steps": 100_000, "rows": 256, "factor_digits": 5, "products": 300_000, "sum_digits": 10,
            "beyond": (1, 2, 3), "sums": 120_000, "base": 10, "items": 1000, "width": 512, "layers": 8, "heads": 8,
            "tag_width": 128, "rate": 3e-4,
        },
    },
    parts=("text/tasks/arithmetic.py",),
)  # fmt: skip
def positional_description(
    lab: Lab, *, steps: int, factor_digits: int, products: int, sum_digits: int, beyond: tuple[int, ...],
    sums: int, tag_width: int, **conditions: Any,
) -> None:  # fmt: skip
    """`beyond`: how many digits longer than those of training the sums of the test are; the first counts.

    Departures: models from scratch and our sizes; the paper's third part, sums inside sentences, is not here, nor are its
    scratchpads. All arms are asked for sums without spaces. The laptop scale writes numbers in base 4, whose tables small
    models learn in minutes.
    """
    sizes = range(2, factor_digits + 1)
    multiplied = {
        name: lab.measured(
            f"products, {name}", [_exact(digits) for digits in sizes], learn_products, f"{steps}steps", dtype="bfloat16",
            form=form, digits=factor_digits, examples=products, **conditions,
        )
        for name, form in FORMATS.items()
    }  # fmt: skip
    both, longest = multiplied["padded and reversed"], _exact(factor_digits).name
    for name, gain in (("basic", 0.2), ("padded", 0.0), ("reversed", 0.0)):
        effect = lab.contrast(longest, {both: 1, multiplied[name]: -1})
        lab.expect(f"products {longest}, padded and reversed less {name}", effect, above=gain)
    lab.curve(
        "Products wholly right", "digits of each factor", "share",
        {name: {digits: _by_seed(arm, _exact(digits)) for digits in sizes} for name, arm in multiplied.items()},
    )  # fmt: skip
    tested = [sum_digits, *(sum_digits + more for more in beyond)]
    added = {
        way: lab.measured(
            f"sums, {way}", [_exact(digits) for digits in tested], learn_sums, f"{steps}steps", dtype="bfloat16",
            way=way, digits=sum_digits, tested=tested, examples=sums, tag_width=tag_width, **conditions,
        )
        for way in WAYS
    }  # fmt: skip
    basic, further = np.array(_by_seed(added[BASIC], _exact(tested[1]))), _exact(tested[1]).name
    lab.expect(f"sums {further}, {BASIC}", stats.paired_effect_by_seed(basic, np.zeros_like(basic)), below=0.05)
    for way, gain in ((BASIC, 0.3), (SHIFT, 0.0)):
        effect = lab.contrast(further, {added[SPACE]: 1, added[way]: -1})
        lab.expect(f"sums {further}, {SPACE} less {way}", effect, above=gain)
    lab.curve(
        f"Sums wholly right, trained to {sum_digits} digits", "digits", "share",
        {way: {digits: _by_seed(arm, _exact(digits)) for digits in tested} for way, arm in added.items()},
    )  # fmt: skip


def _exact(digits: int) -> Metric:
    return Metric(f"exact at {digits} digits", "share", "higher", "answers right in every digit, of numbers of so many")


def _by_seed(arm: Arm, metric: Metric) -> list[float]:
    return [float(value) for value in metric.reduce(arm.arrays[metric.name].sum(axis=1))]


def asked(task: Addition | Multiplication, digits: int, items: int, width: int) -> Examples:
    """Test problems whose numbers have exactly so many digits, the same ones whatever the task's format.

    width: the digits to which a padded format fills numbers.
    """
    plain = type(task)(base=task.base)
    tokens = plain.examples("test", digits, items).tokens.astype(np.int64) - plain.vocabulary.id("0")
    first, second = (
        np.pad(number[:, ::-1], ((0, 0), (0, width - digits)))
        for number in (tokens[:, :digits], tokens[:, digits + 1 : 2 * digits + 1])
    )
    return task.written(np.random.default_rng(0), first, second)


def learn_products(
    run: Run, folder: Path, *, form: str, digits: int, examples: int, base: int, rows: int, items: int, rate: float, width: int,
    layers: int, heads: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train on products of factors of 1 to `digits` digits in a format; ask for those whose factors both have 2 and more."""
    from bakeoff.training.worlds import Again, answered, from_scratch

    task = Multiplication(base=base, format=form, operands="lengths")
    wanted = {size: asked(task, size, items, digits) for size in range(2, digits + 1)}
    model: Any = from_scratch(
        run, Again(task.examples("train", digits, examples, run.seed), rows, run.seed), learning_rate=rate, positions="learned",
        vocab_size=len(task.vocabulary), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        max_position_embeddings=int(wanted[digits].length.max()), tie_word_embeddings=False, initialization="fan_in",
    )  # fmt: skip
    model.eval()
    return {
        _exact(size).name: np.stack([answered(model, examples)[:, 0], np.ones(items)], 1)
        for size, examples in wanted.items()
    }


def learn_sums(
    run: Run, folder: Path, *, way: str, digits: int, tested: list[int], examples: int, tag_width: int, base: int, rows: int,
    items: int, rate: float, width: int, layers: int, heads: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train on sums of numbers of 1 to `digits` digits; ask for those of `tested` digits, written plainly."""
    import torch

    from bakeoff.training.batches import derived_seed
    from bakeoff.training.objectives import cross_entropy
    from bakeoff.training.optimizers import matrices_decay
    from bakeoff.training.schedules import cosine
    from bakeoff.training.worlds import Again, answered, decoder

    spaced = Addition(base=base, format="random_space", operands="lengths")
    task = spaced if way == SPACE else Addition(base=base, operands="lengths")
    # As many places as the longest question, all of its gaps filled with spaces, and the longest answer.
    places = len(EXTRA_SPACES) * (2 * tested[-1] + 1) + tested[-1] + 3
    shift = places - (3 * tested[-1] + 4)
    model: Any = decoder(
        run.seed, positions="none" if way in (TAGS, NONE) else "learned", vocab_size=len(spaced.vocabulary), hidden_size=width,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=places, tie_word_embeddings=False,
        initialization="fan_in",
    )  # fmt: skip
    model.to(run.device)
    if way == TAGS:
        tag(model, tag_width)
    run.train(
        model, Again(task.examples("train", digits, examples, run.seed), rows, run.seed), learning_rate=rate,
        optimizer=matrices_decay(0.0), schedule=cosine(0.05, least=0.1),
        objective=shifted(shift) if way == SHIFT else cross_entropy,
    )  # fmt: skip
    model.eval()
    torch.manual_seed(derived_seed(0, "tags"))
    found = {}
    for size in tested:
        wanted = asked(Addition(base=base), size, items, size)
        right = sum(answered(model, wanted)[:, 0] for _ in range(DRAWS if way == TAGS else 1))
        found[_exact(size).name] = np.stack([right, np.full(items, DRAWS if way == TAGS else 1.0)], 1)
    return found


def tag(model: Any, width: int) -> RemovableHandle:
    """From now on the last `width` entries of every token's embedding are a random unit vector, drawn anew each time.

    Source: Shen et al. 2023, arXiv:2311.14737, random embeddings in place of positions. They are drawn in evaluation too.
    """
    import torch
    from torch.nn import functional

    def replaced(embedding: nn.Module, ids: tuple[Tensor], found: Tensor) -> Tensor:
        tags = torch.randn(*found.shape[:-1], width, dtype=found.dtype, device=found.device)
        return torch.cat([found[..., : found.shape[-1] - width], functional.normalize(tags, dim=-1)], -1)

    handle: RemovableHandle = model.model.embed_tokens.register_forward_hook(replaced)
    return handle


def shifted(most: int) -> Objective:
    """The cross-entropy of rows whose positions all begin at a random place from 0 to `most`, drawn for each."""
    import torch
    from torch.nn import functional

    from bakeoff.training.objectives import predicted

    def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
        ids = batch.input_ids
        places = torch.randint(most + 1, (len(ids), 1), device=ids.device) + torch.arange(
            ids.shape[1], device=ids.device
        )
        logits, labels = predicted(model(input_ids=ids, position_ids=places, use_cache=False).logits, batch.labels)
        return functional.cross_entropy(logits.float(), labels)

    return loss
