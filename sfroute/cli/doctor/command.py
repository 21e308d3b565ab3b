"""The ``doctor`` command: gathers, judges, writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Final

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ...config import PlacementConfig, RouterConfig
from ...errors import SfrouteError
from ...keys import check_service_names
from ...types import Pod
from ..common import (
    CLIENT_NAME,
    FAILED,
    AsJson,
    Url,
    as_json_line,
    open_router,
    printable,
    require,
    run,
    show,
)
from ..keyspace import Keyspace, look_at_keys
from ..nodes import Store, open_store
from ..progress import counting
from .data import judge_keys, judge_pods
from .findings import Check, Finding
from .rights import gather_rights, judge_rights, rights
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
    checks = run(
        _examine(url, namespace, service if not keys else "", keys, show_uids, pod_timeout)
    )
    if as_json:
        for check in checks:
            sys.stdout.write(as_json_line(check.fields()))
    else:
        _write(checks)
    verdicts = {check.verdict for check in checks}
    if "error" in verdicts or (strict and "warning" in verdicts):
        raise typer.Exit(FAILED)


async def _examine(
    url: str, namespace: str, service: str, keys: bool, show_uids: bool, pod_timeout: float
) -> list[Check]:
    # That no server answers is a finding too.
    try:
        async with open_store(url) as store:
            servers = await gather_servers(store)
            checks = judge_servers(
                servers, cluster=store.cluster, silent=store.silent, pod_timeout=pod_timeout
            )
            wanted = rights(namespace or _NO_NAMESPACE, cluster=store.cluster)
            if namespace:
                checks.append(judge_rights(await gather_rights(store, wanted)))
            checks += judge_router(await gather_router(url, namespace or _NO_NAMESPACE, store))
            if not namespace:
                why = "without --namespace they are not looked at"
                return [*checks, Check("data", f"rights, keys and pods: {why}", skipped=True)]
            seen = Keyspace()
            if keys:
                seen = await _look(store, namespace)
                checks.append(judge_keys(seen, show_uids=show_uids))
            services = await _pods(url, namespace, seen, service, pod_timeout)
            if isinstance(services, Finding):
                return [*checks, Check("pods", "they could not be read", (services,))]
            return checks + judge_pods(services, seen.links, pod_timeout)
    except SfrouteError as error:
        if isinstance(error, ValueError):
            raise
        finding = Finding(
            "error", str(error), "check the URL, that the servers run, user name and password"
        )
        return [Check("servers", "the store cannot be used", (finding,))]


async def _look(store: Store, namespace: str) -> Keyspace:
    with counting("looking at keys", await store.key_count()) as progress:
        return await look_at_keys(store, namespace, progress)


async def _pods(
    url: str, namespace: str, seen: Keyspace, service: str, pod_timeout: float
) -> Mapping[str, Mapping[int, Pod]] | Finding:
    config = RouterConfig(
        client_name=CLIENT_NAME, placement=PlacementConfig(pod_timeout=pod_timeout)
    )
    names = seen.services | {name for name, _ in seen.links} | ({service} if service else set())
    found: dict[str, Mapping[int, Pod]] = {}
    try:
        async with open_router(url, config) as router:
            for name in sorted(names):
                found[name] = await router.get_pods(namespace, name, fresh=True)
    except SfrouteError as error:
        return Finding("error", str(error), "see above")
    return found


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
    parts.append(Text(f"{errors} errors, {warnings} warnings", style="bold"))
    show(*parts)
