"""How a connection begins: names with several addresses, resolvers and credential providers that take their time."""

from __future__ import annotations

import asyncio
import socket
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.cluster
from conftest import SERVERS, AwaitableRouter
from redis.credentials import CredentialProvider
from support.peer import Peer

from sfroute import AsyncRouter, RetryConfig, Router, RouterConfig, StoreError, StoreUnavailable
from sfroute._net.dialer import RESOLVER_THREADS, Address, Dialer
from sfroute._net.threads import BlockingQuestions
from sfroute.embedded import LocalCluster, LocalServer

NAME = "store.sfroute.test"
PASSWORD = "p@ss:w/rd"

Resolve = Callable[..., list[Any]]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], list[Any]]], None]:
    """The system's resolver, for names that end in .sfroute.test: a test says what it answers for a port, or hangs."""
    real = socket.getaddrinfo

    def install(answer: Callable[[int], list[Any]]) -> None:
        def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
            numeric = options.get("flags", 0) & socket.AI_NUMERICHOST
            if not str(host).endswith(".sfroute.test") or numeric:
                return real(host, port, *args, **options)
            return answer(int(port))

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return install


def found(host: str, port: int) -> Any:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    rest = (0, 0) if ":" in host else ()
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, *rest)


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """A loopback address where nobody accepts and nothing is refused: a listener whose queue is full."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.9", 0))
        listener.listen(0)
        address: tuple[str, int] = listener.getsockname()
        for _ in range(3):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address


@pytest.fixture(scope="module")
def single(server: str) -> Iterator[LocalServer]:
    with LocalServer(server_binary=SERVERS[server], password=PASSWORD) as single:
        yield single


@pytest.fixture(scope="module")
def guarded(server: str) -> Iterator[LocalCluster]:
    with LocalCluster(3, 0, server_binary=SERVERS[server], password=PASSWORD) as cluster:
        yield cluster


class TestSeveralAddresses:
    """RFC 8305: a silent address costs a quarter of a second, whatever ``connect_timeout`` says."""

    async def test_a_silent_first_address_costs_no_more_than_a_quarter_of_a_second(
        self,
        make_router: Callable[..., Any],
        single: LocalServer,
        resolver: Callable[..., None],
        silent: tuple[str, int],
        namespace: str,
    ) -> None:
        host, port = single.startup_nodes[0]
        resolver(lambda _: [found(*silent), found(host, port)])
        router = make_router(single.url.replace(f"{host}:{port}", f"{NAME}:{port}"))
        await router.set_linked_pod(namespace, "ada", "chat", 3)
        assert await router.get_linked_pod(namespace, "ada", "chat") == 3
        await router.aclose()

    @pytest.mark.slow
    async def test_a_start_node_of_a_cluster_too(
        self,
        make_router: Callable[..., Any],
        guarded: LocalCluster,
        resolver: Callable[..., None],
        silent: tuple[str, int],
        namespace: str,
    ) -> None:
        host, port = guarded.startup_nodes[0]
        resolver(lambda _: [found(*silent), found(host, port)])
        router = make_router(
            f"redis+cluster://:{PASSWORD.replace('@', '%40').replace('/', '%2F')}@{NAME}:{port}"
        )
        await router.set_linked_pod(namespace, "ada", "chat", 3)
        await router.aclose()

    async def test_one_that_refuses_is_followed_by_the_next_at_once(
        self, resolver: Callable[..., None]
    ) -> None:
        async with Peer() as peer:
            host, port = peer.address
            resolver(lambda _: [found("::1", 1), found("127.0.0.9", 1), found(host, port)])
            transport, _ = await Dialer().connect(asyncio.Protocol, Address(NAME, port))
            transport.abort()
            assert peer.accepted == 1

    async def test_when_all_refuse_it_says_so(self, resolver: Callable[..., None]) -> None:
        resolver(lambda port: [found("127.0.0.1", port), found("127.0.0.9", port)])
        with pytest.raises(ConnectionRefusedError):
            await Dialer().connect(asyncio.Protocol, Address(NAME, 1))

    async def test_a_cancelled_attempt_leaves_no_socket(
        self, resolver: Callable[..., None], silent: tuple[str, int]
    ) -> None:
        """An open socket that nobody refers to would be a ResourceWarning, which is an error here."""
        resolver(lambda _: [found(*silent), found(*silent)])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                await Dialer().connect(asyncio.Protocol, Address(NAME, 1))


class TestAHangingResolver:
    @pytest.fixture
    def hang(self, resolver: Callable[..., None]) -> Iterator[list[int]]:
        """The ports that were asked for; the questions hang until the test ends."""
        asked: list[int] = []
        over = threading.Event()

        def answer(port: int) -> list[Any]:
            asked.append(port)
            over.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        resolver(answer)
        yield asked
        over.set()

    @pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
    async def test_it_takes_no_thread_of_the_application(
        self, hang: list[int], scheme: str
    ) -> None:
        loop = asyncio.get_running_loop()
        applications = ThreadPoolExecutor(1)
        loop.set_default_executor(applications)
        config = RouterConfig(retry=RetryConfig(deadline=0.6, connect_timeout=0.2))
        router = AsyncRouter.from_url(f"{scheme}://{NAME}:1", config=config)
        try:
            with pytest.raises(StoreUnavailable):
                await router.open()
            assert hang
            async with asyncio.timeout(5):
                assert await loop.run_in_executor(None, lambda: "served") == "served"
        finally:
            await router.aclose()
            applications.shutdown(wait=False)

    async def test_a_name_is_asked_for_by_one_thread_however_often(self, hang: list[int]) -> None:
        dialer = Dialer()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await dialer.connect(asyncio.Protocol, Address(NAME, 7))
        assert hang == [7]

    async def test_all_names_together_take_a_few_threads(self, hang: list[int]) -> None:
        dialer = Dialer()
        ports = range(1, RESOLVER_THREADS * 3)

        async def ask(port: int) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await dialer.connect(asyncio.Protocol, Address(NAME, port))

        await asyncio.gather(*map(ask, ports))
        assert len(hang) == RESOLVER_THREADS


class TestBlockingQuestions:
    async def test_what_waited_and_is_wanted_no_more_is_not_asked(self) -> None:
        questions: BlockingQuestions[str] = BlockingQuestions("test", 1)
        release = threading.Event()
        asked = []

        def ask(what: str) -> str:
            asked.append(what)
            release.wait()
            return what

        first = asyncio.create_task(questions.ask(1, lambda: ask("first")))
        second = asyncio.create_task(questions.ask(2, lambda: ask("second")))
        third = asyncio.create_task(questions.ask(3, lambda: ask("third")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        release.set()
        assert await first == "first"
        assert await third == "third"
        assert asked == ["first", "third"]

    async def test_one_who_joins_gets_the_same_and_one_who_goes_spoils_nothing(self) -> None:
        questions: BlockingQuestions[int] = BlockingQuestions("test", 1)
        release = threading.Event()
        times = iter(range(10))

        def ask() -> int:
            release.wait()
            return next(times)

        callers = [asyncio.create_task(questions.ask("same", ask)) for _ in range(3)]
        await asyncio.sleep(0)
        callers[0].cancel()
        release.set()
        assert await callers[1] == await callers[2] == 0
        assert await questions.ask("same", ask) == 1

    def test_an_answer_that_comes_after_the_loop_has_ended_is_nobodys(self) -> None:
        release, answered = threading.Event(), threading.Event()

        def ask() -> None:
            release.wait()
            answered.set()

        async def give_up() -> None:
            async with asyncio.timeout(0.01):
                await BlockingQuestions[None]("test", 1).ask(1, ask)

        with pytest.raises(TimeoutError):
            asyncio.run(give_up())
        thread = next(thread for thread in threading.enumerate() if thread.name == "test")
        release.set()
        thread.join(5)
        assert answered.is_set()


class Slow(CredentialProvider):
    """Answers when the event loop tells it to: one that held up the loop would never be told."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.times = 0
        self.release = threading.Event()

    def get_credentials(self) -> tuple[str]:
        self.times += 1
        self.asked.set()
        if not self.release.wait(5):
            raise AssertionError("the loop was held up")
        return (PASSWORD,)


