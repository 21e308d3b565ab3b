"""The local store of lookups, alone and under Hypothesis: a server, its wire and a clock are modelled beside it.

The machine's server tracks keys and pushes as servers do, its wire delivers replies and pushes in order, and both may
be as late as Hypothesis likes. So what the cache serves can be compared with the truth at every moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sfroute import CacheConfig
from sfroute._contract.keys import CacheKey
from sfroute._lookups.cache import Entry, Epoch, Flight, LookupCache, Value

MAX_AGE = 10.0
STALE_IF_ERROR = 5.0
MAX_ENTRIES = 3
HEALTHY_FOR = 8.0
CONFIG = CacheConfig(max_age=MAX_AGE, stale_if_error=STALE_IF_ERROR, max_entries=MAX_ENTRIES)
UIDS = ("ada", "bob")
KEYS: tuple[CacheKey, ...] = (
    ("sf", "ada", "chat"),
    ("sf", "ada", "game"),
    ("sf", "ada"),
    ("sf", "bob", "chat"),
)
some_key = st.sampled_from((KEYS[0], *KEYS))
some_pod = st.sampled_from((0, 1, 2, 3, None))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Caller:
    """Someone who waits for a flight."""

    def __init__(self, newest: int = 0) -> None:
        # The version that the cache had been told of when the caller asked.
        self.newest = newest
        self.answers: list[Flight] = []
        self.gone = False

    def done(self) -> bool:
        return self.gone or bool(self.answers)

    def set_result(self, result: Flight, /) -> None:
        assert not self.gone, "who has gone is told nothing"
        self.answers.append(result)


@dataclass
class Truth:
    """What the server holds under a key."""

    value: Value = None
    expires: float = inf
    version: int = 0
    tracked: bool = False


@dataclass(eq=False)
class Read:
    """A lookup on its way."""

    flight: Flight
    sent: float
    drops: int
    epoch: Epoch
    value: Value = None
    ttl: float | None = None
    version: int = -1
    missing: bool = False


@dataclass(eq=False)
class Write:
    """An own write on its way."""

    key: CacheKey
    version: int = 0


@dataclass
class Push:
    """A key has changed, or all of them (None)."""

    key: CacheKey | None
    version: int


@dataclass
class Pong:
    pinged: float


@dataclass
class ValueReply:
    read: Read


@dataclass
class TtlReply:
    read: Read


class CacheMachine(RuleBasedStateMachine):
    """One lane to one server."""

    @initialize(negative=st.booleans())
    def begin(self, negative: bool) -> None:
        self.clock = Clock()
        self.negative = negative
        self.cache = LookupCache(
            CacheConfig(
                max_age=MAX_AGE,
                stale_if_error=STALE_IF_ERROR,
                max_entries=MAX_ENTRIES,
                negative=negative,
            ),
            self.clock,
        )
        self.truths = {key: Truth(7 if len(key) == 3 else {"chat": 7}) for key in KEYS}
        self.versions = 0
        self.epoch = Epoch(MAX_AGE, self.clock.now + HEALTHY_FOR)
        self.wire: deque[Push | Pong | ValueReply | TtlReply] = deque()
        self.unexecuted: deque[Read] = deque()
        self.reads: list[Read] = []
        self.writing: list[Write] = []
        self.written: list[Write] = []
        self.callers: dict[Flight, list[Caller]] = {}
        self.drops = dict.fromkeys(KEYS, 0)
        self.own = dict.fromkeys(KEYS, 0)
        self.told_of = dict.fromkeys(KEYS, 0)
        # Entry -> the version of the truth it tells. Entries compare by value, so by identity.
        self.told: dict[int, tuple[Entry, Read]] = {}

    # Callers

    @rule(key=some_key, bypass=st.booleans())
    def look_up(self, key: CacheKey, bypass: bool) -> None:
        caller = Caller(max(self.told_of[key], self.own[key]))
        if not bypass:
            entry = self.cache.fresh(key)
            if entry is not None:
                self.judge(key, entry)
                return
            flight = self.cache.join(key)
            if flight is not None:
                assert not flight.done
                assert not flight.dirty
                flight.waiters.append(caller)
                self.callers[flight].append(caller)
                return
        flight = self.cache.open(Flight(key, self.clock.now + 100, not bypass))
        assert flight.may_serve_stale is not bypass
        assert self.cache.join(key) is flight
        flight.waiters.append(caller)
        self.callers[flight] = [caller]
        self.send(flight)

    def send(self, flight: Flight) -> None:
        flight.value_read = False
        read = Read(flight, self.clock.now, self.drops[flight.key], self.epoch)
        self.unexecuted.append(read)
        self.reads.append(read)

    def give_up(self, data: st.DataObject) -> None:
        callers = [c for waiting in self.callers.values() for c in waiting if not c.done()]
        if callers:
            data.draw(st.sampled_from(callers)).gone = True

    # The server

    @precondition(lambda self: self.unexecuted)
    @rule(between=some_pod | st.just(-1))
    def server_executes_a_command(self, between: int | None = -1) -> None:
        """A read is two commands, and anything may come between them; most likely a write (-1: none)."""
        read = self.unexecuted[0]
        key = read.flight.key
        self.expire(key)
        truth = self.truths[key]
        truth.tracked = True
        if read.version < 0:
            read.value, read.version = truth.value, truth.version
            self.wire.append(ValueReply(read))
            if between != -1:
                self.write(key, between, None)
        else:
            read.missing = truth.value is None
            read.ttl = None if truth.expires == inf else truth.expires - self.clock.now
            self.wire.append(TtlReply(read))
            self.unexecuted.popleft()

    @rule()
    def everything_arrives(self) -> None:
        while self.unexecuted or self.wire:
            while self.unexecuted:
                self.server_executes_a_command()
            self.deliver(len(self.wire))
        for key in KEYS:
            entry = self.cache.fresh(key)
            if entry is not None:
                assert entry.value == self.truths[key].value

    @rule(data=st.data(), pod=some_pod, ttl=st.sampled_from([None, None, 0.5, 4.0]))
    def another_client_writes(
        self, data: st.DataObject, pod: int | None, ttl: float | None
    ) -> None:
        """Preferably what is being read."""
        under_way = [read.flight.key for read in self.reads]
        self.write(data.draw(st.sampled_from(under_way) if under_way else some_key), pod, ttl)

    def write(self, key: CacheKey, pod: int | None, ttl: float | None) -> int:
        truth = self.truths[key]
        self.versions += 1
        truth.version = self.versions
        value: Value = pod if len(key) == 3 or pod is None else {"chat": pod}
        truth.value = value
        truth.expires = inf if pod is None or ttl is None or len(key) == 2 else self.clock.now + ttl
        self.push(key)
        return truth.version

    def push(self, key: CacheKey) -> None:
        if self.truths[key].tracked:
            self.truths[key].tracked = False
            self.wire.append(Push(key, self.truths[key].version))

    def expire(self, key: CacheKey) -> None:
        """Servers notice an expiry when they look at the key, and push then."""
        truth = self.truths[key]
        if truth.expires <= self.clock.now:
            self.versions += 1
            truth.value, truth.expires, truth.version = None, inf, self.versions
            self.push(key)

    def another_client_flushes(self) -> None:
        self.versions += 1
        for truth in self.truths.values():
            truth.value, truth.expires, truth.version = None, inf, self.versions
            truth.tracked = False
        self.wire.append(Push(None, self.versions))

    @rule()
    def ping(self) -> None:
        self.wire.append(Pong(self.clock.now))

    # The wire

    @precondition(lambda self: self.wire)
    @rule(count=st.integers(1, 4))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.wire))):
            message = self.wire.popleft()
            match message:
                case Push(None, version):
                    self.told_of = {key: max(v, version) for key, v in self.told_of.items()}
                    self.renew_epoch(revoked=True)
                    self.cache.detach_flights()
                case Push(key, version):
                    assert key is not None
                    self.told_of[key] = max(self.told_of[key], version)
                    self.cache.invalidated(key)
                    assert self.cache.fresh(key) is None
                case Pong(pinged):
                    self.epoch.healthy_until = pinged + HEALTHY_FOR
                case ValueReply(read):
                    if not read.flight.done:
                        read.flight.value_read = True
                case TtlReply(read):
                    self.land(read)

    def land(self, read: Read) -> None:
        flight = read.flight
        self.reads.remove(read)
        if flight.done:
            return
        before = self.cache.entries.find(flight.key)
        was_dirty = flight.dirty
        torn = (read.value is None) is not read.missing
        storable = read.epoch is self.epoch and not torn
        self.cache.land(flight, read.value, read.ttl, read.sent, read.epoch, storable=storable)
        for caller in self.callers[flight]:
            assert read.version >= caller.newest, "older than what was known when it was asked for"
        after = self.cache.entries.find(flight.key)
        assert flight.entry is not None
        if after is flight.entry:
            assert not was_dirty
            assert storable
            assert read.value is not None or self.negative
            assert read.drops == self.drops[flight.key], "a lookup from before a drop was stored"
            self.told[id(after)] = (after, read)
        else:
            assert after is before
        assert self.cache.join(flight.key) is not flight

    # Own writes: dropped before they are sent, and once more with the reply, which comes on a connection of its own

    @rule(data=st.data())
    def own_write_goes_on(self, data: st.DataObject) -> None:
        if self.written:
            self.own_write_is_answered(data)
        elif self.writing and data.draw(st.sampled_from((True, False))):
            self.server_executes_an_own_write(data)
        else:
            self.own_write_begins(data.draw(some_key))

    def own_write_begins(self, key: CacheKey) -> None:
        self.cache.write_begins(key)
        self.dropped(key)
        self.writing.append(Write(key))

    def server_executes_an_own_write(self, data: st.DataObject) -> None:
        write = data.draw(st.sampled_from(self.writing))
        self.writing.remove(write)
        write.version = self.write(write.key, data.draw(some_pod), None)
        self.written.append(write)

    def own_write_is_answered(self, data: st.DataObject) -> None:
        write = data.draw(st.sampled_from(self.written))
        self.written.remove(write)
        self.cache.drop(write.key)
        self.dropped(write.key)
        self.own[write.key] = max(self.own[write.key], write.version)

    def dropped(self, key: CacheKey) -> None:
        self.drops[key] += 1
        assert self.cache.fresh(key) is None
        assert self.cache.stale(key) is None
        assert self.cache.join(key) is None

    def invalidate(self, key: CacheKey) -> None:
        self.cache.drop(key)
        self.dropped(key)

    def invalidate_uid(self, uid: str) -> None:
        self.cache.drop_uid("sf", uid)
        for key in KEYS:
            if key[1] == uid:
                self.dropped(key)

    # Trouble

    @rule(data=st.data())
    def trouble(self, data: st.DataObject) -> None:
        """Rules are chosen alike; these would leave little room for the others."""
        kinds = ("flush", "moved", "lost", "given up", "caller", "uid", "key")
        match data.draw(st.sampled_from(kinds)):
            case "flush":
                self.another_client_flushes()
            case "moved":
                self.slots_have_moved()
            case "lost":
                self.connection_is_lost()
            case "given up":
                self.look_up_is_given_up(data)
            case "caller":
                self.give_up(data)
            case "uid":
                self.invalidate_uid(data.draw(st.sampled_from(UIDS)))
            case _:
                self.invalidate(data.draw(some_key))

    def renew_epoch(self, *, revoked: bool) -> None:
        previous = self.epoch
        self.epoch = Epoch(previous.max_age, previous.healthy_until)
        previous.end(revoked=revoked)

    def slots_have_moved(self) -> None:
        self.renew_epoch(revoked=False)

    def connection_is_lost(self) -> None:
        """Everything on its way is lost; a new one is made, and what was asked is asked again."""
        self.epoch.end()
        self.epoch = Epoch(MAX_AGE, self.clock.now + HEALTHY_FOR)
        self.wire.clear()
        self.unexecuted.clear()
        lost, self.reads = self.reads, []
        for truth in self.truths.values():
            truth.tracked = False
        for read in lost:
            if not read.flight.done:
                self.send(read.flight)
                self.reads[-1].drops = read.drops  # the flight is as old as it was

    def look_up_is_given_up(self, data: st.DataObject) -> None:
        if not self.reads:
            return
        flight = data.draw(st.sampled_from(self.reads)).flight
        if flight.done:
            return
        entry = self.cache.stale(flight.key) if flight.may_serve_stale else None
        if entry is not None:
            assert self.clock.now < entry.deadline + STALE_IF_ERROR
            assert self.clock.now < entry.expires
            assert not entry.epoch.revoked
            self.cache.land_stale(flight, entry)
            assert flight.stale
        else:
            self.cache.fail(flight, TimeoutError())
            assert flight.entry is None
        assert self.cache.join(flight.key) is not flight

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.9, 4.0, 8.0, 15.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    # What holds at every moment

    def judge(self, key: CacheKey, entry: Entry) -> None:
        """May this entry be served now?"""
        now = self.clock.now
        assert now < entry.deadline
        assert now < entry.epoch.healthy_until
        assert entry.deadline <= entry.sent + MAX_AGE
        assert entry.deadline <= entry.expires
        assert entry.epoch is self.epoch, "an entry of an ended epoch is served"
        _, read = self.told[id(entry)]
        truth = self.truths[key]
        # Read your writes.
        assert read.version >= self.own[key], "older than an own write that was answered"
        # The truth, unless its push is on its way. An expiry that the server has not noticed is told by the entry.
        if read.version != truth.version:
            told_of = any(isinstance(m, Push) and m.key in {key, None} for m in self.wire)
            assert told_of, "outdated, and nobody will tell"
        else:
            assert now < truth.expires, "served past its own end"
            assert entry.value == truth.value

    @invariant()
    def what_is_fresh_may_be_served(self) -> None:
        for key in KEYS:
            entry = self.cache.fresh(key)
            if entry is not None:
                self.judge(key, entry)

    @invariant()
    def what_is_stale_is_bounded(self) -> None:
        for key in KEYS:
            entry = self.cache.stale(key)
            if entry is not None:
                assert self.clock.now < min(entry.deadline + STALE_IF_ERROR, entry.expires)
                assert not entry.epoch.revoked

    @invariant()
    def everyone_is_answered_once(self) -> None:
        for flight, callers in self.callers.items():
            for caller in callers:
                if caller.gone:
                    assert not caller.answers
                elif flight.done:
                    assert caller.answers == [flight]
                else:
                    assert caller.answers == []
            if flight.done:
                assert (flight.entry is None) is (flight.error is not None)
                assert flight.waiters == []

    @invariant()
    def the_cache_is_bounded(self) -> None:
        assert len(self.cache.entries) <= MAX_ENTRIES

    @invariant()
    def only_flights_under_way_can_be_joined(self) -> None:
        for key in KEYS:
            flight = self.cache.join(key)
            assert flight is None or (not flight.done and not flight.dirty and flight.key == key)


CacheMachine.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestCacheMachine = pytest.mark.slow(CacheMachine.TestCase)


# What deserves to be read on its own

ADA: CacheKey = ("sf", "ada", "chat")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> LookupCache:
    return LookupCache(CONFIG, clock)


@pytest.fixture
def epoch() -> Epoch:
    return Epoch(MAX_AGE, inf)


def look_up(
    cache: LookupCache, clock: Clock, epoch: Epoch, value: Value, ttl: float | None = None
) -> Entry:
    flight = cache.open(Flight(ADA, inf))
    cache.land(flight, value, ttl, clock.now, epoch, storable=True)
    entry = cache.fresh(ADA)
    assert entry is not None
    assert entry is flight.entry
    return entry


def test_an_answer_ages_from_when_its_question_was_sent(
    cache: LookupCache, clock: Clock, epoch: Epoch
) -> None:
    flight = cache.open(Flight(ADA, inf))
    sent = clock.now
    clock.now += MAX_AGE - 1
    cache.land(flight, 0, None, sent, epoch, storable=True)
    assert cache.fresh(ADA) is not None
    clock.now += 1
    assert cache.fresh(ADA) is None


def test_pod_0_is_a_pod_and_none_is_an_answer(
    cache: LookupCache, clock: Clock, epoch: Epoch
) -> None:
    assert (look_up(cache, clock, epoch, 0).pod, look_up(cache, clock, epoch, None).pod) == (
        0,
        None,
    )
    assert look_up(cache, clock, epoch, 0).persistent
    assert not look_up(cache, clock, epoch, None).persistent
    assert not look_up(cache, clock, epoch, 0, ttl=5.0).persistent


@pytest.mark.parametrize(("ttl", "lives"), [(2.0, 2.0), (MAX_AGE + 5, MAX_AGE), (None, MAX_AGE)])
def test_a_link_lives_for_the_shorter_of_max_age_and_its_own_time(
    cache: LookupCache, clock: Clock, epoch: Epoch, ttl: float | None, lives: float
) -> None:
    look_up(cache, clock, epoch, 1, ttl)
    clock.now += lives - 0.001
    assert cache.fresh(ADA) is not None
    clock.now += 0.001
    assert cache.fresh(ADA) is None


def test_a_stale_answer_never_outlives_the_link_itself(
    cache: LookupCache, clock: Clock, epoch: Epoch
) -> None:
    look_up(cache, clock, epoch, 1, ttl=2.0)
    epoch.end()
    assert cache.fresh(ADA) is None
    assert cache.stale(ADA) is not None
    clock.now += 2.0
    assert cache.stale(ADA) is None


def test_an_epoch_of_age_zero_keeps_nothing(cache: LookupCache, clock: Clock) -> None:
    flight = cache.open(Flight(ADA, inf))
    cache.land(flight, 1, None, clock.now, Epoch(0.0, inf), storable=True)
    assert flight.entry is not None
    assert len(cache.entries) == 0


def test_the_oldest_are_evicted_first_and_a_renewed_one_is_young(clock: Clock) -> None:
    cache = LookupCache(CacheConfig(max_entries=3), clock)
    epoch = Epoch(MAX_AGE, inf)
    for uid in ("a", "b", "c", "a", "d"):
        flight = cache.open(Flight(("sf", uid, "chat"), inf))
        cache.land(flight, 1, None, clock.now, epoch, storable=True)
    assert [key[1] for key in cache.entries] == ["c", "a", "d"]
    assert cache.entries.evictions == 1


def test_dropping_a_uid_stops_the_first_look_up_of_a_service(
    cache: LookupCache, clock: Clock, epoch: Epoch
) -> None:
    """Nothing of the service has ever been stored, so nobody has heard of it but the lookup under way."""
    flight = cache.open(Flight(ADA, inf))
    flight.value_read = True
    cache.drop_uid("sf", "ada")
    cache.land(flight, 1, None, clock.now, epoch, storable=True)
    assert cache.fresh(ADA) is None


def test_dropping_a_uid_leaves_other_uids_and_namespaces_alone(
    cache: LookupCache, clock: Clock, epoch: Epoch
) -> None:
    keys: list[CacheKey] = [("sf", "ada", "chat"), ("sf", "adam", "chat"), ("sg", "ada", "chat")]
    for key in keys:
        cache.land(cache.open(Flight(key, inf)), 1, None, clock.now, epoch, storable=True)
    cache.drop_uid("sf", "ada")
    assert [cache.fresh(key) is not None for key in keys] == [False, True, True]


def test_a_change_after_the_value_was_read_keeps_the_answer_out_and_newcomers_away(
    cache: LookupCache, clock: Clock, epoch: Epoch
) -> None:
    changes: tuple[Callable[[], None], ...] = (
        lambda: cache.invalidated(ADA),
        cache.detach_flights,
        lambda: cache.drop(ADA),
    )
    for change in changes:
        flight = cache.open(Flight(ADA, inf))
        caller = Caller()
        flight.waiters.append(caller)
        flight.value_read = True
        change()
        assert cache.join(ADA) is None
        cache.land(flight, 1, None, clock.now, epoch, storable=True)
        assert caller.answers == [flight]
        assert cache.fresh(ADA) is None


def test_a_change_before_the_value_was_read_disturbs_nobody(
    cache: LookupCache, clock: Clock, epoch: Epoch
) -> None:
    flight = cache.open(Flight(ADA, inf))
    cache.invalidated(ADA)
    assert cache.join(ADA) is flight
    cache.land(flight, 1, None, clock.now, epoch, storable=True)
    assert cache.fresh(ADA) is flight.entry


def test_an_error_is_handed_to_everyone_and_kept_for_nobody(
    cache: LookupCache, clock: Clock
) -> None:
    flight = cache.open(Flight(ADA, inf))
    callers = [Caller() for _ in range(3)]
    flight.waiters += callers
    error = TimeoutError()
    cache.fail(flight, error)
    assert [caller.answers for caller in callers] == [[flight]] * 3
    assert flight.error is error
    assert cache.join(ADA) is None
    assert cache.fresh(ADA) is None
    assert cache.stale(ADA) is None
