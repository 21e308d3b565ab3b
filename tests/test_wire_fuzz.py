"""A hostile or broken server: whatever it sends, nothing is raised into the event loop, nothing hangs, nobody who waits
is forgotten, and no memory is taken for what is only announced. And a hostile user, whatever their name.

A few hundred examples here; ``make fuzz MINUTES=10`` looks at the same properties for as long as you like.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import catalogue
import hiredis
import pytest
import redis.crc
from catalogue import on_store
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from support.peer import Peer, bulk, script_reply

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    CacheConfig,
    CorruptReply,
    InvalidArgument,
    RetryConfig,
    RouterConfig,
    SfrouteError,
    StoreUnavailable,
)
from sfroute._contract.keys import (
    check_link_names,
    link_key,
    link_prefix,
    link_tag,
    operation_key,
    parse_link_key,
)
from sfroute._contract.scripts import SCRIPTS
from sfroute._lookups.cache import Flight, LookupCache, Waiter
from sfroute._lookups.lane import Lane, LinkWatcher, Read
from sfroute._net.connection import Address, Connection, ConnectionLost, Token, WireSettings
from sfroute._net.lineage import Lineage
from sfroute._net.resp import MAX_REPLY_BYTES
from sfroute._net.slot_map import MAX_NODES, NoSlotMap, read_slot_map
from sfroute._net.topology import SingleNode
from sfroute.telemetry import Telemetry

MINUTES = float(os.environ.get("SFROUTE_FUZZ_MINUTES", "0"))
"""How long to look for trouble; 0: only a few hundred examples. `make fuzz` sets it."""


def fuzz(examples: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """So many examples, or, with MINUTES, as many as fit; then each run begins with another seed."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=not MINUTES,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )


def again(check: Callable[[], None]) -> None:
    """Run a property once, or for its share of MINUTES; it must not take much memory."""
    until = time.monotonic() + MINUTES * 60 / PROPERTIES
    before = peak_megabytes()
    rounds = 1
    check()
    while time.monotonic() < until:
        check()
        rounds += 1
    if MINUTES:
        print(f"{rounds} rounds, {peak_megabytes()} MB at most")
    # Of that, most is Hypothesis' own.
    assert peak_megabytes() - before < 200


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


PROPERTIES = 7
"""Those that share MINUTES."""

# --- what a user may call themselves

names = st.text(st.characters(), max_size=12) | st.text("{}:a\x00\n\u00e9\ud800sf lk", max_size=12)


@pytest.mark.slow
def test_whatever_names_are_accepted_stay_in_their_key() -> None:
    @fuzz(500)
    @given(names, names, names)
    @example("ns", "a}b", "chat")
    @example("ns:lk", "a", "chat")
    @example("ns", "a", "{b}")
    @example("ns", "a" * 513, "chat")
    def check(namespace: str, uid: str, service: str) -> None:
        try:
            check_link_names(namespace, uid, service)
        except InvalidArgument:
            return
        tag = f"{namespace}:lk:{uid}"
        for key in (
            link_key(namespace, uid, service),
            link_prefix(namespace, uid),
            operation_key(namespace, uid, "t"),
        ):
            # The slot, as the servers count it, is that of this uid in this namespace, whatever the names hold.
            assert redis.crc.key_slot(key.encode()) == redis.crc.key_slot(tag.encode())
            assert key.count("{") == key.count("}") == 1
        # Nobody else's key is the same: the names can be read out of it again.
        assert parse_link_key(link_key(namespace, uid, service).encode()) == (
            namespace,
            uid,
            service,
        )
        assert parse_link_key(link_prefix(namespace, uid).encode()) == (namespace, uid, None)
        # Nor can a key end a command, or begin one.
        assert not any(character in tag + service for character in "\r\n\x00")

    again(check)


# --- what a server may send

