"""``python -m tests.field.reach``: eight gateways as processes, ten pods, and pods that not everybody can reach.

    python -m tests.field.reach               # prints the table of docs/explanation/placement.md, in about a minute
    python -m tests.field.reach --no-reports  # only what it is like if nobody reports failures
    python -m tests.field.reach --room        # only the rows on room

The pods are sockets of this process, with an agent each. A gateway places new users at a steady rate, connects to the
pod of each, and does what docs/how-to/gateway.md says if that fails. What is counted are users, so a busy machine makes
no difference.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any, Final

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    NoRoom,
    NoRoutablePod,
    PlacementConfig,
    RouterConfig,
)
from sfroute.embedded import LocalCluster

GATEWAYS: Final = 8
PODS: Final = 10
BAD: Final = 3
"""The pod that nobody can reach, though its heart beats."""
LIMIT: Final = 100
CONNECT_TIMEOUT: Final = 0.5
NAMESPACE: Final = "reach"


# --- a gateway, in a process of its own


class Gateway:
    """Routes users of one service, and remembers what happened to each."""

    def __init__(
        self, router: AsyncRouter, service: str, *, reports: bool, blind: list[int]
    ) -> None:
        self._router = router
        self._service = service
        self._reports = reports
        self._blind = blind
        self.first_at_bad: list[tuple[float, bool]] = []
        self.tries: Counter[int] = Counter()
        self.moves: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()

    async def serve(self, uid: str, tries: int = PODS) -> None:
        """One request: to the user's pod, or to another one if nobody listens there, or if it is full."""
        excluded: set[int] = set()
        for number in range(1, tries + 1):
            try:
                link = await self._router.route(NAMESPACE, uid, self._service, exclude=excluded)
            except NoRoutablePod:
                self.outcomes["no pod"] += 1
                return
            if number == 1 and link.source == "placed":
                self.first_at_bad.append((time.monotonic(), link.pod == BAD))
            self.moves[uid] += link.source == "moved"
            said = await self._ask(link.pod, link.address, uid)
            if said == "timeout" and self._reports:
                self._router.report_failure(NAMESPACE, self._service, link.pod)
            if said not in {"refused", "full"}:
                self.outcomes[said] += 1
                self.tries[number] += 1
                return
            if said == "refused" and self._reports:
                self._router.report_failure(NAMESPACE, self._service, link.pod)
            excluded = {*excluded, link.pod} if said == "full" else {link.pod}
        self.outcomes["given up"] += 1

    async def _ask(self, pod: int, address: str | None, uid: str) -> str:
        """What comes of a connection to the pod."""
        host, _, port = (address or "").rpartition(":")
        if pod in self._blind:
            return "refused"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT if pod == BAD else 20):
                reader, writer = await asyncio.open_connection(host, int(port))
        except TimeoutError:
            return "timeout"
        except ConnectionRefusedError:
            return "refused"
        with closing(writer):
            writer.write(f"{uid}\n".encode())
            return (await reader.readline()).decode().strip()


async def one_scene(router: AsyncRouter, told: dict[str, Any]) -> dict[str, Any]:
    gateway = Gateway(router, told["service"], reports=told["reports"], blind=told["blind"])
    chance, began = random.Random(told["seed"]), time.monotonic()
    under_way: set[asyncio.Task[None]] = set()
    for number in range(told["users"]):
        await asyncio.sleep(max(0.0, began + number / told["rate"] - time.monotonic()))
        uid = f"{told['seed']}-{number}"
        if told["population"]:
            uid = f"u{chance.randrange(told['population'])}"
        tries = 2 if told["population"] else PODS
        under_way.add(asyncio.create_task(gateway.serve(uid, tries)))
    await asyncio.gather(*under_way)
    later = [bad for at, bad in gateway.first_at_bad if at - began > 1.0]
    return {
        "new": len(gateway.first_at_bad),
        "new at bad": sum(bad for _, bad in gateway.first_at_bad),
        "later": len(later),
        "later at bad": sum(later),
        "tries": gateway.tries,
        "moves": gateway.moves,
        "outcomes": gateway.outcomes,
    }


async def be_gateway(url: str) -> None:
    loop = asyncio.get_running_loop()
    config = RouterConfig(placement=PlacementConfig(settle=5.0))
    async with AsyncRouter.from_url(url, config=config) as router:
        print("{}", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await one_scene(router, json.loads(line))), flush=True)


# --- the pods, and the scenes


class Pod:
    """Takes users if there is room."""

    def __init__(
        self, router: AsyncRouter, service: str, pod: int, kind: str, limit: int | None
    ) -> None:
        self._router, self._service, self._pod = router, service, pod
        self._kind, self._limit = kind, limit
        self.users: set[str] = set()
        self.most = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as exits:
            if self._kind == "alive":
                server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1000)
                await exits.enter_async_context(server)
                port = server.sockets[0].getsockname()[1]
            else:
                port = self._unreachable(exits)
            self._agent = AsyncPodAgent(
                self._router,
                NAMESPACE,
                self._service,
                self._pod,
                heartbeat=0.5,
                lease=5.0,
                address=f"127.0.0.1:{port}",
                load=lambda: float(len(self.users)),
                max_claims=self._limit,
                sigterm=False,
            )
            await exits.enter_async_context(self._agent)
            yield

    def _unreachable(self, exits: AsyncExitStack) -> int:
        listener = exits.enter_context(closing(socket.socket()))
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        if self._kind == "silent":
            # Its queue is full, so the kernel drops each SYN that comes.
            listener.listen(0)
            exits.enter_context(closing(socket.create_connection(("127.0.0.1", port))))
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            uid = (await reader.readline()).decode().strip()
            said = "served"
            if self._limit is not None:
                try:
                    said = "served" if (await self._agent.accept(uid)).success else "moved on"
                except NoRoom:
                    said = "full"
            if said == "served":
                self.users.add(uid)
                self.most = max(self.most, len(self.users))
            writer.write(f"{said}\n".encode())
            await writer.drain()


