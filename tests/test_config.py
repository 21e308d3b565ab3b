"""Settings: defaults that agree with each other, checks that say which field and what would be right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfroute import CacheConfig, ConfigError, PlacementConfig, RetryConfig, RouterConfig

Config = Callable[..., Any]
"""One of the classes of settings."""

NOT_SECONDS = [-1, -0.001, math.nan, math.inf, "1", None, True, 1j]


def test_the_defaults_make_a_router_config() -> None:
    config = RouterConfig()
    assert config.cache.heartbeat < config.cache.heartbeat_timeout <= config.cache.max_age
    assert config.retry.connect_timeout < config.retry.deadline


@pytest.mark.parametrize("config", [CacheConfig, RetryConfig, PlacementConfig, RouterConfig])
def test_settings_are_frozen_and_hold_no_other_field(config: Config) -> None:
    settings = config()
    field = dataclasses.fields(settings)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, field, 1)
    assert settings == config()
    assert hash(settings) == hash(config())
    assert not hasattr(settings, "__dict__")


@pytest.mark.parametrize(
    ("config", "field", "zero"),
    [
        (CacheConfig, "max_age", True),
        (CacheConfig, "max_age_untracked", True),
        (CacheConfig, "stale_if_error", True),
        (CacheConfig, "heartbeat", False),
        (CacheConfig, "heartbeat_timeout", False),
        (RetryConfig, "deadline", False),
        (RetryConfig, "base", False),
        (RetryConfig, "cap", False),
        (RetryConfig, "connect_timeout", False),
        (PlacementConfig, "pod_view_max_age", True),
        (PlacementConfig, "pod_timeout", False),
        (PlacementConfig, "lease_margin", True),
        (PlacementConfig, "settle", True),
    ],
)
def test_seconds_are_finite_numbers_from_zero(config: Config, field: str, zero: bool) -> None:
    for value in [*NOT_SECONDS, *([] if zero else [0, 0.0])]:
        with pytest.raises(ConfigError, match=rf"{config.__name__}\.{field} must be seconds >"):
            config(**{field: value})
    if zero:
        config(**{field: 0})


@pytest.mark.parametrize(
    ("config", "fields", "text"),
    [
        (CacheConfig, {"max_entries": 0}, r"CacheConfig\.max_entries must be an int >= 1"),
        (CacheConfig, {"max_entries": 1.5}, r"CacheConfig\.max_entries must be an int >= 1"),
        (CacheConfig, {"heartbeat": 1.5}, r"heartbeat_timeout must be seconds > heartbeat"),
        (RetryConfig, {"base": 0.3}, r"RetryConfig\.cap must be seconds >= base"),
        (RetryConfig, {"jitter": 1.1}, r"RetryConfig\.jitter must be from 0 to 1"),
        (RetryConfig, {"jitter": -0.1}, r"RetryConfig\.jitter must be from 0 to 1"),
        (
            PlacementConfig,
            {"persist_seconds": 0},
            r"PlacementConfig\.persist_seconds must be PERSIST_FOREVER",
        ),
        (PlacementConfig, {"persist_seconds": True}, r"PlacementConfig\.persist_seconds must be"),
        (PlacementConfig, {"persist_seconds": 2**63}, r"PlacementConfig\.persist_seconds must be"),
        (RouterConfig, {"client_name": ""}, r"RouterConfig\.client_name must be printable ASCII"),
        (
            RouterConfig,
            {"client_name": "a b"},
            r"RouterConfig\.client_name must be printable ASCII",
        ),
        (
            RouterConfig,
            {"client_name": "a\nb"},
            r"RouterConfig\.client_name must be printable ASCII",
        ),
        (RouterConfig, {"client_name": "ü"}, r"RouterConfig\.client_name must be printable ASCII"),
        (RouterConfig, {"client_name": 1}, r"RouterConfig\.client_name must be printable ASCII"),
        (
            RouterConfig,
            {"client_name": "a" * 257},
            r"RouterConfig\.client_name must have at most 256 characters",
        ),
        (RouterConfig, {"at_most_once": 1}, r"RouterConfig\.at_most_once must be a bool"),
        (RouterConfig, {"max_in_flight": 0}, r"RouterConfig\.max_in_flight must be an int >= 1"),
        (RouterConfig, {"cache": None}, r"RouterConfig\.cache must be a CacheConfig"),
        (RouterConfig, {"retry": 5}, r"RouterConfig\.retry must be a RetryConfig"),
        (RouterConfig, {"placement": {}}, r"RouterConfig\.placement must be a PlacementConfig"),
    ],
)
def test_a_setting_that_cannot_work_is_named(
    config: Config, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        config(**fields)


def test_pauses_double_from_base_to_cap() -> None:
    retry = RetryConfig(base=1, cap=6, jitter=0.5)
    assert [retry.pause(attempt, 0) for attempt in (1, 2, 3, 4, 5)] == [1, 2, 4, 6, 6]


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_a_pause_is_random_within_its_last_share(
    attempt: int, random: float, jitter: float
) -> None:
    retry = RetryConfig(jitter=jitter)
    full = retry.pause(attempt, 0)
    assert full <= retry.cap
    assert full * (1 - jitter) <= retry.pause(attempt, random) <= full
