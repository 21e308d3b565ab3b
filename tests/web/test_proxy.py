"""What the example gateway passes on, what it keeps to itself, and when it tries another pod."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the group `examples` is not installed")

from denials import Denials
from forwarding import TIMEOUT, NoAddress, base_of
from gateway import Settings, create_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from sfroute import AsyncRouter
from sfroute.asgi import CookieUid, HeaderUid, PathUid
from sfroute.embedded import LocalCluster
from web.serving import Site, serving

ADA = {"x-user-id": "ada"}


class Pod:
    """A pod that tells what it was sent. Its id is its port."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.moves: list[int] = []
        self.router: AsyncRouter | None = None
        self.namespace = ""
        self.closed_with: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/cookies", self.cookies),
                Route("/zipped", self.zipped),
                Route("/slowly", self.slowly),
                Route("/not-mine", self.not_mine, methods=["GET", "POST"]),
                Route("/{path:path}", self.echo, methods=["GET", "POST", "PUT", "DELETE"]),
                WebSocketRoute("/refuse", self.refuse),
                WebSocketRoute("/claim-slowly", self.claim_slowly),
                WebSocketRoute("/{path:path}", self.talk),
            ]
        )

    async def echo(self, request: Request) -> Response:
        return JSONResponse(
            {
                "method": request.method,
                "path": request.scope["raw_path"].decode(),
                "query": request.scope["query_string"].decode(),
                "headers": dict(request.headers),
                "body": (await request.body()).decode(),
            }
        )

    async def cookies(self, _request: Request) -> Response:
        response = Response("crumbs", 418, headers={"connection": "x-hop", "x-hop": "1"})
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    async def zipped(self, _request: Request) -> Response:
        return Response(gzip.compress(b"text"), headers={"content-encoding": "gzip"})

    async def slowly(self, _request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first "
            await self.go_on.wait()
            yield b"second"

        return StreamingResponse(chunks())

    async def not_mine(self, request: Request) -> Response:
        """The user has just been moved to another pod, if there is one."""
        if self.moves and self.router is not None:
            uid = request.headers["x-sfroute-uid"]
            await self.router.set_linked_pod(self.namespace, uid, "chat", self.moves.pop())
            return Response(status_code=421, headers={"x-sfroute-service": "chat"})
        return await self.echo(request)

    async def refuse(self, websocket: WebSocket) -> None:
        await websocket.send_denial_response(Response(status_code=403))

    async def claim_slowly(self, websocket: WebSocket) -> None:
        """Longer than a connection may take."""
        assert TIMEOUT.connect is not None
        await asyncio.sleep(TIMEOUT.connect + 0.5)
        await self.talk(websocket)

    async def talk(self, websocket: WebSocket) -> None:
        offered = websocket.scope["subprotocols"]
        await websocket.accept(subprotocol=offered[-1] if offered else None)
        await websocket.send_json(dict(websocket.headers) | {"query": str(websocket.query_params)})
        try:
            while True:
                message = await websocket.receive()
                if message.get("text") == "close":
                    await websocket.close(4001, "bye")
                    return
                if message["type"] == "websocket.disconnect":
                    self.closed_with.set_result(message["code"])
                    return
                if message.get("bytes") is not None:
                    await websocket.send_bytes(message["bytes"])
                else:
                    await websocket.send_text(message["text"])
        except WebSocketDisconnect as left:
            self.closed_with.set_result(left.code)


class Fleet:
    """A gateway, and pods that have reported themselves."""

    def __init__(self, site: Site, router: AsyncRouter, namespace: str) -> None:
        self.site = site
        self._router = router
        self._namespace = namespace

    async def report(self, *pods: int) -> None:
        for pod in pods:
            state = json.dumps({"status": "Running", "address": f"127.0.0.1:{pod}"})
            await self._router.set_service_state(self._namespace, "chat", pod, state)

    async def link(self, uid: str, pod: int) -> None:
        await self._router.set_linked_pod(self._namespace, uid, "chat", pod)

    async def pod_of(self, uid: str) -> int | None:
        return await self._router.get_linked_pod(self._namespace, uid, "chat", fresh=True)

    async def start(self, exits: AsyncExitStack) -> tuple[int, Pod]:
        """A pod, and its id."""
        pod = Pod()
        pod.router, pod.namespace = self._router, self._namespace
        site = await exits.enter_async_context(serving(pod.app()))
        return int(site.address.rpartition(":")[2]), pod

    def connect(self, path: str, **options: Any) -> connect:
        return connect(
            self.site.ws(path), additional_headers=ADA | {"x-more": "yes"}, proxy=None, **options
        )


def closed_port() -> int:
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port: int = nobody.getsockname()[1]
        return port


@pytest.fixture
async def exits() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as exits:
        yield exits


@pytest.fixture
async def fleet(
    sfroute_cluster: LocalCluster, sfroute_namespace: str, exits: AsyncExitStack
) -> Fleet:
    settings = Settings(
        url=sfroute_cluster.url,
        namespace=sfroute_namespace,
        service="chat",
        uid=HeaderUid("x-user-id"),
    )
    router = await exits.enter_async_context(AsyncRouter.from_url(sfroute_cluster.url))
    site = await exits.enter_async_context(serving(create_app(settings)))
    return Fleet(site, router, sfroute_namespace)


@pytest.fixture
async def pod(fleet: Fleet, exits: AsyncExitStack) -> Pod:
    """The only pod of the service."""
    port, pod = await fleet.start(exits)
    await fleet.report(port)
    return pod


# --- HTTP


@pytest.mark.usefixtures("pod")
async def test_a_request_arrives_as_it_was_sent(fleet: Fleet) -> None:
    response = await fleet.site.http.put(
        "/a%2Fb//c?d=%20e&d=f", headers=ADA | {"x-more": "yes"}, content=b"body"
    )
    said = response.json()
    assert (said["method"], said["path"], said["query"], said["body"]) == (
        "PUT",
        "/a%2Fb//c",
        "d=%20e&d=f",
        "body",
    )
    assert said["headers"]["x-more"] == "yes"
    assert said["headers"]["content-length"] == "4"


@pytest.mark.usefixtures("pod")
async def test_the_pod_is_told_whose_request_it_is_and_where_it_came_from(fleet: Fleet) -> None:
    forged = {
        "x-sfroute-uid": "grace",
        "x-forwarded-for": "192.0.2.1",
        "x-forwarded-host": "forged",
        "connection": "x-hop",
        "x-hop": "1",
    }
    uid = "ada/lovelace \xeb"
    given = [("x-user-id", uid.encode()), *forged.items()]
    said = (await fleet.site.get("/", headers=given)).json()["headers"]
    assert said["x-sfroute-uid"] == "ada%2Flovelace%20%C3%AB"
    assert said["x-forwarded-for"] == "192.0.2.1, 127.0.0.1"
    assert said["x-forwarded-host"] == fleet.site.address
    assert said["x-forwarded-proto"] == "http"
    assert "x-hop" not in said
    assert said["host"] != fleet.site.address


@pytest.mark.usefixtures("pod")
async def test_an_answer_arrives_as_it_was_sent(fleet: Fleet) -> None:
    response = await fleet.site.get("/cookies", headers=ADA)
    assert (response.status_code, response.text) == (418, "crumbs")
    assert [one.split(";")[0] for one in response.headers.get_list("set-cookie")] == ["a=1", "b=2"]
    assert "x-hop" not in response.headers
    zipped = await fleet.site.get("/zipped", headers=ADA)
    assert (zipped.headers["content-encoding"], zipped.text) == ("gzip", "text")


@pytest.mark.usefixtures("pod")
async def test_one_users_cookies_are_not_sent_for_the_next(fleet: Fleet) -> None:
    await fleet.site.get("/cookies", headers=ADA)
    fleet.site.http.cookies.clear()  # those of this test's own client
    said = (await fleet.site.get("/", headers={"x-user-id": "grace"})).json()
    assert "cookie" not in said["headers"]


async def test_bodies_are_passed_on_as_they_come(fleet: Fleet, pod: Pod) -> None:
    async with fleet.site.http.stream("GET", "/slowly", headers=ADA) as response:
        chunks = response.aiter_bytes()
        assert await anext(chunks) == b"first "
        pod.go_on.set()
        assert [chunk async for chunk in chunks] == [b"second"]

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    said = (await fleet.site.http.post("/", headers=ADA, content=upload())).json()
    assert len(said["body"]) == 1_000_000


async def test_a_pod_that_refuses_loses_the_user(fleet: Fleet, exits: AsyncExitStack) -> None:
    alive, _ = await fleet.start(exits)
    dead = closed_port()
    await fleet.report(alive, dead)
    await fleet.link("ada", dead)
    response = await fleet.site.http.post("/", headers=ADA, content=b"kept")
    assert response.json()["body"] == "kept"
    assert await fleet.pod_of("ada") == alive


@pytest.mark.slow
async def test_new_users_avoid_a_pod_that_does_not_take_connections(
    fleet: Fleet, exits: AsyncExitStack
) -> None:
    alive, _ = await fleet.start(exits)
    # Its queue is full, so the kernel drops whoever else wants to connect.
    silent = exits.enter_context(closing(socket.socket()))
    silent.bind(("127.0.0.1", 0))
    silent.listen(0)
    waiting = exits.enter_context(closing(socket.socket()))
    waiting.connect(silent.getsockname())
    await fleet.report(alive, silent.getsockname()[1])
    await fleet.link("ada", silent.getsockname()[1])
    assert (await fleet.site.http.post("/", headers=ADA)).status_code == 504
    # The user may be there, and stays; nobody else comes.
    assert await fleet.pod_of("ada") == silent.getsockname()[1]
    for user in range(20):
        assert (await fleet.site.get("/", headers={"x-user-id": f"u{user}"})).status_code == 200


async def test_when_nobody_listens_it_is_502_or_503(fleet: Fleet) -> None:
    dead = closed_port()
    await fleet.report(dead)
    response = await fleet.site.get("/", headers=ADA)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    await fleet.report(closed_port())
    assert (await fleet.site.get("/", headers={"x-user-id": "grace"})).status_code == 502


async def test_a_user_who_is_another_pods_is_looked_up_afresh(
    fleet: Fleet, exits: AsyncExitStack
) -> None:
    (right, _), (wrong, pod) = await fleet.start(exits), await fleet.start(exits)
    await fleet.report(right, wrong)
    for content, status in ((b"", 200), (b"sent twice", 200), (b"x" * 70_000, 503)):
        pod.moves = [right]
        await fleet.link("ada", wrong)
        response = await fleet.site.http.post("/not-mine", headers=ADA, content=content)
        assert response.status_code == status
    assert (await fleet.site.http.post("/not-mine", headers=ADA)).status_code == 200


async def test_a_pod_that_is_lost_in_the_middle_is_502_and_keeps_the_user(fleet: Fleet) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await fleet.report(port, closed_port())
        await fleet.link("ada", port)
        response = await fleet.site.http.post("/", headers=ADA)
        assert (response.status_code, response.text) == (502, "the pod was lost\n")
        # It may have done what it was asked: nobody else is asked the same.
        assert await fleet.pod_of("ada") == port


async def test_its_health_needs_no_user(fleet: Fleet) -> None:
    assert (await fleet.site.get("/healthz")).text == "ok\n"
    assert (await fleet.site.get("/")).status_code == 400


# --- WebSocket


async def hello(websocket: ClientConnection) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(await websocket.recv())
    return said


@pytest.mark.usefixtures("pod")
async def test_messages_travel_both_ways(fleet: Fleet) -> None:
    chosen = [Subprotocol("v1"), Subprotocol("v2")]
    async with fleet.connect("/ws?a=b", subprotocols=chosen) as websocket:
        said = await hello(websocket)
        assert (said["x-sfroute-uid"], said["x-more"], said["query"]) == ("ada", "yes", "a=b")
        assert websocket.subprotocol == "v2"
        for message in ("text", b"\x00bytes"):
            await websocket.send(message)
            assert await websocket.recv() == message


async def test_how_it_ended_is_passed_on(fleet: Fleet, pod: Pod) -> None:
    async with fleet.connect("/ws") as websocket:
        await hello(websocket)
        await websocket.send("close")
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "bye")
    async with fleet.connect("/ws") as websocket:
        await hello(websocket)
        await websocket.close(4002)
    assert await pod.closed_with == 4002


