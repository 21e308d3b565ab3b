"""``make trace-demo`` shows a request, what the router did for it, and what it asked the store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from opentelemetry import trace

ROOT = Path(__file__).parents[2]


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
    shown = [re.sub(r" +\d+\.\d+ ms", "", line) for line in done.stdout.splitlines()]
    tree = [re.sub(r" +(server\.port|app\.pod)=\d+|-\d$|-\d(?= )", "", line) for line in shown]
    start = tree.index("  POST /login")
    assert tree[start : start + 6] == [
        "  POST /login",
        "  ├─ sfroute route  outcome=miss  link.source=placed",
        "  │  ├─ GET",
        "  │  ├─ EVALSHA statefulGetService",
        "  │  └─ EVALSHA statefulComputeLinkIfAbsent",
        "  └─ forward to chat",
    ]
    start = tree.index("  POST /messages")
    assert tree[start + 1] == "  ├─ sfroute route  outcome=hit"
    # Setting up an SDK was the demo's business, not that of the tests' process.
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
