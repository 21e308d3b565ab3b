"""The exact spans of every operation, on both faces."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from sfroute import AsyncRouter, InvalidArgument, NoRoutablePod, Router
from sfroute.embedded import LocalCluster
from sfroute.scripts import SCRIPT_NAMES

from .tap import Tap, Tree, call, client

SERVICE = "chat"
UNTRACED = {"open", "aclose", "report_state"}
"""Coroutine methods that are no operations of a gateway."""


@dataclass
class Case:
    """A call, and the spans below its own."""

    operation: str
    args: tuple[Any, ...]
    below: list[Tree]
    attributes: dict[str, Any] = field(default_factory=dict)
    warm: bool = False
    """Make the call once before, outside of what is looked at."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    at: str = ""

    def __str__(self) -> str:
        return f"{self.operation}{'-' + self.at if self.at else ''}"


def script(name: str) -> Tree:
    return client("EVALSHA", name)


LINK = ("NS", "linked", SERVICE)
MISS, HIT = {"outcome": "miss"}, {"outcome": "hit"}
CASES = [
    Case("set_service_state", ("NS", SERVICE, 1, "Running"), [client("HSET")]),
    Case("get_service_state", ("NS", SERVICE), [client("HGETALL")]),
    Case("set_workload_state", ("NS", SERVICE, "busy"), [client("SET")]),
    Case("get_workload_state", ("NS", SERVICE), [client("GET")]),
    Case("get_workload_state_batch", ("NS", ["a", "b"]), [client("PIPELINE GET", size=2)]),
    Case("get_workload_state_batch", ("NS", ["a"]), [client("GET")], at="one"),
    Case("get_workload_state_batch", ("NS", []), [], at="none"),
    Case("get_pods", ("NS", SERVICE), [script("statefulGetService")]),
    Case("set_linked_pod", (*LINK, 1), [script("statefulSetLink")]),
    Case("try_set_linked_pod", (*LINK, 1), [script("statefulTrySetLink")]),
    Case("set_linked_pod_if_absent", (*LINK, 1), [script("statefulSetLinkIfAbsent")]),
    Case("remove_linked_pod", LINK, [script("statefulRemoveLink")]),
    Case("remove_linked_pod_with_id", (*LINK, 1), [script("statefulRemoveLinkWithId")]),
    Case("get_linked_pod", LINK, [client("GET")], MISS, at="miss"),
    Case("get_linked_pod", LINK, [], HIT, warm=True, at="hit"),
    Case("get_linked_pod", LINK, [client("GET")], MISS, True, {"fresh": True}, at="fresh"),
    Case("get_linked_pod_if_persist", LINK, [client("GET")], MISS, at="miss"),
    Case("get_linked_pod_if_persist", LINK, [], HIT, warm=True, at="hit"),
    Case("get_link_service", ("NS", "linked"), [client("HGETALL")], MISS, at="miss"),
    Case("get_link_service", ("NS", "linked"), [], HIT, warm=True, at="hit"),
    Case("batch_get_linked_pod", ("NS", ["linked"], SERVICE), [client("GET")], MISS, at="one"),
    Case(
        "batch_get_linked_pod",
        ("NS", ["linked", "b", "c", "b"], SERVICE),
        [client("PIPELINE GET", size=3)],
        MISS,
        at="three",
    ),
    Case("batch_get_linked_pod", ("NS", ["linked"], SERVICE), [], HIT, warm=True, at="hit"),
    Case(
        "route",
        ("NS", "new", SERVICE),
        [client("GET"), script("statefulGetService"), script("statefulComputeLinkIfAbsent")],
        MISS | {"link_source": "placed"},
        at="placed",
    ),
    Case("route", LINK, [], HIT, warm=True, at="hit"),
    Case(
        "route",
        ("NS", "orphan", SERVICE),
        [
            client("GET"),
            # The second view is one that was asked for after the link was read.
            script("statefulGetService"),
            script("statefulGetService"),
            script("statefulComputeLinkIfAbsent"),
        ],
        MISS | {"link_source": "moved"},
        at="moved",
    ),
    Case("move_linked_pod", (*LINK, 1, 2), [script("statefulComputeLinkIfAbsent")]),
    Case(
        "execute_script",
        ("statefulGetLinkService", ["sf:{NS:lk:linked}"], []),
        [script("statefulGetLinkService")],
    ),
]


