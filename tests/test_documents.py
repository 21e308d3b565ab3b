"""What the documents show is run, and does what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from support.documents import ROOT, URLS, block, executed, pages, typed

from sfroute import AsyncRouter, Router
from sfroute._contract.scripts import SCRIPTS
from sfroute.embedded import LocalCluster

README = "README.md"


@dataclass
class Request:
    """What the gateway of the README is given."""

    uid: str
    forwarded: list[str] = field(default_factory=list)

    async def forward(self, address: str) -> None:
        self.forwarded.append(address)


async def test_the_first_block_of_the_readme_is_a_gateway(sfroute_cluster: LocalCluster) -> None:
    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        for pod in (0, 5):
            await router.set_service_state("production", "chat", pod, "Running")
        await router.set_linked_pod("production", "readme-ada", "chat", 0)
        await router.set_linked_pod("production", "readme-grace", "chat", 5)
    requests = [Request("readme-ada"), Request("readme-grace"), Request("readme-ada")]

    async def stream() -> AsyncIterator[Request]:
        for request in requests:
            yield request

    shown = block(README, "python", 0)
    assert len([line for line in shown.text.splitlines() if line.strip()]) <= 10
    with executed(shown, sfroute_cluster.url) as names:
        await names["gateway"](stream())
    assert [request.forwarded for request in requests] == [
        ["chat-0.chat:8080"],
        ["chat-5.chat:8080"],
        ["chat-0.chat:8080"],
    ]


def test_the_second_block_of_the_readme_links_and_demotes(sfroute_cluster: LocalCluster) -> None:
    with executed(block(README, "python", 1)) as names:
        names["main"](sfroute_cluster.url)
    with Router.from_url(sfroute_cluster.url) as router:
        # Still there for half a minute, but no longer persistent.
        assert router.get_linked_pod("production", "ada", "chat") == 2
        assert router.get_linked_pod_if_persist("production", "ada", "chat") is None


async def test_the_third_block_of_the_readme_is_a_pod(sfroute_cluster: LocalCluster) -> None:
    async def events() -> AsyncIterator[tuple[str, bool]]:
        for connected in (True, False):
            yield "readme-linus", connected

    with executed(block(README, "python", 2)) as names:
        await names["pod"](sfroute_cluster.url, 7, events())
    async with AsyncRouter.from_url(sfroute_cluster.url) as router:
        assert await router.get_linked_pod("production", "readme-linus", "chat") == 7
        assert await router.get_linked_pod_if_persist("production", "readme-linus", "chat") is None
        assert (await router.get_pods("production", "chat", fresh=True))[7].status == "Stopped"


def test_the_shell_block_of_the_readme_routes_a_file(
    sfroute_cluster: LocalCluster, tmp_path: Path
) -> None:
    with Router.from_url(sfroute_cluster.url) as router:
        for uid, pod in (("ada", 2), ("grace", 0)):
            router.set_service_state("production", "chat", pod, "Running")
            router.set_linked_pod("production", uid, "chat", pod)
    (tmp_path / "uids.txt").write_text("ada\ngrace\n")
    (entry,) = typed(block(README, "console", 3))
    command = URLS.sub(sfroute_cluster.url, entry.command)
    done = subprocess.run(
        command.replace("sfroute", f"{sys.executable} -m sfroute.cli", 1),
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == list(entry.shown)


def test_links_between_documents_lead_somewhere() -> None:
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def anchors_of(page: Path) -> set[str]:
    """The fragments of its headings, as code hosts make them."""
    text = re.sub(
        r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_headings_lead_to_one() -> None:
    seen = 0
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        for target, fragment in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", text):
            there = (ROOT / page).parent.joinpath(target) if target else ROOT / page
            assert fragment in anchors_of(there), f"{page} links to {target}#{fragment}"
            seen += 1
    assert seen > 20


def test_every_method_of_the_routers_is_documented() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    missing = [
        name
        for name in vars(Router)
        if callable(getattr(Router, name)) and not name.startswith("_") and f"`{name}" not in text
    ]
    assert missing == []


def test_every_script_is_documented() -> None:
    text = (ROOT / "lua_scripts" / "README.md").read_text(encoding="utf-8")
    assert [name for name in SCRIPTS if f"`{name}`" not in text] == []
