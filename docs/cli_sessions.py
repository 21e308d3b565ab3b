"""Makes ``reference/cli.md``: each command with its options, read from the program, and a session, really run.

    python docs/cli_sessions.py            # run the sessions and write the page
    python docs/cli_sessions.py --check    # fail if the page is not what this makes, apart from the sessions
    python docs/cli_sessions.py --check-sessions  # run them, and fail if they show anything but other numbers;
                                                  # `sfroute demo` is left to its own test

The sessions run on a local cluster with three pods, at 80 columns. In what they wrote only the addresses are changed.
What stands above the first command is written by hand, and kept.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import typer.main

from sfroute import PodAgent, Router
from sfroute.cli.app import app
from sfroute.embedded import LocalCluster
from sfroute.keys import link_key, link_prefix

PAGE: Final = Path(__file__).parent / "reference" / "cli.md"
SFROUTE: Final = [sys.executable, "-m", "sfroute.cli"]
NAMESPACE: Final = "production"
SERVICE: Final = "chat"
COMMON: Final = ("--url", "--namespace", "--service", "--json", "--help")
"""Described once."""

Words = tuple[str, ...]

PICTURES: Final[Mapping[Words, str]] = {
    ("top",): """On a terminal, as `python docs/screenshots.py top` has drawn it:

