"""One gateway process: a router and its callers, each of which makes one call after the other and notes it down.

``python -m tests.faults.gateway`` with a ``Plan`` as JSON in its first argument. It says ``ready`` once its router is
open, ends its callers when its standard input ends, and then says what its router counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.maint_notifications import MaintNotificationsConfig

from sfroute import PERSIST_FOREVER, AsyncRouter, RouterConfig, SfrouteError

from .history import Call, Result, Writer

__all__ = ["NAMESPACE", "SERVICE", "Plan", "end_of"]

NAMESPACE = "faults"
SERVICE = "chat"
DEMOTED_SECONDS = 3600
"""Temporary links outlive the run: what expires when is for other tests."""

MIX = (
    ("cached", 40),
    ("fresh", 18),
    ("set", 10),
    ("try", 8),
    ("absent", 8),
    ("move", 8),
    ("remove", 4),
    ("remove_id", 4),
)
_KINDS = [kind for kind, _ in MIX]
_WEIGHTS = [weight for _, weight in MIX]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one gateway process does.

    Attributes:
        nodes: start nodes, ``[host, port]`` each.
        remap: ``"host:port"`` of a node -> ``[host, port]`` of the proxy before it.
        history: the file for its calls.
        seed: of everything random here.
        number: of this gateway, from 0.
        gateways: how many there are.
        workers: how many workers it runs; each has one caller for each group of uids.
        groups: uids, by the part of the cluster they live in.
        pause: mean seconds between two calls of a caller.
        min_replica_acks: see ``RouterConfig``.
    """

    nodes: list[tuple[str, int]]
    remap: dict[str, tuple[str, int]]
    history: str
    seed: int
    number: int
    gateways: int
    workers: int
    groups: list[list[str]]
    pause: float
    min_replica_acks: int


class _Caller:
    """Makes one call after the other."""

    def __init__(
        self, router: AsyncRouter, uids: list[str], number: int, callers: int, plan: Plan
    ) -> None:
        self._router = router
        self._uids = uids
        self._name = f"{plan.number}.{number}"
        self._random = random.Random(f"{plan.seed} {self._name}")
        self._pause = plan.pause
        # Pods are numbered so that no two calls ever link the same one.
        self._next_pod = plan.number * callers + number
        self._stride = plan.gateways * callers
        self._last_seen: dict[str, int] = {}

    async def run(self, writer: Writer, stop: asyncio.Event) -> None:
        """Until ``stop``, then to the end of the call under way."""
        while not stop.is_set():
            call = self._plan_call()
            await self._make(call)
            writer.add(call)
            await asyncio.sleep(self._random.expovariate(1 / self._pause))

    def _plan_call(self) -> Call:
        # Some uids are asked for more often than others, so that calls meet.
        rng = self._random
        uid = rng.choice(self._uids[:4] if rng.random() < 0.4 else self._uids)
        call = Call(uid, rng.choices(_KINDS, _WEIGHTS)[0], 0.0, 0.0, caller=self._name)
        if call.kind in {"move", "remove_id"}:
            call.expected = self._last_seen.get(uid, 0)
        if call.kind in {"set", "try", "absent", "move"}:
            call.pod = self._next_pod
            self._next_pod += self._stride
        if call.kind in {"set", "absent", "remove", "remove_id"}:
            call.persistent = rng.random() < 0.8
        return call

    async def _make(self, call: Call) -> None:
        call.start = time.monotonic()
        try:
            call.result = await self._send(call)
        except SfrouteError as error:
            call.outcome = type(error).__name__
        except Exception as error:  # noqa: BLE001 - see below
            # None may get here; the harness counts it as the fault of the library that it is.
            call.outcome = f"unexpected {type(error).__name__}"
            traceback.print_exc()
        call.end = time.monotonic()
        owner = call.result[1] if isinstance(call.result, list) else call.result
        if isinstance(owner, int) and not isinstance(owner, bool):
            self._last_seen[call.uid] = owner
        if call.kind == "set" and call.ok:
            self._last_seen[call.uid] = call.pod

    async def _send(self, call: Call) -> Result:
        router, link = self._router, (NAMESPACE, call.uid, SERVICE)
        kind = PERSIST_FOREVER if call.persistent else DEMOTED_SECONDS
        match call.kind:
            case "cached":
                return await self._read(call)
            case "fresh":
                return await router.get_linked_pod(*link, fresh=True)
            case "set":
                return await router.set_linked_pod(*link, call.pod, kind)
            case "try":
                return list(await router.try_set_linked_pod(*link, call.pod))
            case "absent":
                return await router.set_linked_pod_if_absent(*link, call.pod, kind)
            case "move":
                return await router.move_linked_pod(*link, call.expected, call.pod)
            case "remove":
                return await router.remove_linked_pod(*link, kind)
        return await router.remove_linked_pod_with_id(
            *link, pod=call.expected, persist_seconds=kind
        )

    async def _read(self, call: Call) -> int | None:
        # What get_linked_pod does; it does not tell which answers are old, as the links of route() do.
        key = (NAMESPACE, call.uid, SERVICE)
        reader = self._router._inside.reader
        entry = reader.cached("get_linked_pod", key, fresh=False)
        if entry is None:
            flight = await reader.past_cache("get_linked_pod", key, fresh=False)
            entry, call.stale = flight.entry, flight.stale
        return entry.pod if entry is not None else None


def _router(plan: Plan, config: RouterConfig, stack: AsyncExitStack) -> AsyncRouter:
    if not plan.remap:
        hosts = ",".join(f"{host}:{port}" for host, port in plan.nodes)
        return AsyncRouter.from_url(f"redis+cluster://{hosts}", config=config)
    remap = plan.remap

    def proxied(node: tuple[str, int]) -> tuple[str, int]:
        return tuple(remap.get(f"{node[0]}:{node[1]}", node))  # type: ignore[return-value]

    client = RedisCluster(
        startup_nodes=[ClusterNode(*proxied((host, port))) for host, port in plan.nodes],
        address_remap=proxied,
        protocol=3,
        socket_timeout=config.retry.connect_timeout,
        socket_connect_timeout=config.retry.connect_timeout,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    stack.push_async_callback(client.aclose)
    return AsyncRouter(client, config=config)


async def end_of(stream: TextIO) -> None:
    """Wait for the end of a stream, standard input: the harness wants to stop, or is gone."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stream)
    await reader.read()


async def _main(plan: Plan, file: TextIO, say: Callable[[str], None]) -> None:
    config = RouterConfig(min_replica_acks=plan.min_replica_acks)
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(_router(plan, config, stack))
        writer = Writer(file)
        callers = plan.workers * len(plan.groups)
        running: list[Awaitable[None]] = [
            asyncio.create_task(
                _Caller(router, uids, worker * len(plan.groups) + group, callers, plan).run(
                    writer, stop
                )
            )
            for worker in range(plan.workers)
            for group, uids in enumerate(plan.groups)
        ]
        say("ready")
        await end_of(sys.stdin)
        stop.set()
        await asyncio.gather(*running)
        stats = router.stats()
        say(json.dumps({"retries": stats.retries, "stale": stats.cache.stale}))


def main() -> None:
    """Run the plan in the first argument."""

    def say(line: str) -> None:
        print(line, flush=True)

    plan = Plan(**json.loads(sys.argv[1]))
    with Path(plan.history).open("w") as file:
        asyncio.run(_main(plan, file, say))


if __name__ == "__main__":
    main()
