"""A cluster, pods that hold users, gateways that bring them, and a third store; and what the harness asks of them."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import redis

from sfroute._contract.keys import claim_key, link_key, slot_of
from sfroute.embedded import LocalCluster, LocalServer, Node

from .gateway import GatewayPlan, pod_socket
from .networks import Namespaces, Proxies, namespaces_work
from .pod import NAMESPACE, SERVICE, PodPlan
from .processes import READY_SECONDS, GatewayProcess, PodProcess
from .record import History, now, read_histories
from .third_store import third_store

__all__ = ["Held", "Phase", "Settings", "Stage", "Stored"]

_AT_ONCE: Final = 500
"""Keys asked for in one pipeline."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a stage is set.

    Attributes:
        users: how many there are.
        pods: how many hold them.
        gateways: how many bring them.
        callers: of each gateway.
        replicas: of each of three primaries.
        heartbeat, lease: of the pods, in seconds.
        min_replica_acks: see ``RouterConfig``.
        eviction: the servers' ``maxmemory-policy``. Routers ask for it when they connect.
        cuttable: names of processes that may be cut off, ``pod-0`` and the like.
        seed: of everything random.
        server_binary: None: the default.
    """

    users: int
    pods: int = 5
    gateways: int = 2
    callers: int = 8
    replicas: int = 0
    heartbeat: float = 0.5
    lease: float = 3.0
    min_replica_acks: int = 0
    eviction: str = "noeviction"
    cuttable: tuple[str, ...] = ()
    seed: int = 0
    server_binary: str | None = None


@dataclass(slots=True)
class Phase:
    """A fault, from its beginning until all is well again, and what its history is judged by.

    Attributes:
        name: of the fault.
        start: when it began, by ``now()``.
        end: when all was well.
        times: how often it was done.
        moves: users are moved meanwhile, so their old pods may be told a little late.
        keeps_links: no link is lost meanwhile, except by who has the right to remove it.
        may_lose: a replica is promoted without its primary, which may lose claims that were not acknowledged by it.
        homes: pods of users who must stay there, from ``wiped_at`` on.
        wiped_at: see ``homes``.
        back: seconds from the nodes' return until all claims were back; None: not asked.
        outlived: seconds by which a link outlived its last session's grace, at most; None: not asked.
        how: in words, if there is something to say.
        failure: why it could not be done to its end.
    """

    name: str
    start: float
    end: float = 0.0
    times: int = 1
    moves: bool = False
    keeps_links: bool = False
    may_lose: bool = False
    homes: dict[str, int] = field(default_factory=dict)
    wiped_at: float = 0.0
    back: float | None = None
    outlived: float | None = None
    how: str = ""
    failure: str = ""


class Held(NamedTuple):
    """A pod's session: its pod and its fence."""

    pod: int
    fence: int


class Stored(NamedTuple):
    """What the store has of a link."""

    link: str | None
    ttl_ms: int
    record: str | None

    def is_of(self, held: Held) -> bool:
        """True if the claim is there whole."""
        return (
            self.link == str(held.pod)
            and self.ttl_ms == -1
            and (self.record or "").startswith(f"{held.fence} {held.pod} ")
        )