![The screen of sfroute top: look-ups and scripts of each primary, the pods with their loads and links, and what has
happened to them](../images/top.svg)
"""
}


# --- the reference: read from the program


def commands() -> dict[Words, Any]:
    """Every command, in the order of `sfroute --help`."""

    def below(words: Words, group: Any) -> Iterator[tuple[Words, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below((*words, name), command)
            else:
                yield (*words, name), command

    return dict(below((), typer.main.get_command(app)))


def synopsis(words: Words, command: Any) -> str:
    """How it is called."""
    parts = ["sfroute", *words, "[OPTION]..."]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = parameter.name.upper().rstrip("S") + ("..." if parameter.nargs == -1 else "")
            parts.append(name if parameter.required else f"[{name}]")
    return " ".join(parts)


def description(command: Any) -> str:
    """Its help, as a paragraph or several."""
    return inspect.cleandoc(command.callback.__doc__)


def rows(command: Any) -> Iterator[tuple[str, str]]:
    """Arguments and options of its own, and what they say of themselves."""
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            yield f"`{parameter.name.upper().rstrip('S')}`", parameter.help
        elif not set(parameter.opts) & set(COMMON):
            names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
            default = parameter.default
            told = isinstance(default, (int, float)) and not isinstance(default, bool)
            ending = f" (default {default:g})" if told and default >= 0 else ""
            if isinstance(default, str) and default:
                ending = f" (default `{default}`)"
            yield names, f"{parameter.help}{ending}"
        elif set(parameter.opts) & {"--namespace", "--service"} and parameter.help not in _usual():
            # Where it means something else than elsewhere.
            yield f"`{parameter.opts[0]}`", parameter.help


def _usual() -> set[str]:
    (route,) = (command for words, command in commands().items() if words == ("route",))
    return {parameter.help for parameter in route.params}


def page(sessions: Mapping[Words, str]) -> str:
    """The whole page."""
    parts = [PAGE.read_text(encoding="utf-8").partition("\n## ")[0]]
    group: Words = ()
    for words, command in commands().items():
        if words[:-1] != group and words[:-1]:
            parts.append(f"## {' '.join(words[:-1])}\n")
        group = words[:-1]
        parts.append(f"{'###' if group else '##'} {' '.join(words)}\n")
        parts.append(f"```text\n{synopsis(words, command)}\n```\n")
        parts.append(description(command) + "\n")
        table = [f"| {names} | {text} |" for names, text in rows(command)]
        if table:
            parts.append("\n".join(["| | |", "|---|---|", *table]) + "\n")
        parts.append(f"```console\n{sessions[words].rstrip()}\n```\n")
        if words in PICTURES:
            parts.append(PICTURES[words])
    return "\n".join(parts)


# --- the sessions: run


@dataclass
class World:
    """A cluster with three pods and some users, and somebody at its terminal."""

    cluster: LocalCluster
    router: Router

    def environment(self) -> dict[str, str]:
        """Of a terminal 80 columns wide, with the variables of the page."""
        kept = {name: value for name, value in os.environ.items() if name[:8] != "SFROUTE_"}
        return {
            **kept,
            "COLUMNS": "80",
            "SFROUTE_URL": self.cluster.url,
            "SFROUTE_NAMESPACE": NAMESPACE,
            "SFROUTE_SERVICE": SERVICE,
        }

    def run(self, line: str, given: str = "") -> str:
        """A command line of the page; what the terminal shows."""
        done = subprocess.run(  # noqa: S603 - our own command
            self.argv(line),
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(),
            check=False,
        )
        return f"$ {line}\n{self.tidy(done.stdout)}"

    def argv(self, line: str) -> list[str]:
        """Without what the shell does."""
        return [*SFROUTE, *shlex.split(line.partition(" < ")[0].removeprefix("sfroute "))]

    def tidy(self, text: str) -> str:
        """With addresses of the page, padded where a column was."""
        for number, (host, port) in enumerate(self.cluster.startup_nodes, 1):
            here, there = f"{host}:{port}", f"10.0.0.{number}:6379"
            text = re.sub(rf"{here}(?=  )", there.ljust(len(here)), text).replace(here, there)
        return text

    def until(self, line: str, act: Callable[[], None], seconds: float) -> str:
        """A command that runs until Ctrl-C; meanwhile something happens."""
        with subprocess.Popen(  # noqa: S603 - our own command
            self.argv(line),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(),
        ) as running:
            time.sleep(seconds)
            act()
            time.sleep(seconds)
            running.send_signal(signal.SIGINT)
            out, _ = running.communicate(timeout=30)
        return f"$ {line}\n{self.tidy(out)}^C\n"


@contextmanager
def world() -> Iterator[World]:
    """Three pods that send heartbeats, a fourth that died and left users behind."""
    with (
        LocalCluster(3, 1) as cluster,
        Router.from_url(cluster.url) as router,
        ExitStack() as stack,
    ):
        for pod, load in enumerate((0.25, 0.5, 0.125)):
            agent = PodAgent(
                router, NAMESPACE, SERVICE, pod, load=partial(float, load), heartbeat=1.0
            )
            stack.enter_context(agent)
        for number in range(1200):
            router.set_linked_pod(NAMESPACE, f"user-{number}", SERVICE, number % 4)
        yield World(cluster, router)


def record(at: World) -> dict[Words, str]:
    """Every session. What one has done the next ones see."""
    router = at.router
    router.set_linked_pod(NAMESPACE, "ada", SERVICE, 2)
    router.set_linked_pod(NAMESPACE, "grace", SERVICE, 0)

    def lines(*commands: str) -> str:
        return "".join(at.run(line) for line in commands)

    def drain_and_back() -> None:
        for undo in ((), ("--undo",)):
            at.run(" ".join(("sfroute drain 1", *undo)))
            time.sleep(1.0)

    return {
        ("route",): at.run("sfroute route < uids.txt", "ada\ngrace\n")
        + lines("sfroute route --json ada"),
        ("link", "get"): lines("sfroute link get ada", "sfroute link get --json nobody"),
        ("link", "set"): lines("sfroute link set ada 1"),
        ("link", "try-set"): lines("sfroute link try-set ada 2"),
        ("link", "set-if-absent"): lines(
            "sfroute link set-if-absent ada 2",
            "sfroute link set-if-absent alan 2 --persist-seconds 30",
        ),
        ("link", "services"): lines("sfroute link services ada"),
        ("link", "batch"): lines("sfroute link batch ada grace nobody"),
        ("link", "remove"): lines(
            "sfroute link remove ada --pod 1 --persist-seconds 30",
            "sfroute link get ada",
            "sfroute link remove ada",
        ),
        ("state", "get"): lines("sfroute state get 1"),
        ("state", "set"): lines("sfroute state set 3 Stopped", "sfroute state get 3"),
        ("workload", "set"): lines("sfroute workload set Busy"),
        ("workload", "get"): lines("sfroute workload get", "sfroute workload get chat game"),
        ("pods",): lines("sfroute pods --links"),
        ("watch",): at.until("sfroute watch", drain_and_back, 2.0),
        ("top",): last_screen(under_load(at, "sfroute top --count 3 --interval 1")),
        ("doctor",): doctor(at),
        ("drain",): lines("sfroute drain 1", "sfroute drain 1 --undo"),
        ("evacuate",): lines("sfroute evacuate 3 --dry-run", "sfroute evacuate 3 --yes"),
    }


@contextmanager
def loaded(at: World) -> Iterator[None]:
    """A gateway that looks users up."""
    ended = threading.Event()

    def look_up() -> None:
        number = 0
        while not ended.wait(0.002):
            number += 1
            at.router.get_linked_pod(NAMESPACE, f"user-{number % 1300}", SERVICE, fresh=True)

    gateway = threading.Thread(target=look_up)
    gateway.start()
    try:
        yield
    finally:
        ended.set()
        gateway.join()


def under_load(at: World, line: str) -> str:
    """A command while a gateway looks users up."""
    with loaded(at):
        return at.run(line)


def last_screen(shown: str) -> str:
    """`top` as it looks when it has looked twice."""
    return "$ sfroute top\nsfroute top" + shown.rpartition("\nsfroute top")[2]


def doctor(at: World) -> str:
    """With a key of the wrong type and a link that its uid's hash does not list."""
    for name, command in (
        (link_key(NAMESPACE, "alan", SERVICE), ("HSET", "pod", "1")),
        (link_prefix(NAMESPACE, "user-7"), ("DEL",)),
    ):
        at.cluster.execute(at.cluster.primary_of(name), "DEL", name)
        if command[0] != "DEL":
            at.cluster.execute(at.cluster.primary_of(name), command[0], name, *command[1:])
    shown = at.run("sfroute doctor")
    key = link_key(NAMESPACE, "alan", SERVICE)
    at.cluster.execute(at.cluster.primary_of(key), "DEL", key)
    return shown


