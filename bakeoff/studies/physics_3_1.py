"""Biographies learned by heart, and whether what they tell can be asked for: once told, told in many ways, or mixed with questions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text.tasks.facts import Biographies, padded
from bakeoff.text.tasks.task import PAD, Examples

if TYPE_CHECKING:
    from torch import nn

    from bakeoff.training.batches import Batch
    from bakeoff.training.run import Run

Array = NDArray[np.int64]
SINGLE, MULTI, MIXED = "single", "multi5+permute", "single, mixed with questions"
ARMS: Mapping[str, Mapping[str, Any]] = {
    SINGLE: {"texts": 1, "permute": False, "mixed": False},
    MULTI: {"texts": 5, "permute": True, "mixed": False},
    MIXED: {"texts": 1, "permute": False, "mixed": True},
}
RECALL = Metric(
    "recall of the texts", "share", "higher", "words of values that are likeliest after the text before them"
)
FITTED = Metric(
    "answers, people trained on", "share", "higher", "questions answered exactly, of the half that is trained on"
)
ANSWERS = Metric("answers, other people", "share", "higher", "questions answered exactly, of the half that is not")
Q_PROBE = Metric("Q-probe", "share", "higher", "values read off the end of the name alone, of people not trained on")
P_PROBE = Metric(
    "P-probe", "share", "higher", "values told later, read off before the first value, of people not trained on"
)
NEXT = Metric("P-probe, next value", "share", "higher", "values told next, read off before the first value")
METRICS = (RECALL, FITTED, ANSWERS, Q_PROBE, P_PROBE, NEXT)


@study(
    slug="physics-3-1",
    claim="What is told in one text can be recited but not asked for; told in several wordings and orders it can be asked for.",
    source="Allen-Zhu and Li 2023, arXiv:2309.14316: data, arms, probes; sizes, words and bounds are our own",
    expectation="Decoders learn biographies, then questions about one half of the people, and are asked about the other half. "
    "Each person is read equally often, and all texts are known by heart: more than 99% of the values are likeliest in their "
    "place. Told in one text, less than 20% of the questions are answered; told in five texts of other wordings and orders, at "
    "least 50 points more. Before any question is learned, the values can be read linearly off the end of the name at least "
    "40 points more often with five texts than with one. With one text, but questions about the one half mixed in from the "
    "beginning, at least 30 points more are answered than when the questions come after.",
    scales={
        "smoke": {
            "seeds": 1, "people": 60, "values": 5, "names": 8, "exposures": 2, "rows": 30, "width": 16, "layers": 1,
            "rate": 3e-3, "finetuning": 4, "finetuning_rate": 1e-3, "probing": 4, "ranks": (2, 1), "points": 2,
        },
        "laptop": {
            "seeds": 3, "people": 300, "values": 20, "names": 40, "exposures": 80, "rows": 32, "width": 128, "layers": 2,
            "rate": 2e-3, "finetuning": 300, "finetuning_rate": 3e-4, "probing": 200, "ranks": (0, 0), "points": 5,
        },
        "gpu": {
            "seeds": 3, "people": 5000, "values": 300, "names": 200, "exposures": 500, "rows": 192, "width": 256, "layers": 6,
            "rate": 1e-3, "finetuning": 3000, "finetuning_rate": 3e-4, "probing": 2000, "ranks": (16, 2), "points": 10,
        },
    },
    parts=("text/tasks/facts.py",),
)  # fmt: skip
def physics_3_1(
    lab: Lab, *, people: int, values: int, names: int, exposures: int, rows: int, width: int, layers: int, rate: float,
    finetuning: int, finetuning_rate: float, probing: int, ranks: tuple[int, int], points: int,
) -> None:  # fmt: skip
    """Departures: three attributes of one word each; a third of the tokens of mixed training are questions (in the paper
    more); all weights are fine-tuned; at laptop scale probes do not change the embeddings, by which they would learn so few
    people by heart; each row holds one text, so that no two of a person stand together."""
    steps = -(-exposures * people // rows)
    arms = {
        name: lab.measured(
            name, METRICS, learn, f"{steps + finetuning + 2 * probing}steps", dtype="bfloat16", people=people, values=values,
            names=names, steps=steps, rows=rows, width=width, layers=layers, rate=rate, finetuning=finetuning,
            finetuning_rate=finetuning_rate, probing=probing, ranks=list(ranks), points=points, **options,
        )
        for name, options in ARMS.items()
    }  # fmt: skip
    single, multi, mixed = arms.values()

    def level(arm: Arm, metric: Metric) -> Any:
        array = np.zeros_like(arm.arrays[metric.name])
        array[..., 1] = 1
        return lab.contrast(metric.name, {arm: 1, replace(arm, arrays={metric.name: array}): -1})

    for arm in (single, multi):
        lab.expect(f"{RECALL.name}, {arm.label}", level(arm, RECALL), above=0.99)
    lab.expect(f"{ANSWERS.name}, {SINGLE}", level(single, ANSWERS), below=0.2)
    for metric, more, other, bound in (
        (ANSWERS, multi, single, 0.5),
        (Q_PROBE, multi, single, 0.4),
        (ANSWERS, mixed, single, 0.3),
    ):
        lab.expect(
            f"{metric.name}: {more.label} less {other.label}",
            lab.contrast(metric.name, {more: 1, other: -1}),
            above=bound,
        )
    task = world(values, names)
    lab.notes["share of the commonest value"] = {
        attribute.name: float(np.bincount(held[:people, 0]).max() / people)
        for attribute, held in zip(task.told, task.held, strict=True)
    }
    lab.notes["question tokens in mixed training"] = mixed.records[0]["notes"]["question tokens"]
    lines = {
        arm.label: {
            step: [record["notes"]["answers"][str(step)] for record in arm.records]
            for step in map(int, arm.records[0]["notes"]["answers"])
        }
        for arm in (single, multi)
    }
    lab.curve(
        "Questions about people of whom only biographies were read", "steps of training on questions", "answers", lines
    )


def world(values: int, names: int) -> Biographies:
    return Biographies(attributes=3, values=values, names=names)


def asked(task: Biographies, people: Array) -> Examples:
    """All questions about these people, person after person, those about one beginning with the next attribute each time."""
    attributes = (np.arange(len(people))[:, None] + np.arange(task.attributes)) % task.attributes
    return task.questions(np.repeat(people, task.attributes), attributes.flatten())


def in_rows(questions: Examples, each: int) -> Examples:
    """So many questions a row, one after the other, all of it to be learned."""
    rows = [question + answer for question, answer in questions.rows()]
    joined = padded([list(itertools.chain(*rows[i : i + each])) for i in range(0, len(rows), each)])
    return Examples.of(joined[:, :0], joined)


def learn(
    run: Run, folder: Path, *, people: int, values: int, names: int, texts: int, permute: bool, mixed: bool, steps: int,
    rows: int, width: int, layers: int, rate: float, finetuning: int, finetuning_rate: float, probing: int, ranks: Sequence[int],
    points: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Learn the texts (and questions), read values off the states, learn questions (unless done) and answer the others."""
    from bakeoff.training.along import Along
    from bakeoff.training.optimizers import matrices_decay
    from bakeoff.training.schedules import cosine
    from bakeoff.training.worlds import Again, answered, decoder

    task, everyone = world(values, names), np.arange(people)
    half, rest = everyone[: people // 2], everyone[people // 2 :]
    told, places = task.biographies(everyone, texts, permute=permute)
    total = run.budget.amount

    def train(
        examples: Examples, count: int, rows: int, rate: float, *, question: bool, after_step: Any = None
    ) -> None:
        run.train(
            model, Again(examples, rows, run.seed, question=question), learning_rate=rate, share=count / total,
            optimizer=matrices_decay(0.1), schedule=cosine(0.05, least=0.1), after_step=after_step,
        )  # fmt: skip

    model = decoder(
        run.seed, vocab_size=len(task.vocabulary), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4
    )
    model.to(run.device)
    pool = Examples.joined([told, in_rows(asked(task, half), task.attributes)]) if mixed else told
    run.notes["question tokens"] = 1 - int(told.length.sum()) / int(pool.length.sum())
    # Rows in proportion, so that every person is read as often as without the questions.
    train(pool, steps, rows * len(pool) // len(told), rate, question=True)

    recalled = [answered(model, Examples(told.tokens, at, at + 1, told.key))[:, 0] for at in places.T]
    found = {RECALL.name: _shares(np.stack(recalled, 1).reshape(people, -1))}
    held = np.stack([own[:people, 0] for own in task.held], 1)
    name = Examples.of(np.zeros((people, 0), np.int64), task.people[:people, :3])
    begun = told[np.arange(people) * texts]
    first = places[np.arange(people) * texts].argmin(1)
    by_name = probed(run, model, name.tokens, np.full(people, 2), held, rank=ranks[0], steps=probing)
    by_text = probed(run, model, begun.tokens, begun.answer - 1, held, rank=ranks[1], steps=probing)
    later = first[rest, None] != np.arange(task.attributes)
    found[Q_PROBE.name] = _shares(by_name)
    found[P_PROBE.name] = np.stack([(by_text & later).sum(1), later.sum(1)], 1)
    found[NEXT.name] = _shares(by_text[np.arange(len(rest)), first[rest], None])

    other = asked(task, rest)
    if not mixed:
        along = Along(
            run.folder / "along.json", range(finetuning // points, finetuning + 1, finetuning // points),
            lambda: [float(answered(model, other)[:, 0].mean())],
        )  # fmt: skip
        train(asked(task, half), finetuning, rows, finetuning_rate, question=False, after_step=along)
        run.notes["answers"] = {str(step): share for step, (share,) in along.read().items()}
    for metric, questions in ((FITTED, asked(task, half)), (ANSWERS, other)):
        found[metric.name] = _shares(answered(model, questions)[:, 0].reshape(-1, task.attributes))
    return found


def _shares(right: NDArray[Any]) -> NDArray[np.float64]:
    """[n, 2]: how many are right, of how many."""
    return np.stack([right.sum(1), np.full(len(right), right.shape[1])], 1).astype(float)


def probed(
    run: Run, model: nn.Module, tokens: NDArray[np.int32], place: Array, values: Array, *, rank: int, steps: int
) -> NDArray[np.bool_]:
    """Whether each value is read rightly off the last state at a place: [people of the second half, attributes].

    tokens: [people, length]. place: [people], of the token whose state is read. values: [people, attributes]. Linear
    classifiers and an update of the embeddings of this rank, 0 for none, learn on the first half of the people; the model
    does not.
    """
    import torch

    from bakeoff.training.schedules import cosine

    half, classes = len(tokens) // 2, int(values.max()) + 1
    tokens = tokens[:, : place.max() + 1]
    ids = torch.from_numpy(np.where(np.arange(tokens.shape[1]) <= place[:, None], tokens, PAD).astype(np.int64))
    at, wanted = torch.from_numpy(place), torch.from_numpy(values)
    probe = _probe(model, run.generator("probe", rank), rank, values.shape[1], classes).to(run.device)

    def loss(probe: nn.Module, batch: Batch, step: int) -> torch.Tensor:
        logits = probe(batch.input_ids, batch.extra["at"])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.extra["wanted"].flatten())

    run.train(
        probe, Rows(ids[:half], at[:half], wanted[:half], run.seed), learning_rate=1e-2, share=steps / run.budget.amount,
        objective=loss, schedule=cosine(0.05), parameters=[n for n, _ in probe.named_parameters() if not n.startswith("model.")],
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        right = probe(ids[half:].to(run.device), at[half:].to(run.device)).argmax(-1).cpu() == wanted[half:]
    return right.numpy()  # type: ignore[no-any-return]


def _probe(model: Any, generator: Any, rank: int, attributes: int, classes: int) -> nn.Module:
    """A module of (ids [rows, length], places [rows]) whose logits are [rows, attributes, classes]."""
    import torch
    from torch import nn

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = model.config.hidden_size
            self.model = model
            if rank:
                self.down = nn.Embedding(model.config.vocab_size, rank)
                self.up = nn.Linear(rank, width, bias=False)
            self.read = nn.Linear(width, attributes * classes)
            with torch.no_grad():
                if rank:
                    self.down.weight.normal_(generator=generator)
                    self.up.weight.zero_()
                self.read.weight.zero_()
                self.read.bias.zero_()

        def forward(self, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            embedded = model.model.embed_tokens(ids)
            if rank:
                embedded = embedded + self.up(self.down(ids))
            states = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            read: torch.Tensor = self.read(states[torch.arange(len(ids), device=ids.device), at])
            return read.view(len(ids), attributes, classes)

    return Probe()


@dataclass(frozen=True)
class Rows:
    """64 rows a step, drawn anew for each."""

    ids: Any
    at: Any
    wanted: Any
    seed: int

    def __call__(self, step: int) -> Batch:
        import torch

        from bakeoff.training.batches import Batch, derived_seed

        drawn = np.random.default_rng(derived_seed(self.seed, "probe", step)).integers(len(self.ids), size=64)
        rows = torch.from_numpy(drawn)
        ids = self.ids[rows]
        return Batch(ids, ids, ids.numel(), extra={"at": self.at[rows], "wanted": self.wanted[rows]})
