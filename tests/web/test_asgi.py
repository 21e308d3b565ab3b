"""``sfroute.asgi``: the middleware in real servers, in front of Starlette, FastAPI and a bare application."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the group `examples` is not installed")

from fastapi import FastAPI, Request, WebSocket
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sfroute import AsyncRouter, InvalidArgument, Link, NoRoutablePod, RetryConfig, RouterConfig
from sfroute.asgi import (
    ASGIApp,
    CookieUid,
    HeaderUid,
    PathUid,
    Receive,
    Routed,
    Scope,
    Send,
    SfrouteMiddleware,
    UidExtractor,
)
from sfroute.embedded import LocalCluster
from web.serving import serving

UID = "ada-lovelace"
ADA = {"x-user-id": UID}


def told(connection: HTTPConnection) -> dict[str, Any]:
    """What the middleware says to an application."""
    routed: Routed | None = connection.scope["sfroute"]
    if routed is None:
        return {"pod": None}
    return {"pod": routed.pod, "source": routed.link.source, "uid": routed.uid}


# --- three applications that do the same


async def answer(request: Request) -> Response:
    return JSONResponse(told(request))


async def reroute(request: Request) -> Response:
    routed: Routed = request.scope["sfroute"]
    try:
        elsewhere = await routed.reroute(exclude=[routed.pod])
    except NoRoutablePod:
        return Response(status_code=503)
    return JSONResponse({"from": routed.pod, "to": elsewhere.pod})


async def talk(websocket: StarletteWebSocket) -> None:
    await websocket.accept()
    await websocket.send_json(told(websocket))
    await websocket.close()


def starlette_app(options: dict[str, Any]) -> ASGIApp:
    app = Starlette(
        routes=[
            Route("/reroute", reroute),
            Route("/{path:path}", answer),
            WebSocketRoute("/{path:path}", talk),
        ]
    )
    app.add_middleware(SfrouteMiddleware, **options)
    return app


def fastapi_app(options: dict[str, Any]) -> ASGIApp:
    app = FastAPI()
    app.add_middleware(SfrouteMiddleware, **options)

    @app.get("/reroute", response_model=None)
    async def elsewhere(request: Request) -> Response:
        return await reroute(request)

    @app.get("/{path:path}")
    async def get(request: Request) -> dict[str, Any]:
        return told(request)

    @app.websocket("/{path:path}")
    async def websocket(websocket: WebSocket) -> None:
        await talk(websocket)

    return app


def bare_app(options: dict[str, Any]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Knows no lifespan, and says so as ASGI has it.
        assert scope["type"] in ("http", "websocket")
        if scope["type"] == "websocket":
            await talk(StarletteWebSocket(scope, receive, send))
        else:
            request = Request(scope, receive)
            handler = reroute if scope["path"] == "/reroute" else answer
            await (await handler(request))(scope, receive, send)

    return SfrouteMiddleware(app, **options)


Framework = Callable[[dict[str, Any]], ASGIApp]
FRAMEWORKS: list[Framework] = [starlette_app, fastapi_app, bare_app]


@pytest.fixture(params=FRAMEWORKS, ids=["starlette", "fastapi", "bare"])
def framework(request: pytest.FixtureRequest) -> Framework:
    made: Framework = request.param
    return made


@pytest.fixture
def options(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> dict[str, Any]:
    """What the middleware of a test is given."""
    return {
        "router": lambda: AsyncRouter.from_url(sfroute_cluster.url),
        "namespace": sfroute_namespace,
        "service": "chat",
        "uid": HeaderUid("X-User-Id"),
    }


@pytest.fixture
async def router(sfroute_cluster: LocalCluster) -> AsyncIterator[AsyncRouter]:
    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        yield router


@pytest.fixture
async def pods(router: AsyncRouter, sfroute_namespace: str) -> None:
    """Pod 0 and pod 7, where ada is."""
    for pod in (0, 7):
        await router.set_service_state(sfroute_namespace, "chat", pod, "Running")
    await router.set_linked_pod(sfroute_namespace, UID, "chat", 7)


# --- requests


@pytest.mark.usefixtures("pods")
async def test_a_request_is_told_its_users_pod(
    framework: Framework, options: dict[str, Any]
) -> None:
    async with serving(framework(options), lifespan="auto") as site:
        first = await site.get("/", headers=ADA)
        again = await site.get("/anything", headers=ADA)
    assert first.json() == {"pod": 7, "source": "store", "uid": UID}
    assert again.json() == {"pod": 7, "source": "cache", "uid": UID}


@pytest.mark.usefixtures("pods")
async def test_a_websocket_is_told_its_users_pod(
    framework: Framework, options: dict[str, Any]
) -> None:
    options["uid"] = PathUid("/rooms/{uid}")
    async with (
        serving(framework(options), lifespan="auto") as site,
        connect(site.ws(f"/rooms/{UID}"), proxy=None) as websocket,
    ):
        assert '"pod":7' in str(await websocket.recv()).replace(" ", "")


@pytest.mark.usefixtures("pods")
async def test_the_uid_may_be_in_a_cookie(options: dict[str, Any]) -> None:
    options["uid"] = CookieUid("uid")
    async with serving(starlette_app(options)) as site:
        response = await site.get("/", headers={"cookie": f"theme=dark; uid={UID}"})
    assert response.json()["pod"] == 7


@pytest.mark.usefixtures("pods")
@pytest.mark.parametrize(
    ("extractor", "path", "headers"),
    [
        (PathUid("/users/{uid}"), "/users/Zo%C3%AB", {}),
        (HeaderUid("x-user-id"), "/", {b"x-user-id": "Zoë".encode()}),
        (CookieUid("uid"), "/", {b"cookie": "uid=Zoë".encode()}),
    ],
    ids=["path", "header", "cookie"],
)
async def test_a_user_has_one_name_wherever_it_is_read_from(
    options: dict[str, Any],
    router: AsyncRouter,
    extractor: UidExtractor,
    path: str,
    headers: dict[bytes, bytes],
) -> None:
    await router.set_linked_pod(options["namespace"], "Zoë", "chat", 7)
    options["uid"] = extractor
    async with serving(starlette_app(options)) as site:
        response = await site.get(path, headers=headers)
    assert response.json() == {"pod": 7, "source": "store", "uid": "Zoë"}


@pytest.mark.usefixtures("pods")
async def test_a_pod_that_refused_is_excluded(options: dict[str, Any]) -> None:
    async with serving(starlette_app(options)) as site:
        response = await site.get("/reroute", headers=ADA)
        again = await site.get("/", headers=ADA)
    assert response.json() == {"from": 7, "to": 0}
    assert again.json()["pod"] == 0


# --- refusals


async def test_without_a_uid_it_is_400(framework: Framework, options: dict[str, Any]) -> None:
    async with serving(framework(options), lifespan="auto") as site:
        response = await site.get("/")
    assert response.status_code == 400
    assert response.text == (
        "the request does not say which user it is for: "
        "the header X-User-Id is missing, or ambiguous\n"
    )
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"


async def test_two_headers_that_differ_name_nobody(options: dict[str, Any]) -> None:
    async with serving(starlette_app(options)) as site:
        twice = [("x-user-id", "ada"), ("X-User-Id", "grace")]
        assert (await site.get("/", headers=twice)).status_code == 400


async def test_a_uid_that_cannot_be_is_400_and_not_repeated(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(starlette_app(options)) as site:
        for uid in ("a{b}", "x" * 513, "tab\tinside", "Zo\xeb"):
            # The last one is no UTF-8.
            response = await site.get("/", headers={"x-user-id": uid.encode("latin-1")})
            assert (response.status_code, response.text) == (
                400,
                "the request names a user who cannot exist\n",
            )
            # The client of this very test logs at this level, too.
            ours = [r for r in caplog.records if r.name.startswith(("sfroute", "uvicorn"))]
            assert uid not in "\n".join(r.getMessage() for r in ours)


async def test_without_a_routable_pod_it_is_503(
    framework: Framework, options: dict[str, Any]
) -> None:
    async with serving(framework(options), lifespan="auto") as site:
        response = await site.get("/", headers=ADA)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.text == "nobody can serve this user at the moment; try again soon\n"


@pytest.fixture
def unreachable() -> Iterator[Callable[[], AsyncRouter]]:
    """A router for a store that is not there."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis+cluster://127.0.0.1:{closed.getsockname()[1]}"
        retry = RetryConfig(deadline=0.3, connect_timeout=0.2)
        yield lambda: AsyncRouter.from_url(url, config=RouterConfig(retry=retry))


