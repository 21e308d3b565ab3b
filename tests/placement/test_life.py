"""An agent's life, cut off anywhere: whatever is cancelled, no life goes on behind a caller who has left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import textwrap
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any

import pytest
import redis.cluster
from support.program import LinkProgram, StateProgram

from sfroute import (
    AUTO,
    DRAINING,
    RUNNING,
    STOPPED,
    AsyncPodAgent,
    AsyncRouter,
    ConfigError,
    PlacementConfig,
    PodAgent,
    Router,
    RouterClosed,
    RouterConfig,
)
from sfroute._contract.keys import state_key
from sfroute.embedded import LocalCluster, LocalServer

from .conftest import ONE_SERVER
from .test_agent import AwaitableAgent, agent_of, speaker, state, until

__all__ = ["speaker"]

pytestmark = ONE_SERVER

Raw = redis.cluster.RedisCluster
QUICK = RouterConfig(placement=PlacementConfig(pod_view_max_age=0.05, pod_timeout=1.0))


class Cut:
    """A call that is cancelled at its nth wait.

    ``how``: ``at once``, before what it waits for was sent; ``late``, when that has come; ``again and again``: late,
    and at each later wait too, as the cancel scopes of anyio do.
    """

    def __init__(self, call: Coroutine[Any, Any, Any], at: int, how: str) -> None:
        self.call = call
        self.at = at
        self.how = how
        self.waits = 0
        self.was_cut = False

    def __await__(self) -> Generator[Any, Any, Any]:
        trouble: BaseException | None = None
        while True:
            try:
                wanted = self.call.throw(trouble) if trouble is not None else self.call.send(None)
            except StopIteration as end:
                return end.value
            self.waits += 1
            at_once = self.waits == self.at and self.how == "at once"
            if at_once or (self.waits > self.at and self.how == "again and again"):
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                self.was_cut = True
            trouble = None
            try:
                yield wanted
            except BaseException as error:  # noqa: BLE001 - handed on to the call, as a task does
                trouble = error
            if self.waits == self.at and trouble is None:
                self.was_cut = True
                trouble = asyncio.CancelledError()


async def cut(call: Coroutine[Any, Any, Any], at: int, how: str) -> bool:
    """True if the call was cancelled, False if it has ended before its nth wait."""
    cutting = Cut(call, at, how)

    async def run() -> None:
        await cutting

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    assert not cutting.was_cut, "a cancellation was hidden"
    return False


HOW = pytest.mark.parametrize("how", ["at once", "late", "again and again"])
Begin = Callable[[], AsyncPodAgent]


class TestCutAnywhere:
    """At each of its waits in turn, until one goes through."""

    MOST = 100

    @pytest.fixture
    async def router(self, cluster: LocalCluster) -> AsyncIterator[AsyncRouter]:
        async with AsyncRouter.from_url(cluster.url, config=QUICK) as router:
            yield router

    @pytest.fixture
    async def make(self, router: AsyncRouter, namespace: str) -> Begin:
        def make() -> AsyncPodAgent:
            return AsyncPodAgent(router, namespace, "chat", 3, heartbeat=0.05, sigterm=False)

        # The connections, and what looks after them, are the router's.
        async with make() as agent:
            await agent.accept("warm")
            await until(lambda: agent.owns("warm"))
        return make

    @staticmethod
    async def until_nothing_runs(before: set[asyncio.Task[Any]]) -> None:
        await until(lambda: asyncio.all_tasks() <= before)

    @HOW
    @pytest.mark.parametrize("what", ["stop", "leave"])
    async def test_stop(self, make: Begin, states: StateProgram, what: str, how: str) -> None:
        before = asyncio.all_tasks()
        for at in range(1, self.MOST):
            agent = make()
            await agent.__aenter__()
            await agent.accept("ada")
            call = agent.stop() if what == "stop" else agent.__aexit__(None, None, None)
            was_cut = await cut(call, at, how)
            assert not agent.owns("ada")
            assert agent.status == STOPPED
            for refused in (agent.accept("bob"), agent.release("ada"), agent.drain(0)):
                with pytest.raises(ConfigError, match="not running"):
                    await refused
            with pytest.raises(ConfigError, match="not running"):
                await agent.session("bob").__aenter__()
            await self.until_nothing_runs(before)
            assert state(states)["status"] == STOPPED
            await agent.stop()
            if not was_cut:
                return
        pytest.fail("it never went through")

    @HOW
    async def test_start(self, make: Begin, states: StateProgram, how: str) -> None:
        before = asyncio.all_tasks()
        for at in range(1, self.MOST):
            agent = make()
            was_cut = await cut(agent.start(), at, how)
            if not was_cut:
                assert state(states)["status"] == RUNNING
                await agent.stop()
                return
            with pytest.raises(ConfigError, match="not running"):
                await agent.accept("ada")
            await self.until_nothing_runs(before)
            assert state(states)["status"] == STOPPED
            # It can be started all the same.
            async with agent:
                assert (await agent.accept("ada")).success
        pytest.fail("it never went through")

    @HOW
    @pytest.mark.parametrize("what", ["accept", "release", "session", "drain", "pause"])
    async def test_what_it_does(
        self,
        make: Begin,
        states: StateProgram,
        raw: Raw,
        namespace: str,
        what: str,
        how: str,
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        before = asyncio.all_tasks()

        async def session(agent: AsyncPodAgent) -> None:
            async with agent.session("ada"):
                pass

        for at in range(1, self.MOST):
            async with make() as agent:
                if what == "release":
                    await agent.accept("ada")
                calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
                    "accept": lambda: agent.accept("ada"),
                    "release": lambda: agent.release("ada"),
                    "session": lambda: session(agent),
                    "drain": lambda: agent.drain(0.15),
                    "pause": agent.pause,
                }
                was_cut = await cut(calls[what](), at, how)
                if what == "accept" and not was_cut:
                    assert agent.owns("ada")
                    await agent.release("ada")
                # Nobody has it who does not know.
                await until(lambda: ada.pod() is None and agent._ownership.left == 0)
                assert agent._ownership.sessions == 0
                assert not agent.owns("ada")
            await self.until_nothing_runs(before)
            assert state(states)["status"] == STOPPED
            if not was_cut:
                return
        pytest.fail("it never went through")


def ownership_of(agent: Any) -> Any:
    """What is behind an agent of either kind."""
    inner = agent.agent._agent if isinstance(agent, AwaitableAgent) else agent
    return inner._ownership


class TestBeginningAndEnding:
    async def test_of_two_starts_at_once_the_second_is_refused(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        agent = agent_of(speaker, namespace, "chat", 3)
        ended = await asyncio.gather(agent.start(), agent.start(), return_exceptions=True)
        (refused,) = (one for one in ended if one is not None)
        assert isinstance(refused, ConfigError)
        assert str(refused) == "the agent is running already"
        await agent.stop()
        assert state(states)["status"] == STOPPED

    async def test_an_agent_stopped_while_it_starts_does_not_start(
        self, cluster: LocalCluster, states: StateProgram, namespace: str
    ) -> None:
        async with AsyncRouter.from_url(cluster.url) as router:
            for turns in range(6):
                agent = AsyncPodAgent(router, namespace, "chat", 3)
                starting = asyncio.create_task(agent.start())
                for _ in range(turns):
                    await asyncio.sleep(0)
                await agent.stop()
                if turns:
                    with pytest.raises(ConfigError, match="not running"):
                        await starting
                else:  # it had not begun, so there was nothing to stop
                    await starting
                    await agent.stop()
                assert str(states.fields().get("3", STOPPED)).count(RUNNING) == 0

    async def test_a_router_waits_for_the_last_word_of_an_agent_that_was_cut_off(
        self, cluster: LocalCluster, states: StateProgram, namespace: str
    ) -> None:
        router = AsyncRouter.from_url(cluster.url)
        agent = AsyncPodAgent(router, namespace, "chat", 3)
        await agent.start()
        assert await cut(agent.stop(), 1, "at once")
        assert await cut(router.aclose(), 1, "at once")
        await router.aclose()
        assert state(states)["status"] == STOPPED

    async def test_who_reads_events_from_before_the_start_is_told_of_the_end(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        async def read(agent: AsyncPodAgent) -> None:
            async for _ in agent.events():
                pass

        async with AsyncRouter.from_url(cluster.url) as router:
            agent = AsyncPodAgent(router, namespace, "chat", AUTO)
            reading = [asyncio.create_task(read(agent)) for _ in range(2)]
            await asyncio.sleep(0)
            async with agent:
                reading.append(asyncio.create_task(read(agent)))
            await asyncio.wait_for(asyncio.gather(*reading), 5.0)

    async def test_nothing_keeps_an_agent_that_has_stopped(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        async with AsyncRouter.from_url(cluster.url) as router:
            agent = AsyncPodAgent(router, namespace, "chat", 3, max_claims=10)
            async with agent, agent.session("ada"):
                await agent.accept("bob")
            known = weakref.ref(agent), weakref.ref(agent._life)
            del agent
            gc.collect()
            assert [each() for each in known] == [None, None]

    async def test_a_claim_that_comes_after_the_end_is_refused(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        async with AsyncRouter.from_url(cluster.url) as router:
            agent = AsyncPodAgent(router, namespace, "chat", 3)
            await agent.start()
            accepting = [asyncio.create_task(agent.accept(uid)) for uid in ("ada", "ada", "bob")]
            await asyncio.sleep(0)
            await agent.stop()
            for claim in await asyncio.gather(*accepting, return_exceptions=True):
                assert isinstance(claim, ConfigError)
                assert str(claim) == "the agent is not running"


class TestClaimsAndSessions:
    async def test_a_session_in_doubt_leaves_the_claim_that_was_accepted_its_turn(
        self, speaker: Any, raw: Raw, namespace: str
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        async with agent_of(speaker, namespace, "chat", 3) as agent:
            claim = await agent.accept("ada")
            table = ownership_of(agent).table
            for _ in range(3):
                table.doubt(table.get("ada"))
                async with agent.session("ada") as again:
                    assert again.fence == claim.fence
            assert await agent.release(claim) is True
            assert ada.pod() is None

    async def test_the_claim_of_an_earlier_life_releases_nothing(
        self, speaker: Any, namespace: str
    ) -> None:
        agent = agent_of(speaker, namespace, "chat", 3)
        async with agent:
            earlier = await agent.accept("ada")
        async with agent:
            await agent.accept("ada")
            assert await agent.release(earlier) is False
            assert agent.owns("ada")

    async def test_a_session_ends_with_the_life_in_which_it_began(
        self, speaker: Any, raw: Raw, namespace: str
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        agent = agent_of(speaker, namespace, "chat", 3)
        async with contextlib.AsyncExitStack() as sessions:
            async with agent:
                for _ in range(2):
                    await sessions.enter_async_context(agent.session("ada"))
            await agent.start()
            await agent.accept("ada")
            await sessions.aclose()
            assert ownership_of(agent).sessions == 0
            assert agent.owns("ada")
            assert ada.pod() == "3"
            await agent.stop()

    async def test_calls_for_a_uid_take_turns_in_their_order(
        self, cluster: LocalCluster, namespace: str
    ) -> None:
        async with (
            AsyncRouter.from_url(cluster.url) as router,
            AsyncPodAgent(router, namespace, "chat", 3) as agent,
        ):
            done: list[str] = []

            async def hold_on() -> None:
                for number in range(3):
                    await agent.accept("ada")
                    done.append(f"first {number}")

            async def ask(name: str) -> None:
                await agent.accept("ada")
                done.append(name)

            first = asyncio.create_task(hold_on())
            await asyncio.sleep(0)
            doomed = asyncio.create_task(ask("doomed"))
            others = [asyncio.create_task(ask(name)) for name in ("second", "third")]
            await asyncio.sleep(0)
            doomed.cancel()
            await asyncio.gather(first, *others)
            # Who asks again is behind those who have been waiting.
            assert done[:3] == ["first 0", "second", "third"]
            assert await agent.release("ada")

    async def test_a_release_that_waits_for_its_turn_is_made_though_it_is_cancelled(
        self, cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        async with (
            AsyncRouter.from_url(cluster.url) as router,
            AsyncPodAgent(router, namespace, "chat", 3) as agent,
        ):
            accepting = asyncio.create_task(agent.accept("ada"))
            await asyncio.sleep(0)
            assert await cut(agent.release("ada"), 1, "at once")
            await accepting
            await until(lambda: not agent.owns("ada") and ada.pod() is None)


class TestDrainingWithoutARouter:
    async def test_it_ends_with_the_router(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        agent = agent_of(speaker, namespace, "chat", 3)
        await agent.start()
        await agent.accept("ada")
        draining = asyncio.create_task(agent.drain(600.0))
        await until(lambda: state(states)["status"] == DRAINING)
        await speaker.aclose()
        with pytest.raises(RouterClosed):
            await asyncio.wait_for(draining, 5.0)
        with pytest.raises(RouterClosed):
            await asyncio.wait_for(agent.drain(600.0), 5.0)
        await agent.stop()


class TestInterruptedThreads:
    """Ctrl-C in the thread that waits for the loop."""

    @pytest.mark.parametrize("what", ["start", "stop"])
    def test_no_life_goes_on_behind_it(
        self, server_binary: str | None, namespace: str, what: str
    ) -> None:
        with LocalServer(server_binary=server_binary) as single:
            key = state_key(namespace, "chat")
            with Router.from_url(single.url) as router:
                agent = PodAgent(router, namespace, "chat", 3)
                if what == "stop":
                    agent.start()
                    agent.accept("ada")
                single.pause()
                main = threading.get_ident()
                soon = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT))
                soon.start()
                with pytest.raises(KeyboardInterrupt):
                    agent.start() if what == "start" else agent.stop()
                soon.join()
                assert not agent.owns("ada")
                single.resume()
                with pytest.raises(ConfigError, match="not running"):
                    agent.accept("bob")
            assert STOPPED in str(single.execute("HGET", key, "3"))


FORKING = """
import asyncio, os, sys
from sfroute import AsyncPodAgent, AsyncRouter, ConfigError, PodAgent, Router
from sfroute.wsgi import PodMiddleware

