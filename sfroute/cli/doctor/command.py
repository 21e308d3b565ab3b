"""The ``doctor`` command: gathers, judges, writes."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Final

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ..._contract.keys import check_service_names
from ..._fronts.router import AsyncRouter
from ...config import PlacementConfig
from ...errors import StoreError
from ...telemetry import PodsSeen
from ...types import Pod
from ..claims import Flawed
from ..clients import gather_clients
from ..common import (
    FAILED,
    AsJson,
    Idle,
    Url,
    as_json_line,
    complain,
    counted,
    open_router,
    printable,
    require,
    run,
    show,
)
from ..keyspace import Keyspace, Names, look_at_keys, look_for_names
from ..nodes import Store, open_store
from ..pods import pods_in_numbers
from ..progress import counting
from .data import View, judge_keys, judge_pods
from .findings import Check, Finding, remedy_of
from .fleet import judge_fleet
from .repair import mend
from .rights import Kind, gather_rights, judge_rights, rights
from .router import gather_router, hurried, judge_router
from .server_facts import gather_servers
from .servers import judge_servers

__all__ = ["doctor"]

_COLOURS: Final = {"ok": "green", "skipped": "dim", "warning": "yellow", "error": "bold red"}
_SILENCE_SECONDS: Final = 1.0
_NO_NAMESPACE: Final = "sfroute-doctor"


def doctor(
    url: Url = "",
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            envvar="SFROUTE_NAMESPACE",
            help="The namespace whose keys and pods to check; without it only the servers are checked.",
        ),
    ] = "",
    service: Annotated[
        str,
        typer.Option(
            "--service",
            envvar="SFROUTE_SERVICE",
            help="With --no-keys, the service whose pods to check; otherwise all services that are found.",
        ),
    ] = "",
    keys: Annotated[
        bool, typer.Option("--keys/--no-keys", help="Look at every key of the namespace.")
    ] = True,
    user: Annotated[
        Kind,
        typer.Option(
            "--user", help="The role of the URL's user, which decides the rights it must have."
        ),
    ] = Kind.OPERATOR,
    show_uids: Annotated[
        bool, typer.Option("--show-uids", help="Name keys in full. They contain uids.")
    ] = False,
    pod_timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Seconds of silence after which gateways treat a pod without a lease as dead.",
        ),
    ] = PlacementConfig().pod_timeout,
    idle: Idle = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Restore evicted links and hash entries, and end orphaned claims. It asks first.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --repair: do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the store, the rights, the keys and the pods, and say what is wrong and what to do about it.

    It changes nothing, unless --repair is given. Exit code 1: there are errors. With warnings alone it is 0, unless
    --strict is given.
    """
    require(url=url)
    if namespace:
        check_service_names(namespace, service or "any")
    if repair and not (namespace and keys):
        raise typer.BadParameter("it needs --namespace and all keys", param_hint="--repair")
    if idle is not None and not (namespace and keys):
        raise typer.BadParameter("it needs --namespace and all keys", param_hint="--idle")
    request = _Request(url, namespace, service, keys, user, show_uids, pod_timeout, idle)
    patient = Patient()
    run(_tell(request, patient, as_json=as_json))
    if repair:
        mend(request.url, namespace, patient.flawed, yes=yes, as_json=as_json)
    verdicts = patient.verdicts
    if "error" in verdicts or (strict and "warning" in verdicts):
        raise typer.Exit(FAILED)


