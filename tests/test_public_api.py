"""The public interface is the one in public_api.txt; what the text shows of it is enough to see each change."""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from support.public_api import MODULES, SNAPSHOT, describe, public_names, render
from support.typed_calls import TYPED_CALLS, typed_calls

from sfroute import AsyncRouter, Router

TYPING: Final = Path(__file__).parent / "typing_of_public_api.py"


def test_the_public_interface_is_as_written() -> None:
    written = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    difference = list(
        difflib.unified_diff(written, render().splitlines(), "as written", "as it is", lineterm="")
    )
    if difference:
        told = "the public interface has changed; if that is meant: make api, and CHANGELOG.md\n\n"
        pytest.fail(told + "\n".join(difference), pytrace=False)


def test_type_checkers_are_shown_every_operation_as_it_is() -> None:
    written, now = (
        ast.unparse(ast.parse(text))
        for text in (TYPED_CALLS.read_text(encoding="utf-8"), typed_calls())
    )
    difference = list(
        difflib.unified_diff(
            written.splitlines(), now.splitlines(), "as written", "as it is", lineterm=""
        )
    )
    if difference:
        pytest.fail("make api, then make types\n\n" + "\n".join(difference), pytrace=False)


def test_type_checkers_are_shown_every_public_name() -> None:
    shown = {
        f"{node.module}.{name.name}"
        for node in ast.walk(ast.parse(TYPING.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    promised = {
        f"{module}.{name}"
        for module in MODULES
        for name in public_names(importlib.import_module(module)) - {"__version__"}
    }
    assert promised - shown == set()


@pytest.mark.parametrize("front", [AsyncRouter, Router])
def test_a_router_shows_nothing_but_what_is_promised(front: type[AsyncRouter | Router]) -> None:
    router = front.from_url("redis://127.0.0.1:1")
    _, _, rest = SNAPSHOT.read_text(encoding="utf-8").partition(f"\nclass {front.__name__}:\n")
    promised = rest.partition("\n\n")[0]
    names = re.findall(r"^    (?:async def |def |property )?(\w+)[(: ]", promised, re.MULTILINE)
    shown = {each for each in dir(router) if not each.startswith("_")}
    assert shown == {name for name in names if not name.startswith("_")} - {"async", "with"}


class Base:
    def inherited(self) -> None: ...


class Example(Base):
    LIMIT = 3

    def __init__(self, given: int, *, made: str = "x") -> None:
        self.given = given
        self.other: bytes = made.encode()
        self._hidden = 1

    def __enter__(self) -> Example:
        return self

    @property
    def size(self) -> int:
        return 1

    @classmethod
    def make(cls, url: str) -> Example:
        return cls(1)

    @staticmethod
    def free() -> None: ...

    async def wait(
        self, first: int, /, *rest: int, last: float | None = None, largest: float, **more: object
    ) -> None: ...

    def long(
        self, one: dict[str, int], two: dict[str, int], three: dict[str, int], four: str = "abcd"
    ) -> None: ...

    def _hidden_method(self) -> None: ...


@dataclass(frozen=True)
class Record:
    name: str
    size: int = 0
    parts: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    left: int
    right: str = "r"


def function(only: int, *, keyword: str = "k") -> None: ...


def test_a_class_is_told_with_all_that_its_users_see() -> None:
    assert describe("Example", Example) == [
        "class Example(Base):",
        "    def __init__(given: int, *, made: str = 'x') -> None",
        "    given: int",
        "    other: bytes",
        "    LIMIT = 3",
        "    with -> Example",
        "    @staticmethod",
        "    def free() -> None",
        "    def long(",
        "        one: dict[str, int],",
        "        two: dict[str, int],",
        "        three: dict[str, int],",
        "        four: str = 'abcd',",
        "    ) -> None",
        "    @classmethod",
        "    def make(url: str) -> Example",
        "    property size -> int",
        "    async def wait(",
        "        first: int,",
        "        /,",
        "        *rest: int,",
        "        last: float | None = None,",
        "        largest: float,",
        "        **more: object,",
        "    ) -> None",
    ]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            Record,
            [
                *("@dataclass(frozen=True)", "class value:"),
                *("    name: str", "    size: int = 0", "    parts: list[str] = list()"),
            ],
        ),
        (Pair, ["class value(NamedTuple):", "    left: int", "    right: str = 'r'"]),
        (function, ["def value(only: int, *, keyword: str = 'k') -> None"]),
        (-1, ["value = -1"]),
        (Callable[[int], Any], ["value = Callable[[int], Any]"]),
    ],
)  # fmt: skip
def test_everything_else_too(value: object, told: list[str]) -> None:
    assert describe("value", value) == told