class Stage:
    """The gateways, and a router for the pods."""

    def __init__(self, router: AsyncRouter, gateways: list[asyncio.subprocess.Process]) -> None:
        self._router = router
        self._gateways = gateways
        self._number = 0

    async def play(
        self,
        *,
        users: int,
        rate: float,
        bad: str = "alive",
        reports: bool = True,
        one_sided: bool = False,
        population: int = 0,
        limit: int | None = None,
    ) -> tuple[list[dict[str, Any]], list[Pod]]:
        """``users`` and ``rate``, each second, are those of one gateway."""
        self._number += 1
        service = f"scene-{self._number}"
        pods = [
            Pod(self._router, service, pod, bad if pod == BAD else "alive", limit)
            for pod in range(PODS)
        ]
        async with AsyncExitStack() as exits:
            for pod in pods:
                await exits.enter_async_context(pod.running())
            found = []
            for number, gateway in enumerate(self._gateways):
                assert gateway.stdin is not None
                blind = [pod for pod in range(PODS) if pod % 2 == number % 2] if one_sided else []
                word = {"service": service, "users": users, "rate": rate, "reports": reports}
                word |= {"blind": blind, "population": population, "seed": number}
                gateway.stdin.write(json.dumps(word).encode() + b"\n")
            for gateway in self._gateways:
                assert gateway.stdout is not None
                found.append(json.loads(await gateway.stdout.readline()))
        return found, pods


def total(found: list[dict[str, Any]], name: str) -> int:
    return sum(one[name] for one in found)


def share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / whole:.1f} %)"


async def unreachable(stage: Stage, bad: str, *, reports: bool) -> str:
    found, _ = await stage.play(users=200, rate=50, bad=bad, reports=reports)
    return share(total(found, "later at bad"), total(found, "later"))


async def one_sided(stage: Stage) -> tuple[str, str]:
    seconds, rate, population = 20, 25, 40
    found, _ = await stage.play(
        users=seconds * rate, rate=rate, one_sided=True, population=population
    )
    moves: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for one in found:
        moves.update(one["moves"])
        outcomes.update(one["outcomes"])
    most = max(moves.values())
    words = ", ".join(f"{count:,} {what}" for what, count in outcomes.most_common())
    return f"{most}, in {seconds} s ({sum(moves.values())} moves of {population} users)", words


async def room(stage: Stage, users: int) -> tuple[str, str]:
    """``users``: of each gateway."""
    found, pods = await stage.play(users=users, rate=40, limit=LIMIT)
    tries: Counter[str] = Counter()
    for one in found:
        tries.update(one["tries"])
    again = sum(count for number, count in tries.items() if number != "1")
    return str(max(pod.most for pod in pods)), share(again, sum(tries.values()))


async def main(*, only_without: bool, only_room: bool) -> None:
    async with AsyncExitStack() as exits:
        cluster = exits.enter_context(LocalCluster(3, 0))
        gateways = []
        for _ in range(GATEWAYS):
            gateway = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.field.reach", "--gateway", cluster.url),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 24,
            )
            exits.push_async_callback(gateway.wait)
            exits.callback(gateway.kill)
            gateways.append(gateway)
        for gateway in gateways:
            assert gateway.stdout is not None
            await gateway.stdout.readline()
        stage = Stage(await exits.enter_async_context(AsyncRouter.from_url(cluster.url)), gateways)
        print("| | without reports | with reports |\n|---|---|---|")
        reach = () if only_room else (("a dead port", "dead"), ("SYNs dropped", "silent"))
        for words, bad in reach:
            without = await unreachable(stage, bad, reports=False)
            reported = "" if only_without else await unreachable(stage, bad, reports=True)
            print(
                f"| {words}: new users sent there after the first second | {without} | {reported} |"
            )
        if not only_without and not only_room:
            moves, outcomes = await one_sided(stage)
            print(f"| each gateway reaches half of the pods: most moves of a user | | {moves} |")
            print(f"| the same: what became of their requests | | {outcomes} |")
        if not only_without:
            for users in (113, 123):
                most, again = await room(stage, users)
                words = f"{GATEWAYS * users} users for {PODS * LIMIT:,} places"
                print(f"| {words}: most at one pod, which takes {LIMIT} | | {most} |")
                print(f"| {words}: needed a second try | | {again} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gateway", help=argparse.SUPPRESS)
    parser.add_argument("--no-reports", action="store_true", help="measure only this")
    parser.add_argument("--room", action="store_true", help="measure only this")
    arguments = parser.parse_args()
    if arguments.gateway:
        asyncio.run(be_gateway(arguments.gateway))
    else:
        asyncio.run(main(only_without=arguments.no_reports, only_room=arguments.room))
