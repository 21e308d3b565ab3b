"""``sfroute gateways``: which routers are connected, and where they differ."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from .._contract.keys import CONTRACT_VERSION
from .clients import Clients, ConnectedRouter, Differences, differing, gather_clients, odd_in
from .common import (
    FAILED,
    NO,
    AsJson,
    Url,
    as_json_line,
    complain,
    counted,
    listed,
    plain_table,
    printable,
    require,
    run,
    shortened,
    show,
)
from .nodes import open_store

__all__ = ["gateways", "show_all", "write_json"]

_SHOWN: Final = 3


def gateways(
    url: Url = "",
    name: Annotated[
        str,
        typer.Option(
            "--name", help="Compare only the routers whose RouterConfig.client_name is this."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show which routers are connected, and mark where they differ: why do my gateways disagree?

    Every router counts, those of pods too: each says its versions and its settings in the name of its connections,
    which CLIENT LIST shows. PUSHED: how many servers push to it what changes, of those that it is connected to. A
    router asks for that where it looks links up: fewer is normal for one that looks up little, and 0 for one that only
    writes. 0 is also that tracking is refused or switched off; then answers are kept for less time.
    ENTRIES: the answers in its cache. LAG: its slowest heartbeat of late; it says both every ten seconds. IDLE: how
    long ago a server heard of it. DIFFERS: in how many settings it is not like most. Programs without sfroute come as
    CLIENT LIST has them.

    Exit code 3 if two routers differ, or if there is none. Exit code 1 if a server does not tell.
    """
    require(url=url)

    async def work() -> Clients:
        async with open_store(url) as store:
            return await gather_clients(store)

    found = run(work())
    routers = [one for one in found.routers if not name or one.said.name == name]
    differences = differing(routers)
    if as_json:
        write_json(found, routers, differences)
    else:
        show_all(found, routers, differences)
    for address, why in found.unread.items():
        complain(f"{address} does not tell who is connected ({why})")
    if "NOPERM" in found.unread.values():
        complain("give the user the right: +client|list")
    if not routers:
        where = " to those that tell" if found.unread else ""
        complain(f"no router is connected{where}" + (f" under the name {name!r}" if name else ""))
    if found.unread:
        raise typer.Exit(FAILED)
    if differences or not routers:
        raise typer.Exit(NO)


def _fields(router: ConnectedRouter, differences: Differences) -> dict[str, Any]:
    said = router.said
    return {
        "router": said.router,
        "name": said.name,
        "hosts": sorted(router.hosts),
        "version": said.version,
        "contract": said.contract,
        "settings": dict(said.settings),
        "differs": odd_in(router, differences),
        "connections": router.connections,
        "servers": sorted(router.servers),
        "pushed_by": sorted(router.tracked),
        "entries": router.entries,
        "lag_ms": router.lag_ms,
        "age": router.age,
        "idle": router.idle,
        "unread_bytes": router.unread,
    }


def write_json(
    found: Clients,
    routers: Sequence[ConnectedRouter],
    differences: Differences,
) -> None:
    """For programs: all that is known."""
    for router in routers:
        sys.stdout.write(as_json_line(_fields(router, differences)))
    for program, hosts in found.others.items():
        line = {
            "router": None,
            "name": program.name,
            "library": program.library,
            "connections": hosts.total(),
            "hosts": sorted(hosts),
        }
        sys.stdout.write(as_json_line(line))


def show_all(
    found: Clients,
    routers: Sequence[ConnectedRouter],
    differences: Differences,
) -> None:
    """For people."""
    if routers:
        headings = ["ROUTER", "NAME", "HOST", "VERSION", ">PUSHED", ">ENTRIES", ">LAG", ">IDLE"]
        rows = [_cells(router) for router in routers]
        if differences:
            headings.append(">DIFFERS")
            for cells, router in zip(rows, routers, strict=True):
                odd = odd_in(router, differences)
                cells.append(Text(f"in {len(odd)}" if odd else "-", style="yellow" if odd else ""))
        show(plain_table(headings, rows))
    for setting, having in differences.items():
        values = [f"{value} at {listed(those, _SHOWN)}" for value, those in having.items()]
        more = f"; {len(values) - _SHOWN} more values" if len(values) > _SHOWN else ""
        show(Text(printable(f"{setting}: {'; '.join(values[:_SHOWN])}{more}"), style="yellow"))
    if found.others:
        others = [
            [
                shortened(one.name) or "-",
                shortened(one.library) or "-",
                hosts.total(),
                _hosts(hosts),
            ]
            for one, hosts in found.others.items()
        ]
        show("", plain_table(["OTHER PROGRAM", "LIBRARY", ">CONNECTIONS", "HOST"], others))
    if routers and not differences:
        show(f"{counted(len(routers), 'router')}, all alike")


def _cells(router: ConnectedRouter) -> list[str | Text]:
    said = router.said
    known = said.contract == str(CONTRACT_VERSION)
    contract = "" if known else f" (contract {said.contract or '?'})"
    return [
        said.router,
        shortened(said.name, 24),
        _hosts(router.hosts),
        f"{said.version}{contract}",
        f"{len(router.tracked)} of {len(router.servers)}",
        "-" if router.entries is None else f"{router.entries:,}",
        "-" if router.lag_ms is None else f"{router.lag_ms} ms",
        f"{router.idle} s",
    ]


def _hosts(hosts: Sequence[str] | Mapping[str, int] | set[str]) -> str:
    first, *more = sorted(hosts) or [""]
    return f"{shortened(first)} and {len(more)} more" if more else shortened(first)
