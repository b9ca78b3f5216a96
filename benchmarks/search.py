"""How well `bakeoff search` finds the papers that answer a query, and how long it takes.

The queries and the papers that answer each, judged by hand, are in queries.toml. A random half of them served to choose what
the search does; the table is of the other half, which served for nothing but one query: "stop forgetting" was looked at
when the words of asking that the search leaves out were chosen. Intervals are 95%, by bootstrap over queries.

    python benchmarks/search.py [--embedding FOLDER] [--validation] [--repeats N] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from common import seconds
from numpy.typing import NDArray

from bakeoff.catalogue.papers import papers
from bakeoff.catalogue.search import Embedding, Index
from bakeoff.store import Store

MEASURES = ("recall@5", "recall@10", "MRR")
RESAMPLES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedding", help="folder of an encoder, to search by meaning as well")
    parser.add_argument("--validation", action="store_true", help="the half of the queries that served to choose")
    parser.add_argument("--repeats", type=int, default=5, help="times that each work is measured")
    parser.add_argument("--json", action="store_true", help="print nothing but the last line, which is JSON")
    given = parser.parse_args()

    judged = tomllib.loads((Path(__file__).parent / "queries.toml").read_text("utf-8"))
    queries = sorted(judged)
    random.Random(0).shuffle(queries)
    middle = len(queries) // 2
    queries = queries[:middle] if given.validation else queries[middle:]
    every = list(papers().values())

    first = seconds(lambda: Index(every))
    words = Index(every)
    ways: dict[str, Callable[[str], list[str]]] = {"BM25": lambda query: slugs(words, query)}
    times = {
        "index, first in the process": first,
        "index": typical(given.repeats, lambda: Index(every)),
        "query": typical(given.repeats, lambda: [words.search(query) for query in queries]) / len(queries),
    }
    if given.embedding:
        with tempfile.TemporaryDirectory() as folder:
            embedding = Embedding(given.embedding, store=Store(folder))
            times["index, texts embedded"] = seconds(lambda: Index(every, embedding))
            times["index, vectors kept"] = typical(given.repeats, lambda: Index(every, embedding))
            both = Index(every, embedding)
        times["query, both"] = typical(given.repeats, lambda: [both.search(q) for q in queries]) / len(queries)
        ways["embedding"] = lambda query: nearest(both, query)
        ways["both"] = lambda query: slugs(both, query)

    values = {way: np.array([measures(find(query), judged[query]) for query in queries]) for way, find in ways.items()}
    if len(ways) > 1:
        values["both - BM25"] = values["both"] - values["BM25"]
    if not given.json:
        print(f"{len(queries)} queries of {len(judged)}, {len(every)} papers\n")
        print(f"{'':12}" + "".join(f"{measure:>26}" for measure in MEASURES))
    table = {}
    for way, found in values.items():
        low, high = interval(found)
        table[way] = {
            measure: {"mean": mean, "low": below, "high": above}
            for measure, mean, below, above in zip(
                MEASURES, found.mean(0).tolist(), low.tolist(), high.tolist(), strict=True
            )
        }
        cells = [f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" for cell in table[way].values()]
        if not given.json:
            print(f"{way:12}" + "".join(f"{cell:>26}" for cell in cells))
    if not given.json:
        print()
        for what, taken in times.items():
            print(f"{what:30}{taken * 1000:10.1f} ms")
    print(json.dumps({"benchmark": "search", "queries": len(queries), "found": table, "seconds": times}))


def slugs(index: Index, query: str) -> list[str]:
    """What the search returns, best first."""
    return [found.paper.slug for found in index.search(query)]


def nearest(index: Index, query: str) -> list[str]:
    """What the embedding alone returns, nearest first."""
    ranks = {f.embedding: f.paper.slug for f in index.search(query, len(papers())) if f.embedding is not None}
    return [ranks[rank] for rank in sorted(ranks)]


def measures(found: Sequence[str], wanted: Sequence[str]) -> list[float]:
    """Recall among the first 5 and the first 10, and one over the rank of the first paper that answers, 0 beyond 10."""
    ranks = [rank for rank, slug in enumerate(found[:10], 1) if slug in wanted]
    within_5 = sum(rank <= 5 for rank in ranks)
    return [within_5 / len(wanted), len(ranks) / len(wanted), 1 / ranks[0] if ranks else 0.0]


def interval(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 2.5% and 97.5% quantiles of the means of resampled queries: [2, measures]."""
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return np.quantile(values[drawn].mean(1), [0.025, 0.975], axis=0)


def typical(repeats: int, work: Callable[[], object]) -> float:
    """The median of the seconds that the work takes."""
    return statistics.median(seconds(work) for _ in range(repeats))


if __name__ == "__main__":
    main()
