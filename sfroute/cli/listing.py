"""``sfroute links``, ``sfroute forget`` and ``sfroute prune``: all links, and what should no longer be there."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import Annotated

import typer

from .._contract.keys import check_service_names, check_uid_names
from ..types import ListedLink, PruneProgress
from .common import (
    FAILED,
    AsJson,
    Namespace,
    Service,
    Url,
    as_json_line,
    complain,
    confirm,
    counted,
    open_router,
    require,
    run,
    seconds_of,
    write,
)
from .nothing import end_with_nothing
from .progress import counting

__all__ = ["forget", "links", "prune"]


def links(
    pod: Annotated[
        int | None,
        typer.Option(min=0, help="Only the links to this pod.", show_default=False),
    ] = None,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write one line `uid<TAB>pod<TAB>kind` per link of the service, in no order.

    All primaries are scanned in steps. If slots move meanwhile, a link may be missed or listed twice.

    Exit code 3 if there is none.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)

    async def work() -> int:
        count = 0
        async with (
            open_router(url) as router,
            aclosing(router.links(namespace, service, pod)) as found,
        ):
            async for link in found:
                _tell(link, as_json=as_json)
                count += 1
        return count

    if not run(work()):
        text = f"{service!r} in namespace {namespace!r} has no links" + _to(pod)
        end_with_nothing(text, url=url, namespace=namespace, service=service)


def _to(pod: int | None) -> str:
    return "" if pod is None else f" to pod {pod}"


def _tell(link: ListedLink, *, as_json: bool) -> None:
    if as_json:
        fields = {"uid": link.uid, "pod": link.pod, "expires_in": link.expires_in}
        sys.stdout.write(as_json_line(fields))
    else:
        write(link.uid, link.pod, "persistent" if link.persistent else "temporary")


def forget(
    uid: Annotated[str, typer.Argument(help="The user.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = "",
    namespace: Namespace = "",
    as_json: AsJson = False,
) -> None:
    """Erase a uid: remove its links of all services, and end its claims.

    Its pods are told, and every gateway's cache drops it. Records that hold the uid in their keys expire within ten
    minutes. All keys of one primary are scanned.
    """
    require(url=url, namespace=namespace)
    check_uid_names(namespace, uid)
    if not yes:
        confirm("Remove all links of this uid, whoever serves it now?")

    async def work() -> int:
        async with open_router(url) as router:
            return await router.forget(namespace, uid)

    removed = run(work())
    if as_json:
        sys.stdout.write(as_json_line({"uid": uid, "removed": removed}))
    else:
        write(f"{counted(removed, 'link')} removed")


def prune(
    idle: Annotated[
        float,
        typer.Option(
            "--idle",
            parser=seconds_of,
            metavar="DURATION",
            help="Remove the links that nobody has read or written for this long: 30d, 12h, 90m or 600s.",
            show_default=False,
        ),
    ],
    rate: Annotated[
        float | None,
        typer.Option(help="The most removals per second. By default there is no limit."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count the idle links; nothing is changed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Remove the links without expiry that no client has read or written for a long time.

    Links of users whom a living pod has claimed, or who come back before their turn, stay. A server that restarts
    forgets how long its links have been idle. After a failover wait for as long as --idle says: the new primary has
    seen no reads, so users whom no pod has claimed look idle though they are active.

    To resume an interrupted prune, start it again. Exit code 1: some could not be removed.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)
    if rate is not None and not 0 < rate < float("inf"):
        raise typer.BadParameter("it must be removals per second > 0", param_hint="--rate")

    async def work(*, only_count: bool) -> PruneProgress:
        last = PruneProgress()
        async with open_router(url) as router:
            steps = router.prune(namespace, service, idle=idle, rate=rate, dry_run=only_count)
            with counting("looking at links", None) as more:
                async with aclosing(steps):
                    async for step in steps:
                        more(step.scanned - last.scanned)
                        last = step
        return last

    found = run(work(only_count=True))
    if found.idle and not dry_run:
        if not yes:
            confirm(f"Remove {counted(found.idle, 'idle link')} of {service!r}?")
        found = run(work(only_count=False))
    _tell_prune(found, dry_run=dry_run, as_json=as_json)
    if found.failed:
        complain(
            f"{counted(found.failed, 'link')} could not be removed; the same command goes on, and `sfroute doctor` "
            "names damaged ones"
        )
        raise typer.Exit(FAILED)


def _tell_prune(found: PruneProgress, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        fields = {
            "scanned": found.scanned,
            "idle": found.idle,
            "claimed": found.claimed,
            "removed": found.removed,
            "failed": found.failed,
        }
        sys.stdout.write(as_json_line(fields))
        return
    kept = f"; {found.claimed:,} more are claimed, and stay" if found.claimed else ""
    said = (
        f"{counted(found.idle, 'idle link')} of {found.scanned:,}; nothing was changed"
        if dry_run
        else f"{counted(found.removed, 'idle link')} of {found.scanned:,} removed"
    )
    write(said + kept)
