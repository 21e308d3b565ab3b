"""Random sequences of operations: the router on a real cluster, the model, and other programs agree at every step.

Each step is made by one of four: the asyncio router, the router for threads, a program in another language that runs
the scripts, or the scripts through the router's ``execute_script``. The routers' caches are on and tracked. What one of
them changes must reach the caches of the others by the server's push alone: a lookup of *another* key of the same slot
waits for the pushes sent before its answer, and drops nothing itself.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import catalogue
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.model import PERSIST_FOREVER, Model
from support.program import Client, check_keys, run_script
from support.rows import Operation
from support.script_front import RunScript, ScriptFront
from support.sizes import size

from sfroute import AsyncRouter, CacheConfig, Router, RouterConfig

UIDS = ("ada", "bob")
SERVICES = ("chat", "game")
NEVER_LINKED = "none"
NAMESPACES = (f"machine{number}" for number in itertools.count())


class Step(NamedTuple):
    """One call by one of the fronts; ``args`` follow the namespace."""

    front: str
    operation: str
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        args = [repr(arg) for arg in self.args]
        args += [f"{name}={value!r}" for name, value in self.options]
        return f"{self.front}.{self.operation}({', '.join(args)})"


# Few names, some more often: steps must meet on the same link to mean anything.
uids = st.sampled_from(("ada", "ada", "bob"))
services = st.sampled_from(("chat", "chat", "game"))
pods = st.sampled_from((0, 0, 1, 1, 2))
# Far from each other and from zero: nothing expires by itself, and no comparison of two times is close.
seconds = st.sampled_from([PERSIST_FOREVER, 100, 1000, 100_000])
texts = st.sampled_from(["", "Running", '{"load":0.5}', "ü"])

ANY_ROUTER = ("asyncio", "threads")
ANY_WRITER = ("asyncio", "threads", "program", "execute_script")


BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "uid": uids,
    "uids": st.lists(uids, max_size=4),
    "service": services,
    "services": st.lists(services, max_size=3),
    "pod": pods,
    "expected": pods,
    "persist_seconds": seconds,
    "refresh": st.booleans(),
    "state": texts,
}
"""Arguments that vary; others have the good value of their row."""


def steps(
    fronts: tuple[str, ...],
    operation: str,
    *args: st.SearchStrategy[Any],
    **options: st.SearchStrategy[Any],
) -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        st.sampled_from(fronts),
        st.just(operation),
        st.tuples(*args),
        st.fixed_dictionaries(options).map(lambda chosen: tuple(chosen.items())),
    )


def steps_of(row: Operation) -> st.SearchStrategy[Step]:
    """By the routers, and by whoever runs scripts, if it is one script."""
    args, options = [], {}
    for name, parameter in inspect.signature(getattr(AsyncRouter, row.name)).parameters.items():
        # What a call may take says nothing about what it means.
        if name in row.args and name not in {"namespace", "timeout"}:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                options[name] = BY_NAME.get(name, st.just(row.args[name]))
            else:
                args.append(BY_NAME.get(name, st.just(row.args[name])))
    by_script = [catalogue.script(name).value is not None for name in row.scripts] == [True]
    made = steps(ANY_WRITER if by_script else ANY_ROUTER, row.name, *args, **options)
    # From a pod to itself is no move, and refused.
    return made.filter(lambda step: row.name != "move_linked_pod" or step.args[2] != step.args[3])


MODELLED = [row for row in catalogue.OPERATIONS if not row.model]
LINK_READS = [steps_of(row) for row in MODELLED if row.cached]
LINK_WRITES = [
    *(steps_of(row) for row in MODELLED if row.writes_link),
    steps(
        ("program", "execute_script"),
        "compute_link",
        uids,
        services,
        seconds,
        st.sampled_from(["place", "move", "claim"]),
        st.lists(pods, max_size=2, unique=True),
        st.lists(pods, max_size=3, unique=True),
    ),
    steps(("program",), "expire", uids, services),
]
LINK_WRITE_NAMES = {row.name for row in MODELLED if row.writes_link} | {"compute_link", "expire"}
STATES = [steps_of(row) for row in MODELLED if not row.cached and not row.writes_link]
FORGET_SCRIPTS = steps(("program",), "forget_scripts")


KINDS = [*LINK_READS, *LINK_WRITES, *LINK_WRITES, st.one_of(*STATES), FORGET_SCRIPTS]


@st.composite
def sequences(draw: st.DrawFn) -> list[Step]:
    # The least length is drawn, so that sequences are long, and yet shrink to a single step.
    least = draw(st.integers(1, 20))
    # Not one_of over all of them: that would make the kinds in STATES as frequent as any other.
    step = st.sampled_from(KINDS).flatmap(lambda kind: kind)
    return draw(st.lists(step, min_size=least, max_size=30))


class AsyncFront:
    """An ``AsyncRouter`` on a loop of its own, called from the test's thread."""

    def __init__(self, url: str, config: RouterConfig) -> None:
        self.router = AsyncRouter.from_url(url, config=config)
        self._loop = asyncio.new_event_loop()
        # A daemon, so that an error before close() cannot keep the test run from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            coroutine = getattr(self.router, operation)(*args, **options)
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

        return call

    def close(self) -> None:
        self.aclose()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Fronts:
    """Who makes the steps; open for all sequences on one server."""

    def __init__(self, url: str, client: Client, cache: CacheConfig) -> None:
        config = RouterConfig(cache=cache)
        self.client = client
        self.asyncio = AsyncFront(url, config)
        self.threads = Router.from_url(url, config=config)
        by_name: dict[str, Any] = {
            "asyncio": self.asyncio,
            "threads": self.threads,
            "program": ScriptFront(client, lambda *call: run_script(client, *call)),
            "execute_script": ScriptFront(client, through_router(self.threads)),
        }
        self._by_name = by_name

    def make(self, namespace: str, step: Step) -> Any:
        call = getattr(self._by_name[step.front], step.operation)
        result = call(namespace, *step.args, **dict(step.options))
        if step.operation in LINK_WRITE_NAMES:
            self.wait_for_pushes(namespace, step)
        return result

    def wait_for_pushes(self, namespace: str, step: Step) -> None:
        """Until the routers have seen what the others changed. A router's own writes are visible to it at once."""
        wrote = "threads" if step.front == "execute_script" else step.front
        for name in ANY_ROUTER:
            if name != wrote:
                self._by_name[name].get_linked_pod(
                    namespace, step.args[0], NEVER_LINKED, fresh=True
                )

    def close(self) -> None:
        self.asyncio.close()
        self.threads.close()