@pytest.mark.usefixtures("pod")
async def test_a_refusal_of_the_pod_is_passed_on(fleet: Fleet) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await fleet.connect("/refuse")
    assert refused.value.response.status_code == 403


async def test_a_pod_may_take_longer_for_the_claim_than_for_the_connection(
    fleet: Fleet, pod: Pod
) -> None:
    async with fleet.connect("/claim-slowly") as websocket:
        await hello(websocket)


async def test_a_websocket_that_was_denied_is_no_error_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def app(scope: Any, receive: Any, _send: Any) -> None:
        websocket = WebSocket(scope, receive, _send)
        if scope["path"] == "/denied":
            await websocket.send_denial_response(Response(status_code=403))

    async with serving(Denials(app), lifespan="off") as site:
        for path, status in (("/denied", 403), ("/forgotten", 500)):
            with pytest.raises(InvalidStatus) as refused:
                await connect(site.ws(path), proxy=None)
            assert refused.value.response.status_code == status
            assert ("without completing" in capsys.readouterr().err) == (path == "/forgotten")


async def test_a_pod_where_nobody_listens_loses_the_user_of_a_websocket(
    fleet: Fleet, exits: AsyncExitStack
) -> None:
    dead = closed_port()
    await fleet.report(dead)
    with pytest.raises(InvalidStatus) as refused:
        await fleet.connect("/ws")
    assert refused.value.response.status_code == 503
    alive, _ = await fleet.start(exits)
    await fleet.report(alive)
    async with fleet.connect("/ws") as websocket:
        await hello(websocket)
    assert await fleet.pod_of("ada") == alive


