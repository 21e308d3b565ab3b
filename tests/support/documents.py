"""The documents, block by block: every fenced block is found here, and run or checked by some test.

``block(page, language, number)`` is how a test gets at one; ``documents/test_every_block.py`` finds those calls and
complains of blocks that nobody asks for.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from .processes import Child

ROOT: Final = Path(__file__).parents[2]
URLS: Final = re.compile(r"redis\+cluster://10\.0\.0\.\d[0-9.:,]*\d")
"""The example addresses of the documents; the tests put a real cluster in their place, and change nothing else."""

_FENCE: Final = re.compile(r"^( *)(`{3,})(.*)$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of its file, from the top of the repository.
        line: the line of its first character in that file, from 1.
        language: the word after the fence; empty if there is none.
        text: what is in it.
        before: the last line of prose above it.
    """

    page: str
    line: int
    language: str
    text: str
    before: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ({self.language or 'no language'})"


def pages() -> list[str]:
    """Every document, by its path from the top of the repository."""
    found = [*ROOT.glob("*.md"), *(ROOT / "lua_scripts").glob("*.md")]
    for folder in ("docs", "examples"):
        found += (ROOT / folder).rglob("*.md")
    # What npm has installed is other people's.
    ours = [path for path in found if "node_modules" not in path.parts]
    return sorted(path.relative_to(ROOT).as_posix() for path in ours)


@cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """The fenced blocks of a page, in order."""
    found = []
    opened: tuple[str, str, str, int] | None = None
    lines: list[str] = []
    before = ""
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened = (fence[1], fence[2], fence[3].strip(), number + 1)
                lines = []
            elif line.strip():
                before = line
        elif fence and fence[2] == opened[1] and not fence[3]:
            indent, _, language, first = opened
            text = "".join(f"{entry.removeprefix(indent)}\n" for entry in lines)
            found.append(Block(page, first, language, text, before))
            opened = None
        else:
            lines.append(line)
    assert opened is None, f"{page}: a block is not closed"
    return tuple(found)


def block(page: str, language: str, number: int) -> Block:
    """One block of a page, counted among those of its language from 0."""
    return [found for found in blocks_of(page) if found.language == language][number]


# --- Python


class _Told(ast.NodeTransformer):
    """Lets every statement tell that it is run."""

    def __init__(self) -> None:
        self.lines: set[int] = set()

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                setattr(node, name, [new for old in statements for new in self._telling(old)])
        return node

    def _telling(self, statement: ast.stmt) -> Iterator[ast.stmt]:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not docstring or statement.value.value is ...:  # type: ignore[attr-defined]  # it is an Expr
            self.lines.add(statement.lineno)
            yield ast.copy_location(ast.parse(f"__ran__({statement.lineno})").body[0], statement)
        yield statement


@contextmanager
def executed(
    found: Block, url: str = "", given: Mapping[str, object] | None = None
) -> Iterator[dict[str, Any]]:
    """Execute a Python block; what it has defined. When the context ends, every statement must have run.

    ``url`` takes the place of the example addresses.
    """
    source = URLS.sub(url, found.text) if url else found.text
    tree = ast.increment_lineno(ast.parse(source), found.line - 1)
    told = _Told()
    tree = ast.fix_missing_locations(told.visit(tree))
    ran: set[int] = set()
    names: dict[str, Any] = {"__name__": "__document__", "__ran__": ran.add, **(given or {})}
    exec(compile(tree, str(ROOT / found.page), "exec"), names)
    yield names
    left_out = sorted(told.lines - ran)
    assert not left_out, f"{found.page}: no test runs lines {left_out}"


# --- the shell


@dataclass(frozen=True, slots=True)
class Typed:
    """A command of a console block, and what the block shows after it."""

    command: str
    shown: tuple[str, ...]


def typed(found: Block) -> list[Typed]:
    """The commands of a console block; a line that ends with a backslash goes on."""
    commands: list[tuple[str, list[str]]] = []
    continued = False
    for line in found.text.splitlines():
        if continued:
            commands[-1] = (f"{commands[-1][0][:-1]}{line.strip()}", commands[-1][1])
        elif line.startswith("$ "):
            commands.append((line[2:], []))
        else:
            assert commands, f"{found} begins with what no command shows"
            commands[-1][1].append(line)
        continued = not commands[-1][1] and commands[-1][0].endswith("\\")
    return [Typed(command, tuple(shown)) for command, shown in commands]


class Terminal:
    """A shell in a folder: it remembers variables and jobs from one command to the next."""

    _END: Final = "--- end of the command ---"

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        # `python` and `sfroute` are those of this environment.
        path = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
        self._shell = Child(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env={**environment, "PATH": path},
        )

    def run(self, command: str) -> list[str]:
        """Type a command; the lines it shows."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{command}\necho '{self._END}'\n")
        self._shell.stdin.flush()
        shown: list[str] = []
        for line in self._shell.stdout:
            if line.rstrip("\n") == self._END:
                return shown
            shown.append(line.rstrip("\n"))
        raise AssertionError(f"the shell ended at {command!r}: {shown}")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and its jobs."""
        try:
            self._shell.communicate("kill -9 $(jobs -p) 2>/dev/null; wait 2>/dev/null\n", 20)
        finally:
            self._shell.end()


_MASKS: Final = (
    (re.compile(r"127\.0\.0\.1:\d+(,127\.0\.0\.1:\d+)*"), "ADDRESS"),
    (re.compile(r"\d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\d[\d,]*\.\d+"), "N.N"),
    (re.compile(r"\s+"), " "),
)


def same(shown: Iterator[str] | tuple[str, ...] | list[str]) -> list[str]:
    """Lines without what differs from run to run: addresses, times, fractions, the width of columns."""
    lines = []
    for line in shown:
        for pattern, mask in _MASKS:
            line = pattern.sub(mask, line)  # noqa: PLW2901
        lines.append(line.strip())
    return lines
