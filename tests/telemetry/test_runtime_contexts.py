"""A cached answer belongs to the request that is current when it is given, whatever keeps what is current."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sfroute.embedded import LocalCluster

RUNTIME = """
from contextvars import ContextVar

class Held:
    def __init__(self, token):
        self.token = token

class OpenSpansOnly:
    '''As Datadog's: what is current is computed when it is asked for, and a span that has ended is not.'''

    active = ContextVar("active", default=())

    def attach(self, context):
        return Held(self.active.set((context, *self.active.get())))

    def get_current(self):
        # Not above: it is loaded while opentelemetry.context is.
        from opentelemetry import trace
        from opentelemetry.context import Context
        for context in self.active.get():
            if trace.get_current_span(context).is_recording():
                return context
        return Context()

    def detach(self, held):
        self.active.reset(held.token)
"""

PROGRAM = """
import asyncio, sys
import sfroute
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
tracer = provider.get_tracer("gateway")
config = sfroute.RouterConfig(telemetry=sfroute.TelemetryConfig(tracer_provider=provider))
url, link = sys.argv[1], (sys.argv[2], "u", "chat")

with sfroute.Router.from_url(url, config=config) as router:
    router.get_linked_pod(*link)
    with tracer.start_as_current_span("request"):
        for _ in range(2):
            router.get_linked_pod(*link)

async def serve():
    async with sfroute.AsyncRouter.from_url(url, config=config) as router:
        await router.get_linked_pod(*link)
        with tracer.start_as_current_span("request"):
            for _ in range(2):
                await router.get_linked_pod(*link)

asyncio.run(serve())
spans = exporter.get_finished_spans()
requests = {span.context.span_id for span in spans if span.name == "request"}
for span in spans:
    if (span.attributes or {}).get("sfroute.outcome") == "hit":
        print(span.parent is not None and span.parent.span_id in requests)
"""


@pytest.mark.parametrize("runtime", ["", "open_spans_only"])
def test_the_parent_of_a_hit_is_taken_at_the_call(
    runtime: str, node: LocalCluster, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "open_spans_only.py").write_text(RUNTIME)
    info = tmp_path / "open_spans_only-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: open-spans-only\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[opentelemetry_context]\nopen_spans_only = open_spans_only:OpenSpansOnly\n"
    )
    variables = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    if runtime:
        variables["OTEL_PYTHON_CONTEXT"] = runtime
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), node.url, namespace],
        capture_output=True,
        text=True,
        timeout=40,
        env={**os.environ, **variables},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True"] * 4
