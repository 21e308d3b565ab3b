"""``evacuate()``: every link off a pod, whatever else goes on meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from typing import Any

import pytest
import redis.cluster
from conftest import AwaitableRouter, make_raw
from support.program import LinkProgram, StateProgram, make_idle, owner_of, pour_links
from support.sizes import size

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    CorruptReply,
    EvacuationProgress,
    InvalidArgument,
    NoRoutablePod,
    Rendezvous,
    RouterClosed,
)
from sfroute._contract.keys import link_key, link_prefix, slot_of
from sfroute.embedded import LocalCluster

from .conftest import ONE_SERVER
from .test_agent import until

Raw = redis.cluster.RedisCluster
LINKS = size(200_000, 1_000_000)


async def evacuate(
    router: Any, *args: Any, **options: Any
) -> AsyncGenerator[EvacuationProgress, None]:
    """The steps of either front."""
    steps = router.evacuate(*args, **options)
    if not isinstance(router, AwaitableRouter):
        async with aclosing(steps):
            async for step in steps:
                yield step
        return
    try:
        while (step := await asyncio.to_thread(next, steps, None)) is not None:
            yield step
    finally:
        await asyncio.to_thread(steps.close)


async def outcome(router: Any, *args: Any, **options: Any) -> EvacuationProgress:
    """The last step."""
    steps = [step async for step in evacuate(router, *args, **options)]
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    return steps[-1]


def typed_loosely(client: Any) -> Any:
    """redis-py declares its pipelines without types."""
    return client


def write_links(raw: Raw, namespace: str, service: str, links: Iterable[tuple[str, int]]) -> None:
    """Many persistent links, by plain commands."""
    pipes: dict[Any, Any] = {}
    for uid, pod in links:
        key = link_key(namespace, uid, service)
        client = typed_loosely(owner_of(raw, key))
        if client not in pipes:
            pipes[client] = client.pipeline(transaction=False)
        pipe = pipes[client]
        pipe.set(key, pod)
        pipe.hset(key.rpartition("}")[0] + "}", service, pod)
        if len(pipe.command_stack) >= 20_000:
            pipe.execute()
    for pipe in pipes.values():
        pipe.execute()


def count_links(raw: Raw, namespace: str, service: str, uids: Iterable[str]) -> Counter[int]:
    """How many links lead to each pod."""
    keys = [link_key(namespace, uid, service) for uid in uids]
    pipe = typed_loosely(raw).pipeline()
    for key in keys:
        pipe.get(key)
    return Counter(int(pod) for pod in pipe.execute() if pod is not None)


@pytest.fixture
def pods(raw: Raw, namespace: str) -> StateProgram:
    """Pod 0 leaves; 1, 2 and 3 take its uids."""
    states = StateProgram(raw, namespace, "chat")
    for pod, status in enumerate(["Draining", "Running", "Running", "Running"]):
        states.set(pod, status)
    return states


UIDS = [f"u{number}" for number in range(300)]


@pytest.mark.usefixtures("pods")
class TestWhatItMoves:
    @pytest.mark.slow
    async def test_every_link_of_the_pod_and_no_other(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        write_links(raw, namespace, "chat", [(uid, n % 2) for n, uid in enumerate(UIDS)])
        others = [(f"{namespace}x", "chat"), (namespace, "game"), (namespace, "cha")]
        for other, service in others:
            write_links(raw, other, service, [(uid, 0) for uid in UIDS[:10]])
        done = await outcome(router, namespace, "chat", 0)
        assert (done.found, done.moved, done.elsewhere, done.failed) == (150, 150, 0, 0)
        assert (done.passes, done.scanned) == (2, 600)
        left = count_links(raw, namespace, "chat", UIDS)
        assert (left[0], left.total()) == (0, 300)
        # Those found on pod 1 have stayed, and all pods got about the same.
        assert left[1] > 150
        assert min(left[2], left[3]) > 25
        for other, service in others:
            assert count_links(raw, other, service, UIDS) == {0: 10}

    @pytest.mark.parametrize("seconds", [-1, 100])
    async def test_a_link_stays_what_it_is(
        self, router: Any, raw: Raw, namespace: str, seconds: int
    ) -> None:
        ada = LinkProgram(raw, namespace, "ada", "chat")
        ada.set_link(0, seconds)
        await outcome(router, namespace, "chat", 0)
        assert ada.pod() in {"1", "2", "3"}
        assert ada.listed() == (ada.pod() if seconds < 0 else None)
        assert ada.ttl() == -1 if seconds < 0 else 90 <= ada.ttl() <= 100

    async def test_what_is_no_link_is_passed_over(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        for uid, value in [("a", "x"), ("b", "-1"), ("c", "00"), ("d", "")]:
            raw.set(link_key(namespace, uid, "chat"), value)
        raw.hset(link_key(namespace, "e", "chat"), "chat", "0")
        done = await outcome(router, namespace, "chat", 0)
        assert (done.found, done.failed) == (0, 0)

    async def test_links_that_no_call_accepts_are_counted_apart_and_stay(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        """Programs in other languages can write them."""
        tag = f"sf:{{{namespace}:lk:".encode()
        names = [b"ev}il", b"ev{il", b"bell\x07", b"x" * 513, b"\xff\xfe"]
        keys = [tag + name + b"}chat" for name in names]
        for key in keys:
            client = make_binary(raw, key)
            client.set(key, 0)
            client.close()
        write_links(raw, namespace, "chat", [(uid, 0) for uid in UIDS[:10]])
        counted = await outcome(router, namespace, "chat", 0, dry_run=True)
        assert (counted.found, counted.refused, counted.scanned) == (10, len(keys), 15)
        assert (await outcome(router, namespace, "chat", 1, dry_run=True)).refused == 0
        done = await outcome(router, namespace, "chat", 0)
        assert (done.moved, done.refused, done.failed, done.passes) == (10, len(keys), 0, 2)
        for key in keys:
            client = make_binary(raw, key)
            assert client.get(key) == b"0"
            client.close()

    async def test_a_dry_run_counts_and_changes_nothing(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        write_links(raw, namespace, "chat", [(uid, 0) for uid in UIDS])
        done = await outcome(router, namespace, "chat", 0, dry_run=True)
        assert (done.found, done.moved, done.passes) == (300, 0, 1)
        assert count_links(raw, namespace, "chat", UIDS) == {0: 300}

    async def test_the_policy_says_where_to(self, router: Any, raw: Raw, namespace: str) -> None:
        write_links(raw, namespace, "chat", [(uid, 0) for uid in UIDS[:50]])
        await outcome(router, namespace, "chat", 0, policy=Rendezvous())
        first = await router.batch_get_linked_pod(namespace, UIDS[:50], "chat", fresh=True)
        write_links(raw, namespace, "chat", [(uid, 0) for uid in UIDS[:50]])
        await outcome(router, namespace, "chat", 0, policy=Rendezvous())
        assert await router.batch_get_linked_pod(namespace, UIDS[:50], "chat", fresh=True) == first

    async def test_where_nobody_can_take_them_nothing_is_moved(
        self, router: Any, raw: Raw, pods: StateProgram, namespace: str
    ) -> None:
        write_links(raw, namespace, "chat", [(uid, 0) for uid in UIDS])
        for pod in (1, 2, 3):
            pods.set(pod, "Stopped")
        with pytest.raises(NoRoutablePod, match=r"pod 0: .*; pod 1: status 'Stopped'"):
            await outcome(router, namespace, "chat", 0)
        assert count_links(raw, namespace, "chat", UIDS) == {0: 300}

    async def test_a_policy_that_is_none_is_refused(self, router: Any, namespace: str) -> None:
        with pytest.raises(InvalidArgument, match=r"^policy"):
            await outcome(router, namespace, "chat", 0, policy=len)

    @pytest.mark.parametrize(
        "rate",
        [0, -1, float("nan"), float("inf"), "5", True, [5], pytest.param(10**400, id="huge")],
    )
    async def test_a_rate_that_is_none_is_refused(
        self, router: Any, namespace: str, rate: Any
    ) -> None:
        with pytest.raises(InvalidArgument, match=r"^rate"):
            await outcome(router, namespace, "chat", 0, rate=rate)


async def test_names_with_the_signs_of_patterns_mean_themselves(router: Any, raw: Raw) -> None:
    for namespace, service in [("a*", "b?"), ("a[b-z]", "*"), ("a\\", "b\\*"), ("ab", "bb")]:
        states = StateProgram(raw, namespace, service)
        for pod, status in enumerate(["Draining", "Running"]):
            states.set(pod, status)
        write_links(raw, namespace, service, [("u*[0]", 0), ("u1", 0)])
    try:
        for namespace, service in [("a*", "b?"), ("a[b-z]", "*"), ("a\\", "b\\*")]:
            done = await outcome(router, namespace, service, 0)
            assert (done.found, done.moved) == (2, 2)
            assert count_links(raw, namespace, service, ["u*[0]", "u1"]) == {1: 2}
        assert count_links(raw, "ab", "bb", ["u*[0]", "u1"]) == {0: 2}
    finally:
        raw.flushall(target_nodes=Raw.PRIMARIES)


@pytest.mark.usefixtures("pods")
class TestHowItGoes:
    async def test_no_faster_than_the_rate(self, router: Any, raw: Raw, namespace: str) -> None:
        write_links(raw, namespace, "chat", [(uid, 0) for uid in UIDS[:100]])
        began = time.monotonic()
        moved: list[tuple[float, int]] = [
            (time.monotonic() - began, step.moved)
            async for step in evacuate(router, namespace, "chat", 0, rate=100.0)
        ]
        assert moved[-1][1] == 100
        assert all(count <= 100 * seconds + 2 for seconds, count in moved)
        # It tells how far it is about four times a second.
        assert len(moved) >= 4

    async def test_an_interrupted_one_is_resumed_by_another(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        write_links(raw, namespace, "chat", [(uid, 0) for uid in UIDS])
        async with aclosing(evacuate(router, namespace, "chat", 0, rate=200.0)) as steps:
            async for step in steps:
                if step.moved >= 50:
                    break
        left = count_links(raw, namespace, "chat", UIDS)[0]
        assert 100 < left <= 250
        done = await outcome(router, namespace, "chat", 0)
        assert done.moved == left
        assert count_links(raw, namespace, "chat", UIDS)[0] == 0

    async def test_so_is_one_whose_task_was_cancelled(
        self, cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        write_links(raw, namespace, "chat", [(uid, 0) for uid in UIDS])
        async with AsyncRouter.from_url(cluster.url) as router:
            reached = asyncio.Event()

            async def work() -> None:
                async for step in router.evacuate(namespace, "chat", 0, rate=200.0):
                    if step.moved >= 20:
                        reached.set()

            working = asyncio.create_task(work())
            await reached.wait()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            before = count_links(raw, namespace, "chat", UIDS)
            await asyncio.sleep(0.1)
            assert count_links(raw, namespace, "chat", UIDS) == before, "it goes on by itself"
            await outcome(router, namespace, "chat", 0)
        assert count_links(raw, namespace, "chat", UIDS)[0] == 0

    async def test_the_end_of_the_router_ends_it(
        self, make_router: Callable[..., Any], cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        write_links(raw, namespace, "chat", [(uid, 0) for uid in UIDS])
        router = make_router(cluster.url)

        async def close_in_the_middle() -> None:
            async for step in evacuate(router, namespace, "chat", 0, rate=100.0):
                if step.moved >= 10:
                    await router.aclose()

        async with asyncio.timeout(10):
            with pytest.raises(RouterClosed):
                await close_in_the_middle()

    async def test_it_ends_though_somebody_goes_on_linking(
        self, cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        stop = threading.Event()

        def go_on() -> None:
            while not stop.is_set():
                write_links(raw, namespace, "chat", [(uid, 0) for uid in UIDS[:100]])

        async with AsyncRouter.from_url(cluster.url) as router, asyncio.timeout(30):
            linking = asyncio.create_task(asyncio.to_thread(go_on))
            try:
                done = await outcome(router, namespace, "chat", 0)
            finally:
                stop.set()
                await linking
        # The tenth pass is the last; an earlier one is where the other thread had no turn meanwhile.
        assert 1 < done.passes <= 10
        assert done.moved > 100


@pytest.mark.slow
@ONE_SERVER
@pytest.mark.timeout(120)
async def test_slots_migrate_and_gateways_route_meanwhile(
    own_cluster: LocalCluster, namespace: str
) -> None:
    raw = make_raw(own_cluster)
    uids = [f"u{number}" for number in range(2_000)]
    states = StateProgram(raw, namespace, "chat")
    for pod, status in enumerate(["Draining", "Running", "Running"]):
        states.set(pod, status)
    write_links(raw, namespace, "chat", [(uid, 0) for uid in uids])
    # Slots that hold links, from every primary to the next.
    primaries = [node for node in own_cluster.nodes if node.role == "primary"]
    moves = []
    for number, uid in enumerate(uids[:40]):
        slot = slot_of(link_key(namespace, uid, "chat"))
        source = own_cluster.primary_of(slot)
        moves.append((slot, primaries[(primaries.index(source) + 1 + number % 2) % 3]))
    over = asyncio.Event()
    answers: Counter[str] = Counter()

    async def gateway(router: AsyncRouter) -> None:
        number = 0
        while not over.is_set():
            number += 1
            link = await router.route(namespace, uids[number * 7 % len(uids)], "chat")
            answers[link.source] += 1

    def migrate() -> None:
        for slot, target in moves:
            own_cluster.move_slot(slot, target)

    async with (
        AsyncRouter.from_url(own_cluster.url) as router,
        AsyncRouter.from_url(own_cluster.url) as other,
    ):
        routing = [asyncio.create_task(gateway(one)) for one in (router, other)]
        migrating = asyncio.create_task(asyncio.to_thread(migrate))
        done = await outcome(router, namespace, "chat", 0, rate=800.0)
        await migrating
        over.set()
        await asyncio.gather(*routing)
        print(f"\n  {done}; {answers.total():,} routes meanwhile")
        final = await router.batch_get_linked_pod(namespace, uids, "chat", fresh=True)
    raw.close()
    assert {pod: len(who) for pod, who in final.items()}.keys() <= {1, 2}
    assert sum(map(len, final.values())) == len(uids)
    # Draining pods keep theirs: only the evacuation has moved anybody.
    assert done.moved == len(uids)
    assert answers["moved"] == answers["placed"] == 0


@pytest.mark.slow
@ONE_SERVER
@pytest.mark.timeout(120)
async def test_a_primary_dies_meanwhile(own_cluster: LocalCluster, namespace: str) -> None:
    raw = make_raw(own_cluster)
    uids = [f"u{number}" for number in range(1_000)]
    states = StateProgram(raw, namespace, "chat")
    for pod, status in enumerate(["Draining", "Running", "Running"]):
        states.set(pod, status)
    write_links(raw, namespace, "chat", [(uid, 0) for uid in uids])
    # So many that no primary is scanned in one step.
    pour_links(raw, namespace, "chat", (f"other-{number}" for number in range(9_000)), 1)
    raw.close()
    last, killed = EvacuationProgress(), False
    async with AsyncRouter.from_url(own_cluster.url) as router:
        async for last in router.evacuate(namespace, "chat", 0, rate=400.0):
            if last.moved > 300 and not killed:
                killed = True
                await asyncio.to_thread(own_cluster.kill, own_cluster.primary_of(states.key))
        final = await router.batch_get_linked_pod(namespace, uids, "chat", fresh=True)
    print(f"\n  {last}")
    assert last.done
    assert {pod: len(who) for pod, who in final.items()}.keys() <= {1, 2}
    assert sum(map(len, final.values())) == len(uids)


EVACUATING = """
import asyncio, json, re, sys, time
from sfroute import AsyncRouter

