"""The example gateway as processes: users' counters through restarts and kills, its spans, and its end."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the group `examples` is not installed")

import httpx
from conftest import processes_in
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from users import Answer, Crowd, User, contradictions

from web.serving import serving

ROOT = Path(__file__).parent.parent.parent
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector:
    """What gateways send their telemetry to."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.spans: list[Span] = []

    async def take(self, request: Request) -> Response:
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append(body)
        if request.url.path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return Response(media_type="application/x-protobuf")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        routes = [Route("/v1/{kind}", self.take, methods=["POST"])]
        async with serving(Starlette(routes=routes)) as site:
            yield f"http://{site.address}"


@asynccontextmanager
async def demo(folder: Path, *options: str, **environment: str) -> AsyncIterator[Process]:
    """The demo, with a folder in which all of its processes work."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(str(ROOT / "examples" / "gateway" / "demo.py"), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), **environment},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


async def read_until(process: Process, beginning: str) -> list[str]:
    """What it writes, up to a line."""
    assert process.stdout is not None
    lines = []
    async for line in process.stdout:
        lines.append(line.decode())
        if lines[-1].startswith(beginning):
            return lines
    # It has ended, and a signal to a process that nobody has waited for takes its exit status from asyncio.
    await process.wait()
    raise AssertionError("".join(lines))


async def interrupt(process: Process, folder: Path) -> None:
    """Ctrl-C; it must end in order, and nothing of it may be left."""
    process.send_signal(signal.SIGINT)
    told, _ = await process.communicate()
    assert (process.returncode, told) == (0, b"\nending: gateways, pods, cluster\n")
    assert processes_in(folder.parent) == []
    assert list(folder.iterdir()) == []  # noqa: ASYNC240 - nothing else runs


async def test_users_who_cannot_count_are_told_of_with_the_reason() -> None:
    async def refuse(_request: Request) -> Response:
        return Response(status_code=503)

    routes = [Route("/count", refuse, methods=["POST"]), Route("/ws", refuse)]
    async with (
        serving(Starlette(routes=routes)) as site,
        Crowd([f"http://{site.address}"], users=8, pause=0.02) as crowd,
    ):
        with pytest.raises(TimeoutError, match=r"^8 of 8 users could not count .*: HTTP \d\d\d"):
            await crowd.more(1, seconds=1)
    assert not any(user.counted for user in crowd.users)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_no_count_is_lost_and_nobody_moves_unless_their_pod_has_ended(tmp_path: Path) -> None:
    collector = Collector()
    report, folder = tmp_path / "report.json", tmp_path / "demo"
    folder.mkdir()
    async with (
        collector.running() as endpoint,
        demo(
            folder,
            *("--stay", "--report", str(report)),
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_TRACES_SAMPLER="parentbased_traceidratio",
            OTEL_TRACES_SAMPLER_ARG="0.02",
        ) as process,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        *told, last = await read_until(process, "Try it")
        response = await client.post(
            last.split()[-1], headers={"x-user-id": "user-traced", "traceparent": TRACEPARENT}
        )
        assert (response.status_code, response.json()["count"]) == (200, 1)
        await interrupt(process, folder)
    see_answers(json.loads(report.read_text()))
    see_spans(collector)
    # What the processes wrote names nobody, and holds no error.
    assert "user-" not in "".join(told)
    assert "handshake" not in "".join(told)


def see_answers(report: dict[str, Any]) -> None:
    """What users were told: see `users.py`."""
    ended: dict[str, float] = report["ended"]
    users = [User(uid, [Answer(**one) for one in said]) for uid, said in report["users"].items()]
    # Nobody lost a count, nobody was served by two pods.
    found = {user.uid: contradictions(user, ended) for user in users}
    assert {uid: what for uid, what in found.items() if what} == {}
    # Restarts and the failover cost nobody a request; only the last event, a kill, may.
    killed = max(ended.values())
    failures = [one for user in users for one in user.answers if one.failure]
    # (A WebSocket may close just as a message is on its way, which takes long on a busy machine. Each of three restarts
    # closes those of its pod, a third of them all: most of them must meet no message.)
    early = [one for one in failures if one.at < killed]
    assert [one.failure for one in early if not one.failure.startswith("ConnectionClosed")] == []
    by_websocket = len(users) // 4
    assert len(early) <= by_websocket / 2
    assert len(failures) <= len(users) / 2
    for user in users:
        answers = [one for one in user.answers if one.process]
        # Each pod was restarted, so everybody has moved: users in grace with their next request, others at the end.
        assert len({one.process for one in answers}) >= 2


def see_spans(collector: Collector) -> None:
    """The request that came with a trace is part of it, and nothing says whose it was."""
    spans = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    (request,) = (span for span in spans if span.kind == Span.SPAN_KIND_SERVER)
    assert request.name == "POST"
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    attributes = {one.key: one.value for one in request.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    below = {span.name for span in spans if span.parent_span_id == request.span_id}
    # One more of each if the user was placed on the pod that had just been killed.
    assert below >= {"sfroute route", f"forward to chat-{attributes['app.pod'].int_value}"}
    assert [body for body in collector.bodies if b"user-" in body] == []


async def test_ctrl_c_while_it_starts_leaves_nothing_either(tmp_path: Path) -> None:
    async with demo(tmp_path) as process:
        await read_until(process, "starting")
        await interrupt(process, tmp_path)


# --- what the test above goes by


def told(*answers: tuple[str, int] | None) -> User:
    user = User("ada")
    for at, answer in enumerate(answers):
        user.answers.append(
            Answer(at, failure="HTTP 502")
            if answer is None
            else Answer(at, answer[0], 0, answer[1])
        )
    return user


@pytest.mark.parametrize(
    "answers",
    [
        (("a", 1), ("a", 2), ("a", 3)),
        (("a", 1), None, ("a", 2)),
        (("a", 1), None, ("a", 3)),
        (("a", 1), ("a", 2), ("b", 3), ("b", 4)),
        (("a", 1), None, ("b", 3)),
    ],
)
def test_what_users_may_be_told(answers: tuple[tuple[str, int] | None, ...]) -> None:
    assert contradictions(told(*answers), {"a": 0.5}) == []


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        ((("a", 1), ("a", 1)), "count 1 after 1"),
        ((("a", 1), ("a", 3)), "count 3 after 1"),
        ((("a", 1), None, ("a", 1)), "count 1 after 1"),
        ((("a", 5),), "count 5 after 0"),
        ((("a", 1), ("b", 1)), "count 1 after 1"),
        ((("a", 1), ("b", 3)), "count 3 after 1"),
        ((("b", 1), ("a", 2)), "but that one lives"),
        ((("a", 1), ("b", 2), ("a", 3)), "moved back to a"),
    ],
)
def test_what_users_must_not_be_told(
    answers: tuple[tuple[str, int] | None, ...], what: str
) -> None:
    found = contradictions(told(*answers), {"a": 0.5})
    assert any(what in one for one in found), found