url, namespace, kind = sys.argv[1:]

def tried(call):
    try:
        return call()
    except ConfigError as error:
        return str(error)[:41]

def awaited(call):
    # It must not wait for anything.
    try:
        call().send(None)
    except StopIteration as end:
        return end.value

def in_child(tell):
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    code = 1
    try:
        tell()
        sys.stdout.flush()
        code = 0
    finally:
        os._exit(code)

def plain():
    with Router.from_url(url) as router:
        later = PodAgent(router, namespace, "chat", 4)
        with PodAgent(router, namespace, "chat", 3) as agent:
            agent.accept("ada")
            session = agent.session("bob")
            session.__enter__()
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "HTTP_X_SFROUTE_UID": "ada"}
            app = PodMiddleware(lambda *_: [b"served"], agent=agent)

            def tell():
                print(agent.owns("ada"), agent.claim_of("ada"))
                print(tried(lambda: agent.accept("eve")))
                print(tried(lambda: agent.session("eve").__enter__()))
                print(tried(lambda: app(dict(environ), lambda *_: None)))
                session.__exit__(None, None, None)
                agent.stop()
                with later:
                    print(later.accept("eve").pod, later.owns("eve"))
                router.close()

            in_child(tell)
            print(agent.owns("ada"), agent.owns("bob"), agent.status)
            # The child's life of pod 4 was its own.
            with later:
                print(later.accept("eve").how)

