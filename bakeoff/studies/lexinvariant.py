"""Lexinvariant language models: every sequence gets random embeddings of its own, so that meaning must come from context."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text.tasks.ciphers import LETTERS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bakeoff.training.batches import Batch, Windows
    from bakeoff.training.run import Run

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

SYMBOLS = " " + LETTERS
COUNT = len(SYMBOLS)
FIRST = 16
PAIRS = 8
TABLES = {"standard": "learned", "lexinvariant": "sequence", "shared table": "batch"}


def _halved(sums: Floats) -> Floats:
    return np.asarray(sums[..., 2] / sums[..., 3] - sums[..., 0] / sums[..., 1] / 2)


LATE = Metric("late loss", "nats", "lower", "of a letter in the last quarter of the context")
EARLY = Metric("early loss", "nats", "lower", f"of the first {FIRST} letters but the very first")
HALVED = Metric("late less half early", "nats", "lower", "late loss less half of the early loss", _halved)
CIPHER = Metric(
    "late loss on ciphertext", "nats", "lower", "late loss on a text whose symbols were exchanged at random"
)
DECODED = Metric("decoded", "share", "higher", "letters of a ciphertext that are read rightly")
LOOKED_UP = Metric("looked up", "share", "higher", f"values of a key found, with {PAIRS} random pairs before it")


@study(
    slug="lexinvariant",
    claim="A model whose symbols get new random embeddings in every sequence nears a standard one as the context grows, reads "
    "substitution ciphers, and is better at looking up random symbols",
    source="Huang et al. 2023, arXiv:2305.16349: the embeddings, the tied read-out and what is measured; sizes, texts, the "
    "probe and the bounds are our own",
    expectation="Two models of the same shape take equal steps on text of 27 symbols, one with a learned table of embeddings, the "
    "other with random tables drawn anew for every sequence. The gap between their losses is in the last quarter of the "
    "context less than half of what it is over the first 16 letters. On ciphertexts the lexinvariant model has the lower "
    "loss in the last quarter, and a linear probe of its states, with the same key for all of a text, reads more letters than "
    "frequency analysis and than a probe of the standard model. It looks up more values of random keys than the standard "
    "model. Reported without an expectation: tables drawn anew for every batch and shared by its rows.",
    scales={
        "smoke": {
            "seeds": 1, "seeds_beside": 1, "steps": 2, "rows": 2, "length": 48, "width": 32, "layers": 1, "heads": 1,
            "embedding": 32, "orthogonal": True, "rate": 3e-3, "items": 6, "probed": 6,
        },
        "laptop": {
            "seeds": 3, "seeds_beside": 1, "steps": 1300, "rows": 16, "length": 128, "width": 64, "layers": 2, "heads": 4,
            "embedding": 32, "orthogonal": True, "rate": 3e-3, "items": 100, "probed": 100,
        },
        "gpu": {
            "seeds": 5, "seeds_beside": 5, "steps": 30_000, "rows": 128, "length": 512, "width": 512, "layers": 8, "heads": 8,
            "embedding": 512, "orthogonal": False, "rate": 1e-3, "items": 400, "probed": 400,
        },
    },
    parts=("text/tasks/ciphers.py",),
)  # fmt: skip
def lexinvariant(
    lab: Lab, *, seeds_beside: int, steps: int, rows: int, length: int, width: int, layers: int, heads: int,
    embedding: int, orthogonal: bool, rate: float, items: int, probed: int,
) -> None:  # fmt: skip
    """Departures: letters of children's stories instead of the Pile, and small models, which see far fewer tables than the
    paper's. Embeddings are narrower than the states, with linear maps between them, whereas the paper has one width. Rotary
    positions. Of the paper's two in-context tasks the one that looks up values, in a form of our own.

    Where `orthogonal`, the symbols' vectors are made orthogonal, as those of a wide model nearly are by themselves: logits of
    Gaussian vectors as narrow as a small model's disturb one another so much that it learns nothing from context."""
    text = letters(lab)
    held = len(text) // 10
    metrics = [EARLY, LATE, HALVED, CIPHER, DECODED, LOOKED_UP]
    shape: dict[str, Any] = {
        "rows": rows, "length": length, "width": width, "layers": layers, "heads": heads, "embedding": embedding,
        "orthogonal": orthogonal, "rate": rate, "items": items, "probed": probed,
    }  # fmt: skip
    arms: dict[str, Arm] = {}
    for label, tables in TABLES.items():
        own = replace(lab, seeds=lab.seeds[:seeds_beside]) if tables == "batch" else lab
        work = functools.partial(learn, text=text[held:], test=text[:held])
        arms[label] = own.measured(label, metrics, work, f"{steps}steps", dtype="bfloat16", tables=tables, **shape)
    work = functools.partial(by_frequency, text=text[held:], test=text[:held])
    frequency = lab.measured("frequency analysis", [DECODED], work, "1steps", length=length, items=items)
    standard, invariant = arms["standard"], arms["lexinvariant"]
    for sentence, metric, against, bound in (
        ("gap of the late loss less half of that of the early loss", HALVED, standard, {"below": 0.0}),
        ("late loss on ciphertext, lexinvariant less standard", CIPHER, standard, {"below": 0.0}),
        ("letters decoded, lexinvariant less frequency analysis", DECODED, frequency, {"above": 0.0}),
        ("letters decoded, lexinvariant less standard", DECODED, standard, {"above": 0.0}),
        ("values looked up, lexinvariant less standard", LOOKED_UP, standard, {"above": 0.0}),
    ):
        lab.expect(sentence, lab.contrast(metric.name, {invariant: 1, against: -1}), **bound)
    lab.notes["excess of an ideal lexinvariant model over the true one, at most, nats a letter"] = bayes_bound(
        COUNT, length
    )
    lines = {
        label: {float(at): [r["notes"]["by position"][at] for r in arms[label].records] for at in _records(arms[label])}
        for label in ("standard", "lexinvariant")
    }
    lab.curve("Loss by place in the context", "place", "nats", lines)


