"""Writes ``docs/reference/cli.md``: the options of each command, read from the program, and a session, really run.

    python tools/cli_sessions.py                   # run the sessions and write the page
    python tools/cli_sessions.py "link set" pods   # the same, but change the sessions of these commands only
    python tools/cli_sessions.py --check           # fail if the page is out of date; sessions are not compared
    python tools/cli_sessions.py --check-sessions  # run them; fail if anything but a number differs. The session of
                                                   # `sfroute demo` is left to the demo's own test

The sessions run on a local cluster with three pods, at 80 columns. Only the addresses in their output are changed.
The text above the first command is written by hand and kept.
"""

from __future__ import annotations

import inspect
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import typer.main

from sfroute import PlacementConfig, PodAgent, Router, RouterConfig
from sfroute._contract.keys import link_key, link_prefix
from sfroute.cli.app import app, run
from sfroute.embedded import LocalCluster

PAGE: Final = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
SFROUTE: Final = [sys.executable, "-m", "sfroute.cli"]
NAMESPACE: Final = "production"
SERVICE: Final = "chat"
COMMON: Final = ("--url", "--namespace", "--service", "--json", "--help")
"""Described once."""

Words = tuple[str, ...]

PICTURES: Final[Mapping[Words, str]] = {
    ("top",): """On a terminal, as `python tools/screenshots.py top` has drawn it:

![The screen of sfroute top: lookups and scripts of each primary, the pods with their loads and links, and what has
happened to them](../images/top.svg)
"""
}


# --- the reference: read from the program


@cache
def commands() -> dict[Words, Any]:
    """Every command, in the order of `sfroute --help`. Making them takes a tenth of a second."""

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
        """A command line of the page; what the terminal shows. In this process, which saves the start of Python."""
        shown = io.StringIO()
        with (
            tempfile.TemporaryFile() as file,
            io.TextIOWrapper(file, encoding="utf-8") as stdin,
            mock.patch.dict(os.environ, self.environment(), clear=True),
            mock.patch.object(sys, "stdin", stdin),
            redirect_stdout(shown),
            redirect_stderr(shown),
        ):
            file.write(given.encode())
            file.seek(0)
            # As it does for whoever types it wrongly, which is shown too.
            with suppress(SystemExit):
                run(self.argv(line)[len(SFROUTE) :])
        return f"$ {line}\n{self.tidy(shown.getvalue())}"

    def process(self, line: str) -> str:
        """The same, as a process of its own."""
        done = subprocess.run(  # noqa: S603 - our own command
            self.argv(line),
            stdin=subprocess.DEVNULL,
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
        """With addresses of the page, padded where a column was. A command that broke is not for readers."""
        if "Traceback (most recent call last)" in text:
            raise RuntimeError(text)
        for number, (host, port) in enumerate(self.cluster.startup_nodes, 1):
            here, there = f"{host}:{port}", f"10.0.0.{number}:6379"
            text = re.sub(rf"{here}(?=  )", there.ljust(len(here)), text).replace(here, there)
        return text

    def until(self, line: str, *steps: tuple[str, Callable[[], object]]) -> str:
        """A command that runs until Ctrl-C. Each step waits for a line with these words, and then does something."""
        with subprocess.Popen(  # noqa: S603 - our own command
            self.argv(line),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            env=self.environment(),
        ) as running:
            assert running.stdout is not None
            shown = ""
            for wanted, act in steps:
                read = ""
                while wanted not in read:
                    read = running.stdout.readline()
                    if not read:
                        raise RuntimeError(f"{line} ended without {wanted!r}: {shown}")
                    shown += read
                act()
            running.send_signal(signal.SIGINT)
            rest, _ = running.communicate(timeout=30)
        return f"$ {line}\n{self.tidy(shown + rest)}^C\n"


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


def nothing() -> None:
    """What is shown is enough."""


def record(at: World) -> dict[Words, str]:
    """Every session. What one has done the next ones see."""
    router = at.router
    router.set_linked_pod(NAMESPACE, "ada", SERVICE, 2)
    router.set_linked_pod(NAMESPACE, "grace", SERVICE, 0)

    def lines(*commands: str) -> str:
        return "".join(at.run(line) for line in commands)

    watched = at.until(
        "sfroute watch",
        ("pod 2", partial(at.run, "sfroute drain 1")),
        ("draining", partial(at.run, "sfroute drain 1 --undo")),
        ("joined", nothing),
    )
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
        ("state", "remove"): lines("sfroute state set 9 Stopped", "sfroute state remove 9"),
        ("workload", "set"): lines("sfroute workload set Busy"),
        ("workload", "get"): lines("sfroute workload get", "sfroute workload get chat game"),
        ("pods",): lines("sfroute pods --links"),
        ("gateways",): gateways(at),
        ("watch",): watched,
        ("top",): last_screen(under_load(at, "sfroute top --count 3 --interval 1")),
        ("doctor",): doctor(at),
        ("drain",): lines("sfroute drain 1", "sfroute drain 1 --undo"),
        ("evacuate",): lines("sfroute evacuate 3 --dry-run", "sfroute evacuate 3 --yes"),
        ("where",): lines("sfroute where grace"),
        ("balance",): balance(at),
        ("rebalance",): lines("sfroute rebalance --dry-run", "sfroute rebalance --yes"),
        ("links",): lines("sfroute link set alan 7 --force", "sfroute links --pod 7"),
        ("forget",): lines("sfroute forget alan --yes"),
        ("prune",): lines("sfroute prune --idle 30d --dry-run"),
    }


