"""What a fleet of gateways asks of the store: a model, its constants measured here, its prediction checked by a run.

    python benchmarks/scale_model.py                      measure, check, predict; print everything
    python benchmarks/scale_model.py --document           and put the tables into docs/explanation/scale.md
    python benchmarks/scale_model.py --gateways 50 --uids 1e7 --rate 1e5 --changes 500 --max-age 3 --primaries 6

The model, per gateway and uid, with ``r`` requests a second there and ``c`` changes of the link a second:

- An entry lives until ``max_age`` or the push of a change: ``T = (1 - exp(-c * max_age)) / c`` seconds on average.
- Lookups are a renewal process, life and then the wait for the next request: ``1 / (T + 1 / r)`` a second.
- The server remembers who has read a key until it pushes its next change. Somebody has if a request came since the last
  one: with probability ``r / (r + c)``. That is the share of pairs of key and client in the tracking table, and every
  change pushes to those: ``c * r / (r + c)`` a second.

Requests arrive at random (Poisson), uids are as popular as Zipf's law has it, links change evenly.

The model is in ``fleet_model.py``, what things cost a primary is measured by ``fleet_costs.py``, and ``fleet_check.py``
runs fleets against the prediction.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fleet_check import check
from fleet_costs import READERS, measure_constants
from fleet_model import (
    MAX_CLIENTS,
    TRACKING_TABLE_MAX_KEYS,
    Constants,
    Fleet,
    busy,
    connections,
    predict,
    stall,
    table_bytes,
    untracked,
)
from harness import machine
from report import markdown

import sfroute

DOCUMENT = Path(__file__).parent.parent / "docs" / "explanation" / "scale.md"
BEGIN, END = (
    "<!-- Written by benchmarks/scale_model.py --document -->",
    "<!-- End of what it writes -->",
)
BUSY = 0.7
"""The share of a primary's one core that is planned for; beyond it waiting times grow."""
WORKERS = 20
"""Gateway processes on one host, in the plans for many."""


EXAMPLES = (
    Fleet(gateways=10, uids=100_000, rate=10_000, changes=100),
    Fleet(gateways=50, uids=1_000_000, rate=50_000, changes=1000),
    Fleet(gateways=50, uids=1_000_000, rate=50_000, changes=1000, sticky=True),
    Fleet(gateways=200, uids=5_000_000, rate=200_000, changes=5000, primaries=6),
    Fleet(gateways=200, uids=5_000_000, rate=200_000, changes=5000, primaries=6, sticky=True),
    Fleet(gateways=200, uids=5_000_000, rate=1_000_000, changes=5000, primaries=24),
    Fleet(gateways=200, uids=5_000_000, rate=1_000_000, changes=5000, primaries=24, sticky=True),
)


def answers(fleets: Sequence[Fleet], constants: Constants) -> Iterator[tuple[str, ...]]:
    """One row for each fleet."""
    for fleet in fleets:
        load = predict(fleet)
        core = busy(load, constants)
        over = " (!)" if load.tracked_keys > TRACKING_TABLE_MAX_KEYS else ""
        yield (
            f"{fleet.gateways}",
            f"{fleet.uids:,}",
            f"{fleet.rate:,.0f}",
            f"{fleet.changes:,.0f}",
            "yes" if fleet.sticky else "no",
            f"{fleet.primaries}",
            f"{load.hits:.0%}",
            f"{load.look_ups:,.0f}",
            f"{load.pushes:,.0f}",
            f"{core:.0%}",
            f"{load.tracked_keys:,.0f}{over}",
            f"{table_bytes(load, constants) / 2**20:,.0f} MiB",
            f"{math.ceil(core * fleet.primaries / BUSY)}",
            f"{untracked(fleet, constants):.0%}",
        )


HEADER = (
    "gateways",
    "uids",
    "requests/s",
    "changes/s",
    "sticky",
    "primaries",
    "hits",
    "lookups/s",
    "pushes/s",
    "core",
    "tracked keys",
    "table",
    "primaries needed",
    "core untracked",
)


def where_tracking_stops_paying(fleet: Fleet, constants: Constants) -> Iterator[tuple[str, ...]]:
    """Core of a primary with and without tracking, while links change faster and faster."""
    for factor in (0.001, 0.01, 0.1, 1.0):
        changing = replace(fleet, changes=fleet.uids * factor)
        load = predict(changing)
        # The writes are the same with and without.
        reads = replace(load, writes=0)
        unchanging = replace(fleet, changes=0)
        yield (
            f"every {1 / factor:,.0f} s",
            f"{load.look_ups:,.0f}",
            f"{load.pushes:,.0f}",
            f"{busy(reads, constants):.1%}",
            f"{untracked(unchanging, constants):.1%}",
            f"{untracked(unchanging, constants, fleet.max_age):.1%}",
            f"{load.writes * constants.write / 1e6:.0%}",
        )


def hot_links(constants: Constants) -> Iterator[tuple[str, ...]]:
    """What one write holds up, and how many connections there are, for so many gateways that have all read the link."""
    for gateways in (20, 100, 1000, 5000, 10_000):
        there = connections(gateways)
        broadcast = gateways * constants.push_broadcast / 1e6
        yield (
            f"{gateways:,}",
            f"{1000 * stall(gateways, constants):.2g} ms",
            f"{1000 * broadcast:.2g} ms",
            f"{there:,}{' (!)' if there > MAX_CLIENTS else ''}",
        )


