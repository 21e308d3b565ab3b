"""A script run as it is, for ``execute_script``. The local cache heeds what it may have changed."""

from __future__ import annotations

from collections.abc import Sequence

from .._commands.command import script_command
from .._contract.keys import parse_link_key, slot_of
from .._contract.scripts import script_named
from ..errors import InvalidArgument
from .arguments import check_sendable, checked_sequence
from .engine import Engine
from .links import LinkWriter

__all__ = ["run_script"]


async def run_script(
    engine: Engine,
    writer: LinkWriter,
    name: str,
    keys: Sequence[str | bytes],
    args: Sequence[str | bytes | int],
    give_up: float | None,
) -> object:
    """The raw reply of a script. Raises ``InvalidArgument``, and what ``Commands.run`` raises."""
    script = script_named(name)
    for key in checked_sequence("keys", keys):
        check_sendable("keys", key, (str, bytes))
    for arg in checked_sequence("args", args):
        check_sendable("args", arg, (str, bytes, int))
    if not keys or len({slot_of(key) for key in keys}) != 1:
        raise InvalidArgument("keys must hold at least one key, all in one slot (one hash tag)")
    touched = [parse_link_key(key.encode() if isinstance(key, str) else key) for key in keys]
    read_only = script.read_only

    def settled() -> None:
        for link in touched:
            if link is not None and not read_only:
                namespace, uid, service = link
                writer.drop(namespace, uid, service)

    parts = await engine.opened_by(give_up, "execute_script")
    settled()
    return await parts.commands.run(
        script_command(
            "execute_script",
            script,
            keys,
            list(args),
            write=not read_only,
            repeatable=read_only,
            settled=settled,
        ),
        give_up,
    )
