"""What claiming, confirming and releasing do to a uid, and that the table of outcomes is what the script does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from unittest.mock import ANY

import pytest
import redis
import redis.exceptions
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.program import Client, LinkProgram, in_threads, owner_of, unchanged
from test_model_machine import SETTINGS

from sfroute._contract.claims import (
    HELD,
    MAX_FENCE,
    TOMBSTONE_SECONDS,
    ClaimRecord,
    StoredLink,
    confirm,
    parse_record,
)
from sfroute.embedded import LocalServer

LIFE, OTHER = "life", "other-life"
FENCE = 1000


def place(uid: LinkProgram, link: StoredLink, record: ClaimRecord | None) -> None:
    """Make the store hold just this, whatever led to it."""
    uid.client.delete(uid.link, uid.hash, uid.claim_record)
    if link.pod is not None:
        uid.client.set(uid.link, link.pod, ex=None if link.persistent else 100)
    if link.listed is not None:
        uid.client.hset(uid.hash, uid.service, str(link.listed))
    if record is not None:
        over = record.pod is None
        text = f"{record.fence} - -" if over else f"{record.fence} {record.pod} {record.life}"
        uid.client.set(uid.claim_record, text, ex=TOMBSTONE_SECONDS if over else None)


def holds(uid: LinkProgram, pod: int, record: str) -> bool:
    """The link is the pod's for good, and so is the record."""
    kept = (uid.pod(), uid.ttl(), uid.listed()) == (str(pod), -1, str(pod))
    return kept and uid.record() == record and uid.client.ttl(uid.claim_record) == -1


class TestRecords:
    @pytest.mark.parametrize(
        ("text", "record"),
        [
            ("7 0 a", ClaimRecord(7, 0, "a")),
            ("1700000000000000 3 9f", ClaimRecord(1_700_000_000_000_000, 3, "9f")),
            (f"{MAX_FENCE} {2**63 - 1} a-b_c.d", ClaimRecord(MAX_FENCE, 2**63 - 1, "a-b_c.d")),
            ("7 - -", ClaimRecord(7, None, None)),
        ],
    )
    def test_a_record_is_read(self, text: str, record: ClaimRecord) -> None:
        assert parse_record(text) == record

    @pytest.mark.parametrize("text", ["", "7", "7 3", "0 3 a", "07 3 a", "7 x a", "7 3 -", "7 - a"])
    def test_anything_else_is_none(self, text: str) -> None:
        assert parse_record(text) is None

    def test_numbers_too_large_for_the_programs_are_none(self) -> None:
        assert parse_record(f"{MAX_FENCE + 1} 3 a") is None
        assert parse_record(f"7 {2**63} a") is None