def _records(arm: Arm) -> Mapping[str, float]:
    found: Mapping[str, float] = arm.records[0]["notes"]["by position"]
    return found


def bayes_bound(symbols: int, length: int) -> float:
    """ln(V!) / T: an ideal lexinvariant model is a mixture over the V! ciphers, so p' >= p / V! for every text of T symbols."""
    return math.lgamma(symbols + 1) / length


def letters(lab: Lab) -> Integers:
    """Text as places in SYMBOLS: lower-case letters, everything between them one space."""
    if lab.scale == "smoke":
        from bakeoff.text import installed

        text = " ".join(example.text for example in installed("docstrings", limit=30_000, packages=["stdlib"]))
    else:
        text = lab.corpus("text/tinystories_sample.txt").read_text("utf-8").replace("<|endoftext|>", " ")
    return to_ids(text)


def to_ids(text: str) -> Integers:
    plain = re.sub(r"[^a-z]+", " ", text.lower().replace("\u2019", "'").replace("'", ""))
    codes = np.frombuffer(plain.encode("ascii"), np.uint8).astype(np.int64)
    return np.where(codes == ord(" "), 0, codes - ord("a") + 1)


def windows(text: Integers, count: int, length: int) -> Integers:
    """[count, length]: stretches of the text, evenly spaced."""
    begins = np.linspace(0, len(text) - length, count).astype(int)
    return np.stack([text[begin : begin + length] for begin in begins])


def enciphered(texts: Integers, seed: int) -> Integers:
    """Each text with its symbols exchanged for one another at random, by a key of its own."""
    draw = np.random.default_rng(seed)
    keys = np.stack([draw.permutation(COUNT) for _ in texts])
    return np.take_along_axis(keys, texts, 1)


def look_ups(count: int, seed: int) -> tuple[Integers, Integers]:
    """Pairs of a key and a value with spaces between them, keys all different, then one of the keys; and its values [count]."""
    draw = np.random.default_rng(seed)
    keys = draw.random((count, COUNT - 1)).argsort(1)[:, :PAIRS] + 1
    values = draw.integers(1, COUNT, size=(count, PAIRS))
    shown = np.stack([keys, values, np.zeros_like(keys)], 2).reshape(count, -1)
    asked = draw.integers(PAIRS, size=count)[:, None]
    return np.hstack([shown, np.take_along_axis(keys, asked, 1)]), np.take_along_axis(values, asked, 1)[:, 0]


