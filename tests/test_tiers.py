"""`pytest`, `pytest -m integration` and `pytest -m soak` together run every test, each in one of them."""

import re
from itertools import product

import pytest

from tests.conftest import INTEGRATION
from tests.harness import ROOT

TIERS = ("promise", "integration", "soak")


def test_each_test_lies_in_one_tier() -> None:
    found = re.search(r"-m '([^']+)'", (ROOT / "pyproject.toml").read_text())
    assert found
    for marks in product((False, True), repeat=3):
        chosen = [eval(words, {}, dict(zip(TIERS, marks, strict=True))) for words in (found[1], INTEGRATION, "soak")]
        assert sum(chosen) == 1, marks


def test_ci_runs_all_but_the_soak_tests() -> None:
    assert "\npytest -m 'not soak'\n" in (ROOT / ".ci" / "run").read_text()


def test_the_marks_are_declared(pytestconfig: pytest.Config) -> None:
    assert [line.partition(":")[0] for line in pytestconfig.getini("markers")[: len(TIERS)]] == list(TIERS)
