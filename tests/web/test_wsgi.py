"""``sfroute.wsgi`` in front of Flask and Django, on servers with threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("flask", reason="the group `examples` is not installed")
pytest.importorskip("django", reason="the group `examples` is not installed")

import httpx
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path, re_path
from flask import Flask, jsonify, request
from werkzeug.serving import make_server

from sfroute import InvalidArgument, PodAgent, Router
from sfroute.asgi import CookieUid, ForwardedUid, HeaderUid, PathUid, QueryUid
from sfroute.embedded import LocalCluster
from sfroute.wsgi import PodMiddleware, SfrouteMiddleware

ADA = {"x-user-id": "ada"}


@contextmanager
def on_threads(app: Any) -> Iterator[httpx.Client]:
    """Serve it; a client of it."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=10
        ) as client:
            yield client
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def told(environ: dict[str, Any]) -> dict[str, Any]:
    """What an application of these tests answers."""
    found = environ.get("sfroute")
    forged = [name for name in environ if name.startswith("HTTP_X_SFROUTE")]
    return {"uid": found and found.uid, "pod": found and found.pod, "forged": forged}


def flask_app(options: dict[str, Any]) -> Any:
    app = Flask(__name__)

    @app.route("/", defaults={"rest": ""}, methods=["GET", "OPTIONS"])
    @app.route("/<path:rest>", methods=["GET", "OPTIONS"])
    def where(rest: str) -> Any:
        return jsonify(told(request.environ))

    app.wsgi_app = SfrouteMiddleware(app.wsgi_app, **options)  # type: ignore[method-assign]
    return app


def django_view(asked: HttpRequest, rest: str = "") -> HttpResponse:
    return JsonResponse(told(asked.META))


urlpatterns = [path("", django_view), re_path("^(?P<rest>.+)$", django_view)]


def django_app(options: dict[str, Any]) -> Any:
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, LOGGING_CONFIG=None)
    return SfrouteMiddleware(get_wsgi_application(), **options)


@pytest.fixture
def router(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Router]:
    """Ada is at pod 7."""
    with Router.from_url(sfroute_cluster.url) as router:
        for pod in (0, 7):
            router.set_service_state(sfroute_namespace, "chat", pod, "Running")
        for uid in ("ada", "Zoë/x"):
            router.set_linked_pod(sfroute_namespace, uid, "chat", 7)
        yield router


@pytest.fixture
def options(router: Router, sfroute_namespace: str) -> dict[str, Any]:
    return {
        "router": router,
        "namespace": sfroute_namespace,
        "service": "chat",
        "uid": HeaderUid("x-user-id"),
        "exempt": ["/free/*"],
    }


@pytest.fixture(params=[flask_app, django_app], ids=["flask", "django"])
def framework(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], Any]:
    made: Callable[[dict[str, Any]], Any] = request.param
    return made


def test_a_request_is_told_its_users_pod(
    framework: Callable[[dict[str, Any]], Any], options: dict[str, Any]
) -> None:
    forged = {"X-Sfroute-Uid": "grace", "X-Sfroute-Owner": "1"}
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    nobody: dict[str, Any] = {"uid": None, "pod": None, "forged": []}
    with on_threads(framework(options)) as client:
        ada = client.get("/", headers=ADA | forged)
        assert ada.json() == {"uid": "ada", "pod": 7, "forged": []}
        assert client.get("/free/x", headers=forged).json() == nobody
        assert client.options("/", headers=preflight).json() == nobody
        for headers in ({}, {"x-user-id": "a{b}"}):
            refused = client.get("/", headers=headers)
            assert (refused.status_code, refused.headers["cache-control"]) == (400, "no-store")
    with on_threads(framework(options | {"service": "empty"})) as client:
        refused = client.get("/", headers=ADA)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    with on_threads(framework(options | {"required": False})) as client:
        assert client.get("/").json() == nobody


@pytest.mark.parametrize(
    ("uid", "url", "headers"),
    [
        (PathUid("/users/{uid}"), "/users/Zo%C3%AB%2Fx", {}),
        (QueryUid("uid"), "/?uid=Zo%C3%AB%2Fx", {}),
        (CookieUid("uid"), "/", {b"cookie": "uid=Zoë/x".encode()}),
        (HeaderUid("x-user"), "/", {b"x-user": "Zoë/x".encode()}),
    ],
    ids=["path", "query", "cookie", "header"],
)
def test_a_user_has_one_name_wherever_it_is_read_from(
    options: dict[str, Any], uid: Any, url: str, headers: dict[bytes, bytes]
) -> None:
    with on_threads(flask_app(options | {"uid": uid})) as client:
        assert client.get(url, headers=headers).json()["uid"] == "Zoë/x"


def test_a_function_makes_one_router_for_all_threads(
    options: dict[str, Any], sfroute_cluster: LocalCluster
) -> None:
    made: list[Router] = []

    def make() -> Router:
        made.append(Router.from_url(sfroute_cluster.url))
        return made[-1]

    with on_threads(flask_app(options | {"router": make})) as client:
        assert made == []
        threads = [
            threading.Thread(target=client.get, args=("/",), kwargs={"headers": ADA})
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 1
    made[0].close()


def test_a_pod_serves_only_its_own_users(router: Router, sfroute_namespace: str) -> None:
    agent = PodAgent(router, sfroute_namespace, "chat", 0, sigterm=False)
    app = Flask(__name__)

    @app.get("/")
    def serve() -> Any:
        claimed = request.environ["sfroute"]
        return jsonify(uid=claimed.uid, owned=claimed.owned, how=claimed.claim.how)

    app.wsgi_app = PodMiddleware(app.wsgi_app, agent=lambda: agent)  # type: ignore[method-assign]
    with on_threads(app) as client:
        with agent:
            for _ in range(2):
                new = client.get("/", headers={"x-sfroute-uid": "grace%20h"}).json()
                assert new == {"uid": "grace h", "owned": True, "how": "placed"}
            refused = client.get("/", headers={"x-sfroute-uid": "ada"})
            assert (refused.status_code, refused.headers["x-sfroute-owner"]) == (421, "7")
            assert client.get("/").status_code == 400
            agent.pause()
            paused = client.get("/", headers={"x-sfroute-uid": "new"})
            assert (paused.status_code, paused.headers["x-sfroute-full"]) == (421, "1")
        gone = client.get("/", headers={"x-sfroute-uid": "grace%20h"})
        assert (gone.status_code, gone.headers["x-sfroute-left"]) == (421, "1")


@pytest.mark.parametrize(
    "wrong",
    [{"router": "redis://127.0.0.1"}, {"uid": ForwardedUid()}, {"exempt": "/x"}, {"key": ""}],
)
def test_mistakes_are_told_when_it_is_set_up(
    options: dict[str, Any], wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument):
        SfrouteMiddleware(lambda _environ, _start: [], **(options | wrong))
    with pytest.raises(InvalidArgument):
        PodMiddleware(lambda _environ, _start: [], agent="agent")  # type: ignore[arg-type]
