"""The course of one command: what has happened to it since it was given, over all its attempts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .._net.connection import Address
from ..telemetry import ClientRecord
from .acks import TooFewAcks
from .attempts import Call
from .command import Command

__all__ = ["TIME_IS_UP", "Course", "end_in_time"]

TIME_IS_UP: Final = object()
"""In place of a reply: the command's deadline has passed."""


@dataclass(slots=True)
class Course:
    """What has happened to a command so far.

    Attributes:
        command: the command.
        deadline: instant at which it is given up.
        done: it is over.
        pinned: the one node it goes to, whoever owns the key; None for the owner.
        address: where the last reply sent it; None for where the slot map points.
        at: where the last attempt went.
        asking: send ASKING first.
        behind: the attempt of another command that was to bring its script, and behind which it was sent last.
        by_source: send the script's source instead of its SHA-1.
        ambiguous: an attempt was lost after sending, so it may have been executed.
        hops: redirects followed since the last pause.
        pauses: how often it has waited.
        call: the attempt under way.
        too_few_acks: the last answer of its replicas, if they were too few.
        last_error: the latest trouble, for the error that gives it up.
        record: what telemetry knows of it.
    """

    command: Command
    deadline: float
    done: bool = False
    pinned: Address | None = None
    address: Address | None = None
    at: Address | None = None
    asking: bool = False
    behind: Call | None = None
    by_source: bool = False
    ambiguous: bool = False
    hops: int = 0
    pauses: int = 0
    call: Call | None = None
    too_few_acks: TooFewAcks | None = None
    last_error: Exception | None = None
    record: ClientRecord | None = None

    def payload(self) -> bytes:
        """What to send next."""
        return self.command.by_source() if self.by_source else self.command.payload

    def start_over(self) -> None:
        """Go where the slot map points."""
        self.address, self.asking, self.hops = None, False, 0


def end_in_time(course: Course) -> None:
    """The deadline has passed: wake who waits for a reply. Who pauses looks at the deadline itself."""
    if course.call is not None and not course.call.future.done():
        course.call.future.set_result(TIME_IS_UP)
