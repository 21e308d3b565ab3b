"""The native part of a lookup, beside the pure code that it copies: whatever arrives, both do the same.

``SFROUTE_TEST_NATIVE`` says what must be there: ``built`` or ``sanitized``. Without it these tests skip where the part
was not compiled. ``make sanitize`` runs them with a part that checks its own memory.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import hiredis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.peer import bulk
from test_wire_fuzz import Owner, Wire, chunked, fuzz, names, pushes, streams, values

import sfroute
from sfroute import AsyncRouter, CacheConfig, RouterConfig
from sfroute._contract.keys import link_tag
from sfroute._lookups.answers import entry_of
from sfroute._lookups.cache import CacheCounts, Entry, Epoch, Flight, LookupCache, Waiter
from sfroute._lookups.lane import Lane, Read, sketch_of_read
from sfroute._lookups.packing import value_and_ttl_in_python
from sfroute._native import HALF, SOURCES, STALE, WHY_PURE
from sfroute._net.channel import take_batch_in_python
from sfroute._net.connection import Address, Connection, Token, WireSettings
from sfroute.telemetry import Telemetry

if os.environ.get("SFROUTE_TEST_NATIVE"):
    assert HALF == "native", WHY_PURE
elif HALF == "pure":
    # One that is there, and is not what is to be tested, is no reason to skip.
    assert WHY_PURE != STALE, f"{STALE}: make native"
    pytest.skip(WHY_PURE, allow_module_level=True)

from sfroute._native import heart as chosen

assert chosen is not None
heart = chosen

PART: Final = Path(str(sys.modules["sfroute._native.heart"].__file__))
if os.environ.get("SFROUTE_TEST_NATIVE") == "sanitized":
    assert b"__asan_init" in PART.read_bytes()

ROUNDS = int(os.environ.get("SFROUTE_TEST_ROUNDS", "20000"))
"""Lookups of the test for leaks; `make sanitize` makes it a million."""


# --- both halves


@dataclass(frozen=True)
class Asked:
    """One lookup of a case.

    Attributes:
        of_a_link: or of a uid's links.
        asking: after a redirect.
        late: how many join after it was sent.
        fate: what happens to it meanwhile.
    """

    of_a_link: bool = True
    asking: bool = False
    late: int = 0
    fate: str = ""


FATES = (
    *("", "", "", "", "dirty", "given up", "own write", "gone from the table", "clean again"),
    *("push awaited", "known", "in a batch", "ends a batch", "given up as its batch ends"),
    *("its caller repoints", "its caller hangs up"),
)


@dataclass(frozen=True)
class Setting:
    """What a lane and its cache are like."""

    max_entries: int = 100
    max_age: float = 5.0
    negative: bool = True
    troubled: bool = False
    repointed: bool = False
    services: tuple[str, ...] = ("chat",)
    pause: float = 0.0


class Recorder(Owner):
    """Notes what the owner of reads is told."""

    def __init__(self, cache: LookupCache, told: list[object]) -> None:
        super().__init__(cache)
        self.told = told

    def read_failed(self, read: Read, error: hiredis.ReplyError) -> None:
        self.told.append(("failed", read.key, str(error)))
        super().read_failed(read, error)

    def read_torn(self, read: Read) -> None:
        self.told.append(("torn", read.key))
        super().read_torn(read)

    def ask_again(self, read: Read, waiters: list[Waiter]) -> None:
        self.told.append(("ask again", read.key, len(waiters)))

    def answers_again(self, lane: Lane) -> None:
        self.told.append("answers again")
        lane.troubled = False

    def note_error(self, batch: object, error: hiredis.ReplyError) -> None:
        self.told.append(("batch failed", str(error)))

    def batch_ended(self, batch: object, error: Exception | None) -> None:
        self.told.append(("batch ended", str(error)))
        assert isinstance(batch, Batch)
        if batch.gives_up is not None:
            self.cache.fail(batch.gives_up, RuntimeError())


@dataclass
class Batch:
    """What telemetry knows of lookups that left together, and what happens when it hears of their end."""

    gives_up: Flight | None = None


class Caller:
    """One who waits for a flight. ``then`` is what it does about the answer."""

    def __init__(self, told: list[object], number: int) -> None:
        self.told, self.number, self.over = told, number, False
        self.then: Callable[[], None] = lambda: None

    def done(self) -> bool:
        return self.over

    def set_result(self, flight: Flight) -> None:
        self.over = True
        self.told.append((self.number, flight.key, seen(flight.entry), repr(flight.error)))
        self.then()


def seen(entry: Entry | None) -> object:
    if entry is None:
        return None
    return (
        repr(entry.value),
        *map(repr, (entry.deadline, entry.expires, entry.sent)),
        entry.epoch.max_age,
    )


def befall(fate: str, read: Read, cache: LookupCache, epoch: Epoch) -> None:
    if fate == "dirty":
        cache.detach_flights()
    elif fate == "given up":
        cache.fail(read, RuntimeError())
    elif fate == "own write":
        cache.entries[read.key] = Entry(1, 2000.0, epoch, 2000.0, 1000.0)
        cache.write_begins(read.key)
        cache.open(Read(read.key, 2000.0))
    elif fate == "gone from the table":
        cache._flights.pop(read.key, None)
    elif fate == "clean again":
        read.dirty = False
    elif fate == "push awaited":
        cache._own_writes[read.key] = 1000.0, None
    elif fate == "known":
        cache.entries[read.key] = Entry(1, 2000.0, epoch, 2000.0, 1000.0)
    elif "batch" in fate:
        read.batch = cast("Any", Batch(read if fate.startswith("given up") else None))
        read.closes_batch = fate != "in a batch"


Land = Callable[[Lane, bytes, "deque[Token]"], int]


async def story(
    chunks: list[bytes], asked: list[Asked], setting: Setting, land: Land | None
) -> list[object]:
    """All that can be seen of a lane that is sent these bytes, byte for byte of them."""
    told: list[object] = []
    instant = [1000.25]

    def clock() -> float:
        return instant[0]

    config = RouterConfig(
        cache=CacheConfig(
            heartbeat=3600.0,
            heartbeat_timeout=7200.0,
            max_entries=setting.max_entries,
            max_age=setting.max_age,
            negative=setting.negative,
        )
    )
    cache = LookupCache(config.cache, clock, lambda lag, writer: told.append(("own push", lag)))
    lane = Lane(
        Address("127.0.0.1", 1),
        WireSettings(),
        config,
        cache,
        Recorder(cache, told),
        clock,
        lambda *_: None,
        Telemetry(config.telemetry, clock),
    )
    connection = Connection(lane.channel, plain=partial(land, lane) if land is not None else None)
    connection.connection_made(cast("asyncio.Transport", Wire()))
    connection.server_version = (9, 1)
    lane.channel._up(connection, [b"", b"", b"OK"], clock())
    if setting.services:
        cache._services["ns"] = set(setting.services)
    reads = []
    callers: list[Caller] = []
    for number, one in enumerate(asked):
        uid = f"u{number % 6}"
        read = Read(("ns", uid, "chat") if one.of_a_link else ("ns", uid), clock() + 60)
        cache.open(read)
        callers.append(Caller(told, number))
        read.add(callers[-1])
        read.set_out(lane, link_tag("ns", uid), asking=one.asking)
        reads.append(read)
    lane.channel._flush()
    lane.troubled = setting.troubled
    for number, (one, read) in enumerate(zip(asked, reads, strict=True)):
        for _ in range(one.late):
            read.add(Caller(told, 100 + number))
        befall(one.fate, read, cache, lane.epoch)
        (caller,) = [each for each in callers if each.number == number]
        if one.fate == "its caller repoints":
            caller.then = lane.repoint
        elif one.fate == "its caller hangs up":
            caller.then = connection.abort
    if setting.repointed:
        lane.repoint()
    instant[0] += setting.pause
    for chunk in chunks:
        connection.data_received(chunk)
        told.append(
            (
                connection.alive,
                connection.in_flight,
                [(key, seen(cache.entries.find(key))) for key in cache.entries],
                list(cache._flights),
                sorted(map(repr, cache._own_writes.items())),
                {name: sorted(found) for name, found in cache._services.items()},
                [getattr(cache.counts, name) for name in cache.counts.__slots__],
                [(r.done, r.dirty, r.torn, r.tears, r.value_read, len(r.waiters)) for r in reads],
            )
        )
        if not connection.alive:
            break
    connection.connection_lost(None)
    lane.channel.close()
    await lane.channel.wait_closed()
    return told


digits = [b"0", b"3", b"007", b"12", b"9" * 18, b"9" * 19, b"9" * 20, b"x"]
pods = st.sampled_from(
    [
        *(bulk(text) for text in [*digits, b"%d" % (2**63 - 1), b"%d" % 2**63]),
        *(b"_\r\n", b"$-1\r\n", b"$0\r\n\r\n", b"$1\r\n7XX", b"$01\r\n7\r\n", b"$2\r\n-1\r\n"),
        *(b"+3\r\n", b":3\r\n"),
    ]
)
milliseconds = [b"-1", b"-1", b"-2", b"5000", b"1", b"0", b"-0", b"+1", b"007", b"-3", b"12a", b""]
large = [b"%d" % 2**53, b"%d" % (2**53 + 1), b"9" * 18, b"9" * 19]
ttls = st.sampled_from([b":%b\r\n" % text for text in milliseconds + large] + [b":1\n"])
plain = st.sampled_from(
    [bulk("3") + b":-1\r\n", bulk("12") + b":4321\r\n", b"_\r\n:-2\r\n", bulk("0") + b":1\r\n"]
)
changes = st.sampled_from(
    [
        b">2\r\n" + bulk("invalidate") + b"*1\r\n" + bulk(f"sf:{{ns:lk:u{number}}}chat")
        for number in range(6)
    ]
)
replies = st.lists(
    st.one_of(plain, plain, plain, changes, st.builds(bytes.__add__, pods, ttls), pushes, values),
    max_size=10,
).map(b"".join)
runs = st.builds(
    lambda some, rest: b"".join(some) + rest, st.lists(plain, min_size=2, max_size=8), replies
)
crowds = st.lists(
    st.sampled_from([Asked(), Asked(), Asked(), *(Asked(fate=fate) for fate in FATES)]),
    min_size=3,
    max_size=10,
)
lookups = st.lists(
    st.one_of(
        st.just(Asked()),
        st.builds(
            Asked,
            st.sampled_from([True, True, False]),
            st.sampled_from([False, False, False, True]),
            st.integers(0, 1),
            st.sampled_from(FATES),
        ),
    ),
    max_size=10,
)
surroundings = st.one_of(
    st.just(Setting()),
    st.builds(
        Setting,
        st.sampled_from([1, 3, 100]),
        st.sampled_from([0.0, 0.5, 5.0, 3]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from([("chat",), ("mail",), ()]),
        st.sampled_from([0.0, 10.0]),
    ),
)


@pytest.mark.slow
def test_both_halves_do_the_same_whatever_arrives() -> None:
    taken = 0

    def counted(lane: Lane, data: bytes, tokens: deque[Token]) -> int:
        nonlocal taken
        found = heart.land(lane, data, tokens)
        taken += found
        return found

    with asyncio.Runner() as runner:

        @fuzz(600)
        @given(
            st.one_of(chunked(runs), chunked(runs), chunked(replies), chunked(streams)),
            st.one_of(crowds, lookups),
            surroundings,
        )
        @example([(bulk("3") + b":-1\r\n") * 3], [Asked()] * 3, Setting())
        @example([b"_\r\n:-2\r\n"], [Asked(late=1)], Setting(pause=10.0))
        @example([bulk("3") + b":-1\r\n"], [Asked(fate="own write")], Setting())
        @example([bulk("3") + b":-1\r\n"], [Asked(fate="given up")], Setting())
        @example([bulk("3") + b":-1\r\n"], [Asked(fate="dirty")], Setting())
        @example([bulk("3") + b":-1\r\n"], [Asked(fate="gone from the table")], Setting())
        @example([bulk("3") + b":-1\r\n"], [Asked(fate="push awaited")], Setting())
        @example([(bulk("3") + b":-1\r\n") * 2], [Asked(fate="known")] * 3, Setting())
        @example([bulk("3") + b":-1\r\n"], [Asked()], Setting(services=()))
        @example([bulk("3") + b":-1\r\n"], [Asked()], Setting(services=("mail",)))
        @example([bulk("3") + b":-1\r\n"], [Asked(asking=True)], Setting())
        @example([bulk("3") + b":-1\r\n"], [Asked()], Setting(troubled=True))
        @example([b"_\r\n:-2\r\n"], [Asked()], Setting(negative=False))
        @example([bulk("3") + b":007\r\n"], [Asked()], Setting())
        @example([b"$1\r\n3XX:-1\r\n"], [Asked()], Setting())
        @example([bulk("3") + b":-2\r\n" + b"_\r\n:-1\r\n"], [Asked()] * 2, Setting())
        @example([(bulk("3") + b":-1\r\n") * 8], [Asked()] * 8, Setting())
        @example([bulk("3") + b":5000\r\n"], [Asked()] * 2, Setting(repointed=True))
        @example([(bulk("3") + b":-1\r\n") * 3], [Asked()] * 3, Setting(max_entries=1))
        @example([bulk("3") + b":-1\r\n"], [Asked()], Setting(services=(), max_age=0.0))
        @example(
            [(bulk("3") + b":-1\r\n") * 3],
            [Asked(fate="in a batch"), Asked(fate="ends a batch"), Asked()],
            Setting(),
        )
        @example([bulk("3") + b":-1\r\n"], [Asked(fate="given up as its batch ends")], Setting())
        @example(
            [(bulk("3") + b":-1\r\n") * 2],
            [Asked(fate="its caller repoints"), Asked()],
            Setting(),
        )
        @example(
            [(bulk("3") + b":-1\r\n") * 3],
            [Asked(), Asked(fate="its caller hangs up"), Asked()],
            Setting(),
        )
        def check(chunks: list[bytes], asked: list[Asked], setting: Setting) -> None:
            pure = runner.run(story(chunks, asked, setting, None))
            assert runner.run(story(chunks, asked, setting, counted)) == pure

        check()
    # Enough went the native way: else this would compare the pure code with itself.
    assert taken > 1000


def test_plain_replies_never_reach_the_parser() -> None:
    async def main() -> None:
        taken: list[int] = []

        def counted(lane: Lane, data: bytes, tokens: deque[Token]) -> int:
            taken.append(heart.land(lane, data, tokens))
            return taken[-1]

        data = bulk("3") + b":-1\r\n" + b"_\r\n:-2\r\n" + bulk("12") + b":5000\r\n"
        await story([data, data], [Asked()] * 6, Setting(), counted)
        assert taken == [len(data)] * 2

    asyncio.run(main())


@pytest.mark.parametrize("hangs_up", [False, True])
async def test_a_connection_that_was_lost_on_the_way_tells_of_no_read(hangs_up: bool) -> None:
    told: list[str] = []

    class Listener:
        def on_push(self, push: list[object]) -> None:
            told.append("push")

        def on_read(self) -> None:
            told.append("read")

        def on_lost(self, tokens: deque[Token], error: Exception) -> None:
            told.append("lost")

    def plain(data: bytes, tokens: deque[Token]) -> int:
        if hangs_up:
            connection.abort()
        return len(data)

    connection = Connection(Listener(), plain=plain)
    connection.data_received(b":1\r\n")
    assert told == (["lost"] if hangs_up else ["read"])


@given(names, names, names)
@example("ns", "a\ud800", "chat")
@example("ns", "a", "ch\ud800t")
@fuzz(300)
def test_both_halves_pack_the_same(namespace: str, uid: str, service: str) -> None:
    try:
        tag = link_tag(namespace, uid)
        expected = value_and_ttl_in_python(tag, service)
    except UnicodeEncodeError:
        with pytest.raises(UnicodeEncodeError):
            heart.pack(link_tag(namespace, uid), service)
        return
    assert heart.pack(tag, service) == expected


# --- nothing is kept


def test_no_lookup_leaks() -> None:
    at_once = 500
    data = (bulk("3") + b":-1\r\n") * (at_once - 1) + bulk("12") + b":5000\r\n"

    async def main() -> tuple[list[list[int]], list[int]]:
        config = RouterConfig(
            cache=CacheConfig(heartbeat=3600.0, heartbeat_timeout=7200.0, max_entries=at_once)
        )
        cache = LookupCache(config.cache, time.monotonic)
        lane = Lane(
            Address("127.0.0.1", 1),
            WireSettings(),
            config,
            cache,
            Owner(cache),
            time.monotonic,
            lambda *_: None,
            Telemetry(config.telemetry, time.monotonic),
        )
        connection = Connection(lane.channel, plain=partial(heart.land, lane))
        connection.connection_made(cast("asyncio.Transport", Wire()))
        connection.server_version = (9, 1)
        lane.channel._up(connection, [b"", b"", b"OK"], time.monotonic())
        watched: list[object] = [lane, lane.epoch, cache, cache.entries, Read, Entry, Epoch]
        counts, blocks = [], []
        for turn in range(max(3, ROUNDS // at_once)):
            for number in range(at_once):
                # The same uids, so that what is cached stays as large as it is.
                set_out(cache, lane, f"u{number}")
            lane.channel._flush()
            connection.data_received(data)
            assert connection.in_flight == 0
            if turn % 20 == 2:
                gc.collect()
                counts.append([sys.getrefcount(each) for each in watched])
                blocks.append(sys.getallocatedblocks())
        lane.channel.close()
        return counts, blocks

    counts, blocks = asyncio.run(main())
    assert all(found == counts[0] for found in counts)
    # One object kept of each lookup would be ROUNDS. (Python's own allocator counts them; `make sanitize` has another.)
    assert abs(blocks[-1] - blocks[0]) < ROUNDS / 20


def set_out(cache: LookupCache, lane: Lane, uid: str) -> None:
    cache.open(Read(("ns", uid, "chat"), time.monotonic() + 60)).set_out(lane, link_tag("ns", uid))


# --- what it refuses


def test_what_is_not_as_it_expects_is_refused() -> None:
    land: Any = heart.land
    wrong: list[tuple[Any, ...]] = [(), (None, "text", []), (None, b"", [], 1)]
    for arguments in wrong:
        with pytest.raises(TypeError):
            land(*arguments)
    with pytest.raises(TypeError):
        cast("Any", heart.pack)("text", "chat")
    # Not a lane: it is read only where there is something plain.
    assert land(object(), b"+PONG\r\n", deque()) == 0
    with pytest.raises(AttributeError):
        land(object(), bulk("3") + b":-1\r\n", deque())


def test_a_router_without_the_slots_is_refused() -> None:
    learn: Any = heart.learn_hits
    with pytest.raises(TypeError, match="six classes and a function"):
        learn(AsyncRouter, Entry, Epoch, Flight, CacheCounts, Telemetry)
    with pytest.raises(AttributeError, match="deadline"):
        learn(AsyncRouter, AsyncRouter, Epoch, Flight, CacheCounts, Telemetry, entry_of)
    with pytest.raises(TypeError, match="argument"):
        heart.learn_misses(router=AsyncRouter)


def test_classes_without_the_slots_are_refused_and_change_nothing() -> None:
    class Read2(Read):
        """Same slots: good."""

        __slots__ = ()

    class Bare:
        pass

    for classes in ((Bare, Entry, Epoch), (Read2, Bare, Epoch), (Read2, Entry, int)):
        with pytest.raises((TypeError, AttributeError)):
            heart.learn(*classes)
    with pytest.raises(TypeError):
        heart.learn(cast("Any", 1), Entry, Epoch)
    test_plain_replies_never_reach_the_parser()


def test_slots_that_were_borrowed_from_another_class_are_refused() -> None:
    class Small:
        __slots__ = ("max_age",)

    borrowed = type("Borrowed", (), {"__slots__": (), "max_age": vars(Epoch)["max_age"]})
    with pytest.raises(TypeError, match="is not a slot"):
        heart.learn(Read, Entry, borrowed)
    heart.learn(Read, Entry, Small)
    # As it was.
    heart.learn(Read, Entry, Epoch)


class Beside:
    """A lane, as far as the native part looks at one, and one lookup on it."""

    troubled = False

    def __init__(self, service: str = "chat") -> None:
        self.cache = LookupCache(CacheConfig(), time.monotonic)
        self.epoch = Epoch(5.0, 2000.0)
        self.read = self.cache.open(Read(("ns", "ada", service), 2000.0))
        self.read.lane = cast("Lane", self)
        self.read.epoch, self.read.sent, self.read.sent_at = self.epoch, True, 1000.0
        self.read._asking, self.read.batch = False, None

    def land(self, *tokens: object) -> int:
        return heart.land(self, bulk("3") + b":-1\r\n", deque(tokens))


def test_two_replies_that_are_not_of_one_lookup_are_left_alone() -> None:
    beside = Beside()
    assert beside.land(beside.read, Beside().read) == 0
    assert not beside.read.done
    assert beside.land(beside.read, beside.read) > 0
    assert beside.read.done


@pytest.mark.parametrize("slot", Read.__slots__ + Flight.__slots__)
def test_a_lookup_that_lacks_a_slot_lands_in_the_pure_code_or_not_at_all(slot: str) -> None:
    beside = Beside()
    if hasattr(beside.read, slot):
        delattr(beside.read, slot)
    # What is not read here may be missing.
    landed = beside.land(beside.read, beside.read)
    assert landed == 0 or slot in {
        *(
            "_skip",
            "_value",
            "closes_batch",
            "commands",
            "deadline",
            "entry",
            "error",
            "from_store",
        ),
        *("hops", "last_error", "may_serve_stale", "payload", "records", "stale", "tears", "torn"),
    }


STALE_PART = """
from sfroute._native import HALF, SOURCES, STALE, WHY_PURE
from sfroute.cli.doctor.router import RouterFacts, judge_router
print(HALF, WHY_PURE == STALE, [f.severity for f in judge_router(RouterFacts())[-1].findings])
"""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("none", "native False []"),
        *((f"newer {name}", "pure True ['warning']") for name in SOURCES),
        # An installation without sources: there is nothing to compare with, and nobody replaced it.
        ("no source", "native False []"),
    ],
)
def test_a_part_that_is_older_than_its_source_is_not_used(
    tmp_path: Path, change: str, told: str
) -> None:
    copy = tmp_path / "sfroute"
    package = Path(sfroute.__file__).parent
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    # An installation has the scripts in the package, a clone beside it.
    if not (copy / "lua_scripts").exists():
        shutil.copytree(package.parent / "lua_scripts", tmp_path / "lua_scripts")
    for name in SOURCES:
        source = copy / "_native" / name
        if change == f"newer {name}":
            source.write_text(source.read_text() + "/* changed */\n")
        elif change == "no source":
            source.unlink()
    assert python(STALE_PART, PYTHONPATH=str(tmp_path), SFROUTE_PURE="") == told


def python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    return done.stdout.strip()


HALF_OF_STATS = """
import sfroute
from sfroute._native import HALF
router = sfroute.Router.from_url("redis+cluster://127.0.0.1:1")
print(HALF, sfroute.AsyncRouter.from_url("redis+cluster://127.0.0.1:1").stats().native)
"""


@pytest.mark.parametrize(
    ("switch", "told"), [("1", "pure False"), ("0", "native True"), ("", "native True")]
)
def test_the_environment_chooses_and_stats_say_which(switch: str, told: str) -> None:
    assert python(HALF_OF_STATS, SFROUTE_PURE=switch) == told


SUBINTERPRETER = """
import importlib.util
try:
    import _interpreters as interpreters
