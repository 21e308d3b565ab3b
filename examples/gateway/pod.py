"""A pod of the service behind the gateway: it keeps a counter for each of its users.

    SFROUTE_URL=redis+cluster://10.0.0.1:6379 POD_NAME=chat-2 DATABASE=counters.db python pod.py

    POST /count      count, and answer with the count
    GET /count       only answer
    DELETE /count    the user leaves
    WebSocket /ws    each message counts

The middleware lets only users through whom this pod owns. What the pod writes for them carries their claim's fence
(`counters.py`). On SIGTERM, or POST /drain from this machine (as a preStop hook), the pod drains before it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from typing import Literal

import uvicorn
from counters import Counters, Fenced
from denials import Denials
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from sfroute import AUTO, AsyncPodAgent, AsyncRouter, ConfigError, Lost, PodEvent, StoreError
from sfroute.asgi import Claimed, ForwardedUid, PodMiddleware

MISDIRECTED = 421
NOTICE_SECONDS = 1.0
"""After that no gateway sends anybody to a pod that has said `Stopped`: twice their `pod_view_max_age`."""
GRACE_SECONDS = 30
"""For which a user stays this pod's after the last WebSocket is gone."""
KEEP_ALIVE_SECONDS = 60
"""Longer than the gateways keep idle connections, so that they close them and not the pod."""


class Pod:
    """The endpoints. Whoever reaches them is this pod's user, but for /drain and /healthz."""

    def __init__(self, agent: AsyncPodAgent, counters: Counters, drain_seconds: float) -> None:
        # Another one after each start.
        self.process = secrets.token_hex(4)
        self.agent = agent
        self._counters = counters
        self._drain_seconds = drain_seconds
        self._draining: asyncio.Task[int] | None = None

    def drain(self) -> asyncio.Task[int]:
        """Begin to drain, once; how many users are left."""
        if self._draining is None:
            self._draining = asyncio.create_task(self.agent.drain(self._drain_seconds))
        return self._draining

    def heed(self, event: PodEvent) -> None:
        """What the agent says. The middleware closes the WebSockets of users who are lost."""
        if isinstance(event, Lost):
            self._counters.forget(event.uid)

    def _told(self, count: int) -> dict[str, object]:
        return {"pod": self.agent.pod, "process": self.process, "count": count}

    # Endpoints

    async def serve_count(self, request: Request) -> Response:
        claimed: Claimed = request.scope["sfroute"]
        uid, fence = claimed.uid, claimed.claim.fence
        # Meanwhile the user may be moved, and this pod be none the wiser: the fence is for that.
        await request.body()
        try:
            if request.method == "DELETE":
                await self.agent.release(claimed.claim)
                self._counters.forget(uid)
                return Response(status_code=204)
            change = self._counters.add if request.method == "POST" else self._counters.get
            return JSONResponse(self._told(await change(uid, fence)))
        except (Fenced, ConfigError):
            # Nothing was done. The gateway sends the request to the owner.
            return PlainTextResponse(
                "the user is another pod's\n", MISDIRECTED, headers=claimed.misdirected
            )
        except StoreError:
            return PlainTextResponse("try again soon\n", 503, headers={"retry-after": "1"})

    async def serve_websocket(self, websocket: WebSocket) -> None:
        claimed: Claimed = websocket.scope["sfroute"]
        await websocket.accept()
        try:
            # Only what comes while this pod owns the user gets here.
            async for _ in websocket.iter_text():
                count = await self._counters.add(claimed.uid, claimed.claim.fence)
                await websocket.send_json(self._told(count))
        except Fenced:
            await websocket.close(1012)
        except WebSocketDisconnect:
            pass  # the user may be back: the link stays for a while

    async def serve_drain(self, request: Request) -> Response:
        # What comes through the gateway has a user. Nobody from outside must be able to empty a pod.
        local = request.client is not None and request.client.host == "127.0.0.1"
        if ForwardedUid()(request.scope) is not None or not local:
            return PlainTextResponse("not here\n", 404)
        left = await asyncio.shield(self.drain())
        return JSONResponse({"left": left})

    async def serve_health(self, _request: Request) -> Response:
        try:
            return JSONResponse(
                {"pod": self.agent.pod, "process": self.process, "status": self.agent.status}
            )
        except ConfigError:  # it has no pod id yet
            return PlainTextResponse("not yet\n", 503)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/count", self.serve_count, methods=["GET", "POST", "DELETE"]),
                WebSocketRoute("/ws", self.serve_websocket),
                Route("/drain", self.serve_drain, methods=["POST"]),
                Route("/healthz", self.serve_health),
            ],
            middleware=[
                Middleware(Denials),
                Middleware(
                    PodMiddleware,
                    agent=self.agent,
                    grace=GRACE_SECONDS,
                    exempt=["/drain", "/healthz"],
                    on_event=self.heed,
                ),
            ],
        )


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
        counters = Counters(os.environ.get("DATABASE", ":memory:"))
        agent = AsyncPodAgent(
            router,
            NAMESPACE,
            SERVICE,
            POD,
            name=POD_NAME if POD == AUTO else None,
            load=lambda: float(len(counters)),
            heartbeat=LEASE_SECONDS / 5,
            lease=LEASE_SECONDS,
            address=ADDRESS,
        )
        pod = Pod(agent, counters, float(os.environ.get("DRAIN_SECONDS", "25")))
        server = Server(
            uvicorn.Config(
                pod.app(),
                host=HOST,
                port=PORT,
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
        await counters.aclose()
    return None


HOST = os.environ.get("HOST", "127.0.0.1")
PORT = int(os.environ.get("PORT", "8080"))
# Where gateways reach it: in Kubernetes the pod's own IP, another one after each restart.
_ip = os.environ.get("POD_IP", HOST)
ADDRESS = f"[{_ip}]:{PORT}" if ":" in _ip else f"{_ip}:{PORT}"
LEASE_SECONDS = float(os.environ.get("LEASE_SECONDS", "10"))
NAMESPACE = os.environ.get("SFROUTE_NAMESPACE", "default")
# As a StatefulSet names them: chat-2 is pod 2 of the service chat.
POD_NAME = os.environ.get("POD_NAME", "chat-0")
_service, _, _ordinal = POD_NAME.rpartition("-")
SERVICE = os.environ.get("SFROUTE_SERVICE", _service)
# As a Deployment names them they have no ordinals: with POD=auto each takes a pod id that is free.
POD: int | Literal["auto"] = AUTO if os.environ.get("POD") == AUTO else int(_ordinal)

if __name__ == "__main__":
    asyncio.run(main())
