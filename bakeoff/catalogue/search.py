"""Finding papers by words: BM25, and beside it, where a model for it is at hand, the similarity of embeddings."""

from __future__ import annotations

import difflib
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bakeoff import files
from bakeoff.catalogue.papers import Paper, tags
from bakeoff.errors import ModelError, UsageError
from bakeoff.store import Store, address

EMBEDDING = "sentence-transformers/all-MiniLM-L6-v2"
"""The embedding model that is taken without being named where it lies in the local cache: 22M parameters."""

_FUSION = 60  # Cormack et al. 2009, "Reciprocal rank fusion", section 3
_NEAR = 50  # an embedding is near to everything: the papers beyond these are not found by it
_LONGEST = 500
# Words that say that something is asked for and not what.
_ASKING = ("stop", "avoid", "prevent", "fix", "help", "need", "want", "way", "make", "makes", "made")
_TOKENS = 256


@dataclass(frozen=True)
class Found:
    """A paper found, with its rank by each way of looking, from 1; None where that way did not find it.

    Both are None where only its arXiv id was asked for.
    """

    paper: Paper
    bm25: int | None
    embedding: int | None


class Index:
    """The papers, ready to be searched.

    Words are compared by their stems; a word that no paper has counts as the one most like it in spelling.

    Args: embedding: what turns texts into vectors; None searches by BM25 alone.
    """

    def __init__(self, papers: Sequence[Paper], embedding: Embedding | None = None) -> None:
        import bm25s
        import snowballstemmer

        self._papers = papers
        self._names = [[_words(name) for name in (p.title, p.slug, *(name for _, name in p.methods))] for p in papers]
        self._embedding = embedding
        self._lock = threading.Lock()  # stemmer and tokenizer serve one thread at a time
        self._stemmer = snowballstemmer.stemmer("english")
        texts = [_text(paper) for paper in papers]
        self._bm25 = bm25s.BM25()
        self._bm25.index(self._tokens(texts), show_progress=False)
        self._vectors = None if embedding is None else embedding.kept(texts)

    def search(self, query: str, count: int = 10) -> list[Found]:
        """The best papers for a query: first those that it names, then by rank.

        A query names a paper by its slug, a method, its arXiv id, its title, or three or more successive words of that. Where
        there is an embedding, the two ranks are fused: a paper's score is the sum of 1 / (60 + rank). Threads may share an index.

        Raises: UsageError for a query without a letter or digit, or of more than 500 characters.
        """
        if not any(character.isalnum() for character in query):
            raise UsageError('The query has no words: give some, for example bakeoff search "stop forgetting".')
        if len(query) > _LONGEST:
            raise UsageError(f"The query has {len(query)} characters: shorten it to {_LONGEST}.")
        with self._lock:
            words = {place: rank for rank, place in enumerate(self._by_words(query), 1)}
            meaning = {place: rank for rank, place in enumerate(self._by_meaning(query), 1)}
        named = self._named(query)
        scores = {
            place: sum(1 / (_FUSION + ranks[place]) for ranks in (words, meaning) if place in ranks)
            for place in {*words, *meaning, *named}
        }
        best = sorted(scores, key=lambda place: (place not in named, -scores[place], place))[:count]
        return [Found(self._papers[place], words.get(place), meaning.get(place)) for place in best]

    def _named(self, query: str) -> set[int]:
        asked = _words(query)
        part = len(asked.split()) > 2
        return {
            place
            for place, (paper, names) in enumerate(zip(self._papers, self._names, strict=True))
            if asked in names or (part and asked in names[0]) or (paper.arxiv and paper.arxiv in query)
        }

    def _by_words(self, query: str) -> list[int]:
        tokens = [known for token in self._tokens([query])[0] for known in self._known(token)]
        if not tokens:
            return []
        scores = self._bm25.get_scores(tokens)
        return [int(place) for place in np.argsort(-scores, kind="stable") if scores[place] > 0]

    def _by_meaning(self, query: str) -> list[int]:
        if self._embedding is None or self._vectors is None:
            return []
        similarity = self._vectors @ self._embedding.vectors([query])[0]
        return [int(place) for place in np.argsort(-similarity, kind="stable")[:_NEAR]]

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        import bm25s

        stopwords = [*bm25s.stopwords.STOPWORDS_EN, *_ASKING]
        tokens: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords=stopwords, stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return tokens

    def _known(self, token: str) -> list[str]:
        vocabulary = self._bm25.vocab_dict
        if token in vocabulary:
            return [token]
        spelt = token.isalpha() and len(token) > 3  # not a number, and no acronym
        return difflib.get_close_matches(token, vocabulary, n=1, cutoff=0.8) if spelt else []