class TestClaim:
    @pytest.mark.parametrize("held_for", [None, -1, 100])
    def test_a_uid_that_nobody_has_claimed_is_placed(
        self, uid: LinkProgram, held_for: int | None
    ) -> None:
        if held_for is not None:
            uid.set_link(0, held_for)
        before = time.time_ns() // 1000
        owner, outcome, fence = uid.claim(0)
        assert (owner, outcome) == (0, "placed")
        assert abs(fence - before) < 60_000_000
        assert holds(uid, 0, f"{fence} 0 life")

    @pytest.mark.parametrize("held_for", [-1, 100])
    def test_a_uid_of_another_pod_stays_there(self, uid: LinkProgram, held_for: int) -> None:
        uid.set_link(0, held_for)
        with unchanged(uid.client, uid.link, uid.hash, uid.claim_record):
            assert uid.claim(1) == (0, "refused", 0)

    def test_so_does_one_whose_link_was_evicted(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        uid.client.delete(uid.link)
        with unchanged(uid.client, uid.link, uid.hash, uid.claim_record):
            assert uid.claim(1) == (0, "refused", 0)

    def test_claiming_again_keeps_the_fence_and_writes_nothing(self, uid: LinkProgram) -> None:
        _, _, fence = uid.claim(0)
        with unchanged(uid.client, uid.link, uid.hash, uid.claim_record):
            assert uid.claim(0) == (0, "kept", fence)

    def test_claiming_again_repairs_the_hash_and_an_evicted_link(self, uid: LinkProgram) -> None:
        _, _, fence = uid.claim(0)
        for key in (uid.hash, uid.link):
            uid.client.delete(key)
            assert uid.claim(0) == (0, "kept", fence)
            assert holds(uid, 0, f"{fence} 0 life")

    def test_another_life_of_the_pod_inherits_with_a_greater_fence(self, uid: LinkProgram) -> None:
        _, _, first = uid.claim(0, LIFE)
        owner, outcome, second = uid.claim(0, OTHER)
        assert (owner, outcome) == (0, "inherited")
        assert second > first
        assert holds(uid, 0, f"{second} 0 {OTHER}")

    def test_an_inherited_link_is_written_so_that_its_watchers_are_told(
        self, uid: LinkProgram
    ) -> None:
        uid.claim(0, LIFE)
        with owner_of(uid.client, uid.link).pipeline() as watching:
            watching.watch(uid.link)  # type: ignore[no-untyped-call]
            uid.claim(0, OTHER)
            watching.multi()
            watching.get(uid.link)
            with pytest.raises(redis.exceptions.WatchError):
                watching.execute()

    def test_fences_grow_though_the_servers_clock_is_behind(self, uid: LinkProgram) -> None:
        ahead = (time.time_ns() // 1000) + 3_600_000_000
        uid.client.set(uid.claim_record, f"{ahead} - -")
        assert uid.claim(0)[2] == ahead + 1
        assert uid.claim(0, OTHER)[2] == ahead + 2

    def test_of_fifty_pods_at_once_exactly_one_claims(self, uid: LinkProgram) -> None:
        replies = in_threads(50, lambda pod: uid.claim(pod, f"life{pod}"))
        outcomes = sorted(outcome for _, outcome, _ in replies)
        assert outcomes == ["placed"] + ["refused"] * 49
        assert {str(owner) for owner, _, _ in replies} == {uid.pod()}

    def test_of_fifty_lives_at_once_each_has_a_fence_of_its_own(self, uid: LinkProgram) -> None:
        replies = in_threads(50, lambda number: uid.claim(0, f"life{number}"))
        fences = [fence for _, _, fence in replies]
        assert len(set(fences)) == 50
        newest = max(range(50), key=lambda number: fences[number])
        assert uid.record() == f"{max(fences)} 0 life{newest}"


class TestRelease:
    def test_the_link_goes_and_a_tombstone_stays(self, uid: LinkProgram) -> None:
        _, _, fence = uid.claim(0)
        assert uid.release_claim(0, fence=fence)
        assert (uid.pod(), uid.listed(), uid.record()) == (None, None, f"{fence} - -")
        assert 590 <= uid.client.ttl(uid.claim_record) <= TOMBSTONE_SECONDS
        assert not uid.release_claim(0, fence=fence)

    def test_claimed_after_that_it_is_another_claim(self, uid: LinkProgram) -> None:
        _, _, first = uid.claim(0)
        uid.release_claim(0)
        _, outcome, second = uid.claim(0)
        assert outcome == "placed"
        assert second > first
        # The late release of the first one.
        with unchanged(uid.client, uid.link, uid.hash, uid.claim_record):
            assert not uid.release_claim(0, fence=first)

    def test_within_the_grace_period_the_claim_is_kept(self, uid: LinkProgram) -> None:
        _, _, fence = uid.claim(0)
        assert uid.release_claim(0, fence=fence, persist_seconds=30)
        assert (uid.pod(), uid.listed(), uid.record()) == ("0", None, f"{fence} 0 life")
        assert 25 <= uid.ttl() <= 30
        assert 620 <= uid.client.ttl(uid.claim_record) <= 630
        assert uid.claim(0) == (0, "kept", fence)
        assert holds(uid, 0, f"{fence} 0 life")

    def test_unless_somebody_else_has_had_the_uid(self, uid: LinkProgram) -> None:
        _, _, first = uid.claim(0)
        uid.release_claim(0, persist_seconds=30)
        uid.set_link(1)
        _, _, second = uid.claim(1, OTHER)
        uid.release_claim(1, OTHER)
        _, outcome, third = uid.claim(0)
        assert outcome == "placed"
        assert first < second < third

    def test_an_earlier_lifes_user_in_grace_is_inherited(self, uid: LinkProgram) -> None:
        uid.claim(0)
        uid.release_claim(0, persist_seconds=30)
        assert uid.claim(0, OTHER)[1] == "inherited"

    @pytest.mark.parametrize("fence", [0, 7])
    def test_nobody_lets_go_what_is_anothers(self, uid: LinkProgram, fence: int) -> None:
        uid.claim(0)
        with unchanged(uid.client, uid.link, uid.hash, uid.claim_record):
            assert not uid.release_claim(1, LIFE, fence)
            assert not uid.release_claim(0, OTHER, fence)

    @pytest.mark.parametrize("held_for", [-1, 100])
    def test_a_uid_without_a_claim_is_let_go(self, uid: LinkProgram, held_for: int) -> None:
        uid.set_link(0, held_for)
        assert uid.release_claim(0, persist_seconds=30)
        assert (uid.pod(), uid.listed(), uid.record()) == ("0", None, None)
        assert uid.release_claim(0)
        assert uid.pod() is None

    def test_a_late_release_does_not_touch_a_newer_proposal(self, uid: LinkProgram) -> None:
        _, _, fence = uid.claim(0)
        uid.release_claim(0)
        uid.set_link(0, 60)
        with unchanged(uid.client, uid.link, uid.hash, uid.claim_record):
            assert not uid.release_claim(0, fence=fence)

    @pytest.mark.parametrize("grace", [-1, 30])
    def test_an_evicted_link_is_let_go_too(self, uid: LinkProgram, grace: int) -> None:
        _, _, fence = uid.claim(0)
        uid.client.delete(uid.link)
        assert uid.release_claim(0, fence=fence, persist_seconds=grace)
        assert (uid.pod(), uid.listed()) == ("0" if grace == 30 else None, None)


# What the store may hold. The pod is 0.
HERE, HERE_FOR_A_WHILE = StoredLink(0, True, 0), StoredLink(0, False, None)
EVICTED, NOWHERE = StoredLink(None, False, 0), StoredLink(None, False, None)
THERE, THERE_FOR_A_WHILE = StoredLink(1, True, 1), StoredLink(1, False, None)
MINE, RIVALS = ClaimRecord(FENCE, 0, LIFE), ClaimRecord(FENCE + 1, 0, OTHER)
THEIRS, THEIRS_OLDER = ClaimRecord(FENCE + 1, 1, OTHER), ClaimRecord(FENCE - 1, 1, OTHER)
OVER, OVER_BEFORE = ClaimRecord(FENCE, None, None), ClaimRecord(FENCE - 1, None, None)
RIVALS_OLDER, MINE_OLDER = ClaimRecord(FENCE - 1, 0, OTHER), ClaimRecord(FENCE - 1, 0, LIFE)

ROWS: dict[str, tuple[StoredLink, ClaimRecord | None, str]] = {
    "here, this life's": (HERE, MINE, "mine"),
    "here, this life's, the hash lacks it": (StoredLink(0, True, None), MINE, "mine"),
    "here, the record was lost": (HERE, None, "restored"),
    "here, an older tombstone": (HERE, OVER_BEFORE, "restored"),
    "here, an older claim of this life": (HERE, MINE_OLDER, "restored"),
    "here, an older claim of another life": (HERE, RIVALS_OLDER, "restored"),
    "here, an older claim of another pod": (HERE, THEIRS_OLDER, "restored"),
    "here, another life's": (HERE, RIVALS, "superseded"),
    "here, over": (HERE, OVER, "removed"),
    "here, another pod has had it since": (HERE, THEIRS, "removed"),
    "evicted, this life's": (EVICTED, MINE, "restored"),
    "evicted, the record was lost": (EVICTED, None, "restored"),
    "evicted, another life's": (EVICTED, RIVALS, "superseded"),
    "in grace, this life's": (HERE_FOR_A_WHILE, MINE, "removed"),
    "in grace, over": (HERE_FOR_A_WHILE, OVER, "removed"),
    "in grace, another life's": (HERE_FOR_A_WHILE, RIVALS, "superseded"),
    "proposed, the record was lost": (HERE_FOR_A_WHILE, None, "claimed"),
    "nowhere, this life's": (NOWHERE, MINE, "removed"),
    "nowhere, over": (NOWHERE, OVER, "removed"),
    "nowhere, another pod has had it since": (NOWHERE, THEIRS, "removed"),
    "nowhere, another life's": (NOWHERE, RIVALS, "superseded"),
    "nowhere, an older tombstone": (NOWHERE, OVER_BEFORE, "claimed"),
    "forgotten": (NOWHERE, None, "claimed"),
    "there, theirs": (THERE, THEIRS, "moved"),
    "there, unclaimed": (THERE, None, "moved"),
    "there, still this life's record": (THERE, MINE, "moved"),
    "there, over": (THERE, OVER, "moved"),
    "there, an older claim came first": (THERE, THEIRS_OLDER, "claimed"),
    "there, an older tombstone": (THERE, OVER_BEFORE, "moved"),
    "evicted there": (StoredLink(None, False, 1), THEIRS, "moved"),
    "there for a while": (THERE_FOR_A_WHILE, None, "moved"),
    "there for a while, an older claim": (THERE_FOR_A_WHILE, THEIRS_OLDER, "moved"),
}


@pytest.mark.parametrize("row", ROWS)
class TestConfirm:
    def test_the_table(self, row: str) -> None:
        link, record, outcome = ROWS[row]
        assert confirm(link, record, 0, LIFE, FENCE) == outcome

    def test_the_script_does_as_the_table_says(self, uid: LinkProgram, row: str) -> None:
        link, record, outcome = ROWS[row]
        place(uid, link, record)
        owner, found, fence = uid.confirm(0, LIFE, FENCE)
        assert found == outcome
        if found in HELD:
            assert (owner, fence) == (0, FENCE)
            assert holds(uid, 0, f"{FENCE} 0 {LIFE}")
        else:
            kept = link.pod if link.pod is not None else link.listed
            assert (owner, fence) == (-1 if kept is None else kept, 0)
            assert uid.pod() == (None if link.pod is None else str(link.pod))
            assert uid.listed() == (None if link.listed is None else str(link.listed))

    def test_asked_again_it_says_what_became_of_it(self, uid: LinkProgram, row: str) -> None:
        link, record, outcome = ROWS[row]
        place(uid, link, record)
        first = uid.confirm(0, LIFE, FENCE)
        with unchanged(uid.client, uid.link, uid.hash):
            again = uid.confirm(0, LIFE, FENCE)
        assert again == ((0, "mine", FENCE) if outcome in HELD else first)


@pytest.fixture(scope="module")
def evicting(server_binary: str | None) -> Iterator[Client]:
    """A server that evicts any key when its memory is full, and has done so."""
    config = {"maxmemory-policy": "allkeys-lru"}
    with LocalServer(server_binary=server_binary, extra_config=config) as server:
        client = redis.Redis(server.node.host, server.node.port, protocol=2, decode_responses=True)
        client.set("idle", "")
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("new", "finds no room")
        client.config_set("maxmemory", 0)
        yield client
        client.close()


class TestAServerThatEvicts:
    """Link and hash may be gone, and only the record be left."""

    @pytest.fixture
    def uid(self, evicting: Client, namespace: str) -> LinkProgram:
        return LinkProgram(evicting, namespace, "ada", "chat")

    @pytest.mark.parametrize("row", ROWS)
    def test_script_and_table_agree(self, uid: LinkProgram, row: str) -> None:
        link, record, outcome = ROWS[row]
        expected = confirm(link, record, 0, LIFE, FENCE, evicts=True)
        assert (expected == outcome) == (row != "nowhere, this life's")
        place(uid, link, record)
        assert uid.confirm(0, LIFE, FENCE)[1] == expected
        if expected in HELD:
            assert holds(uid, 0, f"{FENCE} 0 {LIFE}")

    def test_a_gateway_restores_the_link(self, uid: LinkProgram) -> None:
        place(uid, NOWHERE, MINE)
        assert uid.place(30, candidates=(7,)) == ["0", "kept", "0", "-1"]
        assert holds(uid, 0, f"{FENCE} 0 {LIFE}")

    @pytest.mark.parametrize("record", [None, OVER])
    def test_but_not_one_that_nobody_claims(
        self, uid: LinkProgram, record: ClaimRecord | None
    ) -> None:
        place(uid, NOWHERE, record)
        assert uid.place(30, candidates=(7,))[:2] == ["7", "placed"]

    def test_nor_one_that_was_released_for_a_while(self, uid: LinkProgram) -> None:
        place(uid, NOWHERE, MINE)
        uid.client.expire(uid.claim_record, 600)
        assert uid.place(30, candidates=(7,))[:2] == ["7", "placed"]

    def test_nor_one_at_a_pod_that_is_gone(self, uid: LinkProgram) -> None:
        place(uid, NOWHERE, MINE)
        assert uid.place(30, gone=(0,), candidates=(7,)) == ["7", "moved", "0", ANY]

    def test_no_other_pod_claims_the_uid(self, uid: LinkProgram) -> None:
        place(uid, NOWHERE, MINE)
        assert uid.claim(1) == (0, "refused", 0)
        assert uid.claim(0)[:2] == (0, "kept")

    @pytest.mark.parametrize("with_id", [False, True])
    def test_a_link_that_was_removed_stays_so(self, uid: LinkProgram, with_id: bool) -> None:
        place(uid, HERE, MINE)
        uid.remove_claimed_link(0 if with_id else None)
        assert uid.record() == f"{FENCE} - -"
        assert uid.confirm(0, LIFE, FENCE) == (-1, "removed", 0)
        assert uid.place(30, candidates=(7,))[:2] == ["7", "placed"]

    def test_so_does_one_that_was_released(self, uid: LinkProgram) -> None:
        place(uid, NOWHERE, MINE)
        assert not uid.release_claim(0, LIFE, FENCE)
        assert uid.place(30, candidates=(7,))[:2] == ["7", "placed"]


def test_a_server_that_evicts_nothing_has_had_the_link_removed(uid: LinkProgram) -> None:
    place(uid, NOWHERE, MINE)
    assert uid.place(30, candidates=(7,))[:2] == ["7", "placed"]
    place(uid, NOWHERE, MINE)
    assert uid.claim(1)[1] == "placed"


class TestWhatConfirmingLeaves:
    def test_a_claim_that_was_moved_or_removed_is_over(self, uid: LinkProgram) -> None:
        for link in (THERE, NOWHERE):
            place(uid, link, MINE)
            uid.confirm(0, LIFE, FENCE)
            assert uid.record() == f"{FENCE} - -"
            assert 590 <= uid.client.ttl(uid.claim_record) <= TOMBSTONE_SECONDS

    def test_one_that_was_given_a_grace_period_may_come_back_within_it(
        self, uid: LinkProgram
    ) -> None:
        _, _, fence = uid.claim(0)
        uid.remove_link(30)  # by a program that does not know claims
        assert uid.confirm(0, LIFE, fence) == (0, "removed", 0)
        assert 600 < uid.client.ttl(uid.claim_record) <= 630
        assert uid.claim(0) == (0, "kept", fence)
        assert holds(uid, 0, f"{fence} 0 {LIFE}")

    def test_one_that_came_back_from_another_pod_is_not_the_old_claim(
        self, uid: LinkProgram
    ) -> None:
        _, _, fence = uid.claim(0)
        uid.set_link(1)
        assert uid.confirm(0, LIFE, fence) == (1, "moved", 0)
        uid.set_link(0)
        assert uid.confirm(0, LIFE, fence) == (0, "removed", 0)
        assert uid.claim(0)[1] == "placed"

    def test_setting_the_link_to_the_same_pod_changes_nothing(self, uid: LinkProgram) -> None:
        _, _, fence = uid.claim(0)
        uid.set_link(0)
        assert uid.confirm(0, LIFE, fence) == (0, "mine", fence)

    def test_after_the_store_forgot_the_newest_claim_wins_in_whatever_order(
        self, uid: LinkProgram
    ) -> None:
        for order in ((0, 1), (1, 0)):
            uid.client.delete(uid.link, uid.hash, uid.claim_record)
            for pod in (*order, *order):
                uid.confirm(pod, f"life{pod}", FENCE + pod)
            assert holds(uid, 1, f"{FENCE + 1} 1 life1")
            assert uid.confirm(0, "life0", FENCE) == (1, "moved", 0)


pods_or_none = st.sampled_from((None, 0, 1))
fences = st.sampled_from((FENCE - 1, FENCE, FENCE + 1))
stored_links = st.builds(
    lambda pod, lasts, listed: StoredLink(pod, lasts and pod is not None, listed),
    pods_or_none,
    st.booleans(),
    pods_or_none,
)
records = st.one_of(
    st.none(),
    st.builds(ClaimRecord, fences, st.sampled_from((0, 1)), st.sampled_from((LIFE, OTHER))),
    st.builds(lambda fence: ClaimRecord(fence, None, None), fences),
)


@given(link=stored_links, record=records)
@example(link=StoredLink(0, False, 0), record=MINE)
@settings(SETTINGS, max_examples=300)
@pytest.mark.slow
def test_script_and_table_agree_about_anything_a_store_may_hold(
    client: Client, link: StoredLink, record: ClaimRecord | None
) -> None:
    uid = LinkProgram(client, "agreed", "ada", "chat")
    place(uid, link, record)
    expected = confirm(link, record, 0, LIFE, FENCE)
    owner, outcome, fence = uid.confirm(0, LIFE, FENCE)
    assert outcome == expected
    if expected in HELD:
        assert owner == 0
        newer_of_this_life = record is not None and record.life == LIFE and record.fence > FENCE
        assert (fence > FENCE) == newer_of_this_life
        assert holds(uid, 0, f"{fence} 0 {LIFE}")
