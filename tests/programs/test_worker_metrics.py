"""Metrics of several workers as one text: pure."""

from __future__ import annotations

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from prometheus_client.parser import text_string_to_metric_families

from sfroute._programs.metrics import merged

ONE = """\
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{outcome="a{b} c"} 3.0
requests_total{outcome="hit"} 1.0
# HELP up_seconds Age.
# TYPE up_seconds gauge
up_seconds 7.5
"""
TWO = """\
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{} 2.0
# HELP extra Only here.
# TYPE extra gauge
extra 1.0
"""


def test_each_sample_has_its_worker_and_each_family_one_head() -> None:
    text = merged([(0, ONE), (1, TWO)])
    assert text.count("# TYPE requests_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name: [(s.labels, s.value) for s in f.samples] for name, f in families.items()} == {
        "requests": [
            ({"worker": "0", "outcome": "a{b} c"}, 3.0),
            ({"worker": "0", "outcome": "hit"}, 1.0),
            ({"worker": "1"}, 2.0),
        ],
        "up_seconds": [({"worker": "0"}, 7.5)],
        "extra": [({"worker": "1"}, 1.0)],
    }
