"""Whether a primary continues the data that was known before: the table, row by row, and real servers."""

from __future__ import annotations

import logging

import pytest

from sfroute._net.connection import Address
from sfroute._net.lineage import SETTLED_SECONDS, Lineage, history_of

A, B, C, D = ("abcd"[n] * 40 for n in range(4))
NONE = "0" * 40
ONE, TWO, THREE = (Address("127.0.0.1", port) for port in (1, 2, 3))


def said(replid: str, continued: str = NONE, role: str = "master") -> bytes:
    lines = [
        "# Replication",
        f"role:{role}",
        f"master_replid:{replid}",
        f"master_replid2:{continued}",
        "second_repl_offset:-1",
    ]
    return "\r\n".join(lines).encode()


class Owners:
    """Two slots and who serves each."""

    def __init__(self) -> None:
        self.owners = {0: ONE, 1: TWO}

    def address_of(self, slot: int) -> Address | None:
        return self.owners.get(slot)

    def slots_of(self, address: Address) -> list[int]:
        return [slot for slot, owner in self.owners.items() if owner == address]

    def primaries(self) -> set[Address]:
        return set(self.owners.values())


class Watched:
    """A lineage whose clock is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.topology = Owners()
        self.lineage = Lineage(self.topology, lambda: self.now)
        self.count = 0
        self.lineage.on_forgotten = self._one_more

    def _one_more(self) -> None:
        self.count += 1

    def forgotten(self, slot: int = 0) -> float | None:
        past = self.lineage.past(slot)
        assert past is not None
        return past.forgotten_at


@pytest.fixture
def watched() -> Watched:
    watched = Watched()
    watched.lineage.connected(ONE, said(A))
    watched.lineage.connected(TWO, said(B))
    watched.now += 1.0
    return watched


class TestReply:
    def test_a_history_and_the_one_it_continues(self) -> None:
        assert history_of(said(A)) == (A,)
        assert history_of(said(B, A)) == (B, A)

    @pytest.mark.parametrize("reply", [None, b"", b"nonsense", 1, said(A, role="slave"), [A]])
    def test_anything_else_says_nothing(self, reply: object) -> None:
        assert history_of(reply) == ()


class TestTable:
    def test_what_was_never_seen_before_cannot_be_told(self, watched: Watched) -> None:
        past = watched.lineage.past(0)
        assert past is not None
        assert (past.history, past.seen_first_at, past.forgotten_at) == ((A,), 1000.0, None)
        assert watched.lineage.past(7) is None
        assert watched.count == 0

    def test_the_same_history_is_still_there(self, watched: Watched) -> None:
        watched.lineage.connected(ONE, said(A))
        assert (watched.forgotten(), watched.count) == (None, 0)

    def test_so_is_one_that_a_promoted_replica_continues(self, watched: Watched) -> None:
        watched.topology.owners[0] = THREE
        watched.lineage.connected(THREE, said(C, A))
        assert (watched.forgotten(), watched.count) == (None, 0)

    def test_another_at_the_same_address_has_forgotten(
        self, watched: Watched, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            watched.lineage.connected(ONE, said(C))
            watched.lineage.connected(ONE, said(C))
        assert watched.forgotten() == 1001.0
        assert watched.forgotten(1) is None
        assert watched.count == 1
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "127.0.0.1:1 has lost its data" in caplog.text

    def test_so_has_a_replica_that_copied_the_emptiness(self, watched: Watched) -> None:
        watched.topology.owners[0] = THREE
        watched.lineage.connected(THREE, said(D, C))
        assert watched.forgotten() == 1001.0

    def test_a_slot_that_moved_is_not_forgotten(self, watched: Watched) -> None:
        watched.topology.owners[2] = ONE
        watched.topology.owners[0] = TWO
        assert watched.forgotten() is None
        watched.topology.owners[0] = THREE
        watched.lineage.connected(THREE, said(C))
        assert (watched.forgotten(), watched.count) == (None, 0)

    def test_nor_one_whose_former_owner_has_left(self, watched: Watched) -> None:
        watched.topology.owners[0] = TWO
        watched.now += SETTLED_SECONDS
        assert watched.forgotten() is None

    def test_unless_its_new_owner_is_as_new(self, watched: Watched) -> None:
        watched.topology.owners[0] = THREE
        watched.now += SETTLED_SECONDS
        watched.lineage.connected(THREE, said(C))
        assert watched.forgotten() == watched.now

    def test_who_may_not_ask_is_told_nothing(self, watched: Watched) -> None:
        watched.lineage.connected(ONE, None)
        assert watched.forgotten() is None

    def test_a_flush_is_told_each_time_and_warned_of_once(
        self, watched: Watched, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                watched.lineage.everything_changed(ONE)
                watched.now += 1.0
        past, other = watched.lineage.past(0), watched.lineage.past(1)
        assert past is not None
        assert other is not None
        assert (past.flushed_at, other.flushed_at) == (1003.0, None)
        assert watched.count == 3
        assert len(caplog.records) == 1

    def test_whether_it_evicts_any_key_is_asked_by_each_connection(self, watched: Watched) -> None:
        for policy, evicts in (
            ("allkeys-lru", True),
            ("volatile-lru", False),
            ("noeviction", False),
        ):
            memory = f"# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:{policy}\r\n".encode()
            watched.lineage.connected(ONE, said(A), memory)
            past, other = watched.lineage.past(0), watched.lineage.past(1)
            assert past is not None
            assert other is not None
            assert (past.evicts, other.evicts) == (evicts, False)
