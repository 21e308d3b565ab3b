"""A chat gateway in front of three pods that keep their users' messages in memory.

    python examples/gateway.py [URL]

Without a URL it starts a cluster of its own. Users connect to the gateway and send lines; the gateway asks the router
for the user's pod and sends the line there; the pod counts, and only the right pod counts right.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import AsyncExitStack

from sfroute import AsyncRouter, NoRoutablePod, StoreError
from sfroute.embedded import LocalCluster

NAMESPACE, SERVICE = "example", "chat"


class Pod:
    """A pod of the chat service."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.messages: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid, text = (await reader.readline()).decode().split(maxsplit=1)
        self.messages[uid] += 1
        writer.write(f"pod {self.ordinal}: message {self.messages[uid]} of {uid}: {text}".encode())
        writer.close()

    async def report(self, router: AsyncRouter, port: int) -> None:
        """One heartbeat: status, load and address. A real pod sends one every few seconds."""
        state = {"status": "Running", "load": len(self.messages) / 1000, "port": port}
        await router.set_service_state(NAMESPACE, SERVICE, self.ordinal, json.dumps(state))


class Gateway:
    """Sends what a user says to the user's pod."""

    def __init__(self, router: AsyncRouter) -> None:
        self.router = router

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            uid = line.decode().split(maxsplit=1)[0]
            try:
                answer = await self.forward(uid, line)
            except NoRoutablePod:
                answer = b"nobody is here to talk to; try again soon\n"
            except StoreError:
                answer = b"the directory of users cannot be reached; try again soon\n"
            writer.write(answer)
            await writer.drain()
        writer.close()

    async def forward(self, uid: str, line: bytes) -> bytes:
        link = await self.router.route(NAMESPACE, uid, SERVICE)
        states = await self.router.get_service_state(NAMESPACE, SERVICE)
        port = json.loads(states[link.pod])["port"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(line)
        answer = await reader.readline()
        writer.close()
        return answer


async def talk(port: int, uid: str, texts: list[str]) -> None:
    """A user of the gateway."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for text in texts:
        writer.write(f"{uid} {text}\n".encode())
        print((await reader.readline()).decode(), end="")
    writer.close()


async def main(url: str) -> None:
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(AsyncRouter.from_url(url))
        for ordinal in range(3):
            pod = Pod(ordinal)
            server = await asyncio.start_server(pod.serve, "127.0.0.1", 0)
            stack.callback(server.close)
            await pod.report(router, server.sockets[0].getsockname()[1])
        gateway = await asyncio.start_server(Gateway(router).serve, "127.0.0.1", 0)
        stack.callback(gateway.close)
        port = gateway.sockets[0].getsockname()[1]
        for uid in ("ada", "grace", "alan"):
            await talk(port, uid, ["hello", "are you still there?"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(sys.argv[1]))
    else:
        with LocalCluster() as cluster:
            asyncio.run(main(cluster.url))