def character_model(
    seed: int, tables: str, *, length: int, width: int, layers: int, heads: int, embedding: int
) -> nn.Module:
    """A decoder between E, into which symbols are read, and the same E, by which they are read out.

    logits(x)_t = E B h_t / sqrt(e), h = decoder(A E(x)), E: [symbols, e] with entries of variance 1, learned, or given with
    the input as `tables` [rows, symbols, e]. Nothing else depends on which symbol is which. The maps A: e -> width and B, which
    is 0 at first, leave room in the decoder's states for more than the symbol that was read. Before the symbols stands a
    learned vector, by which attention can tell how many there are.
    """
    import torch
    from torch import nn

    from bakeoff.training.worlds import decoder

    trunk = decoder(
        seed, vocab_size=1, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        max_position_embeddings=length + 1, initialization="fan_in",
    ).model  # fmt: skip
    trunk.embed_tokens.requires_grad_(False)

    class CharacterModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk
            self.read_in, self.read_out = nn.Linear(embedding, width), nn.Linear(width, embedding, bias=False)
            nn.init.normal_(self.read_in.weight, std=embedding**-0.5)
            nn.init.normal_(self.read_in.bias)
            self.start = nn.Parameter(torch.randn(1, 1, width))
            nn.init.zeros_(self.read_out.weight)
            self.table = nn.Parameter(torch.randn(COUNT, embedding)) if tables == "learned" else None

        def forward(self, input_ids: Tensor, tables: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            """Logits [rows, length, symbols], and the states after every layer."""
            if self.table is not None:
                tables = self.table.expand(len(input_ids), -1, -1)
            x = self.read_in(tables.gather(1, input_ids[..., None].expand(-1, -1, embedding)))
            begun = torch.cat((self.start.expand(len(x), -1, -1).to(x.dtype), x), 1)
            output = self.trunk(inputs_embeds=begun, use_cache=False, output_hidden_states=True)
            states = tuple(state[:, 1:] for state in output.hidden_states)
            logits = self.read_out(states[-1]) @ tables.transpose(1, 2) / math.sqrt(embedding)
            return logits, states

    return CharacterModel()


@dataclass(frozen=True)
class WithTables:
    """Windows of a text together with tables of embeddings, drawn for each row, or for the batch if `shared`."""

    windows: Windows
    width: int
    orthogonal: bool
    seed: int
    shared: bool

    def __call__(self, step: int) -> Batch:
        batch = self.windows(step)
        drawn = draw_tables(1 if self.shared else self.windows.rows, self.width, self.orthogonal, self.seed, step)
        return replace(batch, extra={"tables": drawn.expand(self.windows.rows, -1, -1)})


def draw_tables(rows: int, width: int, orthogonal: bool, seed: int, *names: object) -> Tensor:
    """[rows, symbols, width] from N(0, 1), `orthogonal` ones with the rows of a table made orthogonal, of length sqrt(width)."""
    import torch

    from bakeoff.training.batches import derived_seed

    generator = torch.Generator().manual_seed(derived_seed(seed, "tables", *names))
    drawn = torch.randn(rows, COUNT, width, generator=generator)
    return torch.linalg.qr(drawn.transpose(1, 2))[0].transpose(1, 2) * math.sqrt(width) if orthogonal else drawn


def next_symbol(model: nn.Module, batch: Batch, step: int) -> Tensor:
    """The mean cross-entropy of every symbol but the first (nats)."""
    from torch.nn import functional

    logits, _ = model(batch.input_ids, batch.extra["tables"])
    loss: Tensor = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch.labels[:, 1:].flatten())
    return loss


