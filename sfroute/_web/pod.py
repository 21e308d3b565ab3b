"""The pod's half: serves only users whom this pod owns, and closes the WebSockets of those it loses.

Who may touch what: everything here belongs to the event loop. ``_sockets`` holds the open WebSockets of each uid; a
WebSocket enters when its session begins and leaves when the application has ended it. One task, ``_reader``, reads the
agent's events as long as the agent runs; each closing is a task of its own, so that a client that reads nothing holds
up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from .._contract.keys import check_persist_seconds
from .._fronts.agent import AsyncPodAgent
from ..errors import ConfigError, InvalidArgument, NoRoom, RouterClosed, StoreError
from ..telemetry.logs import log_fields
from ..types import PERSIST_FOREVER, Claim, Lost, PodEvent
from .answers import (
    ANOTHER_PODS,
    LOOKUP_FAILED,
    SERVICE_RESTART,
    TRY_AGAIN_LATER,
    answer_to,
    no_user,
    refuse,
)
from .requests import (
    MISDIRECTED,
    ASGIApp,
    Exempt,
    ForwardedUid,
    Message,
    Receive,
    Scope,
    Send,
    UidExtractor,
    check_key,
    exemption,
    is_preflight,
    misdirection,
)

__all__ = ["Claimed", "PodMiddleware"]

_log = logging.getLogger("sfroute.asgi")

_FORWARDED: Final = ForwardedUid()
_ENDS: Final = frozenset({"websocket.close", "websocket.http.response.start"})


@dataclass(frozen=True, slots=True)
class Claimed:
    """What ``scope["sfroute"]`` is at a pod: the user of this request, and the claim under which the pod serves them.

    Attributes:
        uid: the user. Not shown by ``repr()``, so that it does not get into logs by accident.
        claim: the claim; its ``fence`` goes into what is written for the user.
        agent: the agent that has it.
    """

    uid: str = field(repr=False)
    claim: Claim
    agent: AsyncPodAgent = field(repr=False)

    @property
    def misdirected(self) -> dict[str, str]:
        """The headers of a 421 that the gateway follows to the owner: for a write that was refused for its fence."""
        pairs = misdirection(self.agent._service)
        return {name.decode(): value.decode() for name, value in pairs}

    @property
    def owned(self) -> bool:
        """True as long as this pod may act for the user under this very claim. Asks nobody."""
        claim = self.agent.claim_of(self.uid)
        return claim is not None and claim.fence == self.claim.fence


class PodMiddleware:
    """Lets only requests of this pod's users through; the others are answered with 421 and the owner.

    The gateway's ``SfrouteMiddleware`` understands that 421, asks the store and sends the request to the owner.

    A request is served under a claim, which ``scope["sfroute"]`` holds (``Claimed``). For a user whom the pod owns
    nobody is asked. One who is new is claimed first; the application lets them go again by ``agent.release``. A
    WebSocket is a session (``agent.session``): the last one of a user lets them go, with ``grace``, unless a request
    claimed them, too.

    The WebSockets of a user who is lost are closed with 1012 as soon as the agent says so, and those of all users when
    the agent has stopped: clients connect again, and get the owner. While the pod is isolated they stay open, but no
    message is given to the application unless the pod owns the user: a message that comes meanwhile is dropped, and its
    WebSocket closed with 1012, or 1013 if the store cannot be asked.

    A request that names no user, or one that cannot be, is answered with 400; one that would have to be claimed while
    the store does not answer, with 503. A CORS preflight that names no user is passed on, with ``scope["sfroute"]``
    None.

    The middleware neither starts nor stops the agent: run it around the server, so that its first heartbeat is stored
    when the server listens. It reads ``agent.events()``, which can be read in one place only: ``on_event`` passes them
    on to the application.

    Args:
        app: the application.
        agent: the pod's agent, or a function that returns it, for applications that are made before their agent.
        uid: where requests name their user; where the gateway says so, unless told otherwise.
        accept: False for applications that claim users themselves, for example at an exempt path that loads their state
            first: then whoever is not claimed is answered with 421.
        grace: seconds for which a user's link stays after their last WebSocket, for a reconnect; None removes it.
        exempt: requests for no user, as for ``SfrouteMiddleware``.
        required: False passes requests that name no user on, with ``scope["sfroute"]`` None.
        on_event: called with each event of the agent, on the event loop, so it must not block; when it hears of a loss
            the WebSockets are being closed already.
        key: where the scope holds the claim.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        agent: AsyncPodAgent | Callable[[], AsyncPodAgent],
        uid: UidExtractor = _FORWARDED,
        accept: bool = True,
        grace: int | None = None,
        exempt: Exempt = (),
        required: bool = True,
        on_event: Callable[[PodEvent], object] | None = None,
        key: str = "sfroute",
    ) -> None:
        if isinstance(agent, AsyncPodAgent):
            given = agent
            self._agent: Callable[[], AsyncPodAgent] = lambda: given
        elif callable(agent):
            self._agent = agent
        else:
            raise InvalidArgument("agent must be an AsyncPodAgent, or a function that returns it")
        if not callable(uid):
            raise InvalidArgument("uid must be a function from the scope to the uid")
        if on_event is not None and not callable(on_event):
            raise InvalidArgument("on_event must be a function that takes an event, or None")
        if grace is not None:
            if grace == PERSIST_FOREVER:
                raise InvalidArgument("grace must be a positive int of seconds, or None")
            check_persist_seconds(grace)
        check_key(key)
        self.app = app
        self._uid = uid
        self._accept = accept
        self._grace = grace
        self._is_exempt = exemption(exempt)
        self._required = required
        self._on_event = on_event
        self._key = key
        self._sockets: dict[str, set[_Socket]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope (ASGI)."""
        if scope["type"] not in ("http", "websocket") or self._is_exempt(scope):
            await self.app(scope, receive, send)
            return
        uid = self._uid(scope)
        if not uid:
            if self._required and not is_preflight(scope):
                await refuse(scope, send, *no_user(self._uid))
                return
            scope[self._key] = None
            await self.app(scope, receive, send)
            return
        agent = self._agent()
        if self._reader is None or self._reader.done():
            self._reader = asyncio.get_running_loop().create_task(self._read(agent))
        async with contextlib.AsyncExitStack() as exits:
            claim = await self._claim(scope, agent, uid, exits)
            if not isinstance(claim, Claim):
                await refuse(scope, send, *claim)
                return
            claimed = scope[self._key] = Claimed(uid, claim, agent)
            if scope["type"] == "websocket":
                await self._serve_websocket(claimed, scope, receive, send)
            else:
                await self.app(scope, receive, send)

    async def _claim(
        self, scope: Scope, agent: AsyncPodAgent, uid: str, exits: contextlib.AsyncExitStack
    ) -> Claim | _Refusal:
        """The claim under which to serve the user, or what to answer."""
        agent._check_is_own()
        try:
            claim = agent.claim_of(uid)
            if agent._has_left() or (claim is None and not self._accept):
                return _misdirected(agent)
            if scope["type"] == "websocket":
                claim = await exits.enter_async_context(agent.session(uid, grace=self._grace))
            elif claim is None:
                claim = await agent.accept(uid)
        except NoRoom:
            return _misdirected(agent, full=True)
        except ConfigError:  # the agent has said its last word, and takes nobody any more
            return _misdirected(agent)
        except (InvalidArgument, StoreError, RouterClosed) as error:
            return *answer_to(error, _log, "a user could not be claimed", agent._log_fields), ()
        if not claim:
            return _misdirected(agent, claim.pod)
        if agent._has_left():
            return _misdirected(agent)
        # The store answers, but the lease has run out: gateways may be moving the user already.
        return claim if agent._lease_runs() else (*LOOKUP_FAILED, ())

    # WebSockets

    async def _serve_websocket(
        self, claimed: Claimed, scope: Scope, receive: Receive, send: Send
    ) -> None:
        socket = _Socket(claimed, scope, receive, send, self._why_not)
        others = self._sockets.setdefault(claimed.uid, set())
        others.add(socket)
        try:
            await self.app(scope, socket.hear, socket.say)
        except _Gone:
            _log.debug("the application sent to a WebSocket whose user is another pod's")
        finally:
            others.discard(socket)
            if not others and self._sockets.get(claimed.uid) is others:
                del self._sockets[claimed.uid]

    async def _why_not(self, claimed: Claimed) -> int | None:
        """The code with which to close a WebSocket on which a message has come; None if this pod may act on it."""
        if claimed.owned:
            return None
        agent = claimed.agent
        try:
            # The claim may only be in doubt: then the store knows.
            async with agent.session(claimed.uid, grace=self._grace) as claim:
                if not claim or claim.fence != claimed.claim.fence:
                    return SERVICE_RESTART
                return None if agent._lease_runs() else TRY_AGAIN_LATER
        except StoreError:
            return TRY_AGAIN_LATER
        except (ConfigError, NoRoom, RouterClosed):
            return SERVICE_RESTART

    async def _read(self, agent: AsyncPodAgent) -> None:
        """Read the agent's events, as long as it runs."""
        async for event in agent.events():
            if isinstance(event, Lost):
                for socket in self._sockets.get(event.uid, ()):
                    if socket.claimed.claim.fence == event.claim.fence:
                        self._close(socket)
            if self._on_event is not None:
                try:
                    self._on_event(event)
                except Exception as error:  # noqa: BLE001 - the next event is told all the same
                    # The text of an error of the application's may name the user.
                    _log.error(
                        "on_event failed on %s",
                        type(event).__name__,
                        extra=agent._log_fields | log_fields(error=error),
                    )
        for sockets in self._sockets.values():
            for socket in sockets:
                if socket.claimed.agent is agent:
                    self._close(socket)

    def _close(self, socket: _Socket) -> None:
        closing = asyncio.get_running_loop().create_task(socket.close(SERVICE_RESTART))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


class _Gone(OSError):
    """What an application is told that sends to a closed WebSocket (ASGI, "Disconnected Client")."""


class _Socket:
    """One WebSocket that is being served.

    Attributes:
        claimed: the user, and the claim.
    """

    def __init__(
        self,
        claimed: Claimed,
        scope: Scope,
        receive: Receive,
        send: Send,
        why_not: Callable[[Claimed], Awaitable[int | None]],
    ) -> None:
        self.claimed = claimed
        self._scope = scope
        self._receive = receive
        self._send = send
        self._why_not = why_not
        self._accepted = False
        self._ended = False
        """By the application."""
        self._code = 0
        """With which it was closed here."""

    async def hear(self) -> Message:
        """For ``receive``."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            return message
        code = self._code or await self._why_not(self.claimed)
        if code is None:
            return message
        await self.close(code)
        return {"type": "websocket.disconnect", "code": code, "reason": ANOTHER_PODS}

    async def say(self, message: Message) -> None:
        """For ``send``."""
        kind = message["type"]
        if self._code and kind == "websocket.accept" and not self._ended:
            self._ended = True
            await refuse(self._scope, self._send, *_misdirected(self.claimed.agent))
        elif self._code and kind != "websocket.close":
            raise _Gone("the WebSocket was closed: its user is another pod's")
        elif not self._code:
            self._accepted = self._accepted or kind == "websocket.accept"
            self._ended = self._ended or kind in _ENDS
            await self._send(message)

    async def close(self, code: int) -> None:
        """Close it; if the handshake is not answered yet, refuse it as soon as the application accepts it."""
        if self._code or self._ended:
            return
        self._code = code
        if self._accepted:
            # The server gives the application `websocket.disconnect`.
            try:
                await self._send({"type": "websocket.close", "code": code, "reason": ANOTHER_PODS})
            except (OSError, RuntimeError):
                pass  # the client was quicker: what ASGI has servers raise, and what uvicorn does
            except Exception as error:  # noqa: BLE001 - nobody awaits this, and the next socket is closed all the same
                _log.warning(
                    "a WebSocket could not be closed: %s",
                    type(error).__name__,
                    extra=self.claimed.agent._log_fields | log_fields(error=error),
                )


_Refusal: TypeAlias = tuple[int, str, Iterable[tuple[bytes, bytes]]]


def _misdirected(agent: AsyncPodAgent, owner: int | None = None, *, full: bool = False) -> _Refusal:
    headers = misdirection(agent._service, owner, left=agent._has_left(), full=full)
    return MISDIRECTED, ANOTHER_PODS, headers
