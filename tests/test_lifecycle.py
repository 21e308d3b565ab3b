"""A router's life: when it opens, what it leaves behind, and what happens to calls around its end."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import os
import pickle
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import le
from typing import Any

import pytest
from catalogue import on_store
from conftest import SERVERS
from support.rows import Operation
from support.sizes import size
from support.stalls import Stalls

from sfroute import (
    AsyncRouter,
    ConfigError,
    RetryConfig,
    Router,
    RouterClosed,
    RouterConfig,
    SfrouteError,
    StoreUnavailable,
)
from sfroute.embedded import LocalCluster, LocalServer

LIVES = size(400, 2000)

IMPATIENT = RouterConfig(retry=RetryConfig(deadline=0.3, connect_timeout=0.2))


@pytest.fixture
def nobody() -> Iterator[str]:
    """Where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{closed.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """Where somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the folder changes while it is read


def router_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sfroute"]


def other_tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


class TestOpening:
    async def test_making_one_connects_to_nothing(
        self, make_router: Callable[..., Any], nobody: str
    ) -> None:
        before = descriptors()
        router = make_router(f"redis+cluster://{nobody}")
        assert "not open" in repr(getattr(router, "router", router))
        assert descriptors() == before
        await router.aclose()

    async def test_the_first_call_opens_it(
        self, make_router: Callable[..., Any], cluster: LocalCluster, namespace: str
    ) -> None:
        router = make_router(cluster.url)
        assert await router.get_linked_pod(namespace, "ada", "chat") is None
        assert repr(getattr(router, "router", router)) in ("<AsyncRouter open>", "<Router open>")
        await router.aclose()

    async def test_many_first_calls_at_once_open_it_once(
        self, make_router: Callable[..., Any], cluster: LocalCluster, namespace: str
    ) -> None:
        # Those of routers that other tests keep for longer are not its.
        others = set(router_threads())
        router = make_router(cluster.url)
        calls = (router.set_linked_pod(namespace, f"u{number}", "chat", 1) for number in range(50))
        assert set(await asyncio.gather(*calls)) == {None}
        assert len(set(router_threads()) - others) <= 1
        await router.aclose()

    async def test_it_can_be_opened_explicitly_and_twice(
        self, make_router: Callable[..., Any], cluster: LocalCluster
    ) -> None:
        router = make_router(cluster.url)
        await router.open()
        await router.open()
        await router.aclose()

    async def test_async_with_opens_and_closes(self, cluster: LocalCluster, namespace: str) -> None:
        async with AsyncRouter.from_url(cluster.url) as router:
            assert repr(router) == "<AsyncRouter open>"
            await router.set_linked_pod(namespace, "ada", "chat", 1)
        assert repr(router) == "<AsyncRouter closed>"

    def test_with_opens_and_closes(self, cluster: LocalCluster, namespace: str) -> None:
        with Router.from_url(cluster.url) as router:
            assert repr(router) == "<Router open>"
            router.set_linked_pod(namespace, "ada", "chat", 1)
        assert repr(router) == "<Router closed>"

    @pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
    @pytest.mark.parametrize("store", ["nobody", "silent"])
    async def test_where_there_is_no_store_it_fails_within_its_deadline(
        self,
        make_router: Callable[..., Any],
        request: pytest.FixtureRequest,
        scheme: str,
        store: str,
        stalls: Stalls,
    ) -> None:
        router = make_router(f"{scheme}://{request.getfixturevalue(store)}", config=IMPATIENT)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await router.open()
        assert stalls.took(started) < 1.5
        assert caught.value.retryable
        assert caught.value.__cause__ is not None
        await router.aclose()

    async def test_a_context_manager_that_fails_to_open_leaves_nothing(self, nobody: str) -> None:
        before = descriptors(), other_tasks(), len(router_threads())
        with pytest.raises(StoreUnavailable):
            async with AsyncRouter.from_url(f"redis+cluster://{nobody}", config=IMPATIENT):
                pytest.fail("it is not open")
        router = Router.from_url(f"redis+cluster://{nobody}", config=IMPATIENT)
        with pytest.raises(StoreUnavailable), router:
            pytest.fail("it is not open")
        assert (descriptors(), other_tasks(), len(router_threads())) == before

    async def test_a_router_that_could_not_open_opens_when_the_store_is_there(
        self, make_router: Callable[..., Any], cluster: LocalCluster, namespace: str
    ) -> None:
        port = cluster.nodes[0].port
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            door = reserved.getsockname()
            router = make_router(f"redis://127.0.0.1:{door[1]}", config=IMPATIENT)
            with pytest.raises(StoreUnavailable):
                await router.open()
        forwarder = await asyncio.start_server(
            lambda reader, writer: forward(reader, writer, port), *door
        )
        await router.open()
        await router.aclose()
        forwarder.close()

    async def test_cancelling_one_opening_does_not_fail_the_others(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        router = AsyncRouter.from_url(cluster.url)
        first = asyncio.create_task(router.open())
        second = asyncio.create_task(router.get_linked_pod(namespace, "ada", "chat"))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second is None
        await router.aclose()

    async def test_after_a_cancelled_opening_nothing_is_left_once_closed(self, silent: str) -> None:
        before = descriptors(), other_tasks()
        router = AsyncRouter.from_url(f"redis+cluster://{silent}")
        opening = asyncio.create_task(router.open())
        await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await router.aclose()
        assert (descriptors(), other_tasks()) == before


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Pass one connection on to a server."""
    there, back = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
        except ConnectionError:
            pass  # a router aborts its connections
        finally:
            sink.close()

    await asyncio.gather(pump(reader, back), pump(there, writer))


class TestClosing:
    async def test_closing_twice_is_fine(
        self, make_router: Callable[..., Any], cluster: LocalCluster
    ) -> None:
        router = make_router(cluster.url)
        await router.open()
        await router.aclose()
        await router.aclose()

    async def test_closing_one_that_was_never_opened_is_fine(
        self, make_router: Callable[..., Any], nobody: str
    ) -> None:
        router = make_router(f"redis+cluster://{nobody}")
        await router.aclose()
        with pytest.raises(RouterClosed):
            await router.open()

    @pytest.mark.parametrize("row", on_store(), ids=lambda row: row.name)
    async def test_a_call_afterwards_says_so(
        self, router: Any, row: Operation, namespace: str
    ) -> None:
        arguments = row.arguments(namespace)
        if row.name == "get_linked_pod":
            await router.get_linked_pod(**arguments)  # even what was cached
        await router.aclose()
        with pytest.raises(RouterClosed, match="the router is closed; open a new one"):
            await row.call(router, **arguments)

    async def test_calls_under_way_end_with_a_result_or_a_named_error(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        router = AsyncRouter.from_url(cluster.url)
        await router.open()
        calls: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(call)
            for number in range(100)
            for call in (
                router.get_linked_pod(namespace, f"u{number}", "chat"),
                router.set_linked_pod(namespace, f"u{number}", "chat", 1),
                router.batch_get_linked_pod(namespace, [f"v{number}"], "chat"),
            )
        ]
        await asyncio.sleep(0)
        await router.aclose()
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
        errors = [result for result in results if isinstance(result, BaseException)]
        assert all(isinstance(error, SfrouteError) for error in errors)
        assert any(isinstance(error, RouterClosed) for error in errors)

    async def test_an_opening_under_way_ends(
        self, make_router: Callable[..., Any], silent: str, stalls: Stalls
    ) -> None:
        router = make_router(f"redis+cluster://{silent}")
        opening = asyncio.ensure_future(router.open())
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await router.aclose()
        with pytest.raises(RouterClosed):
            await opening
        assert stalls.took(started) < 1

    def test_threads_in_the_middle_of_calls_are_all_released(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        for _ in range(10):
            router = Router.from_url(cluster.url)
            router.open()
            begun = threading.Barrier(9)

            def call_until_closed(
                number: int, router: Router = router, begun: threading.Barrier = begun
            ) -> None:
                begun.wait()
                for _ in itertools.count():
                    router.get_linked_pod(namespace, "ada", "chat", fresh=bool(number % 2))
                    router.get_workload_state(namespace, "chat")

            with ThreadPoolExecutor(8) as pool:
                calls = [pool.submit(call_until_closed, number) for number in range(8)]
                begun.wait()
                router.close()
                for call in calls:
                    with pytest.raises(RouterClosed):
                        call.result(timeout=10)


class TestLoops:
    def test_one_asyncio_router_does_not_serve_two_loops(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        with asyncio.Runner() as one, asyncio.Runner() as other:
            router = AsyncRouter.from_url(cluster.url)
            assert one.run(router.get_linked_pod(namespace, "ada", "chat")) is None
            with pytest.raises(ConfigError, match="another event loop; make one router per loop"):
                other.run(router.get_linked_pod(namespace, "bob", "chat"))
            one.run(router.aclose())

    def test_it_is_closed_by_the_loop_that_opened_it(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        with asyncio.Runner() as one, asyncio.Runner() as other:
            router = AsyncRouter.from_url(cluster.url)
            one.run(router.open())
            with pytest.raises(ConfigError, match="another event loop"):
                other.run(router.aclose())
            assert one.run(router.get_linked_pod(namespace, "ada", "chat")) is None
            one.run(router.aclose())

    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # it has not been closed in time
    def test_where_its_loop_is_gone_closing_is_possible_all_the_same(
        self, cluster: LocalCluster
    ) -> None:
        """As where each call is an ``asyncio.run`` of its own."""
        router = AsyncRouter.from_url(cluster.url)
        asyncio.run(router.open())
        asyncio.run(router.aclose())
        assert repr(router) == "<AsyncRouter closed>"
        gc.collect()

    @pytest.mark.parametrize("kind", [AsyncRouter, Router])
    def test_it_cannot_be_copied(
        self, kind: type[AsyncRouter] | type[Router], cluster: LocalCluster
    ) -> None:
        router = kind.from_url(cluster.url)
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be copied or sent to another process"):
                attempt(router)

    def test_the_router_for_threads_serves_any_thread(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        with Router.from_url(cluster.url) as router, ThreadPoolExecutor(8) as pool:
            pods = pool.map(
                lambda n: router.set_linked_pod_if_absent(namespace, "ada", "chat", n), range(64)
            )
            assert len(set(pods)) == 1

    async def test_the_router_for_threads_can_be_called_from_a_coroutine(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        with Router.from_url(cluster.url) as router:
            assert router.get_linked_pod(namespace, "ada", "chat") is None


class TestLeavingNothing:
    async def test_an_asyncio_router_forgotten_open_is_a_resource_warning(
        self, cluster: LocalCluster
    ) -> None:
        router = AsyncRouter.from_url(cluster.url)
        await router.open()
        engine = router._inside.engine
        with pytest.warns(ResourceWarning, match="unclosed <AsyncRouter open>"):
            del router  # the last reference: no collection is needed
        await engine.close()

    def test_a_router_for_threads_forgotten_open_is_a_resource_warning(
        self, cluster: LocalCluster
    ) -> None:
        others = set(router_threads())
        router = Router.from_url(cluster.url)
        router.open()
        (thread,) = set(router_threads()) - others
        with pytest.warns(ResourceWarning, match="unclosed <Router open>"):
            del router  # the last reference: no collection is needed
        thread.join(timeout=5)
        assert not thread.is_alive()

    async def test_twenty_lives_leave_no_socket_task_or_thread(
        self, make_router: Callable[..., Any], cluster: LocalCluster, namespace: str
    ) -> None:
        async def live(url: str) -> None:
            router = make_router(url)
            await router.set_linked_pod(namespace, "ada", "chat", 1)
            await router.get_linked_pod(namespace, "ada", "chat")
            await router.aclose()

        await live(cluster.url)  # what is made once for the process
        gc.collect()
        before = descriptors(), other_tasks(), len(router_threads())
        for _ in range(20):
            await live(cluster.url)
        assert (descriptors(), other_tasks(), len(router_threads())) == before

    async def test_the_applications_own_random_numbers_stay_as_they_are(
        self, make_router: Callable[..., Any], cluster: LocalCluster, namespace: str, nobody: str
    ) -> None:
        """A simulation that seeds ``random`` draws the same numbers with a router as without."""
        before = random.getstate()
        router = make_router(cluster.url)
        await router.set_service_state(namespace, "chat", 1, "Running")
        await router.route(namespace, "ada", "chat")
        await router.aclose()
        out_of_reach = make_router(f"redis+cluster://{nobody}", config=IMPATIENT)
        with pytest.raises(StoreUnavailable):
            await out_of_reach.set_linked_pod(namespace, "ada", "chat", 1)
        await out_of_reach.aclose()
        assert random.getstate() == before

    @pytest.mark.slow
    @pytest.mark.scale
    async def test_many_lives_leave_nothing_here_or_there(
        self, make_router: Callable[..., Any], namespace: str
    ) -> None:
        def known_here() -> tuple[int, int, int, int, int]:
            gc.collect()
            # By type(): isinstance() would ask a lazy proxy, as Django's settings are, to become what it stands for.
            kinds = [type(each) for each in gc.get_objects()]
            routers = sum(issubclass(kind, AsyncRouter) for kind in kinds)
            loops = sum(issubclass(kind, asyncio.AbstractEventLoop) for kind in kinds)
            del kinds
            # The threads in which this test makes its calls are kept for the next ones.
            threads = [t for t in threading.enumerate() if not t.name.startswith("asyncio_")]
            return descriptors(), len(other_tasks()), len(threads), routers, loops

        async def live(url: str, number: int) -> None:
            """One life. What it leaves in this frame, an error of its call say, is gone with the frame."""
            router = make_router(url)
            if number % 4 != 0:
                await router.set_linked_pod(namespace, "ada", "chat", number)
                assert await router.get_linked_pod(namespace, "ada", "chat") == number
            if number % 4 == 1:
                # Closed in the middle of a call.
                call = asyncio.ensure_future(router.get_linked_pod(namespace, "bob", "chat"))
                await asyncio.sleep(0)
                await router.aclose()
                await asyncio.gather(call, return_exceptions=True)
            await router.aclose()

        with LocalServer(server_binary=next(iter(SERVERS.values()))) as single:
            before = known_here()
            for number in range(LIVES):
                if number == 8:  # what is made once for the process is there
                    before = known_here()
                await live(single.url, number)
            # A thread that has made a call lets go of it just after it has answered.
            give_up = time.monotonic() + 10
            while not all(map(le, known_here(), before)):
                assert time.monotonic() < give_up, (known_here(), before)
                await asyncio.sleep(0.05)
            clients = str(single.execute("CLIENT", "LIST")).splitlines()
            assert [line for line in clients if "name=sfroute" in line] == []
