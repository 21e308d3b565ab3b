"""What a fleet of gateways asks of the store: a model, its constants measured here, its prediction checked by a run.

    python benchmarks/scale_model.py                      measure, check, predict; print everything
    python benchmarks/scale_model.py --document           and put the tables into docs/explanation/scale.md
    python benchmarks/scale_model.py --gateways 50 --uids 1e7 --rate 1e5 --changes 500 --max-age 3 --primaries 6

The model, per gateway and uid, with ``r`` requests a second there and ``c`` changes of the link a second:

- An entry lives until ``max_age`` or the push of a change: ``T = (1 - exp(-c * max_age)) / c`` seconds on average.
- Look-ups are a renewal process, life and then the wait for the next request: ``1 / (T + 1 / r)`` a second.
- The server remembers who has read a key until it pushes its next change. Somebody has if a request came since the last
  one: with probability ``r / (r + c)``. That is the share of pairs of key and client in the tracking table, and every
  change pushes to those: ``c * r / (r + c)`` a second.

Requests arrive at random (Poisson), uids are as popular as Zipf's law has it, links change evenly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import socket
import subprocess
import sys
import time
from bisect import bisect
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import hiredis
from contenders import NAMESPACE, SCRIPT, SERVICE, key_of
from harness import machine
from report import markdown

import sfroute
from sfroute.embedded import LocalCluster, Node
from sfroute.keys import link_prefix

DOCUMENT = Path(__file__).parent.parent / "docs" / "explanation" / "scale.md"
BEGIN, END = (
    "<!-- Written by benchmarks/scale_model.py --document -->",
    "<!-- End of what it writes -->",
)
TRACKING_TABLE_MAX_KEYS = 1_000_000
"""``tracking-table-max-keys``, the servers' default: beyond it they forget keys at random, and push that."""
CREWS = 2
BUSY = 0.7
"""The share of a primary's one core that is planned for; beyond it waiting times grow."""


@dataclass(frozen=True)
class Fleet:
    """What the model is asked.

    Attributes:
        gateways: how many.
        uids: active users.
        rate: requests a second, all gateways together.
        changes: of links a second, all uids together.
        max_age: ``CacheConfig.max_age``, seconds.
        primaries: of the store.
        sticky: the load balancer sends a uid to one gateway, not to any.
        exponent: of Zipf's law; 0: all uids alike.
    """

    gateways: int = 50
    uids: int = 1_000_000
    rate: float = 50_000
    changes: float = 1000
    max_age: float = 3.0
    primaries: int = 3
    sticky: bool = False
    exponent: float = 1.0


@dataclass(frozen=True)
class Constants:
    """What a primary spends, measured: CPU in microseconds, memory in bytes.

    Attributes:
        look_up: GET and PTTL of one key, read alone, tracked.
        look_up_batched: the same when 50 travel together.
        untracked: as ``look_up_batched`` on a connection without tracking.
        write: one statefulSetLink with its operation record, of a key that nobody has read.
        push: one push to one client.
        key: a key in the tracking table.
        pair: one client that has read it.
    """

    look_up: float
    look_up_batched: float
    untracked: float
    write: float
    push: float
    key: float
    pair: float


@dataclass(frozen=True)
class Load:
    """What the model answers: on each primary, per second where it is a rate."""

    look_ups: float
    pushes: float
    writes: float
    hits: float
    tracked_keys: float
    tracked_pairs: float


def popularity(fleet: Fleet) -> Iterator[tuple[float, float]]:
    """How many uids, and the share of all requests that each of them gets: ranks that lie close are taken together."""
    edges = list(range(1, min(fleet.uids, 1000) + 1))
    while edges[-1] < fleet.uids:
        edges.append(min(fleet.uids, max(edges[-1] + 1, int(edges[-1] * 1.02))))
    groups = [(float(edges[0]), 1.0)] if edges[0] == 1 else []
    for low, high in pairwise(edges):
        groups.append(((low + 1 + high) / 2, float(high - low)))
    weights = [(count, rank**-fleet.exponent) for rank, count in groups]
    total = sum(count * weight for count, weight in weights)
    for count, weight in weights:
        yield count, weight / total


