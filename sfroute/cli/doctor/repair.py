"""``sfroute doctor --repair``: asks, repairs, and reports the outcome."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import typer

from ..claims import Flawed, Repair, repair_all
from ..common import FAILED, as_json_line, complain, confirm, counted, open_router, run, write
from ..keyspace import FLAWS, MAX_REPAIRS
from ..nodes import open_store

__all__ = ["mend"]


def mend(url: str, namespace: str, flawed: Sequence[Flawed], *, yes: bool, as_json: bool) -> None:
    """Ask, then repair what was found. Exit code 1: the answer was no, or not all could be repaired."""
    outcome = Repair()
    if flawed:
        counts = Counter(each.flaw for each in flawed)
        for flaw, count in counts.items():
            complain(f"to be repaired: {FLAWS[flaw]}: {count:,}")
        if not yes:
            confirm(f"Repair {counted(len(flawed), 'link')} of namespace {namespace!r}?")
        outcome = run(_repair(url, namespace, flawed))
    if as_json:
        fields = {"mended": outcome.mended, "left": outcome.left, "failed": outcome.failed}
        sys.stdout.write(as_json_line({"check": "repair", **fields}))
    elif flawed:
        changed = f"; {outcome.left:,} had changed meanwhile" if outcome.left else ""
        write(f"{outcome.mended:,} of {len(flawed):,} repaired{changed}")
    else:
        write("nothing to repair")
    if len(flawed) >= MAX_REPAIRS:
        complain(f"there may be more than {MAX_REPAIRS:,}: run it again")
    if outcome.failed:
        complain(f"{outcome.failed:,} could not be repaired: {outcome.why}")
        raise typer.Exit(FAILED)


async def _repair(url: str, namespace: str, flawed: Sequence[Flawed]) -> Repair:
    async with open_store(url) as store, open_router(url) as router:
        return await repair_all(router, store, namespace, flawed)
