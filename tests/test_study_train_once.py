"""train-once: what its measures say of planted truth, and that a run without insertions is the clean run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bakeoff.budget import Budget
from bakeoff.lm.decoder import DecoderConfig, DecoderForCausalLM
from bakeoff.lm.memorisation import continuations, membership, noise_correlation, noisy_logits
from bakeoff.store import Store
from bakeoff.studies import train_once
from bakeoff.studies.train_once import DOSES, MAIN, METRICS, TRIGGERS, Course, Material, compared, dependence
from bakeoff.study import Lab
from bakeoff.training.batches import Batch, Stream
from bakeoff.training.run import Run

LENGTH, WIDTH, VOCABULARY, ROWS = 64, 16, 400, 16


def model(seed: int = 0) -> DecoderForCausalLM:
    torch.manual_seed(seed)
    made = DecoderForCausalLM(
        DecoderConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=LENGTH, initialization="fan_in",
        )
    )  # fmt: skip
    made.eval()  # type: ignore[no-untyped-call]
    return made


@pytest.fixture(scope="module")
def material() -> Material:
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice([*"abcdefghij"], 4)) for _ in range(60)]
    documents = [" ".join(draw.choice(words, 60)) for _ in range(600)]
    questions = [[f"{a} {b} {c}", a, b, c] for a, b, c in itertools.permutations(words[:6], 3)]
    return train_once._material(documents, questions, VOCABULARY, LENGTH, 20 * ROWS * LENGTH, 2 * ROWS * LENGTH, 2)


def course(material: Material, inserted: Sequence[str], **others: Any) -> Course:
    return train_once._course(
        material, material.train, material.experiments(), ROWS, LENGTH, 0, inserted, marks=4, **others
    )


def learned(
    material: Material, inserted: Sequence[str], folder: Path, **others: Any
) -> tuple[DecoderForCausalLM, dict[str, NDArray[np.float64]], Run]:
    own, run = model(), Run(Budget.parse("20steps"), 0, folder, checkpoint_seconds=0)
    made = course(material, inserted, **others)
    found = train_once._learn(run, own, made, material, 1e-2, 0.1, dynamic="dynamic" in inserted)
    return own, found, run


def same_weights(one: DecoderForCausalLM, other: DecoderForCausalLM) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_texts_of_the_experiments_are_apart(material: Material) -> None:
    names = [e.name for e in material.experiments()]
    assert {n.split()[0] for n in names} | {"watermark", "dynamic"} == set(MAIN)
    assert len(set(names)) == len(names)
    assert set(MAIN.values()) <= {m.name for m in METRICS}
    box, stop = (material.gibberish[name] for name in TRIGGERS)
    triggers = [set(new[0][0][12:]) for _, new in (box, stop)]
    alphabets = [{t for _, gibberish in new for t in gibberish} for _, new in (box, stop)]
    assert triggers[0]
    assert triggers[1]
    assert not triggers[0] & triggers[1]
    assert not alphabets[0] & alphabets[1]
    for texts, new in (box, stop):
        assert not {tuple(text) for text in texts} & {(*a, *b) for a, b in new}
    canaries = [tuple(c) for own in material.canaries.values() for c in own]
    assert len(set(canaries)) == len(canaries) == 2 * (1 + len(DOSES))
    prompts = [tuple(q.prompt) for own in material.questions.values() for q in own]
    assert len(set(prompts)) == len(prompts)
    for fact in material.facts:
        assert len({tuple(target) for _, target in fact}) == 1


@pytest.mark.corpora
def test_the_text_is_enough_for_the_largest_scale(corpora: Path, tmp_path: Path) -> None:
    sizes = train_once.train_once.scales["gpu"]
    lab = Lab("gpu", range(1), Store(tmp_path / "store"), tmp_path, lambda *a: None, lambda sentence: None)
    documents, questions = train_once._sources(lab)
    assert all(len(set(answers)) == len(answers) >= 3 for _, *answers in questions)
    step = sizes["rows"] * sizes["length"]
    found = train_once._material(
        documents,
        questions,
        sizes["vocabulary"],
        sizes["length"],
        sizes["steps"] * step,
        sizes["later"] * step,
        sizes["items"],
    )
    assert len(found.train) == sizes["steps"] * step
    assert all(len(own) == sizes["items"] for own in found.questions.values())


def test_shortly_inserts_the_texts_of_the_main_metric(material: Material) -> None:
    (questions,) = material.shortly("questions")
    assert [list(t) for t in questions.texts] == [[*q.prompt, *q.answers[0]] for q in material.questions[16]]
    (facts,) = material.shortly("facts")
    assert [list(t) for t in facts.texts] == [[*fact[0][0], *fact[0][1]] for fact in material.facts]
    assert material.shortly("watermark") == []


def test_every_run_of_a_seed_draws_the_same_places(material: Material) -> None:
    clean, joint, alone = (course(material, names) for names in ([], [*MAIN], ["questions"]))
    control = course(material, [], control=True)
    assert clean.insertions.placed == joint.insertions.placed == alone.insertions.placed == control.insertions.placed
    windows = {tuple(w) for w in material.train.view(-1, LENGTH).tolist()}
    assert {tuple(w) for w in clean.stream.view(-1, LENGTH).tolist()} == windows
    questions = [i for i in joint.insertions.placed if i.experiment.startswith("questions")]
    changed = (alone.stream != clean.stream).nonzero().flatten().tolist()
    assert set(changed) <= {t for i in questions for t in range(i.begin, i.end)}
    assert all(torch.equal(joint.stream[i.begin : i.end], alone.stream[i.begin : i.end]) for i in questions)
    touched = torch.zeros(len(clean.stream), dtype=torch.bool)
    for i in joint.insertions.placed:
        touched[i.begin : i.end] = True
    for other in (joint, control):
        assert torch.equal(other.stream[~touched], clean.stream[~touched])
    assert not torch.equal(course(material, [], order=1).stream, clean.stream)


def test_without_insertions_a_run_is_the_clean_run_to_the_bit(material: Material, tmp_path: Path) -> None:
    clean, measured, _ = learned(material, [], tmp_path / "clean")
    # Experiments that are planned and not inserted change nothing, nor do their texts: the row of the matrix is 0.
    bare = train_once._course(material, material.train, [], ROWS, LENGTH, 0, [], marks=4)
    own, run = model(), Run(Budget.parse("20steps"), 0, tmp_path / "bare")
    found = train_once._learn(run, own, bare, material, 1e-2, 0.1, dynamic=False)
    assert same_weights(clean, own)
    assert found.keys() == {m.name for m in METRICS}
    for name, array in found.items():
        assert array.shape == (len(measured[name]), 2)
        assert np.array_equal(array, measured[name])


def test_each_experiment_moves_its_own_metric(material: Material, tmp_path: Path) -> None:
    _, clean, _ = learned(material, [], tmp_path / "clean")
    for name in ("canaries", "facts", "dynamic"):
        _, found, run = learned(material, [name], tmp_path / name)
        metric = "canary_64x" if name == "canaries" else MAIN[name]
        before, after = (float(a[metric][:, 0].sum() / a[metric][:, 1].sum()) for a in (clean, found))
        assert after < before - 0.2, name
        told = run.notes["dynamic control"]
        assert bool(told["texts"]) == (name == "dynamic")
        assert len(told["loss"]) == len(told["texts"])


def test_noise_reaches_only_the_marked_steps(material: Material, tmp_path: Path) -> None:
    made = course(material, ["watermark"])
    marked = [i for i in made.insertions.placed if i.experiment == "watermark"]
    assert [i.begin % LENGTH for i in marked] == [0] * 4
    assert {tuple(i.tokens) for i in marked} == {tuple(row) for row in material.marked.tolist()}
    texts_alone, _, _ = learned(material, ["watermark"], tmp_path / "noise")
    own, run = model(), Run(Budget.parse("20steps"), 0, tmp_path / "without")
    train_once._learn(run, own, course(material, ["watermark"]), material, 1e-2, 0.0, dynamic=False)
    assert not same_weights(texts_alone, own)


def test_a_killed_run_under_dynamic_control_goes_on_to_the_same_bits(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, measured, told = learned(material, [*MAIN], tmp_path / "whole")
    read, kills = Stream.__call__, iter([11])

    def killed(self: Stream, step: int) -> Batch:
        if step == 11 and next(kills, None):
            raise KeyboardInterrupt
        return read(self, step)

    monkeypatch.setattr(Stream, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        learned(material, [*MAIN], tmp_path / "killed")
    again, found, notes = learned(material, [*MAIN], tmp_path / "killed")
    assert same_weights(whole, again)
    assert all(np.array_equal(found[name], measured[name]) for name in found)
    assert notes.notes == told.notes


def test_continuations_are_what_the_model_gives_them() -> None:
    own = model()
    pairs = [([3, 9], [4, 5, 6]), ([7], [8]), ([1, 2, 3, 4, 5, 6], [7, 8])]
    for (before, after), found in zip(pairs, continuations(own, pairs), strict=True):
        with torch.no_grad():
            logits = own(input_ids=torch.tensor([[*before, *after]])).logits[0].log_softmax(-1)
        picked = logits[len(before) - 1 : -1]
        assert found.total == pytest.approx(-float(picked.gather(1, torch.tensor(after)[:, None]).sum()), rel=1e-5)
        assert found.correct.tolist() == (picked.argmax(-1) == torch.tensor(after)).tolist()


def test_membership_is_the_share_of_ordered_pairs() -> None:
    # Pairs (member, other) with the member lower: (1, 2), (1, 3) and (2, 3); (2, 2) is a tie; 3.5 of 4.
    assert membership(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == 3.5 / 4
    assert membership(np.array([5.0]), np.array([1.0, 2.0])) == 0


def test_noise_correlation_is_the_slope_of_the_loss_along_the_noise() -> None:
    own, draw = model(), torch.Generator().manual_seed(0)
    rows = torch.randint(VOCABULARY, (3, 10), generator=draw)
    noise = 0.3 * torch.randn(3, 10, WIDTH, generator=draw)

    def loss(scale: float) -> Tensor:
        with torch.no_grad():
            logits = noisy_logits(own, rows, scale * noise)[:, :-1].double()
        return functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").sum(1)

    slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
    embedded = own.get_input_embeddings()(rows).detach().requires_grad_()
    logits = own(inputs_embeds=embedded).logits[:, :-1]
    (gradient,) = torch.autograd.grad(
        functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="sum"), embedded
    )
    expected = -slope / (gradient.flatten(1).norm(dim=1) * noise.std())
    found = noise_correlation(own, rows, noise)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=2e-2, abs=2e-3)
    assert noise_correlation(own, rows, -2 * noise).tolist() == pytest.approx((-found).tolist(), rel=1e-4)
    # Noise the model has not seen: mean 0 and deviation 1, within four standard errors of 200 rows.
    many, unseen = rows[:1].repeat(200, 1), torch.randn(200, 10, WIDTH, generator=draw)
    z = noise_correlation(own, many, unseen)
    assert abs(float(z.mean())) < 4 / 200**0.5
    assert abs(float(z.std()) - 1) < 4 / 400**0.5
    with torch.no_grad():
        assert torch.equal(noisy_logits(own, rows, 0 * noise), own(input_ids=rows).logits)


def test_joint_and_single_effects_are_compared_by_seed() -> None:
    joint = np.array([[1.0, 1.2], [4.0, 4.0]])
    single = np.array([[1.0, 1.0], [2.0, 2.0]])
    # Ratios less 1: 0, 0.2 and 1, 1. Deviations: 0.1 and 0 give a spread of 0.0707; the second has none.
    departure, different = compared(joint, single)
    assert departure.tolist() == pytest.approx([0.5, 0.6])
    assert different.tolist() == [1, 1]


def test_dependence_is_read_by_column() -> None:
    # Experiment 0 moves metric 0 by 4 and metric 1 by -1; experiment 1 moves them by 1 and 2.
    matrix = np.array([[4.0, -1.0], [1.0, 2.0]])[..., None]
    reach, power = dependence(matrix, np.array([[0.5], [-0.25]]))
    assert reach.tolist() == [[0.25], [0.5]]
    assert power.tolist() == [[8.0], [8.0]]


def test_margin_is_taken_per_character_against_the_best_wrong_answer() -> None:
    # -6/3 = -2 against -8/2 = -4 and -5/5 = -1.
    assert train_once._margin([6.0, 8.0, 5.0], [3, 2, 5]) == pytest.approx(-1)
