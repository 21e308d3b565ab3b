"""One pod process: an agent with a session for each user, and an observer of what ``owns`` says of them.

``python -m tests.faults.owners.pod`` with a ``PodPlan`` as JSON in its first argument. It says ``ready`` once its agent
runs and its socket listens, and ends in order when its standard input ends. Gateways and the harness send it requests,
one JSON line each, and get one line back:

    ["visit", uid, seconds]  the user does something, for which a session begins if there is none: ["mine", fence],
                             ["other", pod], ["unsure"] (ask again), or ["error", name]
    ["leave", uid, grace]    the user's sessions end: ["left"], or ["none"]
    ["twice", uid]           a second session of the user begins and ends: ["done"]
    ["claims"]               {uid: fence} of its sessions, and its life
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    AsyncSession,
    ConfigError,
    Lost,
    RouterConfig,
    SfrouteError,
)

from ..gateway import end_of
from .record import Ended, Entered, Left, Sample, Told, Writer, Written, now
from .third_store import ThirdStore

__all__ = ["NAMESPACE", "SERVICE", "PodPlan"]

NAMESPACE = "faults"
SERVICE = "owners"
LATE_SECONDS = 0.3
"""After a loss the old sessions end so much later: a late release must not touch the new owner's link."""


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What one pod process does.

    Attributes:
        nodes: start nodes, ``[host, port]`` each.
        remap: ``"host:port"`` of a node -> where it can be reached from here.
        folder: of the third store.
        socket: where it listens.
        record: the file for what it observes.
        pod: its id.
        life: a name for this process, for the record alone.
        heartbeat, lease: of its agent, in seconds.
        sample_every: seconds between two samples of ``owns``.
        min_replica_acks: see ``RouterConfig``.
    """

    nodes: list[tuple[str, int]]
    remap: dict[str, tuple[str, int]]
    folder: str
    socket: str
    record: str
    pod: int
    life: str
    heartbeat: float
    lease: float
    sample_every: float
    min_replica_acks: int


class _Observer(threading.Thread):
    """Asks ``owns`` again and again, in a thread of its own, as a worker of the application would.

    ``claims`` is uid -> fence. A uid leaves it before its session is entered anew: what ``owns`` said while a claim was
    in it, before and after, was said of that claim.
    """

    def __init__(self, agent: AsyncPodAgent, plan: PodPlan, writer: Writer) -> None:
        super().__init__(name="observer", daemon=True)
        self.claims: dict[str, int] = {}
        self._agent = agent
        self._plan = plan
        self._writer = writer
        self._over = threading.Event()

    def run(self) -> None:
        """Until ``stop``."""
        mine: set[tuple[str, int]] = set()
        while not self._over.wait(self._plan.sample_every):
            start = now()
            true = set(self._owned())
            end = now()
            sample = Sample(
                self._plan.pod, self._plan.life, start, end, [*(true - mine)], [*(mine - true)]
            )
            self._writer.add(sample)
            mine = true

    def _owned(self) -> list[tuple[str, int]]:
        claims, owns = self.claims, self._agent.owns
        return [
            (uid, fence)
            for uid, fence in list(claims.items())
            if owns(uid) and claims.get(uid) == fence
        ]

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self.join()


class _Pod:
    """The application: who is here, and what is done for them."""

    def __init__(
        self, agent: AsyncPodAgent, plan: PodPlan, writer: Writer, observer: _Observer
    ) -> None:
        self._agent = agent
        self._plan = plan
        self._writer = writer
        self._claims = observer.claims
        self._sessions: dict[str, AsyncSession] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._third = ThirdStore(Path(plan.folder))
        self._ending: set[asyncio.Task[None]] = set()
        # Losses that were told before the session that they end had returned.
        self._lost_early: set[tuple[str, int]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One gateway's requests."""
        # Cancelled when the process ends.
        with suppress(ConnectionError, asyncio.CancelledError):
            async for line in reader:
                writer.write(json.dumps(await self._answer(json.loads(line))).encode() + b"\n")
        writer.close()

    async def _answer(self, request: list[Any]) -> object:
        match request:
            case ["claims"]:
                return {"life": self._plan.life, "claims": dict(self._claims)}
            case [what, str(uid), *more]:
                async with self._locks.setdefault(uid, asyncio.Lock()):
                    try:
                        return await self._do(what, uid, *more)
                    except ConfigError:
                        return ["error", "stopped"]
                    except SfrouteError as error:
                        return ["error", type(error).__name__]
        raise AssertionError(request)

    async def _do(self, what: str, uid: str, *more: Any) -> object:
        if what == "visit":
            return await self._visit(uid, *more)
        if uid not in self._sessions:
            return ["none"]
        if what == "twice":
            async with self._agent.session(uid, grace=1):
                pass
            return ["done"]
        await self._leave(uid, *more)
        return ["left"]

    async def _visit(self, uid: str, grace: int) -> object:
        fence = self._claims.get(uid)
        if fence is None:
            claim = await self._enter(uid, grace)
            if not claim:
                return ["other", claim.pod]
            fence = claim.fence
            if (uid, fence) in self._lost_early:
                self._lost_early.discard((uid, fence))
                await self._sessions.pop(uid).__aexit__(None, None, None)
                return ["unsure"]
            self._claims[uid] = fence
        if not self._agent.owns(uid):
            return ["unsure"]
        start = now()
        number = await self._third.write(uid, fence)
        plan = self._plan
        self._writer.add(Written(uid, plan.pod, plan.life, fence, start, now(), number))
        return ["mine", fence]

    async def _enter(self, uid: str, grace: int) -> Any:
        session = self._agent.session(uid, grace=grace)
        start = now()
        claim = await session.__aenter__()
        plan = self._plan
        self._writer.add(
            Entered(uid, plan.pod, plan.life, start, now(), claim.fence, claim.how, claim.pod)
        )
        if claim:
            self._sessions[uid] = session
        return claim

    async def _leave(self, uid: str, grace: int) -> None:
        session = self._sessions.pop(uid)
        self._claims.pop(uid, None)
        start = now()
        await session.__aexit__(None, None, None)
        self._writer.add(Left(uid, self._plan.pod, self._plan.life, start, now(), grace))

    async def heed(self) -> None:
        """Note the agent's events, and end the sessions of who is lost."""
        plan = self._plan
        async for event in self._agent.events():
            at = now()
            if not isinstance(event, Lost):
                self._writer.add(Told(plan.pod, plan.life, at, type(event).__name__.lower()))
                continue
            fence = event.claim.fence
            self._writer.add(
                Told(plan.pod, plan.life, at, "lost", event.uid, fence, event.reason, event.owner)
            )
            if self._claims.get(event.uid) != fence:
                self._lost_early.add((event.uid, fence))
            else:
                del self._claims[event.uid]
                session = self._sessions.pop(event.uid)
                ending = asyncio.create_task(self._end_late(session))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    @staticmethod
    async def _end_late(session: AsyncSession) -> None:
        await asyncio.sleep(LATE_SECONDS)
        await session.__aexit__(None, None, None)

    async def close(self) -> None:
        """Close what is its own."""
        await self._third.close()


