"""``sfroute rebalance``: users from full pods to emptier ones."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import Annotated, Any

import typer

from .._contract.keys import check_service_names
from .._pods.balance import MAX_SKEW
from ..types import RebalanceProgress
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
    plain_table,
    require,
    run,
    show,
    write,
)
from .nothing import end_with_nothing
from .pods import POD_TIMEOUT, PodTimeout, router_config
from .progress import counting

__all__ = ["rebalance"]


def rebalance(
    max_skew: Annotated[
        float,
        typer.Option(
            help="The most users that a pod may have, by its capacity, as a multiple of an even share; from 1.",
        ),
    ] = MAX_SKEW,
    rate: Annotated[
        float | None,
        typer.Option(help="Users per second at most; the default is no limit."),
    ] = None,
    idle_only: Annotated[
        bool,
        typer.Option("--idle-only", help="Leave those alone whom a pod has claimed."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Move those whom their pod does not let go in time."),
    ] = False,
    patience: Annotated[
        float, typer.Option(help="Seconds that a pod has for letting a user go.")
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the plan; nothing is changed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    pod_timeout: PodTimeout = POD_TIMEOUT,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Move users from full pods to emptier ones, as few as needed: after a scale-out, or an outage.

    It counts all links and shows its plan first. Users whom no pod has claimed are moved at once. For the others their
    pod is asked: it saves the user and lets go (the event `Handover`), or keeps the user. Gateways may route meanwhile.

    `sfroute rebalance --dry-run` shows the plan. `sfroute rebalance --idle-only --yes` moves only users who are away.
    `sfroute rebalance --rate 50 --patience 60` goes slowly. `sfroute rebalance --force` also moves whoever is not let
    go; their pod is told that they are lost.

    To resume an interrupted rebalance, start it again. Exit code 1: users of the plan are left, other than with
    `--idle-only`; 3: no pod has reported.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)
    if not 1 <= max_skew < float("inf"):
        raise typer.BadParameter("it must be a number from 1", param_hint="--max-skew")
    if rate is not None and not 0 < rate < float("inf"):
        raise typer.BadParameter("it must be users per second > 0", param_hint="--rate")
    if not 0 < patience <= 86_400:
        raise typer.BadParameter("it must be seconds > 0, at most a day", param_hint="--patience")
    if force and idle_only:
        raise typer.BadParameter("it contradicts --idle-only", param_hint="--force")
    options: dict[str, Any] = {"max_skew": max_skew}
    work = _Rebalance(url, namespace, service, pod_timeout)
    if not run(work.plan(options)):
        text = f"no pod of {service!r} in namespace {namespace!r} has reported"
        end_with_nothing(text, url=url, namespace=namespace, service=service)
    plan = work.progress
    if not as_json:
        _show_plan(plan, max_skew)
    if dry_run or not plan.planned:
        if as_json:
            _write_json(plan)
        return
    if not yes:
        asking = "" if idle_only else ", and ask pods for those whom they have claimed"
        forcing = "; who is not let go is moved all the same" if force else ""
        confirm(f"Move {counted(plan.planned, 'user')} of {service!r}{asking}{forcing}?")
    options |= {"rate": rate, "idle_only": idle_only, "force": force, "patience": patience}
    try:
        run(work.move(plan.planned, options))
    except typer.Exit:
        waiting = work.progress.asked
        more = f"; pods are still asked for {waiting:,}" if waiting else ""
        complain(f"users moved so far: {work.progress.gone:,}{more}; the same command goes on")
        raise
    done = work.progress
    if as_json:
        _write_json(done)
    else:
        write(_sentence(done))
    _end(done, idle_only=idle_only)


class _Rebalance:
    """One rebalance, and its progress."""

    def __init__(self, url: str, namespace: str, service: str, pod_timeout: float) -> None:
        self._url = url
        self._place = (namespace, service)
        self._pod_timeout = pod_timeout
        self.progress = RebalanceProgress()

    async def plan(self, options: dict[str, Any]) -> bool:
        """Count the links. False if no pod has reported."""
        async with open_router(self._url, router_config(self._pod_timeout)) as router:
            if not await router.get_pods(*self._place, fresh=True):
                return False
            steps = router.rebalance(*self._place, dry_run=True, **options)
            with counting("counting links", None) as more:
                async with aclosing(steps):
                    async for step in steps:
                        more(step.scanned - self.progress.scanned)
                        self.progress = step
        return True

    async def move(self, expected: int, options: dict[str, Any]) -> None:
        """Move the users."""
        self.progress = RebalanceProgress()
        async with open_router(self._url, router_config(self._pod_timeout)) as router:
            steps = router.rebalance(*self._place, **options)
            with counting("moving users", expected) as more:
                async with aclosing(steps):
                    async for step in steps:
                        more(step.gone - self.progress.gone)
                        self.progress = step


def _show_plan(plan: RebalanceProgress, max_skew: float) -> None:
    if plan.skew is None:
        write("no links; nothing is to be moved")
        return
    if not plan.plan:
        write(f"skew {plan.skew:.2f}, at most {max_skew:g} wanted; nothing is to be moved")
        return
    rows = [
        (str(source), str(target), f"{users:,}")
        for source, target, users in sorted(plan.plan, key=lambda moves: moves[:2])
    ]
    show(plain_table([">FROM", ">TO", ">USERS"], rows))
    write(
        f"skew {plan.skew:.2f}, at most {max_skew:g} wanted: {counted(plan.planned, 'user')} to move"
    )


def _sentence(done: RebalanceProgress) -> str:
    parts = [
        (done.handed_over, "handed over by their pods"),
        (done.forced, "moved by force"),
        (done.elsewhere, "left by themselves"),
        (done.kept, "kept by their pods"),
        (done.claimed, "left alone because a pod has them"),
        (done.failed, "could not be moved"),
        (done.asked, "still asked for"),
    ]
    words = "".join(f"; {count:,} {what}" for count, what in parts if count)
    return f"{counted(done.moved, 'user')} moved whom no pod had{words}"


def _end(done: RebalanceProgress, *, idle_only: bool) -> None:
    """Say how many users of the plan are left, and fail if there should be none."""
    if not done.left:
        return
    complain(f"{counted(done.left, 'user')} of the plan left; the same command goes on")
    if not idle_only:
        if done.kept:
            complain(
                "their pods did not let them go in time (--patience): do they heed the event Handover? "
                "To move them all the same: --force"
            )
        raise typer.Exit(FAILED)


def _write_json(progress: RebalanceProgress) -> None:
    names = ("planned", "moved", "handed_over", "forced", "elsewhere", "kept", "claimed", "failed")
    fields: dict[str, object] = {
        "skew": progress.skew,
        "plan": [
            {"from": source, "to": target, "users": users}
            for source, target, users in progress.plan
        ],
        **{name: getattr(progress, name) for name in names},
        "left": progress.left,
    }
    sys.stdout.write(as_json_line(fields))
