"""``PodMiddleware`` in real servers, with real agents: whom a pod serves, and what happens to those it loses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the group `examples` is not installed")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from support.stalls import Stalls
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    InvalidArgument,
    Isolated,
    Lost,
    PodEvent,
    RetryConfig,
    RouterConfig,
)
from sfroute.asgi import Claimed, HeaderUid, PodMiddleware
from sfroute.embedded import LocalCluster, LocalServer
from web.serving import Site, serving

ADA = {"x-sfroute-uid": "ada%20lovelace"}
UID = "ada lovelace"


class Place:
    """A pod's application, and what it was told."""

    def __init__(self, agent: AsyncPodAgent) -> None:
        self.agent = agent
        self.events: list[tuple[float, PodEvent]] = []
        self.told = asyncio.Event()
        self.received: list[str] = []
        self.fail = False
        self.site: Site

    def on_event(self, event: PodEvent) -> None:
        self.events.append((time.monotonic(), event))
        self.told.set()
        if self.fail:
            raise RuntimeError("about ada lovelace")

    async def answer(self, request: Request) -> Response:
        claimed: Claimed | None = request.scope.get("sfroute")
        if claimed is None:
            return JSONResponse({"uid": None})
        claim = claimed.claim
        return JSONResponse({"uid": claimed.uid, "how": claim.how, "fence": claim.fence})

    async def talk(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json({"fence": websocket.scope["sfroute"].claim.fence})
        try:
            async for text in websocket.iter_text():
                self.received.append(text)
                await websocket.send_text(text)
        except WebSocketDisconnect:
            pass

    def connect(self) -> connect:
        return connect(self.site.ws("/ws"), additional_headers=ADA, proxy=None)

    @asynccontextmanager
    async def served(self, **options: Any) -> AsyncIterator[Place]:
        app = Starlette(
            routes=[
                WebSocketRoute("/ws", self.talk),
                Route("/{path:path}", self.answer, methods=["GET", "POST", "OPTIONS"]),
            ]
        )
        app.add_middleware(
            PodMiddleware, agent=lambda: self.agent, on_event=self.on_event, **options
        )
        async with serving(app) as self.site:
            yield self


class World:
    """Pods of one service, at one store."""

    def __init__(self, url: str, namespace: str, exits: AsyncExitStack) -> None:
        self.url = url
        self.namespace = namespace
        self._exits = exits

    async def router(self, config: RouterConfig | None = None) -> AsyncRouter:
        return await self._exits.enter_async_context(AsyncRouter.from_url(self.url, config=config))

    async def agent(self, pod: int, **options: Any) -> AsyncPodAgent:
        agent = AsyncPodAgent(await self.router(), self.namespace, "chat", pod, **options)
        return await self._exits.enter_async_context(agent)

    async def link_of(self, uid: str = UID) -> int | None:
        return await (await self.router()).get_linked_pod(self.namespace, uid, "chat")


@pytest.fixture
async def world(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as exits:
        yield World(sfroute_cluster.url, sfroute_namespace, exits)


async def code_of(websocket: ClientConnection) -> tuple[int | None, float]:
    """With which code it is closed, and when."""
    await websocket.wait_closed()
    return websocket.close_code, time.monotonic()


# --- requests


async def test_a_new_user_is_claimed_and_then_served_under_the_same_claim(world: World) -> None:
    agent = await world.agent(3)
    async with Place(agent).served() as place:
        first = (await place.site.get("/", headers=ADA)).json()
        again = (await place.site.get("/", headers=ADA)).json()
    assert (first["uid"], first["how"]) == (UID, "placed")
    # The claim that is there already: the store, asked again, would have said "kept".
    assert again == first
    assert await world.link_of() == 3


async def test_another_pods_user_is_answered_with_421_and_the_owner(world: World) -> None:
    mine, other = await world.agent(3), await world.agent(4)
    await other.accept(UID)
    async with Place(mine).served() as place:
        response = await place.site.get("/", headers=ADA)
        with pytest.raises(InvalidStatus) as refused:
            await place.connect()
    for headers in (response.headers, refused.value.response.headers):
        assert (headers["x-sfroute-owner"], headers["x-sfroute-service"]) == ("4", "chat")
    assert (response.status_code, refused.value.response.status_code) == (421, 421)
    assert response.text == "the user is another pod's\n"


async def test_a_full_pod_says_so_and_keeps_its_users(world: World) -> None:
    agent = await world.agent(3, max_claims=1)
    async with Place(agent).served() as place:
        assert (await place.site.get("/", headers=ADA)).status_code == 200
        refused = await place.site.get("/", headers={"x-sfroute-uid": "bob"})
        assert (refused.status_code, refused.headers["x-sfroute-full"]) == (421, "1")
        with pytest.raises(InvalidStatus) as denied:
            await connect(
                place.site.ws("/ws"), additional_headers={"x-sfroute-uid": "bob"}, proxy=None
            )
        assert denied.value.response.headers["x-sfroute-full"] == "1"
        assert (await place.site.get("/", headers=ADA)).status_code == 200
    assert await world.link_of("bob") is None


async def test_without_accept_only_those_are_served_whom_the_application_claimed(
    world: World,
) -> None:
    agent = await world.agent(3)
    async with Place(agent).served(accept=False) as place:
        response = await place.site.get("/", headers=ADA)
        assert (response.status_code, "x-sfroute-owner" in response.headers) == (421, False)
        assert await world.link_of() is None
        claim = await agent.accept(UID)
        assert (await place.site.get("/", headers=ADA)).json()["fence"] == claim.fence
        async with place.connect() as websocket:
            await websocket.recv()


async def test_who_names_nobody_is_400_but_for_exempt_paths_and_preflights(world: World) -> None:
    agent = await world.agent(3)
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    async with Place(agent).served(exempt=["/healthz"]) as place:
        for headers in ({}, {"x-sfroute-uid": "%ff"}, {"x-sfroute-uid": "a%7Db"}):
            assert (await place.site.get("/", headers=headers)).status_code == 400
        assert (await place.site.get("/healthz")).json() == {"uid": None}
        options = await place.site.http.options("/", headers=preflight)
        assert options.json() == {"uid": None}
    async with Place(agent).served(required=False, uid=HeaderUid("x-user")) as place:
        assert (await place.site.get("/")).json() == {"uid": None}
        assert (await place.site.get("/", headers={"x-user": "grace"})).json()["uid"] == "grace"


async def test_a_stopped_agent_sends_everybody_away(world: World) -> None:
    agent = AsyncPodAgent(await world.router(), world.namespace, "chat", 3)
    async with Place(agent).served() as place:
        async with agent:
            assert (await place.site.get("/", headers=ADA)).status_code == 200
            async with place.connect() as websocket:
                await websocket.recv()
                await agent.stop()
                # Idle as it is, it learns that its pod has gone.
                assert (await code_of(websocket))[0] == 1012
        response = await place.site.get("/", headers=ADA)
        assert (response.status_code, response.headers["x-sfroute-left"]) == (421, "1")


# --- WebSockets


async def test_the_last_websocket_of_a_user_lets_them_go(world: World) -> None:
    agent = await world.agent(3)
    async with (
        Place(agent).served(grace=30) as place,
        place.connect() as one,
        place.connect() as two,
    ):
        assert await one.recv() == await two.recv()
        await one.close()
        await two.send("still here")
        assert await two.recv() == "still here"
        assert agent.owns(UID)
    # The server has waited for both to end.
    assert not agent.owns(UID)
    # For a reconnect.
    assert await world.link_of() == 3
    router = await world.router()
    assert await router.get_linked_pod_if_persist(world.namespace, UID, "chat") is None


async def test_the_websocket_of_a_moved_user_is_closed_within_200_ms_of_the_loss(
    world: World,
) -> None:
    agent = await world.agent(3)
    operator = await world.router()
    async with Place(agent).served() as place, place.connect() as first, place.connect() as second:
        await first.recv()
        await second.recv()
        with Stalls() as stalls:
            await operator.set_linked_pod(world.namespace, UID, "chat", 4)
            closed = await asyncio.gather(code_of(first), code_of(second))
    # The application has been told, too.
    ((told, event),) = place.events
    assert isinstance(event, Lost)
    assert (event.uid, event.reason, event.owner) == (UID, "moved", 4)
    assert [code for code, _ in closed] == [1012, 1012]
    assert stalls.took(told, max(at for _, at in closed)) < 0.2


async def test_a_users_next_websocket_is_not_closed_for_the_loss_before(world: World) -> None:
    agent = await world.agent(3)
    operator = await world.router()
    async with Place(agent).served() as place, place.connect() as first:
        await first.recv()
        await operator.remove_linked_pod(world.namespace, UID, "chat")
        async with place.connect() as second:
            await second.recv()
            assert (await code_of(first))[0] == 1012
            await second.send("here")
            assert await second.recv() == "here"


async def test_an_error_of_the_application_on_an_event_is_logged_and_names_nobody(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    agent = await world.agent(3)
    operator = await world.router()
    async with Place(agent).served() as place:
        place.fail = True
        for _ in range(2):
            async with place.connect() as websocket:
                await websocket.recv()
                await operator.set_linked_pod(world.namespace, UID, "chat", 4)
                assert (await code_of(websocket))[0] == 1012
            await operator.remove_linked_pod(world.namespace, UID, "chat")
    assert [r.getMessage() for r in caplog.records if r.name == "sfroute.asgi"] == [
        "on_event failed on Lost"
    ] * 2
    assert "lovelace" not in caplog.text


@pytest.mark.slow
async def test_an_isolated_pod_acts_on_no_message_and_claims_nobody(
    sfroute_namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "sfroute")
    config = RouterConfig(retry=RetryConfig(deadline=1.5, connect_timeout=0.5))
    async with AsyncExitStack() as exits:
        server = exits.enter_context(LocalServer())
        world = World(server.url, sfroute_namespace, exits)
        agent = AsyncPodAgent(
            await world.router(config), sfroute_namespace, "chat", 3, heartbeat=1.0, lease=3.0
        )
        await exits.enter_async_context(agent)
        place = await exits.enter_async_context(Place(agent).served())
        async with place.connect() as websocket:
            await websocket.recv()
            server.kill()
            while not place.events:
                await place.told.wait()
            assert place.events[0][1] == Isolated()
            # It is open still: the pod may come back with all its users.
            await websocket.send("do it")
            assert (await code_of(websocket))[0] == 1013
        assert place.received == []
        response = await place.site.get("/", headers=ADA)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")


# --- what no server of these tests does


class Raw:
    """A WebSocket's scope, and what was sent."""

    def __init__(self, *extensions: str) -> None:
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "path": "/",
            "headers": [(name.encode(), value.encode()) for name, value in ADA.items()],
            "extensions": {name: {} for name in extensions},
        }
        self.sent: list[Any] = []
        self.coming: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, message: Any) -> None:
        self.sent.append(message)


async def test_without_denial_responses_the_handshake_is_closed_with_1012(world: World) -> None:
    await (await world.agent(4)).accept(UID)
    raw = Raw()
    middleware = PodMiddleware(Place(await world.agent(3)).talk, agent=await world.agent(3))  # type: ignore[arg-type]
    await middleware(raw.scope, raw.coming.get, raw.send)
    assert [(one["type"], one["code"]) for one in raw.sent] == [("websocket.close", 1012)]


@pytest.mark.parametrize(
    ("error", "warned"), [(OSError, False), (RuntimeError, False), (ValueError, True)]
)
async def test_a_server_that_cannot_close_a_websocket_any_more_disturbs_nobody(
    world: World, caplog: pytest.LogCaptureFixture, error: type[Exception], warned: bool
) -> None:
    """The client may be quicker; anything but that is told, without the user."""
    agent = await world.agent(3)
    operator = await world.router()
    raw, told = Raw("websocket.http.response"), asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "websocket.close":
            raise error(f"about {UID}")

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await operator.set_linked_pod(world.namespace, UID, "chat", 4)
        await told.wait()
        await asyncio.sleep(0.01)  # the closing has its turn

    middleware = PodMiddleware(app, agent=agent, on_event=lambda _event: told.set())
    await middleware(raw.scope, raw.coming.get, send)
    said = [record for record in caplog.records if "could not be closed" in record.message]
    assert [record.message for record in said] == (
        ["a WebSocket could not be closed: ValueError"] if warned else []
    )
    assert UID not in caplog.text


async def test_a_user_lost_during_the_handshake_is_refused_and_later_sends_fail(
    world: World,
) -> None:
    agent = await world.agent(3)
    operator = await world.router()
    told = asyncio.Event()
    raw = Raw("websocket.http.response")
    seen: list[type[BaseException]] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await operator.set_linked_pod(world.namespace, UID, "chat", 4)
        await told.wait()
        await asyncio.sleep(0)  # the closing has its turn
        await send({"type": "websocket.accept"})
        try:
            await send({"type": "websocket.send", "text": "late"})
        except OSError as error:
            seen.append(type(error))
            raise
        finally:
            await send({"type": "websocket.close", "code": 1000})

    middleware = PodMiddleware(app, agent=agent, on_event=lambda _event: told.set())
    await middleware(raw.scope, raw.coming.get, raw.send)
    assert [one["type"] for one in raw.sent] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert raw.sent[0]["status"] == 421
    assert len(seen) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"agent": 3},
        {"uid": "x-user-id"},
        {"exempt": "/healthz"},
        {"exempt": ["healthz"]},
        {"grace": 0},
        {"grace": -1},
        {"on_event": "print"},
        {"key": ""},
    ],
)
def test_mistakes_are_told_when_it_is_set_up(wrong: dict[str, Any]) -> None:
    async def app(*_: Any) -> None: ...

    with pytest.raises(InvalidArgument):
        PodMiddleware(app, **({"agent": lambda: None} | wrong))
