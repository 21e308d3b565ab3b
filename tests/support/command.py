"""The ``sfroute`` command: run in this process where that tells the same, which is quicker by the start of Python."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, TextIO, cast
from unittest import mock

import typer.main

from sfroute import Router
from sfroute.cli.app import app, run
from sfroute.embedded._node import why_not_free

__all__ = [
    "COMMAND",
    "Operator",
    "Outcome",
    "application",
    "commands",
    "consecutive_ports",
    "environment",
    "sfroute",
    "writer",
]

COMMAND: Final = [sys.executable, "-m", "sfroute.cli"]


def environment(**variables: str) -> dict[str, str]:
    """Ours without what would change the command, wide enough that no message is wrapped."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SFROUTE_")}
    return {**kept, "COLUMNS": "200", "NO_COLOR": "1", **variables}


def consecutive_ports(count: int) -> int:
    """The first of some that are free now, as are those 10000 above; none that other local clusters would take."""
    for first in random.sample(range(20000, 22700), 200):
        if not any(why_not_free(port, bus=True) for port in range(first, first + count)):
            return first
    raise AssertionError("there are no free ports")


class Outcome(NamedTuple):
    """How it ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        """The one line."""
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


@functools.cache
def application() -> Any:
    """What typer makes of all commands. Making it takes ten times as long as a command that only checks arguments."""
    return typer.main.get_command(app)


def writer(descriptor: int, *, unbuffered: bool = False) -> TextIO:
    """What Python makes of a descriptor for standard output; ``unbuffered`` as with PYTHONUNBUFFERED."""
    raw = io.FileIO(os.dup(descriptor), "w")
    buffer = cast("io.BufferedWriter", raw) if unbuffered else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding="utf-8", write_through=unbuffered)


def sfroute(
    *arguments: str, given: str | bytes = "", stdout: TextIO | None = None, **variables: str
) -> Outcome:
    """Run a command to its end.

    Standard input is no terminal, and holds what is given. Standard output is kept for the outcome, or goes to another
    file, which is closed as an interpreter that exits does it.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        tempfile.TemporaryFile() as file,
        io.TextIOWrapper(file, encoding="utf-8") as stdin,
        mock.patch.dict(os.environ, environment(**variables), clear=True),
        mock.patch.object(sys, "stdin", stdin),
        mock.patch.object(sys.modules["sfroute.cli.app"], "app", application()),
        stdout or contextlib.nullcontext(),
        contextlib.redirect_stdout(stdout or out),
        contextlib.redirect_stderr(err),
    ):
        file.write(given.encode() if isinstance(given, str) else given)
        file.seek(0)
        try:
            code = run(list(arguments))
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return Outcome(code, out.getvalue(), err.getvalue())


class Operator:
    """Somebody at a terminal, with the variables of one service set."""

    def __init__(self, router: Router, url: str, namespace: str, service: str = "chat") -> None:
        self.router = router
        self.url = url
        self.namespace = namespace
        self.service = service

    @property
    def variables(self) -> dict[str, str]:
        return {
            "SFROUTE_URL": self.url,
            "SFROUTE_NAMESPACE": self.namespace,
            "SFROUTE_SERVICE": self.service,
        }

    def __call__(self, *arguments: str, stdout: TextIO | None = None, **variables: str) -> Outcome:
        return sfroute(*arguments, stdout=stdout, **{**self.variables, **variables})

    def link(self, uid: str, pod: int, seconds: int = -1) -> None:
        self.router.set_linked_pod(self.namespace, uid, self.service, pod, seconds)

    def pod_of(self, uid: str) -> int | None:
        return self.router.get_linked_pod(self.namespace, uid, self.service, fresh=True)

    def report(self, pod: int, state: str = "Running") -> None:
        self.router.set_service_state(self.namespace, self.service, pod, state)


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command there is: its words, and what typer makes of it."""

    def below(words: tuple[str, ...], group: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below((*words, name), command)
            else:
                yield (*words, name), command

    return below((), application())
