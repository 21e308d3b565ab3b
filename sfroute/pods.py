"""The pod's side: heartbeats, accepting and releasing uids, draining.

A uid's life with a pod::

    gateway proposes (temporary link) -> pod accepts (persistent) -> pod releases (grace period) -> the link expires
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from numbers import Real
from types import FrameType, TracebackType
from typing import Any, Final, Self

from .errors import (
    ConfigError,
    InvalidArgument,
    OutcomeUnknown,
    RouterClosed,
    SfrouteError,
    StoreError,
)
from .keys import check_link_names, check_pod, check_service_names
from .router import AsyncRouter
from .states import asked_to_drain, compose_state
from .sync import Router
from .types import DRAINING, PERSIST_FOREVER, RUNNING, STOPPED, TrySetResult
from .views import notice_seconds

__all__ = ["AsyncPodAgent", "PodAgent"]

_log = logging.getLogger(__name__)

JITTER: Final = 0.1
"""Share by which heartbeats vary, so that the pods of a service do not beat in step."""
PRUNE_EVERY: Final = 30
"""Heartbeats between two removals of states of pods long gone."""
DRAIN_POLL_SECONDS: Final = 0.25
RETRY_SECONDS: Final = 0.25
"""Between two attempts at a heartbeat. Each has the store's whole deadline: when the store is back, all pods must have
reported before gateways take their silence for death."""
MAX_SECONDS: Final = 10.0**9
RESERVED: Final = frozenset({"status", "load", "at", "by", "capacity", "drain"})
"""Fields of the state that are the agent's."""
_TERMINATED: Final = 128 + signal.SIGTERM


