"""``sfroute state`` and ``sfroute workload``: the strings that pods and operators report."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .._contract.keys import check_encodable, check_service_names, state_key
from .._contract.pod_states import ROUTABLE, read_pod
from ..types import UNKNOWN, Pod
from .common import (
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
    require,
    run,
    write,
)
from .nodes import NODE_ERRORS, failed, open_store
from .nothing import end_with_nothing
from .pods import POD_TIMEOUT, PodTimeout, router_config

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
    pod: Annotated[
        int | None,
        typer.Argument(parser=pod_id, metavar="POD", help="Only this pod; without it all."),
    ] = None,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write one line `pod<TAB>state` per pod, the string as stored; exit code 3 if there is none."""
    _check(url, namespace, service)

    found = run(_stored(url, namespace, service))
    wanted = sorted(found) if pod is None else [pod] if pod in found else []
    for number in wanted:
        if as_json:
            sys.stdout.write(as_json_line({"pod": number, "state": found[number]}))
        else:
            write(number, found[number])
    if not wanted:
        text = (
            f"no pod of {service!r} in namespace {namespace!r} has reported a state"
            if pod is None
            else f"pod {pod} of {service!r} has reported no state"
        )
        end_with_nothing(text, url=url, namespace=namespace, service=service)


@state_app.command("set")
def set_state(
    pod: PodId,
    state: Annotated[
        str,
        typer.Argument(
            help="Such as Running, Draining or Stopped, or a JSON object.", show_default=False
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Do not ask.")] = False,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Write a pod's state, the string as given. A pod that sends heartbeats replaces it with its next one.

    It asks first if gateways cannot read the state, for such a pod gets no new users; and if the state takes new users
    and the pod has never reported, for users would be sent to a pod that may not exist.
    """
    _check(url, namespace, service)
    check_encodable("state", state)
    status = read_pod(pod, state, None).status
    if not force and status == UNKNOWN:
        confirm(
            f"Gateways cannot read the state {state[:80]!r}; they read words such as Running and Stopped. Write it?",
            "--force",
        )
    if not force and status in ROUTABLE and pod not in run(_stored(url, namespace, service)):
        confirm(
            f"Pod {pod} of {service!r} has never reported. Gateways would send new users there until "
            f"another state is written. Write it?",
            "--force",
        )

    async def work() -> None:
        async with open_router(url) as router:
            await router.set_service_state(namespace, service, pod, state)

    run(work())
    if as_json:
        sys.stdout.write(as_json_line({"pod": pod, "state": state}))


@state_app.command("remove")
def remove_state(
    pod: PodId,
    force: Annotated[
        bool, typer.Option("--force", help="Do not ask, even if the pod sends heartbeats.")
    ] = False,
    pod_timeout: PodTimeout = POD_TIMEOUT,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Remove a pod's state, as if it had never reported; exit code 3 if it has none.

    For a pod that will not come back. Its links stay: `sfroute evacuate` moves them. It asks first if the pod still
    sends heartbeats; the next one brings its state back.
    """
    _check(url, namespace, service)

    async def seen() -> Pod | None:
        async with open_router(url, router_config(pod_timeout)) as router:
            return (await router.get_pods(namespace, service, fresh=True)).get(pod)

    found = run(seen())
    if found is None:
        complain(f"pod {pod} of {service!r} has reported no state")
        raise typer.Exit(NO)
    if not force and found.age is not None and found.age <= pod_timeout:
        confirm(
            f"Pod {pod} of {service!r} sent a heartbeat {found.age:.1f} s ago. Remove its state?",
            "--force",
        )

    async def work() -> bool:
        key = state_key(namespace, service)
        async with open_store(url) as store:
            node = store.at(key)
            try:
                return bool(await node.ask("HDEL", key, str(pod)))
            except NODE_ERRORS as error:
                raise failed("the state could not be removed", node.address, error) from None

    removed = run(work())
    if as_json:
        sys.stdout.write(as_json_line({"pod": pod, "removed": removed}))
    elif removed:
        write(f"pod {pod}: the state is removed")
    if not removed:
        raise typer.Exit(NO)


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


async def _stored(url: str, namespace: str, service: str) -> dict[int, str]:
    async with open_router(url) as router:
        return await router.get_service_state(namespace, service)


def _check(url: str, namespace: str, service: str) -> None:
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)
