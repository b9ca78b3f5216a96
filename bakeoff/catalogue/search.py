"""Finding papers by words: BM25, and beside it, where a model for it is at hand, the similarity of embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.catalogue.papers import Paper, tags
from bakeoff.errors import ModelError, UsageError
from bakeoff.store import Store, address

EMBEDDING = "sentence-transformers/all-MiniLM-L6-v2"
"""The embedding model that is taken without being named where it lies in the local cache: 22M parameters."""

_FUSION = 60  # Cormack et al. 2009, "Reciprocal rank fusion", section 3
_TOKENS = 256


@dataclass(frozen=True)
class Found:
    """A paper found, with its rank by each way of looking, from 1; None where that way did not find it."""

    paper: Paper
    bm25: int | None
    embedding: int | None


class Index:
    """The papers, ready to be searched.

    Args: embedding: what turns texts into vectors; None searches by BM25 alone.
    """

    def __init__(self, papers: Sequence[Paper], embedding: Embedding | None = None) -> None:
        import bm25s
        import snowballstemmer

        self._papers = papers
        self._embedding = embedding
        self._stemmer = snowballstemmer.stemmer("english")
        self._texts = [_text(paper) for paper in papers]
        self._bm25 = bm25s.BM25()
        self._bm25.index(self._tokens(self._texts), show_progress=False)
        self._vectors = None if embedding is None else embedding.kept(self._texts)

    def search(self, query: str, count: int = 10) -> list[Found]:
        """The best papers for a query; by both ranks where there is an embedding (reciprocal rank fusion).

        Raises: UsageError for a query without a letter or digit.
        """
        if not any(character.isalnum() for character in query):
            raise UsageError('The query has no words: give some, for example bakeoff search "stop forgetting".')
        ranks: list[dict[int, int]] = [self._by_words(query)]
        if self._embedding is not None and self._vectors is not None:
            similarity = self._vectors @ self._embedding.vectors([query])[0]
            near = [int(i) for i in np.argsort(-similarity, kind="stable")[: max(count, 50)]]
            ranks.append({place: rank for rank, place in enumerate(near, 1)})
        scores: dict[int, float] = {}
        for ranked in ranks:
            for place, rank in ranked.items():
                scores[place] = scores.get(place, 0.0) + 1 / (_FUSION + rank)
        best = sorted(scores, key=lambda place: (-scores[place], place))[:count]
        near_ranks = ranks[1] if len(ranks) > 1 else {}
        return [Found(self._papers[i], ranks[0].get(i), near_ranks.get(i)) for i in best]

    def _by_words(self, query: str) -> dict[int, int]:
        tokens = self._tokens([query])
        if not tokens[0]:
            return {}
        places, scores = self._bm25.retrieve(tokens, k=len(self._papers), show_progress=False)
        found = [int(place) for place, score in zip(places[0], scores[0], strict=True) if score > 0]
        return {place: rank for rank, place in enumerate(found, 1)}

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        import bm25s

        return list(
            bm25s.tokenize(
                list(texts), stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False,
            )  # fmt: skip
        )


class Embedding:
    """Texts as vectors of length 1: the mean of a transformers encoder's last states over the text's tokens.

    Args: name: folder or hub id of an encoder with safetensors weights; without it, that of the environment variable
        BAKEOFF_EMBEDDING, else EMBEDDING.
    Raises: ModelError where it cannot be loaded.
    """

    def __init__(self, name: str | None = None, *, store: Store | None = None, local: bool = False) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.name = name or os.environ.get("BAKEOFF_EMBEDDING") or EMBEDDING
        self._store = store or Store()
        try:
            more: dict[str, Any] = {"local_files_only": local or Path(self.name).is_dir(), "trust_remote_code": False}
            self._tokenizer = AutoTokenizer.from_pretrained(self.name, **more)
            self._model = AutoModel.from_pretrained(self.name, use_safetensors=True, **more).eval()
        except (OSError, ValueError) as error:
            raise ModelError(
                f"The embedding model {self.name} cannot be loaded ({str(error).splitlines()[0]}): name another with --embedding."
            ) from None

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, width]; the mean leaves padding out."""
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
            made.append(torch.nn.functional.normalize(mean, dim=-1).float().numpy())
        return np.concatenate(made)

    def kept(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`vectors`, kept in the store for the next time."""
        from safetensors.numpy import load_file, save_file

        from bakeoff import files

        weights = {name: list(value.shape) for name, value in self._model.state_dict().items()}
        probe = self.vectors(["a probe of the weights"]).tobytes().hex()
        folder = self._store.artifact(
            "embeddings", address({"name": self.name, "weights": weights, "probe": probe, "texts": list(texts)})
        )
        if not folder.is_dir():
            with files.replace_folder(folder) as new:
                save_file({"vectors": self.vectors(texts)}, new / "vectors.safetensors")
        return load_file(folder / "vectors.safetensors")["vectors"]


def embedding_at_hand(name: str | None, store: Store | None = None) -> Embedding | None:
    """The embedding that is named; without a name the default one, if it lies on this machine, else None."""
    if name == "none":
        return None
    if name or os.environ.get("BAKEOFF_EMBEDDING"):
        return Embedding(name, store=store)
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(EMBEDDING, "model.safetensors"), str):
        return None
    try:
        return Embedding(store=store, local=True)
    except ModelError:
        return None


def _text(paper: Paper) -> str:
    problems: Mapping[str, str] = tags()
    about = " ".join(f"{tag.replace('-', ' ')} {problems[tag]}" for tag in paper.tags)
    names = " ".join(name for _, name in paper.methods)
    return f"{paper.title}. {paper.slug} {names}. {paper.claim} {about}. {paper.contest} {paper.arxiv}"
