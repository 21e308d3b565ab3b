"""The page on gateways: its code is run, its tables are those of the code, its excerpts are in the files."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the group `examples` is not installed")

from test_documents import URLS, blocks

import sfroute.asgi
from sfroute import AsyncRouter
from sfroute.asgi import Routed
from sfroute.embedded import LocalCluster
from web.serving import serving

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "how-to" / "gateway.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "gateway"


def run(block: str, url: str) -> dict[str, Any]:
    defined: dict[str, Any] = {}
    exec(compile(URLS.sub(url, block), "gateway.md", "exec"), defined)
    return defined


async def test_the_application_of_the_page(sfroute_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        await router.set_service_state("production", "chat", 4, "Running")
        await router.set_linked_pod("production", "page-ada", "chat", 4)
    async with serving(run(blocks(PAGE, "python")[0], sfroute_cluster.url)["app"]) as site:
        assert (await site.get("/where", headers={"x-user-id": "page-ada"})).json() == {"pod": 4}
        assert (await site.get("/where")).status_code == 400
        assert (await site.get("/healthz")).json() == "ok"


async def test_the_retry_of_the_page(sfroute_cluster: LocalCluster) -> None:
    forward = run(blocks(PAGE, "python")[1], sfroute_cluster.url)["forward"]
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
        moved_to = await forward(SimpleNamespace(scope={"sfroute": routed}), send_to)
        assert [*refused, moved_to] == [link.pod, 1 - link.pod]


def test_every_block_of_the_page_is_looked_at() -> None:
    assert len(re.findall(r"^```\w+$", PAGE, flags=re.MULTILINE)) == 4
    assert len(blocks(PAGE, "python")) == 2
    (excerpt,) = blocks(PAGE, "yaml")
    assert excerpt in (EXAMPLE / "kubernetes" / "pods.yaml").read_text(encoding="utf-8")
    (command,) = blocks(PAGE, "console")
    target = command.split()[2]
    assert f"\n{target}: " in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_what_the_page_names_is_there() -> None:
    files = re.findall(r"`(\w+\.py)`", PAGE)
    assert [name for name in files if not (EXAMPLE / name).is_file()] == []
    assert {"gateway.py", "http_proxy.py", "pod.py"} <= set(files)
    missing = [name for name in sfroute.asgi.__all__ if f"{name}" not in PAGE]
    assert missing == ["UidExtractor"]
