"""``python -m tests.field.churn``: hours of churn, and the size of every table meanwhile.

    python -m tests.field.churn --rounds 30    # about a minute, as tests/field/test_churn.py does
    python -m tests.field.churn --minutes 60   # as ``make soak`` does

A router and an agent go through rounds of the same churn: users who come once, callers who give up, connections that
are killed, servers that pause, forget, move to other addresses and come back, pods and services that come and go, and
claims that are taken away. After each round, everything that holds several things is measured, wherever it is: each
dict, list, set and deque that an object of this package has, the timers, the tasks, the file descriptors and the
memory. None may have a slope.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from types import MethodType, ModuleType
from typing import Any, Final

import cachetools
from redis.exceptions import RedisError

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    CacheConfig,
    PlacementConfig,
    RetryConfig,
    RouterConfig,
    SfrouteError,
)
from sfroute._lookups import cache
from sfroute._net import lineage
from sfroute._pods import remembered_states
from sfroute.embedded import LocalCluster, LocalClusterError

__all__ = ["Sizes", "measure", "slopes", "steep"]

NAMESPACE: Final = "churn"
CONFIG: Final = RouterConfig(
    # Small, so that all that is bounded has reached its bound after a few rounds.
    cache=CacheConfig(max_entries=300, max_age=2.0, stale_if_error=2.0),
    retry=RetryConfig(deadline=1.5, connect_timeout=0.5),
    placement=PlacementConfig(pod_view_max_age=0.2),
)
cache.MAX_OWN_WRITES = 40  # type: ignore[misc]
remembered_states.MAX_STATES = 20  # type: ignore[misc]
lineage.FORMER = 1  # type: ignore[misc]
WARM_UP: Final = 12
"""Rounds that are not looked at: what is bounded fills up."""
ALLOWED: Final = {"blocks": 2000.0, "megabytes": 3.0}
"""What the interpreter and its allocator may take, however many rounds there were."""
CALM_SECONDS: Final = 0.4
CLAIMS: Final = 20
ROUND_USERS: Final = 60

Sizes = Mapping[str, float]

_SEQUENCES: Final = (list, tuple, set, frozenset, deque)
_TABLES: Final = (dict, list, set, deque, cachetools.Cache)


# --- what there is


def tables(*roots: object) -> Counter[str]:
    """How many things each table holds that can be reached from here: ``Class.attribute`` -> all of them together."""
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    waiting: list[object] = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type, ModuleType)):
            continue
        seen.add(id(thing))
        if isinstance(thing, Mapping):
            waiting += [*thing.keys(), *thing.values()]
        elif isinstance(thing, _SEQUENCES):
            waiting += thing
        elif isinstance(thing, MethodType):
            waiting.append(thing.__self__)
        elif _is_ours(thing):
            for name, value in _attributes(thing):
                if isinstance(value, _TABLES):
                    sizes[f"{type(thing).__qualname__}.{name}"] += len(value)
                waiting.append(value)
    return sizes


def _is_ours(thing: object) -> bool:
    module = type(thing).__module__
    return module.startswith("sfroute.") and not module.startswith("sfroute.embedded")


def _attributes(thing: object) -> Iterator[tuple[str, object]]:
    yield from getattr(thing, "__dict__", {}).items()
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            full = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") else name
            with suppress(AttributeError):
                yield name, getattr(thing, full)


def measure(*roots: object) -> Sizes:
    """The sizes of everything, once the garbage is gone."""
    gc.collect()
    loop: Any = asyncio.get_running_loop()
    kinds = Counter(type(thing).__qualname__ for thing in gc.get_objects() if _is_ours(thing))
    status = Path("/proc/self/status")
    megabytes = 0.0
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        megabytes = int(line.split()[1]) / 1024
    return {
        **{f"table {name}": float(size) for name, size in tables(*roots).items()},
        **{f"objects {name}": float(count) for name, count in kinds.items()},
        "timers": float(len(loop._scheduled)),
        "tasks": float(len(asyncio.all_tasks())),
        "file descriptors": float(len(list(Path("/proc/self/fd").iterdir())))
        if status.exists()
        else 0.0,
        "blocks": float(sys.getallocatedblocks()),
        "megabytes": megabytes,
    }


# --- the slope


def slopes(samples: Sequence[Sizes]) -> dict[str, float]:
    """What each has grown by from the first sample to the last, along the line that most pairs of samples agree on
    (Theil-Sen): a moment in which much is under way does not bend it.
    """
    found = {}
    for name in sorted(set().union(*samples)):
        values = [sample.get(name, 0.0) for sample in samples]
        pairs = itertools.combinations(enumerate(values), 2)
        slope = median((after - before) / (later - at) for (at, before), (later, after) in pairs)
        found[name] = slope * (len(values) - 1)
    return found


@dataclass(frozen=True, slots=True)
class Steep:
    """Something that grows.

    Attributes:
        name: what.
        grown: by how much, along the line.
        values: in the first sample, in the middle one, and in the last.
    """

    name: str
    grown: float
    values: tuple[float, float, float]


def _spread(values: Sequence[float]) -> float:
    """By how much neighbours differ, mostly: the size of what comes and goes."""
    return 2 * median(abs(after - before) for before, after in itertools.pairwise(values))


def steep(samples: Sequence[Sizes]) -> list[Steep]:
    """What grows by more than what it holds varies anyway."""
    found = []
    for name, grown in slopes(samples).items():
        values = [sample.get(name, 0.0) for sample in samples]
        # One more after every third round is a leak, unless what is there varies by so much.
        allowed = max(len(samples) / 3, _spread(values))
        if name in ALLOWED:
            allowed = ALLOWED[name]
        if grown > allowed:
            found.append(Steep(name, grown, (values[0], values[len(values) // 2], values[-1])))
    return found


# --- the churn


class Churn:
    """One router, one agent, and all that is done to them."""

    def __init__(self, cluster: LocalCluster, router: AsyncRouter, agent: AsyncPodAgent) -> None:
        self.cluster = cluster
        self.router = router
        self.agent = agent
        self.random = Random(7)
        self.failed: Counter[str] = Counter()
        self._users = itertools.count()
        self._pods = itertools.count(10)
        self._claimed: deque[str] = deque()
        self._rounds = 0

    async def _try(self, work: Any) -> None:
        try:
            await work
        except (SfrouteError, TimeoutError) as error:
            self.failed[type(error).__name__] += 1

    def _uids(self, count: int) -> list[str]:
        return [f"u{next(self._users)}" for _ in range(count)]

    async def round(self) -> None:
        """All of it once."""
        self._rounds += 1
        await self._pods_come_and_go()
        await self._users_come_once()
        await self._claims_come_and_go()
        # One after the other, so that each finds the router as it is in health.
        troubles = (
            self._connections_are_killed,
            self._a_server_pauses,
            self._the_store_forgets,
            self._a_server_moves,
        )
        await asyncio.gather(troubles[self._rounds % len(troubles)](), self._users_come_once())
        await asyncio.to_thread(self.cluster.wait_healthy)
        # Until what has a deadline has met it, and who was moved has been told.
        await asyncio.sleep(CALM_SECONDS + CONFIG.retry.deadline / 3)

    async def _users_come_once(self) -> None:
        router, uids = self.router, self._uids(ROUND_USERS)
        calls: list[Any] = []
        for number, uid in enumerate(uids):
            link = (NAMESPACE, uid, "chat")
            calls += [
                router.get_linked_pod(*link),
                router.route(*link, exclude=[3] if number % 3 else []),
                router.set_linked_pod(*link, 2, 1 if number % 2 else -1),
                router.get_link_service(NAMESPACE, uid),
                router.remove_linked_pod(*link),
            ]
            if number % 10 == 0:
                # A service that few ask for.
                service = f"s{self.random.randrange(40)}"
                calls.append(router.route(NAMESPACE, uid, service))
            # Who gives up.
            calls.append(asyncio.wait_for(router.get_linked_pod(*link, fresh=True), 0.001))
        await asyncio.gather(*map(self._try, calls))
        with suppress(SfrouteError):
            await router.batch_get_linked_pod(NAMESPACE, uids, "chat")

    async def _pods_come_and_go(self) -> None:
        # Ever new ids, as of pods that are named by something that counts.
        pod = next(self._pods)
        for status in ("Running", "Draining", "Stopped"):
            await self._try(self.router.set_service_state(NAMESPACE, "chat", pod, status))
            await self._try(self.router.get_pods(NAMESPACE, "chat", fresh=True))
        old = pod - 3
        # The primary may be away just now: then the id stays a while longer.
        with suppress(RedisError, OSError, LocalClusterError):
            key = f"sf:{{{NAMESPACE}:state:chat}}"
            node = await asyncio.to_thread(self.cluster.primary_of, key)
            await asyncio.to_thread(self.cluster.execute, node, "HDEL", key, old)

    async def _claims_come_and_go(self) -> None:
        for uid in self._uids(CLAIMS):
            await self._try(self.agent.accept(uid))
            self._claimed.append(uid)
        # Some are moved by others, some removed, and the rest is released.
        mine, self._claimed = list(self._claimed), deque()
        for uid in mine[: CLAIMS // 4]:
            await self._try(self.router.set_linked_pod(NAMESPACE, uid, "chat", 2))
        for uid in mine[CLAIMS // 4 : CLAIMS // 2]:
            await self._try(self.router.remove_linked_pod(NAMESPACE, uid, "chat"))
        await asyncio.sleep(0.1)
        for uid in mine:
            if self.agent.claim_of(uid) is None:
                continue  # lost
            try:
                await self.agent.release(uid)
            except SfrouteError:
                self._claimed.append(uid)
        for uid in self._uids(5):
            with suppress(SfrouteError):
                async with self.agent.session(uid):
                    await asyncio.sleep(0)

    # Troubles

    async def _on_all(self, *words: str | int) -> None:
        for node in self.cluster.nodes:
            await asyncio.to_thread(node.commands, words)

    async def _connections_are_killed(self) -> None:
        for _ in range(3):
            await self._on_all("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.05)

    async def _a_server_pauses(self) -> None:
        node = self.random.choice(self.cluster.nodes)
        await asyncio.to_thread(self.cluster.pause, node)
        await asyncio.sleep(0.7)
        await asyncio.to_thread(self.cluster.resume, node)

    async def _the_store_forgets(self) -> None:
        await self._on_all("FLUSHALL")
        await self._on_all("SCRIPT", "FLUSH")

    async def _a_server_moves(self) -> None:
        """It comes back empty, and elsewhere."""
        node = self.random.choice(self.cluster.nodes)
        await asyncio.to_thread(lambda: self.cluster.restart(node, new_port=True))


async def churn(rounds: int | None, seconds: float) -> tuple[list[Sizes], Counter[str]]:
    """Go on for so many rounds or so long; the sizes after each."""
    # Nobody is promoted, so a server that is paused or restarted keeps its slots.
    async with (
        LocalCluster(3, 0, node_timeout_ms=15_000) as cluster,
        AsyncRouter.from_url(cluster.url, config=CONFIG) as router,
        AsyncPodAgent(
            router, NAMESPACE, "chat", 1, heartbeat=0.3, lease=6.0, sigterm=False
        ) as agent,
    ):
        heard = asyncio.create_task(_hear(agent))
        work = Churn(cluster, router, agent)
        # As text, of one block each: they are not to be the slope that they show.
        samples: list[str] = []
        end = time.monotonic() + seconds
        while len(samples) < rounds if rounds is not None else time.monotonic() < end:
            await work.round()
            samples.append(json.dumps(measure(router, agent)))
        heard.cancel()
        await asyncio.gather(heard, return_exceptions=True)
    return [json.loads(sample) for sample in samples], work.failed


async def _hear(agent: AsyncPodAgent) -> None:
    async for _ in agent.events():
        pass


def main() -> int:
    """Churn, and say what has a slope; 1 if something has."""
    parser = argparse.ArgumentParser(prog="python -m tests.field.churn", description=__doc__)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--all", action="store_true", help="write the last sizes of everything")
    arguments = parser.parse_args()
    # The store goes and comes back all the time.
    logging.getLogger("sfroute").setLevel(logging.ERROR)
    began = time.monotonic()
    samples, failed = asyncio.run(churn(arguments.rounds, arguments.minutes * 60))
    seconds = time.monotonic() - began
    if len(samples) < 2 * WARM_UP:
        print(f"{len(samples)} rounds are too few: at least {2 * WARM_UP}")
        return 1
    looked_at = samples[WARM_UP:]
    if arguments.all:
        for name, grown in slopes(looked_at).items():
            print(f"{looked_at[-1].get(name, 0):10.1f} {grown:+10.2f}  {name}")
    found = steep(looked_at)
    for each in found:
        values = ", ".join(f"{value:.1f}" for value in each.values)
        print(f"GROWS {each.name}: {values} ({each.grown:+.1f})")
    last = looked_at[-1]
    told = ", ".join(f"{count:,} {name}" for name, count in failed.most_common())
    print(
        f"{len(samples)} rounds in {seconds:.0f} s; {len(last)} sizes, {len(found)} of them grow; "
        f"{last['megabytes']:.1f} MB ({slopes(looked_at)['megabytes']:+.2f}), "
        f"{last['blocks']:,.0f} blocks ({slopes(looked_at)['blocks']:+,.0f}); refused calls: {told or 'none'}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