def predict(fleet: Fleet, *, since: float = math.inf, until: float = math.inf) -> Load:
    """The load of each primary; between two instants after a cold start, or in the long run."""
    change = fleet.changes / fleet.uids
    life = (
        (1 - math.exp(-change * fleet.max_age)) / change
        if change * fleet.max_age > 1e-9
        else fleet.max_age
    )
    places = 1 if fleet.sticky else fleet.gateways
    look_ups = pushes = pairs = keys = 0.0
    for count, share in popularity(fleet):
        rate = fleet.rate * share / places
        look_ups += count * places / (life + 1 / rate)
        # Whoever asks first after a change, or after the start, is remembered from then on.
        tracked = rate / (rate + change) * _settled(rate + change, since, until)
        pushes += count * places * change * tracked
        pairs += count * places * rate / (rate + change) * _settled(rate + change, until, until)
        everywhere = rate * places
        keys += (
            count * everywhere / (everywhere + change) * _settled(everywhere + change, until, until)
        )
    return Load(
        look_ups / fleet.primaries,
        pushes / fleet.primaries,
        fleet.changes / fleet.primaries,
        1 - look_ups / fleet.rate,
        keys / fleet.primaries,
        pairs / fleet.primaries,
    )


def _settled(speed: float, since: float, until: float) -> float:
    """Mean of ``1 - exp(-speed * t)`` over the time between."""
    if math.isinf(until):
        return 1.0
    if since >= until:
        return 1 - math.exp(-speed * until)
    return 1 - (math.exp(-speed * since) - math.exp(-speed * until)) / (speed * (until - since))


def busy(load: Load, constants: Constants) -> float:
    """The share of a primary's core."""
    micros = (
        load.look_ups * constants.look_up
        + load.pushes * constants.push
        + load.writes * constants.write
    )
    return micros / 1e6


def untracked(fleet: Fleet, constants: Constants, max_age: float | None = None) -> float:
    """The share of a primary's core without tracking, at the shorter age that is then kept to, or at another."""
    age = (
        min(fleet.max_age, sfroute.CacheConfig().max_age_untracked) if max_age is None else max_age
    )
    # Nothing is pushed, so a change does not end an entry.
    load = predict(replace(fleet, max_age=age, changes=0))
    cost = constants.look_up - constants.look_up_batched + constants.untracked
    return (load.look_ups * cost + fleet.changes / fleet.primaries * constants.write) / 1e6


def table_bytes(load: Load, constants: Constants) -> float:
    """Memory of the tracking table."""
    return load.tracked_keys * constants.key + load.tracked_pairs * constants.pair


# The constants


class Reader:
    """A tracked connection, as a lane's, without anything behind it."""

    def __init__(self, node: Node, *, tracked: bool) -> None:
        self._socket = socket.create_connection(node.address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = hiredis.Reader()
        self.pushes = 0
        self.send([("HELLO", "3")] + ([("CLIENT", "TRACKING", "ON")] if tracked else []))

    def send(self, commands: Sequence[tuple[str | bytes, ...]]) -> None:
        """Send all, wait for all replies."""
        self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))  # type: ignore[arg-type]
        self.wait(len(commands))

    def wait(self, replies: int = 0, pushes: int = 0) -> None:
        """Read until so many more have come."""
        goal = self.pushes + pushes
        while replies > 0 or self.pushes < goal:
            self._parser.feed(self._socket.recv(65536))
            while (reply := self._parser.gets()) is not False:
                if isinstance(reply, hiredis.PushNotification):
                    self.pushes += 1
                else:
                    replies -= 1

    def close(self) -> None:
        """End it."""
        self._socket.close()


def _cpu(node: Node) -> float:
    found = node.info("cpu")
    return 1e6 * (float(found["used_cpu_user"]) + float(found["used_cpu_sys"]))


def _memory(node: Node) -> float:
    return float(node.info("memory")["used_memory_dataset"])


def _look_ups(uids: Sequence[str], together: int) -> Iterator[list[tuple[str, ...]]]:
    for start in range(0, len(uids), together):
        yield [
            (name, key_of(uid))
            for uid in uids[start : start + together]
            for name in ("GET", "PTTL")
        ]


