"""``sfroute pods`` and ``sfroute watch``: the pods of a service, now and as they change."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from .._contract.keys import check_service_names
from .._contract.pod_states import ROUTABLE, gone, rejections
from .._fronts.router import AsyncRouter
from ..config import PlacementConfig, RouterConfig
from ..telemetry import PodsSeen
from ..types import DRAINING, FAILED, STOPPED, UNKNOWN, Pod, PodChange
from .common import (
    CLIENT_NAME,
    AsJson,
    Namespace,
    Service,
    Url,
    as_json_line,
    complain,
    open_router,
    plain_table,
    printable,
    require,
    run,
    shortened,
    show,
    tell_of_outages,
    write,
)
from .keyspace import count_links
from .nodes import open_store
from .nothing import end_with_nothing
from .progress import counting

__all__ = [
    "POD_TIMEOUT",
    "PodTimeout",
    "change_words",
    "in_numbers",
    "link_counts",
    "pod_cells",
    "pod_rows",
    "pods",
    "pods_in_numbers",
    "router_config",
    "status_words",
    "watch",
]

PodTimeout = Annotated[
    float,
    typer.Option(
        min=0.1,
        help="Seconds of silence after which gateways treat a pod without a lease as dead.",
    ),
]
POD_TIMEOUT: Final = PlacementConfig().pod_timeout

_LAST_DAY: Final = 253_402_214_400_000
"""Of the calendar, 31 December 9999: where clocks are ahead of UTC, some of it is in a year that no calendar has."""
_MOST_LIVES: Final = 5
"""A state remembers four lives beside its own."""
_FIRST: Final = frozenset({"joined", "draining"})
"""What ``router.watch`` says first of a pod that is there."""


def pods(
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    links: Annotated[
        bool,
        typer.Option("--links", help="Also count the links of each pod. This scans all keys."),
    ] = False,
    pod_timeout: PodTimeout = POD_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Show the pods of a service: status, load, seconds since the last heartbeat, whether they take new users, and
    the room, address and labels of the pods that publish them.

    If a pod has restarted, also when its life started, and LIVES: how many runs of its process had the id, as far as
    its state remembers: this one, and four at most before it. One more each few seconds is a pod that crashes, or two
    processes with one id that take it from each other.

    Exit code 3 if no pod has reported. Pods that have links and report no state are shown with --links.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)

    async def work() -> tuple[dict[int, Pod], dict[int, str], Mapping[int, int] | None]:
        unreadable: dict[int, str] = {}
        async with open_router(url, router_config(pod_timeout)) as router:
            found = await router.get_pods(namespace, service, fresh=True)
            if any(pod.status == UNKNOWN for pod in found.values()):
                unreadable = await router.get_service_state(namespace, service)
        return found, unreadable, await link_counts(url, namespace, service) if links else None

    found, texts, counts = run(work())
    rows = pod_rows(found, counts, pod_timeout)
    for row in rows:
        if row["status"] == UNKNOWN and row["pod"] in texts:
            row["why_not"] = f"its state {shortened(texts[row['pod']])!r} cannot be read"
    if as_json:
        for row in rows:
            sys.stdout.write(as_json_line(row))
    elif rows:
        headings = [">POD", "STATUS", ">LOAD", ">AGE", *([">LINKS"] if links else []), "NEW USERS"]
        cells = [pod_cells(row) for row in rows]
        restarted = any(row.get("lives", 1) > 1 for row in rows)
        for heading, told in (*(_OF_LIVES if restarted else ()), *_IF_ANY):
            column = [told(row) for row in rows]
            if any(column):
                headings.append(heading)
                cells = [[*line, cell or "-"] for line, cell in zip(cells, column, strict=True)]
        show(plain_table(headings, cells))
    if not found:
        text = f"no pod of {service!r} in namespace {namespace!r} has reported a state"
        end_with_nothing(text, url=url, namespace=namespace, service=service)


def router_config(pod_timeout: float, logger: logging.Logger | None = None) -> RouterConfig:
    """The configuration of a router for which a pod is dead when it is for the gateways."""
    return RouterConfig(
        client_name=CLIENT_NAME,
        placement=PlacementConfig(pod_timeout=pod_timeout),
        logger=logger,
    )


def pods_in_numbers(router: AsyncRouter, namespace: str, service: str) -> PodsSeen | None:
    """This router's metrics of the pods that it has just read. None if no pod has reported."""
    seen = router._inside.engine.pods_seen()
    return next((one for one in seen if (one.namespace, one.service) == (namespace, service)), None)


def in_numbers(seen: PodsSeen) -> dict[str, Any]:
    """The same for JSON: statuses that some pod has, and the gauges ``sfroute.pods.*``."""
    return {
        "statuses": {status: count for status, count in seen.statuses.items() if count},
        "routable": seen.routable,
        "emptying": seen.emptying,
        "room": seen.room,
        "oldest_heartbeat": seen.oldest_heartbeat,
        "load": seen.load,
        "load_skew": seen.skew,
    }


async def link_counts(url: str, namespace: str, service: str) -> Mapping[int, int]:
    """Pod -> its links. Raises ``StoreError`` if a server cannot be searched."""
    async with open_store(url) as store:
        with counting("counting links", None) as progress:
            return await count_links(store, namespace, service, progress)


