"""The call of a hot method is a coroutine to its caller, whichever half answers; and a hit is the same hit.

Each test runs with the method as it is, native where that was built, and with the pure coroutine function. Most need no
server: an entry is put into the cache of a router that reaches nobody.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import gc
import inspect
import sys
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from math import inf
from typing import Any, Final
from unittest.mock import create_autospec

import pytest

import sfroute
from sfroute import AsyncRouter, InvalidArgument, RouterClosed, RouterConfig
from sfroute._contract.keys import CacheKey
from sfroute._lookups.cache import Entry, Epoch
from sfroute._native import HALF, heart
from sfroute._net.deadlines import SPARE
from sfroute.embedded import LocalCluster

METHOD: Final[Any] = AsyncRouter.get_linked_pod
PURE: Final[Any] = inspect.unwrap(METHOD)
Call = Callable[..., Any]
ADA: Final = ("ns", "ada", "chat")
NOWHERE: Final = "redis+cluster://127.0.0.1:1"
MESSAGE: Final = "never awaited"


@pytest.fixture
async def router() -> AsyncIterator[AsyncRouter]:
    """One that reaches nobody, and knows ada's pod."""
    config = RouterConfig(retry=sfroute.RetryConfig(deadline=0.05))
    router = AsyncRouter.from_url(NOWHERE, config=config)
    know(router)
    yield router
    await router.aclose()


@pytest.fixture(params=["as it is", "pure"])
def call(request: pytest.FixtureRequest, router: AsyncRouter) -> Call:
    method = METHOD if request.param == "as it is" else PURE
    bound: Call = method.__get__(router)
    return bound


def know(router: AsyncRouter, key: CacheKey = ADA, **changes: Any) -> Entry:
    """Put an entry under the key: fresh, of pod 7, but for the changes."""
    now = time.monotonic()
    values = {"value": 7, "deadline": now + 60, "epoch": Epoch(60.0, now + 60), "expires": inf}
    entry = Entry(**{**values, "sent": now, **changes})
    router._inside.engine.cache.entries[key] = entry
    return entry


def test_the_native_half_has_its_own_call() -> None:
    assert (type(METHOD).__name__ == "HotMethod") == (HALF == "native")