async def test_without_the_store_it_is_503(
    options: dict[str, Any], unreachable: Callable[[], AsyncRouter]
) -> None:
    options["router"] = router = unreachable()
    async with serving(starlette_app(options), lifespan="off") as site:
        response = await site.get("/", headers=ADA)
    await router.aclose()
    assert response.status_code == 503
    assert UID not in response.text


async def test_what_needs_repair_is_logged_without_the_uid(
    options: dict[str, Any],
    sfroute_cluster: LocalCluster,
    sfroute_namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = f"sf:{{{sfroute_namespace}:lk:{UID}}}chat"
    sfroute_cluster.execute(sfroute_cluster.primary_of(key), "SET", key, "no pod")
    async with serving(starlette_app(options)) as site:
        response = await site.get("/", headers=ADA)
    assert response.status_code == 503
    (record,) = (r for r in caplog.records if r.name == "sfroute.asgi")
    assert record.getMessage().startswith("a user could not be routed: ")
    assert UID not in caplog.text


@pytest.mark.parametrize(("headers", "status"), [({}, 400), (ADA, 503)])
async def test_a_refused_websocket_gets_the_same_answer(
    framework: Framework, options: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    async with serving(framework(options), lifespan="auto") as site:
        with pytest.raises(InvalidStatus) as refused:
            await connect(site.ws("/"), additional_headers=headers, proxy=None).__aenter__()
    assert refused.value.response.status_code == status
    assert UID.encode() not in (refused.value.response.body or b"")


@pytest.mark.parametrize(("headers", "code"), [([], 1008), ([(b"x-user-id", b"ada")], 1013)])
async def test_without_that_extension_it_is_closed(
    options: dict[str, Any], headers: list[tuple[bytes, bytes]], code: int
) -> None:
    # The server of the other tests has the extension; this is what one without it passes.
    scope = {"type": "websocket", "path": "/", "headers": headers}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    options["router"] = router = options["router"]()
    await bare_app(options)(scope, receive, send)
    await router.aclose()
    assert [(m["type"], m["code"]) for m in sent] == [("websocket.close", code)]


# --- requests for no user


async def test_exempt_paths_are_passed_on_as_they_come(options: dict[str, Any]) -> None:
    async def health(request: Request) -> Response:
        return Response("sfroute" if "sfroute" in request.scope else "fine")

    app = Starlette(routes=[Route("/healthz", health), Route("/healthz/deep", health)])
    app.add_middleware(SfrouteMiddleware, **options, exempt=["/healthz"])
    async with serving(app) as site:
        assert (await site.get("/healthz")).text == "fine"
        assert (await site.get("/healthz/deep")).status_code == 400


async def test_a_uid_may_be_optional(options: dict[str, Any]) -> None:
    options["required"] = False
    async with serving(starlette_app(options)) as site:
        assert (await site.get("/")).json() == {"pod": None}
        assert (await site.get("/", headers=ADA)).status_code == 503


# --- lifespan


async def test_the_router_is_open_for_as_long_as_the_application_lives(
    options: dict[str, Any],
) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        seen.append(repr(router))
        yield
        seen.append(repr(router))

    options["router"] = router = options["router"]()
    app = Starlette(lifespan=lifespan)
    app.add_middleware(SfrouteMiddleware, **options)
    async with serving(app):
        assert seen == ["<AsyncRouter open>"]
    assert seen == ["<AsyncRouter open>"] * 2
    assert repr(router) == "<AsyncRouter closed>"


@pytest.mark.usefixtures("pods")
async def test_an_application_can_be_started_twice(
    framework: Framework, options: dict[str, Any]
) -> None:
    made: list[AsyncRouter] = []
    make = options["router"]

    def remember() -> AsyncRouter:
        made.append(make())
        return made[-1]

    app = framework(options | {"router": remember})
    for _ in range(2):
        async with serving(app, lifespan="on") as site:
            assert (await site.get("/", headers=ADA)).json()["pod"] == 7
    assert [repr(router) for router in made] == ["<AsyncRouter closed>"] * 2


async def test_without_the_store_the_application_does_not_start(
    options: dict[str, Any], unreachable: Callable[[], AsyncRouter]
) -> None:
    options["router"] = router = unreachable()
    with pytest.raises(AssertionError, match="did not start"):
        async with serving(starlette_app(options)):
            pass
    assert repr(router) == "<AsyncRouter closed>"


async def test_an_application_that_fails_to_start_closes_the_router(
    options: dict[str, Any],
) -> None:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no")
        yield

    options["router"] = router = options["router"]()
    app = Starlette(lifespan=lifespan)
    app.add_middleware(SfrouteMiddleware, **options)
    with pytest.raises(AssertionError, match="did not start"):
        async with serving(app):
            pass
    assert repr(router) == "<AsyncRouter closed>"


# --- extractors


def scope_of(path: str = "/", headers: dict[str, str] | None = None, **more: Any) -> Scope:
    raw = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
    return {"type": "http", "path": path, "headers": raw, **more}


@pytest.mark.parametrize(
    ("header", "uid"),
    [
        ("uid=ada", "ada"),
        ("a=1; uid=ada ;b=2", "ada"),
        ('uid="ada"', "ada"),
        ("uid=a=b", "a=b"),
        ("uid=ada; uid=ada", "ada"),
        ("uid=ada; uid=grace", None),
        ("uid=", None),
        ("nuid=ada; UID=ada; uid", None),
        ("", None),
    ],
)
def test_cookies(header: str, uid: str | None) -> None:
    assert CookieUid("uid")(scope_of(headers={"cookie": header})) == uid


@pytest.mark.parametrize(
    ("path", "uid"),
    [
        ("/users/ada", "ada"),
        ("/users/ada/messages/7", "ada"),
        ("/users/", None),
        ("/users", None),
        ("//users/ada", None),
        ("/people/ada", None),
        ("/users/a%2Fb", "a/b"),
        ("/users/Zo%C3%AB", "Zoë"),
        ("/users/%FF", None),
        ("/api/users/ada", "ada"),
        ("/apiusers/ada", None),
    ],
)
def test_paths(path: str, uid: str | None) -> None:
    scope = scope_of("not looked at", raw_path=path.encode(), root_path="/api")
    assert PathUid("/users/{uid}")(scope) == uid


def test_a_path_without_its_raw_form() -> None:
    assert PathUid("/users/{uid}/x")(scope_of("/users/Zoë/x")) == "Zoë"


def test_headers_are_utf_8() -> None:
    assert HeaderUid("x-user")(scope_of(headers={"X-User": "Zoë"})) == "Zoë"
    # Its last byte, 0xA0, is a blank in Latin-1.
    assert CookieUid("uid")(scope_of(headers={"cookie": "uid=voilà"})) == "voilà"


def test_another_cookie_that_is_no_utf_8_does_no_harm() -> None:
    scope = {"type": "http", "path": "/", "headers": [(b"cookie", b"name=Zo\xeb; uid=ada")]}
    assert CookieUid("uid")(scope) == "ada"


def test_what_the_application_is_given_does_not_show_the_uid(options: dict[str, Any]) -> None:
    routed = Routed(UID, Link(7, True, "store"), options["router"](), "production", "chat")
    assert UID not in repr(routed)
    assert (routed.pod, routed.uid) == (7, UID)


@pytest.mark.parametrize(
    "wrong",
    [
        {"namespace": "a:b"},
        {"service": ""},
        {"uid": "x-user-id"},
        {"router": "redis://127.0.0.1"},
        {"persist_seconds": 0},
        {"policy": object()},
        {"exempt": "/healthz"},
    ],
)
def test_mistakes_are_told_when_it_is_set_up(
    options: dict[str, Any], wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument):
        bare_app(options | wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HeaderUid(""),
        lambda: HeaderUid("x user"),
        lambda: CookieUid("a=b"),
        lambda: PathUid("users/{uid}"),
        lambda: PathUid("/users/{id}"),
        lambda: PathUid("/{uid}/{uid}"),
        lambda: PathUid("/users/u{uid}"),
    ],
)
def test_extractors_are_checked_too(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument):
        make()