class SlowOnTheLoop(Slow):
    async def get_credentials_async(self) -> tuple[str]:
        return await asyncio.to_thread(self.get_credentials)


class Failing(CredentialProvider):
    def get_credentials(self) -> tuple[str]:
        raise RuntimeError(f"the vault says {PASSWORD}")


class Nonsense(CredentialProvider):
    def get_credentials(self) -> Any:
        return f"gateway:{PASSWORD}:x"


def client_of(kind: str, servers: LocalCluster | LocalServer, provider: CredentialProvider) -> Any:
    host, port = servers.startup_nodes[0]
    if kind == "single":
        return redis.Redis(host=host, port=port, credential_provider=provider)
    # Its constructor connects.
    client = redis.cluster.RedisCluster(host=host, port=port, password=PASSWORD)
    client.nodes_manager.connection_kwargs["credential_provider"] = provider
    client.close()
    return client


@pytest.fixture(params=["single", "cluster"])
def make_client(
    request: pytest.FixtureRequest, single: LocalServer, guarded: LocalCluster
) -> Callable[[CredentialProvider], Any]:
    servers = single if request.param == "single" else guarded
    return lambda provider: client_of(request.param, servers, provider)


IMPATIENT = RouterConfig(retry=RetryConfig(deadline=3.0, connect_timeout=0.2))


