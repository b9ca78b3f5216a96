"""The recall task of the Routing Transformer study."""

from __future__ import annotations

import numpy as np

from bakeoff.studies.routing_transformer import FILLERS, recall

LENGTH, KEYS, VALUES = 64, 5, 4


def test_every_question_is_answered_by_a_binding_far_before_it() -> None:
    tokens, asked = recall(np.random.default_rng(0), 50, LENGTH, KEYS, VALUES)
    assert (tokens.shape, asked.shape) == ((50, LENGTH), (50, KEYS))
    first, fillers = VALUES + KEYS, VALUES + KEYS + KEYS * VALUES
    assert tokens.max() < fillers + FILLERS
    for row, places in zip(tokens, asked, strict=True):
        bindings = [place for place in range(LENGTH) if first <= row[place] < fillers]
        assert len(bindings) == KEYS
        assert max(bindings) < LENGTH // 4
        assert min(places) >= LENGTH - LENGTH // 4
        bound = dict(divmod(int(row[place]) - first, VALUES) for place in bindings)
        assert sorted(bound) == list(range(KEYS))
        assert {int(row[place]) - VALUES: int(row[place + 1]) for place in places} == bound
        others = set(range(LENGTH)) - set(bindings) - set(places) - {place + 1 for place in places}
        assert all(row[place] >= fillers for place in others)
