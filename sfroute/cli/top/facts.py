"""Gathers what ``top`` shows. Two looks at each primary make a rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..._fronts.router import AsyncRouter
from ...errors import SfrouteError
from ...telemetry import PodsSeen
from ...types import Pod
from ..keyspace import count_links
from ..nodes import Node, code_of, open_store
from ..pods import pods_in_numbers

__all__ = ["Counters", "Frame", "LinkCount", "NodeRates", "Watcher", "rates"]


_AGAIN: Final = 1.0
"""Seconds until links that could not be counted are counted again; twice as long each time, up to the usual pause."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What a primary has counted since it started, and what it has now.

    Attributes:
        at: when it was asked (monotonic seconds).
        took: seconds until it had answered.
        look_ups: GETs that it has executed.
        writes: scripts that it has executed.
        hits: keys read that were there.
        misses: keys read that were not.
        lanes: connections on which it pushes what changes; None if it does not tell.
        keys: keys it has.
        memory: bytes it uses.
        trouble: why it said nothing; None if it did.
    """

    at: float = 0.0
    took: float = 0.0
    look_ups: int = 0
    writes: int = 0
    hits: int = 0
    misses: int = 0
    lanes: int | None = None
    keys: int = 0
    memory: int = 0
    trouble: str | None = None

    @classmethod
    def parse(cls, at: float, took: float, info: Mapping[str, Any]) -> Counters:
        """From the reply to INFO with its command statistics."""

        def calls(*commands: str) -> int:
            found = (info.get(f"cmdstat_{command}") for command in commands)
            return sum(int(entry["calls"]) for entry in found if isinstance(entry, dict))

        databases = (info.get(f"db{number}") for number in range(16))
        return cls(
            at=at,
            took=took,
            look_ups=calls("get"),
            writes=calls("evalsha", "eval"),
            hits=int(info.get("keyspace_hits", 0)),
            misses=int(info.get("keyspace_misses", 0)),
            lanes=int(info["tracking_clients"]) if "tracking_clients" in info else None,
            keys=sum(int(entry["keys"]) for entry in databases if isinstance(entry, dict)),
            memory=int(info.get("used_memory", 0)),
        )


@dataclass(frozen=True, slots=True)
class NodeRates:
    """One primary between two looks.

    Attributes:
        look_ups: GETs per second; None at the first look.
        writes: scripts per second; None at the first look.
        hit_ratio: share of the keys read that were there; None if none was read.
        reads: how many keys were read.
        now: the later look.
    """

    address: str
    look_ups: float | None
    writes: float | None
    hit_ratio: float | None
    reads: int
    now: Counters

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "address": self.address,
            "look_ups_per_second": _rounded(self.look_ups),
            "scripts_per_second": _rounded(self.writes),
            "hit_ratio": _rounded(self.hit_ratio),
            "lanes": self.now.lanes,
            "keys": self.now.keys,
            "memory_bytes": self.now.memory,
            "answered_in_ms": _rounded(self.now.took * 1000),
            "trouble": self.now.trouble,
        }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)


def rates(address: str, before: Counters | None, now: Counters) -> NodeRates:
    """Differences over the time between. A counter that has shrunk began at zero again: the server restarted."""
    if before is None or before.trouble or now.trouble or now.look_ups < before.look_ups:
        return NodeRates(address, None, None, None, 0, now)
    seconds = max(now.at - before.at, 1e-9)
    hits, misses = now.hits - before.hits, now.misses - before.misses
    return NodeRates(
        address,
        (now.look_ups - before.look_ups) / seconds,
        (now.writes - before.writes) / seconds,
        hits / (hits + misses) if hits + misses > 0 else None,
        hits + misses,
        now,
    )


@dataclass(frozen=True, slots=True)
class LinkCount:
    """Pod -> its links, and when the count ended (monotonic seconds)."""

    by_pod: Mapping[int, int]
    at: float


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything at one instant.

    Attributes:
        pods: None if they could not be read.
        links: None until they have been counted once.
        link_trouble: why the last count of the links failed; None if it did not.
        seen: the pods in numbers, as metrics have them; None if none has reported.
        trouble: why the pods or the primaries are not known; None if they are.
    """

    pods: Mapping[int, Pod] | None = field(default_factory=dict)
    nodes: Sequence[NodeRates] = ()
    links: LinkCount | None = None
    link_trouble: str | None = None
    trouble: str | None = None
    seen: PodsSeen | None = None


class Watcher:
    """Looks at the store again and again. It counts links in between, for a tenth of the time at most.

    Attributes:
        links: the last count; None until there was one.
        link_trouble: why the last attempt failed; None if it did not.
    """

    def __init__(self, url: str, namespace: str, service: str, links_every: float) -> None:
        self._url = url
        self._namespace = namespace
        self._service = service
        self._links_every = links_every
        self._before: dict[str, Counters] = {}
        self.links: LinkCount | None = None
        self.link_trouble: str | None = None

    async def look(self, router: AsyncRouter) -> Frame:
        """The present facts."""
        pods: Mapping[int, Pod] | None = None
        trouble: str | None = None
        try:
            pods = await router.get_pods(self._namespace, self._service, fresh=True)
        except SfrouteError as error:
            trouble = str(error)
        try:
            nodes = await self._look_at_nodes()
        except SfrouteError as error:
            nodes, trouble = [], str(error)
        seen = pods_in_numbers(router, self._namespace, self._service) if pods else None
        return Frame(pods, nodes, self.links, self.link_trouble, trouble, seen)

    async def _look_at_nodes(self) -> list[NodeRates]:
        # Opened anew each time: there may have been a failover.
        async with open_store(self._url) as store:
            found = []
            for node, answer in await store.of_each(_ask, primaries=True):
                counters = (
                    Counters(trouble=code_of(answer))
                    if isinstance(answer, BaseException)
                    else answer
                )
                address = str(node.address)
                found.append(rates(address, self._before.get(address), counters))
                self._before[address] = counters
            return found

    async def count_links(self) -> None:
        """Count the links again and again, at once the first time. After a failure it does not wait as long."""
        if self.links is not None:
            await asyncio.sleep(self._links_every)
        again = _AGAIN
        while True:
            began = time.monotonic()
            await self.count_links_once()
            pause = max(self._links_every, 10 * (time.monotonic() - began))
            if self.link_trouble is None:
                again = _AGAIN
            else:
                pause, again = min(pause, again), 2 * again
            await asyncio.sleep(pause)

    async def count_links_once(self) -> None:
        """Count the links once. The next frame shows what goes wrong."""
        try:
            async with open_store(self._url) as store:
                by_pod = await count_links(store, self._namespace, self._service, _nothing)
            self.links, self.link_trouble = LinkCount(by_pod, time.monotonic()), None
        except SfrouteError as error:
            self.link_trouble = str(error)


def _nothing(_count: int) -> None:
    """The screen itself is the progress."""


async def _ask(node: Node) -> Counters:
    began = time.monotonic()
    info = await node.ask("INFO")
    took = time.monotonic() - began
    statistics = await node.ask("INFO", "commandstats")
    return Counters.parse(began, took, {**info, **statistics})
