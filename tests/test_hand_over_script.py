"""What ``statefulHandOver`` does to a uid: who is moved, whose pod is asked, who is left alone."""

from __future__ import annotations

import time

import pytest
from support.program import Client, LinkProgram, in_threads


@pytest.fixture
def uid(client: Client, namespace: str) -> LinkProgram:
    return LinkProgram(client, namespace, "ada", "chat")


MODES = ("away", "ask", "force")


@pytest.mark.parametrize("mode", MODES)
class TestOfNobodysPod:
    def test_a_link_is_moved_and_keeps_its_kind(self, uid: LinkProgram, mode: str) -> None:
        uid.set_link(3)
        assert uid.hand_over(3, 7, mode) == "moved"
        assert (uid.pod(), uid.ttl(), uid.listed()) == ("7", -1, "7")
        uid.set_link(3, 50)
        assert uid.hand_over(3, 7, mode) == "moved"
        assert (uid.pod(), uid.listed()) == ("7", None)
        assert 0 < uid.ttl() <= 50

    def test_one_in_its_grace_period_is_moved(self, uid: LinkProgram, mode: str) -> None:
        _, _, fence = uid.claim(3)
        assert uid.release_claim(3, persist_seconds=50)
        assert uid.hand_over(3, 7, mode) == "moved"
        owner, how, newer = uid.claim(7, "other")
        assert (owner, how) == (7, "placed")
        assert newer > fence

    def test_a_claim_of_a_life_that_is_over_counts_for_nothing(
        self, uid: LinkProgram, mode: str
    ) -> None:
        uid.claim(3, "earlier")
        assert uid.hand_over(3, 7, mode, ended=("older", "earlier")) == "moved"

    def test_elsewhere_or_nowhere_it_is_left_alone(self, uid: LinkProgram, mode: str) -> None:
        assert uid.hand_over(3, 7, mode) == "elsewhere"
        assert uid.pod() is None
        uid.set_link(4)
        assert uid.hand_over(3, 7, mode) == "elsewhere"
        assert uid.hand_over(4, 4, mode) == "elsewhere"
        assert uid.pod() == "4"

    def test_it_is_not_moved_to_where_it_was_moved_off_just_now(
        self, uid: LinkProgram, mode: str
    ) -> None:
        uid.set_link(7)
        assert uid.exclude(7, candidates=(3,))[:2] == ["3", "moved"]
        assert uid.hand_over(3, 7, mode, settle_ms=60_000) == "settling"
        assert uid.pod() == "3"
        assert uid.hand_over(3, 9, mode, settle_ms=60_000) == "moved"

    def test_after_a_while_it_may_come_back_and_at_once_if_the_pod_was_gone(
        self, uid: LinkProgram, mode: str
    ) -> None:
        uid.set_link(7)
        uid.exclude(7, candidates=(3,))
        time.sleep(0.01)
        assert uid.hand_over(3, 7, mode, settle_ms=1) == "moved"
        uid.set_link(8)
        assert uid.place(-1, gone=(8,), candidates=(3,))[:2] == ["3", "moved"]
        assert uid.hand_over(3, 8, mode, settle_ms=60_000) == "moved"


class TestOfAPodThatHasIt:
    def test_it_is_left_alone(self, uid: LinkProgram) -> None:
        uid.claim(3)
        before = uid.record()
        assert uid.hand_over(3, 7, "away") == "claimed"
        assert (uid.pod(), uid.record(), uid.request()) == ("3", before, None)

    def test_the_pod_is_asked_and_the_uid_stays(self, uid: LinkProgram) -> None:
        _, _, fence = uid.claim(3)
        before = uid.record()
        for target in (7, 8):
            assert uid.hand_over(3, target, "ask") == "asked"
            assert uid.request() == f"{fence} {target}"
            assert 0 < uid.client.pttl(uid.keys["request"]) <= 10_000
        assert (uid.pod(), uid.ttl(), uid.record()) == ("3", -1, before)
        assert uid.client.ttl(uid.claim_record) == -1
        assert uid.confirm(3, "life", fence) == (3, "mine", fence)

    def test_it_is_taken_by_force(self, uid: LinkProgram) -> None:
        _, _, fence = uid.claim(3)
        assert uid.hand_over(3, 7, "force") == "moved"
        assert uid.pod() == "7"
        assert uid.confirm(3, "life", fence)[:2] == (7, "moved")

    def test_claiming_and_moving_at_once_never_both_succeed(self, uid: LinkProgram) -> None:
        for _ in range(20):
            uid.remove_claimed_link()
            uid.set_link(3, 50)

            def act(number: int) -> str:
                return uid.claim(3)[1] if number else uid.hand_over(3, 7, "away")

            assert set(in_threads(2, act)) in (
                {"placed", "claimed"},
                {"kept", "claimed"},
                {"refused", "moved"},
            )


def test_damaged_keys_are_named_and_nothing_is_changed(uid: LinkProgram) -> None:
    uid.set_link(3)
    uid.client.set(uid.claim_record, "nonsense")
    with pytest.raises(Exception, match="SFCORRUPT"):
        uid.hand_over(3, 7, "force")
    uid.client.delete(uid.claim_record)
    uid.client.set(uid.link, "nonsense")
    with pytest.raises(Exception, match="SFCORRUPT"):
        uid.hand_over(3, 7, "force")