@pytest.fixture
def prepared(node: LocalCluster, plain: Router, namespace: str) -> str:
    """A namespace with pod 1 running, a uid linked to it, and one linked to a pod that is gone."""
    plain.set_service_state(namespace, SERVICE, 1, "Running")
    plain.set_linked_pod(namespace, "linked", SERVICE, 1)
    plain.set_linked_pod(namespace, "orphan", SERVICE, 9)
    return namespace


def put_in(value: Any, namespace: str) -> Any:
    """The arguments of a case with the namespace of the test."""
    if isinstance(value, str):
        return value.replace("NS", namespace)
    return (
        type(value)(put_in(one, namespace) for one in value)
        if isinstance(value, (list, tuple))
        else value
    )


def subject(case: Case, namespace: str) -> dict[str, Any]:
    names = inspect.signature(getattr(AsyncRouter, case.operation)).bind(None, *case.args).arguments
    found = {"namespace": namespace} if "namespace" in names else {}
    return found | ({"service": SERVICE} if "service" in names else {})


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_an_operation_makes_exactly_these_spans(
    case: Case, make_router: Callable[..., Any], node: LocalCluster, tap: Tap, prepared: str
) -> None:
    router = make_router(node.url, config=tap.config())
    await router.open()
    operation, args = getattr(router, case.operation), put_in(case.args, prepared)
    if case.warm:
        await operation(*args)
    with tap.tracer.start_as_current_span("request") as request:
        before = time.time_ns()
        await operation(*args, **case.kwargs)
        after = time.time_ns()
    await router.aclose()

    (span,) = tap.children(tap.one("request"))
    assert tap.tree(span) == call(
        case.operation, *case.below, **subject(case, prepared), **case.attributes
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
        if case.operation != "get_workload_state_batch" or child.name == "GET":
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


def test_every_operation_has_a_case() -> None:
    operations = {
        name
        for name, value in vars(AsyncRouter).items()
        if inspect.iscoroutinefunction(value) and not name.startswith("_")
    }
    assert operations - UNTRACED == {case.operation for case in CASES}


@pytest.mark.parametrize("name", SCRIPT_NAMES)
async def test_a_script_is_named_on_its_span(
    name: str, node: LocalCluster, tap: Tap, namespace: str
) -> None:
    arguments = {
        "statefulSetLink": [SERVICE, 1, -1],
        "statefulSetLinkIfAbsent": [SERVICE, 1, -1],
        "statefulTrySetLink": [SERVICE, 1, -1],
        "statefulRemoveLink": [SERVICE, -1],
        "statefulRemoveLinkWithId": [SERVICE, -1, 1],
        "statefulComputeLinkIfAbsent": [SERVICE, -1, "place", 0, 0, 1],
        "statefulSetState": [1, "Running"],
        "statefulGetServicePod": [1],
    }
    prefix = f"sf:{{{namespace}:lk:u}}"
    keys = {"statefulGetLinkService": [prefix], "statefulGetLinkIfPersist": [prefix + SERVICE]}
    if "Link" not in name:
        keys[name] = [f"sf:{{{namespace}:state:{SERVICE}}}"]
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        await router.execute_script(
            name,
            keys.get(name, [prefix + SERVICE, prefix]),
            arguments.get(name, []),  # type: ignore[arg-type]
        )
    assert tap.tree(tap.one("sfroute execute_script")) == call("execute_script", script(name))


async def test_a_refused_argument_is_an_error_without_a_call_to_the_store(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config())
    for operation, args in (
        ("get_linked_pod", (namespace, "}", SERVICE)),
        ("route", (namespace, "}", SERVICE)),
        ("set_linked_pod", (namespace, "}", SERVICE, 1)),
    ):
        with pytest.raises(InvalidArgument):
            await getattr(router, operation)(*args)
    await router.aclose()
    for operation in ("get_linked_pod", "route", "set_linked_pod"):
        assert tap.tree(tap.one(f"sfroute {operation}")) == call(
            operation, error="InvalidArgument", namespace=namespace, service=SERVICE
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
