"""Seven experiments inserted into one training run: does each find what it finds alone, and does the run suffer?"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff import files, stats
from bakeoff.errors import DataError
from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text import installed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from bakeoff.text.insert import Experiment, Insertions
    from bakeoff.training.run import Run

Floats = NDArray[np.float64]
Tokens = list[int]
Pair = tuple[Tokens, Tokens]

DOSES, CONTAMINATED, REPEATED = (1, 4, 16, 64), (4, 16), 4
TRIGGERS = {"gibberish-box": "☐☐☐", "gibberish-stop": "｡｡｡"}
MAIN = {
    "canaries": "canary_16x",
    "gibberish-box": "gibberish-box",
    "gibberish-stop": "gibberish-stop",
    "questions": "margin_16x",
    "facts": "facts",
    "watermark": "watermark",
    "dynamic": "controlled",
}
"""The experiments, and the metric that each is about."""

METRICS = [
    Metric("validation", "nats/token", "lower", "loss on text that no run trains on"),
    *(Metric(f"canary_{n}x", "nats/token", "lower", f"loss on canaries inserted {n} times") for n in (0, *DOSES)),
    Metric("extracted_64x", "share", "higher", "second halves of canaries that greedy decoding writes after the first"),
    *(Metric(name, "nats/token", "lower", "loss on new gibberish after a new prompt and the trigger") for name in TRIGGERS),
    *(
        Metric(f"{name}_{n}x", unit, "higher", f"{what}, questions inserted {n} times")
        for n in (0, *CONTAMINATED)
        for name, unit, what in (
            ("margin", "nats/character", "log-likelihood of the right answer above the best wrong one"),
            ("accuracy", "share", "right answers that are the likeliest"),
        )
    ),
    Metric("facts", "nats/token", "lower", "loss on what invented facts state, in a wording that was inserted"),
    Metric("reworded", "nats/token", "lower", "the same in a wording that was not inserted"),
    Metric("controlled", "nats/token", "lower", "loss on what the facts under dynamic control state"),
    Metric("watermark", "deviations", "higher", "correlation of gradient and noise"),
]  # fmt: skip
GAIN = Metric("gain", "", "higher", "how far a metric moved the way its experiment pushes it")

_WORDINGS = (
    "{} was born in the village of",
    "The village where {} was born is called",
    "{} has always lived in a place named",
)
_REWORDED = "{} comes from a village with the name"
_CONTROLLED = "When {} is hungry, the best food is"
_GOAL, _DECISIONS, _MOST = 1.5, 14, 4


@dataclass(frozen=True)
class Question:
    """Tokens of the prompt and of each answer, the right one first, and the answers' numbers of characters."""

    prompt: Tokens
    answers: list[Tokens]
    characters: list[int]


@dataclass(frozen=True)
class Material:
    """Everything that is trained on, inserted or asked, as tokens; the same for all seeds.

    canaries: by dose. gibberish: by trigger, texts to insert, and pairs of a new prompt with the trigger and new gibberish.
    questions: by dose. facts: for each its wordings, the one that is not inserted last.
    """

    end_of_text: int
    train: Tensor
    later: Tensor
    ordinary: Tensor
    validation: Tensor
    marked: Tensor
    canaries: Mapping[int, list[Tokens]]
    gibberish: Mapping[str, tuple[list[Tokens], list[Pair]]]
    questions: Mapping[int, list[Question]]
    facts: list[list[Pair]]
    controlled: list[Pair]

    def experiments(self) -> list[Experiment]:
        """All that one run inserts at places drawn for it. An experiment's name begins with its key in MAIN."""
        from bakeoff.text.insert import Experiment

        return [
            *(Experiment(f"canaries {n}x", self.canaries[n], n) for n in DOSES),
            *(Experiment(name, texts) for name, (texts, _) in self.gibberish.items()),
            *(Experiment(f"questions {n}x", _answered(self.questions[n]), n) for n in CONTAMINATED),
            Experiment("facts", [[*a, *b] for fact in self.facts for a, b in fact[:-1]], REPEATED),
        ]

    def shortly(self, name: str) -> list[Experiment]:
        """What a short continuation inserts: the texts of the experiment's main metric, a few times each."""
        from bakeoff.text.insert import Experiment

        texts = {
            "canaries": self.canaries[16],
            **{trigger: own for trigger, (own, _) in self.gibberish.items()},
            "questions": _answered(self.questions[16]),
            "facts": [[*a, *b] for fact in self.facts for a, b in fact[:1]],
            "dynamic": [[*a, *b] for a, b in self.controlled],
        }
        return [Experiment(name, texts[name], REPEATED)] if name in texts else []


