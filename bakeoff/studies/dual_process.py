"""Whether words are told apart by the sentence or by heart: training with embeddings that are forgotten, for a while or always."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bakeoff.training.batches import Batch
    from bakeoff.training.run import Run

Ids = NDArray[np.int64]
QUERY, MASKED = 3, 3
NOVEL, SWAPPED = "novel", "head, swapped"
WATCHED = (NOVEL, SWAPPED, "all words")
SETS = {
    "all words": "sentences as in training, of unambiguous words",
    "swapped": "the same, nouns in the places of adjectives and the other way round",
    "head": "sentences of the most frequent tenth of the words",
    "head, swapped": "the same, swapped",
    "tail": "sentences of the rarest tenth of the words",
    "tail, swapped": "the same, swapped",
    "novel": "sentences of words that training never shows",
}
METRICS = [Metric(name, "share", "higher", f"sentences completed rightly: {told}") for name, told in SETS.items()]
EARLY = Metric("novel, at best", "share", "higher", "the best share of sentences of novel words during training")


@dataclass(frozen=True)
class Sentences:
    """Sentences of seven tokens in which three copies of two words are to be filled in.

        copula adjective noun | noun copula adjective, then the query, then three masks

    A query in the adjective's place asks for itself three times; one in the noun's place for the adjective and twice itself.
    Ids: nouns by their rank, then adjectives by theirs, novel words, copula, mask. The rank r of either is drawn with chance
    proportional to r^-skew. Every `1 / ambiguous`-th rank is ambiguous: drawn as one class, it is half of the time the word
    of that rank of the other class.

    Source: Anand et al. 2024, arXiv:2406.00053, section 4. Departures: an ambiguous word is replaced by the other class's
    word of its own rank.
    """

    words: int
    skew: float
    ambiguous: float

    @property
    def each(self) -> int:
        """Words of a class."""
        return self.words // 2

    @property
    def novel(self) -> int:
        """How many words there are that training never shows, from the id `words` on."""
        return self.words // 10

    @property
    def copula(self) -> int:
        return self.words + self.novel

    @property
    def vocabulary(self) -> int:
        return self.copula + 2

    def doubtful(self, ranks: Ids) -> NDArray[np.bool_]:
        """Whether the words of these ranks, from 0, are ambiguous."""
        period = round(1 / self.ambiguous)
        return ranks % period == period - 1

    def pairs(self, draw: np.random.Generator, rows: int, ranks: Ids) -> tuple[Ids, Ids]:
        """Ranks of a noun and of an adjective [rows] out of these."""
        chances = (ranks + 1.0) ** -self.skew
        noun, adjective = (draw.choice(ranks, rows, p=chances / chances.sum()) for _ in range(2))
        return noun, adjective

    def taught(self, draw: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        """Sentences as training has them, with ambiguous words: tokens [rows, 7] and answers [rows, 3]."""
        noun, adjective = self.pairs(draw, rows, np.arange(self.each))
        swapped = [self.doubtful(ranks) & (draw.random(rows) < 0.5) for ranks in (noun, adjective)]
        return self.written(draw, noun + self.each * swapped[0], adjective + self.each * ~swapped[1])

    def asked(self, draw: np.random.Generator, rows: int, name: str) -> tuple[Ids, Ids]:
        """Sentences of one of SETS, without ambiguous words."""
        if name == NOVEL:
            noun = draw.integers(self.novel, size=rows)
            adjective = (noun + draw.integers(1, self.novel, rows)) % self.novel
            return self.written(draw, self.words + noun, self.words + adjective)
        part = {"head": (0.0, 0.1), "tail": (0.9, 1.0)}.get(name.split(",")[0], (0.0, 1.0))
        ranks = np.arange(int(part[0] * self.each), int(part[1] * self.each))
        noun, adjective = self.pairs(draw, rows, ranks[~self.doubtful(ranks)])
        words = noun, adjective + self.each
        return self.written(draw, *(words[::-1] if "swapped" in name else words))

    def written(self, draw: np.random.Generator, noun: Ids, adjective: Ids) -> tuple[Ids, Ids]:
        """Sentences with these ids [rows] in the places of noun and adjective."""
        rows = len(noun)
        copula = np.full(rows, self.copula)
        first, about = draw.random(rows) < 0.5, draw.random(rows) < 0.5
        prefix = np.where(first, [copula, adjective, noun], [noun, copula, adjective])
        query = np.where(about, adjective, noun)
        return np.stack([*prefix, query, *[copula + 1] * MASKED], 1), np.stack([adjective, query, query], 1)


@study(
    slug="dual-process",
    claim="Forgetting the embeddings over and over keeps learning from the sentence alive; forgetting them for a while only "
    "gives a model that also knows its words by heart.",
    source="Anand et al. 2024, arXiv:2406.00053, on its synthetic task; sizes are our own",
    expectation="Encoders of two layers learn sentences whose words can be told apart by their class, known by heart, or by "
    "their places. In ordinary training the share of right sentences of words never seen before falls by more than 0.1 from "
    "its best value to the end. At the end it is more than 0.1 higher with active forgetting (all embeddings are drawn anew "
    "every few steps, to the end), and more than 0.1 higher with temporary forgetting (the same in the first fifth of the "
    "steps). Temporary forgetting leaves room for memory: of the most frequent words, its share of right sentences falls by "
    "more than 0.1 when nouns and adjectives are in each other's places. All arms take equal steps at one rate.",
    scales={
        "smoke": {
            "seeds": 1, "steps": 8, "rows": 8, "words": 40, "skew": 1.5, "ambiguous": 0.1, "every": 2, "until": 4,
            "width": 16, "layers": 1, "heads": 2, "rate": 1e-3, "test": 20, "looks": 2,
        },
        "laptop": {
            "seeds": 4, "steps": 4000, "rows": 64, "words": 400, "skew": 1.5, "ambiguous": 0.1, "every": 25, "until": 800,
            "width": 48, "layers": 2, "heads": 2, "rate": 2e-3, "test": 500, "looks": 15,
        },
        "gpu": {
            "seeds": 5, "steps": 62500, "rows": 128, "words": 10000, "skew": 1.5, "ambiguous": 0.1, "every": 10,
            "until": 2000, "width": 64, "layers": 6, "heads": 1, "rate": 5e-5, "test": 10000, "looks": 50,
        },
    },
)  # fmt: skip
def dual_process(lab: Lab, *, steps: int, every: int, until: int, **size: Any) -> None:
    """Departures: a decoder that sees the whole sentence in place of BERT; embeddings begin, are forgotten and, for novel
    words, are tested with draws of one law, normal with deviation 1 / sqrt(width), where the paper's begin with 0.02 and
    are forgotten with 1; only the embeddings' moments are forgotten with them; one optimizer for all arms."""
    arms = {
        name: lab.measured(
            name,
            [*METRICS, EARLY],
            learn,
            f"{steps}steps",
            dtype="bfloat16",
            steps=steps,
            every=every,
            until=stop,
            **size,
        )
        for name, stop in (("ordinary", 0), ("temporary forgetting", until), ("active forgetting", steps))
    }
    ordinary, temporary, active = arms.values()
    effect = lab.contrast(NOVEL, {_called(NOVEL, ordinary, EARLY.name): 1, ordinary: -1})
    lab.expect("novel words in ordinary training, their best share less that at the end", effect, above=0.1)
    for arm in (active, temporary):
        effect = lab.contrast(NOVEL, {arm: 1, ordinary: -1})
        lab.expect(f"novel words, {arm.label} less ordinary training", effect, above=0.1)
    effect = lab.contrast("head", {temporary: 1, _called("head", temporary, SWAPPED): -1})
    lab.expect("frequent words with temporary forgetting, sentences as taught less swapped ones", effect, above=0.1)
    for name in WATCHED:
        lines = {
            label: {
                float(step): [record["notes"][name][step] for record in arm.records]
                for step in arm.records[0]["notes"][name]
            }
            for label, arm in arms.items()
        }
        lab.curve(f"Sentences in training: {name}", "steps", "share of right sentences", lines)


