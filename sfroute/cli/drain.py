"""``sfroute drain``: a pod that gets no new users."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, Any, Final, Literal

import typer

from .._contract.keys import check_service_names
from .._contract.pod_states import read_pod
from .._fronts.router import AsyncRouter
from ..cli import common
from ..types import DRAINING, FAILED, RUNNING, STOPPED
from .common import (
    AsJson,
    Namespace,
    PodId,
    Service,
    Url,
    as_json_line,
    at_service,
    complain,
    open_router,
    require,
)
from .nothing import end_with_nothing
from .pods import POD_TIMEOUT, PodTimeout, router_config

__all__ = ["asked_state", "drain", "taken_up"]

Outcome = Literal["taken up", "written", "overwritten", "already", "gone", "silent"]

_LOOK_SECONDS: Final = 0.2
_LOOKS_TO_BE_SURE: Final = 3
"""Before an agent accepts a request, it reports its old status once more."""


def asked_state(state: str, *, undo: bool) -> str:
    """The state with which to overwrite a pod's, to ask it to drain or to stop draining.

    The fields of a JSON state are kept, its stamp with them: a pod that is dead must go on looking dead. The field
    ``drain`` is for the pod's agent.
    """
    wanted = RUNNING if undo else DRAINING
    fields = _fields(state)
    if fields is None:
        return wanted
    fields |= {"status": wanted, "drain": not undo}
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def taken_up(state: str, *, undo: bool) -> bool:
    """True if the pod itself has written this state and does what was asked."""
    fields = _fields(state)
    wanted = RUNNING if undo else DRAINING
    return fields is not None and fields.get("status") == wanted and "drain" not in fields


def _fields(state: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(state)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def drain(
    pod: PodId,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take new users again.")] = False,
    seconds: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to wait for the pod to comply. It takes up to two heartbeats."
        ),
    ] = 5.0,
    pod_timeout: PodTimeout = POD_TIMEOUT,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Ask a pod to take no new users. Those it has stay: `sfroute evacuate` moves them.

    This writes Draining as the pod's state. The rest depends on the pod's program:

    - A pod with a PodAgent reads the request at its next heartbeat, and reports Draining from then on, until its
      process ends or `--undo`. The process goes on.
    - A pod that sends no heartbeats stays Draining until another state is written.
    - Any other program that goes on reporting Running overwrites the request. The command says so and exits with 1: the
      program itself must drain such a pod.

    Exit code 3: the pod has reported no state, has stopped, or is silent; nothing is written.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)

    age = 0.0

    async def work() -> tuple[Outcome, str]:
        nonlocal age
        async with open_router(url, router_config(pod_timeout)) as router:
            found = (await router.get_pods(namespace, service, fresh=True)).get(pod)
            if found is not None and found.status not in (STOPPED, FAILED):
                age = found.age or 0.0
            if age > pod_timeout:
                # Not even written: a plain state has no room for the stamp that shows that the pod is dead.
                return "silent", (await router.get_service_state(namespace, service)).get(pod, "")
            return await _ask(router, (namespace, service, pod), undo=undo, seconds=seconds)

    outcome, state = common.run(work())
    if as_json:
        fields = {"pod": pod, "outcome": outcome, "state": state or None}
        sys.stdout.write(as_json_line(fields))
    wanted = "takes new users" if undo else "drains"
    # With --json the sentence goes where people look.
    tell = complain if as_json else common.write
    if outcome == "gone":
        if not state:
            text = f"pod {pod} has reported no state; nothing was written"
            end_with_nothing(text, url=url, namespace=namespace, service=service)
        complain(f"pod {pod} has stopped; nothing was written")
        raise typer.Exit(common.NO)
    if outcome == "silent":
        complain(
            f"pod {pod} has been silent for {age:.0f} s and gets no users as it is; nothing was written; "
            f"to move those it has: {at_service(f'evacuate {pod}', service)}"
        )
        raise typer.Exit(common.NO)
    if outcome == "overwritten":
        complain(
            f"pod {pod} itself goes on reporting another state; it must be drained by its own program"
        )
        raise typer.Exit(common.FAILED)
    tell(
        {
            "taken up": f"pod {pod} {wanted}: its agent has taken it up",
            "already": f"pod {pod} {wanted} already",
            "written": f"pod {pod} {wanted}; it has reported nothing itself within {seconds:g} s",
        }[outcome]
    )


async def _ask(
    router: AsyncRouter, subject: tuple[str, str, int], *, undo: bool, seconds: float
) -> tuple[Outcome, str]:
    """Write the request and watch the pod. Returns the outcome and the pod's state."""
    namespace, service, pod = subject
    before = (await router.get_service_state(namespace, service)).get(pod, "")
    status = read_pod(pod, before, None).status
    if not before or status in (STOPPED, FAILED):
        return "gone", before
    if status == (RUNNING if undo else DRAINING):
        return "already", before
    asked = asked_state(before, undo=undo)
    await router.set_service_state(namespace, service, pod, asked)
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    against = 0
    state = asked
    while against < _LOOKS_TO_BE_SURE and (against or loop.time() < until):
        await asyncio.sleep(_LOOK_SECONDS)
        state = (await router.get_service_state(namespace, service)).get(pod, "")
        if taken_up(state, undo=undo):
            return "taken up", state
        against = 0 if state == asked else against + 1
    return ("overwritten" if against else "written"), state
