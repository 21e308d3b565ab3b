"""One gateway process: callers who route users, bring them to their pods, and note what they were told.

``python -m tests.faults.owners.gateway`` with a ``GatewayPlan`` as JSON in its first argument. It reads one command in
JSON from each line of its standard input, answers each with one line, and ends when that ends:

    ["fill"]             every user of this gateway has a session: how many have
    ["play", {...}]      callers go on by the ``Play`` of these fields until the next command
    ["rest"]             callers make no more calls
    ["evacuate", pod]    every link is moved off the pod: how many were
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sfroute import AsyncRouter, PlacementConfig, RouterConfig, SfrouteError

from .pod import NAMESPACE, SERVICE
from .record import Asked, Moved, Writer, now

__all__ = ["GatewayPlan", "Play", "pod_socket"]

PROPOSED_SECONDS: Final = 30
"""A gateway proposes a pod by a temporary link; the pod's claim makes it persistent."""
PATIENCE: Final = 1.0
"""Seconds for a pod's answer. A stopped pod answers late, which its next gateway does not wait for."""
TRIES: Final = 60


def pod_socket(folder: Path, pod: int) -> Path:
    """Where a pod's gateways reach it, whatever becomes of the network."""
    return folder / f"pod-{pod}.sock"


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """What one gateway process does.

    Attributes:
        nodes: start nodes, ``[host, port]`` each.
        remap: ``"host:port"`` of a node -> where it can be reached from here.
        folder: of the pods' sockets.
        record: the file for what it is told.
        users: how many there are, of all gateways together.
        pods: how many there are.
        number: of this gateway, from 0.
        gateways: how many there are.
        callers: how many callers it has.
        seed: of everything random here.
        min_replica_acks: see ``RouterConfig``.
    """

    nodes: list[tuple[str, int]]
    remap: dict[str, tuple[str, int]]
    folder: str
    record: str
    users: int
    pods: int
    number: int
    gateways: int
    callers: int
    seed: int
    min_replica_acks: int


@dataclass(frozen=True, slots=True)
class Play:
    """How callers behave: mean seconds between two calls of each, and shares of calls that do more than a visit.

    Attributes:
        pause: seconds.
        look: the link is looked up past the cache.
        leave: the user's session ends, with a grace of ``grace`` seconds.
        twice: a second session of the user begins and ends.
        exclude: the user is moved by ``route(exclude=...)``.
        move: the user is moved by ``set_linked_pod``.
        grace: seconds.
    """

    pause: float = 0.02
    look: float = 0.2
    leave: float = 0.0
    twice: float = 0.0
    exclude: float = 0.0
    move: float = 0.0
    grace: int = 1


class _Caller:
    """Makes one call after the other. What changes something it does to users of its own alone."""

    def __init__(self, router: AsyncRouter, plan: GatewayPlan, number: int, writer: Writer) -> None:
        self._router = router
        self._plan = plan
        self._writer = writer
        caller = plan.number * plan.callers + number
        self._random = random.Random(f"{plan.seed} {caller}")
        self.own = [f"user-{n}" for n in range(caller, plan.users, plan.gateways * plan.callers)]
        self._pods: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self.errors: Counter[str] = Counter()

    async def fill(self) -> int:
        """Bring every user of its own to a pod. Returns how many have one."""
        found = 0
        for uid in self.own:
            for _ in range(TRIES):
                if await self._visit(uid, Play().grace) is not None:
                    found += 1
                    break
                await asyncio.sleep(0.1)
        return found

    async def play(self, how: Play, stop: asyncio.Event) -> None:
        """Until ``stop``, then to the end of the call under way."""
        kinds = ("look", "leave", "twice", "exclude", "move")
        shares = [getattr(how, kind) for kind in kinds]
        while not stop.is_set():
            await asyncio.sleep(self._random.expovariate(1 / how.pause))
            kind = self._random.choices(("visit", *kinds), (1 - sum(shares), *shares))[0]
            if kind == "visit" or kind == "look":
                uid = f"user-{self._random.randrange(self._plan.users)}"
                await (self._look(uid) if kind == "look" else self._visit(uid, how.grace))
            else:
                await self._change(kind, self._random.choice(self.own), how.grace)

    async def _change(self, kind: str, uid: str, grace: int) -> None:
        pod = await self._visit(uid, grace)
        if pod is None:
            return
        if kind == "leave":
            await self._ask(pod, "leave", uid, grace)
        elif kind == "twice":
            await self._ask(pod, "twice", uid)
        else:
            await self._move(uid, pod, exclude=kind == "exclude")

    async def _move(self, uid: str, pod: int, *, exclude: bool) -> None:
        start = now()
        try:
            if exclude:
                link = await self._router.route(NAMESPACE, uid, SERVICE, exclude={pod})
                target = link.pod
            else:
                others = [other for other in range(self._plan.pods) if other != pod]
                target = self._random.choice(others)
                await self._router.set_linked_pod(NAMESPACE, uid, SERVICE, target)
        except SfrouteError as error:
            self.errors[type(error).__name__] += 1
            return
        if target != pod:
            how = "exclude" if exclude else "set"
            self._writer.add(Moved(uid, start, now(), how, pod, target))
        await self._visit(uid, Play().grace)

    async def _look(self, uid: str) -> None:
        await self._asked(uid, "look")

    async def _visit(self, uid: str, grace: int) -> int | None:
        """Route the user, and do something at the pod; once more if another one has the user. Returns the pod."""
        pod = await self._asked(uid, "route")
        for _ in range(2):
            if pod is None:
                return None
            answer = await self._ask(pod, "visit", uid, grace)
            if answer[0] == "mine":
                return pod
            if answer[0] != "other":
                return None
            pod = answer[1]
        return None

    async def _asked(self, uid: str, how: str) -> int | None:
        answer = Asked(uid, now(), 0.0, how, None)
        try:
            if how == "route":
                link = await self._router.route(NAMESPACE, uid, SERVICE)
                answer.pod, answer.stale = link.pod, link.stale
            else:
                answer.pod = await self._router.get_linked_pod(NAMESPACE, uid, SERVICE, fresh=True)
        except SfrouteError as error:
            answer.outcome = type(error).__name__
            self.errors[answer.outcome] += 1
        answer.end = now()
        self._writer.add(answer)
        return answer.pod

    async def _ask(self, pod: int, *request: object) -> list[Any]:
        try:
            async with asyncio.timeout(PATIENCE):
                if pod not in self._pods:
                    path = pod_socket(Path(self._plan.folder), pod)
                    self._pods[pod] = await asyncio.open_unix_connection(path)
                reader, writer = self._pods[pod]
                writer.write(json.dumps(request).encode() + b"\n")
                line = await reader.readline()
        except (OSError, TimeoutError):
            line = b""
        answer = json.loads(line) if line else ["gone"]
        if answer[0] in {"gone", "error"} and pod in self._pods:
            self._pods.pop(pod)[1].close()
        assert isinstance(answer, list)
        return answer