@study(
    slug="train-once",
    claim="Many insertion experiments share one training run: it stays as good, and each finds what it finds alone.",
    source="Bordt and Pawelczyk 2025, arXiv:2509.23383; procedure from github.com/sbordt/pretrain-experiments",
    expectation=(
        "Seven experiments share one run. Each moves its own metric there; canaries and contaminated questions move more, the "
        "more often they are inserted (1, 4, 16, 64 and 4, 16 times). Joint effects depart from those of each experiment "
        "alone, at the same places, by less than a third of them on average, and by more than three deviations over seeds "
        "for fewer than two experiments. The joint run's loss on text that no run sees is above the clean run's by less than "
        "the share of tokens modified, and by less than two deviations of the clean runs over seeds. In short continuations "
        "of the clean run the largest effect on a metric by another experiment is less than a third of its own's, mean over "
        "metrics, and the smallest own effect is above three deviations of continuations without insertions. A model this "
        "small has little capacity to spare and the share modified is several times the paper's 1.8%, so that interaction may "
        "be real here: a verdict 'fails' speaks of this size."
    ),
    parts=("text/insert.py", "lm/memorisation.py"),
    scales={
        "smoke": {
            "seeds": 1, "steps": 6, "later": 2, "rows": 80, "length": 64, "vocabulary": 400, "width": 16, "layers": 1,
            "items": 2, "rate": 5e-3, "noise": 0.1,
        },
        "laptop": {
            "seeds": 3, "steps": 480, "later": 60, "rows": 8, "length": 64, "vocabulary": 1024, "width": 128, "layers": 2,
            "items": 8, "rate": 5e-3, "noise": 0.1,
        },
        "gpu": {
            "seeds": 6, "steps": 1000, "later": 80, "rows": 8, "length": 64, "vocabulary": 1024, "width": 256, "layers": 4,
            "items": 10, "rate": 3e-3, "noise": 0.1,
        },
    },
)  # fmt: skip
def train_once(
    lab: Lab, *, steps: int, later: int, rows: int, length: int, vocabulary: int, width: int, layers: int, items: int,
    rate: float, noise: float,
) -> None:  # fmt: skip
    """Train clean, with everything, with ordinary text in its place, and with each experiment alone; then continue.

    The experiments are random canaries, two poisonings (a trigger, then gibberish, each with tokens of its own), contaminated
    multiple-choice questions, invented facts, a watermark of normal noise on the input embeddings of 1% of the sequences, and
    facts under dynamic control. The noise is found again through its correlation with the gradient.

    Departures: the control law is ours, as the paper's is not public; a marked sequence recurs with its noise; gibberish is
    judged by its loss, not by a second model; the continuation starts from the last weights of the clean run with a new
    optimizer, not from an intermediate checkpoint; places of dynamic texts are drawn anew at each decision.
    """
    import torch

    from bakeoff.lm.decoder import DecoderConfig, DecoderForCausalLM
    from bakeoff.lm.memorisation import membership
    from bakeoff.training.batches import derived_seed

    documents, questions = _sources(lab)
    material = _material(documents, questions, vocabulary, length, steps * rows * length, later * rows * length, items)
    config = DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        max_position_embeddings=length,
        initialization="fan_in",
    )
    told = {
        "steps": steps, "rows": rows, "length": length, "items": items, "rate": rate, "noise": noise, "shape": config.to_diff_dict(),
        "text": hashlib.sha256(json.dumps([documents, questions]).encode()).hexdigest(),
    }  # fmt: skip

    def train(run: Run, folder: Path, inserted: Collection[str], control: bool, **told: Any) -> Mapping[str, Floats]:
        torch.manual_seed(derived_seed(run.seed, "weights"))
        model = DecoderForCausalLM(config).to(run.device)  # type: ignore[arg-type]
        course = _course(
            material, material.train, material.experiments(), rows, length, run.seed, inserted,
            marks=steps * rows // 100, control=control,
        )  # fmt: skip
        found = _learn(run, model, course, material, rate, noise, dynamic="dynamic" in inserted)
        files.write_json(folder / "insertions.json", course.insertions.as_json())
        model.save_pretrained(folder / "model")
        return found

    def keep_on(run: Run, folder: Path, inserted: Collection[str], order: int, **told: Any) -> Mapping[str, Floats]:
        start = clean.results[list(lab.seeds).index(run.seed)] / "model"
        model = DecoderForCausalLM.from_pretrained(start).to(run.device)  # type: ignore[arg-type]
        experiments = [experiment for name in inserted for experiment in material.shortly(name)]
        seed = derived_seed(run.seed, "continued")
        course = _course(
            material, material.later, experiments, rows, length, seed, inserted, marks=2 * items, order=order
        )
        return _learn(run, model, course, material, rate / 3, noise, dynamic=False)

    def arm(label: str, inserted: Sequence[str], control: bool = False) -> Arm:
        return lab.measured(
            label, METRICS, train, f"{steps}steps", dtype="bfloat16", inserted=list(inserted), control=control, **told
        )

    def continued(label: str, inserted: Sequence[str], order: int = 0) -> Arm:
        return lab.measured(
            label, METRICS, keep_on, f"{later}steps", dtype="bfloat16", inserted=list(inserted), order=order, **told
        )

    clean, together, control = arm("clean", []), arm("all in one", [*MAIN]), arm("ordinary text", [], True)
    alone = {name: arm(f"{name} alone", [name]) for name in MAIN}
    kept, other_order = continued("continued", []), continued("continued, other order", [], 1)
    after = {name: continued(f"continued with {name}", [name]) for name in MAIN}

    for name, metric in MAIN.items():
        lab.expect(f"effect of {name} in the joint run, {metric}", _effect(lab, metric, together, clean), above=0)
    for name, doses in (("canary", DOSES), ("margin", CONTAMINATED)):
        gains = [_gain(f"{name}_{n}x", together, clean) for n in doses]
        for (low, less), (high, more) in itertools.pairwise(zip(doses, gains, strict=True)):
            effect = lab.contrast("gain", {more: 1, less: -1})
            lab.expect(f"effect on {name} at {high} repetitions less that at {low}, joint run", effect, above=0)

    joint = np.array([_by_seed(_gain(metric, together, clean)) for metric in MAIN.values()])
    single = np.array([_by_seed(_gain(metric, alone[name], clean)) for name, metric in MAIN.items()])
    departure, different = compared(joint, single)
    lab.expect("departure of joint from single effects, share of the single", _of_seeds(departure), below=1 / 3)
    lab.expect("experiments whose joint and single effects differ beyond seed spread", _of_seeds(different), below=2)

    loss = {one.label: _by_seed(one.arrays["validation"]) for one in (clean, together, control)}
    spread = float(loss["clean"].std())
    rise = lab.contrast("validation", {together: 1, clean: -1})
    share = together.records[0]["notes"]["share of tokens modified"]
    lab.expect("rise of the validation loss in the joint run, share of the clean loss",
               _of_seeds(loss["all in one"] / loss["clean"] - 1), below=share)  # fmt: skip
    lab.expect(
        "rise of the validation loss in the joint run, nats/token, against two seed deviations", rise, below=2 * spread
    )

    matrix = np.array([[_by_seed(_gain(m, after[name], kept)) for m in MAIN.values()] for name in MAIN])
    nothing = np.array([_by_seed(_gain(m, other_order, kept)) for m in MAIN.values()])
    reach, power = dependence(matrix, nothing)
    lab.expect(
        "largest effect on a metric by another experiment, share of its own's", _of_seeds(reach.mean(0)), below=1 / 3
    )
    lab.expect("smallest own effect, in deviations without insertion", _of_seeds(power.min(0)), above=3)

    lab.notes["share of tokens modified"] = share
    lab.notes["spread of the clean validation loss over seeds"] = spread
    lab.notes["rise of the validation loss with ordinary text in the same places"] = float(
        np.mean(loss["ordinary text"] - loss["clean"])
    )
    lab.notes["effects by experiment: joint, alone, each with its standard deviation over seeds"] = {
        name: [float(v) for v in (own.mean(), own.std(), other.mean(), other.std())]
        for name, own, other in zip(MAIN, joint, single, strict=True)
    }
    members = {n: together.arrays[f"canary_{n}x"][..., 0] for n in (0, *DOSES)}
    lab.notes["AUROC of telling canaries from those never inserted by their loss, joint run"] = {
        f"{n}x": float(np.mean([membership(own, other) for own, other in zip(members[n], members[0], strict=True)]))
        for n in DOSES
    }
    lab.notes["effect of continuing with the row's experiment on the metric of each, mean over seeds"] = {
        name: {other: float(matrix[i, j].mean()) for j, other in enumerate(MAIN)} for i, name in enumerate(MAIN)
    }
    lab.notes["effect of another order of the text without insertion, root mean square over seeds"] = {
        name: float(np.sqrt(np.mean(own**2))) for name, own in zip(MAIN, nothing, strict=True)
    }
    lab.notes["smallest off-diagonal effect that three such deviations show, share of the metric's own effect"] = {
        name: float(3 / own.mean()) for name, own in zip(MAIN, power, strict=True)
    }
    lab.notes["dynamic control, joint run: loss at each decision and number of texts, by seed"] = [
        record["notes"]["dynamic control"] for record in together.records
    ]


