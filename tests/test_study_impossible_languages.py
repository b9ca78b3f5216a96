"""Words, test sentences and measures of the study on impossible languages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bakeoff.store import Store
from bakeoff.studies.impossible_languages import END, Spoken, Text, corpus, split_into_words, surprise
from bakeoff.study import Lab
from bakeoff.text.tasks.languages import FAMILIES, PLURAL, REVERSED, SINGULAR, admitted, verbs
from bakeoff.training.worlds import decoder

MARKERS = (20, 21)


def test_text_is_split_into_sentences_of_words() -> None:
    text = "One day, Tom\u2019s dog didn't bark. \u201cI'm here!\u201d he said.\nIt is 9 .\nYes"
    assert split_into_words(text) == [
        ["one", "day", ",", "tom", "'s", "dog", "did", "n't", "bark", "."],
        ["\u201c", "i", "'m", "here", "!"],
        ["he", "said", "."],
        ["it", "is", "9", "."],
    ]


def test_losses_and_gaps_are_those_of_each_sentence_alone() -> None:
    model: Any = decoder(
        0, vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, initialization="fan_in"
    )
    test = [[5, 6, 20, 7, 8], [9, 3, 4, 11, 12, 13, 21], [6, 5], [5, 6, 8, 20, 21, 3]]
    losses, gaps = surprise(model, Spoken([], test, 24, 1, MARKERS))
    for sentence, loss, gap in zip(test, losses, gaps, strict=True):
        with torch.no_grad():
            likelihood = model(input_ids=torch.tensor([sentence]), use_cache=False).logits[0].double().log_softmax(-1)
        own = [-float(likelihood[at - 1, sentence[at]]) for at in range(1, len(sentence))]
        assert loss == pytest.approx(sum(own) / len(own), abs=1e-5)
        first = next((at for at, token in enumerate(sentence) if token in MARKERS), None)
        if first is None:
            assert gap == 0
        else:
            after = [*sentence, 1][first + 1]
            assert gap == pytest.approx(
                float(likelihood[first - 1, sentence[first]] - likelihood[first - 1, after]) / math.log(2), abs=1e-5
            )
    assert surprise(model, Spoken([], [[3, 4]], 24, 1, MARKERS))[1] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_test_sentences_are_of_other_documents(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [
        f"the animal {'abcdefghij'[i // 10]}{'abcdefghij'[i % 10]} is a friend of the old man ." for i in range(100)
    ]
    monkeypatch.setattr("bakeoff.studies.impossible_languages._documents", lambda lab, family: documents)
    lab = Lab("smoke", range(1), Store(tmp_path), tmp_path, lambda *a: None, lambda sentence: None)
    text = corpus(lab, family, 400, 120, 64, 5)
    assert text.items == 5
    train, test = ({" ".join(words) for words in part} for part in (text.words[:-5], text.words[-5:]))
    assert len(train) == 90
    assert test <= set(documents) - train
    assert all(admitted(family, words, text.pieces) for words in text.words)
    assert all(verbs(words) for words in text.words[-5:])
    for language in FAMILIES[family]:
        spoken = text.spoken(language)
        assert (len(spoken.train), len(spoken.test)) == (90, 5)
        assert spoken.size == len(text.ids) <= 120
        marked = sum(token in spoken.markers for sentence in spoken.test for token in sentence)
        assert marked == (5 if family == "hop" else 0)


def test_words_of_the_shuffle_family_are_cut_into_pieces_before_they_are_shuffled() -> None:
    ids = {token: at for at, token in enumerate([END, REVERSED, SINGULAR, PLURAL, "a", "b", "c"])}
    text = Text([["ab", "c"], ["cab", "a"]], 1, tuple, ids)
    spoken = text.spoken("EvenOddShuffle")
    assert (spoken.train, spoken.test) == ([[4, 6, 5]], [[6, 5, 4, 4]])
    assert np.array_equal(spoken.markers, [2, 3])
