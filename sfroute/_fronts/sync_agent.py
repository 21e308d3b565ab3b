"""The pod's side for threads: each method is one call of ``AsyncPodAgent``, on the router's background loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import Literal, Self

from ..errors import ConfigError, InvalidArgument, RouterClosed
from ..types import Claim, Handover, PodEvent
from .agent import AsyncPodAgent, AsyncSession
from .sigterm import ExitOnSigterm
from .sync import Router

__all__ = ["PodAgent", "Session"]


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
        if not isinstance(router, Router):
            raise InvalidArgument(
                "PodAgent needs a Router; for an AsyncRouter there is AsyncPodAgent"
            )
        self._log = router._config.logger_for("agent")
        self._router = router
        self._sigterm = ExitOnSigterm(sigterm)
        router.open()
        self._make = lambda: AsyncPodAgent(
            router._running().router,
            namespace,
            service,
            pod,
            load=load,
            heartbeat=heartbeat,
            capacity=capacity,
            extra=extra,
            forget_after=forget_after,
            sigterm=False,
            lease=lease,
            confirm_every=confirm_every,
            max_claims=max_claims,
            address=address,
            labels=labels,
            name=name,
        )
        self._agent = router._running().call_plain(self._make)

    @property
    def pod(self) -> int:
        """This pod's id. With ``AUTO``, ``ConfigError`` before the agent has started."""
        return self._agent.pod

    @property
    def status(self) -> str:
        """What the pod reports: ``Running``, ``Draining`` (also asked for by ``sfroute drain``), ``Pending`` (paused),
        ``Stopped``.
        """
        return self._agent.status

    @property
    def conflicts(self) -> int:
        """How many other processes were seen to claim this pod id."""
        return self._agent.conflicts

    def start(self) -> None:
        """Store the first heartbeat and begin to beat. ``with`` does it.

        If that fails, or is cut short, what the store may have been told already is taken back in the background.
        """
        background = self._router._running()
        if self._agent._router is not background.router:
            # Forked since it was made: it must not run on what the parent has opened.
            self._agent = background.call_plain(self._make)
        runs = self._agent._life.is_on
        try:
            background.call(self._agent.start())
        except Exception:
            raise
        except BaseException:
            # This thread was interrupted; the loop may have started it all the same.
            if not runs:
                self._end()
            raise

    def stop(self) -> None:
        """Stop beating and say ``Stopped``. ``with`` does it. From now on the pod owns nobody.

        If the store cannot be reached within its deadline the pod goes in any case: its last heartbeat grows old
        instead. Links stay: the pod's next life inherits them, or gateways move them. Cutting it short does not keep
        it from happening: ``Stopped`` is said in the background then, and a router that is closed waits for it.
        """
        try:
            self._router._running().call(self._agent.stop())
        except RouterClosed:
            self._log.warning(
                "the router of pod %d was closed before its agent was stopped",
                self.pod,
                extra=self._agent._log_fields,
            )
        except Exception:
            raise
        except BaseException:
            # This thread was interrupted, perhaps before the loop had begun.
            self._end()
            raise

    def _end(self) -> None:
        with contextlib.suppress(RouterClosed):
            self._router._running().call_plain(self._agent._life.end)

    def __enter__(self) -> Self:
        self.start()
        self._sigterm.catch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sigterm.spare()
        try:
            self.stop()
        finally:
            self._sigterm.release()

    # Claims

    def accept(self, uid: str) -> Claim:
        """Claim a uid: its link becomes persistent for this pod, unless another pod has it.

        The claim is false, and its ``pod`` the owner, if another pod has it. A draining pod still accepts a user nobody
        has. A pod that is full (``max_claims``) or paused raises ``NoRoom`` for who has no place there. A claim
        that was made although its caller never heard of it is let go again in the background.

        Raises ``ConfigError`` before the block begins and after it has ended, as ``release``, ``session`` and ``drain``
        do, and after a newer process has taken the pod's id.
        """
        return self._router._running().call(self._agent.accept(uid))

    def release(self, claim: Claim | Handover | str, *, grace: int | None = None) -> bool:
        """Let a uid go, if it is still this pod's. True if it was.

        With the claim that ``accept`` gave, only if that is the newest of the uid: who came back meanwhile keeps the
        link. With the uid, whichever there is. Sessions of the uid keep the link until they end.

        With a ``Handover`` the uid goes to the pod that it names, as soon as its sessions here have ended. Save first
        what that pod needs. A uid that is accepted once more meanwhile stays.

        ``grace``: seconds for which the link stays, for a reconnect; None removes it now. Of a handover: for which it
        waits at the other pod; None for 60.

        If the store does not answer, the error is raised, and the agent goes on trying in the background.
        """
        return self._router._running().call(self._agent.release(claim, grace=grace))

    def session(self, uid: str, *, grace: int | None = None) -> Session:
        """``with agent.session(uid, grace=30) as claim: ...``: one connection of a user.

        The first session of a uid claims it, and the last one lets it go, with ``grace`` as ``release`` has it; those
        between cost no call to the store. Who comes back within the grace period has the claim and the fence of before.
        Check the claim: it is false if another pod has the uid.
        """
        return Session(self._router, self._agent.session(uid, grace=grace))

    def owns(self, uid: str) -> bool:
        """True if this pod may act for the uid now. Asks nobody, and takes less than a microsecond.

        That is: the uid was accepted, its claim is neither released nor lost, nobody has changed its link since it was
        confirmed, and the lease runs. False in a grace period, and always once the lease has run out. Any thread may
        call it.
        """
        return self._agent.owns(uid)

    def claim_of(self, uid: str) -> Claim | None:
        """The claim under which this pod may act for the uid now; None where ``owns`` is False. Asks nobody.

        For its ``fence``, which goes into what the application writes for the uid.
        """
        return self._agent.claim_of(uid)

    def events(self) -> Generator[PodEvent, None, None]:
        """What the pod must be told, as it comes: ``Lost``, ``Isolated``, ``Rejoined``, ``Superseded``; and what it is
        asked for: ``Handover``.

        Read it in one place, as long as the agent runs; it ends after that. What is not read yet waits: at most one
        ``Lost`` and one ``Handover`` for each uid that was accepted and not released since.
        """
        return self._router._running().iterate(self._agent.events())

    # Room

    def pause(self) -> None:
        """Take nobody new, and keep all users: from now on ``accept`` raises ``NoRoom`` for who has no place here.

        Users in their grace period may come back. The pod reports ``Pending``, which gateways notice within a second.
        If the store cannot be reached the error is raised; the pod is paused all the same, and says so later.
        """
        self._router._running().call(self._agent.pause())

    def resume(self) -> None:
        """Take new users again after ``pause``."""
        self._router._running().call(self._agent.resume())

    # Draining

    def drain(self, deadline: float = 25.0) -> int:
        """Take no new uids; wait until this pod's have gone, or ``deadline`` seconds have passed.

        25 seconds fit into a Kubernetes preStop hook with the usual 30. It waits for the claims and sessions of now:
        users in their grace period do not hold it, nor do those who were moved. If the application never calls
        ``accept`` or ``session``, it waits for all links to this pod, for which the whole store is looked through. In
        any case it waits until every gateway has noticed. The pod stays draining, also if this is cancelled.

        Returns how many uids are left; if that could not be counted by the deadline, at least so many. 0 at once if
        another process has started as this pod: it has the users now. Raises ``RouterClosed`` if the router is closed.
        """
        return self._router._running().call(self._agent.drain(deadline))


class Session:
    """One connection of a user, from ``PodAgent.session``. It may be entered again once it is over."""

    def __init__(self, router: Router, session: AsyncSession) -> None:
        self._router = router
        self._session = session

    def __enter__(self) -> Claim:
        call = self._router._running().call
        try:
            return call(self._session.__aenter__())
        except ConfigError:
            raise
        except BaseException:
            # This thread was interrupted; the loop may have entered it all the same.
            with contextlib.suppress(RouterClosed):
                call(self._session._give_up())
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(RouterClosed):  # then the pod is gone as well
            call = self._router._running().call
            try:
                call(self._session._end())
            except Exception:
                raise
            except BaseException:
                # This thread was interrupted, perhaps before the loop had begun.
                call(self._session._end())
                raise
