"""What the operation record of a write costs the server: time and memory, on one primary, with the scripts as they are.

    python benchmarks/operation_records.py               measure, print the table
    python benchmarks/operation_records.py --document    and put it into docs/reference/operation-records.md

The same writes with the record and without it, in turns. Time is the server's own account of its CPU, so a busy machine
changes it little. Memory is what ``MEMORY USAGE`` says of a record, and by how much ``used_memory`` grows for each.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import statistics
from pathlib import Path
from typing import Any

from fleet_costs import Reader, cpu_of
from harness import machine
from report import markdown

import sfroute
from sfroute._contract.keys import link_prefix, operation_key
from sfroute._contract.scripts import get_script
from sfroute._operations.links import IN_THE_NETWORK
from sfroute.embedded import LocalCluster, Node

DOCUMENT = Path(__file__).parent.parent / "docs" / "reference" / "operation-records.md"
BEGIN, END = (
    "<!-- Written by benchmarks/operation_records.py --document -->",
    "<!-- End of what it writes -->",
)
NAMESPACE, SERVICE = "production", "chat"
TOKEN, NUMBERS = secrets.token_hex(8), itertools.count(1_000_000)
"""As a router makes them, after a million writes."""
TOGETHER = 50
"""Writes that travel together, as those of a busy gateway do."""
ROUNDS = 9
"""After one that does not count: a hash that grows is not a write's cost."""


def kept_for() -> float:
    """Seconds that a record is kept, by the defaults."""
    return 2 * sfroute.RetryConfig().deadline + IN_THE_NETWORK


def writes(sha: str, uids: list[str], *, record: bool) -> list[tuple[str, ...]]:
    """One ``set_linked_pod`` for each uid, as a router sends it."""
    made = []
    for uid in uids:
        prefix = link_prefix(NAMESPACE, uid)
        keys = [prefix + SERVICE, prefix]
        args = [SERVICE, "1", "-1"]
        if record:
            keys.append(operation_key(NAMESPACE, uid, f"{TOKEN}{next(NUMBERS):x}"))
            args.append(str(int(1000 * kept_for())))
        made.append(("EVALSHA", sha, str(len(keys)), *keys, *args))
    return made


def microseconds(node: Node, writer: Reader, commands: list[tuple[str, ...]]) -> float:
    """CPU of the server for each command."""
    began = cpu_of(node)
    for start in range(0, len(commands), TOGETHER):
        writer.send(commands[start : start + TOGETHER])
    return (cpu_of(node) - began) / len(commands)


def used_memory(node: Node) -> int:
    """What the allocator has given out."""
    return int(node.info("memory")["used_memory"])


def measure(count: int) -> tuple[list[tuple[str, ...]], str]:
    """The rows of the table, and which server it was."""
    uids = [f"user-{number:015d}" for number in range(count)]
    with LocalCluster(1, 0) as cluster:
        node = cluster.nodes[0]
        writer = Reader(node, tracked=False)
        script = get_script("statefulSetLink")
        writer.send([("SCRIPT", "LOAD", script.source)])
        microseconds(node, writer, writes(script.sha, uids, record=False))
        microseconds(node, writer, writes(script.sha, uids, record=True))
        before = used_memory(node)
        pairs = [
            (
                microseconds(node, writer, writes(script.sha, uids, record=False)),
                microseconds(node, writer, writes(script.sha, uids, record=True)),
            )
            for _ in range(ROUNDS)
        ]
        grown = (used_memory(node) - before) / (ROUNDS * count)
        found: Any = node.commands(("SCAN", "0", "MATCH", "sf:op:*", "COUNT", "1000"))[0]
        said: Any = node.commands(("MEMORY", "USAGE", found[1][0]))[0]
        writer.close()
        server = f"{cluster.server_name} {cluster.server_version}"
    ratios = sorted(with_it / without for without, with_it in pairs)
    plain, recorded = (statistics.median(side) for side in zip(*pairs, strict=True))
    per_second = 1000
    rows: list[tuple[str, ...]] = [
        ("server time of a write without a record", f"{plain:.1f} us"),
        ("server time of a write with its record", f"{recorded:.1f} us"),
        (
            "ratio, median of the rounds (extremes)",
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        ),
        ("one record, by `MEMORY USAGE`", f"{said} bytes"),
        ("one record, by the growth of `used_memory`", f"{grown:.0f} bytes"),
        ("kept for", f"{kept_for():g} s"),
        (
            f"so for every {per_second:,} writes a second",
            f"{per_second * kept_for():,.0f} records, {per_second * kept_for() * grown / 2**20:.1f} MiB",
        ),
    ]
    return rows, server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small: shows that it works")
    parser.add_argument("--document", action="store_true", help=f"write {DOCUMENT.name}")
    options = parser.parse_args()
    # Within 30 seconds: a record that expires meanwhile is not counted.
    rows, server = measure(200 if options.quick else 5000)
    head = (
        f"Machine: {machine('sfroute')}, {server}, at a load of {os.getloadavg()[0]:.0f}. Medians of {ROUNDS} "
        f"rounds, {TOGETHER} writes together."
    )
    found = "\n".join(
        [
            head,
            "",
            *markdown(("of one `set_linked_pod`", "measured"), rows),
        ]
    )
    print(found)
    if options.document:
        head, _, rest = DOCUMENT.read_text().partition(BEGIN)
        DOCUMENT.write_text(f"{head}{BEGIN}\n\n{found}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
