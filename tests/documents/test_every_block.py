"""No block of any document is left to itself.

Console blocks are checked command by command, whichever page they are on (``test_commands.py``). Every other block must
be asked for by a test, as ``block(page, language, number)``; those calls are looked for in the sources of the tests.
"""

from __future__ import annotations

import ast
import json
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.documents import ROOT, Block, block, blocks_of, executed, pages, same, typed

TESTS = ROOT / "tests"

GENERATED = {
    ("docs/reference/cli.md", "text"): "tools/cli_sessions.py",
    ("docs/reference/scripts.md", "text"): "tools/reference_pages.py",
}
"""Blocks that a program writes, which a test runs with --check."""

NOT_RUN = {
    ("lua_scripts/README.md", "go"): "needs a Go compiler and go-redis",
    ("lua_scripts/README.md", "java"): "needs a JDK and Jedis",
}
"""What the environment of the tests has no means to run; its keys and arguments are checked below."""

BLOCKS = [found for page in pages() for found in blocks_of(page)]
OTHERS = [found for found in BLOCKS if found.language != "console"]


def literal(node: ast.expr, constants: dict[str, Any]) -> Any:
    """The value of an argument: written there, or a constant of the module."""
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    return node.value if isinstance(node, ast.Constant) else None


def asked_for_in(source: Path) -> Iterator[tuple[str, str, int]]:
    """The blocks that a test module asks for."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    constants = {
        statement.targets[0].id: statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id == "block" and len(node.args) == 3:
            page, language, number = (literal(argument, constants) for argument in node.args)
            if isinstance(page, str) and isinstance(language, str) and isinstance(number, int):
                yield page, language, number


@cache
def asked_for() -> frozenset[tuple[str, str, int]]:
    return frozenset(
        asked
        for source in TESTS.rglob("*.py")
        if source != Path(__file__)
        for asked in asked_for_in(source)
    )


def name(found: Block) -> tuple[str, str, int]:
    of_its_kind = [other for other in blocks_of(found.page) if other.language == found.language]
    return found.page, found.language, of_its_kind.index(found)


@pytest.mark.slow
@pytest.mark.parametrize("found", OTHERS, ids=str)
def test_somebody_looks_at_it(found: Block) -> None:
    assert found.language, f"{found}: say what it is; `text` if it is nothing that runs"
    kind = (found.page, found.language)
    assert name(found) in asked_for() or kind in GENERATED or kind in NOT_RUN, (
        f"{found}: no test asks for block{name(found)}"
    )


def test_what_is_asked_for_is_there() -> None:
    there = {name(found) for found in BLOCKS}
    assert asked_for() - there == set()


def test_the_exceptions_are_needed() -> None:
    there = Counter((found.page, found.language) for found in BLOCKS)
    for kind in (*GENERATED, *NOT_RUN):
        assert there[kind], f"there is no such block any more: {kind}"
    for program in GENERATED.values():
        assert (ROOT / program).is_file()


@pytest.mark.parametrize(
    "found", [found for found in BLOCKS if found.language in {"toml", "yaml", "json"}], ids=str
)
def test_it_can_be_read(found: Block) -> None:
    read: dict[str, Any] = {"toml": tomllib.loads, "json": json.loads}
    if found.language == "yaml":
        read["yaml"] = pytest.importorskip("yaml", reason="PyYAML is not installed").safe_load
    assert read[found.language](found.text)


@pytest.mark.parametrize("kind", NOT_RUN, ids=str)
def test_a_block_that_is_not_run_calls_the_script_as_its_head_says(kind: tuple[str, str]) -> None:
    found = block(*kind, 0)
    words = found.text.replace("`", '"')
    assert "statefulTrySetLink" in (ROOT / kind[0]).read_text(encoding="utf-8")
    # The link's key comes before the uid's hash; service, pod, persist_seconds follow.
    assert words.index("hash + service") < words.index("hash", words.index("hash + service") + 4)
    after = words[words.index("hash + service") :]
    assert after.index("service") < after.index("pod") < after.index("-1")
    assert "sf:{" in words
    assert "lk:" in words


# --- the finder itself


def test_a_statement_that_does_not_run_is_complained_of() -> None:
    found = Block(
        "a.md", 10, "python", "def f(x):\n    if x:\n        return 1\n    return 2\n", ""
    )
    with (
        pytest.raises(AssertionError, match=r"a\.md: no test runs lines \[12\]"),
        executed(found) as names,
    ):
        assert names["f"](False) == 2
    with executed(found) as names:
        assert (names["f"](True), names["f"](False)) == (1, 2)


def test_commands_and_what_they_show_are_told_apart() -> None:
    found = Block("a.md", 1, "console", "$ one \\\n    --two\nshown\n$ three\n", "")
    assert [(entry.command, entry.shown) for entry in typed(found)] == [
        ("one --two", ("shown",)),
        ("three", ()),
    ]
    with pytest.raises(AssertionError, match="begins with what no command shows"):
        typed(Block("a.md", 1, "console", "shown\n", ""))


def test_what_differs_from_run_to_run_is_masked() -> None:
    assert same(["at 127.0.0.1:6379,127.0.0.1:1  12:30:01  0.25 s", "  3 of 4"]) == [
        "at ADDRESS TIME N.N s",
        "3 of 4",
    ]
