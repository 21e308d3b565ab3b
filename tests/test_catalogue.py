"""Nothing that sfroute does is left out of the catalogue, and its rows are true."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import catalogue
import pytest
from catalogue import AGENT_OPERATIONS, OPERATIONS, REPEATABLE_COMMANDS, SCRIPTS
from support.command import commands
from support.model import Model
from support.peer import Peer, script_reply
from support.program import SCRIPT_FOLDER, source_of
from support.rows import Operation, Script

import sfroute
from sfroute import AsyncPodAgent, AsyncRouter, CacheConfig, RouterConfig, SfrouteError
from sfroute._contract import scripts

PACKAGE = Path(sfroute.__file__).parent
ROWS = [
    *(pytest.param(AsyncRouter, row, id=row.name) for row in OPERATIONS),
    *(pytest.param(AsyncPodAgent, row, id=f"agent.{row.name}") for row in AGENT_OPERATIONS),
]
EVERY_SCRIPT = pytest.mark.parametrize("row", SCRIPTS, ids=lambda row: row.name)


# --- nothing is missing


@pytest.mark.parametrize(
    ("front", "rows"), [(AsyncRouter, OPERATIONS), (AsyncPodAgent, AGENT_OPERATIONS)]
)
def test_every_public_member_has_a_row(front: type, rows: tuple[Operation, ...]) -> None:
    names = {name for name in dir(front) if not name.startswith("_")}
    assert names == {row.name for row in rows}


def test_every_script_has_a_row() -> None:
    names = [row.name for row in SCRIPTS]
    assert len(names) == len(set(names))
    assert {path.stem for path in SCRIPT_FOLDER.glob("*.lua")} == set(names)


@pytest.mark.parametrize(("front", "row"), ROWS)
def test_every_argument_has_a_good_value_and_bad_ones(front: type, row: Operation) -> None:
    member = inspect.getattr_static(front, row.name)
    if isinstance(member, property):
        return
    parameters = inspect.signature(getattr(member, "__func__", member)).parameters
    names = set(parameters) - {"self", "cls"}
    assert set(row.args) <= names
    assert set(row.bad) <= set(row.args)
    for name in names:
        assert name in row.args or name in catalogue.NOT_CHECKED, f"no value for {name}"
        assert name in catalogue.BAD or name in catalogue.NOT_CHECKED, f"no bad {name}"


@pytest.mark.parametrize(("front", "row"), ROWS)
def test_every_operation_is_a_command_or_says_why_not(front: type, row: Operation) -> None:
    if isinstance(row.cli, str):
        assert row.cli
    else:
        assert [words for words, _ in commands() if words == row.cli[: len(words)]], row.cli


def test_every_command_is_an_operation_or_says_why() -> None:
    of_rows = {row.cli for row in (*OPERATIONS, *AGENT_OPERATIONS) if isinstance(row.cli, tuple)}
    for words, _ in commands():
        is_one = any(words == found[: len(words)] for found in of_rows)
        assert is_one != (words in catalogue.COMMANDS_OF_THEIR_OWN), words


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_the_model_has_every_operation_that_has_no_reason_against_it(row: Operation) -> None:
    assert hasattr(Model, row.name) == (not row.model)


# --- the rows of the scripts are what the files say


def head_of(script: str) -> str:
    return source_of(script).split("\n\n", 1)[0]


def names_in(head: str, what: str) -> list[str]:
    return re.findall(rf"^-- {what}\[[\d.]+\] (\w+)", head, re.MULTILINE)


@EVERY_SCRIPT
def test_a_script_takes_what_its_head_says(row: Script) -> None:
    head = head_of(row.name)
    assert names_in(head, "KEYS") == list(row.keys)
    assert names_in(head, "ARGV") == list(row.args)
    assert f"-- Access: {row.access}" in head.splitlines()
    assert set(row.bad) <= set(row.args) <= set(catalogue.BAD_ARGV)


@EVERY_SCRIPT
def test_a_script_that_writes_keeps_an_operation_record_or_says_why_it_needs_none(
    row: Script,
) -> None:
    """Or it could not be sent again after a lost reply: whoever did it would be told a lie.

    That a script does what its row says is in ``test_script_safety.py``.
    """
    assert row.keeps_record == ("op_ms" in row.args)
    assert (row.access == "write") == (row.keeps_record != bool(row.harmless))


# --- what is sent again may be


def may_be_sent_again(name: str) -> bool:
    row = catalogue.script(name)
    return row.access == "read" or bool(row.harmless)


def calls_of_scripts() -> Iterator[tuple[str, str, ast.Call]]:
    """Where the package makes a command of a script: the place, the function around it, the call."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and ast.unparse(node.func) == "script_command":
                        place = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                        yield place, ast.unparse(function), node