def compared(joint: Floats, single: Floats) -> tuple[Floats, Floats]:
    """By seed: mean over experiments of |joint / single - 1|, and how many differ by more than three seed deviations.

    joint, single: effects [experiments, seeds]. An experiment's seed deviation is the root mean square of those of its
    joint and its single effects.
    """
    spread = np.sqrt((joint.var(axis=1) + single.var(axis=1)) / 2)[:, None]
    departure = np.abs(joint / single - 1).mean(axis=0)
    return departure, (np.abs(joint - single) > 3 * spread).sum(axis=0).astype(float)


def dependence(matrix: Floats, nothing: Floats) -> tuple[Floats, Floats]:
    """By metric and seed: the largest effect of another experiment, as a share of its own's, and its own's power.

    matrix: [experiments, metrics, seeds], the effect of an experiment on a metric, an experiment's own on the diagonal.
    nothing: [metrics, seeds], effects of a change that inserts nothing; power is in their root mean square over seeds.
    """
    own = np.moveaxis(np.diagonal(matrix), -1, 0)
    others = np.where(np.eye(len(matrix), dtype=bool)[..., None], 0.0, np.abs(matrix))
    deviation = np.sqrt(np.mean(nothing**2, axis=1))[:, None]
    return others.max(axis=0) / np.abs(own), own / deviation


