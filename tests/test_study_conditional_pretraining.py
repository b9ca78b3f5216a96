"""What the study on pretraining with preferences reads, scores, samples and measures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bakeoff.studies import conditional_pretraining as study
from bakeoff.studies.conditional_pretraining import BAD, END, GOOD, UNKNOWN, losses_of, made_up, prepared, read, sampled
from bakeoff.training.preferences import conditioned
from bakeoff.training.worlds import decoder

RUN: Any = SimpleNamespace(device=torch.device("cpu"), seed=0)


def test_names_are_words_with_a_capital_letter_inside_sentences() -> None:
    text = 'Once Lily saw a dog. Dogs like Lily! "Run," said Lily. I\'m here. ' * 3 + "Then Will will go. "
    stories, names = read(text + "<|endoftext|>It saw Lily. An end")
    assert names == {"lily"}
    assert len(stories) == 2
    assert stories[0][0] == ["once", "lily", "saw", "a", "dog", "."]
    assert stories[1] == [["it", "saw", "lily", "."]]


def test_words_that_are_often_small_are_no_names() -> None:
    assert read("He saw Rose. " * 9 + "A red rose. ")[1] == {"rose"}
    assert read("He saw Rose. " * 9 + "A red rose. " * 2)[1] == frozenset()
    assert read("He saw Rose. " * 4)[1] == frozenset()


def test_scores_are_shares_of_names_and_held_out_stories_are_kept_back() -> None:
    text = prepared(0, 60, 5)
    assert (len(text.train), len(text.validation), len(text.held_out)) == (40, 5, 5)
    assert {text.words[i] for i in text.names} == {"tom", "mia"}
    for document in (*text.train, *text.validation, *text.held_out):
        for ids, score in document:
            words = [text.words[i] for i in ids]
            assert score == pytest.approx(sum(word in ("tom", "mia") for word in words) / len(words))
    assert text == prepared(0, 60, 5)


def test_made_up_stories_have_names_in_three_of_ten_sentences() -> None:
    text, names = read(made_up(500))
    named = [bool(names & set(sentence)) for story in text for sentence in story]
    assert len(named) == 2000
    assert np.mean(named) == pytest.approx(0.3, abs=0.04)


class Uniform(torch.nn.Module):
    """Equal logits for 8 words."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8))


def test_the_loss_counts_words_of_wanted_segments_only_once_each_and_no_marks() -> None:
    documents: Any = [[([4, 5, 6], 0.0), ([7, 7], 0.5), ([4, 4], 0.0)], [([7], 1.0)]]
    marked = conditioned(documents, 0.0, GOOD, BAD, omitted=0.0)
    for told in (documents, marked):
        found = losses_of(RUN, Uniform(), told, 16)
        assert found[:, 1].tolist() == [5, 0]
        assert found[0, 0] == pytest.approx(5 * np.log(8))
        assert found[1, 0] == 0
    # In blocks of 4 the first token of each is not predicted: END 4 5 6 | 7 7 4 4.
    assert losses_of(RUN, Uniform(), documents, 4)[0, 1] == 5
    # In blocks of 2: END 4 | 5 6 | 7 7 | 4 4.
    assert losses_of(RUN, Uniform(), documents, 2)[0, 1] == 3


def test_samples_are_whole_sentences_without_marks_and_end_with_the_text() -> None:
    text = prepared(0, 60, 5)
    stop, cat, dog = (text.words.index(word) for word in (".", "cat", "dog"))
    rows = torch.tensor(
        [[END, GOOD, cat, dog, stop, GOOD, cat, stop, dog], [END, GOOD, cat, stop, END, dog, stop, dog, stop]]
    )
    asked: dict[str, Any] = {}

    def generate(begin: torch.Tensor, **options: Any) -> torch.Tensor:
        asked.update(options, begin=begin.tolist())
        return rows

    model: Any = SimpleNamespace(generate=generate)
    assert sampled(RUN, model, text, 2, 7, mark=GOOD) == [[cat, dog, stop], [cat, stop], [cat, stop]]
    assert asked["begin"] == [[END, GOOD]] * 2
    assert asked["suppress_tokens"] == [GOOD, BAD, UNKNOWN]
    assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (0.7, 0.9, 0)
    (marked,) = asked["logits_processor"]
    scores = marked(rows[:, :5], torch.zeros(2, len(text.words)))
    assert scores[0].argmax() == GOOD
    assert scores[0].isinf().sum() == len(text.words) - 1
    assert (scores[1] == 0).all()
    sampled(RUN, model, text, 2, 7, mark=GOOD, always=False)
    assert not asked["logits_processor"]
    sampled(RUN, model, text, 2, 7)
    assert asked["begin"] == [[END]] * 2
    assert not asked["logits_processor"]


def test_a_model_samples_with_a_mark_before_every_sentence() -> None:
    text = prepared(0, 60, 5)
    model = decoder(
        0, vocab_size=len(text.words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, eos_token_id=END,
        pad_token_id=UNKNOWN,
    )  # fmt: skip
    sentences = sampled(RUN, model.eval(), text, 40, 30, mark=GOOD)
    assert len(sentences) > 10
    assert not {END, GOOD, BAD, UNKNOWN} & {token for sentence in sentences for token in sentence}
    assert sentences == sampled(RUN, model, text, 40, 30, mark=GOOD)
    assert 0 < text.named(sentences) < 1


def test_every_objective_of_the_paper_is_an_arm_with_settings_of_its_own() -> None:
    assert set(study.ARMS) == {
        "maximum likelihood", "filtering", "conditional", "unlikelihood", "reward-weighted", "advantage-weighted",
    }  # fmt: skip
