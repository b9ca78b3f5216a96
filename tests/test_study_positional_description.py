"""The formats, tags and shifts of the study on positions in arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bakeoff.studies.positional_description import FORMATS, asked, shifted, tag
from bakeoff.text.tasks.arithmetic import Addition, Multiplication
from bakeoff.training.objectives import cross_entropy
from bakeoff.training.worlds import batch_of, decoder

SHAPE = {
    "vocab_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "tie_word_embeddings": False,
}


def test_formats_of_a_product() -> None:
    def text(form: str, digits: int, first: int, second: int) -> str:
        task = Multiplication(format=FORMATS[form])
        numbers = ([[int(c) for c in str(n).zfill(digits)[::-1]]] for n in (first, second))
        examples = task.written(np.random.default_rng(0), *map(np.array, numbers))
        ((question, answer),) = task.text(examples)
        return f"{question} {answer}"

    assert text("basic", 4, 13, 24) == "1 3 * 2 4 = 3 1 2 ."
    assert text("reversed", 4, 13, 24) == "1 3 * 2 4 = 2 1 3 ."
    assert text("padded", 4, 13, 24) == "0 0 1 3 * 0 0 2 4 = 0 0 0 0 0 3 1 2 ."
    assert text("padded and reversed", 4, 13, 24) == "0 0 1 3 * 0 0 2 4 = 2 1 3 0 0 0 0 0 ."
    assert text("padded and reversed", 3, 999, 999) == "9 9 9 * 9 9 9 = 1 0 0 8 9 9 ."


@pytest.mark.parametrize("digits", [2, 4])
def test_all_formats_are_asked_for_the_same_held_out_problems(digits: int) -> None:
    tasks = [Multiplication(format=form, operands="lengths", base=4) for form in FORMATS.values()]
    words = [
        [q.replace(" ", "").rstrip("=").split("*") for q, _ in task.text(asked(task, digits, 20, 4))] for task in tasks
    ]
    numbers = words[0]
    assert all(len(number) == digits and number[0] != "0" for pair in numbers for number in pair)
    for task, of_form in zip(tasks, words, strict=True):
        padded = task.format.startswith("padded")
        assert of_form == [[number.zfill(4 if padded else 1) for number in pair] for pair in numbers]
    for task in tasks:
        examples = asked(task, digits, 20, 4)
        assert not {*examples.key.tolist()} & {*task.examples("train", digits, 500).key.tolist()}
        if task.format.startswith("padded"):
            assert set(examples.length.tolist()) == {4 + 1 + 4 + 1 + 8 + 1}
        for (first, second), (_, answer) in zip(numbers, task.text(examples), strict=True):
            told = answer.replace(" ", "").rstrip(".")
            assert int(told[::-1] if task.format.endswith("reversed") else told, 4) == int(first, 4) * int(second, 4)


def test_spaces_taken_out_leave_the_plain_sum() -> None:
    spaced, plain = (Addition(format=form, operands="lengths") for form in ("random_space", "plain"))
    for question, answer in spaced.text(spaced.examples("train", 4, 50)):
        words = question.replace("_", "").split()
        assert plain.solve(words) == answer.split()


def test_tags_are_unit_vectors_in_all_directions_drawn_anew() -> None:
    model = decoder(0, positions="none", **SHAPE)
    before = model.model.embed_tokens(torch.zeros(1, 1, dtype=torch.long))
    tag(model, 24)
    ids = torch.zeros(40, 50, dtype=torch.long)
    found = [model.model.embed_tokens(ids).detach() for _ in range(2)]
    assert torch.equal(found[0][..., :8], before[..., :8].expand(40, 50, 8))
    tags = found[0][..., 8:].reshape(-1, 24)
    assert torch.allclose(tags.norm(dim=-1), torch.ones(2000), atol=1e-5)
    assert not torch.equal(found[0], found[1])
    products = (tags[:1000] * tags[1000:]).sum(-1)
    assert float(products.mean()) == pytest.approx(0, abs=0.03)
    assert float(products.std()) == pytest.approx(24**-0.5, rel=0.1)


def test_no_tag_is_the_model_without_positions() -> None:
    model = decoder(0, positions="none", **SHAPE).eval()
    ids = torch.randint(0, 16, (2, 9))
    before = model(input_ids=ids, use_cache=False).logits
    tag(model, 0)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)


def test_tokens_may_change_places_with_their_tags() -> None:
    model = decoder(0, positions="none", **SHAPE).eval()
    states = torch.randn(1, 7, 32)
    order = [3, 1, 0, 2, 5, 4, 6]
    both = [model.model(inputs_embeds=x, use_cache=False).last_hidden_state[0, -1] for x in (states, states[:, order])]
    assert torch.allclose(*both, atol=1e-5)
    # Equal tokens at different places are told apart by their tags alone.
    norm, ids = model.model.layers[0].mixer_norm, torch.full((1, 2), 3)
    plain = norm(model.model.embed_tokens(ids))[0]
    assert torch.equal(plain[0], plain[1])
    tag(model, 8)
    tagged = norm(model.model.embed_tokens(ids))[0]
    assert not torch.allclose(tagged[0], tagged[1])


def test_shift_moves_all_positions_of_a_row_alike() -> None:
    task = Addition(operands="lengths")
    batch = batch_of(task.examples("train", 3, 6))
    model = decoder(0, positions="learned", max_position_embeddings=40, **{**SHAPE, "vocab_size": len(task.vocabulary)})
    assert shifted(0)(model, batch, 0).item() == pytest.approx(cross_entropy(model, batch, 0).item(), rel=1e-5)
    seen: list[torch.Tensor] = []
    model.model.embed_positions.register_forward_hook(lambda module, places, found: seen.append(places[0]))
    torch.manual_seed(0)
    for _ in range(30):
        shifted(5)(model, batch, 0)
    places = torch.stack(seen)
    assert (places - places[..., :1] == torch.arange(places.shape[-1])).all()
    assert set(places[..., 0].flatten().tolist()) == {*range(6)}
