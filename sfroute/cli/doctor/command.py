"""The ``doctor`` command: gathers, judges, writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ...config import PlacementConfig
from ...errors import StoreError
from ...keys import check_service_names
from ...types import Pod
from ..common import (
    FAILED,
    AsJson,
    Url,
    as_json_line,
    counted,
    open_router,
    printable,
    require,
    run,
    show,
)
from ..keyspace import Keyspace, look_at_keys
from ..nodes import Store, open_store
from ..pods import router_config
from ..progress import counting
from .data import judge_keys, judge_pods
from .findings import Check, Finding
from .rights import Kind, gather_rights, judge_rights, rights
from .router import gather_router, judge_router
from .server_facts import gather_servers
from .servers import judge_servers

__all__ = ["doctor"]

_COLOURS: Final = {"ok": "green", "skipped": "dim", "warning": "yellow", "error": "bold red"}
_NO_NAMESPACE: Final = "sfroute-doctor"


def doctor(
    url: Url = "",
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            envvar="SFROUTE_NAMESPACE",
            help="Whose keys and pods to look at; without it only the servers are looked at.",
        ),
    ] = "",
    service: Annotated[
        str,
        typer.Option(
            "--service",
            envvar="SFROUTE_SERVICE",
            help="With --no-keys, whose pods to look at; otherwise all services that are found.",
        ),
    ] = "",
    keys: Annotated[
        bool, typer.Option("--keys/--no-keys", help="Look at every key of the namespace.")
    ] = True,
    user: Annotated[
        Kind,
        typer.Option("--user", help="What the URL's user is there for: whose rights it must have."),
    ] = Kind.OPERATOR,
    show_uids: Annotated[
        bool, typer.Option("--show-uids", help="Name keys in full. They contain uids.")
    ] = False,
    pod_timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds of silence after which the gateways take a pod for dead."
        ),
    ] = PlacementConfig().pod_timeout,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with the store, the rights, the keys and the pods, and say what to do about it.

    Nothing is changed. Exit code 1: there are errors. Warnings alone end with 0, unless --strict is given.
    """
    require(url=url)
    if namespace:
        check_service_names(namespace, service or "any")
    request = _Request(url, namespace, service, keys, user, show_uids, pod_timeout)
    checks = run(_examine(request))
    if as_json:
        for check in checks:
            sys.stdout.write(as_json_line(check.fields()))
    else:
        _write(checks)
    verdicts = {check.verdict for check in checks}
    if "error" in verdicts or (strict and "warning" in verdicts):
        raise typer.Exit(FAILED)


@dataclass(frozen=True, slots=True)
class _Request:
    """What shall be looked at."""

    url: str = field(repr=False)
    namespace: str
    service: str
    keys: bool
    user: Kind
    show_uids: bool
    pod_timeout: float


async def _examine(request: _Request) -> list[Check]:
    # That no server answers is a finding too.
    try:
        async with open_store(request.url) as store:
            servers = await gather_servers(store)
            checks = judge_servers(
                servers,
                cluster=store.cluster,
                silent=store.silent,
                pod_timeout=request.pod_timeout,
            )
            # Nothing more is asked of those that do not answer: each question would wait in vain.
            dead = {facts.address for facts in servers if facts.trouble is not None}
            store.nodes = [node for node in store.nodes if node.address not in dead]
            return checks + await _examine_use(request, store)
    except StoreError as error:
        finding = Finding(
            "error", str(error), "check the URL, that the servers run, user name and password"
        )
        return [Check("servers", "the store cannot be used", (finding,))]


async def _examine_use(request: _Request, store: Store) -> list[Check]:
    namespace = request.namespace
    if not namespace:
        checks = judge_router(await gather_router(request.url, _NO_NAMESPACE, store))
        why = "without --namespace they are not looked at"
        return [*checks, Check("data", f"rights, keys and pods: {why}", skipped=True)]
    wanted = rights(namespace, request.user, cluster=store.cluster)
    checks = [judge_rights(await gather_rights(store, wanted))]
    checks += judge_router(await gather_router(request.url, namespace, store))
    seen = Keyspace()
    if request.keys:
        seen = await _look(store, namespace)
        checks.append(judge_keys(seen, show_uids=request.show_uids))
    services, unread = await _pods(request, seen)
    links = seen.links if request.keys else None
    checks += judge_pods(services, links, request.pod_timeout)
    return [*checks, Check("states", "not all could be read", unread)] if unread else checks


async def _look(store: Store, namespace: str) -> Keyspace:
    with counting("looking at keys", await store.key_count()) as progress:
        return await look_at_keys(store, namespace, progress)


async def _pods(
    request: _Request, seen: Keyspace
) -> tuple[Mapping[str, Mapping[int, Pod]], tuple[Finding, ...]]:
    """The pods of each service, and what there was in the way."""
    names = seen.services | {name for name, _ in seen.links}
    if request.service and not request.keys:
        names.add(request.service)
    found: dict[str, Mapping[int, Pod]] = {}
    findings: list[Finding] = []
    try:
        async with open_router(request.url, router_config(request.pod_timeout)) as router:
            for name in sorted(names):
                try:
                    found[name] = await router.get_pods(request.namespace, name, fresh=True)
                except StoreError as error:
                    findings.append(Finding("error", str(error), "see the keys and the rights"))
    except StoreError as error:
        findings.append(Finding("error", str(error), "see the servers"))
    return found, tuple(findings)


def _write(checks: list[Check]) -> None:
    parts: list[RenderableType] = []
    for check in checks:
        verdict = check.verdict
        line = Text()
        line.append(f"{verdict:<9}", style=_COLOURS[verdict])
        line.append(f"{check.name:<10}", style="bold")
        line.append(printable(check.summary))
        parts.append(line)
        for finding in check.findings:
            text = Text(printable(finding.text))
            text.append(f"\n-> {printable(finding.remedy)}", style="italic")
            parts.append(Padding(text, (0, 0, 0, 9)))
    errors, warnings = (
        sum(finding.severity == severity for check in checks for finding in check.findings)
        for severity in ("error", "warning")
    )
    parts.append(Text(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}", style="bold"))
    show(*parts)