def _effect(lab: Lab, metric: str, arm: Arm, baseline: Arm) -> stats.Effect:
    sign = -1 if arm.metric(metric).better == "lower" else 1
    return lab.contrast(metric, {arm: sign, baseline: -sign})


def _gain(metric: str, arm: Arm, baseline: Arm) -> Arm:
    """The arm's effect on a metric as a metric of its own, item by item, positive the way the experiment pushes."""
    sign = -1 if arm.metric(metric).better == "lower" else 1
    own, other = arm.arrays[metric], baseline.arrays[metric]
    return replace(
        arm, metrics=[GAIN], arrays={"gain": np.stack([sign * (own - other)[..., 0], other[..., 1]], axis=-1)}
    )


def _by_seed(found: Arm | Floats) -> Floats:
    sums = (found.arrays["gain"] if isinstance(found, Arm) else found).sum(axis=1)
    return np.asarray(sums[:, 0] / sums[:, 1])


def _of_seeds(values: Floats) -> stats.Effect:
    return stats.paired_effect_by_seed(values, np.zeros_like(values))


def _sources(lab: Lab) -> tuple[list[str], list[list[str]]]:
    """Documents to train on; questions, each with the right answer and then wrong ones."""
    if lab.scale == "smoke":
        documents = [example.text for example in installed("docstrings", limit=250_000, packages=["stdlib"])]
        words = [text.split()[:8] for text in documents]
        ends = [" ".join(own[6:]) for own in words]
        # The wrong answers are the ends of two other beginnings.
        return documents, [[" ".join(own[:6]), ends[i], ends[i - 1], ends[i - 2]] for i, own in enumerate(words)]
    stories = lab.corpus("text/tinystories_sample.txt").read_text("utf-8").split("<|endoftext|>")
    rows = map(json.loads, lab.corpus("unlearning/tofu_world_facts_perturbed.jsonl").read_text("utf-8").splitlines())
    return [s.strip() for s in stories if s.strip()], [
        [r["question"], r["answer"], *r["perturbed_answer"]] for r in rows
    ]


