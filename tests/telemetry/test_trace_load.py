"""The example of a gateway under load, and the configuration of a collector beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from support.documents import block

ROOT = Path(__file__).parents[2]
SAID = re.compile(
    r"(\d+) of 1280 logins were sampled; 64 came at a time\n"
    r"(\d+) of them show their lookup: (\d+) have it below, the others are linked with it\n"
)


@pytest.mark.slow
def test_each_sampled_login_under_load_shows_its_lookup() -> None:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "trace_load.py")],
        capture_output=True,
        text=True,
        timeout=50,
        env=variables,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = SAID.fullmatch(done.stdout)
    assert said is not None, done.stdout
    sampled, shown, below = map(int, said.groups())
    assert 64 < sampled < 256
    assert shown == sampled
    assert 0 < below < sampled
    page = (ROOT / "docs" / "how-to" / "trace.md").read_text(encoding="utf-8")
    assert SAID.search(page) is not None


def test_the_pipelines_of_the_page_have_what_they_name() -> None:
    """No collector runs in the tests."""
    configuration = yaml.safe_load(block("docs/how-to/trace.md", "yaml", 0).text)
    for pipeline in configuration["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline.get(kind, ())) <= configuration[kind].keys()
    policies = configuration["processors"]["tail_sampling"]["policies"]
    assert all(policy["type"] in policy for policy in policies)
