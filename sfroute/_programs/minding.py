"""Puts ``sfroute agent`` together: the child, its health, the pod's agent, and the application that speaks for it.

::

    child started -> healthy -> Running -> SIGTERM: Draining -> SIGTERM to the child -> ended: Stopped
                        ^          |
                        +- Failed <+ not healthy any more
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import uvloop

from .._contract.introduction import AGENT_NAME
from .._contract.keys import check_persist_seconds
from .._fronts.agent import AsyncPodAgent
from .._fronts.router import AsyncRouter
from .._net.targets import target_of_url
from ..config import RouterConfig
from ..errors import ConfigError, InvalidArgument, SfrouteError
from ..types import FAILED, Handover, Isolated, Lost, PodEvent, Rejoined, Superseded
from .child import PASSED_ON, Child
from .listening import Address, Server, listening, url_of
from .probes import Health, Load, Probe
from .sidecar import Sidecar

__all__ = ["NOT_FOUND", "Minding", "mind", "pod_of_host_name"]

_log = logging.getLogger("sfroute.agent")

RETRY_SECONDS: Final = 0.25
STARTING_SECONDS: Final = 0.1
"""Between two looks at a child that is not healthy yet."""
NOT_FOUND: Final = 127
"""The exit code for a command that cannot be run, as of a shell."""


@dataclass(frozen=True)
class Minding:
    """What to run, and how to speak for it. Raises ``InvalidArgument`` or ``ConfigError``.

    Attributes:
        url, namespace, service, pod: whom to speak for, and through which store.
        addresses: where the child calls.
        socket_mode: the permissions of unix sockets.
        health: where to look whether the child is healthy; None: it is as long as it runs.
        failures: how many looks in a row must fail.
        load: where to look for its load.
        heartbeat, lease, capacity, max_claims, address, labels: as for ``AsyncPodAgent``.
        grace: seconds for which links stay for a reconnect, unless a call says otherwise.
        drain: seconds for which users are waited for after SIGTERM.
        child_grace: seconds between SIGTERM and SIGKILL to the child.
    """

    url: str
    namespace: str
    service: str
    pod: int
    addresses: Sequence[Address]
    socket_mode: int = 0o600
    health: Probe | None = None
    failures: int = 3
    load: Probe | None = None
    heartbeat: float = 2.0
    lease: float | None = 10.0
    capacity: float | None = None
    max_claims: int | None = None
    address: str | None = None
    labels: Mapping[str, str] | None = None
    grace: int | None = None
    drain: float = 25.0
    child_grace: float = 10.0

    def __post_init__(self) -> None:
        target_of_url(self.url)
        if not self.addresses:
            raise InvalidArgument("there must be an address to listen on")
        if self.grace is not None:
            check_persist_seconds(self.grace)


def mind(minding: Minding, command: Sequence[str], announce: Callable[[list[str]], None]) -> int:
    """Run the command and speak for it; return its exit code. ``announce`` is told where the agent listens."""
    with (
        listening(minding.addresses, minding.socket_mode) as listeners,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        urls = [url_of(listener) for listener in listeners]

        async def main() -> int:
            router = AsyncRouter.from_url(minding.url, config=RouterConfig(client_name=AGENT_NAME))
            try:
                minder = _Minder(minding, router)
                server = Server(minder.app, grace=1.0, signals=False)
                serving = asyncio.create_task(server.serve(sockets=listeners))
                await server.up.wait()
                announce(urls)
                try:
                    return await minder.run(command, urls[0])
                finally:
                    server.stop()
                    await serving
            finally:
                await router.aclose()

        return runner.run(main())


class _Minder:
    def __init__(self, minding: Minding, router: AsyncRouter) -> None:
        self._minding = minding
        self._health = Health(minding.health, minding.failures)
        self._load = Load(minding.load)
        self._agent = AsyncPodAgent(
            router,
            minding.namespace,
            minding.service,
            minding.pod,
            load=self._load.source,
            heartbeat=minding.heartbeat,
            lease=minding.lease,
            capacity=minding.capacity,
            max_claims=minding.max_claims,
            address=minding.address,
            labels=minding.labels,
            sigterm=False,
        )
        self.app = Sidecar(
            self._agent, minding.service, grace=minding.grace, drain_seconds=minding.drain
        )
        self._told = asyncio.Event()
        self._hurried = asyncio.Event()
        self._superseded = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def run(self, command: Sequence[str], url: str) -> int:
        """From the child's start to its end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._tell)
        variables = {"SFROUTE_AGENT": url, "SFROUTE_POD": str(self._minding.pod)}
        try:
            child = await Child.start(command, variables)
        except OSError as error:
            _log.error("the command cannot be run: %s", error.strerror or error)
            return NOT_FOUND
        for number in PASSED_ON:
            loop.add_signal_handler(number, child.pass_on, number)
        reaping = asyncio.create_task(child.reap())
        looking = asyncio.create_task(self._look_after())
        ended = asyncio.create_task(child.ended())
        try:
            code = await self._until_end(child, ended)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await child.end(self._minding.child_grace)
            await self._leave()
            self.app.events.add("stopped", {})
            self.app.events.close()
            reaping.cancel()
        return code

    async def _until_end(self, child: Child, ended: asyncio.Task[int]) -> int:
        told = asyncio.create_task(self._told.wait())
        superseded = asyncio.create_task(self._superseded.wait())
        waiting: set[asyncio.Task[object]] = {told, superseded}
        try:
            await asyncio.wait({ended, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                _log.warning("the command has ended with exit code %d", ended.result())
                return ended.result()
            if not self._superseded.is_set() and self.app.is_running:
                await self._drain(ended)
            return await child.end(self._minding.child_grace)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _drain(self, ended: asyncio.Task[int]) -> None:
        """Until the users have gone, the deadline has passed, the child has ended, or a second signal came."""
        self.app.events.add("draining", {"seconds": self._minding.drain})
        draining = asyncio.create_task(self._agent.drain(self._minding.drain))
        hurried = asyncio.create_task(self._hurried.wait())
        await asyncio.wait({draining, hurried, ended}, return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, hurried):
            task.cancel()
        results = await asyncio.gather(draining, hurried, return_exceptions=True)
        if isinstance(results[0], Exception):
            _log.warning("the pod could not drain: %s", results[0])

    def _tell(self) -> None:
        if self._told.is_set():
            self._hurried.set()
        self._told.set()

    # The pod's life

    async def _look_after(self) -> None:
        """Begin and end the agent's lives by the child's health."""
        while not self._superseded.is_set():
            healthy, _ = await asyncio.gather(self._health.look(), self._load.look())
            if healthy and not self.app.is_running and not self._told.is_set():
                await self._begin()
            elif not healthy and self.app.is_running:
                _log.error("the command is not healthy: the pod has failed")
                await self._leave(FAILED)
                self.app.events.add("failed", {})
            beats = self.app.is_running or self._minding.health is None
            await asyncio.sleep(self._minding.heartbeat if beats else STARTING_SECONDS)

    async def _begin(self) -> None:
        while not self._told.is_set():
            try:
                await self._agent.start()
                break
            except SfrouteError as error:
                _log.warning("the pod cannot begin: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
        if self._told.is_set():
            # Nobody drains it: it must not get users any more.
            await self._agent.stop()
            return
        self.app.is_running = True
        self.app.events.add("running", {"pod": self._minding.pod})
        self._reading = asyncio.create_task(self._read())

    async def _leave(self, status: str | None = None) -> None:
        """End this life, and say so to the gateways."""
        self.app.is_running = False
        if status is None:
            await self._agent.stop()
        else:
            await self._agent._stop_as(status)
        self.app.forget_sessions()
        if self._reading is not None:
            await self._reading
            self._reading = None

    async def _read(self) -> None:
        async for event in self._agent.events():
            self.app.events.add(*_told(event))
            if isinstance(event, Superseded):
                _log.error("another process has this pod's id: the command is ended")
                self._superseded.set()


def _told(event: PodEvent) -> tuple[str, dict[str, object]]:
    if isinstance(event, Lost):
        fields = {
            "uid": event.uid,
            "fence": event.claim.fence,
            "reason": event.reason,
            "owner": event.owner,
        }
        return "lost", fields
    if isinstance(event, Handover):
        claim = event.claim
        asked = {"uid": event.uid, "fence": claim.fence, "turn": claim.turn, "to": event.to}
        return "handover", asked
    assert isinstance(event, (Isolated, Rejoined, Superseded))
    return type(event).__name__.lower(), asdict(event)


def pod_of_host_name(name: str) -> int:
    """The ordinal at the end of a StatefulSet pod's host name. Raises ``ConfigError``."""
    _, dash, ordinal = name.partition(".")[0].rpartition("-")
    if not dash or not ordinal.isascii() or not ordinal.isdigit():
        raise ConfigError(
            f"the host name {name!r} does not end in a pod's number; give it with --pod"
        )
    return int(ordinal)
