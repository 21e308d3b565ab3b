"""Writes, scripts and uncached reads: each goes to the primary of its slot, until its deadline.

Redis may or may not have executed a command whose answer was lost. So:

- Errors that prove "not executed" (``failures.py``) are retried freely, and so is whatever was never sent.
- After an *ambiguous* loss a command is sent again only if it is *repeatable*: a read, or a write whose repetition
  gives the true result. Writes on links are, because their scripts leave an operation record in the same slot,
  atomically with the write: the repetition of a write that did happen returns what the first one replied, and changes
  nothing.
- Everything else raises ``OutcomeUnknown``.

Cancelling a caller never tears a connection: its command either has not been sent, and is not, or its reply is read and
thrown away.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, TypeVar

from .acks import AckObserver, DurableCall, TooFewAcks
from .calls import Call, Lost
from .channel import MAX_STRAYS, Channel, idle_strays
from .config import RouterConfig
from .deadlines import Deadlines
from .errors import OutcomeUnknown, RouterClosed, ScriptFailed, StoreError, StoreUnavailable
from .failures import Failure, Kind, read_failure
from .keys import link_prefix, parse_link_key, slot_of
from .reasons import in_brackets
from .replies import corrupt, refused
from .scripts import SCRIPTS, Script
from .telemetry import ClientRecord, Telemetry
from .topology import Topology
from .wire import Address, HandshakeRefused, ReplyError, WireSettings, encode

__all__ = ["Command", "Store", "script_command"]

_log = logging.getLogger(__name__)

_R = TypeVar("_R")

MAX_HOPS = 3


def _nothing() -> None:
    """Nothing to do in the data callback."""


def _script_loads() -> tuple[bytes, ...]:
    """The commands that make a node know all scripts."""
    return tuple(encode("SCRIPT", "LOAD", script.source) for script in SCRIPTS.values())


@dataclass(slots=True)
class Command:
    """One command for one key, and what may be done with it.

    Nobody changes one; to have it frozen would cost every write.

    Attributes:
        operation: the public operation it serves.
        key: its (first) key.
        name: the command's name, such as ``"HSET"``.
        payload: the command in RESP.
        write: it changes something.
        repeatable: sending it again after an ambiguous loss gives the true result.
        script: the script it runs.
        arguments: what follows the script in the call.
        settled: called in the data callback as soon as its effect is behind us, even if the caller has gone.
    """

    operation: str
    key: str
    name: str
    payload: bytes
    write: bool = False
    repeatable: bool = True
    script: Script | None = None
    arguments: tuple[str | bytes | int, ...] = ()
    settled: Callable[[], None] = _nothing

    def by_source(self) -> bytes:
        """The call of its script with the source in place of the SHA-1, for a node that does not know it."""
        assert self.script is not None
        return encode("EVAL", self.script.source, *self.arguments)


def script_command(
    operation: str,
    script: Script,
    keys: Sequence[str | bytes],
    args: Sequence[str | bytes | int],
    *,
    write: bool,
    repeatable: bool,
    settled: Callable[[], None] = _nothing,
) -> Command:
    """A call of a script, by SHA-1 with its source at hand."""
    rest = (str(len(keys)), *keys, *args)
    first = keys[0]
    return Command(
        operation=operation,
        name="EVALSHA",
        key=first if isinstance(first, str) else first.decode("utf-8", "backslashreplace"),
        payload=encode("EVALSHA", script.sha, *rest),
        write=write,
        repeatable=repeatable,
        script=script,
        arguments=rest,
        settled=settled,
    )


@dataclass(slots=True)
class _Course:
    """What has happened to a command so far.

    Attributes:
        deadline: instant at which it is given up.
        done: it is over.
    """

    deadline: float
    done: bool = False
    pinned: Address | None = None
    address: Address | None = None
    asking: bool = False
    by_source: bool = False
    ambiguous: bool = False
    hops: int = 0
    pauses: int = 0
    call: Call | None = None
    too_few_acks: TooFewAcks | None = None
    last_error: Exception | None = None
    record: ClientRecord | None = None


_TIME_IS_UP: Final = object()
"""In place of a reply: the command's deadline has passed."""


def _time_is_up(course: _Course) -> None:
    """Wake who waits for a reply; who pauses looks at the deadline itself."""
    if course.call is not None and not course.call.future.done():
        course.call.future.set_result(_TIME_IS_UP)