async def _main(plan: PodPlan) -> None:
    remap = plan.remap

    def reached(node: tuple[str, int]) -> tuple[str, int]:
        return tuple(remap.get(f"{node[0]}:{node[1]}", node))  # type: ignore[return-value]

    config = RouterConfig(min_replica_acks=plan.min_replica_acks, address_remap=reached)
    hosts = ",".join(":".join(map(str, reached((host, port)))) for host, port in plan.nodes)
    writer = Writer(plan.record)
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(
            AsyncRouter.from_url(f"redis+cluster://{hosts}", config=config)
        )
        agent = AsyncPodAgent(
            router,
            NAMESPACE,
            SERVICE,
            plan.pod,
            heartbeat=plan.heartbeat,
            lease=plan.lease,
            sigterm=False,
        )
        observer = _Observer(agent, plan, writer)
        pod = _Pod(agent, plan, writer, observer)
        stack.push_async_callback(pod.close)
        await stack.enter_async_context(agent)
        heeding = asyncio.create_task(pod.heed())
        observer.start()
        server = await asyncio.start_unix_server(pod.serve, plan.socket)
        print("ready", flush=True)
        await end_of(sys.stdin)
        server.close()
        await agent.stop()
        writer.add(Ended(plan.pod, plan.life, now()))
        observer.stop()
        await heeding


def main() -> None:
    """Run the plan in the first argument."""
    plan = PodPlan(**json.loads(sys.argv[1]))
    # Much of what the library warns of is what is done to it here.
    logging.basicConfig(filename=f"{plan.record}.log")
    asyncio.run(_main(plan))


if __name__ == "__main__":
    main()