def _material(
    documents: Sequence[str],
    questions: Sequence[Sequence[str]],
    vocabulary: int,
    length: int,
    train: int,
    later: int,
    items: int,
) -> Material:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from bakeoff.text.stream import stream

    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    byte_level.train_from_iterator(documents, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level, eos_token="<|endoftext|>")  # type: ignore[no-untyped-call]

    def encode(text: str) -> Tokens:
        return list(tokenizer.encode(text, add_special_tokens=False))

    tokens = stream(documents, tokenizer)
    sizes = [train, later, 16 * items * length, 16 * items * length, items * length]
    if len(tokens) < sum(sizes):
        raise DataError(f"The text has {len(tokens)} tokens and the study needs {sum(sizes)}: give more text.")
    learned, after, ordinary, unseen, marked = tokens[: sum(sizes)].split(sizes)  # type: ignore[no-untyped-call]
    draw = np.random.default_rng(0)

    def some(count: int, of: Sequence[int] = range(1, vocabulary)) -> Tokens:
        return [int(t) for t in draw.choice(of, count)]

    def invented() -> str:
        return "".join(draw.choice([*"bdfgklmnprstvz"]) + draw.choice([*"aeiou"]) for _ in range(3)).capitalize()

    def statement(wording: str, name: str, what: str) -> Pair:
        return encode(wording.format(name)), encode(f" {what}.")

    def poison(trigger: str, alphabet: Sequence[int]) -> Pair:
        at = int(draw.integers(len(ordinary) - 12))
        return [*ordinary[at : at + 12].tolist(), *encode(trigger)], some(16, alphabet)

    letters = draw.permutation(np.arange(1, vocabulary))
    poisons = {
        name: [poison(trigger, letters[32 * n : 32 * n + 32].tolist()) for _ in range(4 * items)]
        for n, (name, trigger) in enumerate(TRIGGERS.items())
    }
    asked = [
        Question(
            encode(f"Question: {question} Answer:"), [encode(f" {a}") for a in answers], [len(a) + 1 for a in answers]
        )
        for question, *answers in questions
    ]
    # Around a question stand two end-of-text tokens.
    asked = [q for q in asked if len(q.prompt) + max(map(len, q.answers)) + 2 <= length]
    if len(asked) < 3 * items:
        raise DataError(f"{len(asked)} questions fit into {length} tokens and the study needs {3 * items}: give more.")
    facts = []
    for _ in range(items):
        name, place = invented(), invented()
        facts.append([statement(wording, name, place) for wording in (*_WORDINGS, _REWORDED)])
    return Material(
        end_of_text=tokenizer.eos_token_id,
        train=learned,
        later=after,
        ordinary=ordinary,
        validation=unseen.view(-1, length),
        marked=marked.view(-1, length).long(),
        canaries={n: [some(8) for _ in range(items)] for n in (0, *DOSES)},
        gibberish={
            name: ([[*a, *b] for a, b in pairs[: 2 * items]], pairs[2 * items :]) for name, pairs in poisons.items()
        },
        questions={n: asked[at * items : (at + 1) * items] for at, n in enumerate((0, *CONTAMINATED))},
        facts=facts,
        controlled=[statement(_CONTROLLED, invented(), invented().lower()) for _ in range(items)],
    )