class AsyncPodAgent:
    """Speaks for one pod, on asyncio: ``async with AsyncPodAgent(router, "prod", "game", 3) as agent: ...``.

    The first heartbeat is stored before the block begins; the last one says ``Stopped`` when it ends, also on SIGTERM.
    A pod that stops without a word counts as dead after the gateways' ``PlacementConfig.pod_timeout``.

    Args:
        router: the router to speak through.
        namespace: the namespace.
        service: the service.
        pod: this pod's id.
        load: called before each heartbeat, on the event loop, so it must not block: how loaded the pod is, in any unit
            that all pods of the service share. If it raises, or returns no finite number, the load is reported as not
            known.
        heartbeat: seconds between two heartbeats. Gateways' ``pod_timeout`` should be at least three times that.
        capacity: the pod's share of the work relative to the others.
        extra: further fields of the state; JSON.
        forget_after: seconds after which the states of other pods that report no more are removed; at least ten
            heartbeats.
        sigterm: turn SIGTERM into an orderly end of the block, if the application has no handler of its own.
    """

    def __init__(
        self,
        router: AsyncRouter,
        namespace: str,
        service: str,
        pod: int,
        *,
        load: Callable[[], float] | None = None,
        heartbeat: float = 2.0,
        capacity: float | None = None,
        extra: Mapping[str, object] | None = None,
        forget_after: float = 3600.0,
        sigterm: bool = True,
    ) -> None:
        if not isinstance(router, AsyncRouter):
            raise InvalidArgument(
                "AsyncPodAgent needs an AsyncRouter; for a Router there is PodAgent"
            )
        check_service_names(namespace, service)
        check_pod(pod)
        if not _is_positive(heartbeat):
            raise InvalidArgument("heartbeat must be seconds > 0")
        if capacity is not None and not _is_positive(capacity):
            raise InvalidArgument("capacity must be a number > 0")
        if not _is_positive(forget_after) or not 10 * heartbeat <= forget_after <= MAX_SECONDS:
            raise InvalidArgument("forget_after must be seconds, at least ten heartbeats")
        if load is not None and not callable(load):
            raise InvalidArgument("load must be a function that returns a number, or None")
        if extra is not None and (not isinstance(extra, Mapping) or RESERVED & extra.keys()):
            raise InvalidArgument(
                f"extra must be a mapping without the fields {', '.join(sorted(RESERVED))}"
            )
        self.pod = pod
        self._router = router
        self._namespace = namespace
        self._service = service
        self._load = load
        self._heartbeat = heartbeat
        self._forget_after = forget_after
        self._sigterm = sigterm
        # Tells two processes apart that claim the same pod id.
        self._identity = secrets.token_hex(6)
        own: dict[str, object] = {"by": self._identity}
        if capacity is not None:
            own["capacity"] = capacity
        try:
            # A copy: what the application puts into its own later must not end the heartbeats.
            self._extra: dict[str, object] = json.loads(
                json.dumps({**(extra or {}), **own}, allow_nan=False)
            )
        except (TypeError, ValueError) as error:
            raise InvalidArgument("extra must be what JSON can hold") from error
        self._status = RUNNING
        self._beats = 0
        # One at a time: an older state that is still being sent must not overtake a newer one.
        self._beating = asyncio.Lock()
        self._uids: set[str] = set()
        self._has_accepted = False
        self._left = 0
        # The status that gateways can read, and since when.
        self._stored = ("", 0.0)
        self._task: asyncio.Task[None] | None = None
        self._owner: asyncio.Task[Any] | None = None
        self._terminated = False
        self._load_trouble = False
        self._asked_to_drain = False
        self._rivals: set[str] = set()

    @property
    def status(self) -> str:
        """What the pod reports: ``Running``, ``Draining`` (also at the request of ``sfroute drain``), ``Stopped``."""
        return self._status

    @property
    def conflicts(self) -> int:
        """How many other processes were seen to claim this pod id."""
        return len(self._rivals)

    async def start(self) -> None:
        """Store the first heartbeat and begin to beat. ``async with`` does it."""
        if self._task is not None:
            raise ConfigError("the agent is running already")
        self._status = RUNNING
        await self._beat()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop beating and say ``Stopped``. ``async with`` does it.

        If the store cannot be reached within its deadline the pod goes in any case: its last heartbeat grows old
        instead.
        """
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._status = STOPPED
        await self._try_to_beat()
        # Only now: if this call is cancelled, the next one says it.
        self._task = None

    async def __aenter__(self) -> Self:
        await self.start()
        self._owner = asyncio.current_task()
        self._catch_sigterm()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # It ends already: being told so again must not keep it from saying so.
        self._owner = None
        try:
            await self.stop()
        finally:
            self._release_sigterm()
        if self._terminated:
            raise SystemExit(_TERMINATED)

    async def accept(self, uid: str) -> TrySetResult:
        """Take a uid: its link becomes persistent for this pod, unless another pod has it.

        ``success`` is False, and ``pod`` the owner, if another pod has it. A draining pod still accepts a user nobody
        has.

        Raises ``ConfigError`` before the block begins and after it has ended, as ``release`` and ``drain`` do.
        """
        check_link_names(self._namespace, uid, self._service)
        self._check_running()
        self._has_accepted = True
        link = (self._namespace, uid, self._service)
        known = uid in self._uids
        # Before the answer, which may be lost, or not waited for: drain() then asks the store about the uid.
        self._uids.add(uid)
        try:
            owner = await self._router.routes.claim(link, self.pod)
        except SfrouteError as error:
            if not known and not isinstance(error, OutcomeUnknown):
                self._uids.discard(uid)
            raise
        if owner != self.pod:
            self._uids.discard(uid)
        return TrySetResult(owner == self.pod, owner)

    async def release(self, uid: str, *, grace: int | None = None) -> bool:
        """Let a uid go, if it is still this pod's. True if it was.

        ``grace``: seconds for which the link stays, for a reconnect; None removes it now.
        """
        self._check_running()
        seconds = PERSIST_FOREVER if grace is None else grace
        released = await self._router.remove_linked_pod_with_id(
            self._namespace, uid, self._service, self.pod, seconds
        )
        self._uids.discard(uid)
        return released

    async def drain(self, deadline: float = 25.0) -> int:
        """Take no new uids; wait until this pod's have gone, or ``deadline`` seconds have passed.

        25 seconds fit into a Kubernetes preStop hook with the usual 30. It waits for the uids that were accepted here;
        if the application never calls ``accept``, for all links to this pod, for which the whole store is looked
        through. In any case it waits until every gateway has noticed. The pod stays draining, also if this is
        cancelled.

        Returns how many uids are left; if that could not be counted by the deadline, at least so many.
        """
        if not (_is_positive(deadline) or deadline == 0):
            raise InvalidArgument("deadline must be seconds >= 0")
        self._check_running()
        self._status = DRAINING
        self._asked_to_drain = False
        self._left = len(self._uids)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await self._try_to_beat()
                await self._until_empty()
        return self._left

    def _check_running(self) -> None:
        if self._task is None or self._status == STOPPED:
            raise ConfigError("the agent is not running")

    async def _until_empty(self) -> None:
        while self._status == DRAINING:  # else it was stopped meanwhile
            everybody_knows = self._everybody_knows(DRAINING)
            began = time.monotonic()
            pause = DRAIN_POLL_SECONDS
            with contextlib.suppress(StoreError):  # not known just now: look again
                if self._stored[0] != DRAINING:
                    await self._beat()
                elif self._has_accepted:
                    await self._forget_departed()
                elif everybody_knows:
                    await self._look_through_store()
                    # At most half of the time, however large the store is.
                    pause = max(1.0, time.monotonic() - began)
                if everybody_knows and not self._left:
                    return
            await asyncio.sleep(pause)

    def _everybody_knows(self, status: str) -> bool:
        """True if no gateway can still go by what the pod reported before."""
        stored, since = self._stored
        notice = notice_seconds(self._router.engine.config.placement)
        return stored == status and time.monotonic() >= since + notice

    async def _forget_departed(self) -> None:
        uids = list(self._uids)
        if uids:
            linked = await self._router.batch_get_linked_pod(self._namespace, uids, self._service)
            self._uids.difference_update(set(uids).difference(linked.get(self.pod, ())))
        self._left = len(self._uids)

    async def _look_through_store(self) -> None:
        steps = self._router.evacuate(self._namespace, self._service, self.pod, dry_run=True)
        async with contextlib.aclosing(steps):
            async for progress in steps:
                if progress.done or progress.found > self._left:
                    self._left = progress.found

    # Heartbeats

    async def _run(self) -> None:
        views = (await self._router.engine.opened()).views
        pause = self._heartbeat
        while not await views.closes_within(pause * (1.0 + JITTER * random.uniform(-1.0, 1.0))):
            stored = await self._try_to_beat()
            pause = self._heartbeat if stored else min(self._heartbeat, RETRY_SECONDS)

    async def _try_to_beat(self) -> bool:
        try:
            await self._beat()
        except RouterClosed:
            _log.warning("the router of pod %d was closed before its agent was stopped", self.pod)
            return False
        except SfrouteError as error:
            _log.warning("a heartbeat of pod %d could not be stored: %s", self.pod, error)
            return False
        return True

    async def _beat(self) -> None:
        async with self._beating:
            await self._send_state()
            if self._status != self._stored[0]:  # somebody has asked for another one
                await self._send_state()

    async def _send_state(self) -> None:
        self._beats += 1
        status = self._status
        prune = int(self._forget_after * 1000) if self._beats % PRUNE_EVERY == 0 else 0
        state = compose_state(status, self._measured_load(), self._extra)
        previous = await self._router.report_state(
            self._namespace, self._service, self.pod, state, prune
        )
        if status != self._stored[0]:
            self._stored = status, time.monotonic()
        if self._beats > 1:
            self._look_for_rival(previous)
            self._heed_request(previous)

    def _measured_load(self) -> float | None:
        if self._load is None:
            return None
        load = math.nan
        try:
            given: object = self._load()
            if isinstance(given, Real) and not isinstance(given, bool):
                load = float(given)
                trouble = "" if math.isfinite(load) else f"returned {load}"
            else:
                trouble = f"returned a {type(given).__name__}, not a number"
        except Exception as error:  # noqa: BLE001 - the application's callable may raise anything
            trouble = f"raised {type(error).__name__}"
        if trouble:
            if not self._load_trouble:
                _log.warning(
                    "the load callable of pod %d %s; the pod reports no load", self.pod, trouble
                )
            self._load_trouble = True
            return None
        self._load_trouble = False
        return load

    def _look_for_rival(self, previous: str | None) -> None:
        try:
            fields = json.loads(previous or "{}")
        except (ValueError, RecursionError):  # whatever another program has written there
            return
        rival = fields.get("by") if isinstance(fields, dict) else None
        if isinstance(rival, str) and rival != self._identity and rival not in self._rivals:
            self._rivals.add(rival)
            self._router.engine.pod_conflicts += 1
            _log.warning(
                "pod %d of service %r is claimed by another process too; give each its own pod id",
                self.pod,
                self._service,
            )

    def _heed_request(self, previous: str | None) -> None:
        """An operator has written over our state: drain, or do so no longer."""
        asked = asked_to_drain(previous or "")
        if asked is True and self._status == RUNNING:
            self._status, self._asked_to_drain = DRAINING, True
        elif asked is False and self._asked_to_drain and self._status == DRAINING:
            self._status, self._asked_to_drain = RUNNING, False

    # SIGTERM

    def _catch_sigterm(self) -> None:
        if (
            self._sigterm
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        ):
            with contextlib.suppress(NotImplementedError):  # a loop without signals (Windows)
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._terminate)
                self._catching = True

    _catching = False

    def _terminate(self) -> None:
        self._terminated = True
        if self._owner is not None:
            self._owner.cancel()

    def _release_sigterm(self) -> None:
        if self._catching:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
            self._catching = False


class PodAgent:
    """``AsyncPodAgent`` for threads: ``with PodAgent(router, "prod", "game", 3) as agent: ...``.

    Heartbeats are sent by the router's background thread, where ``load`` is called too. The arguments are those of
    ``AsyncPodAgent``.
    """

    def __init__(
        self,
        router: Router,
        namespace: str,
        service: str,
        pod: int,
        *,
        load: Callable[[], float] | None = None,
        heartbeat: float = 2.0,
        capacity: float | None = None,
        extra: Mapping[str, object] | None = None,
        forget_after: float = 3600.0,
        sigterm: bool = True,
    ) -> None:
        if not isinstance(router, Router):
            raise InvalidArgument(
                "PodAgent needs a Router; for an AsyncRouter there is AsyncPodAgent"
            )
        self.pod = pod
        self._router = router
        self._sigterm = sigterm
        self._replaced: Any = None
        router.open()
        self._agent = router.background.call_plain(
            lambda: AsyncPodAgent(
                router.background.router,
                namespace,
                service,
                pod,
                load=load,
                heartbeat=heartbeat,
                capacity=capacity,
                extra=extra,
                forget_after=forget_after,
                sigterm=False,
            )
        )

    @property
    def status(self) -> str:
        """What the pod reports: ``Running``, ``Draining`` (also at the request of ``sfroute drain``), ``Stopped``."""
        return self._agent.status

    @property
    def conflicts(self) -> int:
        """How many other processes were seen to claim this pod id."""
        return self._agent.conflicts

    def start(self) -> None:
        """Store the first heartbeat and begin to beat. ``with`` does it."""
        self._router.background.call(self._agent.start())

    def stop(self) -> None:
        """Stop beating and say ``Stopped``. ``with`` does it.

        If the store cannot be reached within its deadline the pod goes in any case: its last heartbeat grows old
        instead.
        """
        try:
            self._router.background.call(self._agent.stop())
        except RouterClosed:
            _log.warning("the router of pod %d was closed before its agent was stopped", self.pod)

    def __enter__(self) -> Self:
        self.start()
        if (
            self._sigterm
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        ):
            self._replaced = signal.signal(signal.SIGTERM, _leave)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._replaced is None:
            self.stop()
            return
        # It ends already: being told so again must not keep it from saying so.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            self.stop()
        finally:
            signal.signal(signal.SIGTERM, self._replaced)
            self._replaced = None

    def accept(self, uid: str) -> TrySetResult:
        """Take a uid: its link becomes persistent for this pod, unless another pod has it.

        ``success`` is False, and ``pod`` the owner, if another pod has it. A draining pod still accepts a user nobody
        has.

        Raises ``ConfigError`` before the block begins and after it has ended, as ``release`` and ``drain`` do.
        """
        return self._router.background.call(self._agent.accept(uid))

    def release(self, uid: str, *, grace: int | None = None) -> bool:
        """Let a uid go, if it is still this pod's. True if it was.

        ``grace``: seconds for which the link stays, for a reconnect; None removes it now.
        """
        return self._router.background.call(self._agent.release(uid, grace=grace))

    def drain(self, deadline: float = 25.0) -> int:
        """Take no new uids; wait until this pod's have gone, or ``deadline`` seconds have passed.

        25 seconds fit into a Kubernetes preStop hook with the usual 30. It waits for the uids that were accepted here;
        if the application never calls ``accept``, for all links to this pod, for which the whole store is looked
        through. In any case it waits until every gateway has noticed. The pod stays draining, also if this is
        cancelled.

        Returns how many uids are left; if that could not be counted by the deadline, at least so many.
        """
        return self._router.background.call(self._agent.drain(deadline))


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(_TERMINATED)


def _is_positive(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 < value <= MAX_SECONDS
