"""How the gateway's middleware follows a pod's 421, keeps sfroute's headers to itself, and shares an application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the group `examples` is not installed")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

import sfroute.asgi
import sfroute.wsgi
from sfroute import AsyncRouter, InvalidArgument, PlacementConfig, Router, RouterConfig
from sfroute.asgi import ForwardedUid, HeaderUid, QueryUid, Routed, SfrouteMiddleware
from sfroute.embedded import LocalCluster
from web.serving import Site, serving

ADA = {"x-user-id": "ada"}
NOT_MINE = {"x-sfroute-service": "chat", "x-sfroute-owner": "7"}


class Gateway:
    """An application that forwards to pods; the pods are this class, too."""

    def __init__(self, router: AsyncRouter, namespace: str) -> None:
        self.router = router
        self.namespace = namespace
        self.asked: list[int] = []
        self.refusing: set[int] = set()
        self.refusal: Callable[[], Response] = lambda: Response("no", 421, headers=NOT_MINE)
        self.move_to: int | None = 7

    async def refuses(self, routed: Routed) -> bool:
        """The pod does not have the user, whom somebody has just moved."""
        self.asked.append(routed.pod)
        if routed.pod not in self.refusing:
            return False
        if self.move_to is not None:
            await self.router.set_linked_pod(self.namespace, routed.uid, "chat", self.move_to)
        return True

    async def forward(self, request: Request) -> Response:
        body = await request.body()
        if await self.refuses(request.scope["sfroute"]):
            return self.refusal()
        return JSONResponse(
            {"pod": request.scope["sfroute"].pod, "body": body.decode(), "path": request.url.path}
        )

    async def talk(self, websocket: WebSocket) -> None:
        if await self.refuses(websocket.scope["sfroute"]):
            await websocket.send_denial_response(self.refusal())
            return
        await websocket.accept()
        await websocket.send_json(websocket.scope["sfroute"].pod)
        await websocket.close()

    @asynccontextmanager
    async def served(self, **options: Any) -> AsyncIterator[Site]:
        inner = [
            WebSocketRoute("/ws", self.talk),
            Route("/{path:path}", self.forward, methods=["GET", "POST"]),
        ]
        # Mounted: what the first call writes into the scope must not mislead the second.
        app = Starlette(routes=[Mount("/api", routes=inner)])
        app.add_middleware(
            SfrouteMiddleware,
            router=self.router,
            namespace=self.namespace,
            service="chat",
            uid=HeaderUid("x-user-id"),
            **options,
        )
        async with serving(app) as site:
            yield site


@pytest.fixture
async def gateway(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> AsyncIterator[Gateway]:
    """Ada is at pod 4, which says that she is not; by then she is linked to pod 7."""
    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        for pod in (4, 7):
            await router.set_service_state(sfroute_namespace, "chat", pod, "Running")
        await router.set_linked_pod(sfroute_namespace, "ada", "chat", 4)
        gateway = Gateway(router, sfroute_namespace)
        gateway.refusing = {4}
        yield gateway


# --- a 421


async def test_a_421_is_followed_once_with_the_same_request(gateway: Gateway) -> None:
    async with gateway.served() as site:
        response = await site.http.post("/api/a", headers=ADA, content=b"kept")
    assert response.json() == {"pod": 7, "body": "kept", "path": "/api/a"}
    assert gateway.asked == [4, 7]


async def test_a_websocket_is_followed_too(gateway: Gateway) -> None:
    async with (
        gateway.served() as site,
        connect(site.ws("/api/ws"), additional_headers=ADA, proxy=None) as websocket,
    ):
        assert await websocket.recv() == "7"
    assert gateway.asked == [4, 7]


@pytest.mark.parametrize("header", ["x-sfroute-left", "x-sfroute-full"])
async def test_a_pod_that_has_stopped_or_is_full_loses_the_user_at_once(
    gateway: Gateway, header: str
) -> None:
    # Its state still says that it runs, and the link that it has the user.
    gateway.move_to = None
    gateway.refusal = lambda: Response("no", 421, headers=NOT_MINE | {header: "1"})
    async with gateway.served() as site:
        response = await site.get("/api/", headers=ADA)
    assert response.json()["pod"] == 7
    assert gateway.asked == [4, 7]


async def test_a_second_421_is_503(gateway: Gateway) -> None:
    gateway.refusing = {4, 7}
    async with gateway.served() as site:
        response = await site.get("/api/", headers=ADA)
        with pytest.raises(InvalidStatus) as refused:
            await connect(site.ws("/api/ws"), additional_headers=ADA, proxy=None).__aenter__()
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert refused.value.response.status_code == 503
    assert not [name for name in response.headers if name.startswith("x-sfroute")]
    assert gateway.asked == [4, 7, 7, 7]


async def test_a_body_that_was_not_kept_is_not_sent_again_but_the_next_request_is_right(
    gateway: Gateway,
) -> None:
    async with gateway.served(replay=3) as site:
        assert (await site.http.post("/api/", headers=ADA, content=b"long")).status_code == 503
        response = await site.http.post("/api/", headers=ADA, content=b"long")
    assert response.json()["pod"] == 7
    assert gateway.asked == [4, 7]


@pytest.mark.parametrize(
    "headers", [{}, {"x-sfroute-service": "game", "x-sfroute-owner": "7"}], ids=["own", "other"]
)
async def test_another_421_is_the_clients_to_see(gateway: Gateway, headers: dict[str, str]) -> None:
    gateway.refusal = lambda: Response("mine", 421, headers=headers)
    async with gateway.served() as site:
        response = await site.get("/api/", headers=ADA)
    assert (response.status_code, response.text) == (421, "mine")
    assert gateway.asked == [4]


# --- headers of sfroute's own


async def test_clients_cannot_send_sfroutes_headers(gateway: Gateway) -> None:
    seen: list[dict[str, str]] = []

    async def look(request: Request) -> Response:
        seen.append(dict(request.headers))
        return Response()

    app = Starlette(routes=[Route("/{path:path}", look)])
    app.add_middleware(
        SfrouteMiddleware,
        router=gateway.router,
        namespace=gateway.namespace,
        service="chat",
        uid=HeaderUid("x-user-id"),
        exempt=["/free"],
    )
    forged = {"X-Sfroute-Uid": "grace", "x_sfroute_uid": "grace", "x-sfroute-owner": "9"}
    async with serving(app) as site:
        for path in ("/", "/free"):
            await site.get(path, headers=ADA | forged)
    assert len(seen) == 2
    for headers in seen:
        assert headers["x-user-id"] == "ada"
        assert not [name for name in headers if "sfroute" in name]


async def test_a_pod_reads_what_the_gateway_says(gateway: Gateway) -> None:
    link = await gateway.router.route(gateway.namespace, "ada", "chat")
    for uid in ("ada", "a/b c", "Zoë"):
        routed = Routed(uid, link, gateway.router, gateway.namespace, "chat")
        headers = [(name.encode(), value.encode()) for name, value in routed.headers.items()]
        assert ForwardedUid()({"type": "http", "headers": headers}) == uid


# --- several services, and requests for no user


async def test_two_services_share_an_application_and_a_router(gateway: Gateway) -> None:
    await gateway.router.set_service_state(gateway.namespace, "game", 1, "Running")

    async def both(request: Request) -> Response:
        return JSONResponse([request.scope["chat"].pod, request.scope["game"].pod])

    app = Starlette(routes=[Route("/", both)])
    for service in ("chat", "game"):
        app.add_middleware(
            SfrouteMiddleware,
            router=gateway.router,
            namespace=gateway.namespace,
            service=service,
            uid=HeaderUid("x-user-id"),
            key=service,
        )
    async with serving(app) as site:
        assert (await site.get("/", headers=ADA)).json() == [4, 1]
    assert repr(gateway.router) == "<AsyncRouter closed>"


async def test_paths_below_one_and_what_a_function_names_are_exempt(gateway: Gateway) -> None:
    async def plain(request: Request) -> Response:
        return Response("for nobody" if "sfroute" not in request.scope else "for a user")

    for exempt, free, bound in (
        (["/static/*", "/ok"], ["/static/a/b", "/static/", "/ok"], ["/static", "/ok/", "/"]),
        (lambda scope: scope["path"].endswith(".css"), ["/a.css"], ["/a.js"]),
    ):
        app = Starlette(routes=[Route("/{path:path}", plain)])
        app.add_middleware(
            SfrouteMiddleware,
            router=AsyncRouter.from_url("redis://127.0.0.1:1"),
            namespace="ns",
            service="chat",
            uid=HeaderUid("x-user-id"),
            exempt=exempt,
        )
        async with serving(app, lifespan="off") as site:
            for path in free:
                assert (await site.get(path)).text == "for nobody"
            for path in bound:
                assert (await site.get(path)).status_code == 400


async def test_a_preflight_that_names_nobody_is_passed_on(gateway: Gateway) -> None:
    async def options(request: Request) -> Response:
        return Response(str(request.scope["sfroute"]))

    app = Starlette(routes=[Route("/", options, methods=["OPTIONS"])])
    app.add_middleware(
        SfrouteMiddleware,
        router=gateway.router,
        namespace=gateway.namespace,
        service="chat",
        uid=HeaderUid("x-user-id"),
    )
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    async with serving(app) as site:
        assert (await site.http.options("/", headers=preflight)).text == "None"
        for name in preflight:
            lacking = {key: value for key, value in preflight.items() if key != name}
            assert (await site.http.options("/", headers=lacking)).status_code == 400


@pytest.mark.parametrize(
    ("query", "uid"),
    [
        (b"uid=ada", "ada"),
        (b"a=b&uid=Zo%C3%AB+x&c", "Zoë x"),
        (b"uid=ada&uid=ada", "ada"),
        (b"uid=ada&uid=grace", None),
        (b"uid=", None),
        (b"UID=ada", None),
        (b"", None),
    ],
)
def test_the_uid_may_be_in_the_query(query: bytes, uid: str | None) -> None:
    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": query}
    assert QueryUid("uid")(scope) == uid


@pytest.mark.parametrize(
    "wrong",
    [
        {"uid": HeaderUid("X-Sfroute-Uid")},
        {"uid": ForwardedUid()},
        {"key": ""},
        {"replay": -1},
        {"replay": True},
        {"exempt": [b"/x"]},
    ],
)
def test_mistakes_are_told_when_it_is_set_up(wrong: dict[str, Any]) -> None:
    async def app(*_: Any) -> None: ...

    with pytest.raises(InvalidArgument):
        SfrouteMiddleware(
            app,
            **{
                "router": AsyncRouter.from_url("redis://127.0.0.1:1"),
                "namespace": "ns",
                "service": "chat",
                "uid": HeaderUid("x-user-id"),
                **wrong,
            },
        )
    with pytest.raises(InvalidArgument):
        QueryUid("")


# --- a refused connection

OLD_VIEWS = RouterConfig(placement=PlacementConfig(pod_view_max_age=10.0))


def report(pods: Router, namespace: str, pod: int, address: str) -> None:
    pods.set_service_state(
        namespace, "chat", pod, f'{{"status":"Running","address":"{address}:8080"}}'
    )


async def test_a_pod_that_was_restarted_elsewhere_keeps_its_users(
    cluster: LocalCluster, namespace: str
) -> None:
    with Router.from_url(cluster.url) as pods:
        for pod in (1, 2):
            report(pods, namespace, pod, f"10.0.0.{pod}")
        async with AsyncRouter.from_url(cluster.url, config=OLD_VIEWS) as router:
            link = await router.route(namespace, "ada", "chat")
            routed = sfroute.asgi.Routed("ada", link, router, namespace, "chat")
            report(pods, namespace, routed.pod, "10.0.1.1")
            again = await routed.reroute(exclude=[routed.pod])
            assert (again.pod, again.link.address) == (routed.pod, "10.0.1.1:8080")
            assert router.stats().failures_reported == 0
            # Nobody listens at its new address either.
            assert (await again.reroute(exclude=[again.pod])).pod == 3 - routed.pod
            assert router.stats().ejected == {(namespace, "chat"): (routed.pod,)}


async def test_what_a_pod_said_before_it_was_restarted_takes_nobody_from_it(
    cluster: LocalCluster, namespace: str
) -> None:
    """With `pod="auto"` another process may have the pod id while the one before still says that it has left."""
    with Router.from_url(cluster.url) as pods:
        for pod in (4, 7):
            report(pods, namespace, pod, f"10.0.0.{pod}")
        pods.set_linked_pod(namespace, "ada", "chat", 4)
        async with AsyncRouter.from_url(cluster.url, config=OLD_VIEWS) as router:
            gateway = Restarted(router, namespace)
            gateway.refusal = lambda: Response(
                "no", 421, headers=NOT_MINE | {"x-sfroute-left": "1"}
            )
            assert (await router.route(namespace, "ada", "chat")).address == "10.0.0.4:8080"
            report(pods, namespace, 4, "10.0.1.4")
            async with gateway.served() as site:
                response = await site.get("/api/", headers=ADA)
            assert response.json()["pod"] == 4
            assert gateway.addresses == ["10.0.0.4:8080", "10.0.1.4:8080"]


class Restarted(Gateway):
    """Pod 4 has left the address that it had, and serves at the next."""

    def __init__(self, router: AsyncRouter, namespace: str) -> None:
        super().__init__(router, namespace)
        self.addresses: list[str | None] = []

    async def refuses(self, routed: Routed) -> bool:
        self.addresses.append(routed.link.address)
        return routed.link.address == "10.0.0.4:8080"


def test_the_same_for_wsgi(cluster: LocalCluster, namespace: str) -> None:
    with Router.from_url(cluster.url) as pods:
        for pod in (1, 2):
            report(pods, namespace, pod, f"10.0.0.{pod}")
        with Router.from_url(cluster.url, config=OLD_VIEWS) as router:
            link = router.route(namespace, "ada", "chat")
            routed = sfroute.wsgi.Routed("ada", link, router, namespace, "chat")
            report(pods, namespace, routed.pod, "10.0.1.1")
            again = routed.reroute(exclude=[routed.pod])
            assert (again.pod, again.link.address) == (routed.pod, "10.0.1.1:8080")
            assert router.stats().failures_reported == 0
            assert again.reroute(exclude=[again.pod]).pod == 3 - routed.pod
            assert router.stats().ejected == {(namespace, "chat"): (routed.pod,)}
