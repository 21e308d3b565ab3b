"""The pod's side on asyncio: heartbeats, claiming and releasing uids, draining.

A uid's life with a pod::

    gateway proposes (temporary link) -> pod claims (persistent) -> pod releases (grace period) -> the link expires
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self

from .. import _forks as forks
from .._contract.keys import check_link_names, check_pod, check_service_names
from .._operations.claims import Held
from .._operations.draining import Draining
from .._operations.life import Life
from .._operations.ownership import Ownership, suspended_time
from .._pods.views import notice_seconds
from ..errors import ConfigError, InvalidArgument
from ..telemetry import traced
from ..telemetry.logs import log_fields
from ..types import AUTO, STOPPED, Claim, Handover, PodEvent
from .agent_arguments import check_deadline, fields_of_state, seconds_of
from .router import AsyncRouter
from .sigterm import CancelOnSigterm

__all__ = ["AsyncPodAgent", "AsyncSession"]

HANDOVER_GRACE: Final = 60
"""Seconds for which a link that was handed over waits for its user: it is not for good before the new pod claims it."""


class AsyncPodAgent:
    """Speaks for one pod, on asyncio: ``async with AsyncPodAgent(router, "prod", "game", 3) as agent: ...``.

    The first heartbeat is stored before the block begins; the last one says ``Stopped`` when it ends, also on SIGTERM.
    A pod that stops without a word counts as dead once its ``lease`` is over, and a second more.

    Args:
        router: the router to speak through.
        namespace: the namespace.
        service: the service.
        pod: this pod's id. ``AUTO`` takes one when the agent starts: the one that ``name`` had before, else the lowest
            that no living pod has. For pods without an ordinal, such as those of a Deployment.
        load: called before each heartbeat, on the event loop, so it must not block: how loaded the pod is, in any unit
            that all pods of the service share. If it raises, or returns no finite number, the load is reported as not
            known.
        heartbeat: seconds between two heartbeats.
        capacity: the pod's share of the work relative to the others.
        extra: further fields of the state; JSON.
        forget_after: seconds after which the states of other pods that report no more are removed; at least ten
            heartbeats.
        sigterm: turn SIGTERM into an orderly end of the block, if the application has no handler of its own.
        lease: seconds for which the pod acts for its users without a stored heartbeat, at least two heartbeats, at most
            a day; then it owns nobody (``Isolated``), and gateways move them. None for a service that prefers going on
            to exclusiveness: never ``Isolated``, so two pods may act for a user while one is cut off.
        confirm_every: seconds after which each claim is confirmed where the servers do not push what changes; six times
            as many where they do.
        max_claims: how many users the pod takes; then ``accept`` raises ``NoRoom``, and gateways place users elsewhere.
            Users in their grace period count. None: any number.
        address: where gateways reach the pod, such as ``"10.0.3.7:8080"``; they find it in ``Link.address``. At most
            255 bytes, printable, without spaces. None says nothing.
        labels: what policies such as ``Prefer`` go by, such as ``{"version": "2.1", "zone": "a"}``. At most 16; a name
            has 1 to 64 bytes, a value at most 128.
        name: with ``AUTO``, what stays the same when the pod is restarted, such as its host's name: it gets its id
            back, and its users. At most 255 bytes, printable. None takes any free id.
    """

    def __init__(
        self,
        router: AsyncRouter,
        namespace: str,
        service: str,
        pod: int | Literal["auto"],
        *,
        load: Callable[[], float] | None = None,
        heartbeat: float = 2.0,
        capacity: float | None = None,
        extra: Mapping[str, object] | None = None,
        forget_after: float = 3600.0,
        sigterm: bool = True,
        lease: float | None = 10.0,
        confirm_every: float = 10.0,
        max_claims: int | None = None,
        address: str | None = None,
        labels: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(router, AsyncRouter):
            raise InvalidArgument(
                "AsyncPodAgent needs an AsyncRouter; for a Router there is PodAgent"
            )
        check_service_names(namespace, service)
        if pod != AUTO:
            check_pod(pod)
        fields = fields_of_state(
            extra,
            load=load,
            heartbeat=heartbeat,
            capacity=capacity,
            forget_after=forget_after,
            lease=lease,
            confirm_every=confirm_every,
            max_claims=max_claims,
            address=address,
            labels=labels,
            name=name,
        )
        # With AUTO nobody is told before an id was taken.
        self._takes_pod = pod == AUTO
        self._has_pod = not self._takes_pod
        self._name = name or ""
        self._router = router
        self._namespace = namespace
        self._service = service
        self._telemetry = router._inside.telemetry
        self._sigterm = CancelOnSigterm(sigterm)
        self._has_accepted = False
        self._is_inherited = False
        self._new_life = partial(
            Life,
            router._inside,
            heartbeat=heartbeat,
            load=load,
            fields=fields,
            forget_after=forget_after,
            lease=lease,
            confirm_every=confirm_every,
            max_claims=max_claims,
        )
        self._begin_life(0 if isinstance(pod, str) else pod)
        forks.register(self._after_fork_in_child)

    def _begin_life(self, pod: int, token: str = "") -> None:
        """The next life; it has not started yet."""
        self._life = self._new_life((self._namespace, self._service, pod), token)
        # An attribute of an attribute would cost every call.
        self._owns = self._life.ownership.owns
        self._is_pod(pod)

    def _is_pod(self, pod: int) -> None:
        self._pod = pod
        self._about = {"namespace": self._namespace, "service": self._service, "pod": pod}
        self._log_fields = log_fields(self._namespace, self._service, pod)

    def _has_taken(self, pod: int) -> None:
        self._has_pod = True
        self._is_pod(pod)

    def _after_fork_in_child(self) -> None:
        """In a forked child: the parent is the pod. An agent that has not started yet may start here, in a life of its
        own.
        """
        self._is_inherited = self._is_inherited or self._life.is_on
        forks.keep_forever(self._life)
        self._life.abandon()
        self._begin_life(self._pod)

    @property
    def _ownership(self) -> Ownership:
        return self._life.ownership

    @property
    def pod(self) -> int:
        """This pod's id. With ``AUTO``, ``ConfigError`` before the agent has started."""
        if not self._has_pod:
            raise ConfigError("the agent has no pod id yet: it takes one when it starts")
        return self._pod

    @property
    def status(self) -> str:
        """What the pod reports: ``Running``, ``Draining`` (also asked for by ``sfroute drain``), ``Pending`` (paused),
        ``Stopped``.
        """
        return self._life.heartbeats.reported

    @property
    def conflicts(self) -> int:
        """How many other processes were seen to claim this pod id."""
        return self._life.heartbeats.conflicts

    async def start(self) -> None:
        """Store the first heartbeat and begin to beat. ``async with`` does it.

        If that fails, or is cut short, what the store may have been told already is taken back in the background.
        """
        before = self._life
        if before.is_on:
            raise ConfigError("the agent is running already")
        if not before.is_new:
            # A life that took an id and could not use it gives its token on, for which the store has kept the id.
            self._begin_life(self._pod, "" if before.has_begun else before.token)
        self._is_inherited = False
        await self._life.start(
            after=before if before is not self._life else None,
            name=self._name if self._takes_pod else None,
            on_pod=self._has_taken,
        )

    async def stop(self) -> None:
        """Stop beating and say ``Stopped``. ``async with`` does it. From now on the pod owns nobody.

        If the store cannot be reached within its deadline the pod goes in any case: its last heartbeat grows old
        instead. Links stay: the pod's next life inherits them, or gateways move them. Cutting it short does not keep
        it from happening: ``Stopped`` is said in the background then, and a router that is closed waits for it.
        """
        await self._stop_as(STOPPED)

    async def _stop_as(self, status: str) -> None:
        """Stop beating, and say this; ``Failed`` is for programs that look after a pod (``sfroute agent``)."""
        self._life.end(status)
        await self._life.parted()

    async def __aenter__(self) -> Self:
        await self.start()
        self._sigterm.catch()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sigterm.spare()
        try:
            await self.stop()
        finally:
            self._sigterm.release()
        self._sigterm.exit_if_terminated()

    # Claims

    @traced
    async def accept(self, uid: str) -> Claim:
        """Claim a uid: its link becomes persistent for this pod, unless another pod has it.

        The claim is false, and its ``pod`` the owner, if another pod has it. A draining pod still accepts a user nobody
        has. A pod that is full (``max_claims``) or paused raises ``NoRoom`` for who has no place there. A claim
        that was made although its caller never heard of it is let go again in the background.

        Raises ``ConfigError`` before the block begins and after it has ended, as ``release``, ``session`` and ``drain``
        do, and after a newer process has taken the pod's id.
        """
        check_link_names(self._namespace, uid, self._service)
        self._check_running()
        self._has_accepted = True
        return await self._ownership.accept(uid)

    @traced
    async def release(self, claim: Claim | Handover | str, *, grace: int | None = None) -> bool:
        """Let a uid go, if it is still this pod's. True if it was.

        With the claim that ``accept`` gave, only if that is the newest of the uid: who came back meanwhile keeps the
        link. With the uid, whichever there is. Sessions of the uid keep the link until they end.

        With a ``Handover`` the uid goes to the pod that it names, as soon as its sessions here have ended. Save first
        what that pod needs. A uid that is accepted once more meanwhile stays.

        ``grace``: seconds for which the link stays, for a reconnect; None removes it now. Of a handover: for which it
        waits at the other pod; None for 60.

        If the store does not answer, the error is raised, and the agent goes on trying in the background.
        """
        newest, uid, to = None, claim, None
        if isinstance(uid, Handover):
            to, uid = uid.to, uid.claim
            check_pod(to, "to")
            grace = HANDOVER_GRACE if grace is None else grace
        if isinstance(uid, Claim):
            newest, uid = uid, uid.uid
        check_link_names(self._namespace, uid, self._service)
        seconds = seconds_of(grace)
        self._check_running()
        return await self._ownership.release(uid, newest, seconds, to)

    def session(self, uid: str, *, grace: int | None = None) -> AsyncSession:
        """``async with agent.session(uid, grace=30) as claim: ...``: one connection of a user.

        The first session of a uid claims it, and the last one lets it go, with ``grace`` as ``release`` has it; those
        between cost no call to the store. Who comes back within the grace period has the claim and the fence of before.
        Check the claim: it is false if another pod has the uid.
        """
        check_link_names(self._namespace, uid, self._service)
        return AsyncSession(self, uid, seconds_of(grace))

    def _for_session(self) -> Ownership:
        """The present life's, for a session that begins."""
        self._check_running()
        self._has_accepted = True
        return self._ownership

    def owns(self, uid: str) -> bool:
        """True if this pod may act for the uid now. Asks nobody, and takes less than a microsecond.

        That is: the uid was accepted, its claim is neither released nor lost, nobody has changed its link since it was
        confirmed, and the lease runs. False in a grace period, and always once the lease has run out. Any thread may
        call it.
        """
        try:
            return self._owns(uid)
        except TypeError:
            raise InvalidArgument(f"uid must be a str, not {type(uid).__name__}") from None

    def claim_of(self, uid: str) -> Claim | None:
        """The claim under which this pod may act for the uid now; None where ``owns`` is False. Asks nobody.

        For its ``fence``, which goes into what the application writes for the uid.
        """
        table = self._ownership.table
        try:
            held = table.get(uid)
        except TypeError:
            raise InvalidArgument(f"uid must be a str, not {type(uid).__name__}") from None
        return held.claim if held is not None and table.is_sure(held) else None

    def _has_left(self) -> bool:
        """For middleware: True once this life is over, unless a newer one has the pod's id."""
        return self._ownership.ended and not self._life.heartbeats.superseded

    def _lease_runs(self) -> bool:
        """For middleware: False while the pod may act for nobody."""
        return suspended_time() < self._ownership.table.lease_end

    def events(self) -> AsyncGenerator[PodEvent, None]:
        """What the pod must be told, as it comes: ``Lost``, ``Isolated``, ``Rejoined``, ``Superseded``; and what it is
        asked for: ``Handover``.

        Read it in one place, as long as the agent runs; it ends after that. What is not read yet waits: at most one
        ``Lost`` and one ``Handover`` for each uid that was accepted and not released since.
        """
        return self._ownership.events()

    # Room

    @traced
    async def pause(self) -> None:
        """Take nobody new, and keep all users: from now on ``accept`` raises ``NoRoom`` for who has no place here.

        Users in their grace period may come back. The pod reports ``Pending``, which gateways notice within a second.
        If the store cannot be reached the error is raised; the pod is paused all the same, and says so later.
        """
        await self._set_paused(True)

    @traced
    async def resume(self) -> None:
        """Take new users again after ``pause``."""
        await self._set_paused(False)

    async def _set_paused(self, paused: bool) -> None:
        self._check_running()
        heartbeats = self._life.heartbeats
        self._ownership.room.paused = heartbeats.paused = paused
        await heartbeats.beat()

    # Draining

    @traced
    async def drain(self, deadline: float = 25.0) -> int:
        """Take no new uids; wait until this pod's have gone, or ``deadline`` seconds have passed.

        25 seconds fit into a Kubernetes preStop hook with the usual 30. It waits for the claims and sessions of now:
        users in their grace period do not hold it, nor do those who were moved. If the application never calls
        ``accept`` or ``session``, it waits for all links to this pod, for which the whole store is looked through. In
        any case it waits until every gateway has noticed. The pod stays draining, also if this is cancelled.

        Returns how many uids are left; if that could not be counted by the deadline, at least so many. 0 at once if
        another process has started as this pod: it has the users now. Raises ``RouterClosed`` if the router is closed.
        """
        check_deadline(deadline)
        if self._life.heartbeats.superseded:
            return 0
        self._check_running()
        engine = self._router._inside.engine
        return await Draining(
            self._life.heartbeats,
            self._ownership,
            notice_seconds(engine.config.placement),
            lambda: self._has_accepted,
            lambda: self._router.evacuate(self._namespace, self._service, self.pod, dry_run=True),
            lambda: engine.closed,
        ).run(deadline)

    def _check_running(self) -> None:
        self._check_is_own()
        self._life.check_running()

    def _check_is_own(self) -> None:
        """Raise ``ConfigError`` in a process that was forked while the agent ran; middleware asks, too."""
        if self._is_inherited:
            raise ConfigError(
                f"this process was forked from the one that is pod {self._pod}, and is no pod itself; start an agent "
                "after the fork, in the process that serves the pod's users"
            )


class AsyncSession:
    """One connection of a user, from ``AsyncPodAgent.session``. It may be entered again once it is over."""

    def __init__(self, agent: AsyncPodAgent, uid: str, grace: int) -> None:
        self._agent = agent
        self._uid = uid
        self._grace = grace
        self._ownership: Ownership | None = None
        """Of the life in which it was entered."""
        self._held: Held | None = None
        self._entering: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Claim:
        if self._entering is not None or self._held is not None:
            raise ConfigError("this session is entered already; make one for each connection")
        self._ownership = self._agent._for_session()
        self._entering = asyncio.current_task()
        try:
            self._held, claim = await self._ownership.enter(self._uid)
        finally:
            self._entering = None
        return claim

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        held, self._held = self._held, None
        if held is not None and self._ownership is not None:
            await self._ownership.leave(held, self._grace)

    async def _give_up(self) -> None:
        """End the session although whoever entered it was interrupted."""
        if self._entering is not None:
            await asyncio.wait([self._entering])
        await self._end()