class Stage:
    """A context manager for ``with``; ``records`` is a folder for histories, ``folder`` one for sockets."""

    def __init__(self, settings: Settings, records: Path, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self._records_folder = records
        self.random = random.Random(settings.seed)
        self.cluster = LocalCluster(
            3,
            settings.replicas,
            server_binary=settings.server_binary,
            extra_config={
                # For the one command that makes a node deaf to the others.
                "enable-debug-command": "yes",
                "maxmemory-policy": settings.eviction,
            },
        )
        self.third: LocalServer = third_store(folder, settings.server_binary)
        self.pods: dict[int, PodProcess] = {}
        self.gateways: list[GatewayProcess] = []
        self.cables: Namespaces | Proxies = Proxies(self.cluster, ())
        self.phases: list[Phase] = []
        self._records: list[Path] = []
        self._lives = 0
        self._stack = ExitStack()
        self._playing: dict[str, float] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.cluster)
            stack.enter_context(self.third)
            names = self.settings.cuttable
            if names:
                if namespaces_work():
                    self.cables = stack.enter_context(Namespaces(self.cluster, names))
                else:
                    print(
                        "  NO NETWORK NAMESPACES HERE: processes are cut off by proxies", flush=True
                    )
                    self.cables = stack.enter_context(Proxies(self.cluster, names))
            stack.callback(self._kill_all)
            for pod in range(self.settings.pods):
                self.pods[pod] = self.launch_pod(pod)
            for pod_process in self.pods.values():
                pod_process.hear(READY_SECONDS)
            for number in range(self.settings.gateways):
                self.gateways.append(self.launch_gateway(number))
            for gateway in self.gateways:
                gateway.answer()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _kill_all(self) -> None:
        for process in (*self.gateways, *self.pods.values()):
            if process.alive:
                process.kill()

    # --- processes

    def _record(self, name: str) -> str:
        path = self._records_folder / f"{name}.jsonl"
        self._records.append(path)
        return str(path)

    def launch_pod(self, pod: int, *, beside: bool = False) -> PodProcess:
        """Start one, without waiting; ``beside``: another process with this id listens where gateways come."""
        settings, name = self.settings, f"pod-{pod}"
        life = f"{pod}.{self._lives}"
        self._lives += 1
        socket = self.folder / f"beside-{life}.sock" if beside else pod_socket(self.folder, pod)
        plan = PodPlan(
            nodes=self.cluster.startup_nodes,
            remap=self.cables.remap(name),
            folder=str(self.folder),
            socket=str(socket),
            record=self._record(f"pod-{life}"),
            pod=pod,
            life=life,
            heartbeat=settings.heartbeat,
            lease=settings.lease,
            # A tenth of a core for all pods together.
            sample_every=max(0.02, settings.users * 1e-5),
            min_replica_acks=settings.min_replica_acks,
        )
        return PodProcess(plan, self.cables.enter(name))

    def restart_pod(self, pod: int) -> None:
        """Start it anew; returns when it is ready."""
        self.pods[pod] = self.launch_pod(pod)
        self.pods[pod].hear(READY_SECONDS)

    def launch_gateway(self, number: int) -> GatewayProcess:
        """Start one, without waiting."""
        settings, name = self.settings, f"gateway-{number}"
        self._lives += 1
        plan = GatewayPlan(
            nodes=self.cluster.startup_nodes,
            remap=self.cables.remap(name),
            folder=str(self.folder),
            record=self._record(f"{name}.{self._lives}"),
            users=settings.users,
            pods=settings.pods,
            number=number,
            gateways=settings.gateways,
            callers=settings.callers,
            seed=settings.seed,
            min_replica_acks=settings.min_replica_acks,
        )
        return GatewayProcess(plan, self.cables.enter(name))

    def restart_gateway(self, number: int) -> None:
        """Start it anew; it goes on as the others do."""
        gateway = self.gateways[number] = self.launch_gateway(number)
        gateway.answer()
        if self._playing is not None:
            gateway.say(json.dumps(["play", self._playing]))
            gateway.answer()

    def tell(self, *command: object) -> list[Any]:
        """Every gateway's answer to a command."""
        for gateway in self.gateways:
            gateway.say(json.dumps(list(command)))
        return [gateway.answer() for gateway in self.gateways]

    def fill(self) -> int:
        """Bring every user to a pod. Returns how many have one."""
        return sum(self.tell("fill"))

    def play(self, **how: float) -> None:
        """Let the callers go on, in this way (``Play``)."""
        self._playing = how
        self.tell("play", how)

    def rest(self) -> None:
        """Let the callers make no more calls."""
        self._playing = None
        self.tell("rest")

    # --- what is where

    def claims(self) -> dict[str, Held]:
        """The sessions of all pods that run."""
        return {
            uid: Held(pod, fence)
            for pod, process in self.pods.items()
            if process.alive and not process.stopped
            for uid, fence in process.claims().items()
        }

    def stored(self, uids: Iterable[str]) -> dict[str, Stored]:
        """What the store has of these users' links; those whose node does not answer are left out."""
        self.cluster.refresh()
        primaries = [n for n in self.cluster.nodes if n.alive and n.role == "primary" and n.slots]
        owner = {slot: node for node in primaries for part in node.slots for slot in part}
        parts: dict[Node, list[str]] = defaultdict(list)
        for uid in uids:
            node = owner.get(slot_of(link_key(NAMESPACE, uid, SERVICE)))
            if node is not None:
                parts[node].append(uid)
        found: dict[str, Stored] = {}
        for node, some in parts.items():
            with suppress(redis.RedisError):
                found.update(_ask_node(node, some))
        return found

    def until_back(self, homes: Mapping[str, Held], since: float, patience: float = 20.0) -> float:
        """Wait until the store has all these claims again. Returns how many seconds after ``since`` it had."""
        missing = dict(homes)
        while True:
            stored = self.stored(missing)
            at = now()
            missing = {
                uid: held
                for uid, held in missing.items()
                if uid not in stored or not stored[uid].is_of(held)
            }
            if not missing or at - since > patience:
                return at - since if not missing else float("inf")
            time.sleep(0.02)

    # --- the end

    def history(self) -> History:
        """End everything in order, and read what was recorded."""
        for gateway in self.gateways:
            gateway.end()
        for pod in self.pods.values():
            pod.end()
        return read_histories(path for path in self._records if path.exists())


def _ask_node(node: Node, uids: Sequence[str]) -> dict[str, Stored]:
    client: Any = redis.Redis(
        host=node.host, port=node.port, protocol=2, decode_responses=True, socket_timeout=2
    )
    found = {}
    with client:
        for start in range(0, len(uids), _AT_ONCE):
            some = uids[start : start + _AT_ONCE]
            pipeline = client.pipeline(transaction=False)
            for uid in some:
                key = link_key(NAMESPACE, uid, SERVICE)
                pipeline.get(key).pttl(key).get(claim_key(NAMESPACE, uid, SERVICE))
            replies = pipeline.execute()
            for number, uid in enumerate(some):
                found[uid] = Stored(*replies[3 * number : 3 * number + 3])
    return found
