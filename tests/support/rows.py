"""What a row of the catalogue says of an operation or of a script, and how either is called."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from sfroute import (
    ConfigError,
    CorruptReply,
    InvalidArgument,
    OutcomeUnknown,
    RouterClosed,
    ScriptFailed,
    SfrouteError,
    StoreError,
    StoreUnavailable,
)

from .program import LinkProgram, run_script

__all__ = ["Operation", "Script"]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A public member of ``AsyncRouter`` or of ``AsyncPodAgent``, and of its twin for threads.

    Attributes:
        name: its name.
        access: whether it reads or writes in the store; ``local`` is what touches no network.
        args: good arguments.
        bad: bad values of these arguments, where they differ from ``BAD``.
        sends: what it sends first, with nothing in the cache: names of commands and of scripts.
        cached: the local cache answers, once it has been asked.
        iterated: it is an iterator.
        user: whose rights it needs at least, of the users in docs/how-to/secure.md.
        raises: errors of its own, beside those of ``may_raise``.
        cli: the words of the command that does it, and what they need; or why there is none.
        model: why the model (``support/model.py``) does not have it; "" if it does.
    """

    name: str
    access: Literal["read", "write", "local"]
    args: Mapping[str, Any] = field(default_factory=dict)
    bad: Mapping[str, list[Any]] = field(default_factory=dict)
    sends: tuple[str, ...] = ()
    cached: bool = False
    iterated: bool = False
    user: Literal["gateway", "pod", "operator"] = "gateway"
    raises: tuple[type[SfrouteError], ...] = ()
    cli: tuple[str, ...] | str
    model: str = ""

    @property
    def scripts(self) -> list[str]:
        """The scripts among what it sends: names of commands are capitals."""
        return [name for name in self.sends if not name.isupper()]

    @property
    def writes_link(self) -> bool:
        """It changes the link that it names, by one script."""
        return (
            self.access == "write" and bool(self.scripts) and {"uid", "service"} <= set(self.args)
        )

    @property
    def may_raise(self) -> set[type[SfrouteError]]:
        """All it may raise, exactly: a subclass is another error."""
        found: set[type[SfrouteError]] = {InvalidArgument, *self.raises}
        if self.access != "local":
            # ConfigError: from another event loop than the one on which the router is open.
            found |= {RouterClosed, ConfigError, StoreError, StoreUnavailable, CorruptReply}
        if self.access == "write":
            found.add(OutcomeUnknown)
        if self.scripts:
            found.add(ScriptFailed)
        return found

    def arguments(
        self, namespace: str = "ns", uid: str = "ada", service: str = "chat", **others: Any
    ) -> dict[str, Any]:
        """Good arguments, with these names and values."""
        names = {"ns": namespace, "ada": uid, "chat": service}
        return {name: _put_in(value, names) for name, value in self.args.items()} | others

    async def call(self, front: Any, **arguments: Any) -> Any:
        """Do it: the result, or the first element of what is iterated."""
        made = getattr(front, self.name)
        if callable(made):
            made = made(**arguments)
        if inspect.isawaitable(made):
            return await made
        if hasattr(made, "__aiter__"):
            async with aclosing(made):
                return await anext(made, None)
        if self.iterated:
            return await asyncio.to_thread(_first_of, made)
        return made


def _first_of(iterator: Any) -> Any:
    try:
        return next(iterator, None)
    finally:
        iterator.close()


def _put_in(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_put_in(each, names) for each in value)
    if isinstance(value, str) and value.startswith("sf:"):
        return "sf:{{{ns}:lk:{ada}}}".format_map(names)
    return names.get(value, value) if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class Script:
    """A file in ``lua_scripts/``.

    Attributes:
        name: its name.
        access: whether it reads or writes.
        keys: KEYS, by the names that its head gives them. ``op`` is where it keeps its operation record: a write on
            links must have one, so that it can be sent again when its reply was lost.
        args: ARGV, by the same names, all of them: a call that changes what ``before`` left. ``op_ms`` is how long the
            record is kept; a list stands for several.
        before: makes what the call finds.
        reply: what it replies then.
        bad: bad values of its arguments, where they differ from ``BAD_ARGV``.
        value: turns the reply into the result of the operation that sends just this; None if there is none.
        harmless: why it may be sent again without a record; "" if it may not.
    """

    name: str
    access: Literal["read", "write"]
    keys: tuple[str, ...]
    args: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[LinkProgram], None]
    reply: list[Any]
    bad: Mapping[str, list[str]] = field(default_factory=dict)
    value: Callable[[list[Any]], Any] | None = None
    harmless: str = ""

    @property
    def keeps_record(self) -> bool:
        return "op" in self.keys

    @property
    def record_may_be_left_out(self) -> bool:
        """It is the last key. Before others it cannot be left out."""
        return self.keys[-1] == "op"

    def argv(self, *, recorded: bool = True, **changed: Any) -> list[Any]:
        """ARGV, with these values changed; if nothing is to be recorded, without ``op_ms`` at the end, or with 0."""
        args = {**self.args, **changed}
        if not recorded and "op_ms" in args and "op_ms" not in changed:
            args["op_ms"] = 0
            if next(reversed(args)) == "op_ms":
                del args["op_ms"]
        flat: list[Any] = []
        for value in args.values():
            flat.extend(value if isinstance(value, list) else [value])
        return flat

    def keys_of(self, uid: LinkProgram, *, recorded: bool = True) -> list[str]:
        """KEYS of a uid, without the last one if nothing is to be recorded."""
        return [uid.keys[name] for name in self.keys if recorded or name != "op"]

    def run(self, uid: LinkProgram, *, recorded: bool = True, **changed: Any) -> list[Any]:
        """Call it as a program in another language does."""
        argv = self.argv(recorded=recorded, **changed)
        return run_script(uid.client, self.name, self.keys_of(uid, recorded=recorded), *argv)