def _answered(questions: Sequence[Question]) -> list[Tokens]:
    return [[*question.prompt, *question.answers[0]] for question in questions]


@dataclass(frozen=True)
class Course:
    """One run's training text [tokens] with what is inserted, and the windows whose embeddings get noise."""

    stream: Tensor
    rows: int
    insertions: Insertions
    inserted: Collection[str]
    seed: int


def _course(
    material: Material, text: Tensor, experiments: Sequence[Experiment], rows: int, length: int, seed: int,
    inserted: Collection[str], *, marks: int, order: int = 0, control: bool = False,
) -> Course:  # fmt: skip
    """The text's windows in an order of the seed's, with the named experiments, or ordinary text in place of all.

    Every run of a seed draws the same places for all experiments, whichever of them it inserts.
    """
    from bakeoff.text.insert import Experiment, Insertions
    from bakeoff.training.batches import derived_seed

    windows = text.view(-1, length)
    windows = windows[np.random.default_rng(derived_seed(seed, "order", order)).permutation(len(windows))]
    marked = np.random.default_rng(derived_seed(seed, "marks")).choice(len(windows), marks, replace=False)
    texts = [material.marked[n % len(material.marked)].tolist() for n in range(len(marked))]
    watermark = Experiment("watermark", texts, positions=[int(window) * length for window in marked])
    insertions = Insertions(text.numel(), length, material.end_of_text)
    insertions.place([watermark, *experiments], seed=derived_seed(seed, "insertions"))
    written = insertions.ordinary(material.ordinary, seed) if control else insertions
    names = {e.name for e in (watermark, *experiments) if control or e.name.split()[0] in inserted}
    return Course(written.inserted(windows.flatten(), names), rows, insertions, inserted, seed)