except ModuleNotFoundError:
    import _xxsubinterpreters as interpreters
program = '''
import importlib.util
spec = importlib.util.spec_from_file_location("sfroute._native.heart", {path!r})
try:
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
except ImportError as error:
    print(str(error))
'''
made = interpreters.create()
failed = interpreters.{run}(made, program)
assert failed is None, failed
interpreters.destroy(made)
"""


def test_a_subinterpreter_gets_an_import_error() -> None:
    run = "exec" if sys.version_info >= (3, 13) else "run_string"
    told = python(SUBINTERPRETER.format(path=str(PART), run=run))
    assert "interpreter" in told


HASHED = """
import sys
sys.path.insert(0, {tests!r})
from test_native import Beside
class Name(str):
    def __hash__(self):
        self.beside.cache._services.clear()
        return str.__hash__(self)
name = Name("chat")
# Of the lookup's own key only from here on.
name.beside = Beside()
name.beside = beside = Beside(name)
beside.cache._services["ns"] = {{str(number) for number in range(1000)}}
landed = beside.land(beside.read, beside.read)
print(landed > 0, beside.read.done, beside.cache.entries.find(beside.read.key).value)
"""


def test_a_name_that_runs_code_when_hashed_takes_nothing_away_from_under_it() -> None:
    program = HASHED.format(tests=str(Path(__file__).parent))
    # Freed memory is overwritten at once.
    assert python(program, PYTHONMALLOC="debug") == "True True 3"


# --- what leaves together


class Other:
    """A request that is no lookup, of so many commands."""

    def __init__(self, payload: bytes, commands: int, given_up: bool) -> None:
        self.payload = payload
        self.commands = commands
        self.sent_at = -1.0
        self._given_up = given_up

    def abandoned(self, now: float) -> bool:
        return self._given_up


@dataclass(frozen=True)
class Queued:
    """One request of a queue."""

    of_a_link: bool
    commands: int
    given_up: bool
    size: int

    def made(self) -> Any:
        if not self.of_a_link:
            return Other(b"x" * self.size, self.commands, self.given_up)
        read = sketch_of_read()
        read.payload = b"y" * self.size
        read.commands = self.commands
        read.done = self.given_up
        return read


queued = st.builds(
    Queued,
    st.booleans(),
    st.integers(1, 5),
    st.sampled_from([False, False, True]),
    st.integers(0, 9),
)


@given(st.lists(queued, max_size=20), st.integers(-1, 30), st.integers(0, 12), st.integers(0, 40))
def test_both_halves_take_the_same_batch(
    requests: list[Queued], room: int, max_commands: int, max_bytes: int
) -> None:
    made = [request.made() for request in requests]
    results = []
    for take in (take_batch_in_python, heart.take_batch):
        queue: deque[Any] = deque(made)
        for request in made:
            request.sent_at = -1.0
        data, tokens, taken = take(queue, 5.0, room, max_commands, max_bytes)
        order = [made.index(each) for each in taken]
        sent = [request.sent_at for request in made]
        results.append((data, [made.index(token) for token in tokens], order, list(queue), sent))
    assert results[0] == results[1]


def test_what_leaves_is_marked() -> None:
    reads = [sketch_of_read() for _ in range(3)]
    epoch = Epoch(1.0, 2.0)
    assert heart.mark_sent([reads[0], Other(b"", 1, False), reads[1]], epoch) == 2
    assert [(read.sent, read.epoch) for read in reads] == [
        *((True, epoch), (True, epoch), (False, None))
    ]


def test_what_cannot_leave_is_told() -> None:
    take: Any = heart.take_batch
    wrong: list[tuple[Any, ...]] = [(), (deque(), 1.0, 2, 3), (deque(), 1.0, "2", 3, 4)]
    for arguments in (*wrong, (None, 1.0, 2, 3, 4)):
        with pytest.raises(TypeError):
            take(*arguments)
    text = Other(b"", 1, False)
    text.payload = "text"  # type: ignore[assignment]
    with pytest.raises(TypeError, match="bytes"):
        take(deque([text]), 1.0, 2, 3, 4)
    with pytest.raises(AttributeError):
        take(deque([object()]), 1.0, 2, 3, 4)
    with pytest.raises(TypeError):
        cast("Any", heart.mark_sent)((), None)
    begin: Any = heart.begin
    for refused in ((), (None, ("ns", "ada", "chat"), None, 1.0)):
        with pytest.raises(TypeError):
            begin(*refused)