@dataclass(slots=True)
class Patient:
    """The findings so far.

    Attributes:
        verdicts: of all checks.
        flawed: what a repair can mend.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    flawed: list[Flawed] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Request:
    """What to examine."""

    url: str = field(repr=False)
    namespace: str
    service: str
    keys: bool
    user: Kind
    show_uids: bool
    pod_timeout: float
    idle: float | None


@dataclass(frozen=True, slots=True)
class _Hidden:
    """What cannot be seen.

    Attributes:
        servers: how many servers do not answer.
        primaries: those of them that are primaries, and why.
        slots: how many slots no server has.
    """

    servers: int
    primaries: Mapping[str, str]
    slots: int

    @property
    def keys(self) -> bool:
        """Nothing is known of some keys."""
        return bool(self.primaries or self.slots)

    def at_servers(self, check: Check) -> Check:
        """A check of every server."""
        return check.of_some() if self.servers else check

    def at_primaries(self, check: Check) -> Check:
        """A check of every primary."""
        at_each = check.name in ("tracking", "scripts")
        return check.of_some() if self.keys and at_each else check


async def _tell(request: _Request, patient: Patient, *, as_json: bool) -> None:
    """Write each check as soon as it is made."""
    waiting = asyncio.get_running_loop().call_later(
        _SILENCE_SECONDS, complain, "asking the servers; one that does not answer takes a while"
    )
    async with aclosing(_examine(request, patient)) as checks:
        async for check in checks:
            waiting.cancel()
            patient.verdicts[check.verdict] += 1
            patient.findings.update(finding.severity for finding in check.findings)
            if as_json:
                sys.stdout.write(as_json_line(check.fields()))
            else:
                _write(check)
            sys.stdout.flush()
    if not as_json:
        errors, warnings = (patient.findings[severity] for severity in ("error", "warning"))
        show(Text(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}", style="bold"))


async def _examine(request: _Request, patient: Patient) -> AsyncGenerator[Check]:
    # That no server answers is a finding too.
    try:
        async with open_store(request.url) as store:
            servers = await gather_servers(store)
            for check in judge_servers(
                servers,
                cluster=store.cluster,
                silent=store.silent,
                pod_timeout=request.pod_timeout,
            ):
                yield check
            # Nothing more is asked of those that do not answer: each question would wait in vain.
            unseen = {
                facts.address: facts.trouble for facts in servers if facts.trouble is not None
            }
            hidden = _Hidden(
                servers=len(unseen),
                primaries={
                    str(node.address): unseen[node.address]
                    for node in store.primaries
                    if node.address in unseen
                },
                slots=store.unserved,
            )
            store.nodes = [node for node in store.nodes if node.address not in unseen]
            yield hidden.at_servers(judge_fleet(await gather_clients(store)))
            async with aclosing(_examine_use(request, store, hidden, patient)) as checks:
                async for check in checks:
                    yield check
    except StoreError as error:
        finding = Finding(
            "error", str(error), "check the URL, that the servers run, user name and password"
        )
        yield Check("servers", "the store cannot be used", (finding,))


async def _examine_use(
    request: _Request, store: Store, hidden: _Hidden, patient: Patient
) -> AsyncGenerator[Check]:
    namespace = request.namespace
    if not namespace:
        for check in judge_router(await gather_router(request.url, _NO_NAMESPACE, store)):
            yield hidden.at_primaries(check)
        why = "without --namespace they are not looked at"
        yield Check("data", f"rights, keys and pods: {why}", skipped=True)
        return
    wanted = rights(namespace, request.user, cluster=store.cluster)
    yield hidden.at_servers(judge_rights(await gather_rights(store, wanted)))
    for check in judge_router(await gather_router(request.url, namespace, store)):
        yield hidden.at_primaries(check)
    seen = Keyspace()
    if request.keys:
        seen = await _look(store, namespace, request.idle)
        seen.missing.update(hidden.primaries)
        seen.unserved = hidden.slots
        patient.flawed = seen.repairable
        names = Names()
        if not seen.scanned and seen.complete:
            await look_for_names(store, names)
        yield judge_keys(seen, namespace, names.services, show_uids=request.show_uids)
    found, numbers, unread = await _pods(request, seen)
    links = seen.links if request.keys else None
    view = View(
        namespace,
        found,
        unread,
        numbers,
        complete=seen.complete and not hidden.keys and not unread,
        idle=seen.idle if request.idle is not None else None,
        idle_untold=seen.idle_untold,
    )
    for check in judge_pods(view, links, request.pod_timeout):
        yield check


async def _look(store: Store, namespace: str, idle: float | None) -> Keyspace:
    with counting("looking at keys", await store.key_count()) as progress:
        return await look_at_keys(store, namespace, progress, idle)


async def _pods(
    request: _Request, seen: Keyspace
) -> tuple[Mapping[str, Mapping[int, Pod]], Mapping[str, PodsSeen], tuple[Finding, ...]]:
    """The pods of each service, the same in numbers, and what prevented a look at them."""
    names = seen.services | {name for name, _ in seen.links}
    if request.service and (not request.keys or not seen.complete):
        names.add(request.service)
    found: dict[str, Mapping[int, Pod]] = {}
    numbers: dict[str, PodsSeen] = {}

    async def ask(router: AsyncRouter, name: str) -> Finding | None:
        try:
            found[name] = await router.get_pods(request.namespace, name, fresh=True)
            if (seen := pods_in_numbers(router, request.namespace, name)) is not None:
                numbers[name] = seen
        except StoreError as error:
            return Finding("error", f"service {name!r}: {error}", remedy_of(error))
        return None

    try:
        async with open_router(request.url, hurried(request.pod_timeout)) as router:
            told = await asyncio.gather(*(ask(router, name) for name in sorted(names)))
    except StoreError as error:
        return {}, {}, (Finding("error", str(error), remedy_of(error)),)
    return found, numbers, tuple(finding for finding in told if finding is not None)


def _write(check: Check) -> None:
    verdict = check.verdict
    line = Text()
    line.append(f"{verdict:<9}", style=_COLOURS[verdict])
    line.append(f"{check.name:<10}", style="bold")
    line.append(printable(check.summary))
    parts: list[RenderableType] = [line]
    for finding in check.findings:
        text = Text(printable(finding.text))
        text.append(f"\n-> {printable(finding.remedy)}", style="italic")
        parts.append(Padding(text, (0, 0, 0, 9)))
    show(*parts)