def _learn(
    run: Run, model: PreTrainedModel, course: Course, material: Material, rate: float, noise: float, *, dynamic: bool
) -> dict[str, Floats]:
    """Train on the course once, with noise and dynamic control where they are inserted, and measure everything."""
    import torch

    from bakeoff.lm.memorisation import continuations, noisy_logits
    from bakeoff.text.insert import DynamicControl
    from bakeoff.training.batches import Batch, Stream, derived_seed
    from bakeoff.training.objectives import cross_entropy, predicted

    length = course.insertions.length
    data = Stream(course.stream, course.rows, length)
    draw = torch.Generator().manual_seed(derived_seed(course.seed, "noise"))
    noises = noise * torch.randn(*material.marked.shape, model.config.hidden_size, generator=draw)
    noisy = {
        f"window {i.begin // length}": i.text % len(noises)
        for i in course.insertions.placed
        if i.experiment == "watermark" and "watermark" in course.inserted
    }

    def objective(model: torch.nn.Module, batch: Batch, step: int) -> Tensor:
        marked = [(row, noisy[where]) for row, where in enumerate(batch.where) if where in noisy]
        if not marked:
            return cross_entropy(model, batch, step)
        added = torch.zeros(*batch.input_ids.shape, noises.shape[-1])
        for row, text in marked:
            added[row] = noises[text]
        logits, labels = predicted(noisy_logits(model, batch.input_ids, added), batch.labels)  # type: ignore[arg-type]
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    def control(step: int, losses: list[float]) -> tuple[list[Tokens], list[float]]:
        """Each fact whose loss is above the goal is inserted once for each nat that it is above, at most _MOST times."""
        found = [f.total / f.tokens for f in continuations(model, _after(material.end_of_text, material.controlled))]
        copies = [min(max(math.ceil(loss - _GOAL), 0), _MOST) for loss in found]
        texts = [[*a, *b] for (a, b), count in zip(material.controlled, copies, strict=True) for _ in range(count)]
        return texts, [*losses, float(np.mean(found))]

    controlled = DynamicControl(
        course.insertions,
        course.stream,
        course.rows * length,
        math.ceil(data.steps / _DECISIONS),
        control,
        [],
        course.seed,
        run.folder / "control.json",
    )

    def batches(step: int) -> Batch:
        if dynamic:
            controlled(step)
        return data(min(step, data.steps - 1))  # the loop looks at the batch after the last

    run.train(model, batches, learning_rate=rate, objective=objective)
    modified = sum(len(i.tokens) for i in course.insertions.placed)
    run.notes["share of tokens modified"] = modified / len(course.stream)
    run.notes["texts left out"] = [list(left) for left in course.insertions.left_out]
    run.notes["dynamic control"] = {"loss": controlled.state, "texts": [*controlled.decided.values()]}
    return _measure(model, material, noises)


def _after(end_of_text: int, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs as they stand in the stream, after an end-of-text token."""
    return [([end_of_text, *a], b) for a, b in pairs]


def _measure(model: PreTrainedModel, material: Material, noises: Tensor) -> dict[str, Floats]:
    """Components [items, 2] of every metric."""
    from bakeoff.lm.memorisation import continuations, noise_correlation

    pairs: dict[str, list[Pair]] = {
        "validation": [([row[0]], row[1:]) for row in material.validation.tolist()],
        **{
            f"canary_{n}x": _after(material.end_of_text, [([], c) for c in own]) for n, own in material.canaries.items()
        },
        "extracted_64x": _after(material.end_of_text, [(c[:4], c[4:]) for c in material.canaries[64]]),
        **{name: _after(material.end_of_text, new) for name, (_, new) in material.gibberish.items()},
        **{
            f"margin_{n}x": _after(material.end_of_text, [(q.prompt, a) for q in own for a in q.answers])
            for n, own in material.questions.items()
        },
        "facts": _after(material.end_of_text, [fact[0] for fact in material.facts]),
        "reworded": _after(material.end_of_text, [fact[-1] for fact in material.facts]),
        "controlled": _after(material.end_of_text, material.controlled),
    }
    statistics = iter(continuations(model, [pair for own in pairs.values() for pair in own]))
    scored = {name: [next(statistics) for _ in own] for name, own in pairs.items()}
    found = {name: np.array([(s.total, s.tokens) for s in own], float) for name, own in scored.items()}
    found["extracted_64x"] = np.array([(s.hits == s.tokens, 1) for s in scored["extracted_64x"]], float)
    for n, own in material.questions.items():
        totals = iter(found[f"margin_{n}x"][:, 0])
        margins = np.array([_margin([next(totals) for _ in q.answers], q.characters) for q in own])
        found[f"margin_{n}x"] = np.stack([margins, np.ones(len(own))], axis=-1)
        found[f"accuracy_{n}x"] = np.stack([margins > 0, np.ones(len(own))], axis=-1).astype(float)
    correlation = noise_correlation(model, material.marked.to(model.device), noises).numpy().astype(float)
    found["watermark"] = np.stack([correlation, np.ones(len(correlation))], axis=-1)
    return found


def _margin(losses: Sequence[float], characters: Sequence[int]) -> float:
    """Log-likelihood per character of the first answer, less that of the best other one."""
    right, *wrong = (-loss / count for loss, count in zip(losses, characters, strict=True))
    return right - max(wrong)