# --- settings


def test_it_is_told_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFROUTE_URL", "redis://10.0.0.1")
    assert Settings.from_environment() == Settings(
        url="redis://10.0.0.1",
        namespace="default",
        service="chat",
        uid=HeaderUid("x-user-id"),
    )
    for text, uid in [
        ("cookie:session", CookieUid("session")),
        ("path:/u/{uid}", PathUid("/u/{uid}")),
    ]:
        monkeypatch.setenv("UID_FROM", text)
        assert Settings.from_environment().uid == uid


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("10.0.3.7:8080", "http://10.0.3.7:8080"),
        ("[fd00::7]:8080", "http://[fd00::7]:8080"),
        ("chat-2.chat:80", "http://chat-2.chat"),
    ],
)
def test_the_address_of_a_pod_is_a_host_and_a_port(address: str, base: str) -> None:
    assert str(base_of(address)) == base


@pytest.mark.parametrize(
    "address",
    [
        *(None, "", "10.0.3.7:8080/admin", "10.0.3.7?x", "user@10.0.3.7:1", "10.0.3.7:1#x"),
        *("http://10.0.3.7:8080", "10.0.3.7:99999", "[::1", "/run/pod.sock"),
    ],
)
def test_nothing_else_is_asked(address: str | None) -> None:
    with pytest.raises(NoAddress):
        base_of(address)


async def test_whose_pod_says_no_address_is_told_to_come_back(
    fleet: Fleet, sfroute_cluster: LocalCluster, sfroute_namespace: str
) -> None:
    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        await router.set_service_state(sfroute_namespace, "chat", 3, "Running")
    response = await fleet.site.http.get("/", headers=ADA)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    with pytest.raises(InvalidStatus) as refused:
        await fleet.connect("/ws")
    assert refused.value.response.status_code == 503