def learn(
    run: Run, folder: Path, *, text: Integers, test: Integers, tables: str, rows: int, length: int, width: int, layers: int,
    heads: int, embedding: int, orthogonal: bool, rate: float, items: int, probed: int,
) -> dict[str, Floats]:  # fmt: skip
    """Train a model, and measure it on other text, on ciphertexts and on look-ups, each row with a table of its own."""
    import torch

    from bakeoff.training.batches import Windows
    from bakeoff.training.schedules import cosine

    model = character_model(
        run.seed, tables, length=length, width=width, layers=layers, heads=heads, embedding=embedding
    ).to(run.device)
    made = Windows(torch.from_numpy(text.astype(np.int32)), rows, length, run.seed)
    run.train(
        model, WithTables(made, embedding, orthogonal, run.seed, tables == "batch"), learning_rate=rate, schedule=cosine(0.1, least=0.1),
        objective=next_symbol,
    )  # fmt: skip

    def read(texts: Integers, name: str) -> tuple[Floats, Floats]:
        """Log-likelihoods [n, length, symbols] and, of all layers together, states [n, length, features]."""
        given, found = draw_tables(len(texts), embedding, orthogonal, 0, name), []
        for begin in range(0, len(texts), 32):
            part = slice(begin, begin + 32)
            with torch.no_grad(), run.autocast():
                logits, states = model(torch.from_numpy(texts[part]).to(run.device), given[part].to(run.device))
            found.append((logits.float().log_softmax(-1).cpu().numpy(), torch.cat(states, -1).float().cpu().numpy()))
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])

    late = length - length // 4
    plain, texts = windows(test, items, length), windows(text, probed, length)
    ciphers, known = enciphered(plain, 0), enciphered(texts, 1)
    losses = _losses(read(plain, "plain")[0], plain)
    likelihood, states = read(ciphers, "cipher")
    on_ciphers = _losses(likelihood, ciphers)
    begin = length // 4
    probe = fitted_probe(read(known, "probed")[1][:, begin:], texts[:, begin:])
    decoded = voted(states @ probe[:-1] + probe[-1], ciphers)
    questions, values = look_ups(5 * items, 0)
    guessed = read(questions, "look-ups")[0][:, -1].argmax(-1)
    places = [
        place for place in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 511) if place < length
    ]
    by_place = losses.mean(0)
    near = {place: by_place[max(1, place * 7 // 8) - 1 : min(length, place * 9 // 8 + 1)] for place in places}
    run.notes["by position"] = {str(place): float(values.mean()) for place, values in near.items()}
    early, last = _sums(losses[:, : FIRST - 1]), _sums(losses[:, late - 1 :])
    right = decoded == plain
    hits = (guessed == values).reshape(items, 5)
    return {
        EARLY.name: early,
        LATE.name: last,
        HALVED.name: np.hstack([early, last]),
        CIPHER.name: _sums(on_ciphers[:, late - 1 :]),
        DECODED.name: _sums(right),
        LOOKED_UP.name: _sums(hits),
    }


def _losses(likelihood: Floats, texts: Integers) -> Floats:
    """[n, length - 1]: negative log-likelihood of every symbol but the first (nats)."""
    return -np.take_along_axis(likelihood[:, :-1], texts[:, 1:, None], 2)[..., 0].astype(float)


def _sums(values: NDArray[Any]) -> Floats:
    return np.stack([values.sum(1), np.full(len(values), values.shape[1])], 1).astype(float)


def fitted_probe(states: Floats, wanted: Integers, ridge: float = 1.0) -> Floats:
    """[features + 1, symbols]: least squares from states [n, length, features] and 1 to whether it is each symbol."""
    x = states.reshape(-1, states.shape[-1]).astype(float)
    x = np.hstack([x, np.ones((len(x), 1))])
    return np.asarray(np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ np.eye(COUNT)[wanted.ravel()]))


def voted(scores: Floats, ciphers: Integers) -> Integers:
    """[n, length]: texts read with one key each: a symbol stands for that with the highest sum of scores [n, length, symbols]."""
    one_hot = np.eye(COUNT)[ciphers]
    keys = (one_hot.transpose(0, 2, 1) @ scores).argmax(-1)
    return np.asarray(np.take_along_axis(keys, ciphers, 1))


def by_frequency(
    run: Run, folder: Path, *, text: Integers, test: Integers, length: int, items: int
) -> dict[str, Floats]:
    """Ciphertexts read by frequency: the n-th most frequent symbol of a text for the n-th most frequent of the language."""
    plain = windows(test, items, length)
    ciphers = enciphered(plain, 0)
    run.meter.steps += 1
    return {DECODED.name: _sums(read_by_frequency(ciphers, text) == plain)}


def read_by_frequency(ciphers: Integers, text: Integers) -> Integers:
    ranked = np.argsort(-np.bincount(text, minlength=COUNT), kind="stable")
    counts = np.stack([np.bincount(cipher, minlength=COUNT) for cipher in ciphers])
    keys = np.empty_like(counts)
    np.put_along_axis(keys, np.argsort(-counts, 1, kind="stable"), np.tile(ranked, (len(ciphers), 1)), 1)
    return np.asarray(np.take_along_axis(keys, ciphers, 1))