def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]) * 1024

async def main(url, namespace):
    async with AsyncRouter.from_url(url) as router:
        # Everything that is made once.
        async for _ in router.evacuate(namespace, "game", 0, dry_run=True):
            pass
        before, began = peak(), time.monotonic()
        async for step in router.evacuate(namespace, "chat", 0):
            pass
        print(json.dumps([step.done, step.moved, time.monotonic() - began, peak() - before]))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.timeout(600)
async def test_memory_is_bounded_however_many_links_there_are(
    some_cluster: LocalCluster, namespace: str
) -> None:
    raw, mine = make_raw(some_cluster), LINKS // 100
    states = StateProgram(raw, namespace, "chat")
    for pod, status in enumerate(["Draining", "Running", "Running"]):
        states.set(pod, status)
    uids = [f"user-{number:012d}" for number in range(LINKS)]
    write_links(raw, namespace, "chat", ((uid, 0) for uid in uids[:mine]))
    pour_links(raw, namespace, "chat", uids[mine:], 1)
    try:
        # A process of its own: in this one, memory that is free already would hide what is needed.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", EVACUATING, some_cluster.url, namespace),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    finally:
        raw.flushall(target_nodes=Raw.PRIMARIES)
        raw.close()
    done, moved, took, grown = json.loads(out)
    print(f"\n  {LINKS:,} links, {moved:,} moved in {took:.1f} s: {grown / 2**20:+.1f} MB")
    assert (done, moved) == (True, mine)
    # The uids alone would take 80 bytes each.
    assert grown < min(40 * LINKS, 16 * 2**20)