keys = st.sampled_from(
    [
        b"sf:{ns:lk:u0}chat",
        b"sf:{ns:lk:u1}",
        b"sf:{ns:lk:u0>1234567}chat",
        b"sf:{:lk:}",
        b"",
        b"\xff",
    ]
) | st.binary(max_size=20)
lines = st.binary(max_size=20).map(lambda text: text.replace(b"\r", b"").replace(b"\n", b""))
numbers = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-2, -1, 0, 1, 50, 2**31])
codes = st.sampled_from(
    b"ERR MOVED ASK TRYAGAIN CLUSTERDOWN NOSCRIPT LOADING READONLY MASTERDOWN WRONGTYPE NOPERM NOAUTH".split()
)
places = st.sampled_from(
    [
        b"1 127.0.0.1:1",
        b"99999 127.0.0.1:1",
        b"1 127.0.0.1:99999",
        b"1 :1",
        b"1 \x00:1",
        b"1 [::1:1",
    ]
)
# Far more digits than Python makes a number of.
long_places = st.builds(lambda: b"1 h:" + b"9" * 5000)
error_texts = lines | st.builds(
    lambda code, rest: code + b" " + rest, codes, lines | places | long_places
)
scalars = st.one_of(
    numbers.map(lambda n: b":%d\r\n" % n),
    st.sampled_from(
        [
            b"_\r\n",
            b"#t\r\n",
            b"#f\r\n",
            b",nan\r\n",
            b",-inf\r\n",
            b",1.5\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
        ]
    ),
    st.sampled_from([b"0", b"7", b"-1", b"x", b"9" * 19, b"9" * 30, b"\xc2\xb2"]).map(bulk),
    st.binary(max_size=30).map(bulk),
    lines.map(lambda text: b"+%b\r\n" % text),
    error_texts.map(lambda text: b"-%b\r\n" % text),
    lines.map(lambda text: b"=%d\r\ntxt:%b\r\n" % (len(text) + 4, text)),
    st.integers(0, 10**40).map(lambda n: b"(%d\r\n" % n),
)


