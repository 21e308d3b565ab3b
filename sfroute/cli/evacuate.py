"""``sfroute evacuate``: every link off a pod."""

from __future__ import annotations

import shlex
import sys
from contextlib import aclosing
from typing import Annotated

import typer

from .._contract.keys import check_service_names
from .._contract.pod_states import gone, rejections
from ..types import EvacuationProgress
from .common import (
    FAILED,
    AsJson,
    Idle,
    Namespace,
    PodId,
    Service,
    Url,
    as_json_line,
    at_service,
    complain,
    confirm,
    counted,
    open_router,
    require,
    run,
    write,
)
from .nothing import end_with_nothing
from .pods import POD_TIMEOUT, PodTimeout, router_config
from .progress import counting

__all__ = ["evacuate"]

_PASSES = 10
"""After this many passes an evacuation has failed to finish: see ``EvacuationProgress.passes``."""


def evacuate(
    pod: PodId,
    rate: Annotated[
        float | None,
        typer.Option(help="The most moves per second. By default there is no limit."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count the links; nothing is changed.")
    ] = False,
    idle: Idle = None,
    remove_idle: Annotated[
        bool,
        typer.Option(
            "--remove-idle", help="With --idle: remove those links; without it they are left."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    pod_timeout: PodTimeout = POD_TIMEOUT,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Move every link off a pod, to the other pods of its service.

    Each link moves on its own and keeps its kind and remaining time. Gateways may route meanwhile. Drain the pod first
    (`sfroute drain`): gateways go on placing users on a running one.

    To resume an interrupted evacuation, start it again. Exit code 1: links other than idle ones are left. Exit code 3:
    the pod has reported no state, and no link leads to it.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)
    if rate is not None and not 0 < rate < float("inf"):
        raise typer.BadParameter("it must be moves per second > 0", param_hint="--rate")
    if remove_idle and idle is None:
        raise typer.BadParameter("it needs --idle", param_hint="--remove-idle")
    evacuation = _Evacuation(
        url, namespace, service, pod, rate, pod_timeout, idle, remove_idle=remove_idle
    )
    takes_users = run(evacuation.count())
    found, unused = evacuation.progress.found, evacuation.progress.idle
    if not (evacuation.reported or found or unused or evacuation.progress.refused):
        # Most likely a mistyped id: success would let its operator stop a pod that still has users.
        if as_json:
            _tell(evacuation, "", as_json=True)
        text = f"pod {pod} has reported no state, and no link leads to it"
        end_with_nothing(text, url=url, namespace=namespace, service=service)
    if dry_run:
        sentence = f"{counted(found, 'link')} to pod {pod}{_idle_words(unused, 'more idle')}"
        _tell(evacuation, f"{sentence}; nothing was changed", as_json=as_json)
        _complain_of_refused(evacuation, namespace)
        return
    if found and takes_users:
        stop = at_service(f"drain {pod}", service)
        complain(f"pod {pod} still takes new users; to stop that: {stop}")
    doomed = unused if remove_idle else 0
    if (found or doomed) and not yes:
        if evacuation.alive:
            complain(
                f"gateways take pod {pod} to be alive: users it has claimed lose what it keeps only in memory; "
                "sfroute rebalance asks pods to hand users over, an evacuation does not"
            )
        removing = f" and remove {counted(doomed, 'idle one')}" if doomed else ""
        confirm(f"Move {counted(found, 'link')} of {service!r} off pod {pod}{removing}?")
    try:
        run(evacuation.move(found))
    except typer.Exit:
        complain(f"links moved so far: {evacuation.progress.moved:,}; the same command goes on")
        raise
    progress = evacuation.progress
    by_others = f"; {progress.elsewhere:,} by others meanwhile" if progress.elsewhere else ""
    gone = _idle_words(progress.removed, "idle removed")
    left = "" if remove_idle else _idle_words(progress.idle, "idle left")
    sentence = f"{counted(progress.moved, 'link')} moved off pod {pod}{by_others}{gone}{left}"
    _tell(evacuation, sentence, as_json=as_json)
    _end(evacuation, namespace)


def _idle_words(count: int, words: str) -> str:
    return f"; {count:,} {words}" if count else ""


def _complain_of_refused(evacuation: _Evacuation, namespace: str) -> None:
    if evacuation.progress.refused:
        complain(
            f"{counted(evacuation.progress.refused, 'link')} to pod {evacuation.pod} cannot be moved: no call accepts "
            f"the uid. To see some: sfroute doctor --namespace {shlex.quote(namespace)} --show-uids"
        )


def _end(evacuation: _Evacuation, namespace: str) -> None:
    """Say which links are left that should not be, and fail if there are any."""
    _complain_of_refused(evacuation, namespace)
    busy = evacuation.progress.passes >= _PASSES
    if busy:
        complain(
            f"somebody goes on linking users to pod {evacuation.pod}: drain it, and evacuate it again"
        )
    if busy or evacuation.progress.refused:
        raise typer.Exit(FAILED)


class _Evacuation:
    """One evacuation, and its progress."""

    def __init__(
        self,
        url: str,
        namespace: str,
        service: str,
        pod: int,
        rate: float | None,
        pod_timeout: float,
        idle: float | None,
        *,
        remove_idle: bool,
    ) -> None:
        self._url = url
        self._namespace = namespace
        self._service = service
        self.pod = pod
        self._rate = rate
        self._pod_timeout = pod_timeout
        self._idle = idle
        self._remove_idle = remove_idle
        self.reported = self.alive = False
        self.progress = EvacuationProgress()

    async def count(self) -> bool:
        """Count the links. True if the pod still takes new users."""
        async with open_router(self._url, router_config(self._pod_timeout)) as router:
            pods = await router.get_pods(self._namespace, self._service, fresh=True)
            self.reported = self.pod in pods
            steps = router.evacuate(
                self._namespace, self._service, self.pod, dry_run=True, idle=self._idle
            )
            with counting("looking at links", None) as more:
                async with aclosing(steps):
                    async for step in steps:
                        more(step.scanned - self.progress.scanned)
                        self.progress = step
        over = gone(pods, self._pod_timeout)
        self.alive = self.reported and self.pod not in over
        return self.reported and self.pod not in rejections(pods, over)

    async def move(self, expected: int) -> None:
        """Move the links."""
        self.progress = EvacuationProgress()
        async with open_router(self._url, router_config(self._pod_timeout)) as router:
            steps = router.evacuate(
                self._namespace,
                self._service,
                self.pod,
                rate=self._rate,
                idle=self._idle,
                remove_idle=self._remove_idle,
            )
            with counting("moving links", expected) as more:
                async with aclosing(steps):
                    async for step in steps:
                        before = self.progress
                        more(step.moved + step.elsewhere - before.moved - before.elsewhere)
                        self.progress = step


def _tell(evacuation: _Evacuation, sentence: str, *, as_json: bool) -> None:
    if not as_json:
        write(sentence)
        return
    progress = evacuation.progress
    fields = {
        "pod": evacuation.pod,
        "found": progress.found,
        "moved": progress.moved,
        "elsewhere": progress.elsewhere,
        "failed": progress.failed,
        "idle": progress.idle,
        "removed": progress.removed,
        "refused": progress.refused,
        "passes": progress.passes,
    }
    sys.stdout.write(as_json_line(fields))
