"""A pod of the service behind the gateway: it keeps a counter for each of its users, in memory.

    SFROUTE_URL=redis+cluster://10.0.0.1:6379 POD_NAME=chat-2 python pod.py

    POST /count      count, and answer with the count
    GET /count       only answer
    DELETE /count    the user leaves
    WebSocket /ws    each message counts

A pod that is told to end (SIGTERM, or POST /drain from this machine, as a preStop hook) first drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from urllib.parse import unquote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from sfroute import STOPPED, AsyncPodAgent, AsyncRouter, ConfigError, StoreError

UID_HEADER = "x-sfroute-uid"
MISDIRECTED = 421
NOTICE_SECONDS = 1.0
"""After that no gateway sends anybody to a pod that has said `Stopped`: twice their `pod_view_max_age`."""
KEEP_ALIVE_SECONDS = 60
"""Longer than the gateways keep idle connections, so that they close them and not the pod."""


class Pod:
    """The counters of this pod's users, and the right to count for them."""

    def __init__(self, router: AsyncRouter, agent: AsyncPodAgent, drain_seconds: float) -> None:
        self.counts: dict[str, int] = {}
        # Another one after each start: shows that counters were lost with the process, and only then.
        self.process = secrets.token_hex(4)
        self._router = router
        self.agent = agent
        self._drain_seconds = drain_seconds
        self._draining: asyncio.Task[int] | None = None

    def drain(self) -> asyncio.Task[int]:
        """Begin to drain, once; how many users are left."""
        if self._draining is None:
            self._draining = asyncio.create_task(self.agent.drain(self._drain_seconds))
        return self._draining

    async def has(self, uid: str) -> bool:
        """True if this pod may act for a user. Two pods never may at once: the link decides.

        Nearly always the router's cache answers, which the server keeps true.
        """
        if uid in self.counts:
            owner = await self._router.get_linked_pod_if_persist(NAMESPACE, uid, SERVICE)
            if owner == self.agent.pod:
                return True
        try:
            accepted, _ = await self.agent.accept(uid)
        except ConfigError:  # the agent has said its last word, and takes nobody any more
            accepted = False
        if not accepted:
            # What this pod remembers of the user is history.
            self.counts.pop(uid, None)
            return False
        self.counts.setdefault(uid, 0)
        return True

    def count(self, uid: str) -> dict[str, object]:
        self.counts[uid] = self.counts.get(uid, 0) + 1
        return self.show(uid)

    def show(self, uid: str) -> dict[str, object]:
        return {
            "pod": self.agent.pod,
            "process": self.process,
            "count": self.counts.get(uid, 0),
        }

    # Endpoints

    async def serve_count(self, request: Request) -> Response:
        uid = uid_of(request)
        if uid is None:
            return PlainTextResponse("no user\n", 400)
        try:
            if not await self.has(uid):
                return PlainTextResponse("the user is another pod's\n", MISDIRECTED)
            if request.method == "DELETE":
                await self.agent.release(uid)
                self.counts.pop(uid, None)
                return Response(status_code=204)
        except ConfigError:
            return PlainTextResponse("the user must go to another pod\n", MISDIRECTED)
        except StoreError:
            return PlainTextResponse("try again soon\n", 503, headers={"retry-after": "1"})
        return JSONResponse(self.count(uid) if request.method == "POST" else self.show(uid))

    async def serve_websocket(self, websocket: WebSocket) -> None:
        uid = uid_of(websocket)
        try:
            if uid is None or not await self.has(uid):
                await websocket.send_denial_response(Response(status_code=MISDIRECTED))
                return
            await websocket.accept()
            while True:
                await websocket.receive_text()
                if not await self.has(uid):
                    break
                await websocket.send_json(self.count(uid))
                if self.agent.status == STOPPED:
                    # Right after an answer: later a message might be on its way, and nobody would know if it counted.
                    break
            await websocket.close(1012)  # the user may connect again, and will get another pod
        except StoreError:
            await websocket.close(1013)
        except WebSocketDisconnect:
            return  # the counter stays: the user may be back

    async def serve_drain(self, request: Request) -> Response:
        # What comes through the gateway has a user. Nobody from outside must be able to empty a pod.
        local = request.client is not None and request.client.host == "127.0.0.1"
        if uid_of(request) is not None or not local:
            return PlainTextResponse("not here\n", 404)
        left = await asyncio.shield(self.drain())
        return JSONResponse({"left": left})

    async def serve_health(self, _request: Request) -> Response:
        return JSONResponse(
            {"pod": self.agent.pod, "process": self.process, "status": self.agent.status}
        )

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/count", self.serve_count, methods=["GET", "POST", "DELETE"]),
                WebSocketRoute("/ws", self.serve_websocket),
                Route("/drain", self.serve_drain, methods=["POST"]),
                Route("/healthz", self.serve_health),
            ]
        )


def uid_of(connection: HTTPConnection) -> str | None:
    encoded = connection.headers.get(UID_HEADER)
    return unquote(encoded) if encoded else None


class Server(uvicorn.Server):
    """uvicorn would stop listening on SIGTERM; a pod that drains still serves."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def main() -> None:
    leaving = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leaving.set)
    async with AsyncRouter.from_url(os.environ["SFROUTE_URL"]) as router:
        agent = AsyncPodAgent(
            router, NAMESPACE, SERVICE, ORDINAL, load=lambda: float(len(pod.counts))
        )
        pod = Pod(router, agent, float(os.environ.get("DRAIN_SECONDS", "25")))
        server = Server(
            uvicorn.Config(
                pod.app(),
                host=os.environ.get("HOST", "127.0.0.1"),
                port=int(os.environ.get("PORT", "8080")),
                lifespan="off",
                # Its log of requests would show paths, which may hold more than one wants to keep.
                log_level="warning",
                access_log=False,
                ws="websockets-sansio",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=5,
            )
        )
        serving = asyncio.create_task(server.serve())
        while not server.started:
            if serving.done():
                return await serving
            await asyncio.sleep(0.01)
        # The first heartbeat is stored when the pod can serve, the last one before it no longer can.
        async with agent:
            await leaving.wait()
            await pod.drain()
        await asyncio.sleep(NOTICE_SECONDS)
        server.should_exit = True
        await serving
    return None


NAMESPACE = os.environ.get("SFROUTE_NAMESPACE", "default")
# As a StatefulSet names them: chat-2 is pod 2 of the service chat.
SERVICE, _, _ordinal = os.environ.get("POD_NAME", "chat-0").rpartition("-")
ORDINAL = int(_ordinal)

if __name__ == "__main__":
    asyncio.run(main())