def through_router(router: Router) -> RunScript:
    def run(script: str, keys: list[str], *args: str | int) -> list[Any]:
        reply = router.execute_script(script, keys, args)
        assert isinstance(reply, list)
        return [part.decode() if isinstance(part, bytes) else part for part in reply]

    return run


@pytest.fixture(scope="module")
def fronts(url: str, client: Client) -> Iterator[Fronts]:
    fronts = Fronts(url, client, CacheConfig())
    try:
        fronts.threads.get_linked_pod("machine", "ada", "chat")
        if not fronts.threads.stats().lanes[0].tracked:
            pytest.skip("this server does not push: others' changes are seen only after a while")
        yield fronts
    finally:
        fronts.close()


@pytest.fixture(scope="module")
def without_pushes(url: str, client: Client) -> Iterator[Fronts]:
    fronts = Fronts(url, client, CacheConfig(tracking=False, max_age=60, max_age_untracked=60))
    yield fronts
    fronts.close()


def agree(fronts: Fronts, sequence: list[Step], routers: tuple[str, ...] = ANY_ROUTER) -> None:
    """Make the steps; ``routers`` look at the links in between and at the end."""
    namespace = next(NAMESPACES)
    model = Model(lambda: time.monotonic_ns() // 1_000_000)
    looking = itertools.cycle(routers)
    for step in sequence:
        if step.operation == "forget_scripts":
            fronts.make(namespace, step)
            continue
        check_step(fronts, model, namespace, step)
        if step.operation in LINK_WRITE_NAMES:
            # What others change next must reach this cache.
            uid, service = step.args[:2]
            router = next(looking)
            check_step(fronts, model, namespace, Step(router, "get_linked_pod", (uid, service)))
            check_step(fronts, model, namespace, Step(router, "get_link_service", (uid,)))
    for router, uid in itertools.product(routers, UIDS):
        for service in SERVICES:
            check_step(fronts, model, namespace, Step(router, "get_linked_pod", (uid, service)))
        check_step(fronts, model, namespace, Step(router, "get_link_service", (uid,)))
    check_keys(fronts.client, model, namespace)


def check_step(fronts: Fronts, model: Model, namespace: str, step: Step) -> None:
    result = fronts.make(namespace, step)
    expected = getattr(model, step.operation)(namespace, *step.args, **dict(step.options))
    assert result == expected, f"{step} returned {result!r}, not {expected!r}"


SETTINGS = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    print_blob=True,
)


@pytest.mark.slow
@given(sequence=sequences())
@settings(SETTINGS, max_examples=50)
def test_some_sequences(fronts: Fronts, sequence: list[Step]) -> None:
    agree(fronts, sequence)


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.timeout(600)
@given(sequence=sequences())
@settings(SETTINGS, max_examples=size(200, 1000))
def test_many_sequences(fronts: Fronts, sequence: list[Step]) -> None:
    agree(fronts, sequence)


@pytest.mark.slow  # as the sequences that it looks at
def test_the_caches_took_part(fronts: Fronts) -> None:
    """Otherwise the sequences would prove nothing of them."""
    for router in (fronts.asyncio.router, fronts.threads):
        stats = router.stats()
        assert all(lane.tracked for lane in stats.lanes)
        assert stats.cache.hits > 100
        assert stats.cache.invalidations > 100


def by_one_router(sequence: list[Step], router: str) -> list[Step]:
    """The steps that this router can make, made by it."""
    steps = []
    for step in sequence:
        its_scripts = router == "threads" and step.front == "execute_script"
        if its_scripts or step.operation == "forget_scripts":
            steps.append(step)
        elif step.operation not in ("compute_link", "expire"):
            steps.append(step._replace(front=router))
    return steps


@pytest.mark.slow
@given(sequence=sequences(), router=st.sampled_from(ANY_ROUTER))
@settings(SETTINGS, max_examples=100)
def test_a_router_sees_its_own_writes_without_any_push(
    without_pushes: Fronts, sequence: list[Step], router: str
) -> None:
    agree(without_pushes, by_one_router(sequence, router), (router,))
