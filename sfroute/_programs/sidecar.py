"""The application of ``sfroute agent``: the calls of an ``AsyncPodAgent`` over HTTP, for a pod in any language.

Only the pod's own processes may reach it: it listens on localhost or on a unix socket. A uid is one segment of the
path, percent-encoded.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote

from .._fronts.agent import AsyncPodAgent, AsyncSession
from .._web.requests import Receive, Scope, Send, misdirection
from ..errors import ConfigError, InvalidArgument, NoRoom, RouterClosed, StoreError
from ..types import Claim, Handover
from .answers import answer_json, problem
from .event_log import EventLog
from .openapi import agent_document

__all__ = ["Sidecar"]

_Handler = Callable[["_Call", str], Awaitable[None]]


class _Call:
    """One request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        query = scope["query_string"].decode("latin-1")
        self._query = dict(parse_qsl(query, keep_blank_values=True))

    def whole(self, name: str) -> int | None:
        """A parameter of the query that is a whole number; None if it is not given."""
        text = self._query.get(name)
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise InvalidArgument(f"{name} must be a whole number >= 0")
        return int(text)

    def seconds(self, name: str, default: float) -> float:
        """A parameter of the query that is a number of seconds."""
        try:
            return float(self._query.get(name) or default)
        except ValueError:
            raise InvalidArgument(f"{name} must be seconds") from None