def balance(at: World) -> str:
    """After an outage of pod 1. What the evacuation has moved, and where to, is chance: here the plan has one line."""
    for number in range(1200):
        pod = 0 if number % 2 else 1 if number % 6 == 0 else 2
        at.router.set_linked_pod(NAMESPACE, f"user-{number}", SERVICE, pod)
    return at.run("sfroute balance")


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


def gateways(at: World) -> str:
    """With two gateways, of which one waits longer for pods."""
    with ExitStack() as stack:
        for pod_timeout in (6.0, 20.0):
            config = RouterConfig(
                client_name="checkout", placement=PlacementConfig(pod_timeout=pod_timeout)
            )
            router = stack.enter_context(Router.from_url(at.cluster.url, config=config))
            for number in range(100):
                router.get_linked_pod(NAMESPACE, f"user-{number}", SERVICE)
            while not all(lane.healthy for lane in router.stats().lanes):
                time.sleep(0.1)
        time.sleep(1)  # until the first reports have been made
        return at.run("sfroute gateways --name checkout")


def record_local(at: World) -> dict[Words, str]:
    """The commands that open ports of their own."""
    line = "sfroute cluster up --primaries 1 --replicas 0"
    up = at.until(line, ("Ctrl-C ends it", nothing))
    # What it says where the usual ports are taken.
    up = re.sub(r"^sfroute: 16379 .*\n", "", up, flags=re.MULTILINE)
    serve = "sfroute serve --uid-header X-User-Id --upstream 'http://chat-{pod}.chat:8080'"
    # The page shows the usual port; here it may be taken.
    served = at.until(f"{serve} --listen 127.0.0.1:0", ("listening on", nothing))
    served = served.replace(" --listen 127.0.0.1:0", "")
    agent = "sfroute agent --pod 7 -- ./pod"
    minded = at.until(
        agent.replace("-- ./pod", "--drain 0 --listen 127.0.0.1:0 -- sleep 60"),
        ("pod 7 calls", nothing),
    )
    minded = minded.replace("--drain 0 --listen 127.0.0.1:0 -- sleep 60", "-- ./pod")
    return {
        ("agent",): re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:7070", minded),
        ("serve",): re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:7080", served),
        ("cluster", "up"): re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:16379", up),
    }


def record_demo(at: World) -> dict[Words, str]:
    """The demo, which takes half a minute."""
    demo = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:16379", at.process("sfroute demo"))
    return {("demo",): demo}


SESSION: Final = re.compile(r"(?<=^```console\n)\$ sfroute .*?(?=^```$)", re.DOTALL | re.MULTILINE)


def shown() -> dict[Words, str]:
    """The sessions of the page."""
    return {
        tuple(part.partition("\n")[0].split()): found[0]
        for part in re.split(r"^###? ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        if (found := SESSION.findall(part))
    }


def without_sessions(text: str) -> str:
    """What must be the same each time."""
    return SESSION.sub("", text)


# What differs from run to run: numbers, and the padding that depends on their length.
NUMBER: Final = re.compile(r"[\d.,:]*\d[\d.,:]*")
# What differs from machine to machine: whether there was a compiler, and why not.
HALF: Final = re.compile(r"(?<=^ok       lookups ).*(\n {9}.*)*", re.MULTILINE)


def masked(text: str) -> list[str]:
    """The lines of a session without its numbers. In any order: the busiest primary comes first."""
    without_tokens = re.sub(r'"(by|confirmed)":"[\w ]+"', "", text)
    lines = NUMBER.sub("N", HALF.sub("", without_tokens)).splitlines()
    return sorted(" ".join(line.split()) for line in lines if line.strip())


def check_sessions() -> int:
    """Run all sessions and compare them with those of the page."""
    with world() as at:
        sessions = record(at) | record_local(at)
    differing = 0
    for words, old in shown().items():
        new = sessions.get(words)
        if new is None:
            assert words == ("demo",)
        elif masked(new) != masked(old):
            differing += 1
            sys.stderr.write(f"sfroute {' '.join(words)} has changed:\n{new}\n")
    return 1 if differing else 0


def up_to_date() -> bool:
    """True if the page says what the program does, its sessions apart."""
    text = page(dict.fromkeys(commands(), "$ sfroute ..."))
    return without_sessions(text) == without_sessions(PAGE.read_text(encoding="utf-8"))


def main() -> int:
    """Write the page, or check it."""
    if sys.argv[1:] == ["--check-sessions"]:
        return check_sessions()
    if sys.argv[1:] == ["--check"]:
        if up_to_date():
            return 0
        sys.stderr.write(f"{PAGE} is out of date; run: make docs-cli\n")
        return 1
    wanted = [tuple(name.split()) for name in sys.argv[1:]]
    with world() as at:
        made = record(at) | record_local(at)
        if not wanted or ("demo",) in wanted:
            made |= record_demo(at)
    kept = {words: old for words, old in shown().items() if wanted and words not in wanted}
    PAGE.write_text(page(made | kept), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