class TestOppositeOnes:
    async def test_they_end_and_pass_nobody_to_and_fro(
        self, cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        states = StateProgram(raw, namespace, "chat")
        for pod in range(2):
            states.set(pod, "Running")
        write_links(raw, namespace, "chat", [(uid, n % 2) for n, uid in enumerate(UIDS)])

        async def empty(router: AsyncRouter, pod: int) -> int:
            moved = 0
            with suppress(NoRoutablePod):  # the other one was first
                async with aclosing(router.evacuate(namespace, "chat", pod, rate=500)) as steps:
                    async for step in steps:
                        moved = step.moved
            return moved

        async with (
            AsyncRouter.from_url(cluster.url) as one,
            AsyncRouter.from_url(cluster.url) as other,
        ):
            moved = sum(await asyncio.gather(empty(one, 0), empty(other, 1)))
        assert moved <= len(UIDS)
        assert count_links(raw, namespace, "chat", UIDS).total() == len(UIDS)
        # What was noted is gone with them.
        assert set(states.fields()) == {"0", "1"}


@pytest.mark.usefixtures("pods")
class TestIdleLinks:
    def make_idle(self, raw: Raw, namespace: str, uids: list[str]) -> None:
        for uid in uids:
            make_idle(raw, link_key(namespace, uid, "chat"))

    @pytest.mark.parametrize("remove", [False, True])
    async def test_they_are_counted_apart_and_left_or_removed(
        self, router: Any, raw: Raw, namespace: str, remove: bool
    ) -> None:
        # Redis 7 keeps one object for all keys that hold the same number below 10,000, and so one idle time.
        pod = 20_000
        write_links(raw, namespace, "chat", [(uid, pod) for uid in UIDS[:20]])
        self.make_idle(raw, namespace, UIDS[:5])
        counted = await outcome(router, namespace, "chat", pod, idle=1800, dry_run=True)
        assert (counted.found, counted.idle, counted.scanned) == (15, 5, 20)
        done = await outcome(router, namespace, "chat", pod, idle=1800, remove_idle=remove)
        assert (done.moved, done.removed) == (15, 5 if remove else 0)
        left = count_links(raw, namespace, "chat", UIDS)
        assert (left[pod], left.total()) == ((0, 15) if remove else (5, 20))

    async def test_those_of_other_pods_are_as_idle_as_before(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        """Or the next evacuation would find none."""
        write_links(raw, namespace, "chat", [(uid, 20_001) for uid in UIDS[:5]])
        self.make_idle(raw, namespace, UIDS[:5])
        done = await outcome(router, namespace, "chat", 20_000, idle=1800)
        assert (done.found, done.idle, done.refused) == (0, 0, 0)
        for uid in UIDS[:5]:
            key = link_key(namespace, uid, "chat")
            client = make_binary(raw, key)
            assert client.object("IDLETIME", key) >= 3600
            client.close()

    @pytest.mark.slow
    async def test_who_comes_back_before_their_removal_is_moved(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        pod, uids = 20_002, UIDS[:6]
        for _ in range(5):
            write_links(raw, namespace, "chat", [(uid, pod) for uid in uids])
            self.make_idle(raw, namespace, uids)
            removing = asyncio.create_task(
                outcome(router, namespace, "chat", pod, idle=1800, remove_idle=True, rate=2.0)
            )
            # EXISTS leaves a link as idle as it is.
            await until(
                lambda: not all(raw.exists(link_key(namespace, uid, "chat")) for uid in uids), 20.0
            )
            found = await router.batch_get_linked_pod(namespace, uids, "chat", fresh=True)
            back = found.get(pod, [])
            done = await removing
            assert (done.removed, done.moved) == (6 - len(back), len(back))
            left = count_links(raw, namespace, "chat", uids)
            assert (left[pod], left.total()) == (0, len(back))
            if back:
                return
        raise AssertionError("everybody came too late")

    async def test_one_whose_user_is_there_is_moved(
        self, router: Any, cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        async with (
            AsyncRouter.from_url(cluster.url) as at_pod,
            AsyncPodAgent(at_pod, namespace, "chat", 20_003, confirm_every=1000.0) as agent,
        ):
            assert await agent.accept(UIDS[0])
            key = link_key(namespace, UIDS[0], "chat")
            await until(lambda: raw.object("idletime", key) >= 2, 20.0)
            done = await outcome(router, namespace, "chat", 20_003, idle=2, remove_idle=True)
        assert (done.moved, done.removed, done.idle) == (1, 0, 0)

    @pytest.mark.parametrize("idle", [None, 1800])
    async def test_a_damaged_uid_is_told_of_after_all_others_have_moved(
        self, router: Any, raw: Raw, namespace: str, idle: float | None
    ) -> None:
        pod, uids = 20_004, UIDS[:30]
        write_links(raw, namespace, "chat", [(uid, pod) for uid in uids])
        damaged = link_prefix(namespace, uids[0])
        raw.delete(damaged)
        raw.set(damaged, "x")
        self.make_idle(raw, namespace, uids[:1])
        steps: list[EvacuationProgress] = []

        async def run() -> None:
            async for step in evacuate(router, namespace, "chat", pod, idle=idle):
                steps.append(step)  # noqa: PERF401 - those before the error count

        with pytest.raises(CorruptReply, match=r"^evacuate: 1 link cannot be moved") as trouble:
            await run()
        assert (trouble.value.key, steps[-1].done) == (damaged, False)
        left = count_links(raw, namespace, "chat", uids)
        assert (left[pod], left.total()) == (1, 30)
        # It is not for that one link that everything is looked through ten times.
        assert steps[-1].passes <= 3

    async def test_a_wrong_argument_is_refused(self, router: Any, namespace: str) -> None:
        for options in ({"idle": 0}, {"idle": "x"}, {"remove_idle": True}):
            with pytest.raises(InvalidArgument, match="idle"):
                await outcome(router, namespace, "chat", 0, **options)


def make_binary(raw: Raw, key: str | bytes) -> Any:
    """A client of the key's primary that decodes nothing."""
    node = typed_loosely(raw).get_node_from_key(key)
    return redis.Redis(node.host, node.port, protocol=2)