async def on_a_loop():
    async with AsyncRouter.from_url(url) as router:
        async with AsyncPodAgent(router, namespace, "chat", 3) as agent:
            await agent.accept("ada")
            session = agent.session("bob")
            await session.__aenter__()

            def tell():
                print(agent.owns("ada"), agent.claim_of("ada"))
                print(tried(lambda: awaited(lambda: agent.accept("eve"))))
                print(tried(lambda: awaited(lambda: agent.session("eve").__aenter__())))
                awaited(lambda: session.__aexit__(None, None, None))
                awaited(agent.stop)

            in_child(tell)
            print(agent.owns("ada"), agent.owns("bob"), agent.status)

if kind == "threads":
    plain()
else:
    asyncio.run(on_a_loop())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
async def test_a_forked_child_is_no_pod(
    cluster: LocalCluster, raw: Raw, namespace: str, kind: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(FORKING), cluster.url, namespace, kind),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err.decode()) == (0, "")
    refused = "this process was forked from the one that"
    told = ["False None", refused, refused]
    if kind == "threads":
        told += [refused, "4 True"]
    told.append("True True Running")
    if kind == "threads":
        told.append("inherited")
    assert out.decode().splitlines() == told
    bob = LinkProgram(raw, namespace, "bob", "chat")
    assert (bob.pod(), bob.ttl()) == ("3", -1)