def measure_constants(scale: float = 1.0) -> Constants:
    """On one primary, by its own account of its CPU time and memory."""
    count = int(20_000 * scale)
    uids = [f"user-{number:015d}" for number in range(count)]
    with LocalCluster(1, 0) as cluster:
        node = cluster.nodes[0]
        writer = Reader(node, tracked=False)
        for start in range(0, count, 500):
            writer.send([("SET", key_of(uid), "1") for uid in uids[start : start + 500]])

        def spent(reader: Reader, together: int, sample: Sequence[str]) -> float:
            began = _cpu(node)
            for batch in _look_ups(sample, together):
                reader.send(batch)
            return (_cpu(node) - began) / len(sample)

        plain = Reader(node, tracked=False)
        without = spent(plain, 50, uids)
        one = Reader(node, tracked=True)
        began = _memory(node)
        batched = spent(one, 50, uids)
        per_first = (_memory(node) - began) / count
        alone = spent(Reader(node, tracked=True), 1, uids[: count // 4])
        readers = [Reader(node, tracked=True) for _ in range(20)]
        sample = uids[: count // 10]
        began = _memory(node)
        for reader in readers:
            spent(reader, 50, sample)
        per_pair = (_memory(node) - began) / (len(sample) * len(readers))
        # The same writes, of keys that 20 clients have read and of those that nobody has read any more.
        began = _cpu(node)
        for start in range(0, len(sample), 100):
            writer.send([("SET", key_of(uid), "2") for uid in sample[start : start + 100]])
        told = _cpu(node) - began
        for reader in readers:
            reader.wait(pushes=len(sample))
        began = _cpu(node)
        for start in range(0, len(sample), 100):
            writer.send([("SET", key_of(uid), "3") for uid in sample[start : start + 100]])
        untold = _cpu(node) - began
        write = _cost_of_a_write(node, writer, sample)
    push = max(0.0, told - untold) / (len(sample) * (len(readers) + 1.25))
    return Constants(alone, batched, without, write, push, max(0.0, per_first - per_pair), per_pair)


def _cost_of_a_write(node: Node, writer: Reader, uids: Sequence[str]) -> float:
    writer.send([("SCRIPT", "LOAD", SCRIPT.source)])
    began = _cpu(node)
    for number, uid in enumerate(uids):
        keys = (
            key_of(uid),
            link_prefix(NAMESPACE, uid),
            f"sf:op:{{{NAMESPACE}:lk:{uid}}}:{number:x}",
        )
        writer.send([("EVALSHA", SCRIPT.sha, "3", *keys, SERVICE, "4", "-1", "11000")])
    return (_cpu(node) - began) / len(uids)


# The check


def check(fleet: Fleet, seconds: float, settle: float) -> list[tuple[str, ...]]:
    """Gateways, each a router with lanes of its own, against a real cluster; measured and predicted."""
    with LocalCluster(fleet.primaries, 0) as cluster:
        order = json.dumps([asdict(fleet), CREWS, seconds, settle, cluster.url])
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--crew", str(number), "--order", order],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(CREWS)
        ]
        results: list[dict[str, float]] = []
        for process in processes:
            assert process.stdout is not None
            results.append(json.loads(process.stdout.readline()))
        # Before they leave, and take their part of the table with them.
        stats = [node.info("stats") for node in cluster.nodes]
        for process in processes:
            process.communicate(timeout=60)
    measured = {what: sum(result[what] for result in results) for what in results[0]}
    pairs = sum(int(each["tracking_total_items"]) for each in stats)
    keys = sum(int(each["tracking_total_keys"]) for each in stats)
    # What was asked of the machine and what it did may differ: the model is told what it did.
    done = replace(fleet, rate=measured["requests"], changes=measured["changes"])
    load = predict(done, since=settle, until=seconds)
    primaries = fleet.primaries
    title = f"{'sticky' if fleet.sticky else 'any gateway'}, {measured['requests']:,.0f} requests/s"
    return [
        _row(f"{title}: look-ups/s", load.look_ups * primaries, measured["look_ups"]),
        _row(f"{title}: pushes/s", load.pushes * primaries, measured["pushes"]),
        _row(f"{title}: keys in the tracking tables", load.tracked_keys * primaries, keys),
        _row(f"{title}: pairs of key and gateway", load.tracked_pairs * primaries, pairs),
    ]


def _row(what: str, predicted: float, measured: float) -> tuple[str, ...]:
    off = measured / predicted - 1 if predicted else 0.0
    return what, f"{predicted:,.0f}", f"{measured:,.0f}", f"{off:+.0%}"


class Crew:
    """Some of the gateways, in one process."""

    def __init__(self, number: int, crews: int, fleet: Fleet, url: str) -> None:
        self._fleet = fleet
        self._chance = random.Random(number)
        self._mine = range(number, fleet.gateways, crews)
        self._weights = list(
            accumulate((rank + 1) ** -fleet.exponent for rank in range(fleet.uids))
        )
        config = sfroute.RouterConfig(cache=sfroute.CacheConfig(max_age=fleet.max_age))
        self._routers = {
            each: sfroute.AsyncRouter.from_url(url, config=config) for each in self._mine
        }
        # Links are changed by somebody else, a pod say: its own writes would be known without a push.
        self._pod = sfroute.AsyncRouter.from_url(url, config=config)
        self._under_way: set[asyncio.Task[object]] = set()
        self._requests = self._changes = 0

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def _request(self) -> None:
        uid = bisect(self._weights, self._chance.random() * self._weights[-1])
        gateway = (
            uid % self._fleet.gateways if self._fleet.sticky else self._chance.choice(self._mine)
        )
        if gateway in self._routers:  # the other crews draw the same, and see to theirs
            self._requests += 1
            self._begin(self._routers[gateway].get_linked_pod(NAMESPACE, f"uid-{uid}", SERVICE))

    def _change(self) -> None:
        self._changes += 1
        uid, pod = self._chance.randrange(self._fleet.uids), self._chance.randrange(100)
        self._begin(self._pod.set_linked_pod(NAMESPACE, f"uid-{uid}", SERVICE, pod))

    def _counted(self) -> dict[str, float]:
        caches = [router.stats().cache for router in self._routers.values()]
        return {
            "requests": self._requests,
            "changes": self._changes,
            "look_ups": sum(cache.misses for cache in caches),
            "pushes": sum(cache.invalidations for cache in caches),
        }

    async def run(self, seconds: float, settle: float) -> dict[str, float]:
        """Send requests for ``seconds``; what was counted after ``settle``, a second."""
        await asyncio.gather(*(router.open() for router in (*self._routers.values(), self._pod)))
        share = len(self._routers) / self._fleet.gateways
        request_rate = self._fleet.rate * (1 if self._fleet.sticky else share)
        due_request = due_change = started = time.monotonic()
        before: dict[str, float] = {}
        counted_at = 0.0
        while (now := time.monotonic()) < started + seconds:
            if not before and now >= started + settle:
                before, counted_at = self._counted(), now
            while due_request <= now:
                due_request += self._chance.expovariate(request_rate)
                self._request()
            while due_change <= now:
                due_change += self._chance.expovariate(self._fleet.changes * share)
                self._change()
            await asyncio.sleep(0.002)
        after, took = self._counted(), time.monotonic() - counted_at
        return {what: (after[what] - before[what]) / took for what in after}

    async def close(self) -> None:
        """End all routers."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        for router in (*self._routers.values(), self._pod):
            await router.aclose()


async def run_crew(number: int, order: str) -> None:
    """A crew's process: it prints what it counted, and keeps its connections until its stdin ends."""
    described, crews, seconds, settle, url = json.loads(order)
    crew = Crew(number, crews, Fleet(**described), url)
    print(json.dumps(await crew.run(seconds, settle)), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await crew.close()


# The report

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
    "look-ups/s",
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


def constants_table(constants: Constants) -> Iterator[tuple[str, ...]]:
    """For people."""
    yield "look-up (GET + PTTL) alone, tracked", f"{constants.look_up:.1f} us"
    yield "look-up, 50 together, tracked", f"{constants.look_up_batched:.1f} us"
    yield "look-up, 50 together, not tracked", f"{constants.untracked:.1f} us"
    yield "write (statefulSetLink with its operation record)", f"{constants.write:.1f} us"
    yield "push to one client", f"{constants.push:.2f} us"
    yield "a key in the tracking table", f"{constants.key:.0f} bytes"
    yield "a client that has read it", f"{constants.pair:.0f} bytes"


def tables(constants: Constants, checked: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """All of it."""
    yield f"Machine: {machine('sfroute')}"
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
        "look-ups/s",
        "pushes/s",
        f"core: look-ups and pushes, tracked, {fleet.max_age:g} s",
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
    parser.add_argument("--crew", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--order", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    if options["crew"] is not None:
        asyncio.run(run_crew(options["crew"], options["order"]))
        return
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
    found = "\n".join(tables(constants, checked))
    print(found)
    if options["document"]:
        text = DOCUMENT.read_text()
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        DOCUMENT.write_text(f"{head}{BEGIN}\n\n{found}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
