"""A real server around an application, in the test's own loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import uvicorn

__all__ = ["Site", "serving"]


@dataclass
class Site:
    """An application that is being served."""

    address: str
    http: httpx.AsyncClient

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.get(path, **options)

    def ws(self, path: str) -> str:
        return f"ws://{self.address}{path}"


class Server(uvicorn.Server):
    """One that tells when it has started, and ends at once when told so, not at its next look at the clock."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.leave = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        await self.leave.wait()
        # uvicorn trips over a WebSocket that is just being closed (InvalidState: connection is closing).
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=1)


@asynccontextmanager
async def serving(app: Any, lifespan: Literal["auto", "on", "off"] = "on") -> AsyncIterator[Site]:
    """Serve it on a free port until the block ends.

    Raises ``AssertionError`` if the application does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(
            uvicorn.Config(
                app,
                lifespan=lifespan,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                ws="websockets-sansio",
            )
        )

        async def serve() -> None:
            try:
                await server.serve(sockets=[listening])
            except SystemExit:  # would end the tests, too
                server.up.set()

        running = asyncio.create_task(serve())
        address = "{}:{}".format(*listening.getsockname())
        try:
            await server.up.wait()
            assert server.started, "the application did not start"
            async with httpx.AsyncClient(
                base_url=f"http://{address}", trust_env=False, timeout=10
            ) as http:
                yield Site(address, http)
        finally:
            server.leave.set()
            await running