@pytest.mark.slow
def test_whatever_is_repeatable_keeps_a_record_or_changes_nothing() -> None:
    found = 0
    for place, function, call in calls_of_scripts():
        found += 1
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        named = re.findall(r"get_script\('(\w+)'\)", ast.unparse(call))
        assert (
            options["repeatable"] in ("False", "read_only", "script.read_only")
            or "operation_key(" in function
            or (named and all(map(may_be_sent_again, named)))
        ), f"{place} sends a script again that keeps no record of what it did"
    assert found >= 4


CONFIG = RouterConfig(cache=CacheConfig(max_age=0, heartbeat=30, heartbeat_timeout=60))


def sent_again(peer: Peer) -> list[list[bytes]]:
    """The commands that were received twice: those that change something, or run a script."""
    received = [*peer.received("evalsha"), *peer.received("set"), *peer.received("hset")]
    return [command for number, command in enumerate(received) if command in received[:number]]


def assert_it_may_be(command: list[bytes]) -> None:
    by_sha = {script.sha: name for name, script in scripts.SCRIPTS.items()}
    if (name := command[0].decode()) != "EVALSHA":
        assert name in REPEATABLE_COMMANDS
        return
    row = catalogue.script(by_sha[command[1].decode()])
    if may_be_sent_again(row.name):
        return
    assert row.keeps_record, f"{row.name} is sent again, and keeps no record"
    keys = command[3 : 3 + int(command[2])]
    argv = command[3 + len(keys) :]
    assert keys[row.keys.index("op")].startswith(b"sf:op:{ns:lk:ada}:")
    assert int(argv[list(row.args).index("op_ms")]) > 1000


@pytest.mark.parametrize(
    "row", [row for row in catalogue.on_store() if row.access == "write"], ids=lambda row: row.name
)
async def test_a_write_of_a_router_that_is_sent_again_names_its_record(row: Operation) -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        for name in ("evalsha", "set", "hset"):
            peer.answer(name, Peer.HANG_UP)
        await attempt(row, router, row.arguments())
        again = sent_again(peer)
    # The caller chooses the keys; or here is nothing that it would remove, link by link.
    assert again or row.name in {"execute_script", "forget", "prune"}
    for command in again:
        assert_it_may_be(command)


@pytest.mark.parametrize(
    "row", [row for row in AGENT_OPERATIONS if row.access == "write"], ids=lambda row: row.name
)
async def test_a_write_of_an_agent_that_is_sent_again_names_its_record(row: Operation) -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url, config=CONFIG) as router:
        agent = AsyncPodAgent(router, "ns", "chat", 1, heartbeat=60, lease=None, sigterm=False)
        beaten = script_reply("1", "{}", "stored", "1")
        if row.name != "start":
            peer.answer("evalsha", beaten)
            await agent.start()
        peer.commands.clear()
        claims = row.name in ("accept", "release")
        reply = script_reply("1", "kept", "1") if claims else beaten
        peer.answer("evalsha", Peer.HANG_UP, reply)
        await attempt(row, agent, row.arguments())
        again = sent_again(peer)
        await agent.stop()
    assert again
    for command in again:
        assert_it_may_be(command)


async def attempt(row: Operation, front: Any, arguments: dict[str, Any]) -> None:
    """What the peer says may be no answer to this call: that is told as it should be."""
    try:
        await row.call(front, **arguments)
    except SfrouteError as error:
        assert type(error) in row.may_raise  # noqa: PT017 - nor need there be one
