"""What the cache reports as the lag of invalidations: only pushes of own writes count, and each once."""

from __future__ import annotations

from sfroute._contract.keys import CacheKey
from sfroute._lookups.cache import Epoch, Flight, LookupCache
from sfroute.config import CacheConfig

KEY: CacheKey = ("tests", "ada", "chat")


class Measured:
    """A cache that holds one link, its clock, and the lags it has reported."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lags: list[float] = []
        self.cache = LookupCache(CacheConfig(), lambda: self.now, self.note)
        self.look_up()

    def note(self, seconds: float, writer: object) -> None:
        self.lags.append(seconds)
        self.writer = writer

    def look_up(self) -> None:
        flight = self.cache.open(Flight(KEY, self.now + 5))
        self.cache.land(flight, 1, None, self.now, Epoch(3, self.now + 1), storable=True)


def test_the_push_of_an_own_write_is_measured_once() -> None:
    measured = Measured()
    measured.cache.write_begins(KEY, "the writer")
    measured.now += 0.25
    measured.cache.invalidated(KEY)
    measured.cache.invalidated(KEY)
    assert measured.lags == [0.25]
    assert measured.writer == "the writer"


def test_the_push_of_a_foreign_write_is_not_measured() -> None:
    measured = Measured()
    measured.cache.invalidated(KEY)
    assert measured.lags == []


def test_a_push_long_after_an_own_write_that_changed_nothing_is_not_measured() -> None:
    measured = Measured()
    measured.cache.write_begins(KEY)
    measured.now += CacheConfig().heartbeat_timeout
    measured.cache.invalidated(KEY)
    assert measured.lags == []


def test_a_push_after_the_link_was_looked_up_again_is_not_of_the_own_write_before() -> None:
    measured = Measured()
    measured.cache.write_begins(KEY)
    measured.look_up()
    measured.now += 0.25
    measured.cache.invalidated(KEY)
    assert measured.lags == []