def plans(constants: Constants) -> Iterator[tuple[str, ...]]:
    """The largest fleet, and what takes load off its primaries."""
    fleet = Fleet(gateways=10_000, uids=20_000_000, rate=2_000_000, changes=20_000, primaries=32)
    hosts = replace(fleet, gateways=fleet.gateways // WORKERS)
    for words, plan in (
        ("any gateway", fleet),
        ("any gateway, max_age 30 s", replace(fleet, max_age=30.0)),
        ("sticky", replace(fleet, sticky=True)),
        (f"one cache for the {WORKERS} gateways of a host", hosts),
        ("the same, sticky to the host", replace(hosts, sticky=True)),
    ):
        load = predict(plan)
        core = busy(load, constants)
        there = connections(plan.gateways)
        # By prefix each client is told of each change, whoever has read it.
        told = plan.changes / plan.primaries * plan.gateways
        reads = replace(load, pushes=0)
        broadcast = busy(reads, constants) + told * constants.push_broadcast / 1e6
        yield (
            words,
            f"{load.hits:.0%}",
            f"{load.look_ups:,.0f}",
            f"{load.pushes:,.0f}",
            f"{core:.0%}",
            f"{math.ceil(core * plan.primaries / BUSY)}",
            f"{broadcast:.0%}",
            f"{table_bytes(load, constants) / 2**20:,.0f} MiB",
            f"{there:,}{' (!)' if there > MAX_CLIENTS else ''}",
        )


def constants_table(constants: Constants) -> Iterator[tuple[str, ...]]:
    """For people."""
    yield "lookup (GET + PTTL) alone, tracked", f"{constants.look_up:.1f} us"
    yield "lookup, 50 together, tracked", f"{constants.look_up_batched:.1f} us"
    yield "lookup, 50 together, not tracked", f"{constants.untracked:.1f} us"
    yield "write (statefulSetLink with its operation record)", f"{constants.write:.1f} us"
    yield f"push to one of {READERS:,} clients, the write comes alone", f"{constants.push:.2f} us"
    yield "the same, many writes at once", f"{constants.push_in_bursts:.2f} us"
    yield "push by prefix (broadcast), the write comes alone", f"{constants.push_broadcast:.2f} us"
    yield "the same, many writes at once", f"{constants.push_broadcast_in_bursts:.2f} us"
    yield "a key in the tracking table", f"{constants.key:.0f} bytes"
    yield "a client that has read it", f"{constants.pair:.0f} bytes"


def tables(constants: Constants, checked: Sequence[tuple[str, ...]], when: str) -> Iterator[str]:
    """All of it; ``when`` is how busy the machine was, and how short the run."""
    yield f"Machine: {machine('sfroute')}, {when}"
    yield ""
    yield "### What a primary spends"
    yield ""
    yield from markdown(("for", "spent"), constants_table(constants))
    yield ""
    if checked:
        yield "### Predicted and measured"
        yield ""
        yield from markdown(
            ("50 gateways, 3 primaries", "predicted", "measured", "off by"), checked
        )
        yield ""
    yield "### Fleets"
    yield ""
    yield from markdown(HEADER, answers(EXAMPLES, constants))
    yield ""
    yield "### A link that everybody has read changes"
    yield ""
    yield from markdown(
        (
            "gateways that have read it",
            "the write holds its primary up for",
            "by prefix",
            "connections to a primary",
        ),
        hot_links(constants),
    )
    yield ""
    yield "### Ten thousand gateways"
    yield ""
    yield "20,000,000 uids, 2,000,000 requests/s, 20,000 changes/s, 32 primaries; each primary:"
    yield ""
    yield from markdown(
        (
            "plan",
            "hits",
            "lookups/s",
            "pushes/s",
            "core",
            "primaries needed",
            "core, told by prefix",
            "table",
            "connections",
        ),
        plans(constants),
    )
    yield ""
    yield "### Links that change often"
    yield ""
    fleet = EXAMPLES[1]
    yield (
        f"{fleet.gateways} gateways, {fleet.uids:,} uids, {fleet.rate:,.0f} requests/s, {fleet.primaries} primaries; "
        "each primary:"
    )
    yield ""
    short = sfroute.CacheConfig().max_age_untracked
    header = (
        "each link changes",
        "lookups/s",
        "pushes/s",
        f"core: lookups and pushes, tracked, {fleet.max_age:g} s",
        f"not tracked, {short:g} s",
        f"not tracked, {fleet.max_age:g} s, answers as old as that",
        "the writes themselves",
    )
    yield from markdown(header, where_tracking_stops_paying(fleet, constants))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, kind in (
        ("gateways", int),
        ("uids", lambda text: int(float(text))),
        ("rate", float),
        ("changes", float),
        ("max-age", float),
        ("primaries", int),
        ("exponent", float),
    ):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--sticky", action="store_true", default=None)
    parser.add_argument("--quick", action="store_true", help="small measurements, a short check")
    parser.add_argument("--document", action="store_true", help="write docs/explanation/scale.md")
    options = vars(parser.parse_args())
    # Of others: the run itself is a load as well.
    when = f"at a load of {os.getloadavg()[0]:.0f} before it began"
    if options["quick"]:
        when += ", with --quick"
    constants = measure_constants(0.1 if options["quick"] else 1.0)
    asked = {
        name: options[name] for name in Fleet.__dataclass_fields__ if options.get(name) is not None
    }
    if asked:
        print("\n".join(markdown(HEADER, answers([Fleet(**asked)], constants))))
        return
    small = Fleet(uids=20_000, rate=3000, changes=300)
    seconds, settle = (5.0, 2.0) if options["quick"] else (20.0, 5.0)
    checked = [
        *check(small, seconds, settle),
        *check(replace(small, sticky=True), seconds, settle),
    ]
    found = "\n".join(tables(constants, checked, when))
    print(found)
    if options["document"]:
        text = DOCUMENT.read_text()
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        DOCUMENT.write_text(f"{head}{BEGIN}\n\n{found}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
