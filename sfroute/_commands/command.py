"""A command for one key, and how script calls are made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .._contract.scripts import Script
from .._net.connection import encode

__all__ = ["Command", "nothing", "script_command"]


def nothing() -> None:
    """For a command without anything to do in the data callback."""


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
    settled: Callable[[], None] = nothing

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
    settled: Callable[[], None] = nothing,
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
