"""Everything, in one run: sfroute beside every peer, and what it costs.

    make bench                   the full run, which writes docs/benchmarks.md, .json and docs/images/benchmarks.svg
    make bench-quick             the same in less than a minute, which writes nothing
    make bench ARGS="--only miss --rounds 3 --no-document"

A contender that breaks ends the run with its traceback. A figure that misses its mark does not: it is in the table.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import batches
import costs
import halves
import hits
import misses
import mix
import ownership
import report
import tracing
import writes
from harness import Comparison, table
from setting import Setting


def traced_hits(setting: Setting) -> list[Comparison]:
    """Hits with and without an SDK."""
    stack = ExitStack()
    setting.keep(stack.close)
    in_threads, in_tasks, _ = tracing.hits(setting.cluster.url, setting.loop, stack)
    by_hand = tracing.dict_burst(setting.loop)
    return tracing.hits_in_bursts(in_threads, in_tasks, by_hand)


def parts(*, quick: bool) -> list[Callable[[Setting], list[Comparison]]]:
    """The chapters. Each gets a setting of its own: a peer's idle threads and timers stay out of the others' way."""
    return [
        hits.comparisons,
        traced_hits,
        lambda setting: misses.comparisons(setting, quick=quick),
        batches.comparisons,
        writes.comparisons,
        lambda setting: mix.comparisons(setting, quick=quick),
    ]


def servers() -> list[str | None]:
    """The embedded Valkey, and Redis if one is installed."""
    return [None, *(["redis-server"] if shutil.which("redis-server") else [])]


def compare(binary: str | None, options: argparse.Namespace, began: float) -> report.Run:
    """All comparisons on one server."""
    run = report.Run(server="", comparisons=[])
    for chapter in parts(quick=options.quick):
        with Setting(binary, options.scale, options.rounds) as setting:
            run.server = setting.server
            for comparison in chapter(setting):
                if options.only not in comparison.work:
                    continue
                comparison.run(options.rounds)
                run.comparisons.append(comparison)
                print(table([comparison]), flush=True)
                print(f"  [{time.monotonic() - began:.0f} s]", file=sys.stderr, flush=True)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small rounds, nothing written")
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    parser.add_argument("--scale", type=float, help="work per round, 1.0 = full")
    parser.add_argument("--only", default="", help="only what has these words in its name")
    parser.add_argument("--servers", choices=("all", "embedded"), default="all")
    parser.add_argument("--no-document", action="store_true", help="write no files")
    parser.add_argument(
        "--rewrite",
        action="store_true",
        help="measure nothing: write the page anew from its samples",
    )
    options = parser.parse_args()
    if options.rewrite:
        report.Report.kept().write()
        return
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.scale = options.scale or (0.1 if options.quick else 1.0)
    began = time.monotonic()
    chosen = [None] if options.quick or options.servers == "embedded" else servers()
    runs = [compare(binary, options, began) for binary in chosen]
    measured = [] if options.only else costs.measure(quick=options.quick)
    if not options.only:
        measured += ownership.measure(quick=options.quick)
        measured += halves.measure(quick=options.quick)
    arguments = " ".join(sys.argv[1:])
    command = f'make bench ARGS="{arguments}"' if arguments else "make bench"
    found = report.Report(runs, measured, time.monotonic() - began, options.rounds, command)
    print(f"\n{found.targets_text()}\n\n{found.costs_text()}")
    if options.quick or options.only or options.no_document:
        print("nothing was written: not a full run")
    else:
        found.write()


if __name__ == "__main__":
    main()