def _called(name: str, arm: Arm, metric: str) -> Arm:
    """The arm with one of its metrics in the place of another."""
    return replace(arm, metrics=[m for m in METRICS if m.name == name], arrays={name: arm.arrays[metric]})


def learn(
    run: Run, folder: Path, *, steps: int, every: int, until: int, rows: int, words: int, skew: float, ambiguous: float,
    width: int, layers: int, heads: int, rate: float, test: int, looks: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train on sentences, forgetting the embeddings every so many steps up to step `until`, and complete all kinds of them."""
    import torch
    from torch.nn import functional

    from bakeoff.training.batches import derived_seed
    from bakeoff.training.schedules import constant
    from bakeoff.training.worlds import decoder

    task = Sentences(words, skew, ambiguous)
    model: Any = decoder(
        run.seed, vocab_size=task.vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        positions="learned", max_position_embeddings=QUERY + 1 + MASKED, initialization="fan_in",
    ).to(run.device)  # fmt: skip
    table, made = model.get_input_embeddings().weight, []
    seen = torch.ones(1, 1, *[QUERY + 1 + MASKED] * 2, dtype=torch.bool, device=run.device)

    def fresh(*names: object) -> Tensor:
        """Embeddings of all tokens, drawn anew."""
        return torch.randn(table.shape, generator=run.generator(*names)).to(run.device) * width**-0.5

    def completed(input_ids: Tensor) -> Tensor:
        """Logits [rows, 3, vocabulary] of the masked tokens."""
        return model(input_ids=input_ids, attention_mask=seen, use_cache=False).logits[:, -MASKED:]

    def batches(step: int) -> Batch:
        return batch(*task.taught(np.random.default_rng(derived_seed(run.seed, "sentences", step)), rows))

    def objective(model: nn.Module, batch: Batch, step: int) -> Tensor:
        return functional.cross_entropy(
            completed(batch.input_ids).flatten(0, 1).float(), batch.labels[:, -MASKED:].flatten()
        )

    def optimizer(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        made.append(torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01))
        return made[-1]

    @torch.no_grad()
    def right(name: str) -> NDArray[np.bool_]:
        """Which of the test sentences of one of SETS are completed rightly; novel words have embeddings drawn anew."""
        ids, answers = task.asked(np.random.default_rng(derived_seed(0, name)), test, name)
        own, rest = slice(task.words, task.copula), table.clone()
        table[own] = fresh("novel")[own]
        with run.autocast():
            found = completed(torch.from_numpy(ids).to(run.device)).argmax(-1).cpu().numpy()
        table.copy_(rest)
        return np.asarray((found == answers).all(1))

    def look(step: int) -> None:
        for name in WATCHED:
            run.notes.setdefault(name, {})[str(step)] = float(right(name).mean())

    def after_step(step: int) -> None:
        if (step + 1) % (steps // looks) == 0:
            look(step + 1)
        if (step + 1) % every == 0 and step + 1 <= until and step + 1 < steps:
            forget(table, made[-1], fresh("forgotten", step))

    with torch.no_grad():
        table.copy_(fresh("first"))
    run.train(
        model,
        batches,
        learning_rate=rate,
        schedule=constant,
        objective=objective,
        optimizer=optimizer,
        after_step=after_step,
    )
    many = np.ones(test)
    found = {name: np.column_stack([right(name), many]) for name in SETS}
    # On every item, so that it can be set against the share at the end.
    return found | {EARLY.name: np.column_stack([max(run.notes[NOVEL].values()) * many, many])}


def forget(table: nn.Parameter, optimizer: torch.optim.Optimizer, fresh: Tensor) -> None:
    """Give embeddings new values; the optimizer forgets their moments and how many steps they took."""
    table.data.copy_(fresh)
    for value in optimizer.state[table].values():
        value.zero_()


def batch(ids: Ids, answers: Ids) -> Batch:
    """Sentences with their answers as labels of the masks."""
    import torch

    from bakeoff.training.batches import IGNORED, Batch

    labels = np.full_like(ids, IGNORED)
    labels[:, -MASKED:] = answers
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels), ids.size)
