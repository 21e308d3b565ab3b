"""What a fleet of gateways asks of the store: the model. Pure; ``scale_model.py`` tells its assumptions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import sfroute

__all__ = [
    "MAX_CLIENTS",
    "TRACKING_TABLE_MAX_KEYS",
    "Constants",
    "Fleet",
    "Load",
    "busy",
    "connections",
    "predict",
    "stall",
    "table_bytes",
    "untracked",
]

TRACKING_TABLE_MAX_KEYS = 1_000_000
"""``tracking-table-max-keys``, the servers' default: beyond it they forget keys at random, and push that."""
MAX_CLIENTS = 10_000
"""``maxclients``, the servers' default."""


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
        push: one push to one client, of a write that nothing else comes with: what a fleet mostly sees.
        push_in_bursts: the same where many writes come at once, and a client's pushes leave together.
        push_broadcast: as ``push``, to clients that track by prefix (``CLIENT TRACKING ON BCAST``).
        push_broadcast_in_bursts: as ``push_in_bursts``, to those.
        key: a key in the tracking table.
        pair: one client that has read it.
    """

    look_up: float
    look_up_batched: float
    untracked: float
    write: float
    push: float
    push_in_bursts: float
    push_broadcast: float
    push_broadcast_in_bursts: float
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


def stall(readers: int, constants: Constants) -> float:
    """Seconds for which a write holds its primary up, and whoever waits behind it, if so many have read the link."""
    return readers * constants.push / 1e6


def connections(gateways: int) -> int:
    """To one primary: a lane and one for commands from each router, and some while they ask for the slot map."""
    return 2 * gateways
