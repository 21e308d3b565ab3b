"""The page on gateways: its code is run, its tables are those of the code, its excerpts are in the files."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="the group `examples` is not installed")

from support.documents import ROOT, block, executed

import sfroute.asgi
from sfroute import AsyncRouter
from sfroute.asgi import Routed
from sfroute.embedded import LocalCluster
from web.serving import serving

PAGE = "docs/how-to/gateway.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "gateway"


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
        with executed(block(PAGE, "python", 1)) as names:
            moved_to = await names["forward"](SimpleNamespace(scope={"sfroute": routed}), send_to)
        assert [*refused, moved_to] == [link.pod, 1 - link.pod]


def test_the_manifest_of_the_page_is_that_of_the_example() -> None:
    manifest = (EXAMPLE / "kubernetes" / "pods.yaml").read_text(encoding="utf-8")
    assert block(PAGE, "yaml", 0).text in manifest


def test_what_the_page_names_is_there() -> None:
    files = re.findall(r"`(\w+\.py)`", TEXT)
    assert [name for name in files if not (EXAMPLE / name).is_file()] == []
    assert {"gateway.py", "http_proxy.py", "pod.py"} <= set(files)
    missing = [name for name in sfroute.asgi.__all__ if f"{name}" not in TEXT]
    assert missing == ["UidExtractor"]