class Store:
    """See the module's text."""

    def __init__(
        self,
        topology: Topology,
        settings: WireSettings,
        config: RouterConfig,
        clock: Callable[[], float],
        retries: Counter[str],
        telemetry: Telemetry,
    ) -> None:
        self._topology = topology
        self._settings = settings
        self._config = config
        self._clock = clock
        self._retries = retries
        self._telemetry = telemetry
        self._channels: dict[Address, Channel] = {}
        self._durable: dict[Address, Channel] = {}
        self._deadlines = Deadlines(clock, _time_is_up)
        self._closed = False
        topology.on_change(self._on_topology_change)

    async def preload_scripts(self) -> None:
        """Load all scripts on all primaries. A node that will not is no trouble: it gets EVAL when its time comes."""
        calls: list[Call] = []
        for address in self._topology.primaries():
            channel = self._channel(address)
            for payload in _script_loads():
                call = Call(payload, asking=False, settled=_nothing)
                channel.submit(call)
                calls.append(call)
        if calls:
            _, pending = await asyncio.wait(
                [call.future for call in calls], timeout=self._config.retry.connect_timeout
            )
            for future in pending:
                future.cancel()
        answers = [call.future.result() for call in calls if not call.future.cancelled()]
        loaded = sum(not isinstance(answer, (ReplyError, Lost)) for answer in answers)
        _log.debug("%d of %d scripts preloaded", loaded, len(calls))

    def run(self, command: Command) -> Coroutine[None, None, object]:
        """The reply to a command, sent as often as needed and allowed; to be awaited at once.

        Raises ``StoreUnavailable``, ``OutcomeUnknown``, ``CorruptReply``, ``ScriptFailed``, another ``StoreError``, or
        ``RouterClosed``.
        """
        return self._run(command, self._course())

    def run_on(self, address: Address, command: Command) -> Coroutine[None, None, object]:
        """The reply of this one node, whoever owns the key; to be awaited at once. Raises what ``run`` raises."""
        course = self._course()
        course.pinned = address
        return self._run(command, course)

    def _course(self) -> _Course:
        return _Course(self._clock() + self._config.retry.deadline)

    def _run(self, command: Command, course: _Course) -> Coroutine[None, None, object]:
        # No coroutine itself: each costs every write.
        course.record = record = self._telemetry.client(
            command.name, script=command.script.name if command.script is not None else ""
        )
        if record is None:
            return self._until_deadline(command, course)
        return self._recorded(record, self._until_deadline(command, course))

    async def _recorded(self, record: ClientRecord, work: Coroutine[None, None, _R]) -> _R:
        try:
            result = await work
        except BaseException as error:
            self._telemetry.client_ended(record, error)
            raise
        self._telemetry.client_ended(record)
        return result

    async def _until_deadline(self, command: Command, course: _Course) -> object:
        self._deadlines.watch(course)
        try:
            return await self._attempts(command, course)
        except TimeoutError as error:
            call = course.call
            if call is not None and call.sent_at > -inf:
                course.ambiguous = True
                if isinstance(call, DurableCall) and call.done_on_primary:
                    course.too_few_acks = course.too_few_acks or TooFewAcks(0)
            raise self._gave_up(command, course) from course.last_error or error
        finally:
            course.done = True

    async def run_many(self, commands: Sequence[Command]) -> list[object]:
        """The replies to many commands, in order; those of one node travel together."""
        if not commands:
            return []
        if len(commands) == 1:
            return [await self.run(commands[0])]
        record = self._telemetry.client(f"PIPELINE {commands[0].name}", size=len(commands))
        together = self._run_together(commands, record)
        return await (together if record is None else self._recorded(record, together))

    async def _run_together(
        self, commands: Sequence[Command], record: ClientRecord | None
    ) -> list[object]:
        first: list[tuple[Command, Call | None]] = []
        addresses = [self._topology.address_of(slot_of(command.key)) for command in commands]
        if record is not None and len(set(addresses)) == 1:
            # A batch that goes to several nodes has no one address to tell.
            record.server = addresses[0]
        for command, address in zip(commands, addresses, strict=True):
            call = None
            if address is not None:
                call = Call(command.payload, asking=False, settled=command.settled)
                self._channel(address).submit(call)
            first.append((command, call))
        deadline = self._clock() + self._config.retry.deadline
        results: list[object] = []
        try:
            async with asyncio.timeout(self._config.retry.deadline):
                for command, call in first:
                    reply = await call.future if call is not None else None
                    if call is None or isinstance(reply, (ReplyError, Lost)):
                        # The few that met trouble take the long way, each on its own.
                        reply = await self._attempts(command, _Course(deadline, record=record))
                    results.append(reply)
        except TimeoutError as error:
            raise self._gave_up(commands[0], _Course(deadline)) from error
        finally:
            for _, call in first:
                if call is not None:
                    call.future.cancel()
        return results

    async def close(self) -> None:
        """End all connections; commands under way end as the contract says."""
        self._closed = True
        self._deadlines.close()
        channels = [*self._channels.values(), *self._durable.values()]
        self._channels.clear()
        self._durable.clear()
        for channel in channels:
            channel.close()
        for channel in channels:
            await channel.wait_closed()

    def connections_after_fork(self) -> None:
        """In a forked child: give up every inherited socket."""
        for channel in (*self._channels.values(), *self._durable.values()):
            if channel.connection is not None:
                channel.connection.detach_after_fork()

    # One command's way

    async def _attempts(self, command: Command, course: _Course) -> object:
        slot = slot_of(command.key)
        while True:
            address = course.pinned or course.address or self._topology.address_of(slot)
            if address is None:
                self._topology.refresh_soon()
                await self._pause(course, "no owner")
                continue
            payload = command.by_source() if course.by_source else command.payload
            if self._closed:
                raise self._closed_error(command, course)
            channel, course.call = self._prepare(command, payload, address, course)
            channel.submit(course.call)
            told = course.record if course.record and course.record.size == 1 else None
            if told is not None:
                told.server = address
            reply = await course.call.future
            if reply is _TIME_IS_UP:
                raise TimeoutError
            course.call = None
            if told is not None:
                told.peer = channel.connection.peer if channel.connection else None
            if isinstance(reply, Lost):
                await self._after_loss(command, course, address, reply)
            elif isinstance(reply, TooFewAcks):
                await self._after_too_few_acks(command, course, reply)
            elif isinstance(reply, ReplyError):
                await self._after_error(command, course, address, reply)
            else:
                return reply

    async def _after_loss(
        self, command: Command, course: _Course, address: Address, lost: Lost
    ) -> None:
        if lost.sent and command.write:
            course.ambiguous = True
        course.last_error = lost.error
        if self._closed:
            raise self._closed_error(command, course)
        if isinstance(lost.error, HandshakeRefused) and not course.ambiguous:
            raise StoreError(str(lost.error), operation=command.operation) from lost.error
        if course.ambiguous and not command.repeatable:
            raise self._unknown(command, "the connection was lost") from lost.error
        self._topology.refresh_soon(address)
        course.address, course.asking = None, False
        await self._pause(course, "connection")

    async def _after_too_few_acks(
        self, command: Command, course: _Course, result: TooFewAcks
    ) -> None:
        """Ask again: the repetition finds the write done, or does it on the new primary, and waits anew."""
        course.too_few_acks, course.ambiguous = result, True
        if not command.repeatable:
            raise self._few_acks_error(command, result)
        self._topology.refresh_soon()
        course.address, course.asking = None, False
        await self._pause(course, "acknowledgements")

    async def _after_error(
        self, command: Command, course: _Course, address: Address, error: ReplyError
    ) -> None:
        failure = read_failure(str(error))
        # Servers' texts may echo arguments, and so a uid: only the code becomes a cause.
        cause = course.last_error = ReplyError(failure.code)
        if failure.kind is Kind.NOSCRIPT and command.script is not None and not course.by_source:
            self._note_retry(course, failure.code)
            course.by_source, course.address = True, address
        elif failure.kind in {Kind.MOVED, Kind.ASK}:
            await self._follow(command, course, address, failure)
        elif failure.kind in {Kind.WAIT, Kind.RELOCATE}:
            self._topology.refresh_soon()
            course.address, course.asking = None, False
            await self._pause(course, failure.code)
        elif course.record is not None and course.record.status_code is None:
            course.record.status_code = failure.code
            await self._after_error(command, course, address, error)
        elif course.ambiguous:
            # The repetition was refused; whether the first one happened stays open.
            raise self._unknown(command, f"its repetition was refused ({failure.code})") from cause
        else:
            raise _final_error(command, failure) from cause

    async def _follow(
        self, command: Command, course: _Course, address: Address, failure: Failure
    ) -> None:
        target = Address(failure.host or address.host, failure.port)
        if failure.kind is Kind.MOVED and not self._topology.learn(failure.slot, target):
            if course.ambiguous:
                raise self._unknown(command, f"its repetition was refused ({failure.code})")
            raise _final_error(command, failure)
        course.address = target
        course.asking = failure.kind is Kind.ASK
        course.hops += 1
        if course.hops % (MAX_HOPS + 1) == 0:
            # The cluster is being rearranged: let it settle, then begin where the slot map points.
            course.address, course.asking = None, False
            await self._pause(course, failure.code)
        else:
            self._note_retry(course, failure.code)

    def _note_retry(self, course: _Course, reason: str) -> None:
        self._retries[reason] += 1
        if course.record is not None:
            course.record.retried(reason)

    async def _pause(self, course: _Course, reason: str) -> None:
        self._note_retry(course, reason)
        course.pauses += 1
        pause = self._config.retry.pause(course.pauses, random.random())
        left = course.deadline - self._clock()
        await asyncio.sleep(min(pause, left))
        if pause >= left:
            raise TimeoutError

    def _gave_up(self, command: Command, course: _Course) -> StoreError:
        seconds = self._config.retry.deadline
        if course.too_few_acks is not None:
            return self._few_acks_error(command, course.too_few_acks)
        if command.write and course.ambiguous:
            return self._unknown(command, f"no answer came within {seconds:g} s")
        return StoreUnavailable(
            f"{command.operation}: no answer within {seconds:g} s; nothing was changed. "
            f"The store may be down or failing over{in_brackets(course.last_error)}",
            operation=command.operation,
        )

    def _unknown(self, command: Command, why: str) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"{command.operation} may or may not have happened: {why}. "
            "Read the present state before deciding anything that depends on it",
            operation=command.operation,
        )

    def _closed_error(self, command: Command, course: _Course) -> Exception:
        return (
            self._unknown(command, "the router was closed") if course.ambiguous else RouterClosed()
        )

    def _few_acks_error(self, command: Command, result: TooFewAcks) -> StoreError:
        config = self._config
        seconds = config.retry.deadline if command.repeatable else config.ack_timeout
        return StoreError(
            f"{command.operation} has happened on the primary, but {result.acknowledged} of "
            f"{config.min_replica_acks} replicas acknowledged it within {seconds:g} s: "
            "a failover now may lose it. Check the replicas, or call again",
            operation=command.operation,
            retryable=True,
        )

    # Connections

    def _prepare(
        self, command: Command, payload: bytes, address: Address, course: _Course
    ) -> tuple[Channel, Call]:
        asking, settled = course.asking, command.settled
        wanted = self._config.min_replica_acks
        if not (command.write and wanted):
            return self._channel(address), Call(payload, asking=asking, settled=settled)
        before = course.too_few_acks
        # Once is enough: where replicas are always late, so be it.
        trust_late = not command.repeatable or (before is not None and before.late)
        call = DurableCall(
            payload, asking=asking, settled=settled, wanted=wanted, trust_late=trust_late
        )
        return self._durable_channel(address), call

    def _durable_channel(self, address: Address) -> Channel:
        """Durable writes travel apart: nothing else is to wait behind their WAIT."""
        channel = self._durable.get(address)
        if channel is None:
            self._drop_strays(self._durable)
            channel = self._durable[address] = Channel(
                address,
                self._settings,
                self._config,
                self._clock,
                observer=AckObserver(
                    self._config.min_replica_acks, self._config.ack_timeout, self._clock
                ),
                # A node that was promoted knows no scripts, and behind each NOSCRIPT a WAIT would have to be sat out
                # before the source can follow. A refusal is no trouble here either.
                setup=_script_loads(),
                any_reply_is_life=True,
                one_batch_at_a_time=True,
            )
        return channel

    def _channel(self, address: Address) -> Channel:
        if self._closed:
            raise RouterClosed
        channel = self._channels.get(address)
        if channel is None:
            self._drop_strays(self._channels)
            channel = self._channels[address] = Channel(
                address, self._settings, self._config, self._clock, any_reply_is_life=True
            )
        return channel

    def _drop_strays(self, channels: dict[Address, Channel]) -> None:
        if len(channels) >= MAX_STRAYS:
            for stray in idle_strays(channels, self._topology.primaries()):
                channels.pop(stray).close()

    def _on_topology_change(self, losers: set[Address]) -> None:
        for address in losers - self._topology.primaries():
            for channels in (self._channels, self._durable):
                channel = channels.pop(address, None)
                if channel is not None:
                    channel.close()


def _final_error(command: Command, failure: Failure) -> StoreError:
    """The error for a reply that sending again will not mend. Servers' texts may echo keys, so only the code is
    shown.
    """
    if failure.kind is Kind.CORRUPT:
        key = command.key
        link = parse_link_key(key.encode()) if failure.second_key else None
        if link is not None:
            key = link_prefix(link.namespace, link.uid)
        found = "something that the contract does not allow"
        if failure.code == "SFTOOMANY":
            found = "more fields than a service has pods (PlacementConfig.max_pods)"
        error = corrupt(key, found)
        error.operation = command.operation
        return error
    if command.script is not None and failure.code in {"ERR", "SFARG"}:
        return ScriptFailed(
            f"{command.operation}: the script {command.script.name} failed on the server ({failure.code}); "
            "its log may say more",
            operation=command.operation,
            script=command.script.name,
        )
    return refused(failure, command.operation)
