"""Impossible languages: English, shuffled, reversed and with hopping agreement markers, as small decoders learn it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text.tasks.languages import FAMILIES, LANGUAGES, PLURAL, REVERSED, SINGULAR, admitted, transform, verbs

if TYPE_CHECKING:
    from bakeoff.training.run import Run

END, UNKNOWN = "<end>", "<unk>"
MOST = (
    "NoShuffle", "LocalShuffle(3)", "LocalShuffle(10)", "DeterministicShuffle(21)", "NondeterministicShuffle",
    *FAMILIES["reverse"], *FAMILIES["hop"],
)  # fmt: skip
LOSS = Metric("log perplexity", "nats", "lower", "of a test sentence, so that its mean is that of the geometric mean")
GAP = Metric(
    "marker gap", "bits", "higher", "surprisal of what follows a marker, were it left out, less that of the marker"
)
THROUGHOUT = Metric("marker gap throughout", "bits", "higher", "the marker gap, mean over the looks through training")


@study(
    slug="impossible-languages",
    claim="Language models learn impossible languages less well than English, the worse the further they are from it",
    source="Kallini et al. 2024, arXiv:2401.06416: languages, controls and measures; models, texts and the rule that finds "
    "verbs are our own",
    expectation="Of the shuffles, LocalShuffle(3) has a higher perplexity than NoShuffle, LocalShuffle(10) than "
    "LocalShuffle(3), DeterministicShuffle than LocalShuffle(10), and NondeterministicShuffle than DeterministicShuffle. "
    "PartialReverse and FullReverse have together a higher one than NoReverse. A marker that stands right after its verb is "
    "told from what would follow without it by more bits than one that stands four tokens or words on, in the mean over looks "
    "through training. Perplexities are geometric means over sentences, effects their logarithms; all languages take equal "
    "steps at the same rate, and each is compared within its family.",
    scales={
        "smoke": {
            "seeds": 1, "languages": MOST, "sentences": 400, "vocabulary": 200, "width": 16, "layers": 1, "rows": 4,
            "length": 32, "steps": 2, "looks": 2, "rate": 3e-3, "items": 20,
        },
        "laptop": {
            "seeds": 3, "languages": MOST, "sentences": 40_000, "vocabulary": 1024, "width": 64, "layers": 2, "rows": 32,
            "length": 64, "steps": 300, "looks": 6, "rate": 1e-2, "items": 500,
        },
        "gpu": {
            "seeds": 5, "languages": tuple(LANGUAGES), "sentences": 40_000, "vocabulary": 2048, "width": 256, "layers": 4,
            "rows": 32, "length": 256, "steps": 1200, "looks": 12, "rate": 2e-3,
            "items": 1000,
        },
    },
    parts=("text/tasks/languages.py",),
)  # fmt: skip
def impossible_languages(
    lab: Lab, *, languages: tuple[str, ...], sentences: int, vocabulary: int, width: int, layers: int, rows: int, length: int,
    steps: int, looks: int, rate: float, items: int,
) -> None:  # fmt: skip
    """Departures: decoders of a few layers instead of GPT-2 small; shuffles and reversals of children's stories, and hops, for
    which these have too few verbs in the present, of text of many genres, all in lower case; verbs are found by their form;
    a sentence sees no other one and begins at position 0, in training as in the test, so that rules that count from the
    beginning are easier to learn than in the paper's rows of many sentences; the paper's interventions on agreement are
    left out."""
    shape: dict[str, Any] = {
        "width": width,
        "layers": layers,
        "rows": rows,
        "length": length,
        "steps": steps,
        "looks": looks,
        "rate": rate,
    }
    arms: dict[str, Arm] = {}
    for family in FAMILIES:
        text = corpus(lab, family, sentences, vocabulary, length, items)
        for language in languages:
            if LANGUAGES[language] == family:
                metrics = [LOSS, GAP, THROUGHOUT] if family == "hop" else [LOSS]
                work = functools.partial(learn, spoken=text.spoken(language))
                arms[language] = lab.measured(
                    language, metrics, work, f"{steps}steps", dtype="bfloat16", sentences=sentences, vocabulary=vocabulary,
                    items=items, **shape,
                )  # fmt: skip

    for harder, easier in (
        ("LocalShuffle(3)", "NoShuffle"),
        ("LocalShuffle(10)", "LocalShuffle(3)"),
        ("DeterministicShuffle(21)", "LocalShuffle(10)"),
        ("NondeterministicShuffle", "DeterministicShuffle(21)"),
    ):
        effect = lab.contrast(LOSS.name, {arms[harder]: 1, arms[easier]: -1})
        lab.expect(f"log perplexity of {harder} less {easier}", effect, above=0)
    control, *reversals = (arms[language] for language in FAMILIES["reverse"])
    effect = lab.contrast(LOSS.name, {control: -1} | dict.fromkeys(reversals, 1 / 2))
    lab.expect("log perplexity of PartialReverse and FullReverse less NoReverse", effect, above=0)
    control, *hops = (arms[language] for language in FAMILIES["hop"])
    effect = lab.contrast(THROUGHOUT.name, {control: 1} | dict.fromkeys(hops, -1 / 2))
    lab.expect("marker gap throughout of NoHop less TokenHop and WordHop", effect, above=0)
    lab.notes["log perplexity less that of the family's control"] = {
        language: lab.contrast(LOSS.name, {arm: 1, arms[FAMILIES[LANGUAGES[language]][0]]: -1}).effect
        for language, arm in arms.items()
        if language not in [names[0] for names in FAMILIES.values()]
    }
    for family in FAMILIES:
        lab.curve(f"Languages of the {family} family", "steps", "log perplexity (nats)", _along(arms, family, "loss"))
    lab.curve("Markers", "steps", "marker gap (bits)", _along(arms, "hop", "gap"))


def _along(arms: Mapping[str, Arm], family: str, name: str) -> dict[str, dict[float, list[float]]]:
    return {
        language: {int(at): [r["notes"][name][at] for r in arm.records] for at in arm.records[0]["notes"][name]}
        for language, arm in arms.items()
        if LANGUAGES[language] == family
    }


def split_into_words(text: str) -> list[list[str]]:
    """Sentences of lower-case words, in which punctuation and clitics stand apart."""
    plain = text.lower().replace("\u2019", "'")
    sentences = re.split(r"(?<=[.!?])[\"\u201d]?\s+|\n+", plain)
    words = [re.findall(r"[a-z]+(?=n't)|n't|'(?:ll|s|re|ve|m)\b|[a-z]+|[^\sa-z]", sentence) for sentence in sentences]
    return [sentence for sentence in words if len(sentence) > 1]


@dataclass(frozen=True)
class Spoken:
    """Token ids of a language's sentences; the language's markers and the token at every sentence's end."""

    train: list[list[int]]
    test: list[list[int]]
    size: int
    end: int
    markers: tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """English sentences of a family, the last `items` of them for the test, and their tokens."""

    words: list[list[str]]
    items: int
    pieces: Callable[[str], Sequence[str]]
    ids: Mapping[str, int]

    def spoken(self, language: str) -> Spoken:
        made = [[self.ids[token] for token in tokens] for tokens in transform(language, self.words, self.pieces)]
        markers = tuple(self.ids[marker] for marker in (SINGULAR, PLURAL))
        return Spoken(made[: -self.items], made[-self.items :], len(self.ids), self.ids[END], markers)


