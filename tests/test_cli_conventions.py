"""What holds of every command: JSON, where it is told, mistakes, a store that is not there, colours, completion."""

from __future__ import annotations

import errno
import inspect
import json
import os
import pty
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import catalogue
import pytest
import redis
from support.command import COMMAND, Operator, commands, environment, sfroute, writer
from support.processes import Child, read_until

from sfroute import Router, StoreUnavailable
from sfroute._net.causes import what_the_system_said
from sfroute.embedded import LocalCluster

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import cli_sessions  # noqa: E402

COMMANDS = dict(commands())
WITHOUT_STORE = {("demo",), ("cluster", "up")}
"""They bring their own."""
WITHOUT_NAMESPACE = {("gateways",)}
"""A router's connection belongs to no namespace."""
ARGUMENTS = {
    words: next(
        (
            list(row.cli[len(words) :])
            for row in catalogue.OPERATIONS
            if isinstance(row.cli, tuple) and row.cli[: len(words)] == words
        ),
        catalogue.COMMANDS_OF_THEIR_OWN.get(words, ([], ""))[0],
    )
    for words in COMMANDS
}
"""What each needs."""
ON_THE_STORE = [words for words in COMMANDS if words not in WITHOUT_STORE]
WAYS_TO_THE_STORE = [
    *(("route",), ("link", "set"), ("link", "batch"), ("state", "get"), ("watch",), ("top",)),
    *(("evacuate",), ("doctor",)),
]
"""The others go one of these ways, and each waits for five seconds."""


