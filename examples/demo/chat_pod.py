"""A pod of the failover scene: it keeps its users in memory, and reports how full it is.

Gateways send it one line per request, the uid. In the end the scene compares the users that each pod has seen: no two
pods may have seen the same one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress

from child import Director

from sfroute import AsyncRouter, StoreError

__all__ = ["HEARTBEAT_SECONDS", "Pod"]

HEARTBEAT_SECONDS = 0.25
"""Short, like the demo: gateways should learn the pods' loads while users still arrive."""


class Pod:
    """A pod's memory and its two duties: to serve gateways and to report its state."""

    def __init__(self, ordinal: int, capacity: int) -> None:
        self.ordinal = ordinal
        self.capacity = capacity
        self.reported = asyncio.Event()
        self.users: set[str] = set()
        self.requests = 0
        self.heartbeats = 0
        self.heartbeats_missed = 0
        self._gateways: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one gateway's requests until it hangs up."""
        task = asyncio.current_task()
        assert task is not None
        self._gateways.add(task)
        async for line in reader:
            self.users.add(line.decode().rstrip("\n"))
            self.requests += 1
        writer.close()
        self._gateways.discard(task)

    async def heartbeat(
        self, router: AsyncRouter, namespace: str, service: str, address: str
    ) -> None:
        """Report status, load and address, again and again."""
        while True:
            load = round(len(self.users) / self.capacity, 4)
            state = json.dumps(
                {"status": "Running", "load": load, "address": address}, separators=(",", ":")
            )
            try:
                await router.set_service_state(namespace, service, self.ordinal, state)
                self.heartbeats += 1
                self.reported.set()
            except StoreError:
                # The next heartbeat says the same and more; the gateways decide how many a pod may miss.
                self.heartbeats_missed += 1
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def gateways_gone(self) -> None:
        """Wait until every gateway has hung up, and so everything they sent has been read."""
        while self._gateways:
            await asyncio.wait(self._gateways)


async def _run(url: str, namespace: str, service: str, ordinal: int, capacity: int) -> None:
    director = Director()
    pod = Pod(ordinal, capacity)
    server = await asyncio.start_server(pod.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with AsyncRouter.from_url(url) as router:
        beating = asyncio.create_task(pod.heartbeat(router, namespace, service, f"{host}:{port}"))
        await pod.reported.wait()
        director.report("ready")
        await director.wait_for("stop")
        await pod.gateways_gone()
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating
    server.close()
    director.report(
        "served",
        users=sorted(pod.users),
        requests=pod.requests,
        heartbeats=pod.heartbeats,
        heartbeats_missed=pod.heartbeats_missed,
    )


if __name__ == "__main__":
    asyncio.run(_run(**json.loads(sys.argv[1])))
