"""Durable writes: after the writes that leave together, one WAIT on the same connection.

Redis replicates asynchronously: a primary that dies after its reply takes with it what no replica had received. WAIT
makes the reply wait until replicas have acknowledged, and tells how many did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .._net.channel import Channel, Request
from .._net.connection import Connection, ReplyError, encode
from .attempts import Call

__all__ = ["AckObserver", "DurableCall", "DurableNode", "TooFewAcks"]


LATE: Final = 0.1
"""Seconds after which an acknowledgement is asked for once more. Valkey 9.1 does not end a WAIT when its node becomes a
replica: if the node becomes a primary again before the WAIT times out, the new replica's acknowledgement is taken for
one of the write, which the node itself has lost meanwhile. Two failovers take longer than this."""


class TooFewAcks(Exception):  # a result, never raised
    """In place of a reply: the write has happened, on fewer replicas than asked for.

    Attributes:
        acknowledged: on how many.
        late: on enough, but it took too long to be trusted.
    """

    def __init__(self, acknowledged: int, *, late: bool = False) -> None:
        super().__init__()
        self.acknowledged = acknowledged
        self.late = late


class DurableCall(Call):
    """A write that is answered when its replicas have it.

    Attributes:
        done_on_primary: the primary has replied to it, and not with an error.
    """

    __slots__ = ("_reply", "_trust_late", "_wanted", "done_on_primary")

    def __init__(
        self,
        payload: bytes,
        *,
        asking: bool,
        settled: Callable[[], None],
        deadline: float,
        wanted: int,
        trust_late: bool,
    ) -> None:
        super().__init__(payload, asking=asking, settled=settled, deadline=deadline)
        self._wanted = wanted
        self._trust_late = trust_late
        self._reply: object = None
        self.done_on_primary = False

    def answered(self, reply: object) -> None:
        """The primary's reply; an error is final, anything else waits for the replicas."""
        if isinstance(reply, ReplyError):
            self.end(reply)
        else:
            self._reply = reply
            self.done_on_primary = True

    def acknowledged(self, replicas: object, seconds: float) -> None:
        """So many replicas have it, after so many seconds; an error: the node is no primary any more."""
        count = replicas if isinstance(replicas, int) else 0
        late = seconds > LATE and not self._trust_late
        if count >= self._wanted and not late:
            self.end(self._reply)
        else:
            self.end(TooFewAcks(count, late=count >= self._wanted))


class _Wait:
    """The WAIT behind a batch of writes."""

    __slots__ = ("_calls", "_clock", "_sent_at")

    def __init__(self, calls: list[DurableCall], clock: Callable[[], float]) -> None:
        self._calls = calls
        self._clock = clock
        self._sent_at = clock()

    def on_reply(self, reply: object) -> None:
        seconds = self._clock() - self._sent_at
        for call in self._calls:
            if not call.ended:
                call.acknowledged(reply, seconds)

    def on_lost(self, error: Exception, *, sent: bool) -> None:
        for call in self._calls:
            if not call.ended:
                call.on_lost(error, sent=sent)


class AckObserver:
    """Follows a channel of durable writes (``ChannelObserver``).

    Attributes:
        scripts: the SHA-1 of each script whose source this connection, or the one to come, has carried.
    """

    def __init__(self, replicas: int, timeout: float, clock: Callable[[], float]) -> None:
        self.scripts: set[str] = set()
        # 0 would be: for ever.
        self._wait = encode("WAIT", replicas, max(1, int(timeout * 1000)))
        self._clock = clock

    def on_sent(self, requests: list[Request], connection: Connection) -> None:
        """Writes have left: ask for their acknowledgement."""
        calls = [request for request in requests if isinstance(request, DurableCall)]
        connection.send(self._wait, (_Wait(calls, self._clock),))

    def on_up(self, connection: Connection, setup_replies: list[object], since: float) -> None:
        """Nothing to set up."""

    def on_alive(self, since: float) -> None:
        """Nothing depends on it."""

    def on_gap(self) -> None:
        """Nothing depends on it."""

    def on_push(self, push: list[object]) -> None:
        """Nothing is tracked."""

    def on_down(self) -> None:
        """Calls are told themselves. Behind the next connection may be a node that knows no script."""
        self.scripts.clear()


class DurableNode:
    """What durable writes have of a node (``nodes.Node``): its channel, and which scripts it has been given there.

    Behind each NOSCRIPT a WAIT would have to be sat out before the source can follow. So the first call of a script on
    a connection carries the source at once.

    Attributes:
        channel: the channel.
    """

    def __init__(self, channel: Channel, observer: AckObserver) -> None:
        self.channel = channel
        self._observer = observer

    def needs(self, sha: str) -> bool:
        """True once for each connection: the source of this script is to be sent."""
        scripts = self._observer.scripts
        if sha in scripts:
            return False
        scripts.add(sha)
        return True
