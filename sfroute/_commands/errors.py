"""The errors that end a command.

Each text says what failed, why as far as it is known, and what to do. Servers' texts may echo keys, and so a uid: only
the code of an error reply is shown.
"""

from __future__ import annotations

from typing import Final

from .._contract.error_replies import Failure, Kind
from .._contract.keys import claim_key, link_prefix, parse_link_key
from .._contract.replies import corrupt, refused
from .._net.connection import Address
from .._net.timeouts import seconds_of
from .._net.trouble import trouble
from ..config import RouterConfig
from ..errors import OutcomeUnknown, RouterClosed, ScriptFailed, StoreError, StoreUnavailable
from .acks import TooFewAcks
from .command import Command
from .course import Course

__all__ = ["closed", "gave_up", "refusal", "too_few_acks", "too_large", "unknown"]


def gave_up(course: Course, config: RouterConfig) -> StoreError:
    """The deadline has passed."""
    command, seconds = course.command, seconds_of(course.deadline, config.retry.deadline)
    if course.too_few_acks is not None:
        within = seconds if command.repeatable else config.ack_timeout
        return too_few_acks(command, course.too_few_acks, config, within)
    why = trouble(course.at, course.last_error)
    if command.write and course.ambiguous:
        return unknown(command, f"no answer came within {seconds:g} s ({why})")
    return StoreUnavailable(
        f"{command.operation}: no answer within {seconds:g} s that could be used; nothing was changed. {why}",
        operation=command.operation,
    )


def unknown(command: Command, why: str) -> OutcomeUnknown:
    """A write may have been executed, and asking again would not tell."""
    return OutcomeUnknown(
        f"{command.operation} may or may not have been executed: {why}. "
        "Read the current state before acting on it",
        operation=command.operation,
    )


def closed(course: Course) -> Exception:
    """The router was closed."""
    if course.ambiguous:
        return unknown(course.command, "the router was closed")
    return RouterClosed()


def too_few_acks(
    command: Command, result: TooFewAcks, config: RouterConfig, seconds: float
) -> StoreError:
    """The write is on the primary, but not on as many replicas as it must be."""
    return StoreError(
        f"{command.operation} was executed on the primary, but only {result.acknowledged} of "
        f"{config.min_replica_acks} replicas acknowledged it within {seconds:g} s: "
        "a failover now may lose it. Check the replicas, or call again",
        operation=command.operation,
        retryable=True,
    )


def too_large(command: Command) -> StoreError:
    """The reply took more bytes than anything the contract allows."""
    if command.write:
        return unknown(command, "the reply took more bytes than any should")
    error = corrupt(command.key, "more bytes than anything that the contract allows")
    error.operation = command.operation
    return error


_FOUND: Final = {
    "SFTOOMANY": "more fields than a service has pods (PlacementConfig.max_pods)",
    "SFTOOLARGE": "states of more than 64 MiB together",
}


def refusal(command: Command, failure: Failure, address: Address) -> StoreError:
    """The server refused the command, and sending it again would not help."""
    if failure.kind is Kind.CORRUPT:
        key = command.key
        link = parse_link_key(key.encode())
        if link is not None and failure.corrupt == "hash":
            key = link_prefix(link.namespace, link.uid)
        elif link is not None and link.service is not None and failure.corrupt == "claim":
            key = claim_key(link.namespace, link.uid, link.service)
        error = corrupt(key, _FOUND.get(failure.code, "a value that the contract does not allow"))
        error.operation = command.operation
        return error
    if command.script is not None and failure.code in {"ERR", "SFARG"}:
        return ScriptFailed(
            f"{command.operation}: the script {command.script.name} failed on {address} ({failure.code}); "
            "its log may say more",
            operation=command.operation,
            script=command.script.name,
        )
    return refused(failure, command.operation, str(address))
