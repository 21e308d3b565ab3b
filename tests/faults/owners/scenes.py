"""The faults of ownership. Each is a function that does one to a stage, and leaves it healthy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

import redis

from sfroute._contract.keys import slot_of
from sfroute.embedded import LocalClusterError, Node

from ..disturb import Skipped
from .gateway import pod_socket
from .networks import Namespaces
from .processes import READY_SECONDS
from .record import now
from .stage import Held, Phase, Stage

__all__ = ["Scene"]

Scene = Callable[[Stage, Phase], None]

MARGIN = 1.0
"""Seconds by which gateways outwait a lease (``PlacementConfig.lease_margin``)."""
GRACE = 1
LEAVING = 200
"""How many users leave for good, at most."""
_LATE_STOP = 2.0


def _beyond_lease(stage: Stage) -> float:
    """Seconds after which gateways have moved the users of a pod that is not heard."""
    return stage.settings.lease + MARGIN + _LATE_STOP


@contextmanager
def _playing(stage: Stage, seconds_after: float = 1.0, **how: float) -> Iterator[None]:
    """Users come meanwhile, and for a little while after."""
    stage.play(**how)
    yield
    time.sleep(seconds_after)
    stage.rest()


def _wait(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise LocalClusterError(f"waited {seconds:g} s for {what}")
        time.sleep(0.05)


# --- without faults


def nothing(stage: Stage, phase: Phase) -> None:
    """Users come, leave, come back within their grace period, and open second connections."""
    phase.keeps_links = True
    with _playing(stage, 4.0, leave=0.15, twice=0.15, look=0.3):
        pass
    phase.outlived = _leave_for_good(stage)


def _leave_for_good(stage: Stage) -> float:
    """Some leave, and nobody asks for them: seconds by which the last link outlived its grace period."""
    by_pod: dict[int, list[str]] = {}
    for uid, held in list(stage.claims().items())[:LEAVING]:
        by_pod.setdefault(held.pod, []).append(uid)
    ends: dict[str, float] = {}
    for pod, uids in by_pod.items():
        stage.pods[pod].leave(uids, GRACE)
        ends.update(dict.fromkeys(uids, now() + GRACE))
    latest = 0.0
    give_up = now() + 10 * GRACE
    while ends and now() < give_up:
        found = stage.stored(ends)
        at = now()
        for uid, stored in found.items():
            if stored.link is None:
                latest = max(latest, at - ends.pop(uid))
        time.sleep(0.02)
    return inf if ends else latest


def exclusion(stage: Stage, phase: Phase) -> None:
    """Users are moved by ``route(exclude=...)`` and by ``set``, all the time."""
    phase.moves = True
    with _playing(stage, 4.0, exclude=0.15, move=0.15, look=0.2):
        pass


def evacuation(stage: Stage, phase: Phase) -> None:
    """Two pods are evacuated, one after the other, while users come."""
    phase.moves = True
    with _playing(stage):
        for pod in stage.random.sample(sorted(stage.pods), 2):
            stage.gateways[0].say(f'["evacuate", {pod}]')
            stage.gateways[0].answer()
    phase.times = 2


# --- processes


def stop_pods(stage: Stage, phase: Phase) -> None:
    """``SIGSTOP`` of two pods beyond their lease; then ``SIGCONT``."""
    with _playing(stage):
        pods = stage.random.sample(sorted(stage.pods), 2)
        for pod in pods:
            stage.pods[pod].stop()
        time.sleep(_beyond_lease(stage))
        for pod in pods:
            stage.pods[pod].resume()
        time.sleep(1.0)
    phase.times = 2


def kill_pods(stage: Stage, phase: Phase) -> None:
    """``kill -9`` of two pods: one comes back at once, under its id; the other after its users have been moved."""
    first, second = stage.random.sample(sorted(stage.pods), 2)
    with _playing(stage):
        stage.pods[first].kill()
        stage.restart_pod(first)
        time.sleep(1.0)
        stage.pods[second].kill()
        time.sleep(_beyond_lease(stage))
        stage.restart_pod(second)
    phase.times = 2


def kill_gateways(stage: Stage, phase: Phase) -> None:
    """``kill -9`` of each gateway, under load; another takes its place."""
    with _playing(stage, leave=0.1, look=0.2):
        for number in range(len(stage.gateways)):
            time.sleep(0.5)
            stage.gateways[number].kill()
            stage.restart_gateway(number)
    phase.times = len(stage.gateways)


def rolling_restart(stage: Stage, phase: Phase) -> None:
    """Each pod is stopped in order and started anew under its id."""
    with _playing(stage):
        for pod in sorted(stage.pods):
            stage.pods[pod].end()
            stage.restart_pod(pod)
    phase.times = len(stage.pods)


def twins(stage: Stage, phase: Phase) -> None:
    """A second process is started under the id of a pod that lives."""
    pod = stage.random.choice(sorted(stage.pods))
    older = stage.pods[pod]
    with _playing(stage, 2.0):
        newer = stage.launch_pod(pod, beside=True)
        try:
            newer.hear(READY_SECONDS)
            newer.take_over_socket(pod_socket(stage.folder, pod))
        finally:
            stage.pods[pod] = newer
        time.sleep(2 * stage.settings.heartbeat)
    older.end()


# --- networks


def cut_pod(stage: Stage, phase: Phase) -> None:
    """A pod cannot reach the store for longer than its lease; its gateways can, and they reach the pod."""
    with _playing(stage):
        stage.cables.cut("pod-0")
        time.sleep(_beyond_lease(stage))
        stage.cables.heal("pod-0")
        time.sleep(2.0)
    phase.how = _by(stage)


def cut_pod_shortly(stage: Stage, phase: Phase) -> None:
    """A pod cannot reach the store for half of its lease, three times: it keeps its users."""
    homes = _homes(stage, phase)
    with _playing(stage):
        for _ in range(3):
            stage.cables.cut("pod-0")
            time.sleep(stage.settings.lease / 2)
            stage.cables.heal("pod-0")
            time.sleep(1.5)
        phase.back = stage.until_back(homes, now())
    phase.times = 3
    phase.how = _by(stage)


def cut_gateway(stage: Stage, phase: Phase) -> None:
    """A gateway cannot reach the store for longer than a lease; it goes on by what it knows."""
    with _playing(stage, exclude=0.05):
        phase.moves = True
        stage.cables.cut("gateway-1")
        time.sleep(_beyond_lease(stage))
        stage.cables.heal("gateway-1")
        time.sleep(2.0)
    phase.how = _by(stage)


def _by(stage: Stage) -> str:
    return "network namespaces" if isinstance(stage.cables, Namespaces) else "proxies"


# --- the store forgets


def _homes(stage: Stage, phase: Phase) -> dict[str, Held]:
    homes = stage.claims()
    phase.homes = {uid: held.pod for uid, held in homes.items()}
    phase.wiped_at = now()
    return homes


def flush_all(stage: Stage, phase: Phase) -> None:
    """``FLUSHALL`` on every primary."""
    homes = _homes(stage, phase)
    with _playing(stage, stage.settings.lease):
        time.sleep(0.5)
        stage.cluster.refresh()
        for node in stage.cluster.nodes:
            if node.alive and node.role == "primary":
                node.commands(("FLUSHALL",))
        phase.back = stage.until_back(homes, now())


def restart_one(stage: Stage, phase: Phase) -> None:
    """A primary is killed and restarted without its data."""
    _restart(stage, phase, [stage.random.choice(stage.cluster.nodes)])


def restart_in_turn(stage: Stage, phase: Phase) -> None:
    """Every primary, one after the other, is killed and restarted without its data."""
    homes = _homes(stage, phase)
    phase.times = len(stage.cluster.nodes)
    latest = 0.0
    with _playing(stage, stage.settings.lease):
        for node in stage.cluster.nodes:
            time.sleep(0.5)
            _kill_and_restart(stage, [node])
            latest = max(latest, stage.until_back(homes, now()))
    phase.back = latest


def restart_all(stage: Stage, phase: Phase) -> None:
    """All primaries are killed at once and restarted without their data."""
    _restart(stage, phase, stage.cluster.nodes)


def _restart(stage: Stage, phase: Phase, nodes: list[Node]) -> None:
    homes = _homes(stage, phase)
    with _playing(stage, stage.settings.lease):
        time.sleep(0.5)
        _kill_and_restart(stage, nodes)
        phase.back = stage.until_back(homes, now())


def _kill_and_restart(stage: Stage, nodes: list[Node]) -> None:
    for node in nodes:
        stage.cluster.kill(node)
    for node in nodes:
        stage.cluster.restart(node)
    stage.cluster.wait_healthy()


def evict(stage: Stage, phase: Phase) -> None:
    """``allkeys-lru``: other data fills the memory of all nodes, and links are evicted."""
    homes = _homes(stage, phase)
    with _playing(stage):
        time.sleep(0.5)
        for node in stage.cluster.nodes:
            _press(stage, node)
        gone = sum(stored.link is None for stored in stage.stored(homes).values())
        for node in stage.cluster.nodes:
            node.commands(("CONFIG", "SET", "maxmemory", 0))
        phase.back = stage.until_back(homes, now())
    evicted = sum(int(node.info("stats")["evicted_keys"]) for node in stage.cluster.nodes)
    phase.how = f"{evicted:,} keys evicted, {gone:,} links missing at the end of the pressure"


_ROOM: Final = 4 * 2**20
"""Bytes that other data may take beside all claims. With less, a server evicts all it has for want of buffers."""


def _press(stage: Stage, node: Node) -> None:
    used = int(node.info("memory")["used_memory"])
    node.commands(("CONFIG", "SET", "maxmemory", used + _ROOM))
    slots = node.slots[0]
    client = redis.Redis(host=node.host, port=node.port, protocol=2, socket_timeout=5)
    with client:
        tag = next(tag for tag in map(str, range(10**6)) if _slot(tag) in slots)
        for start in range(0, 3 * _ROOM // 1024, 256):
            pipeline = client.pipeline(transaction=False)
            for number in range(start, start + 256):
                pipeline.set(f"fill:{{{tag}}}:{number}", b"x" * 1024)
            pipeline.execute(raise_on_error=False)


def _slot(tag: str) -> int:
    return slot_of(f"{{{tag}}}")


# --- failovers


def kill_primary(stage: Stage, phase: Phase) -> None:
    """``kill -9`` of two primaries, one after the other; writes were acknowledged by their replicas."""
    phase.times = 2
    with _playing(stage, leave=0.05, look=0.1):
        for _ in range(phase.times):
            primary = stage.random.choice(_primaries(stage))
            replica = stage.cluster.replica_of(primary)
            time.sleep(0.5)
            stage.cluster.kill(primary)
            _wait(lambda replica=replica: _is_primary(replica), "a promotion")  # type: ignore[misc]
            stage.cluster.restart(primary)
            stage.cluster.wait_healthy()


def deafen_primary(stage: Stage, phase: Phase) -> None:
    """A primary hears no other node; both sides go on until it notices, and its replica is promoted; then it hears."""
    primary = stage.random.choice(_primaries(stage))
    replica = stage.cluster.replica_of(primary)
    filter_packets = ("DEBUG", "DROP-CLUSTER-PACKET-FILTER")
    with _playing(stage, 2.0, leave=0.05, look=0.1):
        try:
            primary.commands((*filter_packets, -2))
        except redis.ResponseError as error:
            raise Skipped("the server has no DEBUG DROP-CLUSTER-PACKET-FILTER") from error
        _wait(lambda: _is_primary(replica), "a promotion")
        time.sleep(2.0)
        primary.commands((*filter_packets, -1))
        # Nodes that have declared each other dead take their time to take it back.
        stage.cluster.wait_healthy(60.0)


def _primaries(stage: Stage) -> list[Node]:
    stage.cluster.refresh()
    return [
        node for node in stage.cluster.nodes if node.alive and node.role == "primary" and node.slots
    ]


def _is_primary(node: Node) -> bool:
    return node.info("replication").get("role") == "master"
