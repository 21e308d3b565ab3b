"""What must never go wrong with the scripts that change links: repetition, damaged keys, wrong arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis.exceptions
from program import WRITES, LinkProgram, unchanged, writing_args


class TestOperationRecord:
    """A write that is sent again with the same record does nothing, and says what it said."""

    @pytest.mark.parametrize("script", WRITES)
    def test_a_replay_returns_the_reply_and_changes_nothing(
        self, uid: LinkProgram, script: str
    ) -> None:
        uid.set_link(3, 10)
        first = uid.run_once(script, *writing_args(script, 60_000))
        with unchanged(uid.client, uid.link, uid.hash):
            assert uid.run_once(script, *writing_args(script, 60_000)) == first

    @pytest.mark.parametrize("script", WRITES)
    def test_a_replay_writes_to_the_record_so_that_a_wait_covers_it(
        self, uid: LinkProgram, script: str
    ) -> None:
        uid.set_link(3, 10)
        uid.run_once(script, *writing_args(script, 60_000))
        record = uid.client.get(uid.op)
        uid.client.pexpire(uid.op, 1000)
        uid.run_once(script, *writing_args(script, 60_000))
        assert uid.client.get(uid.op) == record
        assert 58_000 <= uid.client.pttl(uid.op) <= 60_000

    @pytest.mark.parametrize("script", WRITES)
    def test_a_replay_does_not_undo_what_others_have_done_since(
        self, uid: LinkProgram, script: str
    ) -> None:
        uid.set_link(3, 10)
        first = uid.run_once(script, *writing_args(script, 60_000))
        uid.set_link(3)
        with unchanged(uid.client, uid.link, uid.hash):
            assert uid.run_once(script, *writing_args(script, 60_000)) == first

    @pytest.mark.parametrize("script", WRITES)
    def test_the_reply_is_the_one_without_a_record(self, uid: LinkProgram, script: str) -> None:
        uid.set_link(3, 10)
        plain = uid.run(script, *WRITES[script])
        uid.set_link(3, 10)
        recorded = uid.run_once(script, *writing_args(script, 60_000))
        replayed = uid.run_once(script, *writing_args(script, 60_000))
        assert recorded == replayed
        if script == "statefulComputeLinkIfAbsent":  # its last element is a time
            assert recorded[:3] == plain[:3]
        else:
            assert recorded == plain

    def test_a_refusal_is_recorded_too(self, uid: LinkProgram) -> None:
        uid.set_link(3)
        args = writing_args("statefulTrySetLink", 60_000)
        assert uid.run_once("statefulTrySetLink", *args) == ["3"]
        uid.remove_link()
        assert uid.run_once("statefulTrySetLink", *args) == ["3"]
        assert uid.pod() is None

    @pytest.mark.parametrize("script", WRITES)
    def test_the_record_expires_and_then_the_call_is_a_new_one(
        self, uid: LinkProgram, script: str
    ) -> None:
        uid.set_link(3, 10)
        uid.run_once(script, *writing_args(script, 60_000))
        assert 58_000 <= uid.client.pttl(uid.op) <= 60_000
        uid.client.pexpire(uid.op, 0)
        uid.set_link(3, 10)
        uid.run_once(script, *writing_args(script, 60_000))
        assert 40 <= uid.ttl() <= 50

    @pytest.mark.parametrize("script", WRITES)
    def test_without_the_third_key_nothing_is_recorded(self, uid: LinkProgram, script: str) -> None:
        uid.set_link(3)
        uid.run(script, *writing_args(script, 60_000))
        assert not uid.client.exists(uid.op)

    @pytest.mark.parametrize("script", WRITES)
    def test_an_error_is_not_recorded(self, uid: LinkProgram, script: str) -> None:
        uid.client.set(uid.link, "abc")
        with pytest.raises(redis.exceptions.ResponseError, match="SFCORRUPT"):
            uid.run_once(script, *writing_args(script, 60_000))
        assert not uid.client.exists(uid.op)

    @pytest.mark.parametrize("op_ms", ["", "0", "-1", "1.5", "1e3", "9" * 16])
    @pytest.mark.parametrize("script", WRITES)
    def test_a_record_needs_a_lifetime(self, uid: LinkProgram, script: str, op_ms: str) -> None:
        uid.set_link(3)
        with (
            unchanged(uid.client, uid.link, uid.hash, uid.op),
            pytest.raises(redis.exceptions.ResponseError, match=r"^SFARG op_ms"),
        ):
            uid.run_once(script, *writing_args(script, op_ms))

    def test_a_damaged_record_is_an_error(self, uid: LinkProgram) -> None:
        uid.client.hset(uid.op, "a", "b")
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            uid.run_once("statefulSetLink", 1, -1, 60_000)
        assert uid.pod() is None


def damage_link_text(uid: LinkProgram, text: str) -> None:
    uid.client.set(uid.link, text, ex=1000)
    uid.client.hset(uid.hash, uid.service, "3")


def damage_link_type(uid: LinkProgram) -> None:
    uid.client.hset(uid.link, "a", "b")
    uid.client.hset(uid.hash, uid.service, "3")


def damage_hash_type(uid: LinkProgram) -> None:
    uid.client.set(uid.link, "3")
    uid.client.set(uid.hash, "3")


DAMAGES: dict[str, tuple[Callable[[LinkProgram], None], str]] = {
    "letters": (lambda uid: damage_link_text(uid, "abc"), "SFCORRUPT"),
    "empty": (lambda uid: damage_link_text(uid, ""), "SFCORRUPT"),
    "negative": (lambda uid: damage_link_text(uid, "-1"), "SFCORRUPT"),
    "fraction": (lambda uid: damage_link_text(uid, "3.0"), "SFCORRUPT"),
    "beyond an int64": (lambda uid: damage_link_text(uid, str(2**63)), "SFCORRUPT"),
    "two lines": (lambda uid: damage_link_text(uid, "3\n"), "SFCORRUPT"),
    "link is a hash": (damage_link_type, "WRONGTYPE"),
    "hash is a string": (damage_hash_type, "WRONGTYPE"),
}


class TestDamagedKeys:
    """An error, and nothing changed."""

    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("script", WRITES)
    def test_a_write_is_refused(self, uid: LinkProgram, script: str, damage: str) -> None:
        make, first_word = DAMAGES[damage]
        make(uid)
        with unchanged(uid.client, uid.link, uid.hash, uid.op):
            with pytest.raises(redis.exceptions.ResponseError) as caught:
                uid.run_once(script, *writing_args(script, 60_000))
            assert str(caught.value).startswith(first_word)
            assert "ada" not in str(caught.value)

    @pytest.mark.parametrize(
        "damage", [damage for damage in DAMAGES if damage != "hash is a string"]
    )
    def test_a_read_of_the_link_is_refused(self, uid: LinkProgram, damage: str) -> None:
        make, first_word = DAMAGES[damage]
        make(uid)
        with pytest.raises(redis.exceptions.ResponseError, match=f"^{first_word}"):
            uid.get_link_if_persist()

    def test_a_read_of_the_hash_is_refused(self, uid: LinkProgram) -> None:
        damage_hash_type(uid)
        with pytest.raises(redis.exceptions.ResponseError, match=r"^WRONGTYPE"):
            uid.get_link_service()


class TestArguments:
    """A wrong argument is refused before anything is changed."""

    @pytest.mark.parametrize(
        "pod", ["", "-1", "abc", "1.5", "007", str(2**63), "1" * 20, "+1", " 1"]
    )
    @pytest.mark.parametrize("script", [name for name in WRITES if name != "statefulRemoveLink"])
    def test_pod(self, uid: LinkProgram, script: str, pod: str) -> None:
        args = list(WRITES[script])
        args[{"statefulRemoveLinkWithId": 1, "statefulComputeLinkIfAbsent": 5}.get(script, 0)] = pod
        self.assert_refused(uid, script, args)

    @pytest.mark.parametrize("seconds", ["", "0", "-2", "1.5", "abc", "1e3", "9007199254741", "01"])
    @pytest.mark.parametrize("script", WRITES)
    def test_persist_seconds(self, uid: LinkProgram, script: str, seconds: str) -> None:
        args = list(WRITES[script])
        args[1 if "Set" in script else 0] = seconds
        self.assert_refused(uid, script, args)

    @pytest.mark.parametrize("refresh", ["", "2", "true"])
    def test_refresh(self, uid: LinkProgram, refresh: str) -> None:
        self.assert_refused(uid, "statefulSetLinkIfAbsent", [3, 100, refresh])

    @pytest.mark.parametrize("mode", ["", "keep", "PLACE"])
    def test_mode(self, uid: LinkProgram, mode: str) -> None:
        self.assert_refused(uid, "statefulComputeLinkIfAbsent", [100, mode, 0, 0, 1])

    @pytest.mark.parametrize("gone_count", ["", "-1", "2", "x"])
    def test_gone_count(self, uid: LinkProgram, gone_count: str) -> None:
        self.assert_refused(uid, "statefulComputeLinkIfAbsent", [100, "place", 0, gone_count, 1])

    @pytest.mark.parametrize("script", WRITES)
    def test_missing(self, uid: LinkProgram, script: str) -> None:
        self.assert_refused(uid, script, [])

    def assert_refused(self, uid: LinkProgram, script: str, args: list[Any]) -> None:
        uid.set_link(3, 100)
        with (
            unchanged(uid.client, uid.link, uid.hash),
            pytest.raises(redis.exceptions.ResponseError, match=r"^SFARG "),
        ):
            uid.run(script, *args)