def corpus(lab: Lab, family: str, sentences: int, vocabulary: int, length: int, items: int) -> Text:
    """Text for a family: the test's sentences are of other documents; of the hop family all of them have verbs to mark.

    Sentences of more than three quarters of `length` tokens are left out, so that they have room with their markers.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    documents = _documents(lab, family)
    held = max(1, len(documents) // 10)
    train, test = ([s for d in part for s in split_into_words(d)] for part in (documents[held:], documents[:held]))
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, UNKNOWN, REVERSED, SINGULAR, PLURAL], end_of_word_suffix="</w>",
        limit_alphabet=60, show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((" ".join(words) for words in train[:sentences]), trainer)
    pieces = functools.cache(lambda word: tuple(tokenizer.encode(word).tokens))

    def fits(words: Sequence[str]) -> bool:
        return admitted(family, words, pieces) and sum(len(pieces(word)) for word in words) <= 3 * length // 4

    train = [words for words in train if fits(words)][:sentences]
    test = [words for words in test if fits(words) and (family != "hop" or verbs(words))]
    chosen = [test[int(place)] for place in np.linspace(0, len(test) - 1, min(items, len(test)))]
    return Text(train + chosen, len(chosen), pieces, tokenizer.get_vocab())


def _documents(lab: Lab, family: str) -> list[str]:
    if lab.scale == "smoke":
        from bakeoff.text import installed

        return [example.text for example in installed("docstrings", limit=40_000, packages=["stdlib"])]
    if family == "hop":
        lines = lab.corpus("text/masc_plain.jsonl").read_text("utf-8").splitlines()
        found = [json.loads(line)["text"] for line in lines]
    else:
        found = lab.corpus("text/tinystories_sample.txt").read_text("utf-8").split("<|endoftext|>")
    # The genres stand one after the other.
    return [found[place] for place in np.random.default_rng(0).permutation(len(found))]


def learn(
    run: Run, folder: Path, *, spoken: Spoken, width: int, layers: int, rows: int, length: int, steps: int, looks: int,
    rate: float, **_: object,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train a decoder on the language's sentences, in an order that the seed draws, and look at test sentences on the way."""
    import torch

    from bakeoff.text import Item
    from bakeoff.training.along import Along
    from bakeoff.training.batches import Shuffled, pack
    from bakeoff.training.schedules import cosine
    from bakeoff.training.worlds import decoder

    ids = [torch.tensor([*sentence, spoken.end]) for sentence in spoken.train]
    packed = pack([Item(sentence, sentence, "") for sentence in ids], length)
    model: Any = decoder(
        run.seed, vocab_size=spoken.size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(1, width // 32),
        positions="learned", initialization="fan_in", max_position_embeddings=length,
    )  # fmt: skip
    model.to(run.device)
    at = sorted({max(1, steps * look // looks) for look in range(1, looks + 1)})
    marked = any(marker in sentence for sentence in spoken.test for marker in spoken.markers)

    def look() -> list[float]:
        with run.autocast():
            losses, gaps = surprise(model, spoken)
        return [*losses, *gaps]

    along = Along(run.folder / "along.json", at, look)
    run.train(
        model, Shuffled(packed, rows, run.seed), learning_rate=rate, schedule=cosine(0.1), after_step=along,
    )  # fmt: skip
    seen = {done: np.array(values, float).reshape(1 + marked, -1) for done, values in along.read().items()}
    run.notes["loss"] = {str(done): float(values[0].mean()) for done, values in seen.items()}
    last = seen[steps]
    found = {LOSS.name: np.stack([last[0], np.ones_like(last[0])], 1)}
    if marked:
        run.notes["gap"] = {str(done): float(values[1].mean()) for done, values in seen.items()}
        found[GAP.name] = np.stack([last[1], np.ones_like(last[1])], 1)
        mean = np.mean([values[1] for values in seen.values()], axis=0)
        found[THROUGHOUT.name] = np.stack([mean, np.ones_like(mean)], 1)
    return found


def surprise(model: Any, spoken: Spoken) -> tuple[list[float], list[float]]:
    """Of each test sentence, which stands alone: the mean negative log-likelihood of its tokens but the first, in nats; and
    if sentences have markers, by how many bits what follows the first marker would surprise more in its place."""
    import torch

    losses, gaps = np.zeros(len(spoken.test)), np.zeros(len(spoken.test))
    marked = False
    order = np.argsort([len(sentence) for sentence in spoken.test], kind="stable")
    for begin in range(0, len(order), 128):
        chosen = order[begin : begin + 128]
        ended = [[*spoken.test[place], spoken.end] for place in chosen]
        ids = torch.full((len(ended), max(map(len, ended))), spoken.end)
        for row, sentence in zip(ids, ended, strict=True):
            row[: len(sentence)] = torch.tensor(sentence)
        with torch.no_grad():
            logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1]
        likelihood = logits.float().log_softmax(-1).cpu()
        own = likelihood.gather(2, ids[:, 1:, None])[..., 0]
        for place, row, (sentence, found) in zip(chosen, likelihood, zip(ended, own, strict=True), strict=True):
            losses[place] = -float(found[: len(sentence) - 2].mean())
            first = next((i for i, token in enumerate(sentence) if token in spoken.markers), None)
            if first is not None:
                marked = True
                gaps[place] = float(row[first - 1, sentence[first]] - row[first - 1, sentence[first + 1]]) / np.log(2)
    return losses.tolist(), gaps.tolist() if marked else []
