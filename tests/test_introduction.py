"""What a router says of itself in the name of its connections, and what is read of names that anybody may give."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfroute import CacheConfig, PlacementConfig, RouterConfig
from sfroute._contract.introduction import (
    SETTINGS,
    introduce,
    read_introduction,
    with_figures,
)
from sfroute._contract.keys import CONTRACT_VERSION
from sfroute._version import __version__
from sfroute.types import MAX_PERSIST_SECONDS

OWN = introduce(RouterConfig(), "1")


def test_what_is_said_is_what_is_read() -> None:
    config = RouterConfig(
        client_name="check;out=1",
        placement=PlacementConfig(pod_timeout=12.345678, all_silent="move"),
        cache=CacheConfig(max_age=0.25, tracking=False),
        at_most_once=False,
        min_replica_acks=2,
    )
    said = read_introduction(introduce(config, "0123456789"))
    assert said is not None
    assert (said.name, said.router) == ("check;out=1", "0123456789")
    assert (said.version, said.contract) == (__version__, str(CONTRACT_VERSION))
    assert dict(said.settings) == {
        "persist_seconds": "-1",
        "pod_timeout": "12.345678",
        "lease_margin": "1",
        "all_silent": "move",
        "settle": "5",
        "max_age": "0.25",
        "max_age_untracked": "0.5",
        "stale_if_error": "60",
        "tracking": "off",
        "at_most_once": "off",
        "min_replica_acks": "2",
    }
    assert (said.entries, said.lag_ms) == (None, None)
    with_both = read_introduction(with_figures(introduce(config, "1"), 1200, 0.0314))
    assert with_both is not None
    assert (with_both.entries, with_both.lag_ms) == (1200, 31)
    assert with_both.settings == said.settings


def test_every_setting_that_is_said_exists() -> None:
    config = RouterConfig()
    for part, setting in SETTINGS:
        holder = getattr(config, part) if part else config
        assert is_dataclass(holder)
        assert setting in {field.name for field in fields(holder)}


def test_two_configurations_that_answer_differently_say_so() -> None:
    other = RouterConfig(placement=PlacementConfig(settle=5.000001))
    assert introduce(other, "1") != OWN


def test_the_longest_name_leaves_room_for_the_longest_settings_and_figures() -> None:
    long = 1.23456789e-300
    config = RouterConfig(
        client_name="a" * 256,
        placement=PlacementConfig(
            persist_seconds=MAX_PERSIST_SECONDS,
            pod_timeout=1.23456789e300,
            lease_margin=long,
            all_silent="move",
            settle=long,
        ),
        cache=CacheConfig(
            max_age=long, max_age_untracked=long, stale_if_error=long, tracking=False
        ),
        at_most_once=False,
        min_replica_acks=10**18,
    )
    text = with_figures(introduce(config, "0123456789" * 3), 10**14, 10.0**11)
    said = read_introduction(text)
    assert said is not None
    assert (said.name, said.entries, said.lag_ms) == ("a" * 256, 10**14, 10**14)


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=256))
def test_whatever_a_router_is_called_its_name_is_one_that_servers_accept(name: str) -> None:
    text = introduce(RouterConfig(client_name=name), "7")
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    said = read_introduction(text)
    assert said is not None
    assert (said.name, said.router) == (name, "7")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sfroute",
        "sfroute-example",
        "a;sfroute=",
        "a;sfroute=1",
        "a;sfroute=1;router=",
        "a;sfroute=1;router=1;router=2",
        "a;sfroute=1;router=1;Max=2",
        "a;sfroute=1;router=1;max_age=\x1b[2J",
        "a;sfroute=1;router=1;max_age=ü",
        "a;sfroute=1;router=1;max_age",
        "a;sfroute=1;router=1;max_age=" + "1" * 65,
        "a;sfroute=1;router=1" + "".join(f";{'x' * n}=1" for n in range(1, 33)),
        OWN + ";x=" + ";y=" * 400,
        "a" * 1100 + ";sfroute=1;router=1",
    ],
)
def test_what_breaks_a_rule_introduces_nobody(text: str) -> None:
    assert read_introduction(text) is None


@given(
    st.one_of(st.text(), st.text(st.sampled_from(";=1a\x1b")).map(";sfroute=1;router=1".__add__))
)
def test_reading_never_raises_and_returns_nothing_unprintable(text: str) -> None:
    said = read_introduction(text)
    if said is not None:
        told = "".join((said.version, said.contract, said.router, *said.settings.values()))
        assert all("!" <= each <= "~" for each in told)


def test_a_later_version_may_say_more() -> None:
    said = read_introduction(OWN + ";novelty=1")
    assert said is not None
    assert said.settings["novelty"] == "1"
