"""gRPC without a proxy: the client picks the pod of each call's user, and keeps one channel per pod.

    python examples/grpc_client.py

gRPC's own load balancing knows addresses, not users. Here two servers count for their users. One is stopped: the call
that it refuses is repeated on the other, which then serves the user.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc  # type: ignore[import-untyped]

from sfroute import AsyncRouter
from sfroute.embedded import LocalCluster

NAMESPACE, SERVICE = "example", "counter"
METHOD = "/example.Counter/Count"


class Channels:
    """One channel per pod, opened when it is first needed."""

    def __init__(self, router: AsyncRouter, address: str) -> None:
        self._router = router
        self._address = address
        self._open: dict[int, Any] = {}

    async def call(self, method: str, uid: str, message: bytes) -> bytes:
        link = await self._router.route(NAMESPACE, uid, SERVICE)
        try:
            return await self._send(link.pod, method, message)
        except grpc.aio.AioRpcError as error:
            # The connection was refused, so nothing was done. With other reasons for UNAVAILABLE a call may have been
            # carried out: repeat only what may be done twice.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        link = await self._router.route(NAMESPACE, uid, SERVICE, exclude=[link.pod])
        return await self._send(link.pod, method, message)

    async def _send(self, pod: int, method: str, message: bytes) -> bytes:
        if pod not in self._open:
            self._open[pod] = grpc.aio.insecure_channel(self._address.format(pod=pod))
        # Real code calls a stub made by the compiler of its .proto files.
        answer: bytes = await self._open[pod].unary_unary(method)(message, timeout=5)
        return answer

    async def close(self) -> None:
        for channel in self._open.values():
            await channel.close()


async def start_server(router: AsyncRouter) -> tuple[Any, int]:
    """A pod that counts calls. Its id is its port, for want of other names on this machine."""
    counts: Counter[bytes] = Counter()

    async def count(uid: bytes, _context: object) -> bytes:
        counts[uid] += 1
        return str(counts[uid]).encode()

    server = grpc.aio.server()
    service, name = METHOD.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(count)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {name: handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await router.set_service_state(NAMESPACE, SERVICE, port, "Running")
    return server, port


async def main(url: str) -> None:
    async with AsyncRouter.from_url(url) as router:
        servers = {}
        for _ in range(2):
            server, port = await start_server(router)
            servers[port] = server
        channels = Channels(router, "127.0.0.1:{pod}")
        for _ in range(2):
            print("count", (await channels.call(METHOD, "ada", b"ada")).decode())
        pod = (await router.route(NAMESPACE, "ada", SERVICE)).pod
        await servers.pop(pod).stop(None)
        print("her pod has stopped")
        print("count", (await channels.call(METHOD, "ada", b"ada")).decode())
        moved = (await router.route(NAMESPACE, "ada", SERVICE)).pod
        print("she is at another one" if moved != pod else "she is at a pod that is gone")
        await channels.close()
        for server in servers.values():
            await server.stop(None)


if __name__ == "__main__":
    with LocalCluster(primaries=3, replicas_per_primary=0) as cluster:
        asyncio.run(main(cluster.url))
