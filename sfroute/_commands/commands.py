"""Writes, scripts and uncached reads: each goes to the primary of its slot, until its deadline.

Redis may or may not have executed a command whose answer was lost. So:

- Errors that prove "not executed" (``error_replies.next_step``) are retried freely, and so is whatever was never sent.
- After an *ambiguous* loss a command is sent again only if it is *repeatable*: a read, or a write whose repetition
  gives the true result. Writes on links are, because their scripts leave an operation record in the same slot,
  atomically with the write: the repetition of a write that did happen returns what the first one replied, and changes
  nothing.
- Everything else raises ``OutcomeUnknown``.

Scripts are loaded by those who need them. A node that does not know one (NOSCRIPT) is sent its source, in place of the
SHA-1, by the first command that needs it there. What else needs it leaves behind that, by the SHA-1: a node runs what
comes on one connection in order.

Cancelling a caller never tears a connection: its command either has not been sent, and is not, or its reply is read and
thrown away.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from typing import TypeVar

from .._chance import chance
from .._contract.error_replies import Kind, Step, next_step
from .._contract.keys import slot_of
from .._net.channel import Channel
from .._net.connection import (
    Address,
    HandshakeRefused,
    ReplyError,
    ReplyTooLarge,
    WireSettings,
)
from .._net.deadlines import Deadlines
from .._net.nodes import Nodes
from .._net.outage import Outage
from .._net.topology import Topology
from ..config import RouterConfig
from ..errors import CorruptReply, StoreError
from ..telemetry import ClientRecord, Retry, Telemetry
from ..telemetry.logs import log_fields
from ..telemetry.records import time_ns
from . import errors
from .acks import AckObserver, DurableCall, DurableNode, TooFewAcks
from .attempts import Call, Lost
from .command import Command
from .course import TIME_IS_UP, Course, end_in_time

__all__ = ["Commands"]

_R = TypeVar("_R")


COMMANDS = "commands"
"""Who says that a place cannot be reached."""


class Commands:
    """Sends commands to the store; see the module's docstring."""

    def __init__(
        self,
        topology: Topology,
        settings: WireSettings,
        config: RouterConfig,
        clock: Callable[[], float],
        retries: Counter[str],
        telemetry: Telemetry,
        outage: Outage,
    ) -> None:
        self._topology = topology
        self._settings = settings
        self._config = config
        self._clock = clock
        self._retries = retries
        self._telemetry = telemetry
        self._log = config.logger_for("store")
        self._outage = outage
        self._channels = Nodes(topology, self._make_channel)
        # Durable writes travel apart: nothing else is to wait behind their WAIT.
        self._durable = Nodes(topology, self._make_durable_node)
        self._deadlines = Deadlines(clock, end_in_time)
        # The scripts whose source is on its way: where to, which, and in which attempt.
        self._loading: dict[tuple[Address, str], Call] = {}
        self._closed = False
        topology.on_change(self._on_topology_change)
        topology.on_wrong_peer(self._on_wrong_peer)

    def run(self, command: Command, give_up: float | None = None) -> Coroutine[None, None, object]:
        """The reply to a command, sent as often as needed and allowed; to be awaited at once.

        ``give_up``: the instant of the deadline of the call that it is part of; None: it is one of its own.

        Raises ``StoreUnavailable``, ``OutcomeUnknown``, ``CorruptReply``, ``ScriptFailed``, another ``StoreError``, or
        ``RouterClosed``.
        """
        return self._run(self._course(command, give_up))

    def run_on(
        self, address: Address, command: Command, give_up: float | None = None
    ) -> Coroutine[None, None, object]:
        """The reply of this one node, whoever owns the key; otherwise as ``run``."""
        course = self._course(command, give_up)
        course.pinned = address
        return self._run(course)

    def _course(self, command: Command, give_up: float | None = None) -> Course:
        if give_up is None:
            give_up = self._clock() + self._config.retry.deadline
        return Course(command, give_up)

    def _run(self, course: Course) -> Coroutine[None, None, object]:
        # Not a coroutine: one more costs every write.
        command = course.command
        course.record = record = self._telemetry.client(
            command.name, script=command.script.name if command.script is not None else ""
        )
        if record is None:
            return self._until_deadline(course)
        return self._recorded(record, self._until_deadline(course))

    async def _recorded(self, record: ClientRecord, work: Coroutine[None, None, _R]) -> _R:
        try:
            result = await work
        except BaseException as error:
            self._telemetry.client_ended(record, error)
            raise
        self._telemetry.client_ended(record)
        return result

    async def _until_deadline(self, course: Course) -> object:
        self._deadlines.watch(course)
        try:
            return await self._attempts(course)
        except TimeoutError as error:
            call = course.call
            if call is not None and call.sent_at > -inf:
                course.ambiguous = True
                if isinstance(call, DurableCall) and call.done_on_primary:
                    course.too_few_acks = course.too_few_acks or TooFewAcks(0)
            raise errors.gave_up(course, self._config) from course.last_error or error
        finally:
            course.done = True

    async def run_many(
        self,
        commands: Sequence[Command],
        give_up: float | None = None,
        *,
        corrupt_in_place: bool = False,
    ) -> list[object]:
        """The replies to many commands, in order; those of one node travel together. ``give_up`` as in ``run``.

        ``corrupt_in_place``: a ``CorruptReply`` takes the place of the one reply that it is about. Otherwise it is
        raised, as whatever else ``run`` raises.
        """
        if not commands:
            return []
        if len(commands) == 1:
            try:
                return [await self.run(commands[0], give_up)]
            except CorruptReply as corrupt:
                if not corrupt_in_place:
                    raise
                return [corrupt]
        record = self._telemetry.client(f"PIPELINE {commands[0].name}", size=len(commands))
        if give_up is None:
            give_up = self._clock() + self._config.retry.deadline
        together = self._run_together(commands, record, give_up, corrupt_in_place)
        return await (together if record is None else self._recorded(record, together))

    async def _run_together(
        self,
        commands: Sequence[Command],
        record: ClientRecord | None,
        give_up: float,
        corrupt_in_place: bool,
    ) -> list[object]:
        first: list[tuple[Command, Call | None]] = []
        addresses = [self._topology.address_of(slot_of(command.key)) for command in commands]
        if record is not None and len(set(addresses)) == 1:
            # A batch that goes to several nodes has no single address to report.
            record.server = addresses[0]
        for command, address in zip(commands, addresses, strict=True):
            call = None
            if address is not None:
                call = Call(command.payload, asking=False, settled=command.settled)
                self._channels.at(address).submit(call)
            first.append((command, call))
        results: list[object] = []
        course: Course | None = None
        try:
            async with asyncio.timeout(max(0.0, give_up - self._clock())):
                for command, call in first:
                    course = None
                    reply = await call.future if call is not None else None
                    if call is None or isinstance(reply, (ReplyError, Lost)):
                        # The few that failed are retried one by one.
                        course = Course(command, give_up, record=record)
                        try:
                            reply = await self._attempts(course)
                        except CorruptReply as corrupt:
                            if not corrupt_in_place:
                                raise
                            reply = corrupt
                    results.append(reply)
        except TimeoutError as error:
            number = len(results)
            course = course or Course(commands[number], give_up, at=addresses[number])
            raise errors.gave_up(course, self._config) from error
        finally:
            for _, call in first:
                if call is not None:
                    call.future.cancel()
        return results

    async def close(self) -> None:
        """End all connections; commands under way end as the contract says."""
        self._closed = True
        self._deadlines.close()
        self._channels.close()
        self._durable.close()
        await self._channels.wait_closed()
        await self._durable.wait_closed()

    def give_up_after_fork(self) -> None:
        """In a forked child: give up every inherited socket."""
        self._channels.give_up_after_fork()
        self._durable.give_up_after_fork()

    # One command's way

    async def _attempts(self, course: Course) -> object:
        slot = slot_of(course.command.key)
        while True:
            address = course.pinned or course.address or self._topology.address_of(slot)
            if address is None:
                self._topology.refresh_soon()
                await self._pause(course, "no owner", None)
                continue
            if self._closed:
                raise errors.closed(course)
            course.at = address
            channel, course.call = self._prepare(course, address)
            channel.submit(course.call)
            told = course.record if course.record and course.record.size == 1 else None
            if told is not None:
                told.server = address
            reply = await (
                self._loaded(course, address) if course.by_source else course.call.future
            )
            if reply is TIME_IS_UP:
                raise TimeoutError
            course.call = None
            if told is not None:
                told.peer = channel.connection.peer if channel.connection else None
            if isinstance(reply, Lost):
                await self._after_loss(course, address, reply)
            elif isinstance(reply, TooFewAcks):
                await self._after_too_few_acks(course, address, reply)
            elif isinstance(reply, ReplyError):
                await self._after_error(course, address, reply)
            else:
                if self._outage.places:
                    self._outage.over((address, COMMANDS))
                return reply

    async def _loaded(self, course: Course, address: Address) -> object:
        """The reply to an attempt that brings a node the source of its script."""
        call = course.call
        assert call is not None
        script = course.command.script
        assert script is not None
        self._log.debug("%s is sent %s", address, script.name, extra=log_fields(node=address))
        brought = (address, script.sha)
        self._loading[brought] = call
        try:
            return await call.future
        finally:
            if self._loading.get(brought) is call:
                del self._loading[brought]

    async def _after_loss(self, course: Course, address: Address, lost: Lost) -> None:
        command = course.command
        if lost.sent and command.write:
            course.ambiguous = True
        course.last_error = lost.error
        if self._closed:
            raise errors.closed(course)
        if isinstance(lost.error, ReplyTooLarge):
            raise errors.too_large(command) from lost.error
        if isinstance(lost.error, HandshakeRefused) and not course.ambiguous:
            opening = command.operation == "open"
            if opening or not lost.error.may_pass:
                raise StoreError(str(lost.error), operation=command.operation) from lost.error
        if course.ambiguous and not command.repeatable:
            raise errors.unknown(command, "the connection was lost") from lost.error
        self._topology.refresh_soon(address)
        channel = self._channels.get(address)
        missed = address in self._topology.primaries()
        if missed and channel is not None and not channel.reachable:
            self._outage.began((address, COMMANDS), "connection")
        await self._start_over(course, "connection", address)

    async def _after_too_few_acks(
        self, course: Course, address: Address, result: TooFewAcks
    ) -> None:
        """Ask again: the repetition finds the write done, or does it on the new primary, and waits anew."""
        course.too_few_acks, course.ambiguous = result, True
        if not course.command.repeatable:
            within = self._config.ack_timeout
            raise errors.too_few_acks(course.command, result, self._config, within)
        self._topology.refresh_soon()
        await self._start_over(course, "acknowledgements", address)

    async def _after_error(self, course: Course, address: Address, error: ReplyError) -> None:
        command = course.command
        failure = self._topology.heed(error, address)
        # Servers' texts may echo arguments, and so a uid: only the code becomes a cause.
        cause = course.last_error = ReplyError(failure.code)
        by_sha = command.script is not None and not course.by_source
        step = next_step(failure, course.hops, source_at_hand=by_sha)
        if step is Step.PAUSE:
            self._topology.refresh_soon()
            await self._start_over(course, failure.code, address)
        elif step is Step.FAIL:
            if course.record is not None and course.record.status_code is None:
                course.record.status_code = failure.code
            if course.ambiguous:
                # The repetition was refused; whether the first one happened stays open.
                raise errors.unknown(
                    command, f"its repetition was refused ({failure.code})"
                ) from cause
            raise errors.refusal(command, failure, address) from cause
        else:
            if self._clock() >= course.deadline:
                # It has passed since the answer came, and would end no further attempt.
                raise TimeoutError
            self._note_retry(course, failure.code, address)
            if step is Step.FOLLOW:
                course.address = Address(failure.host, failure.port)
                course.asking = failure.kind is Kind.ASK
                course.hops += 1
            else:
                self._load(course, address)

    def _load(self, course: Course, address: Address) -> None:
        """Go to this node again: with the source, or behind another command that brings it."""
        assert course.command.script is not None
        course.address = address
        # Refused behind another's source: that one was not sent after all, or the node has forgotten it again. Then it
        # goes behind the next one's, if there is one.
        bringing = self._loading.get((address, course.command.script.sha))
        course.by_source = bringing is None or bringing is course.behind
        course.behind = bringing
        # No trouble: if no answer comes in time, it is not for this.
        course.last_error = None

    async def _start_over(self, course: Course, reason: str, node: Address) -> None:
        """Pause, then go where the slot map points by then."""
        course.start_over()
        await self._pause(course, reason, node)

    def _note_retry(
        self, course: Course, reason: str, node: Address | None, pause: float = 0.0
    ) -> None:
        self._retries[reason] += 1
        if course.record is not None:
            course.record.retried(Retry(time_ns(), reason, node, pause))

    async def _pause(self, course: Course, reason: str, node: Address | None) -> None:
        course.pauses += 1
        pause = self._config.retry.pause(course.pauses, chance.random())
        left = course.deadline - self._clock()
        self._note_retry(course, reason, node, max(0.0, min(pause, left)))
        await asyncio.sleep(min(pause, left))
        # It may have taken longer: a process can be stopped.
        if pause >= left or self._clock() >= course.deadline:
            raise TimeoutError

    # Connections

    def _prepare(self, course: Course, address: Address) -> tuple[Channel, Call]:
        command, asking = course.command, course.asking
        settled, deadline = command.settled, course.deadline
        wanted = self._config.min_replica_acks
        if not (command.write and wanted):
            call = Call(course.payload(), asking=asking, settled=settled, deadline=deadline)
            return self._channels.at(address), call
        node = self._durable.at(address)
        if command.script is not None and node.needs(command.script.sha):
            course.by_source = True
        before = course.too_few_acks
        # Asked again once, a late acknowledgement is trusted: some replicas are always late.
        trust_late = not command.repeatable or (before is not None and before.late)
        durable = DurableCall(
            course.payload(),
            asking=asking,
            settled=settled,
            deadline=deadline,
            wanted=wanted,
            trust_late=trust_late,
        )
        return node.channel, durable

    def _make_channel(self, address: Address) -> Channel:
        return Channel(address, self._settings, self._config, self._clock, any_reply_is_life=True)

    def _make_durable_node(self, address: Address) -> DurableNode:
        config = self._config
        observer = AckObserver(config.min_replica_acks, config.ack_timeout, self._clock)
        channel = Channel(
            address,
            self._settings,
            config,
            self._clock,
            observer=observer,
            any_reply_is_life=True,
            one_batch_at_a_time=True,
        )
        return DurableNode(channel, observer)

    def _on_wrong_peer(self, address: Address) -> None:
        self._channels.renew(address)
        self._durable.renew(address)

    def _on_topology_change(self, losers: set[Address]) -> None:
        left = losers - self._topology.primaries()
        self._channels.drop(left)
        self._durable.drop(left)