def options(command: Any) -> dict[str, Any]:
    return {name: parameter for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_its_options_and_says_what_it_does(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    found = options(command)
    assert "--json" in found
    if words not in WITHOUT_STORE:
        for name in ("url", *(() if words in WITHOUT_NAMESPACE else ("namespace",))):
            assert found[f"--{name}"].envvar in (
                f"SFROUTE_{name.upper()}",
                [f"SFROUTE_{name.upper()}"],
            )
    assert inspect.getdoc(command.callback)
    assert all(parameter.help for name, parameter in found.items() if name.startswith("--"))


@pytest.mark.parametrize("words", ON_THE_STORE, ids=" ".join)
def test_what_is_missing_or_wrong_is_told_with_exit_code_2(words: tuple[str, ...]) -> None:
    arguments = [*words, *ARGUMENTS[words]]
    done = sfroute(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "SFROUTE_URL" in done.err
    for url in ("redis://user:hunter2@:", "hunter2", "redis://:hunter2@a/7", "redis://hunter2@a@b"):
        done = sfroute(*arguments, SFROUTE_NAMESPACE="n", SFROUTE_SERVICE="s", SFROUTE_URL=url)
        assert (done.code, done.out) == (2, "")
        assert "hunter2" not in done.err
        assert "Traceback" not in done.err
    if words in WITHOUT_NAMESPACE:
        return
    done = sfroute(*arguments, "--namespace", "a:b", SFROUTE_SERVICE="s", SFROUTE_URL="redis://a")
    assert (done.code, done.out) == (2, "")
    assert "namespace must not contain" in done.err


AT_ONCE = """
import json, os, sys
import sfroute.cli.app  # once for all

folder, commands = sys.argv[1], json.loads(sys.argv[2])
children = []
for number, words in enumerate(commands):
    child = os.fork()
    if not child:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{number}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
        sys.argv[1:] = words
        sfroute.cli.main()
    children.append(child)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


@pytest.mark.slow
def test_a_store_that_is_not_there_ends_a_command_with_1_without_its_password(
    tmp_path: Path,
) -> None:
    variables = environment(
        SFROUTE_URL="redis+cluster://user:hunter2@127.0.0.1:1",
        SFROUTE_NAMESPACE="n",
        SFROUTE_SERVICE="s",
    )
    # At once: each waits for its deadline.
    running = [[*words, *ARGUMENTS[words], "--json"] for words in WAYS_TO_THE_STORE]
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, str(tmp_path), json.dumps(running)],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    for number, (words, code) in enumerate(
        zip(WAYS_TO_THE_STORE, json.loads(done.stdout), strict=True)
    ):
        out, err = ((tmp_path / f"{number}.{name}").read_text() for name in ("out", "err"))
        # Its being away is what the doctor finds.
        told = out if words == ("doctor",) else err
        assert code == 1, words
        assert re.search(r"no (start node|answer)", told), words
        if words not in {("doctor",), ("link", "batch")}:
            assert "(Connection refused)" in err, words
            assert err.endswith("\nsfroute: to see what is wrong: sfroute doctor\n"), words
        assert out == "" or words == ("doctor",), words
        assert "hunter2" not in out + err
        assert "Traceback" not in err


def test_why_a_server_cannot_be_reached_is_told_in_the_words_of_the_system() -> None:
    def chain(*errors: Exception) -> Exception:
        for error, cause in pairwise(errors):
            error.__cause__ = cause
        return errors[0]

    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)")
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    untrusted = ssl.SSLCertVerificationError(1, "certificate verify failed")
    for cause, said in [
        (refused, "Connection refused"),
        (unknown, "Name or service not known"),
        (untrusted, "certificate verify failed"),
        (TimeoutError(), "no answer in time"),
        (ValueError("a reply that may hold a uid"), ""),
    ]:
        error = chain(StoreUnavailable("gone"), redis.ConnectionError("x"), cause)
        assert what_the_system_said(error) == said
    assert what_the_system_said(StoreUnavailable("gone")) == ""


def test_help_has_a_short_name() -> None:
    for words in ([], ["link"], ["link", "get"]):
        assert sfroute(*words, "-h") == sfroute(*words, "--help")


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    """With a pod, and a user who is linked to it."""
    with Router.from_url(sfroute_cluster.url) as router:
        operator = Operator(router, sfroute_cluster.url, sfroute_namespace)
        operator.report(0)
        operator.link("ada", 0)
        yield operator


@pytest.mark.parametrize(
    ("unbuffered", "words"),
    [
        *((False, ["--help"]), (False, ["--version"]), (False, ["pods"])),
        *((False, ["pods", "--json"]), (False, ["link", "get", "ada"]), (False, ["route", "ada"])),
        *((False, ["doctor"]), (False, ["top"])),
        *((True, ["--help"]), (True, ["pods"]), (True, ["route", "ada"])),
    ],
)
def test_a_reader_that_went_away_ends_it_with_141(
    operator: Operator, unbuffered: bool, words: list[str]
) -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    done = operator(*words, stdout=writer(pipe, unbuffered=unbuffered))
    os.close(pipe)
    assert (done.code, done.err) == (141, "")


FULL = "sfroute: the output could not be written (No space left on device)\n"
NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@NEEDS_FULL
@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["pods", "--json"], ["route", "ada"]])
def test_a_full_disk_is_told(operator: Operator, words: list[str], unbuffered: bool) -> None:
    with Path("/dev/full").open("w") as full:
        done = operator(*words, stdout=writer(full.fileno(), unbuffered=unbuffered))
    assert (done.code, done.err) == (1, FULL)


@pytest.mark.slow
@NEEDS_FULL
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_exit_of_the_interpreter_adds_nothing_to_it(
    operator: Operator, unbuffered: str
) -> None:
    variables = environment(**operator.variables, PYTHONUNBUFFERED=unbuffered)
    reader, pipe = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full:
        for output, code, told in ((pipe, 141, ""), (full.fileno(), 1, FULL)):
            done = subprocess.run(
                [*COMMAND, "pods"],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (code, told)
    os.close(pipe)


@pytest.mark.slow
def test_what_the_caller_has_closed_is_not_missed(operator: Operator) -> None:
    command = f"{' '.join(COMMAND)} route"
    for closed in ("<&-", "<&- >&-", "<&- 2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            f"{command} {closed}",
            shell=True,
            env=environment(**operator.variables),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_command_that_is_told_to_end_gives_the_terminal_back(operator: Operator) -> None:
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        inner, outer = pty.openpty()
        variables = environment(**operator.variables, TERM="xterm")
        with Child(
            [*COMMAND, "top"], env=variables, stdin=outer, stdout=outer, stderr=outer
        ) as running:
            os.close(outer)
            seen = read_until(inner, b"pod 0")
            assert b"\x1b[?1049h" in seen  # a screen of its own, without a cursor
            assert b"\x1b[?25l" in seen
            running.send_signal(number)
            seen = read_until(inner, None)
            assert running.wait() == code
        assert seen.index(b"\x1b[?25h") < seen.index(b"\x1b[?1049l")
        os.close(inner)


def test_an_interruption_before_the_command_has_begun_is_one_too() -> None:
    program = "import sys, sfroute.cli; sys.modules['sfroute.cli.app'] = Late(); sfroute.cli.main()"
    late = """
class Late:
    def __getattr__(self, name):
        raise KeyboardInterrupt
"""
    done = subprocess.run(
        [sys.executable, "-c", late + program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_colours_are_for_terminals(operator: Operator) -> None:
    for command in ("pods", "doctor"):
        piped = operator(command, TERM="xterm", NO_COLOR="")
        assert "\x1b" not in piped.out + piped.err
        assert on_terminal(operator, command, NO_COLOR="").count("\x1b[1m") > 0
        plain = on_terminal(operator, command, NO_COLOR="1")
        assert not re.search(r"\x1b\[3[0-9]m", plain)


def on_terminal(operator: Operator, command: str, **variables: str) -> str:
    """What it writes to a terminal."""
    inner, outer = pty.openpty()
    with ThreadPoolExecutor(1) as reader:
        # Read meanwhile: a terminal that nobody reads takes no more.
        shown = reader.submit(read_until, inner, None)
        try:
            done = operator(command, stdout=writer(outer), TERM="xterm", **variables)
        finally:
            os.close(outer)
        seen = shown.result().decode()
    os.close(inner)
    assert done.code == 0
    return seen


def test_the_page_on_the_command_is_what_the_program_says() -> None:
    """Every command with every option."""
    assert cli_sessions.up_to_date(), "run: make docs-cli"
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    for words, command in COMMANDS.items():
        (section,) = re.findall(
            rf"^##+ {' '.join(words)}\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE
        )
        assert f"$ sfroute {' '.join(words)}" in section
        own = set(options(command)) - {"--url", "--namespace", "--service", "--json", "--help"}
        assert [name for name in own if name[0] == "-" and f"`{name}`" not in section] == []
        assert "Traceback" not in section
        assert re.search(r"127\.0\.0\.1:(?!16379|70[78]0|8080)", section) is None


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_shells_can_complete(shell: str) -> None:
    done = subprocess.run(
        [*COMMAND, "--show-completion", shell],
        # The name that completion is asked for under; the shell itself need not be there.
        env=environment(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "_SFROUTE_COMPLETE" in done.stdout


def test_completion_knows_the_commands() -> None:
    done = subprocess.run(
        COMMAND,
        env=environment(
            _SFROUTE_COMPLETE="complete_bash", COMP_WORDS="sfroute link se", COMP_CWORD="2"
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(done.stdout.split()) == {"set", "set-if-absent", "services"}
