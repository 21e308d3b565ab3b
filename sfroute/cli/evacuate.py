"""``sfroute evacuate``: every link off a pod."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import Annotated

import typer

from ..keys import check_service_names
from ..states import gone, rejections
from ..types import EvacuationProgress
from .common import (
    CALLED_WRONGLY,
    FAILED,
    INTERRUPTED,
    AsJson,
    Namespace,
    Service,
    Url,
    as_json_line,
    at_service,
    complain,
    counted,
    open_router,
    require,
    run,
    write,
)
from .pods import POD_TIMEOUT, PodTimeout, router_config
from .progress import counting

__all__ = ["evacuate"]

_PASSES = 10
"""So many make an evacuation that has not come to an end: see ``EvacuationProgress.passes``."""


def evacuate(
    pod: Annotated[int, typer.Argument(min=0, help="The pod to empty.", show_default=False)],
    rate: Annotated[
        float | None,
        typer.Option(help="Moves per second at most; without it as fast as it goes."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count the links; nothing is changed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    pod_timeout: PodTimeout = POD_TIMEOUT,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Move every link off a pod, to the other pods of its service.

    Each link is moved by itself, its kind and remaining time kept; gateways may route all the while. Let the pod drain
    first (`sfroute drain`), or gateways go on placing users on it.

    An interrupted evacuation is resumed by starting it again. Exit code 1: links are left.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)
    if rate is not None and not 0 < rate < float("inf"):
        raise typer.BadParameter("it must be moves per second > 0", param_hint="--rate")
    evacuation = _Evacuation(url, namespace, service, pod, rate, pod_timeout)
    takes_users = run(evacuation.count())
    found = evacuation.progress.found
    if dry_run:
        _tell(
            evacuation,
            f"{counted(found, 'link')} to pod {pod}; nothing was changed",
            as_json=as_json,
        )
        return
    if found and takes_users:
        stop = at_service(f"drain {pod}", service)
        complain(f"pod {pod} still takes new users; to stop that: {stop}")
    if found and not yes:
        _confirm(f"Move {counted(found, 'link')} of {service!r} off pod {pod}?")
    try:
        run(evacuation.move(found))
    except typer.Exit:
        complain(f"links moved so far: {evacuation.progress.moved:,}; the same command goes on")
        raise
    progress = evacuation.progress
    by_others = f"; {progress.elsewhere:,} by others meanwhile" if progress.elsewhere else ""
    sentence = f"{counted(progress.moved, 'link')} moved off pod {pod}{by_others}"
    _tell(evacuation, sentence, as_json=as_json)
    if progress.passes >= _PASSES:
        complain(f"somebody goes on linking users to pod {pod}: drain it, and evacuate it again")
        raise typer.Exit(FAILED)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        complain("nobody can be asked here; --yes says that it is meant")
        raise typer.Exit(CALLED_WRONGLY)
    # Not typer.confirm(): it writes a blank to standard output, which may be a pipe.
    typer.echo(f"{question} [y/N] ", err=True, nl=False)
    try:
        answer = sys.stdin.readline().strip().lower()
    except KeyboardInterrupt:
        typer.echo(err=True)
        raise typer.Exit(INTERRUPTED) from None
    if answer not in ("y", "yes"):
        complain("nothing was changed")
        raise typer.Exit(FAILED)


class _Evacuation:
    """What is to be done, and how far it has come."""

    def __init__(
        self,
        url: str,
        namespace: str,
        service: str,
        pod: int,
        rate: float | None,
        pod_timeout: float,
    ) -> None:
        self._url = url
        self._namespace = namespace
        self._service = service
        self.pod = pod
        self._rate = rate
        self._pod_timeout = pod_timeout
        self.progress = EvacuationProgress()

    async def count(self) -> bool:
        """Count the links; True if the pod still takes new users."""
        async with open_router(self._url, router_config(self._pod_timeout)) as router:
            pods = await router.get_pods(self._namespace, self._service, fresh=True)
            steps = router.evacuate(self._namespace, self._service, self.pod, dry_run=True)
            with counting("looking at links", None) as more:
                async with aclosing(steps):
                    async for step in steps:
                        more(step.scanned - self.progress.scanned)
                        self.progress = step
        return self.pod in pods and self.pod not in rejections(pods, gone(pods, self._pod_timeout))

    async def move(self, expected: int) -> None:
        """Move the links."""
        self.progress = EvacuationProgress()
        async with open_router(self._url, router_config(self._pod_timeout)) as router:
            steps = router.evacuate(self._namespace, self._service, self.pod, rate=self._rate)
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
        "passes": progress.passes,
    }
    sys.stdout.write(as_json_line(fields))