@pytest.fixture(params=["async", "sync"])
async def connect(
    request: pytest.FixtureRequest, make_client: Callable[[CredentialProvider], Any]
) -> AsyncIterator[Callable[[CredentialProvider], Any]]:
    made = []

    def connect(provider: CredentialProvider) -> Any:
        client = make_client(provider)
        router: Any = (
            AsyncRouter(client, config=IMPATIENT)
            if request.param == "async"
            else AwaitableRouter(Router(client, config=IMPATIENT))
        )
        made.append(router)
        return router

    yield connect
    for router in made:
        await router.aclose()


class TestCredentialProviders:
    @pytest.mark.parametrize("kind", [Slow, SlowOnTheLoop])
    async def test_its_time_is_not_that_of_the_server(
        self, connect: Callable[..., Any], kind: type[Slow]
    ) -> None:
        provider = kind()
        opening = asyncio.create_task(connect(provider).open())
        await asyncio.to_thread(provider.asked.wait)
        # Three times what a connection may take, with the provider still silent.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3 * IMPATIENT.retry.connect_timeout):
                await asyncio.shield(opening)
        assert provider.times == 1
        provider.release.set()
        await opening

    @pytest.mark.slow
    async def test_one_that_is_slower_than_the_heartbeats_bound_still_connects(
        self, connect: Callable[..., Any], namespace: str
    ) -> None:
        """The connection's life counts from when it began, not from when the provider was asked."""
        provider = Slow()
        router = connect(provider)
        opening = asyncio.create_task(router.open())
        await asyncio.to_thread(provider.asked.wait)
        asyncio.get_running_loop().call_later(1.7, provider.release.set)
        await opening
        await asyncio.sleep(2 * IMPATIENT.cache.heartbeat)
        assert await router.get_linked_pod(namespace, "ada", "chat") is None
        assert [lane.reconnects for lane in router.stats().lanes] == [0] * len(router.stats().lanes)

    @pytest.mark.slow
    async def test_one_that_does_not_answer_is_named(self, connect: Callable[..., Any]) -> None:
        with pytest.raises(
            StoreUnavailable, match=r"credential provider Slow did not answer within 2\.8 s"
        ):
            await connect(Slow()).open()

    @pytest.mark.parametrize(
        ("kind", "what"),
        [(Failing, "Failing raised RuntimeError"), (Nonsense, "Nonsense returned neither")],
    )
    async def test_one_that_fails_is_named_at_once_without_what_it_said(
        self, connect: Callable[..., Any], kind: type[CredentialProvider], what: str
    ) -> None:
        with pytest.raises(StoreError, match=what) as caught:
            await connect(kind()).open()
        assert not caught.value.retryable
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))