class Sidecar:
    """See the module's docstring.

    Args:
        agent: the pod's agent.
        service: the service.
        grace: seconds for which a link stays if a call does not say how long; None removes it at once.
        drain_seconds: how long ``/drain`` waits if it does not say.
    """

    def __init__(
        self, agent: AsyncPodAgent, service: str, *, grace: int | None, drain_seconds: float
    ) -> None:
        self._agent = agent
        self._service = service
        self._grace = grace
        self._drain_seconds = drain_seconds
        self._sessions: dict[str, AsyncSession] = {}
        self.events = EventLog()
        self.is_running = False
        self._handlers: Final[Mapping[tuple[str, str], _Handler]] = {
            ("PUT", "claims"): self._accept,
            ("GET", "claims"): self._claim_of,
            ("DELETE", "claims"): self._release,
            ("POST", "claims/sessions"): self._enter,
            ("DELETE", "sessions"): self._leave,
            ("POST", "drain"): self._drain,
            ("POST", "pause"): self._pause,
            ("POST", "resume"): self._resume,
            ("GET", "events"): self._tell_events,
            ("GET", "status"): self._status,
            ("GET", "openapi.json"): self._document,
        }

    def forget_sessions(self) -> None:
        """A life is over: its sessions are too."""
        self._sessions.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope (ASGI)."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] != "http":
            return
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        # Split before decoding: a slash within a uid is escaped.
        _, what, *rest = raw.decode("latin-1").split("/")
        if what == "claims" and rest[1:] == ["sessions"]:
            what, rest = "claims/sessions", rest[:1]
        handler = self._handlers.get((scope["method"], what))
        takes_name = what in {"claims", "claims/sessions", "sessions"}
        if handler is None or len(rest) != takes_name:
            words = "there is no such call; /openapi.json lists them"
            await problem(send, 404, "not-found", words)
            return
        try:
            name = unquote(rest[0], errors="strict") if rest else ""
            await handler(_Call(scope, receive, send), name)
        except (InvalidArgument, UnicodeError) as error:
            words = str(error) if isinstance(error, InvalidArgument) else "the uid must be UTF-8"
            await problem(send, 400, "invalid", words)
        except NoRoom as error:
            # The headers are those with which the pod answers its gateway: 421, which places the user elsewhere.
            headers = misdirection(self._service, full=True)
            await problem(send, 409, error.reason, str(error), headers)
        except ConfigError as error:
            await problem(send, 503, "not-running", str(error))
        except (StoreError, RouterClosed) as error:
            await problem(send, 503, "store", str(error))

    # Claims

    async def _accept(self, call: _Call, uid: str) -> None:
        await self._answer_claim(call, await self._agent.accept(uid), 200, {})

    async def _claim_of(self, call: _Call, uid: str) -> None:
        claim = self._agent.claim_of(uid)
        fields: dict[str, object] = {"owned": claim is not None}
        await answer_json(call.send, 200, fields | (_fields(claim) if claim else {}))

    async def _release(self, call: _Call, uid: str) -> None:
        grace = call.whole("grace")
        turn = call.whole("turn")
        given: str | Claim | Handover = uid
        default = self._grace
        if turn is not None:
            given = claim = Claim(True, self._agent.pod, 0, "kept", uid, turn)
            to = call.whole("to")
            if to is not None:
                if grace == 0:
                    raise InvalidArgument("grace must be at least 1 with to, or left out")
                given, default = Handover(uid, claim, to), None
        elif call.whole("to") is not None:
            raise InvalidArgument("to needs the turn of the event that asked for it")
        released = await self._agent.release(
            given, grace=default if grace is None else grace or None
        )
        await answer_json(call.send, 200, {"released": released})

    async def _answer_claim(
        self, call: _Call, claim: Claim, status: int, more: Mapping[str, object]
    ) -> None:
        # The headers are those with which the pod answers its gateway: 421, and who has the user. A claim has them,
        # too: a database may refuse its fence before the agent knows that the user was moved.
        if claim:
            fields = {**_fields(claim), **more}
            await answer_json(call.send, status, fields, misdirection(self._service))
            return
        fields = {"reason": "refused", "detail": "another pod has the user", "owner": claim.pod}
        headers = [(b"x-sfroute-reason", b"refused"), *misdirection(self._service, claim.pod)]
        await answer_json(call.send, 409, fields, headers)

    # Sessions

    async def _enter(self, call: _Call, uid: str) -> None:
        grace = call.whole("grace")
        session = self._agent.session(uid, grace=self._grace if grace is None else grace or None)
        claim = await session.__aenter__()
        name = secrets.token_hex(8)
        if claim:
            self._sessions[name] = session
        await self._answer_claim(call, claim, 201, {"session": name})

    async def _leave(self, call: _Call, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is None:
            await problem(call.send, 404, "not-found", "there is no such session")
            return
        await session.__aexit__(None, None, None)
        await answer_json(call.send, 200, {"ended": True})

    # The pod

    async def _drain(self, call: _Call, _: str) -> None:
        left = await self._agent.drain(call.seconds("deadline", self._drain_seconds))
        await answer_json(call.send, 200, {"left": left})

    async def _pause(self, call: _Call, _: str) -> None:
        await self._agent.pause()
        await answer_json(call.send, 200, {"paused": True})

    async def _resume(self, call: _Call, _: str) -> None:
        await self._agent.resume()
        await answer_json(call.send, 200, {"paused": False})

    async def _status(self, call: _Call, _: str) -> None:
        agent = self._agent
        fields = {
            "pod": agent.pod,
            "status": agent.status if self.is_running else "NotRunning",
            "lease": self.is_running and agent._lease_runs(),
            "sessions": len(self._sessions),
            "conflicts": agent.conflicts,
        }
        await answer_json(call.send, 200, fields)

    async def _document(self, call: _Call, _: str) -> None:
        await answer_json(call.send, 200, agent_document())

    async def _tell_events(self, call: _Call, _: str) -> None:
        sent = dict(call.scope["headers"]).get(b"last-event-id", b"")
        last = int(sent) if sent.isdigit() and len(sent) < 19 else call.whole("after") or 0
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await call.send({"type": "http.response.start", "status": 200, "headers": headers})
        telling = asyncio.create_task(self._tell(call.send, last))
        leaving = asyncio.create_task(_gone(call.receive))
        await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (telling, leaving):
            task.cancel()
        await asyncio.gather(telling, leaving, return_exceptions=True)

    async def _tell(self, send: Send, last: int) -> None:
        async for some in self.events.after(last):
            await send({"type": "http.response.body", "body": some, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _fields(claim: Claim) -> dict[str, object]:
    return {"pod": claim.pod, "fence": claim.fence, "how": claim.how, "turn": claim.turn}
