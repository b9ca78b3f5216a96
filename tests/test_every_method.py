"""Every method of every contest takes the common checks."""

from __future__ import annotations

import pytest

from bakeoff import check as checks
from bakeoff import registry
from bakeoff.method import Method

METHODS = [method for contest in registry.contest_names() for method in registry.methods(contest).values()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.contest}-{method.name}")
def test_common_checks(method: Method) -> None:
    failed = [f"{r.name}: {r.sentence}" for r in checks.check(method) if r.status not in ("passed", "expected failure")]
    assert not failed, "\n".join(failed)
