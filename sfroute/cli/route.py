"""``sfroute route``: the pod of every uid that is given."""

from __future__ import annotations

from typing import Annotated

import typer

from ..keys import check_service_names
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
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write one line `uid<TAB>pod` per uid, in the order given.

    A uid without a link is placed, as a gateway would. Blank lines are skipped.

    What cannot be routed is reported by its line number, the others go on, and the exit code is 1.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)
    failed = run(_route_all(uids, url, namespace, service, as_json))
    if failed:
        complain(f"uids that could not be routed: {failed}")
        raise typer.Exit(FAILED)


async def _route_all(
    uids: list[str] | None, url: str, namespace: str, service: str, as_json: bool
) -> int:
    async with open_router(url) as router:
        return await answer_all(
            uids,
            lambda uid: router.route(namespace, uid, service),
            _as_json if as_json else _as_text,
        )


def _as_text(uid: str, link: Link) -> str:
    # No uid can hold a tab: control characters are refused.
    return f"{uid}\t{link.pod}\n"


def _as_json(uid: str, link: Link) -> str:
    return as_json_line(
        {
            "uid": uid,
            "pod": link.pod,
            "persistent": link.persistent,
            "source": link.source,
            "stale": link.stale,
        }
    )
