"""The public interface is the one in public_api.txt; what the text shows of it is enough to see each change."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from public_api import INTERNAL, SNAPSHOT, describe, render

import sfroute


def test_the_public_interface_is_as_written() -> None:
    written = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    difference = list(
        difflib.unified_diff(written, render().splitlines(), "as written", "as it is", lineterm="")
    )
    if difference:
        told = "the public interface has changed; if that is meant: make api, and CHANGELOG.md\n\n"
        pytest.fail(told + "\n".join(difference), pytrace=False)


def test_what_is_left_out_is_there_and_no_part_of_it() -> None:
    for name in ("AsyncRouter", "Router"):
        for internal in INTERNAL[name]:
            member = inspect.getattr_static(getattr(sfroute, name), internal)
            words = inspect.getdoc(getattr(member, "__func__", member)) or ""
            assert re.search("no part of the public|For the (sync front|pod agent)", words), (
                internal
            )


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