def pod_rows(
    pods: Mapping[int, Pod], links: Mapping[int, int] | None, pod_timeout: float
) -> list[dict[str, Any]]:
    """One row for each pod that reports or has links, as JSON has it."""
    dead = gone(pods, pod_timeout)
    rejected = rejections(pods, dead)
    rows: list[dict[str, Any]] = []
    for number in sorted(pods.keys() | (links or {}).keys()):
        pod = pods.get(number)
        row: dict[str, Any] = {
            "pod": number,
            "status": pod.status if pod is not None else None,
            "load": pod.load if pod is not None else None,
            "age": pod.age if pod is not None else None,
            "dead": number in dead,
            "takes_new_users": pod is not None and number not in rejected,
            "why_not": rejected.get(number) if pod is not None else "not reported",
        }
        if pod is not None and (up := _milliseconds(pod.extra.get("up"))) is not None:
            row["started"] = datetime.fromtimestamp(up / 1000, UTC).isoformat(timespec="seconds")
            before = pod.extra.get("before")
            row["lives"] = 1 + (len(before.split()) if isinstance(before, str) else 0)
        if pod is not None and pod.room is not None:
            row["room"], row["max_claims"] = pod.room, pod.max_claims
        if pod is not None and pod.address is not None:
            row["address"] = pod.address
        if pod is not None and pod.labels:
            row["labels"] = dict(pod.labels)
        if links is not None:
            row["links"] = links.get(number, 0)
        if pod is not None and pod.extra:
            row["extra"] = dict(pod.extra)
        rows.append(row)
    return rows


def status_words(about: Mapping[str, Any]) -> str:
    """What a pod is now; ``about`` has its ``status``, None if it reported none, and whether it is ``dead``."""
    silent = about["dead"] and about["status"] not in (STOPPED, FAILED)
    return f"dead (was {about['status']})" if silent else about["status"] or "-"


def pod_cells(row: Mapping[str, Any]) -> list[str]:
    """A row for people."""
    cells = [
        str(row["pod"]),
        status_words(row),
        "-" if row["load"] is None else f"{round(row['load'], 3):g}",
        "-" if row["age"] is None else f"{row['age']:.1f}",
    ]
    if "links" in row:
        cells.append(f"{row['links']:,}")
    return [*cells, "yes" if row["takes_new_users"] else f"no: {row['why_not']}"]


def _milliseconds(value: object) -> int | None:
    """An instant as a state has it; None if it is none, or no calendar has it."""
    return value if type(value) is int and 0 < value < _LAST_DAY else None


def _started(row: Mapping[str, Any]) -> str:
    if "started" not in row:
        return ""
    return f"{datetime.fromisoformat(row['started']).astimezone():%m-%d %H:%M:%S}"


def _lives(row: Mapping[str, Any]) -> str:
    lives = row.get("lives", 0)
    return "" if not lives else f"{_MOST_LIVES}+" if lives >= _MOST_LIVES else str(lives)


def _room(row: Mapping[str, Any]) -> str:
    most = row.get("max_claims")
    return f"{row['room']}" + (f" of {most}" if most is not None else "") if "room" in row else ""


def _address(row: Mapping[str, Any]) -> str:
    return str(row.get("address", ""))


def _labels(row: Mapping[str, Any]) -> str:
    found: Mapping[str, str] = row.get("labels", {})
    return ",".join(f"{name}={found[name]}" for name in sorted(found))


_Column = tuple[str, Callable[[Mapping[str, Any]], str]]
_OF_LIVES: Final[tuple[_Column, ...]] = (("STARTED", _started), (">LIVES", _lives))
"""Columns that are shown if any pod has restarted."""
_IF_ANY: Final[tuple[_Column, ...]] = (
    (">ROOM", _room),
    ("ADDRESS", _address),
    ("LABELS", _labels),
)
"""Columns that are shown if any pod has something to say there."""


def watch(
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    pod_timeout: PodTimeout = POD_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Write a line whenever a pod joins, drains, leaves, dies or restarts, until Ctrl-C.

    The pods that are already there come first, as `present`. While the store cannot be reached, nothing is known
    about the pods: a line on standard error says when that begins and when it ends.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)

    async def work() -> None:
        async with open_router(
            url, router_config(pod_timeout, tell_of_outages(complain))
        ) as router:
            found = await router.get_pods(namespace, service, fresh=True)
            there = {n for n, pod in found.items() if pod.status in ROUTABLE | {DRAINING}}
            if not any(pod.status in ROUTABLE for pod in found.values()):
                complain(f"no pod of {service!r} in {namespace!r} takes users; waiting for one")
            async with aclosing(router.watch(namespace, service)) as changes:
                async for change in changes:
                    present = change.kind in _FIRST and change.pod.id in there
                    there.discard(change.pod.id)
                    _tell(change, "present" if present else change.kind, as_json=as_json)
                    sys.stdout.flush()

    run(work())


def _tell(change: PodChange, kind: str, *, as_json: bool) -> None:
    if not as_json:
        write(*change_words(change, kind))
        return
    pod = change.pod
    fields = {
        "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        "change": kind,
        "pod": pod.id,
        "status": pod.status,
        "load": pod.load,
        "age": pod.age,
    }
    sys.stdout.write(as_json_line(fields))


def change_words(change: PodChange, kind: str | None = None) -> list[str]:
    """The time, the pod, what has happened to it, and what is known of it."""
    pod = change.pod
    known = [f"status {printable(pod.status)}"]
    if pod.load is not None:
        known.append(f"load {round(pod.load, 3):g}")
    if pod.age is not None:
        known.append(f"last heartbeat {pod.age:.1f} s ago")
    return [
        f"{datetime.now().astimezone():%H:%M:%S}",
        f"pod {pod.id}",
        kind or change.kind,
        ", ".join(known),
    ]
