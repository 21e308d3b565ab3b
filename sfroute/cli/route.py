"""``sfroute route``: the pod of every uid that is given."""

from __future__ import annotations

from typing import Annotated

import typer

from .._contract.keys import check_service_names, check_uid
from ..types import Link
from .common import (
    FAILED,
    AsJson,
    Namespace,
    Service,
    Url,
    as_json_line,
    complain,
    open_router,
    printable,
    require,
    run,
)
from .stream import answer_all

__all__ = ["route"]


def route(
    uids: Annotated[
        list[str] | None,
        typer.Argument(help="The uids; without any they are read from standard input."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Place nobody; `-` for a uid that has no link and would be placed."
        ),
    ] = False,
    beside: Annotated[
        str | None,
        typer.Option(
            help="Place them at this uid's pod, such as a room's. That uid is routed first.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Seconds to wait for a pod that may take a uid, at most the deadline of a call.",
            show_default=False,
        ),
    ] = None,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write one line `uid<TAB>pod<TAB>source` per uid, in the order given.

    The source is `cache` or `store` for an existing link, `placed` for a new one, and `moved` for one whose pod is
    gone. `(stale)` follows while the store cannot be reached.

    A uid without a link is placed, as a gateway would do, and so is a mistyped one. Blank lines are skipped.

    A uid that cannot be routed is reported by its line number. The others are still routed, and the exit code is 1.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)
    if beside is not None:
        check_uid(beside, "beside")
    if dry_run:
        failed = run(_look_all(uids, url, namespace, service, as_json))
    else:
        failed = run(_route_all(uids, url, namespace, service, beside, wait, as_json))
    if failed:
        complain(f"uids that could not be routed: {failed}")
        raise typer.Exit(FAILED)


async def _route_all(
    uids: list[str] | None,
    url: str,
    namespace: str,
    service: str,
    beside: str | None,
    wait: float | None,
    as_json: bool,
) -> int:
    async with open_router(url) as router:
        return await answer_all(
            uids,
            lambda uid: router.route(namespace, uid, service, beside=beside, wait=wait),
            _as_json if as_json else _as_text,
        )


async def _look_all(
    uids: list[str] | None, url: str, namespace: str, service: str, as_json: bool
) -> int:
    def compose(uid: str, pod: int | None) -> str:
        if as_json:
            return as_json_line({"uid": uid, "pod": pod, "would_be_placed": pod is None})
        return f"{printable(uid)}\t{'-' if pod is None else pod}\n"

    async with open_router(url) as router:
        return await answer_all(
            uids, lambda uid: router.get_linked_pod(namespace, uid, service), compose
        )


def _as_text(uid: str, link: Link) -> str:
    # No uid can hold a tab: control characters are refused.
    stale = " (stale)" if link.stale else ""
    return f"{printable(uid)}\t{link.pod}\t{link.source}{stale}\n"


def _as_json(uid: str, link: Link) -> str:
    return as_json_line(
        {
            "uid": uid,
            "pod": link.pod,
            "persistent": link.persistent,
            "source": link.source,
            "stale": link.stale,
            "address": link.address,
        }
    )
