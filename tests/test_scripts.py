"""The scripts that change and read links, on real servers, called as a program in another language calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis.exceptions
from support.program import LinkProgram, in_threads, make_idle, owner_of, unchanged


class TestSetLink:
    def test_a_persistent_link_has_no_expiry_and_is_in_the_hash(self, uid: LinkProgram) -> None:
        assert uid.set_link(3) == ["-1"]
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("3", -1, "3")

    def test_a_temporary_link_expires_and_leaves_the_hash(self, uid: LinkProgram) -> None:
        uid.set_link(3)
        assert uid.set_link(4, 100) == ["3"]
        assert (uid.pod(), uid.listed()) == ("4", None)
        assert 98 <= uid.ttl() <= 100

    def test_a_persistent_link_over_a_temporary_one_loses_the_expiry(
        self, uid: LinkProgram
    ) -> None:
        uid.set_link(3, 100)
        uid.set_link(3)
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("3", -1, "3")

    def test_pod_0_is_a_previous_pod_like_any_other(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        assert uid.set_link(1) == ["0"]

    def test_pods_reach_up_to_the_largest_int64(self, uid: LinkProgram) -> None:
        uid.set_link(2**63 - 1)
        assert uid.set_link(1) == [str(2**63 - 1)]

    def test_other_services_of_the_uid_stay(self, uid: LinkProgram) -> None:
        uid.client.hset(uid.hash, "other", "9")
        uid.set_link(3, 100)
        assert uid.client.hgetall(uid.hash) == {"other": "9"}


class TestSetLinkIfAbsent:
    @pytest.mark.parametrize("persist_seconds", [-1, 100])
    def test_an_absent_link_is_written(self, uid: LinkProgram, persist_seconds: int) -> None:
        assert uid.set_link_if_absent(0, persist_seconds) == ["0"]
        assert uid.pod() == "0"
        assert uid.listed() == ("0" if persist_seconds == -1 else None)
        assert (uid.ttl() == -1) == (persist_seconds == -1)

    @pytest.mark.parametrize("held_for", [-1, 100])
    @pytest.mark.parametrize("asked_for", [-1, 1000])
    def test_an_existing_link_stays_as_it_is(
        self, uid: LinkProgram, held_for: int, asked_for: int
    ) -> None:
        uid.set_link(0, held_for)
        with unchanged(uid.client, uid.link, uid.hash):
            assert uid.set_link_if_absent(1, asked_for) == ["0"]

    @pytest.mark.parametrize("pod", [0, 1])
    def test_a_refresh_extends_a_temporary_link_whoever_owns_it(
        self, uid: LinkProgram, pod: int
    ) -> None:
        uid.set_link(0, 100)
        assert uid.set_link_if_absent(pod, 1000, refresh=True) == ["0"]
        assert (uid.pod(), uid.listed()) == ("0", None)
        assert 998 <= uid.ttl() <= 1000

    def test_a_refresh_never_shortens(self, uid: LinkProgram) -> None:
        uid.set_link(0, 1000)
        with unchanged(uid.client, uid.link):
            uid.set_link_if_absent(0, 100, refresh=True)

    def test_a_refresh_to_persistent_keeps_the_link_and_its_owner(self, uid: LinkProgram) -> None:
        # EXPIRE with -1, as an earlier implementation had it, deletes the link.
        uid.set_link(0, 100)
        assert uid.set_link_if_absent(5, -1, refresh=True) == ["0"]
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("0", -1, "0")

    @pytest.mark.parametrize("persist_seconds", [-1, 100])
    def test_a_refresh_of_a_persistent_link_changes_nothing(
        self, uid: LinkProgram, persist_seconds: int
    ) -> None:
        uid.set_link(0)
        with unchanged(uid.client, uid.link, uid.hash):
            assert uid.set_link_if_absent(5, persist_seconds, refresh=True) == ["0"]

    def test_fifty_callers_at_once_are_told_one_owner(self, uid: LinkProgram) -> None:
        owners = in_threads(50, lambda pod: uid.set_link_if_absent(pod)[0])
        assert len(set(owners)) == 1
        assert owners[0] == uid.pod() == uid.listed()


class TestTrySetLink:
    @pytest.mark.parametrize("persist_seconds", [-1, 100])
    def test_a_different_pods_persistent_link_refuses(
        self, uid: LinkProgram, persist_seconds: int
    ) -> None:
        uid.set_link(0)
        with unchanged(uid.client, uid.link, uid.hash):
            # One element, so that a refusal is told from {pod, previous} in every language.
            assert uid.try_set_link(1, persist_seconds) == ["0"]

    def test_an_absent_link_is_written(self, uid: LinkProgram) -> None:
        assert uid.try_set_link(0) == ["0", "-1"]
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("0", -1, "0")

    def test_a_temporary_link_is_taken_over(self, uid: LinkProgram) -> None:
        uid.set_link(0, 100)
        assert uid.try_set_link(1) == ["1", "0"]
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("1", -1, "1")

    def test_the_owner_may_change_its_own_link(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        assert uid.try_set_link(0, 100) == ["0", "0"]
        assert (uid.pod(), uid.listed()) == ("0", None)
        assert 98 <= uid.ttl() <= 100

    def test_of_fifty_callers_at_once_exactly_one_wins(self, uid: LinkProgram) -> None:
        replies = in_threads(50, uid.try_set_link)
        winners = [reply[0] for reply in replies if len(reply) == 2]
        assert winners == [uid.pod()]
        assert {reply[0] for reply in replies} == set(winners)


class TestRemoveLink:
    @pytest.mark.parametrize("held_for", [-1, 100])
    def test_it_is_gone_at_once(self, uid: LinkProgram, held_for: int) -> None:
        uid.set_link(0, held_for)
        assert uid.remove_link() == [1]
        assert (uid.pod(), uid.listed()) == (None, None)

    def test_a_demoted_link_keeps_its_pod_for_the_grace_period(self, uid: LinkProgram) -> None:
        # An earlier implementation deleted the link and then set the expiry of nothing.
        uid.set_link(0)
        assert uid.remove_link(100) == [1]
        assert (uid.pod(), uid.listed()) == ("0", None)
        assert 98 <= uid.ttl() <= 100

    @pytest.mark.parametrize("held_for", [10, 1000])
    def test_demoting_a_temporary_link_starts_a_fresh_grace_period(
        self, uid: LinkProgram, held_for: int
    ) -> None:
        uid.set_link(0, held_for)
        assert uid.remove_link(100) == [1]
        assert uid.pod() == "0"
        assert 98 <= uid.ttl() <= 100

    @pytest.mark.parametrize("persist_seconds", [-1, 100])
    def test_without_a_link_only_the_hash_is_tidied(
        self, uid: LinkProgram, persist_seconds: int
    ) -> None:
        uid.client.hset(uid.hash, mapping={uid.service: "3", "other": "9"})
        assert uid.remove_link(persist_seconds) == [0]
        assert uid.pod() is None
        assert uid.client.hgetall(uid.hash) == {"other": "9"}


class TestRemoveLinkWithId:
    @pytest.mark.parametrize("persist_seconds", [-1, 100])
    def test_a_late_disconnect_leaves_a_newer_link_alone(
        self, uid: LinkProgram, persist_seconds: int
    ) -> None:
        uid.set_link(0)
        with unchanged(uid.client, uid.link, uid.hash):
            assert uid.remove_link_with_id(1, persist_seconds) == [0]

    def test_no_link_is_nobodys(self, uid: LinkProgram) -> None:
        assert uid.remove_link_with_id(0) == [0]

    def test_its_own_link_is_gone_at_once(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        assert uid.remove_link_with_id(0) == [1]
        assert (uid.pod(), uid.listed()) == (None, None)

    @pytest.mark.parametrize("held_for", [-1, 10, 1000])
    def test_its_own_link_keeps_its_pod_for_the_grace_period(
        self, uid: LinkProgram, held_for: int
    ) -> None:
        uid.set_link(0, held_for)
        assert uid.remove_link_with_id(0, 100) == [1]
        assert (uid.pod(), uid.listed()) == ("0", None)
        assert 98 <= uid.ttl() <= 100

    def test_an_idle_one_is_removed_only_as_long_as_it_is(self, uid: LinkProgram) -> None:
        # Not a small number: Redis 7 keeps one object for all keys that hold the same one.
        uid.set_link(20_000)
        make_idle(uid.client, uid.link)
        assert uid.remove_idle_link(20_001, 3600) == [0]
        make_idle(uid.client, uid.link)
        assert uid.remove_idle_link(20_000, 7200) == [0]
        assert (uid.pod(), uid.listed()) == ("20000", "20000")
        # That was a use of it.
        assert uid.remove_idle_link(20_000, 1800) == [0]
        make_idle(uid.client, uid.link)
        assert uid.remove_idle_link(20_000, 1800) == [1]
        assert (uid.pod(), uid.listed()) == (None, None)
        assert uid.remove_idle_link(20_000, 1800) == [0]

    def test_idle_ones_of_one_pod_are_removed_though_they_share_an_object(
        self, uid: LinkProgram
    ) -> None:
        """Redis 7 keeps one for each small number, and so one idle time: whatever reads a link makes all look used."""
        uids = [LinkProgram(uid.client, uid.namespace, uid.uid, name) for name in "abc"]
        for one in uids:
            one.set_link(7)
        for one in uids:
            make_idle(one.client, one.link)
        assert [one.remove_idle_link(7, 1800) for one in uids] == [[1]] * 3
        assert {(one.pod(), one.listed()) for one in uids} == {(None, None)}

    def test_an_idle_one_goes_by_its_hash_and_stays_if_it_ends_by_itself(
        self, uid: LinkProgram
    ) -> None:
        uid.set_link(20_000)
        uid.client.hset(uid.hash, uid.service, "20001")
        make_idle(uid.client, uid.link)
        assert uid.remove_idle_link(20_000, 1800) == [0]
        uid.client.expire(uid.link, 1000)
        assert uid.remove_idle_link(20_001, 1800) == [0]
        assert (uid.pod(), uid.ttl() > 0) == ("20000", True)
        uid.client.persist(uid.link)
        make_idle(uid.client, uid.link)
        assert uid.remove_idle_link(20_001, 1800) == [1]
        assert (uid.pod(), uid.listed()) == (None, None)

    def test_pods_are_compared_as_text_not_as_rounded_numbers(self, uid: LinkProgram) -> None:
        # Both are the same double, Lua's only kind of number.
        uid.set_link(2**53)
        assert uid.remove_link_with_id(2**53 + 1) == [0]
        assert uid.pod() == str(2**53)


class TestReads:
    def test_only_a_persistent_link_counts(self, uid: LinkProgram) -> None:
        assert uid.get_link_if_persist() == ["-1"]
        uid.set_link(0, 100)
        assert uid.get_link_if_persist() == ["-1"]
        uid.set_link(0)
        assert uid.get_link_if_persist() == ["0"]

    def test_all_persistent_links_of_a_uid(self, uid: LinkProgram) -> None:
        assert uid.get_link_service() == {}
        uid.set_link(0)
        uid.client.hset(uid.hash, "other", "9")
        assert uid.get_link_service() == {uid.service: "0", "other": "9"}


class TestComputeLink:
    def test_a_uid_without_a_link_is_placed_on_the_first_candidate(self, uid: LinkProgram) -> None:
        assert uid.compute_link(candidates=(0, 1)) == ["0", "placed", "-1", "-1"]
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("0", -1, "0")

    def test_a_placed_link_may_be_temporary(self, uid: LinkProgram) -> None:
        reply = uid.compute_link(100, candidates=(4,))
        assert reply[:3] == ["4", "placed", "-1"]
        assert 98_000 <= int(reply[3]) <= 100_000
        assert (uid.pod(), uid.listed()) == ("4", None)

    def test_gone_pods_are_passed_over(self, uid: LinkProgram) -> None:
        reply = uid.compute_link(gone=(0, 1), candidates=(1, 0, 2, 3))
        assert reply == ["2", "placed", "-1", "-1"]

    @pytest.mark.parametrize("mode", ["place", "move"])
    def test_a_link_to_a_pod_not_gone_is_kept(self, uid: LinkProgram, mode: str) -> None:
        uid.set_link(0)
        with unchanged(uid.client, uid.link, uid.hash):
            reply = uid.compute_link(100, mode=mode, gone=(1,), candidates=(2,))
            assert reply == ["0", "kept", "0", "-1"]

    @pytest.mark.parametrize("mode", ["place", "move"])
    def test_a_link_to_a_gone_pod_is_moved(self, uid: LinkProgram, mode: str) -> None:
        uid.set_link(0)
        reply = uid.compute_link(mode=mode, gone=(0, 1), candidates=(1, 2))
        assert reply == ["2", "moved", "0", "-1"]
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("2", -1, "2")

    def test_a_moved_link_gets_the_kind_that_is_asked_for(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        assert uid.compute_link(100, gone=(0,), candidates=(1,))[:3] == ["1", "moved", "0"]
        assert 98 <= uid.ttl() <= 100
        assert uid.listed() is None
        assert uid.compute_link(-1, gone=(1,), candidates=(2,)) == ["2", "moved", "1", "-1"]
        assert (uid.ttl(), uid.listed()) == (-1, "2")

    def test_keep_leaves_a_moved_link_persistent(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        reply = uid.compute_link("keep", mode="move", gone=(0,), candidates=(1,))
        assert reply == ["1", "moved", "0", "-1"]
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("1", -1, "1")

    def test_keep_leaves_a_moved_link_its_remaining_time(self, uid: LinkProgram) -> None:
        uid.set_link(0, 1000)
        uid.client.pexpire(uid.link, 70_500)
        reply = uid.compute_link("keep", mode="move", gone=(0,), candidates=(1,))
        assert reply[:3] == ["1", "moved", "0"]
        assert 68_500 <= int(reply[3]) <= 70_500
        assert (uid.pod(), uid.listed()) == ("1", None)
        assert uid.ttl() in range(68, 72)

    def test_keep_cannot_place(self, uid: LinkProgram) -> None:
        with pytest.raises(redis.exceptions.ResponseError, match="SFARG"):
            uid.compute_link("keep", candidates=(1,))
        assert uid.pod() is None

    def test_move_leaves_a_uid_without_a_link_alone(self, uid: LinkProgram) -> None:
        assert uid.compute_link(mode="move", candidates=(1,)) == ["-1", "none", "-1", "-2"]
        assert uid.pod() is None

    @pytest.mark.parametrize("candidates", [(), (0, 1)])
    def test_with_nobody_left_nothing_is_changed(
        self, uid: LinkProgram, candidates: tuple[int, ...]
    ) -> None:
        uid.set_link(0)
        with unchanged(uid.client, uid.link, uid.hash):
            reply = uid.compute_link(gone=(0, 1), candidates=candidates)
            assert reply == ["-1", "none", "0", "-1"]

    def test_a_kept_temporary_link_is_extended_when_half_of_its_time_is_gone(
        self, uid: LinkProgram
    ) -> None:
        uid.set_link(0, 49)
        reply = uid.compute_link(100, candidates=(1,))
        assert reply[:3] == ["0", "kept", "0"]
        assert 98_000 <= int(reply[3]) <= 100_000
        assert (uid.pod(), uid.listed()) == ("0", None)

    @pytest.mark.parametrize("persist_seconds", [100, -1, "keep"])
    def test_a_kept_temporary_link_is_not_touched_before(
        self, uid: LinkProgram, persist_seconds: int | str
    ) -> None:
        # Every change of an expiry is pushed to every gateway that has read the link.
        uid.set_link(0, 55)
        with unchanged(uid.client, uid.link, uid.hash):
            assert uid.compute_link(persist_seconds, candidates=(1,))[:2] == ["0", "kept"]

    def test_a_claim_makes_the_pods_own_temporary_link_persistent(self, uid: LinkProgram) -> None:
        uid.set_link(0, 100)
        assert uid.compute_link(mode="claim", candidates=(0,)) == ["0", "kept", "0", "-1"]
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("0", -1, "0")

    @pytest.mark.parametrize("held_for", [-1, 100])
    def test_a_claim_of_another_pods_link_changes_nothing(
        self, uid: LinkProgram, held_for: int
    ) -> None:
        uid.set_link(0, held_for)
        with unchanged(uid.client, uid.link, uid.hash):
            assert uid.compute_link(mode="claim", candidates=(1,))[:3] == ["0", "kept", "0"]

    def test_a_claim_places_a_uid_without_a_link(self, uid: LinkProgram) -> None:
        reply = uid.compute_link(mode="claim", candidates=(1,))
        assert reply == ["1", "placed", "-1", "-1"]

    def test_a_place_does_not_make_a_temporary_link_persistent(self, uid: LinkProgram) -> None:
        uid.set_link(0, 100)
        with unchanged(uid.client, uid.link, uid.hash):
            assert uid.compute_link(mode="place", candidates=(0,))[:2] == ["0", "kept"]

    def test_very_long_times_stay_exact(self, uid: LinkProgram) -> None:
        longest = 9_007_199_254_740
        uid.set_link(0, 100)
        assert abs(int(uid.compute_link(longest)[3]) - longest * 1000) < 2000
        assert uid.compute_link("keep", gone=(0,), candidates=(1,))[:2] == ["1", "moved"]
        assert abs(int(uid.client.pttl(uid.link)) - longest * 1000) < 2000

    def test_of_fifty_callers_at_once_exactly_one_places(self, uid: LinkProgram) -> None:
        replies = in_threads(50, lambda pod: uid.compute_link(candidates=(pod,)))
        assert sorted(reply[1] for reply in replies) == ["kept"] * 49 + ["placed"]
        assert {reply[0] for reply in replies} == {uid.pod()}


class TestTheTwoKeysOfALink:
    """Either can be evicted, or written by other means: each write repairs what it reads."""

    @pytest.mark.parametrize(
        "write",
        [
            lambda uid: uid.compute_link(candidates=(1,)),
            lambda uid: uid.set_link_if_absent(1),
            lambda uid: uid.try_set_link(1),
        ],
    )
    def test_an_evicted_string_is_restored(
        self, uid: LinkProgram, write: Callable[[LinkProgram], list[Any]]
    ) -> None:
        uid.set_link(3)
        uid.client.delete(uid.link)
        assert write(uid)[0] == "3"
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("3", -1, "3")

    @pytest.mark.parametrize("listed", [None, "7"])
    @pytest.mark.parametrize(
        "write",
        [
            lambda uid: uid.compute_link(candidates=(1,)),
            lambda uid: uid.set_link_if_absent(1),
            lambda uid: uid.try_set_link(1),
        ],
    )
    def test_the_hash_is_put_right(
        self,
        uid: LinkProgram,
        write: Callable[[LinkProgram], list[Any]],
        listed: str | None,
    ) -> None:
        uid.set_link(3)
        uid.client.delete(uid.hash)
        if listed is not None:
            uid.client.hset(uid.hash, uid.service, listed)
        assert write(uid)[0] == "3"
        assert (uid.pod(), uid.listed()) == ("3", "3")

    @pytest.mark.parametrize(
        "write",
        [
            lambda uid: uid.compute_link(candidates=(1,)),
            lambda uid: uid.set_link_if_absent(1, 50),
            lambda uid: uid.try_set_link(3, 50),
            lambda uid: uid.remove_link_with_id(3, 50),
        ],
    )
    def test_a_temporary_link_leaves_it(
        self, uid: LinkProgram, write: Callable[[LinkProgram], list[Any]]
    ) -> None:
        uid.set_link(3, 100)
        uid.client.hset(uid.hash, mapping={uid.service: "3", "other": "9"})
        write(uid)
        assert (uid.pod(), uid.client.hgetall(uid.hash)) == ("3", {"other": "9"})

    @pytest.mark.parametrize(
        ("persist_seconds", "write"),
        [
            (-1, lambda uid: uid.try_set_link(3)),
            (100, lambda uid: uid.try_set_link(1)),
            (-1, lambda uid: uid.compute_link(gone=(3,), candidates=(1,))),
            (-1, lambda uid: uid.remove_link_with_id(3)),
        ],
    )
    def test_all_services_of_a_uid_are_read_only_where_they_decide(
        self, uid: LinkProgram, persist_seconds: int, write: Callable[[LinkProgram], list[Any]]
    ) -> None:
        uid.set_link(3, persist_seconds)
        uid.client.hset(uid.hash, uid.service, "3")
        server: Any = owner_of(uid.client, uid.hash)
        server.config_resetstat()
        write(uid)
        assert "cmdstat_hexists" in server.info("commandstats")
        assert "cmdstat_hgetall" not in server.info("commandstats")

    def test_a_release_finds_a_link_whose_string_was_evicted(self, uid: LinkProgram) -> None:
        uid.set_link(3)
        uid.client.delete(uid.link)
        assert uid.remove_link_with_id(3) == [1]
        assert (uid.pod(), uid.listed()) == (None, None)

    def test_one_at_a_gone_pod_is_moved(self, uid: LinkProgram) -> None:
        uid.set_link(3)
        uid.client.delete(uid.link)
        assert uid.compute_link(gone=(3,), candidates=(1,))[:3] == ["1", "moved", "3"]
        assert (uid.pod(), uid.listed()) == ("1", "1")


class TestMovesForACallersWord:
    """A caller excludes a pod; others may think otherwise of it."""

    @staticmethod
    def notes(uid: LinkProgram) -> list[list[str]]:
        """Why, from where, where to: the newest first."""
        noted = uid.client.get(uid.keys["left"]) or ""
        return [note.split(":")[:3] for note in str(noted).split()]

    def test_a_move_is_noted_for_ten_minutes(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        assert uid.exclude(0, candidates=(1,))[:2] == ["1", "moved"]
        assert uid.place(-1, gone=(1,), candidates=(2,))[:2] == ["2", "moved"]
        assert self.notes(uid) == [["gone", "1", "2"], ["excluded", "0", "1"]]
        (noted_at,) = {
            note.split(":")[3] for note in str(uid.client.get(uid.keys["left"])).split()[:1]
        }
        seconds, micros = owner_of(uid.client, uid.link).time()
        assert 0 <= seconds * 1000 + micros // 1000 - int(noted_at) < 30_000
        assert 560_000 < uid.client.pttl(uid.keys["left"]) <= 600_000

    def test_placing_and_keeping_leave_no_note(self, uid: LinkProgram) -> None:
        uid.place(-1, candidates=(1,))
        uid.exclude(0, candidates=(2,))
        assert self.notes(uid) == []

    def test_a_link_does_not_come_back_while_it_settles(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        uid.exclude(0, candidates=(1,))
        assert uid.exclude(1, candidates=(0,))[:2] == ["-1", "none"]
        assert uid.pod() == "1"
        uid.age_notes(5)
        assert uid.exclude(1, candidates=(0,))[:2] == ["0", "moved"]

    def test_it_is_moved_twice_a_minute_at_most(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        assert uid.exclude(0, candidates=(1, 2, 3))[0] == "1"
        uid.age_notes(30)
        assert uid.exclude(1, candidates=(2, 3))[0] == "2"
        for _ in range(3):
            assert uid.exclude(2, candidates=(3,))[:2] == ["-1", "none"]
        uid.age_notes(30)
        assert uid.exclude(2, candidates=(3,))[:2] == ["3", "moved"]

    def test_two_that_disagree_move_it_twice_a_minute_at_most(self, uid: LinkProgram) -> None:
        """One reaches the even pods only, the other the odd ones. They ask in turn, all the time, for five minutes."""
        uid.set_link(0)
        moves = 0
        for second in range(300):
            pod = int(uid.pod() or 0)
            if pod % 2 == second % 2:
                others = tuple(one for one in range(10) if one % 2 != second % 2)
                moves += uid.exclude(pod, candidates=others)[1] == "moved"
            if uid.client.exists(uid.keys["left"]):
                uid.age_notes(1)
        # The notes also age by the time that this takes.
        assert 8 <= moves <= 12

    def test_who_goes_from_pod_to_pod_is_not_held_up(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        for excluded in range(1, 8):
            assert uid.exclude(*range(excluded), candidates=(excluded,))[1] == "moved"

    def test_a_pod_that_is_gone_needs_no_patience(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        uid.exclude(0, candidates=(1,))
        uid.exclude(1, candidates=(2,))
        assert uid.place(-1, gone=(2,), candidates=(0,))[:2] == ["0", "moved"]

    def test_a_clock_that_went_back_makes_no_move_younger_than_now(self, uid: LinkProgram) -> None:
        uid.set_link(0)
        uid.exclude(0, candidates=(1,))
        uid.age_notes(-3600)
        assert uid.exclude(1, candidates=(0,))[:2] == ["-1", "none"]

    @pytest.mark.parametrize(
        "noted", ["", "x", "excluded:1:2:", "excluded:1:2:x", "1 2 3", ":" * 2000]
    )
    def test_a_note_that_cannot_be_read_is_none(self, uid: LinkProgram, noted: str) -> None:
        uid.set_link(0)
        uid.client.set(uid.keys["left"], noted)
        assert uid.exclude(0, candidates=(1,))[:2] == ["1", "moved"]
        assert uid.client.strlen(uid.keys["left"]) <= 1000
