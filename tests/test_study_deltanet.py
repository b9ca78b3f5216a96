"""The recall task of the DeltaNet study."""

from __future__ import annotations

import numpy as np

from bakeoff.studies.deltanet import ANEW, ONCE, recall

KEYS, SYMBOLS = 6, 16


def test_what_is_asked_is_the_last_binding_of_each_key() -> None:
    ids, kinds = recall(np.random.default_rng(0), 50, KEYS, SYMBOLS)
    assert ids.shape == kinds.shape == (50, 5 * KEYS)
    assert ids.max() < 2 * SYMBOLS
    for row, marks in zip(ids, kinds, strict=True):
        bound: dict[int, list[int]] = {}
        for key, value, mark in zip(row[::2], row[1::2], marks[::2], strict=True):
            assert key < SYMBOLS <= value
            if mark == 0:
                bound.setdefault(key, []).append(value)
            else:
                assert value == bound[key][-1]
                assert mark == (ANEW if len(bound[key]) == 2 else ONCE)
        assert sorted(map(len, bound.values())) == [1] * (KEYS // 2) + [2] * (KEYS // 2)
        assert all(len(set(values)) == len(values) for values in bound.values())
        assert sorted(row[::2][-KEYS:]) == sorted(bound)
        assert not marks[1::2].any()


def test_keys_orders_and_values_differ_between_rows() -> None:
    ids, _ = recall(np.random.default_rng(0), 200, KEYS, SYMBOLS)
    assert len({tuple(row[::2]) for row in ids}) == 200
    assert set(ids[:, ::2].ravel()) == set(range(SYMBOLS))
    assert set(ids[:, 1::2].ravel()) == set(range(SYMBOLS, 2 * SYMBOLS))
    again, _ = recall(np.random.default_rng(0), 200, KEYS, SYMBOLS)
    assert np.array_equal(ids, again)