def record_local(at: World) -> dict[Words, str]:
    """The command that brings its own cluster."""
    line = "sfroute cluster up --primaries 1 --replicas 0"
    up = at.until(line, lambda: None, 1.5)
    # What it says where the usual ports are taken.
    up = re.sub(r"^sfroute: 16379 .*\n", "", up, flags=re.MULTILINE)
    return {("cluster", "up"): re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:16379", up)}


def record_demo(at: World) -> dict[Words, str]:
    """The demo, which takes half a minute."""
    demo = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:16379", at.run("sfroute demo"))
    return {("demo",): demo}


SESSION: Final = re.compile(r"(?<=^```console\n)\$ sfroute .*?(?=^```$)", re.DOTALL | re.MULTILINE)


def without_sessions(text: str) -> str:
    """What must be the same each time."""
    return SESSION.sub("", text)


# What differs from run to run: numbers, and the padding that depends on their length.
NUMBER: Final = re.compile(r"[\d.,:]*\d[\d.,:]*")


def masked(text: str) -> list[str]:
    """The lines of a session without its numbers. In any order: the busiest primary comes first."""
    without_tokens = re.sub(r'"by":"\w+"', "", text)
    lines = NUMBER.sub("N", without_tokens).splitlines()
    return sorted(" ".join(line.split()) for line in lines if line.strip())


def check_sessions() -> int:
    """Run all sessions and compare them with those of the page."""
    with world() as at:
        sessions = record(at) | record_local(at)
    shown = SESSION.findall(PAGE.read_text(encoding="utf-8"))
    differing = 0
    # A page has them in the order of the commands.
    for words, old in zip(commands(), shown, strict=True):
        new = sessions.get(words)
        if new is None:
            assert words == ("demo",)
        elif masked(new) != masked(old):
            differing += 1
            sys.stderr.write(f"sfroute {' '.join(words)} shows something else now:\n{new}\n")
    return 1 if differing else 0


def main() -> int:
    """Write the page, or check it."""
    if sys.argv[1:] == ["--check-sessions"]:
        return check_sessions()
    if sys.argv[1:] == ["--check"]:
        made = page(dict.fromkeys(commands(), "$ sfroute ..."))
        if without_sessions(made) == without_sessions(PAGE.read_text(encoding="utf-8")):
            return 0
        sys.stderr.write(f"{PAGE} is not what the program says; run: make docs-cli\n")
        return 1
    with world() as at:
        sessions = record(at) | record_local(at) | record_demo(at)
    PAGE.write_text(page(sessions), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
