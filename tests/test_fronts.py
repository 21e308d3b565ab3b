"""The two fronts are one interface: what ``AsyncRouter`` has, ``Router`` has, under the same name and words."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import sfroute
from sfroute import AsyncRouter, Router

RENAMED = {"aclose": "close"}
ASYNC_ONLY = {"engine", "of_target", "reader", "report_state", "routes", "telemetry"}
"""What the sync front and pod agents are made of; no part of the public interface, as each says."""
SYNC_ONLY = {"background"}
OWN_WORDS = {"aclose", "open"}
"""What happens there differs: a thread begins or ends."""


def public_names(front: type[Any]) -> set[str]:
    return {name for name in vars(front) if not name.startswith("_")}


def member(front: type[Any], name: str) -> Any:
    found = vars(front)[name]
    return found.__func__ if isinstance(found, classmethod) else found


SHARED = sorted(public_names(AsyncRouter) - ASYNC_ONLY)


def test_both_have_the_same_names() -> None:
    wanted = {RENAMED.get(name, name) for name in SHARED}
    assert public_names(Router) - SYNC_ONLY == wanted


def plain(annotation: object) -> str:
    """An annotation as both should have it: an operation awaited is what the other returns."""
    text = re.sub(r"Async(Router|Iterator|Generator)", r"\1", str(annotation))
    return re.sub(r"Generator\[(\w+), None(, None)?\]", r"Generator[\1]", text)


@pytest.mark.parametrize("name", SHARED)
def test_both_have_the_same_parameters_and_results(name: str) -> None:
    ours, theirs = member(AsyncRouter, name), member(Router, RENAMED.get(name, name))
    if isinstance(ours, property):
        assert isinstance(theirs, property)
        ours, theirs = ours.fget, theirs.fget
    signature, other = inspect.signature(ours), inspect.signature(theirs)
    parameters = [
        (p.name, p.kind, p.default, plain(p.annotation)) for p in signature.parameters.values()
    ]
    assert parameters == [
        (p.name, p.kind, p.default, plain(p.annotation)) for p in other.parameters.values()
    ]
    assert plain(signature.return_annotation) == plain(other.return_annotation)


@pytest.mark.parametrize("name", [name for name in SHARED if name not in OWN_WORDS])
def test_both_are_documented_alike(name: str) -> None:
    ours = inspect.getdoc(member(AsyncRouter, name))
    theirs = inspect.getdoc(member(Router, RENAMED.get(name, name)))
    assert ours
    assert theirs
    if name != "after_fork_in_child":
        assert theirs == ours


@pytest.mark.parametrize("name", SHARED)
def test_what_is_awaited_here_is_called_there(name: str) -> None:
    assert not inspect.iscoroutinefunction(member(Router, RENAMED.get(name, name)))


def test_every_operation_of_the_contract_is_awaited() -> None:
    synchronous = {
        name
        for name in SHARED
        if not inspect.iscoroutinefunction(member(AsyncRouter, name))
        and not re.search(
            "Async(Iter|Gener)ator", str(inspect.signature(member(AsyncRouter, name)))
        )
    }
    assert synchronous == {"after_fork_in_child", "from_url", "invalidate", "stats"}


def test_the_constructors_take_the_same() -> None:
    ours, theirs = inspect.signature(AsyncRouter), inspect.signature(Router)
    assert str(ours).replace("AsyncRouter", "Router") == str(theirs)


def test_every_public_name_is_there() -> None:
    assert all(hasattr(sfroute, name) for name in sfroute.__all__)


def test_every_error_is_an_sfroute_error() -> None:
    for name in sfroute.__all__:
        value = getattr(sfroute, name)
        if isinstance(value, type) and issubclass(value, BaseException):
            assert issubclass(value, sfroute.SfrouteError)
