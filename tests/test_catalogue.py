"""The papers' files against the code; what became of each; and finding them, by words against a plain BM25, and by meaning."""

from __future__ import annotations

import datetime
import math
import re
import shlex
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_docs import read
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from bakeoff import registry, study
from bakeoff.catalogue import papers as reading
from bakeoff.catalogue import search, status
from bakeoff.catalogue.commands import command
from bakeoff.catalogue.papers import Paper, papers, tags
from bakeoff.catalogue.search import Embedding, Index, embedding_at_hand
from bakeoff.cli import _repeated
from bakeoff.errors import ModelError, UsageError
from bakeoff.store import Store

FOLDER = Path(reading.__file__).parent / "papers"


def made_up(slug: str, title: str, claim: str = "", tags: Sequence[str] = ()) -> Paper:
    return Paper(slug, title, 2024, "tune", "method", claim, tuple(tags), (), datetime.date(2026, 1, 1))


def slugs(index: Index, query: str, count: int = 10) -> list[str]:
    return [found.paper.slug for found in index.search(query, count)]


# The files


def test_there_are_327_papers_under_their_names() -> None:
    assert len(papers()) == 327
    assert [paper.slug for paper in papers().values()] == sorted(path.stem for path in FOLDER.iterdir())


def test_what_implements_a_paper_is_there_and_says_the_same() -> None:
    studies = study.found()
    built = {(f"studies/{slug}", slug) for slug in studies}
    for contest in registry.contest_names():
        built |= {(f"{contest}/{name}", m.paper) for name, m in registry.methods(contest).items() if m.paper}
    said = {(what, paper.slug) for paper in papers().values() for what in paper.implemented_by}
    assert said == built


@pytest.mark.parametrize("slug", papers())
def test_a_paper_is_well_told(slug: str) -> None:
    paper = papers()[slug]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", paper.slug)
    assert re.fullmatch(r"[^.!?].*[^ .!?]\.", paper.claim)
    assert not re.search(r"[.!?] [A-Z]", paper.claim), "more than one sentence"
    assert 12 <= len(paper.claim.split()) <= 45
    assert paper.tags
    assert len(set(paper.tags)) == len(paper.tags)
    assert isinstance(paper.tags, tuple)
    assert isinstance(paper.implemented_by, tuple)
    assert isinstance(paper.year, int)
    assert type(paper.added) is datetime.date
    if paper.arxiv:
        assert re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}", paper.arxiv)
        assert "/" in paper.arxiv or paper.year == 2000 + int(paper.arxiv[:2])
    assert bool(paper.implemented_by) == bool(paper.not_covered)


def test_no_paper_is_there_twice_and_no_tag_is_idle() -> None:
    for name in ("arxiv", "title", "claim"):
        values = Counter(getattr(paper, name).lower() for paper in papers().values())
        assert [value for value, times in values.items() if value and times > 1] == []
    assert {tag for paper in papers().values() for tag in paper.tags} == set(tags())


GOOD = """
slug = "hft"
title = "A title"
year = 2024
contest = "tune"
kind = "method"
claim = "A claim."
tags = ["forgetting"]
implemented_by = ["tune/hft", "studies/hft"]
added = 2026-11-21
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A catalogue of one file."""
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "hft.toml").write_text(GOOD)
    (tmp_path / "tags.toml").write_text('forgetting = "it forgets"')
    monkeypatch.setattr(reading, "_FOLDER", tmp_path)
    caches = (papers, tags, status.entries)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


def test_a_file_is_read(folder: Path) -> None:
    (paper,) = papers().values()
    assert paper.studies == ("hft",)
    assert paper.methods == (("tune", "hft"),)
    assert paper.added == datetime.date(2026, 11, 21)
    assert (paper.arxiv, paper.not_covered) == ("", "")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("= 2024", "=", "is no TOML"),
        ('claim = "A claim."', "", "lacks claim"),
        ("added", "author = 1\nadded", "the unknown field author"),
        ('["forgetting"]', '["oblivion"]', "the tag oblivion"),
        ('slug = "hft"', 'slug = "fht"', "must have the slug hft"),
        ('contest = "tune"', 'contest = "tennis"', "the unknown contest tennis"),
        ('kind = "method"', 'kind = "poem"', "the unknown kind poem"),
    ],
)
def test_a_malformed_file_is_named_in_one_sentence(folder: Path, old: str, new: str, said: str) -> None:
    (folder / "papers" / "hft.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=said) as caught:
        papers()
    text = str(caught.value)
    assert text.startswith(str(folder / "papers" / "hft.toml"))
    assert text.endswith(": mend it.")
    assert "\n" not in text


# What became of them


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({"laptop": "holds"}, "holds"),
        ({"laptop": "fails"}, "fails"),
        ({"gpu": "undecided"}, "undecided"),
        ({"smoke": "holds", "laptop": "fails"}, "fails"),
        ({"gpu": "holds", "laptop": "fails", "smoke": "undecided"}, "holds"),
        ({}, "built"),
    ],
)
def test_the_verdict_at_the_largest_scale_is_the_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch, verdicts: dict[str, str], expected: str
) -> None:
    recorded = [{"slug": "hft", "scale": scale, "verdict": verdict} for scale, verdict in verdicts.items()]
    another = {"slug": "another", "scale": "gpu", "verdict": "fails"}
    monkeypatch.setattr(study, "recorded", lambda: [another, *recorded])
    entry = status.entries()["hft"]
    assert entry.status == expected
    assert [v["scale"] for v in entry.verdicts] == [s for s in ("gpu", "laptop", "smoke") if s in verdicts]