def aggregates(items: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    def pack(kind: bytes, parts: list[bytes]) -> bytes:
        if kind in b"%|" and len(parts) % 2:
            parts = parts[1:]
        count = len(parts) // 2 if kind in b"%|" else len(parts)
        return b"%b%d\r\n%b" % (kind, count, b"".join(parts))

    return st.builds(
        pack,
        st.sampled_from([b"*", b"*", b"~", b"%", b"%", b"|", b">"]),
        st.lists(items, max_size=4),
    )


values = st.recursive(scalars, aggregates, max_leaves=6)
pushes = st.builds(
    lambda listed: b">2\r\n" + bulk("invalidate") + listed,
    st.lists(keys, max_size=3).map(lambda ks: b"*%d\r\n%b" % (len(ks), b"".join(map(bulk, ks))))
    | st.just(b"_\r\n")
    | values,
)
look_ups = st.builds(
    lambda pod, ttl: pod + ttl,
    st.sampled_from([b"_\r\n", bulk("0"), bulk("3"), bulk("x")]) | values,
    st.sampled_from([b":-1\r\n", b":-2\r\n", b":5000\r\n"]) | values,
)
headers = st.builds(
    lambda kind, size: kind + size + b"\r\n",
    st.sampled_from([b"*", b">", b"%", b"~", b"|", b"$", b"=", b"(", b"!", b"?", b";"]),
    st.sampled_from(
        [b"1000000", b"999999999", b"4294967295", b"9" * 18, b"9" * 30, b"-1", b"-9", b"?", b""]
    ),
)
valid = st.lists(st.one_of(look_ups, look_ups, pushes, values), max_size=8).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid stream with a few bytes changed, lost, repeated, or a length that is none put in."""
    stream = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(stream)))
        end = min(len(stream), place + draw(st.integers(0, 4)))
        stream[place:end] = draw(st.one_of(st.binary(max_size=4), headers, st.just(b"\r\n")))
    return bytes(stream)


streams = st.one_of(valid, mutated(), mutated(), st.binary(max_size=60), headers)


@st.composite
def chunked(draw: st.DrawFn, source: st.SearchStrategy[bytes] = streams) -> list[bytes]:
    """A stream as the network may cut it."""
    stream = draw(source)
    if draw(st.booleans()):
        size = draw(st.integers(1, 9))
        return [stream[at : at + size] for at in range(0, len(stream), size)]
    cuts = sorted(draw(st.sets(st.integers(0, len(stream)), max_size=6)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]


# --- one connection


class Wire:
    """The transport of a connection that has no network: keeps what becomes of it."""

    def __init__(self) -> None:
        self.aborted = 0

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        """Nobody reads it."""

    def abort(self) -> None:
        self.aborted += 1

    def pause_reading(self) -> None:
        """The test feeds on all the same, as a transport does with what it has read already."""

    resume_reading = pause_reading


def feed(connection: Connection, chunk: bytes) -> None:
    """As a transport does."""
    connection.data_received(chunk)


class Followed:
    """Receiver of a connection, and what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.unanswered: list[Token] = []
        self.lost = 0
        self.closed = False

    def on_push(self, push: list[object]) -> None:
        assert not self.lost
        self.told.append(("push", repr(push)))

    def on_read(self) -> None:
        assert not self.lost

    def on_lost(self, tokens: deque[Token], error: ConnectionLost) -> None:
        self.lost += 1
        self.unanswered = list(tokens)
        assert str(error)


class Asked:
    """One who asked, and what came."""

    def __init__(self, number: int, followed: Followed) -> None:
        self.number = number
        self.followed = followed
        self.answers = 0

    def on_reply(self, reply: object) -> None:
        assert not self.followed.lost
        self.answers += 1
        self.followed.told.append((self.number, repr(reply)))


def converse(chunks: list[bytes], commands: int) -> Followed:
    """Feed a connection that has so many commands under way, and check its bookkeeping."""
    followed, wire = Followed(), Wire()
    connection = Connection(followed)
    connection.connection_made(cast("asyncio.Transport", wire))
    asked = [Asked(number, followed) for number in range(commands)]
    connection.send(b"", asked)
    for chunk in chunks:
        feed(connection, chunk)
        if not connection.alive:
            break
    assert followed.lost == wire.aborted == (not connection.alive)
    followed.closed = not connection.alive
    connection.connection_lost(None)
    connection.connection_lost(OSError(104, "reset"))
    assert followed.lost == 1
    # Everybody is told once: some by a reply, in order, the others by the loss.
    answered = [one for one in asked if one.answers]
    assert [*answered, *followed.unanswered] == asked
    assert all(one.answers == 1 for one in answered)
    return followed


@pytest.mark.slow
def test_whatever_arrives_everybody_is_told_once() -> None:
    @fuzz(300)
    @given(chunked(), st.integers(0, 12))
    @example([b"%1\r\n*1\r\n:1\r\n:2\r\n"], 1)
    @example([b"-ERR \xff\xfe\r\n"], 1)
    @example([b"*1\r\n" * 1000], 1)
    @example([b"!5\r\n\xff\xfeabc\r\n"], 1)
    def check(chunks: list[bytes], commands: int) -> None:
        converse(chunks, commands)

    again(check)


@pytest.mark.slow
def test_where_the_network_cuts_makes_no_difference() -> None:
    @fuzz(200)
    @given(valid, st.data())
    def check(stream: bytes, data: st.DataObject) -> None:
        whole = converse([stream], 40)
        pieces = converse(data.draw(chunked(st.just(stream))), 40)
        assert pieces.told == whole.told
        assert len(pieces.unanswered) == len(whole.unanswered)

    again(check)


@pytest.mark.parametrize("kind", [b"*", b">", b"~", b"|"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    # hiredis does not look at the two bytes that end a string.
    "before",
    [b"", b"+OK\r\n", b"*2\r\n", b">2\r\n+a\r\n", b"$1\r\n0XX", b"*3\r\n$1\r\n0*1", b"$1\r\n*\r\n"],
)
def test_a_list_of_millions_is_not_waited_for(kind: bytes, size: int, before: bytes) -> None:
    stream = before + kind + b"2000000\r\n"
    followed = converse([stream[at : at + size] for at in range(0, len(stream), size)], 3)
    assert followed.closed


@pytest.mark.parametrize("kind", [b"*", b">", b"~", b"|"])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_nor_are_many_long_ones_in_one(kind: bytes, size: int) -> None:
    stream = (kind + b"50000\r\n") * 20
    followed = converse([stream[at : at + size] for at in range(0, len(stream), size)], 3)
    assert followed.closed


def test_long_ones_one_after_the_other_are_fine() -> None:
    one = b"*60000\r\n" + b":1\r\n" * 60_000
    followed = converse([one[:9], one[9:] + one * 29], 30)
    assert (len(followed.told), followed.closed) == (30, False)


@pytest.mark.parametrize("name", [b">1234567", b"*1234567", b"~1234567", b"a|1234567", b"$9999999"])
def test_a_name_that_looks_like_one_closes_nothing(name: bytes) -> None:
    """Nor a state, nor a name of which only the beginning has arrived."""
    key = bulk(b"sf:{ns:lk:%b}%b" % (name, name))
    push = b">2\r\n" + bulk("invalidate") + b"*2\r\n" + key + key
    stream = push + bulk(name) + b"%1\r\n" + bulk(name) + bulk(name * 2) + b"+a" + name + b"\r\n"
    for size in range(1, 30):
        followed = converse([stream[at : at + size] for at in range(0, len(stream), size)], 3)
        assert (len(followed.told), followed.closed) == (4, False)


def test_an_endless_reply_is_cut_off() -> None:
    megabyte = b"x" * 2**20
    followed = converse([b"$9999999999\r\n", *[megabyte] * (MAX_REPLY_BYTES // 2**20 + 1)], 1)
    assert (followed.closed, followed.told) == (True, [])


@pytest.mark.parametrize("one", [b"*0\r\n", b"%0\r\n", b"+ab\r\n", b",1\r\n"])
@pytest.mark.slow
def test_nor_does_a_crowd_of_little_ones_take_more(one: bytes) -> None:
    chunk = (b"*9000\r\n" + one * 9000) * 20
    before = peak_megabytes()
    followed = converse([b"*9999\r\n", *[chunk] * (MAX_REPLY_BYTES // len(chunk))], 1)
    assert (followed.closed, followed.told) == (True, [])
    assert peak_megabytes() - before < 100


ANNOUNCE = """
import resource, sys
sys.path.insert(0, {tests!r})
from test_wire_fuzz import converse
before = resource.getrusage(resource.RUSAGE_SELF)
for kind in b"*>%~|$=(!?":
    for size in (b"9999", b"99999", b"999999", b"1000000", b"99999999", b"4294967295", b"9223372036854775807"):
        for depth in (1, 5, 300):
            converse([(bytes([kind]) + size + b"\\r\\n") * depth, b":1\\r\\n" * 10], 3)
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_maxrss - before.ru_maxrss, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
"""


@pytest.mark.slow
def test_what_is_only_announced_takes_no_memory_and_no_time() -> None:
    program = ANNOUNCE.format(tests=os.path.dirname(__file__))  # noqa: PTH120
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50
    )
    kilobytes, seconds = done.stdout.split()
    assert int(kilobytes) < 100_000
    # Of the processor, not of the clock: a thousand million elements would cost ten times as much.
    assert float(seconds) < 5


# --- one lane


class Owner:
    """Who is told of the reads that got no answer: as ``Dispatch``, but gives up at once."""

    def __init__(self, cache: LookupCache) -> None:
        self.cache = cache
        self.watchers: list[LinkWatcher] = []
        self.lineage = Lineage(SingleNode(Address("127.0.0.1", 1)), time.monotonic)

    def _end(self, flight: Flight) -> None:
        self.cache.fail(flight, RuntimeError())

    def read_failed(self, read: Read, error: hiredis.ReplyError) -> None:
        self._end(read)

    def read_lost(self, read: Read, error: Exception) -> None:
        self._end(read)

    def read_torn(self, read: Read) -> None:
        self._end(read)

    def ask_again(self, read: Read, waiters: list[Waiter]) -> None:
        raise AssertionError("nobody has joined late")

    def answers_again(self, lane: Lane) -> None:
        raise AssertionError("the lane was never in trouble")

    def note_error(self, batch: object, error: hiredis.ReplyError) -> None:
        raise AssertionError("nothing is traced")

    def batch_ended(self, batch: object, error: Exception | None) -> None:
        raise AssertionError("nothing is traced")


class Woken:
    """One who waits for a flight."""

    def __init__(self) -> None:
        self.flights: list[Flight] = []

    def done(self) -> bool:
        return bool(self.flights)

    def set_result(self, flight: Flight) -> None:
        assert flight.done
        self.flights.append(flight)


async def look_up(runs: list[tuple[list[bytes], list[bool], bool]]) -> None:
    """A lane, its lookups of links and of uids, some after ASKING, and what a server sends it."""
    for chunks, kinds, cancelled in runs:
        config = RouterConfig(cache=CacheConfig(heartbeat=3600.0, heartbeat_timeout=7200.0))
        cache = LookupCache(config.cache, time.monotonic)
        telemetry = Telemetry(config.telemetry, time.monotonic)
        lane = Lane(
            Address("127.0.0.1", 1),
            WireSettings(),
            config,
            cache,
            Owner(cache),
            time.monotonic,
            _ignore,
            telemetry,
        )
        wire = Wire()
        connection = Connection(lane.channel)
        connection.connection_made(cast("asyncio.Transport", wire))
        connection.server_version = (9, 1)
        lane.channel._up(connection, [b"", b"", b"OK"], time.monotonic())
        waiting = []
        for number, of_a_link in enumerate(kinds):
            uid = f"u{number}"
            key = ("ns", uid, "chat") if of_a_link else ("ns", uid)
            read = cache.open(Read(key, time.monotonic() + 60))
            waiting.append(Woken())
            read.add(waiting[-1])
            read.set_out(lane, link_tag("ns", uid), asking=number % 5 == 4)
        lane.channel._flush()
        for chunk in chunks:
            feed(connection, chunk)
            if not connection.alive:
                break
        if cancelled:
            lane.channel.close()
        connection.connection_lost(None)
        lane.channel.close()
        await lane.channel.wait_closed()
        assert all(len(one.flights) == 1 for one in waiting)
        for one in waiting:
            (flight,) = one.flights
            assert (flight.error is None) != (flight.entry is None)
            pod = flight.entry.value if flight.entry is not None else None
            assert pod is None or isinstance(pod, dict) or 0 <= pod < 2**63
        # What may be served from now on came whole, from this very lane.
        for key in cache.entries:
            assert cache.fresh(key) is None


def _ignore(*_: object) -> None:
    pass


@pytest.mark.slow
def test_whatever_a_lane_is_sent_every_look_up_ends() -> None:
    runs = st.lists(
        st.tuples(chunked(), st.lists(st.booleans(), max_size=8), st.booleans()),
        min_size=1,
        max_size=3,
    )
    with asyncio.Runner() as runner:

        @fuzz(300)
        @given(runs)
        @example([([bulk("3") + b"(" + b"9" * 400 + b"\r\n"], [True], False)])
        @example([([b"-MOVED 99999 127.0.0.1:1\r\n:-2\r\n"], [True], False)])
        def check(case: list[tuple[list[bytes], list[bool], bool]]) -> None:
            runner.run(look_up(case))

        again(check)


# --- a router and its peer

IMPATIENT = RouterConfig(
    min_replica_acks=0,
    retry=RetryConfig(deadline=0.05, base=0.001, cap=0.01, connect_timeout=0.05),
)

CALLS = sorted(row.name for row in on_store() if not row.iterated)


@contextlib.contextmanager
def nothing_is_raised_into(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Nothing that a callback of the loop raises is lost."""
    raised: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: raised.append(context))
    yield
    loop.set_exception_handler(None)
    assert not raised


async def call(operation: str, answers: dict[str, list[bytes]], cluster: bool) -> None:
    """One operation on a server that answers the first of each of these commands so, and is honest then."""
    with nothing_is_raised_into(asyncio.get_running_loop()):
        async with Peer() as peer:
            for command, planned in answers.items():
                peer.answer(command, *planned)
            router = AsyncRouter.from_url(
                peer.cluster_url if cluster else peer.url, config=IMPATIENT
            )
            try:
                # Longer than any deadline above: whoever takes so long hangs.
                async with asyncio.timeout(20):
                    row = catalogue.operation(operation)
                    await row.call(router, **row.arguments())
            except SfrouteError as error:
                assert type(error) in catalogue.operation(operation).may_raise  # noqa: PT017
                assert "ada" not in str(error)  # noqa: PT017 - nor need there be one
            finally:
                await router.aclose()


answers = st.dictionaries(
    st.sampled_from(
        ["get", "pttl", "evalsha", "hgetall", "hset", "set", "hello", "cluster", "client"]
    ),
    st.lists(st.one_of(values, values, streams), min_size=1, max_size=2),
    max_size=3,
)


def hello_of(version: bytes) -> bytes:
    return b"%1\r\n" + bulk("version") + version


@pytest.mark.slow
def test_whatever_a_server_answers_a_call_ends_with_a_result_or_a_named_error() -> None:
    with asyncio.Runner() as runner:

        @fuzz(150)
        @given(st.sampled_from(CALLS), answers, st.booleans())
        @example("get_linked_pod", {"hello": [hello_of(b":7\r\n")]}, False)
        @example("get_linked_pod", {"hello": [hello_of(bulk(b"9" * 5000))]}, False)
        @example("get_linked_pod", {"get": [b"-MOVED 99999 127.0.0.1:1\r\n"]}, True)
        @example(
            "get_pods",
            {"evalsha": [b"*4\r\n$1\r\n1\r\n$1\r\n1\r\n$1\r\nR\r\n" + bulk(b"9" * 400)]},
            True,
        )
        def check(operation: str, planned: dict[str, list[bytes]], cluster: bool) -> None:
            runner.run(call(operation, planned, cluster))

        again(check)


# --- an agent and its peer

BY_SHA = {script.sha.encode(): name for name, script in SCRIPTS.items()}
HONEST = {
    "statefulSetState": b"*4\r\n:1\r\n_\r\n" + bulk("stored") + bulk("1"),
    "statefulClaim": script_reply("1", "placed", "7"),
    "statefulConfirmClaim": script_reply("1", "mine", "7"),
    "statefulReleaseClaim": b"*1\r\n:1\r\n",
}
"""What a server says to an agent of pod 1 that is alone."""


async def own(planned: dict[str, list[bytes]], pushed: list[bytes]) -> None:
    """An agent on a server that answers the first of each of these scripts so, and is honest then."""
    asked: Counter[str] = Counter()

    def answer(command: list[bytes]) -> bytes:
        name = BY_SHA.get(command[1], "")
        asked[name] += 1
        answers = planned.get(name, [])
        if asked[name] <= len(answers):
            # A push may come with any answer.
            return answers[asked[name] - 1] + b"".join(pushed)
        return HONEST.get(name, script_reply("-1"))

    with nothing_is_raised_into(asyncio.get_running_loop()):
        async with Peer() as peer:
            peer.answer("evalsha", *[answer] * 5000)
            router = AsyncRouter.from_url(peer.url, config=IMPATIENT)
            agent = AsyncPodAgent(
                router,
                "ns",
                "chat",
                1,
                heartbeat=0.02,
                lease=0.5,
                confirm_every=0.02,
                sigterm=False,
            )
            try:
                async with asyncio.timeout(20):
                    await attempt(agent.start())
                    claim = await attempt(agent.accept("ada"))
                    assert claim is not None or not agent.owns("ada")
                    async with contextlib.AsyncExitStack() as sessions:
                        await attempt(sessions.enter_async_context(agent.session("bob")))
                        await asyncio.sleep(0.03)
                    for uid in ("ada", "bob"):
                        held = agent.claim_of(uid)
                        assert held is None or (held.pod == 1 and 0 <= held.fence < 10**16)
                    await attempt(agent.release("ada"))
                    assert not agent.owns("bob")
            finally:
                with contextlib.suppress(SfrouteError):
                    await agent.stop()
                await router.aclose()
            assert not agent.owns("ada")


async def attempt(work: Coroutine[None, None, Any]) -> Any:
    """The result; None for an error with a name, which says nothing of the uid."""
    try:
        return await work
    except SfrouteError as error:
        assert "ada" not in str(error)  # noqa: PT017 - nor need there be one
        assert "bob" not in str(error)  # noqa: PT017
        return None


pods = st.sampled_from(["1", "2", "-1", "0", "x", "9" * 30])
outcomes = st.sampled_from(
    [
        "placed",
        "kept",
        "inherited",
        "refused",
        "mine",
        "restored",
        "claimed",
        "superseded",
        "moved",
        "removed",
    ]
)
fences = st.sampled_from(["7", "0", "8", "-7", "x", "9" * 16, "9" * 400])
claim_replies = st.builds(script_reply, pods, outcomes, fences)
of_scripts = st.dictionaries(
    st.sampled_from(sorted(HONEST)),
    st.lists(claim_replies | claim_replies | values | streams, min_size=1, max_size=3),
    min_size=1,
    max_size=3,
)


@pytest.mark.slow
def test_whatever_a_server_says_of_claims_an_agent_owns_nothing_that_it_was_not_given() -> None:
    with asyncio.Runner() as runner:

        @fuzz(60)
        @given(of_scripts, st.lists(pushes, max_size=1))
        @example({"statefulConfirmClaim": [script_reply("2", "moved", "0")]}, [])
        @example({"statefulClaim": [script_reply("2", "placed", "7")]}, [])
        @example({"statefulReleaseClaim": [b"-OOM\r\n", Peer.HANG_UP]}, [])
        def check(planned: dict[str, list[bytes]], pushed: list[bytes]) -> None:
            runner.run(own(planned, pushed))

        again(check)


# --- what it may say of slots

hosts = st.sampled_from(
    [
        bulk("127.0.0.1"),
        bulk("127.0.0.2"),
        bulk(""),
        b"_\r\n",
        bulk("?"),
        bulk(b"\x00"),
        bulk(b"\xff"),
        bulk("[::1"),
        bulk("a..b"),
        bulk("x" * 300),
        bulk("127.0.0.1\nforged"),
    ]
)
ports = st.sampled_from([1, 1, 1, 0, -1, 65_535, 65_536, 10**18])
bounds = st.integers(0, 16_383) | st.sampled_from([0, 16_383, 16_384, -1, 10**12, 2**63 - 1])


def array(*parts: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


nodes = st.builds(
    lambda host, port, rest: array(host, b":%d\r\n" % port, *rest),
    hosts,
    ports,
    st.lists(values, max_size=2),
)
entries = st.builds(
    lambda first, last, served_by: array(b":%d\r\n" % first, b":%d\r\n" % last, *served_by),
    bounds,
    bounds,
    st.lists(nodes | nodes | values, max_size=3),
)
slot_maps = st.builds(
    lambda listed: array(*listed), st.lists(entries | entries | values, max_size=5)
)


@pytest.mark.slow
def test_whatever_a_start_node_says_of_slots_a_call_ends() -> None:
    with asyncio.Runner() as runner:

        @fuzz(100)
        @given(st.lists(slot_maps | slot_maps | streams, min_size=1, max_size=3), values | streams)
        # So many slots would be counted through for hours, and remembered.
        @example([array(array(b":0\r\n", b":%d\r\n" % 10**12, array(bulk("h"), b":1\r\n")))], b"")
        def check(maps: list[bytes], greeting: bytes) -> None:
            planned = {"cluster": maps} | ({"hello": [greeting]} if greeting else {})
            runner.run(call("get_linked_pod", planned, True))

        again(check)


ASKED = Address("10.1.1.1", 7000)


@pytest.mark.slow
def test_what_is_no_slot_map_is_refused_before_anything_is_made_of_it() -> None:
    @fuzz(300)
    @given(slot_maps)
    def check(stream: bytes) -> None:
        reader = hiredis.Reader()
        reader.feed(stream)
        try:
            found = read_slot_map(reader.gets(), ASKED)
        except (NoSlotMap, hiredis.HiredisError, TypeError):
            return  # the last: a map whose key is a list, as everywhere
        assert len(found.by_slot) == 16_384
        assert set(found.by_slot) - {None} <= set(found.nodes)
        assert all(host and 0 <= port <= 65_535 for host, port in found.nodes)

    check()


def a_map(*ranges: tuple[int, int], nodes: int = 1) -> list[list[Any]]:
    return [[a, b, *[[b"127.0.0.1", 1 + n, b"id"] for n in range(nodes)]] for a, b in ranges]


@pytest.mark.parametrize(
    "slot_map",
    [
        a_map((0, 16_384)),
        a_map((0, 16_383), (0, 0)),
        a_map((5, 4)),
        a_map((0, 16_383), nodes=MAX_NODES + 1),
        [[0, 1, [b"h" * 256, 1]]],
        [[0, 1, [b"h\n", 1]]],
        [[0, 1, [b"h", 65_536]]],
        [[0, 1, [b"h", True]]],
        [[0, 1]],
    ],
)
def test_no_cluster_has_that(slot_map: list[list[Any]]) -> None:
    with pytest.raises(NoSlotMap):
        read_slot_map(slot_map, ASKED)


def test_a_large_cluster_is_none_of_them() -> None:
    largest = [[n, n, [b"10.0.%d.1" % (n % 1000), 1, b"id"]] for n in range(16_384)]
    found = read_slot_map(largest, ASKED)
    assert found.by_slot == [(f"10.0.{n % 1000}.1", 1) for n in range(16_384)]
    assert len(found.nodes) == 1000


@pytest.mark.parametrize("host", [None, b"", b"?"])
def test_a_node_that_does_not_know_its_own_name_is_known_to_whoever_asks_it(
    host: bytes | None,
) -> None:
    assert read_slot_map([[0, 1, [host, 1, b"id"]]], ASKED).by_slot[:3] == [
        *[("10.1.1.1", 1)] * 2,
        None,
    ]


def test_nodes_are_where_the_caller_says_they_are() -> None:
    def remap(address: Address) -> Address:
        return Address("127.0.0.1", address.port + 1)

    found = read_slot_map(a_map((0, 16_383), nodes=2), ASKED, remap)
    assert set(found.by_slot) == {("127.0.0.1", 2)}
    assert found.nodes == (("127.0.0.1", 2), ("127.0.0.1", 3))


HOSTILE_START = """
import asyncio, resource, sys
sys.path.insert(0, {tests!r})
from support.peer import Peer
from test_wire_fuzz import HOSTILE_MAPS, IMPATIENT
from sfroute import AsyncRouter, StoreError
async def main():
    for answer in HOSTILE_MAPS:
        for command in ("cluster", "hello"):
            async with Peer() as peer:
                peer.answer(command, *[answer] * 50)
                router = AsyncRouter.from_url(peer.cluster_url, config=IMPATIENT)
                try:
                    await router.open()
                except StoreError:
                    pass
                await router.aclose()
before = resource.getrusage(resource.RUSAGE_SELF)
asyncio.run(main())
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_maxrss - before.ru_maxrss, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
"""

HOSTILE_MAPS = [
    *(
        kind + size + b"\r\n"
        for kind in (b"*", b">", b"~")
        for size in (b"99999999", b"4294967295")
    ),
    b"*50000\r\n" * 300,
    b"*1\r\n*3\r\n:0\r\n:%d\r\n*2\r\n+127.0.0.1\r\n:1\r\n" % 10**12,
    b"*9999\r\n" + b"*3\r\n:0\r\n:16383\r\n*2\r\n+127.0.0.1\r\n:1\r\n" * 9999,
    # Nothing but what a slot map may have, and as much of it as fits.
    b"*16000\r\n"
    + b"".join(
        b"*16\r\n:%d\r\n:%d\r\n%b"
        % (n, n, b"".join(b"*2\r\n+h%d\r\n:1\r\n" % ((n * 14 + r) % 4000) for r in range(14)))
        for n in range(16_000)
    ),
]


@pytest.mark.slow
def test_a_hostile_start_node_takes_no_memory_and_no_time() -> None:
    program = HOSTILE_START.format(tests=os.path.dirname(__file__))  # noqa: PTH120
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50
    )
    kilobytes, seconds = done.stdout.split()
    assert int(kilobytes) < 100_000
    assert float(seconds) < 15


@pytest.mark.parametrize(
    "answer",
    [b"*0\r\n", b"*1\r\n:1\r\n", b"+x\r\n", b"_\r\n", b"*1\r\n*3\r\n:0\r\n+x\r\n_\r\n", b"?\r\n"],
)
async def test_what_is_no_slot_map_is_a_named_error(answer: bytes) -> None:
    async with Peer() as peer:
        peer.answer("cluster", *[answer] * 20)
        router = AsyncRouter.from_url(peer.cluster_url, config=IMPATIENT)
        with pytest.raises(StoreUnavailable) as caught:
            await router.open()
        assert caught.value.__cause__ is not None
        await router.aclose()


async def test_after_all_of_it_the_same_router_works_on() -> None:
    async with Peer() as peer, AsyncRouter.from_url(peer.url) as router:
        broken = [b"?\r\n", b"*2000000\r\n", Peer.HANG_UP, b"%1\r\n*0\r\n:1\r\n", b":1\r\n" * 9]
        peer.answer("get", *broken)
        for pod in range(len(broken)):
            # A lookup that was answered by nonsense is sent again; one that was answered by a wrong type is refused.
            with contextlib.suppress(CorruptReply):
                assert await router.get_linked_pod("ns", f"u{pod}", "chat") is None
        assert not peer.answers["get"]
        assert await router.get_linked_pod("ns", "ada", "chat") is None
        assert peer.accepted > len(broken) - 1
