"""No table grows with the hours: a minute of churn here, and as many as you like by ``make soak``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sfroute import AsyncRouter

from .churn import WARM_UP, steep, tables

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_has_a_slope() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.field.churn", "--rounds", str(WARM_UP + 36)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=230,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_table_is_seen_wherever_it_is() -> None:
    router = AsyncRouter.from_url("redis://127.0.0.1:1")
    before = tables(router)
    # Deep inside, and in an object without __dict__.
    router._cache._watchers[("ns", "ada")] = [print]
    router._cache.entries._data[("ns", "bob")] = None  # type: ignore[assignment]
    assert tables(router) - before == {"LookupCache._watchers": 1, "Entries._data": 1}
    await router.aclose()


def test_what_grows_is_told_and_what_only_varies_is_not() -> None:
    varying = [5.0, 60.0, 0.0, 7.0, 64.0, 3.0, 9.0, 61.0, 4.0, 0.0, 8.0, 62.0]
    samples = [
        {
            "one in each round": 100.0 + number,
            "varies": each,
            "full": 300.0 - number % 2,
            "blocks": 200_000.0 + 500 * number,
        }
        for number, each in enumerate(varying)
    ]
    assert [each.name for each in steep(samples)] == ["blocks", "one in each round"]
