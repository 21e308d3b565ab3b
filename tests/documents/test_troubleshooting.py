"""The page on messages: every class of error and every code is there, and every text is one that the code has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.documents import ROOT

from sfroute import errors
from sfroute._contract import error_replies

PAGE = (ROOT / "docs/reference/troubleshooting.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
PACKAGE = ROOT / "sfroute"

SHOWN_BY_COMMANDS = {"cli", "embedded"}
"""Rooms whose texts are read where they are caused: at a terminal, in a test."""
NAME_THEIR_RULE = {"ConfigError", "InvalidArgument"}
"""Each of these has one text for each rule, which it states."""
TOLD_ONE_BY_ONE = set(errors.__all__) - NAME_THEIR_RULE


def spoken(node: ast.expr) -> str | None:
    """A text of the code, with `…` where something is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(spoken(part) or "…" for part in node.values)
    return None


@cache
def texts() -> frozenset[str]:
    """Every text that the package has."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.expr) and (text := spoken(node)):
                found.add(text)
    return frozenset(found)


def raised() -> Iterator[tuple[str, str, Path]]:
    """Class, text and file of each error that is made with a text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in SHOWN_BY_COMMANDS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                text = spoken(node.args[0])
                # One whose words are all put in stands elsewhere in the code.
                if text and text.strip("…: ") and node.func.id in TOLD_ONE_BY_ONE:
                    yield node.func.id, text, path.relative_to(ROOT)


def quoted(section: str) -> list[str]:
    """The texts in the first column of a section's tables."""
    cells = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("name", errors.__all__)
def test_every_class_of_error_has_a_section(name: str) -> None:
    assert f"`{name}`" in SECTIONS


@pytest.mark.slow
def test_the_texts_of_the_page_are_those_of_the_code() -> None:
    words = [
        text
        for name in [*(f"`{name}`" for name in errors.__all__), "What a server was like"]
        for text in quoted(SECTIONS[name])
    ]
    assert len(words) > 30
    # A name is one that is put in.
    unknown = [
        text
        for text in words
        if " " in text and not any(as_said(text).search(said) for said in texts())
    ]
    assert unknown == []


def as_said(text: str) -> re.Pattern[str]:
    """`…` stands for anything, also for words that the code has in one place."""
    return re.compile(".*".join(re.escape(part.strip()) for part in text.split("…")), re.DOTALL)


@pytest.mark.parametrize(("name", "text", "path"), [*raised()], ids=str)
def test_every_text_of_the_store_and_of_routers_is_on_the_page(
    name: str, text: str, path: Path
) -> None:
    assert any(as_said(quote).search(text) for quote in quoted(SECTIONS[f"`{name}`"])), (
        f"{path}: {name}({text!r}) is not on the page"
    )


def test_every_code_of_a_server_is_on_the_page() -> None:
    known = (
        set(error_replies._MEANINGS) | set(error_replies._KINDS) | set(error_replies._OTHER_CODES)
    )
    assert set(quoted(SECTIONS["Codes"])) == known | {"SFARG"}


def test_codes_are_retried_as_the_page_says() -> None:
    rows = re.findall(r"^\| (`.+?) \| .+ \| (.+?) \|$", SECTIONS["Codes"], re.MULTILINE)
    said = {code: yes for codes, yes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert {code for code, yes in said.items() if yes == "yes"} == set(error_replies.RETRIED_CODES)
