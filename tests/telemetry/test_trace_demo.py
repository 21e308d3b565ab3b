"""``make trace-demo`` shows a request, what the router did for it, and what it asked the store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from opentelemetry import trace
from support.documents import block

ROOT = Path(__file__).parents[2]


def bare(text: str) -> list[str]:
    """Lines without what differs from run to run: times, ports, pods."""
    lines = [re.sub(r" +\d+\.\d+ ms", "", line) for line in text.splitlines()]
    return [re.sub(r" +(server\.port|app\.pod)=\d+|-\d$|-\d(?= )", "", line) for line in lines]


def test_the_demo_prints_the_tree_of_a_request() -> None:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "trace_demo.py")],
        capture_output=True,
        text=True,
        timeout=50,
        env=variables,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    tree = bare(done.stdout)
    start = tree.index("  POST /login")
    assert tree[start : start + 6] == [
        "  POST /login",
        "  ├─ sfroute route  outcome=miss  link.source=placed  retry.reasons=NOSCRIPT,NOSCRIPT",
        "  │  ├─ GET",
        "  │  ├─ EVALSHA statefulGetService  retry.reasons=NOSCRIPT",
        "  │  └─ EVALSHA statefulComputeLinkIfAbsent  retry.reasons=NOSCRIPT",
        "  └─ forward to chat",
    ]
    start = tree.index("  POST /messages")
    assert tree[start + 1] == "  ├─ sfroute route  outcome=hit"
    # The page shows what the demo shows.
    page = bare(block("docs/how-to/trace.md", "text", 0).text)
    shown = [line for line in page if line and not line.startswith("trace ")]
    assert [line for line in shown if line not in tree] == []
    # Setting up an SDK was the demo's business, not that of the tests' process.
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
