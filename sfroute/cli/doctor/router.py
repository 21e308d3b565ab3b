"""What a router itself meets: does it hear of changes, do its scripts run? It reads, and writes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ...errors import SfrouteError
from ...keys import link_prefix, slot_of, state_key
from ...scripts import SCRIPT_NAMES, SCRIPTS
from ...types import LaneStats
from ..common import open_router
from ..nodes import Node, Store, code_of
from .findings import Check, Finding, listed

__all__ = ["RouterFacts", "gather_router", "judge_router"]

_NOBODY: Final = "sfroute-doctor"
_TRIES: Final = 100_000


@dataclass(frozen=True, slots=True)
class RouterFacts:
    """What was seen.

    Attributes:
        trouble: why the router did not open; None if it did.
        lanes: its lanes after one look-up at each primary.
        look_up_trouble: why a look-up failed.
        script_trouble: why a script failed.
        loaded: primary -> how many scripts it has loaded; or, in a word, why it did not tell.
    """

    trouble: str | None = None
    lanes: Sequence[LaneStats] = ()
    look_up_trouble: str | None = None
    script_trouble: str | None = None
    loaded: Mapping[str, int | str] = field(default_factory=dict)


async def gather_router(url: str, namespace: str, store: Store) -> RouterFacts:
    """Open a router as a gateway would, look somebody up at every primary, and run a script that reads."""
    look_up_trouble = script_trouble = None
    try:
        async with open_router(url) as router:
            for uid in _one_for_each(namespace, store.primaries):
                try:
                    await router.get_linked_pod(namespace, uid, _NOBODY)
                except SfrouteError as error:
                    look_up_trouble = str(error)
            try:
                key = state_key(namespace, _NOBODY)
                await router.execute_script("statefulGetService", [key], [])
            except SfrouteError as error:
                script_trouble = str(error)
            return RouterFacts(
                lanes=router.stats().lanes,
                look_up_trouble=look_up_trouble,
                script_trouble=script_trouble,
                loaded=await _loaded(store),
            )
    except SfrouteError as error:
        return RouterFacts(trouble=str(error))


def _one_for_each(namespace: str, primaries: Sequence[Node]) -> list[str]:
    """Uids that nobody has, one in the slots of each primary."""
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


async def _loaded(store: Store) -> dict[str, int | str]:
    async def ask(node: Node) -> list[int]:
        shas = [SCRIPTS[name].sha for name in SCRIPT_NAMES]
        return list(await node.ask("SCRIPT", "EXISTS", *shas))

    return {
        str(node.address): code_of(reply) if isinstance(reply, BaseException) else sum(reply)
        for node, reply in await store.of_each(ask, primaries=True)
    }


# --- judging; pure


def judge_router(facts: RouterFacts) -> list[Check]:
    """The router, its lanes, its scripts."""
    if facts.trouble is not None:
        finding = Finding("error", f"no router can be opened: {facts.trouble}", "see above")
        return [Check("router", "it does not open", (finding,))]
    return [_tracking(facts), _scripts(facts)]


def _tracking(facts: RouterFacts) -> Check:
    findings = []
    if facts.look_up_trouble is not None:
        findings.append(
            Finding("error", f"look-ups fail: {facts.look_up_trouble}", "see the rights")
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
            Finding("error", f"a script does not run: {facts.script_trouble}", "see the rights")
        )
    counts = {server: count for server, count in facts.loaded.items() if isinstance(count, int)}
    lacking = [server for server, count in counts.items() if count < len(SCRIPT_NAMES)]
    if lacking:
        findings.append(
            Finding(
                "warning",
                f"{listed(lacking)} did not keep the scripts: calls send their source each time",
                "give the right to SCRIPT LOAD, and see who calls SCRIPT FLUSH",
            )
        )
    summary = f"{len(SCRIPT_NAMES)} scripts; "
    if counts:
        summary += f"{len(counts) - len(lacking)} primaries have them all loaded"
    else:
        summary += "which are loaded is not told (SCRIPT EXISTS)"
    return Check("scripts", summary, tuple(findings))
