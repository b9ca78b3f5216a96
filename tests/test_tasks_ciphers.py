"""Ciphers: known keys, keys told or left out, and decoding."""

from __future__ import annotations

import codecs

import pytest

from bakeoff.errors import UsageError
from bakeoff.text import tasks


def test_a_shift_of_thirteen_is_rot13() -> None:
    fixed = tasks.make("shift-cipher(key=13)")
    for question, answer in fixed.text(fixed.examples("train", 8, 20)):  # type: ignore[attr-defined]
        assert codecs.encode(question, "rot13") == answer.replace(".", ">")


def test_a_drawn_shift_is_told() -> None:
    drawn = tasks.make("shift-cipher")
    seen = set()
    for question, answer in drawn.text(drawn.examples("train", 4, 300)):  # type: ignore[attr-defined]
        shift, *letters, _ = question.split()
        assert [(ord(b) - ord(a)) % 26 for a, b in zip(letters, answer.split()[:-1], strict=True)] == [int(shift)] * 4
        seen.add(int(shift))
    assert seen == set(range(1, 26))
    assert drawn.solve(["3", "a", "b", "z", ">"]) == ["d", "e", "c", "."]
    assert tasks.make("shift-cipher(decode=True)").solve(["3", "d", "e", "c", ">"]) == ["a", "b", "z", "."]
    with pytest.raises(UsageError, match="no key 26"):
        tasks.make("shift-cipher(key=26)").examples("train", 4, 1)


@pytest.mark.parametrize("options", ["", "key=3", "decode=True", "key=3, decode=True"])
def test_a_substitution_is_one_to_one(options: str) -> None:
    task = tasks.make(f"substitution-cipher({options})")
    keys = set()
    for question, answer in task.text(task.examples("train", 30, 20)):  # type: ignore[attr-defined]
        told, text = question.split(" , ") if " , " in question else ("", question)
        letters = text.split()[:-1]
        pairs = set(zip(letters, answer.split()[:-1], strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        if told:
            key = dict(zip("abcdefghijklmnopqrstuvwxyz", told.split(), strict=True))
            assert sorted(key.values()) == sorted(key)
            assert all((key[b] == a) if "decode" in options else (key[a] == b) for a, b in pairs)
        keys.add(told)
    assert len(keys) == (1 if "key" in options else 20)


def test_asking_the_other_way_round_keeps_the_split() -> None:
    forth, back = tasks.make("shift-cipher(key=5)"), tasks.make("shift-cipher(key=5, decode=True)")
    asked = {q.rstrip(" >") for q, _ in forth.text(forth.examples("test", 3, 200))}  # type: ignore[attr-defined]
    answered = {a.rstrip(" .") for _, a in back.text(back.examples("train", 3, 200))}  # type: ignore[attr-defined]
    assert not asked & answered