def test_without_code_it_is_not_built(folder: Path) -> None:
    (folder / "papers" / "hft.toml").write_text(GOOD.replace('["tune/hft", "studies/hft"]', "[]"))
    assert status.entries()["hft"].status == "not built"
    assert set(status.STATUSES) == {"holds", "fails", "undecided", "built", "not built"}


# By words


@pytest.fixture(scope="module")
def index() -> Index:
    return Index(list(papers().values()))


def test_what_is_named_comes_first(index: Index) -> None:
    for paper in [
        *list(papers().values())[::5],
        *(papers()[slug] for slug in ("atlas", "cut", "mat", "orca", "points")),
    ]:
        assert slugs(index, paper.slug, 1) == [paper.slug]
        assert slugs(index, paper.title.upper(), 1) == [paper.slug]
        if paper.arxiv:
            assert slugs(index, f"https://arxiv.org/abs/{paper.arxiv}v2", 1) == [paper.slug]
    assert slugs(index, "dont stop pretraining", 1) == ["pcp"]
    assert slugs(index, "blank-ppl", 1) == ["bose"]


def bm25(query: Sequence[str], documents: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's form, without the factor k1 + 1: sum over t of ln(1 + (N - n + 1/2) / (n + 1/2)) f / (f + k1 (1 - b + b l / L))."""
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query:
            having = sum(word in other for other in documents)
            rarity = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            times = document.count(word)
            score += rarity * times / (times + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


def test_ranks_and_scores_are_those_of_bm25() -> None:
    documents = [
        "red fox red", "red hen", "blue hen blue hen blue hen", "grey owl", "red red red red blue owl", "fox",
    ]  # fmt: skip
    found = Index([made_up(f"z{place}", title) for place, title in enumerate(documents)])
    words = [[*title.split(), f"z{place}"] for place, title in enumerate(documents)]
    for query in ("red", "blue hen", "red fox owl", "hen hen z3"):
        expected = bm25(query.split(), words)
        np.testing.assert_allclose(found._bm25.get_scores(query.split()), expected, rtol=1e-5)
        best = sorted((place for place in range(6) if expected[place]), key=lambda place: -expected[place])
        results = found.search(query)
        assert [f.paper.slug for f in results] == [f"z{place}" for place in best]
        assert [(f.bm25, f.embedding) for f in results] == [(rank, None) for rank in range(1, len(best) + 1)]


def test_every_field_that_tells_of_a_paper_is_searched() -> None:
    paper = Paper(
        "slugword", "Titleword", 2024, "tune", "method", "Claimword.", ("forgetting", "speed"), ("tune/methodword",),
        datetime.date(2026, 1, 1), not_covered="Restword.",
    )  # fmt: skip
    found = Index([paper, made_up("other", "Another")])
    for word in ("slugword", "titleword", "claimword", "methodword", "forgetting", "knew", "slow"):
        assert slugs(found, word) == ["slugword"]
    assert slugs(found, "restword") == []


def test_endings_spelling_and_asking() -> None:
    found = Index([
        made_up("a", "Quantizing weights"), made_up("b", "One-stop kitchens"), made_up("c", "Forgotten songs"),
        made_up("d", "Forgetting names"), made_up("e", "LoRA in 1234 steps"),
    ])  # fmt: skip
    for query in ("quantized", "quantization weight", "quantisation", "qantized"):
        assert slugs(found, query) == ["a"]
    assert slugs(found, "Stop the FORGETTING!") == ["d"]
    assert slugs(found, "forgeting") == ["d"]
    assert slugs(found, "1235") == []
    assert slugs(found, "lor") == []


def test_searches_at_once_do_not_disturb_each_other(index: Index, encoder: Path) -> None:
    some = list(papers().values())[:20]
    queries = [f"{paper.title} quantised" for paper in some]
    before = sys.getswitchinterval()
    for one in (index, Index(some, Embedding(encoder))):
        expected = [one.search(query, 5) for query in queries]
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(8) as threads:
                assert list(threads.map(lambda query: one.search(query, 5), queries * 4)) == expected * 4  # noqa: B023
        finally:
            sys.setswitchinterval(before)


def test_what_nothing_matches_finds_nothing(index: Index) -> None:
    assert index.search("xqzzvw jjkkqq") == []
    assert index.search("of the") == []
    assert index.search("2499.99999") == []


@pytest.mark.parametrize("query", ["", "   ", "?! -- «»", "a" * 501])
def test_what_is_no_query_is_refused(index: Index, query: str) -> None:
    with pytest.raises(UsageError) as caught:
        index.search(query)
    assert re.fullmatch(r"The query has (no words: give some.*|501 characters: shorten it to 500)\.", str(caught.value))


# By meaning


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT with random weights that knows some words."""
    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word for paper in list(papers().values())[:20] for word in re.findall(r"\w+", paper.claim)})
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), initializer_range=0.5, **shape)).save_pretrained(folder)
    return folder


TEXTS = [
    "Training a random half of each block",
    "model",
    "facts " * 300,
    "Two attention losses keep the concepts apart",
]


def test_padding_does_not_count(encoder: Path) -> None:
    embedding = Embedding(encoder)
    together = embedding.vectors(TEXTS)
    assert together.shape == (4, 16)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(together, [embedding.vectors([text])[0] for text in TEXTS], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1

    ids = embedding._tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        mean = BertModel.from_pretrained(encoder).eval()(ids).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(together[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_vectors_are_kept_until_model_or_texts_change(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = tmp_path / "encoder", Store(tmp_path / "store")
    shutil.copytree(encoder, folder)
    embedding = Embedding(folder, store=store)
    made = embedding.kept(TEXTS)
    np.testing.assert_array_equal(made, embedding.vectors(TEXTS))

    again = Embedding(folder, store=store)
    with monkeypatch.context() as patch:
        patch.setattr(Embedding, "vectors", None)
        np.testing.assert_array_equal(again.kept(TEXTS), made)
    assert len(again.kept(TEXTS[:2])) == 2

    # Only the row of one word changes.
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[embedding._tokenizer.convert_tokens_to_ids("random")] *= -1
    model.save_pretrained(folder)
    changed = Embedding(folder, store=store).kept(TEXTS)
    assert np.abs(changed[0] - made[0]).max() > 1e-3
    np.testing.assert_array_equal(changed[1], made[1])


def test_ranks_are_fused_by_their_reciprocals(encoder: Path) -> None:
    some = list(papers().values())[:80]
    words, both = Index(some), Index(some, Embedding(encoder))
    query = "memory of language models"
    found = both.search(query, len(some))
    by_words = {f.paper.slug: f.bm25 for f in words.search(query, len(some))}
    assert {f.paper.slug: f.bm25 for f in found if f.bm25} == by_words
    assert sorted(f.embedding for f in found if f.embedding) == list(range(1, 51))

    scores = [sum(1 / (60 + rank) for rank in (f.bm25, f.embedding) if rank) for f in found]
    assert scores == sorted(scores, reverse=True)
    assert any(f.bm25 is None for f in found)
    assert any(f.embedding is None for f in found)
    assert both.search(query, 3) == found[:3]
    assert slugs(both, some[7].title, 1) == [some[7].slug]

    embedding = Embedding(encoder)
    vectors = embedding.vectors([search._text(paper) for paper in some])
    nearest = np.argmax(vectors @ embedding.vectors([query])[0])
    assert next(f.paper for f in found if f.embedding == 1) == some[nearest]


def lose_weights(folder: Path) -> None:
    model = BertModel.from_pretrained(folder)
    kept = {name: value for name, value in model.state_dict().items() if "layer.1.attention" not in name}
    model.save_pretrained(folder, state_dict=kept)


def pickle_weights(folder: Path) -> None:
    torch.save(BertModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        shutil.rmtree,
        lose_weights,
        pickle_weights,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"),
        lambda folder: (folder / "tokenizer.json").unlink(),
    ],
)
def test_an_encoder_that_cannot_be_used_is_refused(encoder: Path, tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        embedding_at_hand(str(folder))
    assert re.fullmatch(
        r"The(re is no| embedding) model [^\n]+: (check the path|name another with --embedding)\.", str(caught.value)
    )


def refuse(*arguments: Any) -> None:
    raise AssertionError("the network was asked")


def test_the_embedding_at_hand(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("BAKEOFF_EMBEDDING", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert embedding_at_hand(None) is None

    cached = tmp_path / f"models--{search.EMBEDDING.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123abc")
    shutil.copytree(encoder, cached / "snapshots" / "0123abc")
    chosen = embedding_at_hand(None)
    assert chosen is not None
    assert chosen.vectors(TEXTS).shape == (4, 16)
    assert embedding_at_hand("none") is None
    (cached / "snapshots" / "0123abc" / "tokenizer.json").unlink()
    assert embedding_at_hand(None) is None

    monkeypatch.setenv("BAKEOFF_EMBEDDING", str(encoder))
    assert embedding_at_hand(None) is not None
    assert embedding_at_hand("none") is None
    monkeypatch.setenv("BAKEOFF_EMBEDDING", "none")
    assert embedding_at_hand(None) is None


def test_the_command_of_every_method_can_be_typed() -> None:
    for contest in registry.contest_names():
        for method in registry.methods(contest).values():
            words = shlex.split(command(method))[1:]
            read(_repeated(words))
            assert {f"--{need.split()[0]}" for need in method.needs} <= set(words), method.name
