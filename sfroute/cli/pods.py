"""``sfroute pods`` and ``sfroute watch``: the pods of a service, now and as they change."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from ..config import PlacementConfig, RouterConfig
from ..errors import StoreUnavailable
from ..keys import check_service_names
from ..states import gone, rejections
from ..types import Pod, PodChange
from .common import (
    CLIENT_NAME,
    NO,
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
    show,
    write,
)
from .keyspace import count_links
from .nodes import NODE_ERRORS, code_of, open_store
from .progress import counting

__all__ = [
    "POD_TIMEOUT",
    "PodTimeout",
    "change_words",
    "link_counts",
    "pod_cells",
    "pod_rows",
    "pods",
    "router_config",
    "watch",
]

PodTimeout = Annotated[
    float,
    typer.Option(min=0.1, help="Seconds of silence after which the gateways take a pod for dead."),
]
POD_TIMEOUT: Final = PlacementConfig().pod_timeout


def pods(
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    links: Annotated[
        bool,
        typer.Option(
            "--links", help="Also count the links of each pod; that passes over all keys."
        ),
    ] = False,
    pod_timeout: PodTimeout = POD_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Show the pods of a service: status, load, seconds since the last heartbeat, and whether they take new users.

    Exit code 3 if no pod has reported. Pods that have links and report no state are shown with --links.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)

    async def work() -> tuple[dict[int, Pod], Mapping[int, int] | None]:
        async with open_router(url, router_config(pod_timeout)) as router:
            found = await router.get_pods(namespace, service, fresh=True)
        return found, await link_counts(url, namespace, service) if links else None

    found, counts = run(work())
    rows = pod_rows(found, counts, pod_timeout)
    if as_json:
        for row in rows:
            sys.stdout.write(as_json_line(row))
    elif rows:
        headings = [">POD", "STATUS", ">LOAD", ">AGE", *([">LINKS"] if links else []), "NEW USERS"]
        show(plain_table(headings, [pod_cells(row) for row in rows]))
    if not found:
        complain(f"no pod of {service!r} has reported a state")
        raise typer.Exit(NO)


def router_config(pod_timeout: float) -> RouterConfig:
    """For a router that takes a pod for dead when the gateways do."""
    return RouterConfig(client_name=CLIENT_NAME, placement=PlacementConfig(pod_timeout=pod_timeout))


async def link_counts(url: str, namespace: str, service: str) -> Mapping[int, int]:
    """Pod -> its links. Raises ``StoreUnavailable`` if a server does not let itself be looked through."""
    async with open_store(url) as store:
        try:
            with counting("counting links", None) as progress:
                return await count_links(store, namespace, service, progress)
        except NODE_ERRORS as error:
            raise StoreUnavailable(f"the links could not be counted ({code_of(error)})") from None


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
            "takes_new_users": pod is not None and number not in rejected,
            "why_not": rejected.get(number) if pod is not None else "not reported",
        }
        if links is not None:
            row["links"] = links.get(number, 0)
        if pod is not None and pod.extra:
            row["extra"] = dict(pod.extra)
        rows.append(row)
    return rows


def pod_cells(row: Mapping[str, Any]) -> list[str]:
    """A row as people read it."""
    cells = [
        str(row["pod"]),
        row["status"] or "-",
        "-" if row["load"] is None else f"{round(row['load'], 3):g}",
        "-" if row["age"] is None else f"{row['age']:.1f}",
    ]
    if "links" in row:
        cells.append(f"{row['links']:,}")
    return [*cells, "yes" if row["takes_new_users"] else f"no: {row['why_not']}"]


def watch(
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    pod_timeout: PodTimeout = POD_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Write a line whenever a pod joins, drains, leaves or dies, until Ctrl-C; first those that are there.

    While the store cannot be reached nothing is written.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)

    async def work() -> None:
        async with (
            open_router(url, router_config(pod_timeout)) as router,
            aclosing(router.watch(namespace, service)) as changes,
        ):
            async for change in changes:
                _tell(change, as_json=as_json)
                sys.stdout.flush()

    run(work())


def _tell(change: PodChange, *, as_json: bool) -> None:
    if not as_json:
        write(*change_words(change))
        return
    pod = change.pod
    fields = {
        "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        "change": change.kind,
        "pod": pod.id,
        "status": pod.status,
        "load": pod.load,
        "age": pod.age,
    }
    sys.stdout.write(as_json_line(fields))


def change_words(change: PodChange) -> list[str]:
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
        change.kind,
        ", ".join(known),
    ]
