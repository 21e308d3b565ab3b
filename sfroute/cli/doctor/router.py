"""What a router experiences: is it told of changes, do its scripts run? It reads and writes nothing."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ..._contract.keys import link_prefix, slot_of, state_key
from ..._contract.scripts import SCRIPTS, get_script
from ..._native import HALF, STALE, WHY_PURE
from ...config import RouterConfig
from ...errors import SfrouteError
from ...types import LaneStats
from ..common import listed, open_router
from ..nodes import SECONDS, Node, Store, code_of
from ..pods import POD_TIMEOUT, router_config
from .findings import Check, Finding, remedy_of

__all__ = ["RouterFacts", "gather_router", "hurried", "judge_router"]

_NOBODY: Final = "sfroute-doctor"
_RUN: Final = "statefulGetService"
_TRIES: Final = 100_000


@dataclass(frozen=True, slots=True)
class RouterFacts:
    """What the router experienced.

    Attributes:
        trouble: why the router did not open; None if it did.
        lanes: its lanes after one lookup at each primary.
        look_up_trouble: why a lookup failed.
        script_trouble: why a script failed.
        kept: primary -> 1 if it knows the script that was run at one of them; or, in a word, why it did not tell.
    """

    trouble: str | None = None
    lanes: Sequence[LaneStats] = ()
    look_up_trouble: Exception | None = None
    script_trouble: Exception | None = None
    kept: Mapping[str, int | str] = field(default_factory=dict)


async def gather_router(url: str, namespace: str, store: Store) -> RouterFacts:
    """Open a router as a gateway would, look somebody up at every primary, and run a script that reads."""
    look_up_trouble: Exception | None = None
    try:
        async with open_router(url, hurried()) as router:
            uids = _one_for_each(namespace, store.primaries)
            *look_ups, script = await asyncio.gather(
                *(router.get_linked_pod(namespace, uid, _NOBODY) for uid in uids),
                router.execute_script(_RUN, [state_key(namespace, _NOBODY)], []),
                return_exceptions=True,
            )
            for answer in look_ups:
                look_up_trouble = _trouble(answer) or look_up_trouble
            script_trouble = _trouble(script)
            return RouterFacts(
                lanes=router.stats().lanes,
                look_up_trouble=look_up_trouble,
                script_trouble=script_trouble,
                kept=await _kept(store),
            )
    except SfrouteError as error:
        return RouterFacts(trouble=str(error))


def hurried(pod_timeout: float | None = None) -> RouterConfig:
    """The configuration of a router that waits no longer than the doctor's other questions do."""
    config = router_config(POD_TIMEOUT if pod_timeout is None else pod_timeout)
    return replace(config, retry=replace(config.retry, deadline=SECONDS))


def _trouble(answer: object) -> Exception | None:
    if isinstance(answer, BaseException) and not isinstance(answer, SfrouteError):
        raise answer
    return answer if isinstance(answer, SfrouteError) else None


def _one_for_each(namespace: str, primaries: Sequence[Node]) -> list[str]:
    """Uids that nobody has, one for each primary."""
    wanted = list(primaries)
    found = []
    for number in range(_TRIES):
        if not wanted:
            break
        uid = f"{_NOBODY}-{secrets.token_hex(4)}-{number}"
        slot = slot_of(link_prefix(namespace, uid))
        for node in wanted:
            if any(slot in part for part in node.slots):
                wanted.remove(node)
                found.append(uid)
                break
    return found


async def _kept(store: Store) -> dict[str, int | str]:
    async def ask(node: Node) -> list[int]:
        return list(await node.ask("SCRIPT", "EXISTS", get_script(_RUN).sha))

    return {
        str(node.address): code_of(reply) if isinstance(reply, BaseException) else sum(reply)
        for node, reply in await store.of_each(ask, primaries=True)
    }


# --- judging; pure


def judge_router(facts: RouterFacts) -> list[Check]:
    """The router, its lanes, its scripts, and which half of the code looks up."""
    if facts.trouble is not None:
        finding = Finding("error", f"no router can be opened: {facts.trouble}", "see above")
        return [Check("router", "it does not open", (finding,))]
    return [_tracking(facts), _scripts(facts), _half()]


def _tracking(facts: RouterFacts) -> Check:
    findings = []
    if facts.look_up_trouble is not None:
        findings.append(
            Finding(
                "error",
                f"lookups fail: {facts.look_up_trouble}",
                remedy_of(facts.look_up_trouble),
            )
        )
    untracked = [lane.address for lane in facts.lanes if lane.connected and not lane.tracked]
    if untracked:
        findings.append(
            Finding(
                "warning",
                f"{listed(untracked)} push no changes: answers are cached for half a second only",
                "it takes Redis 7.0 or Valkey, no proxy, and the right to CLIENT TRACKING",
            )
        )
    tracked = sum(lane.tracked for lane in facts.lanes)
    return Check(
        "tracking", f"{tracked} of {len(facts.lanes)} lanes hear of changes", tuple(findings)
    )


def _scripts(facts: RouterFacts) -> Check:
    findings = []
    if facts.script_trouble is not None:
        findings.append(
            Finding(
                "error",
                f"a script does not run: {facts.script_trouble}",
                remedy_of(facts.script_trouble),
            )
        )
    told = [kept for kept in facts.kept.values() if isinstance(kept, int)]
    all_told = len(told) == len(facts.kept)
    if facts.script_trouble is None and all_told and not any(told):
        findings.append(
            Finding(
                "warning",
                "no primary has kept the script that has just run: calls send their source each time",
                "see who calls SCRIPT FLUSH",
            )
        )
    summary = f"{len(SCRIPTS)} scripts; "
    if facts.script_trouble is not None:
        summary += "one that reads does not run"
    elif any(told):
        summary += "one that reads has run, and is kept"
    else:
        summary += "one that reads has run" + ("" if all_told else "; SCRIPT EXISTS is refused")
    return Check("scripts", summary, tuple(findings))


def _half() -> Check:
    if HALF == "native":
        return Check("lookups", "the native part runs")
    # No finding where it was chosen, or cannot be helped: the pure code answers the same.
    findings: tuple[Finding, ...] = ()
    if WHY_PURE == STALE:
        findings = (Finding("warning", STALE, "install sfroute again; in a clone: make native"),)
    return Check("lookups", f"in pure Python, which takes longer: {WHY_PURE}", findings)
