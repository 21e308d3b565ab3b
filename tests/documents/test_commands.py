"""Every command in every console block is one that can be given.

Those with an effect worth showing are run by the tests of their pages. Here each is looked at: the target is in the
Makefile, the program takes these options, the extra exists. A command of a kind that nobody knows is a failure.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import typer.main
from support.documents import ROOT, Typed, blocks_of, pages, typed

from sfroute.cli.app import app

COMMANDS = [
    pytest.param(entry, id=f"{found.page}:{found.line}: {entry.command[:60]}")
    for page in pages()
    for found in blocks_of(page)
    if found.language == "console"
    for entry in typed(found)
]

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SFROUTE: Any = typer.main.get_command(app)
VARIABLES = {"SFROUTE_URL", "SFROUTE_NAMESPACE", "SFROUTE_SERVICE"}

CLONE = {".", "/path/to/sfroute"}
"""How the documents call it where pip installs from it."""

NOT_LOOKED_AT = {
    r"python3? -m venv ": "Python's own",
    r"\. \w+/bin/activate": "made by the line above it",
    r"(\S+/)?pip install arize-phoenix": "855 MB, which only this picture needs",
    r"(\w+=\S+ )*ddtrace-run ": "only Datadog's users need it",
    r"apt-get install ": "changes the machine, and needs a network",
    r"(kubectl|helm) ": "there is no Kubernetes in the tests",
    r"docker ": "there is no Docker in the tests; `make test-deploy` reads the file",
    r"git ": "changes the clone",
}
"""Commands of which nothing can be checked here, and why."""


def make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    for word in words:
        variable, given, _ = word.partition("=")
        if given:
            assert re.search(rf"\$[({{]{variable}[)}}]", MAKEFILE), f"{variable} is not used"
        else:
            assert word in targets, f"there is no target {word}"


def sfroute(words: list[str]) -> None:
    """The program itself reads it, without running it."""
    command = SFROUTE
    called = ["sfroute"]
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            break  # `sfroute --version`
        assert words[0] in command.commands, f"there is no {' '.join([*called, words[0]])}"
        command = command.commands[words[0]]
        called.append(words.pop(0))
    options = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}
    for word in words:
        if word == "--":
            break  # what follows is another program's
        if word.startswith("-") and not word.lstrip("-").isdigit():
            assert word.partition("=")[0] in options, f"{' '.join(called)} has no {word}"


def pip(words: list[str]) -> None:
    assert words.pop(0) == "install"
    known = {"pytest", "pytest-asyncio"}
    for requirement in words:
        package, _, extras = requirement.removesuffix("]").partition("[")
        assert package != "sfroute", "it is not on the package index: say where the clone is"
        if package in CLONE:
            offered = PROJECT["project"]["optional-dependencies"]
            assert set(filter(None, extras.split(","))) <= set(offered), requirement
        else:
            assert package in known, f"why is {package} installed?"


def python(words: list[str]) -> None:
    if words[0] == "-m":
        module = words[1].replace(".", "/")
        assert words[1] in {"pytest", "http.server"} or any(
            (ROOT / f"{module}{ending}").is_file() for ending in (".py", "/__main__.py")
        ), words[1]
        return
    if words[0] in {"pod.py", "gateway.py"}:  # the reader's own, in the tutorial
        return
    source = (ROOT / words[0]).read_text(encoding="utf-8")
    options = [word.partition("=")[0][2:] for word in words[1:] if word.startswith("--")]
    # The name of an option, or of the variable it is read into.
    named = [
        option
        for option in options
        if not re.search(rf"\b{re.sub('[-_]', '[-_]', option)}\b", source)
    ]
    assert named == [], f"{words[0]} has no such option"


def export(words: list[str]) -> None:
    assert {word.partition("=")[0] for word in words} <= VARIABLES


def sed(words: list[str]) -> None:
    """Of the dashboards: their tests run it."""
    assert words[-1] == "alerting.yml"


def plain(words: list[str]) -> None:
    """What a shell has, in a session that its page's test runs."""


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "make": make,
    "sfroute": sfroute,
    "pip": pip,
    "python": python,
    "export": export,
    "sed": sed,
    "gunicorn": plain,
    "cd": plain,
    "echo": plain,
    "kill": plain,
    "sleep": plain,
    "wait": plain,
}


def simple_commands(line: str) -> list[list[str]]:
    """The commands of a line, without redirections, comments and assignments before them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    commands: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if redirected:
            redirected = False
        elif set(word) <= set("<>"):
            redirected = True
        elif set(word) <= set("|&;"):
            commands.append([])
        elif commands[-1] or not re.match(r"[A-Z_]+=", word):
            commands[-1].append(word)
    return [command for command in commands if command]


@pytest.mark.parametrize("entry", COMMANDS)
def test_it_can_be_given(entry: Typed) -> None:
    commands = simple_commands(entry.command)
    assert commands, "a line without a command"
    for words in commands:
        line = " ".join(words)
        if any(re.match(pattern, line) for pattern in NOT_LOOKED_AT):
            continue
        program = words[0].rpartition("/")[2]
        assert program in PROGRAMS, f"nobody knows whether {line!r} works"
        PROGRAMS[program](words[1:])


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "sfroute route --nothing",
        "sfroute nothing",
        "pip install 'sfroute[cli]'",
        "pip install '.[nothing]'",
    ],
)
def test_what_cannot_be_given_is_seen(line: str) -> None:
    ((program, *words),) = simple_commands(line)
    with pytest.raises(AssertionError):
        PROGRAMS[program](words)


def test_a_line_of_a_shell_is_taken_apart() -> None:
    line = "A=1 sfroute route --json < 'uids.txt' | sed 's|a|b|' & wait; echo x  # why"
    assert simple_commands(line) == [
        ["sfroute", "route", "--json"],
        ["sed", "s|a|b|"],
        ["wait"],
        ["echo", "x"],
    ]
