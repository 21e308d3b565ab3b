"""The two fronts are one interface: what the front for asyncio has, the one for threads has, under the same name and
words. That they also do the same is shown by tests that are run on both: those below only look that none is left out.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import catalogue
import pytest
from support.public_api import describe
from support.rows import Operation

import sfroute
from sfroute import AsyncPodAgent, AsyncRouter, PodAgent, Router

RENAMED = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}
OWN_WORDS = {"aclose", "open"}
"""What happens there differs, such as that a thread begins or ends."""


class Fronts(NamedTuple):
    """A class for asyncio, and the one for threads."""

    ours: type[Any]
    theirs: type[Any]

    def pair(self, name: str) -> tuple[Any, Any]:
        """The same member of both: what is called, behind a property or a class method too."""
        return member(self.ours, name), member(self.theirs, RENAMED.get(name, name))


ROUTERS: Final = Fronts(AsyncRouter, Router)
AGENTS: Final = Fronts(AsyncPodAgent, PodAgent)
MADE_BY_USERS: Final = (ROUTERS, AGENTS)
EVERY: Final = tuple(
    Fronts(getattr(sfroute, name), getattr(sfroute, name.removeprefix("Async")))
    for name in sorted(sfroute.__all__)
    if name.startswith("Async")
)
"""A public class for asyncio has one for threads."""


def public_names(front: type[Any]) -> set[str]:
    return {name for name in vars(front) if not name.startswith("_")}


def member(front: type[Any], name: str) -> Any:
    found = vars(front)[name]
    return found.fget if isinstance(found, property) else getattr(found, "__func__", found)


SHARED = [
    pytest.param(fronts, name, id=f"{fronts.theirs.__name__}.{name}")
    for fronts in EVERY
    for name in sorted(public_names(fronts.ours))
]
ALL = [
    *SHARED,
    *(
        pytest.param(fronts, name, id=f"{fronts.theirs.__name__}.{name}")
        for fronts in EVERY
        for name in ("__init__", "__aenter__", "__aexit__")
        if name != "__init__" or fronts in MADE_BY_USERS
    ),
]


def test_users_make_no_front_that_the_catalogue_has_not() -> None:
    assert set(MADE_BY_USERS) <= set(EVERY)
    # The rest is what operations of these give.
    given = {
        str(inspect.signature(member(fronts.ours, name)).return_annotation)
        for fronts in MADE_BY_USERS
        for name in public_names(fronts.ours)
    }
    assert {fronts.ours.__name__ for fronts in EVERY if fronts not in MADE_BY_USERS} <= given


@pytest.mark.parametrize("fronts", EVERY, ids=lambda fronts: fronts.theirs.__name__)
def test_both_have_the_same_names(fronts: Fronts) -> None:
    wanted = {RENAMED.get(name, name) for name in public_names(fronts.ours)}
    assert public_names(fronts.theirs) == wanted


def plain(annotation: object) -> str:
    """An annotation as both should have it: an operation awaited is what the other returns."""
    text = re.sub(r"Async(Router|Iterator|Generator|Session)", r"\1", str(annotation))
    return re.sub(r"Generator\[(\w+), None(, None)?\]", r"Generator[\1]", text)


@pytest.mark.parametrize(("fronts", "name"), ALL)
def test_both_have_the_same_parameters_and_results(fronts: Fronts, name: str) -> None:
    told = []
    for front in fronts.pair(name):
        signature = inspect.signature(front)
        told.append(
            [
                *(
                    (p.name, p.kind, p.default, plain(p.annotation))
                    for p in signature.parameters.values()
                ),
                plain(signature.return_annotation),
            ]
        )
    assert told[0] == told[1]


@pytest.mark.parametrize(("fronts", "name"), SHARED)
def test_both_are_of_one_kind(fronts: Fronts, name: str) -> None:
    ours, theirs = vars(fronts.ours)[name], vars(fronts.theirs)[RENAMED.get(name, name)]
    assert type(inspect.unwrap(ours)) is type(inspect.unwrap(theirs))


def words(function: Any) -> str:
    return re.sub(r"``async with", "``with", inspect.getdoc(function) or "")


@pytest.mark.parametrize(("fronts", "name"), SHARED)
def test_both_are_documented_alike(fronts: Fronts, name: str) -> None:
    ours, theirs = map(words, fronts.pair(name))
    assert ours
    assert theirs
    if name not in OWN_WORDS:
        assert theirs == ours


@pytest.mark.parametrize(("fronts", "name"), ALL)
def test_what_is_awaited_here_is_called_there(fronts: Fronts, name: str) -> None:
    ours, theirs = fronts.pair(name)
    assert not inspect.iscoroutinefunction(theirs)
    # What is iterated says so by its annotation.
    returned = str(inspect.signature(ours).return_annotation)
    assert ("AsyncGenerator" in returned or "AsyncIterator" in returned) <= (
        "Generator" in str(inspect.signature(theirs).return_annotation)
    )


@pytest.mark.parametrize(
    ("fronts", "rows"), [(ROUTERS, catalogue.OPERATIONS), (AGENTS, catalogue.AGENT_OPERATIONS)]
)
def test_what_touches_no_network_is_not_awaited(
    fronts: Fronts, rows: tuple[Operation, ...]
) -> None:
    synchronous = {
        name
        for name in public_names(fronts.ours)
        if not inspect.iscoroutinefunction(member(fronts.ours, name))
        and "AsyncGenerator" not in str(inspect.signature(member(fronts.ours, name)))
    }
    # Closing waits for what is under way.
    assert synchronous == {row.name for row in rows if row.access == "local"} - {"aclose"}


def test_both_agents_have_the_same_attributes() -> None:
    attributes = [
        [line for line in describe("agent", agent) if re.fullmatch(r"    \w+: \w+", line)]
        for agent in (AsyncPodAgent, PodAgent)
    ]
    assert attributes[0] == attributes[1] == []


# --- what they do

ON_BOTH: Final = {"router", "make_router", "speaker"}
"""Fixtures that give one front after the other."""
ON_EACH: Final = {
    "from_url",  # what the fixtures are made by
}


@pytest.mark.slow
def test_every_operation_has_a_test_that_runs_on_both() -> None:
    used: set[str] = set()
    for path in Path(__file__).parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                ON_BOTH & {argument.arg for argument in node.args.args}
            ):
                used |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    missing = {
        f"{fronts.ours.__name__}.{name}"
        for fronts in (ROUTERS, AGENTS)
        for name in public_names(fronts.ours) - used - ON_EACH
    }
    assert missing == set()


# --- the package


def test_every_public_name_is_there() -> None:
    assert all(hasattr(sfroute, name) for name in sfroute.__all__)


def test_every_error_is_an_sfroute_error() -> None:
    for name in sfroute.__all__:
        value = getattr(sfroute, name)
        if isinstance(value, type) and issubclass(value, BaseException):
            assert issubclass(value, sfroute.SfrouteError)
