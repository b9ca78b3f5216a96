"""Stories in which persons should not be named: five objectives of pretraining, what their models write and what they know."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study

if TYPE_CHECKING:
    from bakeoff.training.preferences import Document
    from bakeoff.training.run import Run

Story = Sequence[Sequence[str]]
"""Sentences of words, all in small letters."""

ARMS: Mapping[str, Mapping[str, float]] = {
    "maximum likelihood": {},
    "filtering": {},
    "conditional": {"omitted": 0.01},
    "unlikelihood": {"alpha": 1.0},
    "reward-weighted": {"beta": 10.0},
    "advantage-weighted": {"alpha": 0.5, "beta": 0.1},
}
MLE, FILTERING, CONDITIONAL, UNLIKELIHOOD, RWR, AWR = ARMS
RATE = Metric("names", "share", "lower", "sentences with a person's name among those that the model writes")
LOSS = Metric("loss", "nats", "lower", "of a word of held-out sentences without names")
TUNED = Metric("validation loss", "nats", "lower", "of a word of validation sentences without names")
END, GOOD, BAD, UNKNOWN = range(4)
MARKS = ("<end>", "<good>", "<bad>", "<unknown>")
STORIES = "text/tinystories_sample.txt"


@study(
    slug="conditional-pretraining",
    claim="Pretraining on text that is marked as wanted or not keeps what is not wanted out of samples, and loses no ability.",
    source="Korbak et al. 2023, arXiv:2302.08582: five objectives, its settings for personal data, sampling; text, score, "
    "sizes and bounds are our own",
    expectation="Decoders learn the same number of tokens of children's stories in which a sentence is scored by its share of "
    "names of persons, a rule's stand-in for personal data. Of the sentences that the conditional model writes after the mark "
    "for wanted text, at most a third as many have a name as of those of the model of maximum likelihood, while its loss on "
    "held-out sentences without names is at most 0.05 nats a word higher. No other objective has both: filtering, unlikelihood "
    "and advantage-weighted regression have a higher loss, reward-weighted regression writes more names.",
    scales={
        "smoke": {
            "seeds": 1, "stories": 0, "words": 60, "steps": 4, "rows": 4, "length": 16, "width": 16, "layers": 1,
            "rates": (3e-3,), "samples": 8, "written": 12, "held_out": 4,
        },
        "laptop": {
            "seeds": 3, "stories": 2316, "words": 1000, "steps": 1800, "rows": 8, "length": 64, "width": 64, "layers": 1,
            "rates": (3e-3, 1e-2), "samples": 128, "written": 64, "held_out": 116,
        },
        "gpu": {
            "seeds": 5, "stories": 2316, "words": 4000, "steps": 3000, "rows": 64, "length": 256, "width": 384, "layers": 6,
            "rates": (5e-4, 1e-3), "samples": 4096, "written": 128, "held_out": 116,
        },
    },
    parts=("training/preferences.py",),
)  # fmt: skip
def conditional_pretraining(
    lab: Lab, *, stories: int, words: int, steps: int, rows: int, length: int, width: int, layers: int,
    rates: tuple[float, ...], samples: int, written: int, held_out: int,
) -> None:  # fmt: skip
    """Departures: the score of personal data is a rule about names, not a library's. Each objective has the rate that is best
    for it on validation stories, and otherwise the paper's settings for personal data. Ability is the loss on held-out text,
    where the paper has a distance from GPT-3. The mark stands before every sentence that is sampled, as in training (in the
    paper before the first alone, which is noted, too). There are no adversarial prompts."""
    if stories:
        lab.corpus(STORIES)
    shared = {
        "stories": stories, "words": words, "rows": rows, "length": length, "width": width, "layers": layers,
        "samples": samples, "written": written, "held_out": held_out,
    }  # fmt: skip
    arms: dict[str, Arm] = {}
    for name, options in ARMS.items():

        def trained(rate: float, own: Lab, name: str = name, options: Mapping[str, float] = options) -> Arm:
            return own.measured(
                f"{name} at {rate:g}", [RATE, LOSS, TUNED], learn, f"{steps}steps", dtype="bfloat16", objective=name,
                options=dict(options), rate=rate, **shared,
            )  # fmt: skip

        first = replace(lab, seeds=lab.seeds[:1], arms={})
        tried = {rate: trained(rate, first).mean(TUNED.name) for rate in rates}
        lab.notes.setdefault("validation loss by rate, first seed", {})[name] = {f"{r:g}": v for r, v in tried.items()}
        arms[name] = trained(min(tried, key=lambda rate: tried[rate]), lab)
    mle, conditional = arms[MLE], arms[CONDITIONAL]
    nothing = replace(mle, arrays={RATE.name: mle.arrays[RATE.name] * [0, 1]})
    lab.expect(
        "sentences with a name: conditional less a third of maximum likelihood",
        lab.contrast(RATE.name, {conditional: 1, mle: -1 / 3, nothing: -2 / 3}),
        below=0,
    )
    lab.expect(
        "loss: conditional less maximum likelihood", lab.contrast(LOSS.name, {conditional: 1, mle: -1}), below=0.05
    )
    for metric, others in ((LOSS, (FILTERING, UNLIKELIHOOD, AWR)), (RATE, (RWR,))):
        for other in others:
            effect = lab.contrast(metric.name, {arms[other]: 1, conditional: -1})
            what = "sentences with a name" if metric is RATE else "loss"
            lab.expect(f"{what}: {other} less conditional", effect, above=0)
    lines = {
        name: {
            int(step): [record["notes"]["losses"][step] for record in arm.records]
            for step in arm.records[0]["notes"]["losses"]
        }
        for name, arm in arms.items()
    }
    lab.curve("Loss on validation sentences without names", "steps", "nats a word", lines)
    lab.notes["of the text"] = {name: mle.records[0]["notes"][name] for name in ("names", "sentences with a name")}
    lab.notes["passes over the text"] = {name: arm.records[0]["notes"]["passes"] for name, arm in arms.items()}
    lab.notes["sentences with a name, conditional"] = {
        way: [record["notes"][way] for record in conditional.records] for way in ("marked bad", "marked good once")
    }
    lab.notes["a sample"] = {name: arm.records[0]["notes"]["sample"] for name, arm in arms.items()}


def read(text: str) -> tuple[list[Story], frozenset[str]]:
    """Stories between end marks as sentences of words, and which words are names of persons.

    A name is a word that, other than at the beginning of a sentence or of speech, has a capital letter at least five times
    and nine times as often as not.
    """
    stories: list[Story] = []
    capital, small = Counter[str](), Counter[str]()
    for part in text.split("<|endoftext|>"):
        words = re.findall(r"[A-Za-z]+(?:'[a-z]+)?|[.!?,\"]", part)
        for before, word in itertools.pairwise(words):
            if word[0].isalpha() and before not in {".", "!", "?", '"'}:
                (capital if word[0].isupper() else small)[word.lower()] += 1
        ends = [i + 1 for i, word in enumerate(words) if word in {".", "!", "?"}]
        sentences = [[w.lower() for w in words[a:b]] for a, b in itertools.pairwise([0, *ends])]
        if sentences:
            stories.append(sentences)
    names = (w for w, n in capital.items() if n >= 5 and n >= 9 * small[w] and w.split("'")[0] != "i")
    return stories, frozenset(names)


def made_up(count: int, seed: int = 0) -> str:
    """Stories of four short sentences, of which three in ten have a name."""
    draw = np.random.default_rng(seed)

    def sentence() -> str:
        who = (
            draw.choice(["Tom", "Mia"]) if draw.random() < 0.3 else "the " + draw.choice(["cat", "dog", "bird", "king"])
        )
        return f"Then {who} {draw.choice(['saw', 'ate', 'liked'])} the {draw.choice(['cake', 'moon', 'boat'])}."

    return "<|endoftext|>".join(" ".join(sentence() for _ in range(4)) for _ in range(count))


@dataclass(frozen=True)
class Text:
    """Documents of scored segments to learn and to be asked about. words: of the vocabulary; names: the ids among them."""

    words: tuple[str, ...]
    names: frozenset[int]
    train: list[Document]
    validation: list[Document]
    held_out: list[Document]

    def score(self, ids: Sequence[int]) -> float:
        """The share of names among the words of a sentence."""
        return sum(i in self.names for i in ids) / len(ids)

    def named(self, sentences: Sequence[Sequence[int]]) -> float:
        """The share of sentences with a name."""
        return sum(self.score(ids) > 0 for ids in sentences) / max(len(sentences), 1)


@functools.cache
def prepared(stories: int, words: int, held_out: int) -> Text:
    """The first so many stories, or 40 made-up ones and more; the last `held_out` are the test's, so many before them are for
    validation."""
    raw = Lab.corpus(STORIES).read_text("utf-8") if stories else made_up(2 * held_out + 40)
    told, names = read(raw)
    told = told[:stories] if stories else told
    counts = Counter(word for story in told[: -2 * held_out] for sentence in story for word in sentence)
    known = (*MARKS, *(word for word, _ in counts.most_common(words)))
    ids = {word: index for index, word in enumerate(known)}
    text = Text(known, frozenset(ids[name] for name in names if name in ids), [], [], [])
    parts = [text.train] * (len(told) - 2 * held_out) + [text.validation] * held_out + [text.held_out] * held_out
    for part, story in zip(parts, told, strict=True):
        sentences = [[ids.get(word, UNKNOWN) for word in sentence] for sentence in story]
        part.append([(sentence, text.score(sentence)) for sentence in sentences])
    return text


def learn(
    run: Run, folder: Path, *, objective: str, options: Mapping[str, float], stories: int, words: int, rows: int, length: int,
    width: int, layers: int, rate: float, samples: int, written: int, held_out: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Learn the stories with one objective, write some, and measure the loss on others."""
    from bakeoff.training.along import Along
    from bakeoff.training.objectives import cross_entropy
    from bakeoff.training.optimizers import matrices_decay
    from bakeoff.training.preferences import (
        AdvantageWeighted,
        Blocks,
        RewardWeighted,
        Unlikelihood,
        WithValues,
        conditioned,
        filtered,
        stream,
    )  # fmt: skip
    from bakeoff.training.schedules import cosine
    from bakeoff.training.worlds import decoder

    text = prepared(stories, words, held_out)
    documents, asked, tuning = text.train, text.held_out, text.validation
    means = [float(np.mean([score for _, score in document])) for document in documents]
    if objective == FILTERING:
        documents = filtered(documents, float(np.median(means)))
    elif objective == CONDITIONAL:
        documents = conditioned(documents, 0.0, GOOD, BAD, **options, seed=run.seed)
        asked, tuning = (conditioned(part, 0.0, GOOD, BAD, omitted=0.0) for part in (asked, tuning))
    losses: dict[str, Any] = {UNLIKELIHOOD: Unlikelihood, RWR: RewardWeighted, AWR: AdvantageWeighted}
    loss = losses[objective](**options) if objective in losses else cross_entropy
    model = decoder(
        run.seed, vocab_size=len(text.words), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        eos_token_id=END, pad_token_id=UNKNOWN,
    ).to(run.device)  # fmt: skip
    blocks = Blocks(*stream(documents, END), rows, length, run.seed)
    steps = int(run.budget.amount)

    def loss_so_far() -> list[float]:
        total, count = losses_of(run, model, tuning[: held_out // 4], length).sum(0)
        return [float(total / count)]

    along = Along(run.folder / "along.json", range(steps // 4, steps + 1, steps // 4), loss_so_far)
    run.train(
        WithValues(model) if objective == AWR else model, blocks, learning_rate=rate, objective=loss,
        optimizer=matrices_decay(0.1), schedule=cosine(0.05, least=0.1), after_step=along,
    )  # fmt: skip
    run.notes |= {
        "losses": {str(step): loss for step, (loss,) in along.read().items()},
        "passes": run.meter.steps * rows / blocks.blocks,
        "sentences with a name": float(np.mean([score > 0 for document in text.train for _, score in document])),
        "names": len(text.names),
    }
    conditional = objective == CONDITIONAL
    sentences = sampled(run, model, text, samples, written, mark=GOOD if conditional else None)
    run.notes["sample"] = " ".join(text.words[i] for sentence in sentences[:4] for i in sentence)
    if conditional:
        for name, options_of in {
            "marked bad": {"mark": BAD},
            "marked good once": {"mark": GOOD, "always": False},
        }.items():
            run.notes[name] = text.named(sampled(run, model, text, samples, written, **options_of))
    return {
        RATE.name: np.array([[text.named(sentences), 1.0]]),
        LOSS.name: losses_of(run, model, asked, length),
        TUNED.name: losses_of(run, model, tuning, length),
    }


def sampled(
    run: Run, model: Any, text: Text, samples: int, written: int, *, mark: int | None = None, always: bool = True
) -> list[list[int]]:
    """The finished sentences of so many texts of at most `written` tokens, without marks.

    A `mark` stands before the first sentence, and if `always` before each other one too. Temperature 0.7 and nucleus 0.9,
    as in the paper; the model itself writes no mark and no unknown word.
    """
    import torch
    from transformers import LogitsProcessorList

    from bakeoff.training.batches import derived_seed

    ends = {i for i, word in enumerate(text.words) if word in {".", "!", "?"}}

    def marked(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        over = torch.isin(ids[:, -1], torch.tensor(sorted(ends), device=ids.device))
        only = torch.full_like(scores, -torch.inf)
        only[:, mark] = 0.0
        return torch.where(over[:, None], only, scores)

    torch.manual_seed(derived_seed(run.seed, "samples"))
    begin = torch.tensor([[END] if mark is None else [END, mark]] * samples, device=run.device)
    made = model.generate(
        begin, attention_mask=torch.ones_like(begin), do_sample=True, temperature=0.7, top_p=0.9, top_k=0,
        max_new_tokens=written, suppress_tokens=[GOOD, BAD, UNKNOWN],
        logits_processor=LogitsProcessorList([marked] if mark is not None and always else []),
    )  # fmt: skip
    sentences: list[list[int]] = []
    for row in made[:, begin.shape[1] :].tolist():
        sentence: list[int] = []
        for token in itertools.takewhile(lambda token: token != END, row):
            if token != mark:
                sentence.append(token)
            if token in ends:
                sentences.append(sentence)
                sentence = []
    return sentences


def losses_of(run: Run, model: Any, documents: Sequence[Document], length: int) -> NDArray[np.float64]:
    """[documents, 2]: the summed loss of the words of segments with a score of 0, marks left out, and how many there are.

    Documents are read in blocks of `length`, as they were in training.
    """
    import torch

    from bakeoff.training.batches import IGNORED

    rows, wanted, owners = [], [], []
    for place, document in enumerate(documents):
        ids, labels = [END], [IGNORED]
        for segment, score in document:
            ids += segment
            labels += [token if score == 0 and token not in (GOOD, BAD) else IGNORED for token in segment]
        missing = -len(ids) % length
        rows.append(np.reshape(ids + [END] * missing, (-1, length)))
        wanted.append(np.reshape(labels + [IGNORED] * missing, (-1, length)))
        owners += [place] * len(rows[-1])
    inputs, targets = (torch.from_numpy(np.concatenate(parts)).to(run.device) for parts in (rows, wanted))
    found = np.zeros((len(documents), 2))
    with torch.no_grad():
        for begin in range(0, len(inputs), 64):
            logits = model(input_ids=inputs[begin : begin + 64], use_cache=False).logits[:, :-1].float()
            labels = targets[begin : begin + 64, 1:]
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
            sums = torch.stack([losses.sum(1), (labels != IGNORED).sum(1)], 1).double().cpu().numpy()
            np.add.at(found, owners[begin : begin + 64], sums)
    return found
