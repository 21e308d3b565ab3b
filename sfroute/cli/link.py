"""``sfroute link``: the links of uids, one operation each."""

from __future__ import annotations

import sys
from typing import Annotated, Final

import typer

from .._contract.keys import (
    check_link_names,
    check_persist_seconds,
    check_service_names,
    check_uid_names,
)
from ..types import PERSIST_FOREVER
from .common import (
    FAILED,
    NO,
    AsJson,
    Namespace,
    PodId,
    Service,
    Url,
    as_json_line,
    complain,
    confirm,
    open_router,
    pod_id,
    printable,
    require,
    run,
    write,
)
from .stream import answer_all

__all__ = ["app"]

app = typer.Typer(
    help="Look at the links of uids, and change them. Exit code 3: the answer is no.",
    no_args_is_help=True,
)

Uid = Annotated[str, typer.Argument(help="The user.", show_default=False)]
PersistSeconds = Annotated[
    int,
    typer.Option(
        "--persist-seconds",
        help="Make a temporary link of so many seconds; without it the link has no expiry.",
        show_default=False,
    ),
]
_FOREVER: Final = PERSIST_FOREVER


@app.command()
def get(
    uid: Uid,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write the uid's pod and the kind of its link; exit code 3 if it has none. Places nobody."""
    _check(url, namespace, uid, service)
    pod, persistent = run(_read_link(url, namespace, uid, service))
    if as_json:
        fields = {
            "uid": uid,
            "service": service,
            "pod": pod,
            "persistent": None if pod is None else persistent is not None,
        }
        sys.stdout.write(as_json_line(fields))
    elif pod is not None:
        write(pod, "temporary" if persistent is None else "persistent")
    else:
        complain(f"the uid has no link of service {service!r} in namespace {namespace!r}")
    if pod is None:
        raise typer.Exit(NO)


async def _read_link(
    url: str, namespace: str, uid: str, service: str
) -> tuple[int | None, int | None]:
    async with open_router(url) as router:
        pod = await router.get_linked_pod(namespace, uid, service)
        return pod, await router.get_linked_pod_if_persist(namespace, uid, service)


@app.command("set")
def set_(
    uid: Uid,
    pod: PodId,
    persist_seconds: PersistSeconds = _FOREVER,
    force: Annotated[
        bool, typer.Option("--force", help="Do not ask, even if the pod has not reported.")
    ] = False,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Link the uid to a pod, whatever pod has it now; write the pod that had it before.

    It asks first if other pods of the service have reported a state and this one has not.
    """
    _check(url, namespace, uid, service, persist_seconds)
    if not force and (there := run(_reported(url, namespace, service))) and pod not in there:
        known = ", ".join(map(str, sorted(there)[:8]))
        confirm(
            f"Pod {pod} of {service!r} has not reported; those that have: {known}. Link the uid to it?",
            "--force",
        )

    async def work() -> int | None:
        async with open_router(url) as router:
            return await router.set_linked_pod(namespace, uid, service, pod, persist_seconds)

    previous = run(work())
    if as_json:
        _write_json(uid, service, pod=pod, previous=previous)
    else:
        write(f"pod {pod}; before: {'none' if previous is None else f'pod {previous}'}")


async def _reported(url: str, namespace: str, service: str) -> frozenset[int]:
    """The pods of the service that have reported a state."""
    async with open_router(url) as router:
        return frozenset(await router.get_service_state(namespace, service))


@app.command()
def try_set(
    uid: Uid,
    pod: PodId,
    persist_seconds: PersistSeconds = _FOREVER,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Link the uid to a pod unless another pod has it persistently: then that one stays, and the exit code is 3."""
    _check(url, namespace, uid, service, persist_seconds)

    async def work() -> tuple[bool, int]:
        async with open_router(url) as router:
            return await router.try_set_linked_pod(namespace, uid, service, pod, persist_seconds)

    success, owner = run(work())
    if as_json:
        _write_json(uid, service, success=success, pod=owner)
    else:
        write(f"pod {owner}" if success else f"refused: pod {owner} has the uid persistently")
    if not success:
        raise typer.Exit(NO)


@app.command()
def set_if_absent(
    uid: Uid,
    pod: PodId,
    persist_seconds: PersistSeconds = _FOREVER,
    refresh: Annotated[
        bool,
        typer.Option(
            "--refresh",
            help="Also extend an existing temporary link; it is never shortened.",
        ),
    ] = False,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Link a uid that has no link; write its owner afterwards."""
    _check(url, namespace, uid, service, persist_seconds)

    async def work() -> int:
        async with open_router(url) as router:
            return await router.set_linked_pod_if_absent(
                namespace, uid, service, pod, persist_seconds, refresh=refresh
            )

    owner = run(work())
    if as_json:
        _write_json(uid, service, pod=owner)
    else:
        write(f"pod {owner}" if owner == pod else f"pod {owner}, which had the uid already")


@app.command()
def remove(
    uid: Uid,
    pod: Annotated[
        int | None,
        typer.Option(
            "--pod",
            parser=pod_id,
            metavar="POD",
            help="Only if the link is this pod's, so that no newer one is removed.",
        ),
    ] = None,
    persist_seconds: Annotated[
        int,
        typer.Option(
            "--persist-seconds",
            help="Keep it for so many more seconds, for a reconnect; without it the link goes now.",
            show_default=False,
        ),
    ] = _FOREVER,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Remove the uid's link; exit code 3 if there was none, or if it was another pod's."""
    _check(url, namespace, uid, service, persist_seconds)

    async def work() -> bool:
        async with open_router(url) as router:
            if pod is None:
                return await router.remove_linked_pod(namespace, uid, service, persist_seconds)
            return await router.remove_linked_pod_with_id(
                namespace, uid, service, pod=pod, persist_seconds=persist_seconds
            )

    removed = run(work())
    if as_json:
        _write_json(uid, service, removed=removed)
    elif removed:
        write("removed" if persist_seconds < 0 else f"kept for {persist_seconds} more seconds")
    else:
        complain("the uid has no link" if pod is None else f"the uid has no link to pod {pod}")
    if not removed:
        raise typer.Exit(NO)


@app.command()
def services(uid: Uid, url: Url = "", namespace: Namespace = "", as_json: AsJson = False) -> None:
    """Write one line `service<TAB>pod` per persistent link of the uid; exit code 3 if it has none."""
    require(url=url, namespace=namespace)
    check_uid_names(namespace, uid)

    async def work() -> dict[str, int]:
        async with open_router(url) as router:
            return await router.get_link_service(namespace, uid)

    found = run(work())
    if as_json:
        sys.stdout.write(as_json_line({"uid": uid, "services": found}))
    for name in sorted(found) if not as_json else ():
        write(name, found[name])
    if not found:
        if not as_json:
            complain("the uid has no persistent link")
        raise typer.Exit(NO)


@app.command()
def batch(
    uids: Annotated[
        list[str] | None,
        typer.Argument(help="The uids; without any they are read from standard input."),
    ] = None,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write one line `uid<TAB>pod` per uid, in the order given; `-` for a uid without a link.

    Unlike `sfroute route` it places nobody. What cannot be read is reported by its line number, the others go on, and
    the exit code is 1.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)

    def compose(uid: str, pod: int | None) -> str:
        if as_json:
            return as_json_line({"uid": uid, "pod": pod})
        return f"{printable(uid)}\t{'-' if pod is None else pod}\n"

    async def work() -> int:
        async with open_router(url) as router:
            return await answer_all(
                uids, lambda uid: router.get_linked_pod(namespace, uid, service), compose
            )

    failed = run(work())
    if failed:
        complain(f"uids that could not be read: {failed}")
        raise typer.Exit(FAILED)


def _check(
    url: str, namespace: str, uid: str, service: str, persist_seconds: int = PERSIST_FOREVER
) -> None:
    require(url=url, namespace=namespace, service=service)
    # Before anything is opened: a mistake is told at once, even if the store is not there.
    check_link_names(namespace, uid, service)
    check_persist_seconds(persist_seconds)


def _write_json(uid: str, service: str, **outcome: object) -> None:
    sys.stdout.write(as_json_line({"uid": uid, "service": service, **outcome}))