class TestACoroutine:
    async def test_it_is_one_to_whoever_asks(self, call: Call) -> None:
        coroutine = call(*ADA)
        assert asyncio.iscoroutine(coroutine)
        assert inspect.isawaitable(coroutine)
        assert isinstance(coroutine, collections.abc.Coroutine)
        named: Any = coroutine
        assert named.__name__ == "get_linked_pod"
        assert named.__qualname__ == "AsyncRouter.get_linked_pod"
        assert repr(coroutine).startswith("<coroutine object AsyncRouter.get_linked_pod at 0x")
        assert await coroutine == 7

    def test_its_function_is_one(self, call: Call) -> None:
        assert inspect.iscoroutinefunction(call)
        assert asyncio.iscoroutinefunction(call)
        assert inspect.signature(call) == inspect.signature(PURE.__get__(object()))
        assert call.__doc__ == PURE.__doc__
        assert call.__name__ == "get_linked_pod"
        assert call.__module__ == "sfroute._fronts.router"
        assert inspect.getsource(call) == inspect.getsource(PURE)

    async def test_a_mock_of_a_router_has_it(self) -> None:
        mock = create_autospec(AsyncRouter, instance=True)
        mock.get_linked_pod.return_value = 3
        assert await mock.get_linked_pod(*ADA) == 3
        mock.get_linked_pod.assert_awaited_once_with(*ADA)

    async def test_everything_that_takes_coroutines_takes_it(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        assert await asyncio.create_task(call(*ADA), name="one") == 7
        assert [*await asyncio.gather(call(*ADA), call(*ADA))] == [7, 7]
        assert await asyncio.wait_for(call(*ADA), 1) == 7
        assert await asyncio.shield(call(*ADA)) == 7
        async with asyncio.TaskGroup() as group:
            task = group.create_task(call(*ADA))
        assert task.result() == 7
        assert (
            await loop.run_in_executor(
                None, lambda: asyncio.run_coroutine_threadsafe(call(*ADA), loop).result(5)
            )
            == 7
        )

    def test_a_loop_of_its_own_runs_it(self) -> None:
        router = AsyncRouter.from_url(NOWHERE)
        know(router)
        assert asyncio.run(router.get_linked_pod(*ADA)) == 7

    def test_it_runs_nothing_before_it_is_awaited(self, call: Call, router: AsyncRouter) -> None:
        coroutine = call(*ADA)
        assert router.stats().cache.hits == 0
        know(router, value=8)
        with pytest.raises(StopIteration) as stop:
            coroutine.send(None)
        assert stop.value.value == 8
        assert router.stats().cache.hits == 1

    def test_none_is_an_answer(self, call: Call, router: AsyncRouter) -> None:
        know(router, value=None)
        with pytest.raises(StopIteration) as stop:
            call(*ADA).send(None)
        assert stop.value.value is None

    def test_it_is_awaited_once(self, call: Call) -> None:
        coroutine: Any = call(*ADA)
        with pytest.raises(StopIteration):
            coroutine.send(None)
        steps: list[Callable[[], object]] = [
            lambda: coroutine.send(None),
            lambda: coroutine.throw(KeyError("late")),
            lambda: next(coroutine.__await__()),
        ]
        for again in steps:
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                again()
        coroutine.close()

    async def test_two_tasks_do_not_share_one(self, call: Call) -> None:
        coroutine = call("ns", "grace", "chat")  # a miss, which waits

        async def wait() -> None:
            await coroutine

        first = asyncio.create_task(wait())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="being awaited already"):
            await coroutine
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first

    def test_nothing_is_sent_into_one_that_has_not_begun(self, call: Call) -> None:
        coroutine = call(*ADA)
        with pytest.raises(TypeError, match="can't send non-None value to a just-started"):
            coroutine.send(1)
        with pytest.raises(StopIteration):
            coroutine.send(None)

    def test_one_that_is_never_awaited_warns(self, call: Call) -> None:
        with pytest.warns(RuntimeWarning, match="'AsyncRouter.get_linked_pod' was never awaited"):
            call(*ADA)

    def test_one_that_is_closed_does_not(self, call: Call) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            coroutine = call(*ADA)
            coroutine.close()
            coroutine.close()
            del coroutine
            gc.collect()

    def test_a_warning_that_is_an_error_is_told_and_harms_nobody(
        self, call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[object] = []
        monkeypatch.setattr(sys, "unraisablehook", lambda failure: told.append(failure.exc_value))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                raise KeyError("under way")
            except KeyError:
                call(*ADA)
        assert [type(error) for error in told] == [RuntimeWarning]

    def test_what_is_thrown_before_it_has_begun_comes_back(self, call: Call) -> None:
        coroutine = call(*ADA)
        with pytest.raises(KeyError, match="early"):
            coroutine.throw(KeyError("early"))
        with pytest.raises(RuntimeError, match="cannot reuse"):
            coroutine.send(None)

    async def test_a_miss_is_cancelled_where_it_waits(
        self, call: Call, router: AsyncRouter
    ) -> None:
        task = asyncio.create_task(call("ns", "grace", "chat"))
        await asyncio.sleep(0.01)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task
        assert task.cancelled()

    async def test_a_task_is_cancelled_before_it_has_begun(self, call: Call) -> None:
        task = asyncio.create_task(call(*ADA))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_caller_may_have_less_time(self, call: Call) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await call("ns", "grace", "chat")

    async def test_a_miss_fails_as_it_should(self, call: Call) -> None:
        with pytest.raises(sfroute.StoreUnavailable):
            await call("ns", "grace", "chat")

    async def test_the_coroutine_behind_a_miss_can_be_looked_at(self, call: Call) -> None:
        task = asyncio.create_task(call("ns", "grace", "chat"))
        await asyncio.sleep(0)
        assert task.get_stack()
        assert "get_linked_pod" in repr(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class TestAnArgument:
    @pytest.mark.parametrize(
        "arguments", [("ns", "ada"), ("ns",), (), (*ADA, False, True, None, 1)], ids=len
    )
    def test_too_few_or_too_many_are_refused_at_once(
        self, call: Call, arguments: tuple[Any, ...]
    ) -> None:
        with pytest.raises(TypeError, match="argument"):
            call(*arguments)

    async def test_every_way_to_call_it_is_one(self, call: Call, router: AsyncRouter) -> None:
        assert await call("ns", "ada", service="chat") == 7
        assert await call(namespace="ns", uid="ada", service="chat", timeout=1) == 7
        assert await call(*ADA, False, stale_ok=False) == 7
        assert router.stats().cache.hits == 3
        with pytest.raises(sfroute.StoreUnavailable):
            await call(*ADA, True)

    @pytest.mark.parametrize("bad", [["ada"], "a}a", "", None, 7, b"ada", float("nan")], ids=repr)
    async def test_a_name_that_is_none_is_refused_when_it_is_awaited(
        self, call: Call, bad: Any
    ) -> None:
        coroutine = call("ns", bad, "chat")
        with pytest.raises(InvalidArgument, match="uid"):
            await coroutine

    async def test_a_name_may_run_code_of_its_own(self, call: Call, router: AsyncRouter) -> None:
        class Name(str):
            __slots__ = ()

            def __hash__(self) -> int:
                router._after_fork_in_child()
                router._inside.engine.cache.entries.take(ADA, None)
                gc.collect()
                return hash(str(self))

            def __eq__(self, other: object) -> bool:
                return str(self) == other

        with pytest.raises(sfroute.SfrouteError):
            await call("ns", Name("ada"), "chat")

    async def test_a_name_that_awaits_its_own_call_is_told(self, call: Call) -> None:
        told: list[ValueError] = []

        class Name(str):
            __slots__ = ()

            def __hash__(self) -> int:
                with pytest.raises(ValueError, match="coroutine already executing") as error:
                    held[0].send(None)
                told.append(error.value)
                return hash(str(self))

        held = [call("ns", Name("ada"), "chat")]
        with pytest.raises(StopIteration):
            held[0].send(None)
        assert told


class TestAHit:
    @pytest.mark.parametrize("of", ["deadline", "healthy_until"])
    async def test_one_that_is_not_fresh_is_none(
        self, call: Call, router: AsyncRouter, of: str
    ) -> None:
        now = time.monotonic()
        if of == "deadline":
            know(router, deadline=now)
        else:
            know(router, epoch=Epoch(60.0, now))
        with pytest.raises(sfroute.StoreUnavailable):
            await call(*ADA, stale_ok=False)
        assert router.stats().cache.hits == 0

    @pytest.mark.parametrize("never", [-inf, float("nan"), 0])
    async def test_an_instant_that_is_none_keeps_nothing_fresh(
        self, call: Call, router: AsyncRouter, never: float
    ) -> None:
        know(router, deadline=never)
        with pytest.raises(sfroute.StoreUnavailable):
            await call(*ADA, stale_ok=False)

    async def test_it_is_told_to_telemetry_as_it_was(self, call: Call, router: AsyncRouter) -> None:
        told: list[Any] = []
        router._telemetry.hits = (told.append, lambda: "context")  # type: ignore[assignment]
        entry = know(router)
        before = time.monotonic()
        assert await call(*ADA) == 7
        ((operation, key, began, ended, context, seen),) = told
        assert (operation, key, context, seen) == ("get_linked_pod", ADA, "context", entry)
        assert before <= began <= ended <= time.monotonic()

    async def test_what_telemetry_raises_comes_out(self, call: Call, router: AsyncRouter) -> None:
        def fail(*_: object) -> None:
            raise LookupError("no room")

        router._telemetry.hits = (fail, lambda: None)  # type: ignore[assignment]
        with pytest.raises(LookupError, match="no room"):
            await call(*ADA)
        router._telemetry.hits = (list.append, fail)  # type: ignore[assignment]
        with pytest.raises(LookupError, match="no room"):
            await call(*ADA)

    async def test_a_router_that_was_closed_still_knows_nothing(
        self, call: Call, router: AsyncRouter
    ) -> None:
        await router.aclose()
        with pytest.raises(RouterClosed):
            await call("ns", "grace", "chat")

    async def test_a_subclass_may_have_its_own(self, router: AsyncRouter) -> None:
        class Mine(AsyncRouter):
            async def get_linked_pod(self, *args: Any, **named: Any) -> int | None:
                return -(await super().get_linked_pod(*args, **named) or 0)

        mine = Mine.from_url(NOWHERE)
        know(mine)
        assert await mine.get_linked_pod(*ADA) == -7

    async def test_what_is_no_router_is_left_to_the_function(self) -> None:
        with pytest.raises(AttributeError):
            await METHOD(object(), *ADA)

    def test_it_counts_in_every_thread(self, router: AsyncRouter) -> None:
        def hit() -> None:
            for _ in range(1000):
                with pytest.raises(StopIteration):
                    router.get_linked_pod(*ADA).send(None)

        crew = [threading.Thread(target=hit) for _ in range(4)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        if HALF == "native":  # in Python `hits += 1` is three steps, and a count is only a count
            assert router.stats().cache.hits == 4000

    async def test_nothing_is_kept_of_it(self, call: Call, router: AsyncRouter) -> None:
        entry = know(router)
        key = tuple(ADA)
        # More than the calls that are kept to be used again.
        coroutines = [call(*key) for _ in range(100)]
        assert await asyncio.gather(*coroutines) == [7] * 100
        waiting = [asyncio.create_task(call("ns", f"grace{n}", "chat")) for n in range(100)]
        await asyncio.gather(*waiting, return_exceptions=True)
        del coroutines, waiting
        gc.collect()
        before = sys.getrefcount(entry), sys.getrefcount(router), sys.getrefcount(METHOD)
        for _ in range(1000):
            await call(*key)
            call(*key).close()
        gc.collect()
        assert (sys.getrefcount(entry), sys.getrefcount(router), sys.getrefcount(METHOD)) == before

    async def test_a_circle_with_one_is_collected(self, call: Call) -> None:
        class Keeper:
            call: Any

        class Name(str):  # noqa: SLOT000 - it holds something
            keeper: Keeper

        keeper, name = Keeper(), Name("ada")
        name.keeper = keeper
        keeper.call = call("ns", name, "chat")
        keeper.call.close()
        keeper.call = call("ns", name, "chat")
        gone = weakref.ref(keeper)
        del keeper, name
        with pytest.warns(RuntimeWarning, match=MESSAGE):
            gc.collect()
        assert gone() is None


async def test_both_halves_give_the_same_from_a_store(
    cluster: LocalCluster, namespace: str
) -> None:
    async with AsyncRouter.from_url(cluster.url) as router:
        await router.set_linked_pod(namespace, "ada", "chat", 3)
        for method in (METHOD, PURE):
            assert await method(router, namespace, "ada", "chat") == 3
            assert await method(router, namespace, "grace", "chat") is None
        cache = router.stats().cache
        assert (cache.hits, cache.misses) == (2, 2)


@pytest.fixture
async def online(cluster: LocalCluster) -> AsyncIterator[AsyncRouter]:
    """An open router. Telemetry sleeps, and the names of the tests are known: so a miss may be the native half's."""
    async with AsyncRouter.from_url(cluster.url) as router:
        yield router


@pytest.fixture(params=["as it is", "pure"])
async def ask(request: pytest.FixtureRequest, online: AsyncRouter, namespace: str) -> Any:
    """Looks up a uid's pod of ``chat``."""
    method = METHOD if request.param == "as it is" else PURE
    assert await method(online, namespace, "known", "chat") is None

    def looked_up(uid: str) -> Any:
        return method(online, namespace, uid, "chat")

    return looked_up


def waits_natively(coroutine: Any) -> bool:
    """True if what it yields is the native half's. It is closed."""
    try:
        return type(coroutine.send(None)).__name__ == "Wait"
    finally:
        coroutine.close()


class TestAMiss:
    async def test_the_native_half_begins_it(self, online: AsyncRouter, namespace: str) -> None:
        # The first lookup of a slot learns whose range it is.
        assert await online.get_linked_pod(namespace, "ada", "chat") is None
        online.invalidate(namespace, "ada")
        natively = waits_natively(online.get_linked_pod(namespace, "ada", "chat"))
        assert natively == (HALF == "native")

    async def test_a_thousand_find_their_slots(
        self, ask: Any, online: AsyncRouter, namespace: str
    ) -> None:
        uids = [f"uid ~ {n}" for n in range(1000)]
        for uid in uids[:300]:
            await online.set_linked_pod(namespace, uid, "chat", len(uid) + int(uid[6:]))
        found = await asyncio.gather(*(ask(uid) for uid in uids))
        assert found[:300] == [len(uid) + int(uid[6:]) for uid in uids[:300]]
        assert set(found[300:]) == {None}
        # A wrong slot would have been put right by MOVED.
        assert "MOVED" not in online.stats().retries
        assert online.stats().cache.misses == 1001

    @pytest.mark.parametrize("uid", ["gr\u00e4ce", "\U0001f600", "a" * 512, "a b", "~", " "])
    async def test_every_good_uid_is_looked_up(
        self, ask: Any, online: AsyncRouter, namespace: str, uid: str
    ) -> None:
        await online.set_linked_pod(namespace, uid, "chat", 4)
        online.invalidate(namespace, uid)
        assert await ask(uid) == 4

    @pytest.mark.parametrize("uid", ["a{", "}", "a\n", "\x7f", "", "a" * 513, "\ud800", None, 7])
    async def test_no_bad_one_is(self, ask: Any, online: AsyncRouter, uid: Any) -> None:
        before = online.stats().cache.misses
        with pytest.raises(InvalidArgument):
            await ask(uid)
        assert online.stats().cache.misses == before

    async def test_what_is_looked_up_is_joined(self, ask: Any, online: AsyncRouter) -> None:
        before = online.stats().cache
        assert await asyncio.gather(*(ask("ada") for _ in range(50))) == [None] * 50
        after = online.stats().cache
        assert (after.misses - before.misses, after.joined - before.joined) == (1, 49)

    async def test_callers_are_woken_in_order_and_in_their_own_contexts(self, ask: Any) -> None:
        who: ContextVar[int] = ContextVar("who")
        woken: list[int] = []

        async def one(number: int) -> None:
            who.set(number)
            await ask("ada" if number % 2 else f"grace{number}")
            assert who.get() == number
            woken.append(number)

        await asyncio.gather(*(one(number) for number in range(20)))
        assert sorted(woken) == list(range(20))
        odd = [number for number in woken if number % 2]
        assert odd == sorted(odd)

    async def test_one_that_fails_leaves_the_others_alone(self, ask: Any) -> None:
        async def one(number: int) -> int:
            await ask(f"ada{number}")
            if number == 3:
                raise LookupError("mine")
            return number

        results = await asyncio.gather(*(one(n) for n in range(10)), return_exceptions=True)
        assert [result for result in results if isinstance(result, int)] == [
            *(0, 1, 2, 4, 5, 6, 7, 8, 9)
        ]

    def test_ctrl_c_in_one_still_wakes_the_others(self, cluster: LocalCluster) -> None:
        woken: list[int] = []

        async def work() -> None:
            async with AsyncRouter.from_url(cluster.url) as router:
                await router.get_linked_pod("ns", "known", "chat")

                async def one(number: int) -> None:
                    await router.get_linked_pod("ns", f"ctrl-c {number}", "chat")
                    woken.append(number)
                    if number == 2:
                        raise KeyboardInterrupt

                # The router stays open until all are over.
                await asyncio.gather(*map(one, range(8)), return_exceptions=True)

        loop = asyncio.new_event_loop()
        try:
            task = loop.create_task(work())
            with pytest.raises(KeyboardInterrupt):
                loop.run_until_complete(task)
            loop.run_until_complete(task)
        finally:
            loop.close()
        assert sorted(woken) == list(range(8))

    @pytest.mark.parametrize("when", ["at once", "while it waits", "when it is answered"])
    async def test_it_is_cancelled_whenever(self, ask: Any, when: str) -> None:
        task = asyncio.create_task(ask("ada"))
        if when != "at once":
            await asyncio.sleep(0)
        if when == "when it is answered":
            waits_for: Any = task._fut_waiter  # type: ignore[attr-defined]
            while not waits_for.done():  # noqa: ASYNC110 - it is the very turn that matters
                await asyncio.sleep(0)
        assert task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert await ask("ada") is None

    async def test_a_cancelled_caller_takes_no_other_with_it(self, ask: Any) -> None:
        first, second = (asyncio.create_task(ask("ada")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second is None

    async def test_a_caller_may_shield_it(self, ask: Any) -> None:
        task = asyncio.ensure_future(ask("ada"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0)
        assert await task is None

    async def test_a_task_written_in_python_waits_for_it_too(self, ask: Any) -> None:
        loop = asyncio.get_running_loop()
        tasks: Any = asyncio.tasks
        assert await tasks._PyTask(ask("ada"), loop=loop) is None
        cancelled = tasks._PyTask(ask("grace"), loop=loop)
        await asyncio.sleep(0)
        cancelled.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await cancelled

    async def test_it_is_no_future_itself(self, ask: Any) -> None:
        coroutine = ask("ada")
        assert not asyncio.isfuture(coroutine)
        assert await coroutine is None

    async def test_one_that_is_let_go_while_it_waits_harms_nobody(self, ask: Any) -> None:
        coroutine = ask("ada")
        coroutine.send(None)
        del coroutine
        closed = ask("ada")
        closed.send(None)
        closed.close()
        gc.collect()
        assert await ask("ada") is None

    async def test_one_that_is_driven_by_hand_says_that_it_waits(self, ask: Any) -> None:
        coroutine = ask("ada")
        future = coroutine.send(None)
        assert future.get_loop() is asyncio.get_running_loop()
        assert not future.done()
        assert not future.cancelled()
        with pytest.raises(RuntimeError, match="await wasn't used with future"):
            coroutine.send(None)

    async def test_its_future_has_what_a_task_needs(self, ask: Any) -> None:
        coroutine = ask("ada")
        future = coroutine.send(None)
        told: list[Any] = []
        future.add_done_callback(told.append)
        assert future.remove_done_callback(told.append) == 1
        assert future.remove_done_callback(told.append) == 0
        future.add_done_callback(told.append, context=None)
        assert future.cancel()
        assert not future.cancel()
        assert future.cancelled()
        assert told == []
        await asyncio.sleep(0)
        assert told == [future]
        with pytest.raises(asyncio.CancelledError):
            future.result()
        late = contextvars.copy_context()
        future.add_done_callback(told.append, context=late)
        await asyncio.sleep(0)
        assert told == [future, future]
        coroutine.close()

    async def test_the_end_of_the_router_ends_it(self, ask: Any, online: AsyncRouter) -> None:
        tasks = [asyncio.create_task(ask(f"ada{n}")) for n in range(3)]
        await asyncio.sleep(0)
        await online.aclose()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(end is None or isinstance(end, RouterClosed) for end in ends)
        with pytest.raises(RouterClosed):
            await ask("grace")

    async def test_each_error_is_the_callers_own(
        self, ask: Any, online: AsyncRouter, namespace: str, raw: Any
    ) -> None:
        raw.set(f"sf:{{{namespace}:lk:ada}}chat", "no pod")
        ends = await asyncio.gather(*(ask("ada") for _ in range(3)), return_exceptions=True)
        assert [type(end) for end in ends] == [sfroute.CorruptReply] * 3
        assert len({id(end) for end in ends}) == 3
        assert {end.operation for end in ends if isinstance(end, sfroute.StoreError)} == {
            "get_linked_pod"
        }

    async def test_what_changes_while_it_is_under_way_is_not_kept(
        self, ask: Any, online: AsyncRouter, namespace: str
    ) -> None:
        task = asyncio.create_task(ask("ada"))
        await asyncio.sleep(0)
        await online.set_linked_pod(namespace, "ada", "chat", 9)
        await task
        assert await ask("ada") == 9

    async def test_nothing_is_left_of_it(self, ask: Any, online: AsyncRouter) -> None:
        def left() -> int:
            gc.collect()
            names = {"Wait", "Call", "Read", "Flight"}
            return sum(type(each).__name__ in names for each in gc.get_objects())

        await asyncio.gather(*(ask(f"before{n}") for n in range(200)))
        online.invalidate("ns", "nobody")
        before = left()
        for turn in range(5):
            await asyncio.gather(*(ask(f"{turn} {n}") for n in range(200)))
            tasks = [asyncio.create_task(ask(f"cut {turn} {n}")) for n in range(20)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)
        # Those that were cancelled stand in the queue of deadlines until that is swept.
        assert left() - before <= 2 * SPARE

    def test_a_loop_that_is_not_its_own_gets_the_same_error(self, cluster: LocalCluster) -> None:
        router = AsyncRouter.from_url(cluster.url)
        first = asyncio.new_event_loop()
        first.run_until_complete(router.get_linked_pod("ns", "known", "chat"))

        async def elsewhere() -> None:
            for method in (METHOD, PURE):
                with pytest.raises(sfroute.ConfigError, match="another event loop"):
                    await method(router, "ns", "elsewhere", "chat")

        asyncio.run(elsewhere())
        first.run_until_complete(router.aclose())
        first.close()

    def test_uvloop_runs_it(self, cluster: LocalCluster) -> None:
        uvloop = pytest.importorskip("uvloop")

        async def work() -> None:
            async with AsyncRouter.from_url(cluster.url) as router:
                await router.get_linked_pod("ns", "known", "chat")
                found = await asyncio.gather(
                    *(router.get_linked_pod("ns", f"uv{n}", "chat") for n in range(100))
                )
                assert found == [None] * 100
                task = asyncio.create_task(router.get_linked_pod("ns", "uv", "chat"))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work())


def test_what_wakes_is_made_for_a_loop() -> None:
    if heart is None:
        pytest.skip("the pure half has none")
    with pytest.raises(TypeError):
        heart.Wakes()  # type: ignore[call-arg]
    wakes: Any = heart.Wakes(None)
    assert wakes.run() is None


class TestABatch:
    async def test_it_is_one_of_lookups_like_any_other(
        self, online: AsyncRouter, namespace: str
    ) -> None:
        uids = [f"uid{n}" for n in range(700)] + ["gr\u00e4ce", "uid3"]
        for uid in uids[:50]:
            await online.set_linked_pod(namespace, uid, "chat", 5)
        before = online.stats().cache.misses
        flight = asyncio.create_task(online.get_linked_pod(namespace, "uid9", "chat"))
        await asyncio.sleep(0)
        found = await online.batch_get_linked_pod(namespace, uids, "chat")
        assert found == {5: [*uids[:50], "uid3"]}
        assert await flight == 5
        # Of the three that were asked for twice one was under way, and two are one.
        assert online.stats().cache.misses - before == 701
        assert online.stats().cache.joined >= 1
        again = await online.batch_get_linked_pod(namespace, uids, "chat")
        assert again == found
        assert online.stats().cache.misses - before == 701

    async def test_a_batch_that_is_cancelled_leaves_nothing_behind(
        self, online: AsyncRouter, namespace: str
    ) -> None:
        uids = [f"uid{n}" for n in range(700)]
        task = asyncio.create_task(online.batch_get_linked_pod(namespace, uids, "chat"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await online.batch_get_linked_pod(namespace, uids, "chat") == {}
