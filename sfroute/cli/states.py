"""``sfroute state`` and ``sfroute workload``: the strings that pods and operators report."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..keys import check_encodable, check_service_names
from .common import (
    NO,
    AsJson,
    Namespace,
    Service,
    Url,
    as_json_line,
    complain,
    open_router,
    require,
    run,
    write,
)

__all__ = ["state_app", "workload_app"]

state_app = typer.Typer(help="The states of a service's pods, as they are stored.")
workload_app = typer.Typer(help="The workload state of a service.")


@state_app.callback(no_args_is_help=True)
def _states() -> None:
    """The states of a service's pods, as they are stored. See `sfroute pods` for what they mean."""


@workload_app.callback(no_args_is_help=True)
def _workload() -> None:
    """The workload state of a service, as it is stored."""


@state_app.command("get")
def get_state(
    pod: Annotated[int | None, typer.Argument(min=0, help="Only this pod; without it all.")] = None,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write one line `pod<TAB>state` per pod, the string as stored; exit code 3 if there is none."""
    _check(url, namespace, service)

    async def work() -> dict[int, str]:
        async with open_router(url) as router:
            return await router.get_service_state(namespace, service)

    found = run(work())
    wanted = sorted(found) if pod is None else [pod] if pod in found else []
    for number in wanted:
        if as_json:
            sys.stdout.write(as_json_line({"pod": number, "state": found[number]}))
        else:
            write(number, found[number])
    if not wanted:
        complain(
            f"no pod of {service!r} has reported a state"
            if pod is None
            else f"pod {pod} of {service!r} has reported no state"
        )
        raise typer.Exit(NO)


@state_app.command("set")
def set_state(
    pod: Annotated[int, typer.Argument(min=0, help="The pod's id.", show_default=False)],
    state: Annotated[
        str,
        typer.Argument(
            help="Such as Running, Draining or Stopped, or a JSON object.", show_default=False
        ),
    ],
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write a pod's state, the string as given. A pod that sends heartbeats replaces it with its next one."""
    _check(url, namespace, service)
    check_encodable("state", state)

    async def work() -> None:
        async with open_router(url) as router:
            await router.set_service_state(namespace, service, pod, state)

    run(work())
    if as_json:
        sys.stdout.write(as_json_line({"pod": pod, "state": state}))


@workload_app.command("get")
def get_workload(
    services: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERVICE]...", help="Several services at once, instead of --service."
        ),
    ] = None,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write the workload state; with several services one line `service<TAB>state` each.

    Exit code 3 if there is none.
    """
    names = services or [service]
    for name in names:
        _check(url, namespace, name)

    async def work() -> dict[str, str]:
        async with open_router(url) as router:
            return await router.get_workload_state_batch(namespace, names)

    found = run(work())
    for name in dict.fromkeys(names):
        if as_json:
            sys.stdout.write(as_json_line({"service": name, "state": found.get(name)}))
        elif name not in found:
            complain(f"{name!r} has no workload state")
        elif services:
            write(name, found[name])
        else:
            write(found[name])
    if not found:
        raise typer.Exit(NO)


@workload_app.command("set")
def set_workload(
    state: Annotated[str, typer.Argument(help="The state, as given.", show_default=False)],
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write the workload state of a service, the string as given."""
    _check(url, namespace, service)
    check_encodable("state", state)

    async def work() -> None:
        async with open_router(url) as router:
            await router.set_workload_state(namespace, service, state)

    run(work())
    if as_json:
        sys.stdout.write(as_json_line({"service": service, "state": state}))


def _check(url: str, namespace: str, service: str) -> None:
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)
