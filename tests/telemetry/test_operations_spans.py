"""The exact spans of every operation, on both fronts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import catalogue
import pytest
from catalogue import on_store, operation
from conftest import make_raw
from support.program import LinkProgram
from support.rows import Operation, Script

from sfroute import AsyncRouter, InvalidArgument, NoRoutablePod, Router
from sfroute.embedded import LocalCluster

from .tap import Tap, Tree, call, client

SERVICE = "chat"
MISS, HIT = {"outcome": "miss"}, {"outcome": "hit"}


@dataclass
class Case:
    """A call, and the spans below its own."""

    row: Operation
    below: list[Tree]
    attributes: dict[str, Any] = field(default_factory=dict)
    warm: bool = False
    """Make the call once before, outside of what is looked at."""
    uid: str = "linked"
    changes: dict[str, Any] = field(default_factory=dict)
    """What other arguments it has than its row."""
    at: str = ""

    def __str__(self) -> str:
        return f"{self.row.name}{'-' + self.at if self.at else ''}"


def script(name: str) -> Tree:
    return client("EVALSHA", name)


def first_call(row: Operation) -> Case:
    """What a row says that it sends, about a uid that nobody has seen."""
    attributes = MISS if row.cached else {}
    if row.name == "route":
        attributes = attributes | {"link_source": "placed"}
    below = [client(name) if name.isupper() else script(name) for name in row.sends]
    return Case(row, below, attributes, uid="new")


AWAITED = [row for row in on_store() if not row.iterated]
STATES_OF_SEVERAL = operation("get_workload_state_batch")
PODS_OF_SEVERAL = operation("batch_get_linked_pod")
CASES = [
    *map(first_call, AWAITED),
    *(Case(row, [], HIT, warm=True, at="hit") for row in AWAITED if row.cached),
    Case(
        operation("get_linked_pod"),
        [client("GET")],
        MISS,
        warm=True,
        changes={"fresh": True},
        at="fresh",
    ),
    Case(
        STATES_OF_SEVERAL,
        [client("PIPELINE GET", size=2)],
        changes={"services": ["a", "b"]},
        at="two",
    ),
    Case(STATES_OF_SEVERAL, [], changes={"services": []}, at="none"),
    Case(
        PODS_OF_SEVERAL,
        [client("PIPELINE GET", size=3)],
        MISS,
        changes={"uids": ["linked", "b", "c", "b"]},
        at="three",
    ),
    Case(
        operation("route"),
        [
            client("GET"),
            # The second view is one that was asked for after the link was read.
            script("statefulGetService"),
            script("statefulGetService"),
            script("statefulComputeLinkIfAbsent"),
        ],
        MISS | {"link_source": "moved"},
        uid="orphan",
        changes={"exclude": []},
        at="moved",
    ),
]


@pytest.fixture
def prepared(node: LocalCluster, plain: Router, namespace: str) -> str:
    """A namespace with pod 1 running, a uid linked to it, and one linked to a pod that is gone."""
    plain.set_service_state(namespace, SERVICE, 1, "Running")
    plain.set_linked_pod(namespace, "linked", SERVICE, 1)
    plain.set_linked_pod(namespace, "orphan", SERVICE, 9)
    return namespace


def subject(arguments: dict[str, Any]) -> dict[str, Any]:
    """What its span tells of a call."""
    return {name: arguments[name] for name in ("namespace", "service") if name in arguments}


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_an_operation_makes_exactly_these_spans(
    case: Case, make_router: Callable[..., Any], node: LocalCluster, tap: Tap, prepared: str
) -> None:
    router = make_router(node.url, config=tap.config())
    await router.open()
    arguments = case.row.arguments(prepared, case.uid)
    if case.warm:
        await case.row.call(router, **arguments)
    arguments |= case.changes
    with tap.tracer.start_as_current_span("request") as request:
        before = time.time_ns()
        await case.row.call(router, **arguments)
        after = time.time_ns()
    await router.aclose()

    (span,) = tap.children(tap.one("request"))
    assert tap.tree(span) == call(
        case.row.name, *case.below, **subject(arguments), **case.attributes
    )
    assert span.context.trace_id == request.get_span_context().trace_id
    assert span.start_time is not None
    assert span.end_time is not None
    assert before <= span.start_time <= span.end_time <= after
    host, port = node.startup_nodes[0]
    for child in tap.children(span):
        assert child.start_time is not None
        assert child.end_time is not None
        assert span.start_time <= child.start_time <= child.end_time <= span.end_time
        attributes = child.attributes or {}
        assert (attributes["server.address"], attributes["server.port"]) == (host, port)
        if case.row.name != "get_workload_state_batch" or child.name == "GET":
            assert attributes["network.peer.address"] == "127.0.0.1"
            assert attributes["network.peer.port"] == port


@pytest.mark.parametrize("steps", ["all", "one"])
async def test_an_evacuation_is_one_span_however_far_it_is_followed(
    steps: str, node: LocalCluster, tap: Tap, prepared: str
) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        with tap.tracer.start_as_current_span("request"):
            evacuation = router.evacuate(prepared, SERVICE, 9)
            async for _ in evacuation:
                if steps == "one":
                    break
            await evacuation.aclose()
    (span,) = tap.children(tap.one("request"))
    assert tap.tree(span) == call("evacuate", namespace=prepared, service=SERVICE)


def test_an_evacuation_from_a_thread_is_one_too(
    node: LocalCluster, tap: Tap, prepared: str
) -> None:
    with (
        Router.from_url(node.url, config=tap.config()) as router,
        tap.tracer.start_as_current_span("request"),
    ):
        assert list(router.evacuate(prepared, SERVICE, 9))[-1].done
    (span,) = tap.children(tap.one("request"))
    assert tap.tree(span) == call("evacuate", namespace=prepared, service=SERVICE)


async def test_an_evacuation_that_fails_says_so(
    node: LocalCluster, tap: Tap, prepared: str
) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        with pytest.raises(NoRoutablePod):
            async for _ in router.evacuate(prepared, SERVICE, 1):
                pass
    assert (tap.one("sfroute evacuate").attributes or {})["error.type"] == "NoRoutablePod"


@pytest.mark.parametrize("row", catalogue.SCRIPTS, ids=lambda row: row.name)
async def test_a_script_is_named_on_its_span(
    row: Script, node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        with make_raw(node) as raw:
            link = LinkProgram(raw, namespace, "u", SERVICE)
            row.before(link)
            await router.execute_script(row.name, row.keys_of(link), row.argv())
    assert tap.tree(tap.one("sfroute execute_script")) == call("execute_script", script(row.name))


async def test_a_refused_argument_is_an_error_without_a_call_to_the_store(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config())
    for name, args in (
        ("get_linked_pod", (namespace, "}", SERVICE)),
        ("route", (namespace, "}", SERVICE)),
        ("set_linked_pod", (namespace, "}", SERVICE, 1)),
    ):
        with pytest.raises(InvalidArgument):
            await getattr(router, name)(*args)
    await router.aclose()
    for name in ("get_linked_pod", "route", "set_linked_pod"):
        assert tap.tree(tap.one(f"sfroute {name}")) == call(
            name, error="InvalidArgument", namespace=namespace, service=SERVICE
        )


async def test_nobody_to_place_on_is_an_error_of_the_call_alone(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config())
    with pytest.raises(NoRoutablePod):
        await router.route(namespace, "u", SERVICE)
    await router.aclose()
    _, _, attributes, status, below = tap.tree(tap.one("sfroute route"))
    assert (attributes["error.type"], status) == ("NoRoutablePod", "ERROR")
    assert {child[3] for child in below} == {"UNSET"}


async def test_names_that_no_exporter_can_encode_are_made_fit(node: LocalCluster, tap: Tap) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        for namespace, service in (("n", "\udc80"), (3, "s"), ("n", "x" * 600)):
            with pytest.raises(InvalidArgument):
                await router.get_linked_pod(namespace, "u", service)  # type: ignore[arg-type]
    shown = [
        {k: v for k, v in (span.attributes or {}).items() if k != "error.type"}
        for span in tap.spans("sfroute get_linked_pod")
    ]
    assert shown == [
        {"sfroute.namespace": "n", "sfroute.service": "?"},
        {"sfroute.service": "s"},
        {"sfroute.namespace": "n", "sfroute.service": "x" * 128},
    ]


def test_spans_carry_the_scope(node: LocalCluster, tap: Tap, namespace: str) -> None:
    import sfroute
    from sfroute.telemetry import names

    with Router.from_url(node.url, config=tap.config()) as router:
        router.get_linked_pod(namespace, "u", SERVICE)
    assert tap.spans()
    for span in tap.spans():
        scope = span.instrumentation_scope
        assert scope is not None
        assert (scope.name, scope.version, scope.schema_url) == (
            "sfroute",
            sfroute.__version__,
            names.SCHEMA_URL,
        )