class _Gateway:
    """The callers of this process."""

    def __init__(self, router: AsyncRouter, plan: GatewayPlan) -> None:
        self._router = router
        self._plan = plan
        self._writer = Writer(plan.record)
        self._callers = [
            _Caller(router, plan, number, self._writer) for number in range(plan.callers)
        ]
        self._playing: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()

    async def obey(self, command: list[Any]) -> object:
        """Do it; what to answer."""
        match command:
            case ["fill"]:
                return sum(await asyncio.gather(*(caller.fill() for caller in self._callers)))
            case ["play", dict(fields)]:
                await self._rest()
                how, self._stop = replace(Play(), **fields), asyncio.Event()
                self._playing = [
                    asyncio.create_task(caller.play(how, self._stop)) for caller in self._callers
                ]
            case ["rest"]:
                await self._rest()
                return sum((caller.errors for caller in self._callers), Counter())
            case ["evacuate", int(pod)]:
                return await self._evacuate(pod)
        return None

    async def _rest(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._playing)
        self._playing = []

    async def _evacuate(self, pod: int) -> int:
        """What was claimed there when it began is moved by when it ends."""
        reader, writer = await asyncio.open_unix_connection(
            pod_socket(Path(self._plan.folder), pod), limit=2**24
        )
        writer.write(b'["claims"]\n')
        claims = json.loads(await reader.readline())["claims"]
        writer.close()
        over = asyncio.Event()
        watching = asyncio.create_task(self._watch_moves(list(claims), pod, over))
        moved = 0
        async for progress in self._router.evacuate(NAMESPACE, SERVICE, pod):
            moved = progress.moved
        over.set()
        await watching
        return moved

    async def _watch_moves(self, uids: list[str], pod: int, over: asyncio.Event) -> None:
        """Note when each was moved: when the question was asked by which that was first seen."""
        start, last = now(), False
        while uids and not last:
            last = over.is_set()
            staying: list[str] = []
            # A few at a time: an answer for thousands takes longer than what is measured.
            for some in (uids[n : n + 100] for n in range(0, len(uids), 100)):
                asked = now()
                links = await self._router.batch_get_linked_pod(
                    NAMESPACE, some, SERVICE, fresh=True
                )
                here = links.get(pod, [])
                staying += here
                for uid in set(some).difference(here):
                    self._writer.add(Moved(uid, start, asked, "evacuate", pod, -1))
            uids = staying
            await asyncio.sleep(0.01)


async def _main(plan: GatewayPlan) -> None:
    remap = plan.remap

    def reached(node: tuple[str, int]) -> tuple[str, int]:
        return tuple(remap.get(f"{node[0]}:{node[1]}", node))  # type: ignore[return-value]

    config = RouterConfig(
        placement=PlacementConfig(persist_seconds=PROPOSED_SECONDS),
        min_replica_acks=plan.min_replica_acks,
        address_remap=reached,
    )
    hosts = ",".join(":".join(map(str, reached((host, port)))) for host, port in plan.nodes)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    async with AsyncRouter.from_url(f"redis+cluster://{hosts}", config=config) as router:
        gateway = _Gateway(router, plan)
        print("null", flush=True)
        async for line in commands:
            print(json.dumps(await gateway.obey(json.loads(line))), flush=True)
        await gateway.obey(["rest"])


def main() -> None:
    """Run the plan in the first argument."""
    plan = GatewayPlan(**json.loads(sys.argv[1]))
    # Much of what the library warns of is what is done to it here.
    logging.basicConfig(filename=f"{plan.record}.log")
    asyncio.run(_main(plan))


if __name__ == "__main__":
    main()
