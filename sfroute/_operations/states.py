"""The states of a service: of its pods, and of its workload. None of them is cached here (see ``_pods/views.py``)."""

from __future__ import annotations

from collections.abc import Sequence

from .._commands.command import Command, script_command
from .._contract import replies
from .._contract.keys import (
    check_encodable,
    check_pod,
    check_service_names,
    state_key,
    workload_key,
)
from .._contract.scripts import get_script
from .._net.connection import encode
from .._pods.views import ServiceView
from ..errors import InvalidArgument
from .arguments import checked_sequence
from .engine import Engine

__all__ = ["ServiceStates"]


class ServiceStates:
    """Reads and writes states. Each method checks its arguments before anything is sent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def set_pod(
        self, namespace: str, service: str, pod: int, state: str, give_up: float | None
    ) -> None:
        """Write a pod's state, the string as given."""
        key = state_key(namespace, service)
        check_pod(pod)
        _check_state(state)
        command = Command(
            "set_service_state", key, "HSET", encode("HSET", key, pod, state), write=True
        )
        await self._run(command, give_up)

    async def get_pods(self, namespace: str, service: str, give_up: float | None) -> dict[int, str]:
        """Pod id -> state string of every pod; fields that are not pod ids are skipped."""
        key = state_key(namespace, service)
        command = Command("get_service_state", key, "HGETALL", encode("HGETALL", key))
        return replies.pod_states(await self._run(command, give_up), key)

    async def view(
        self, operation: str, namespace: str, service: str, fresh: bool, give_up: float | None
    ) -> ServiceView:
        """The pod view by which this router routes. ``fresh``: as it is now."""
        check_service_names(namespace, service)
        parts = await self._engine.opened_by(give_up, operation)
        return await parts.views.get(namespace, service, fresh=fresh, give_up=give_up)

    async def set_workload(
        self, namespace: str, service: str, state: str, give_up: float | None
    ) -> None:
        """Write a service's workload state, the string as given."""
        key = workload_key(namespace, service)
        _check_state(state)
        command = Command("set_workload_state", key, "SET", encode("SET", key, state), write=True)
        await self._run(command, give_up)

    async def get_workload(self, namespace: str, service: str, give_up: float | None) -> str | None:
        """A service's workload state, None if there is none."""
        key = workload_key(namespace, service)
        reply = await self._run(
            Command("get_workload_state", key, "GET", encode("GET", key)), give_up
        )
        return None if reply is None else replies.text(reply, key)

    async def get_workloads(
        self, namespace: str, services: Sequence[str], give_up: float | None
    ) -> dict[str, str]:
        """Service -> workload state; services without one are absent. One round trip per node."""
        for service in checked_sequence("services", services):
            check_service_names(namespace, service)
        names = list(dict.fromkeys(services))
        keys = [workload_key(namespace, service) for service in names]
        if not keys:
            return {}
        operation = "get_workload_state_batch"
        parts = await self._engine.opened_by(give_up, operation)
        found = await parts.commands.run_many(
            [Command(operation, key, "GET", encode("GET", key)) for key in keys], give_up
        )
        return {
            service: replies.text(reply, key)
            for service, key, reply in zip(names, keys, found, strict=True)
            if reply is not None
        }

    async def report(
        self,
        place: tuple[str, str, int, str],
        state: str,
        *,
        start: bool,
        prune_ms: int,
        gap_ms: int,
    ) -> tuple[str | None, bool, int]:
        """A heartbeat of one life of a pod: write its JSON state, stamped with the server's clock.

        Returns the state before, whether this one is stored (it is not if a newer life has the pod id), and when the
        life that has the pod id started, in milliseconds by the server's clock.

        Args:
            place: namespace, service, pod and life.
            state: the state; its field ``by`` is the life.
            start: it is the first of this life.
            prune_ms: also remove states of other pods older than this; 0 removes none.
            gap_ms: mark a gap if no heartbeat of the service was stored for longer than this.
        """
        namespace, service, pod, life = place
        key = state_key(namespace, service)
        parts = await self._engine.opened()
        reply = await parts.commands.run(
            script_command(
                "heartbeat",
                get_script("statefulSetState"),
                [key],
                [pod, state, "1", prune_ms, life, "start" if start else "beat", gap_ms],
                write=True,
                # A repeated heartbeat says the same, only later.
                repeatable=True,
            )
        )
        return replies.stored_state(reply, key)

    async def take_pod(self, namespace: str, service: str, life: str, name: str) -> int:
        """A pod id for a life: the one that the name had before, else the lowest that is free.

        Raises what the store raises.
        """
        key = state_key(namespace, service)
        parts = await self._engine.opened()
        config = self._engine.config.placement
        silent_ms, margin_ms = int(config.pod_timeout * 1000), int(config.lease_margin * 1000)
        reply = await parts.commands.run(
            script_command(
                "take_pod",
                get_script("statefulTakePod"),
                [key],
                [life, name, silent_ms, margin_ms],
                write=True,
                # A life that has an id gets the same one.
                repeatable=True,
            )
        )
        return replies.owner(reply, key)

    async def _run(self, command: Command, give_up: float | None) -> object:
        parts = await self._engine.opened_by(give_up, command.operation)
        return await parts.commands.run(command, give_up)


def _check_state(state: str) -> None:
    if not isinstance(state, str):
        raise InvalidArgument(f"state must be a str, not {type(state).__name__}")
    check_encodable("state", state)