class Embedding:
    """Texts as vectors of length 1: the mean of a transformers encoder's last states over the text's tokens.

    Args: name: folder or hub id of an encoder with safetensors weights.
    Raises: ModelError where it cannot be loaded.
    """

    def __init__(self, name: str | Path, *, store: Store | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        from bakeoff import lm

        self._store = store or Store()
        self._folder = lm.resolve(name)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                self._folder, trust_remote_code=False, local_files_only=True
            )
            self._model, info = AutoModel.from_pretrained(
                self._folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
            self._model.eval()
            if missing := [key for key in sorted(info["missing_keys"]) if not key.startswith("pooler.")]:
                raise ValueError(f"its weights lack {missing[0]}")
            self.vectors(["text " * _TOKENS])
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ModelError(
                f"The embedding model {name} cannot be used ({first}): name another with --embedding."
            ) from error

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, width]; the mean leaves padding out, and tokens beyond the 256th do not count."""
        import torch

        made = []
        for begin in range(0, len(texts), 32):
            batch = self._tokenizer(
                list(texts[begin : begin + 32]), padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
            )
            with torch.inference_mode():
                states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1)
            made.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
        return np.concatenate(made)

    def kept(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`vectors`, kept in the store for the next time, until the model's files, the texts or this code change."""
        from safetensors.numpy import load_file, save_file

        from bakeoff import lm

        made_by = {"model": lm.fingerprint(self._folder), "texts": texts, "code": files.digest(Path(__file__))}
        key = address(made_by)
        folder = self._store.artifact("embeddings", key)
        with self._store.lock("embeddings", key):
            if not folder.is_dir():
                self._store.notice(f"the embedding model reads {len(texts)} texts, this once; its vectors are kept")
                with files.replace_folder(folder) as new:
                    save_file({"vectors": self.vectors(texts)}, new / "vectors.safetensors")
        return load_file(folder / "vectors.safetensors")["vectors"]


def embedding_at_hand(name: str | None, store: Store | None = None) -> Embedding | None:
    """The embedding of that name, or else of the environment variable BAKEOFF_EMBEDDING; "none" is none.

    Where neither names one it is EMBEDDING, if that lies in the local cache, else None; the network is not asked.

    Raises: ModelError where the one that is named cannot be loaded.
    """
    name = name or os.environ.get("BAKEOFF_EMBEDDING")
    if name:
        return None if name == "none" else Embedding(name, store=store)
    from huggingface_hub import try_to_load_from_cache

    weights = try_to_load_from_cache(EMBEDDING, "model.safetensors")
    try:
        return Embedding(Path(weights).parent, store=store) if isinstance(weights, str) else None
    except ModelError:
        return None


def _text(paper: Paper) -> str:
    problems = " ".join(f"{tag.replace('-', ' ')}: {tags()[tag]}." for tag in paper.tags)
    names = " ".join(name for _, name in paper.methods)
    return f"{paper.title}. {paper.slug} {names}. {paper.claim} {problems}"


def _words(text: str) -> str:
    words = re.findall(r"\w+", text.lower().replace("'", "").replace("’", ""))
    return f" {' '.join(words)} "
