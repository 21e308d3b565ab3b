"""The page on gateways: its code is run, its tables are those of the code, its excerpts are in the files."""

from __future__ import annotations

import json
import re
from contextlib import closing
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="the group `examples` is not installed")

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from support.documents import ROOT, block, executed

import sfroute.asgi
from sfroute import AsyncPodAgent, AsyncRouter, Router
from sfroute.asgi import HeaderUid, Routed, SfrouteMiddleware
from sfroute.embedded import LocalCluster
from web.serving import serving
from web.test_wsgi import on_threads

PAGE = "docs/how-to/gateway.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "gateway"


@pytest.fixture(autouse=True)
def no_other_pages(sfroute_cluster: LocalCluster) -> None:
    """Other pages, and other blocks of this one, have users and pods of the same names."""
    for node in sfroute_cluster.nodes:
        node.commands(("FLUSHALL",))


async def test_the_application_of_the_page(sfroute_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        await router.set_service_state("production", "chat", 4, "Running")
        await router.set_linked_pod("production", "page-ada", "chat", 4)
    with executed(block(PAGE, "python", 0), sfroute_cluster.url) as names:
        async with serving(names["app"]) as site:
            ada = await site.get("/where", headers={"x-user-id": "page-ada"})
            assert ada.json() == {"pod": 4}
            assert (await site.get("/where")).status_code == 400
            assert (await site.get("/healthz")).json() == "ok"


async def test_two_services_of_the_page(sfroute_cluster: LocalCluster) -> None:
    async def where(request: Request) -> Response:
        return JSONResponse([request.scope["chat"].pod, request.scope["game"].pod])

    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        for pod, service in ((4, "chat"), (1, "game")):
            await router.set_linked_pod("production", "page-ada", service, pod)
    with executed(block(PAGE, "python", 1)) as names:
        app = names["gateway"](sfroute_cluster.url, [Route("/", where)])
        async with serving(app) as site:
            assert (await site.get("/", headers={"x-user-id": "page-ada"})).json() == [4, 1]


async def test_the_dependency_of_the_page(sfroute_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        await router.set_linked_pod("production", "page-ada", "chat", 4)
    with executed(block(PAGE, "python", 2)) as names:
        names["app"].add_middleware(
            SfrouteMiddleware,
            router=lambda: AsyncRouter.from_url(sfroute_cluster.url),
            namespace="production",
            service="chat",
            uid=HeaderUid("x-user-id"),
            required=False,
        )
        async with serving(names["app"]) as site:
            assert (await site.get("/where", headers={"x-user-id": "page-ada"})).json() == 4
            # A programmer's mistake: the path needs a user.
            assert (await site.get("/where")).status_code == 500


def test_flask_on_the_page(sfroute_cluster: LocalCluster) -> None:
    with Router.from_url(sfroute_cluster.url) as router:
        router.set_linked_pod("production", "page-ada", "chat", 4)
    with (
        executed(block(PAGE, "python", 3), sfroute_cluster.url) as names,
        closing(names["app"].wsgi_app._router()),
        on_threads(names["app"]) as client,
    ):
        assert client.get("/where", headers={"x-user-id": "page-ada"}).json() == {"pod": 4}


async def test_the_pod_of_the_page(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> None:
    async with (
        AsyncRouter.from_url(sfroute_cluster.url) as router,
        AsyncPodAgent(router, sfroute_namespace, "chat", 3) as agent,
    ):
        with executed(block(PAGE, "python", 4)) as names:
            async with serving(names["pod"](agent, None)) as site:
                saved = await site.get("/save", headers={"x-sfroute-uid": "ada"})
                claim = agent.claim_of("ada")
                assert claim is not None
                assert saved.json() == {"fence": claim.fence}


async def test_the_retry_of_the_page(sfroute_cluster: LocalCluster) -> None:
    refused: list[int] = []

    async def send_to(pod: int) -> int:
        if not refused:
            refused.append(pod)
            raise ConnectionRefusedError
        return pod

    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        for pod in (0, 1):
            await router.set_service_state("page", "chat", pod, "Running")
        link = await router.route("page", "ada", "chat")
        routed = Routed("ada", link, router, "page", "chat")
        with executed(block(PAGE, "python", 5)) as names:
            moved_to = await names["forward"](SimpleNamespace(scope={"sfroute": routed}), send_to)
        assert [*refused, moved_to] == [link.pod, 1 - link.pod]


async def test_reporting_on_the_page(sfroute_cluster: LocalCluster) -> None:
    dialed: list[str] = []
    errors: list[type[Exception]] = []

    async def dial(address: str) -> None:
        dialed.append(address)
        if errors:
            raise errors.pop()

    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        for pod in (0, 1):
            state = json.dumps({"status": "Running", "address": f"pod-{pod}:80"})
            await router.set_service_state("production", "chat", pod, state)
        await router.remove_linked_pod("production", "page-bob", "chat")
        with executed(block(PAGE, "python", 6)) as names:
            errors = [ConnectionRefusedError]
            await names["connect"](router, "page-bob", dial)
            assert sorted(dialed) == ["pod-0:80", "pod-1:80"]
            assert router.stats().ejected == {("production", "chat"): (int(dialed[0][4]),)}
            errors = [TimeoutError]
            with pytest.raises(TimeoutError):
                await names["connect"](router, "page-bob", dial)
            assert router.stats().failures_reported == 2
            assert await router.get_linked_pod("production", "page-bob", "chat") == int(
                dialed[1][4]
            )


def test_the_manifest_of_the_page_is_that_of_the_example() -> None:
    manifest = (ROOT / "deploy" / "base" / "pods.yaml").read_text(encoding="utf-8")
    assert block(PAGE, "yaml", 0).text in manifest


def test_what_the_page_names_is_there() -> None:
    files = re.findall(r"`(\w+\.py)`", TEXT)
    assert [name for name in files if not (EXAMPLE / name).is_file()] == []
    assert {"gateway.py", "http_proxy.py", "pod.py"} <= set(files)
    missing = {name for name in sfroute.asgi.__all__ if name not in TEXT}
    # Types.
    assert missing == {
        *("UidExtractor", "ASGIApp", "Exempt", "Message", "Receive", "Scope", "Send"),
    }
