"""What must never go wrong with the scripts that change links: repetition, damaged keys, wrong arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import catalogue
import pytest
import redis.exceptions
from catalogue import SCRIPTS, bad_argv, link_scripts
from support.program import LinkProgram, run_script, unchanged
from support.rows import Script

EVERY = pytest.mark.parametrize("script", link_scripts(), ids=lambda row: row.name)
WITH_RECORD = pytest.mark.parametrize(
    "script", [row for row in link_scripts() if row.keeps_record], ids=lambda row: row.name
)
ON_CLAIMS = pytest.mark.parametrize(
    "script", [row for row in SCRIPTS if row.keys[2:3] == ("claim",)], ids=lambda row: row.name
)


def link_keys(uid: LinkProgram, script: Script) -> list[str]:
    """The keys that it may change, but for the record."""
    return [uid.keys[name] for name in script.keys if name != "op"]


class TestOperationRecord:
    """A write that is sent again with the same record does nothing, and says what it said."""

    @WITH_RECORD
    def test_a_replay_returns_the_reply_and_changes_nothing(
        self, uid: LinkProgram, script: Script
    ) -> None:
        script.before(uid)
        first = script.run(uid)
        with unchanged(uid.client, *link_keys(uid, script)):
            assert script.run(uid) == first

    @WITH_RECORD
    def test_a_replay_writes_to_the_record_so_that_a_wait_covers_it(
        self, uid: LinkProgram, script: Script
    ) -> None:
        script.before(uid)
        script.run(uid)
        record = uid.client.get(uid.op)
        uid.client.pexpire(uid.op, 1000)
        script.run(uid)
        assert uid.client.get(uid.op) == record
        assert 58_000 <= uid.client.pttl(uid.op) <= 60_000

    @WITH_RECORD
    def test_a_replay_does_not_undo_what_others_have_done_since(
        self, uid: LinkProgram, script: Script
    ) -> None:
        script.before(uid)
        first = script.run(uid)
        uid.set_link(3)
        with unchanged(uid.client, *link_keys(uid, script)):
            assert script.run(uid) == first

    @WITH_RECORD
    def test_a_replay_returns_the_reply_though_the_link_has_been_damaged_since(
        self, uid: LinkProgram, script: Script
    ) -> None:
        script.before(uid)
        first = script.run(uid)
        uid.client.set(uid.link, "abc")
        with unchanged(uid.client, *link_keys(uid, script)):
            assert script.run(uid) == first

    @WITH_RECORD
    def test_the_reply_is_the_one_without_a_record(self, uid: LinkProgram, script: Script) -> None:
        script.before(uid)
        assert script.run(uid) == script.reply
        assert script.run(uid) == script.reply
        if script.record_may_be_left_out:
            uid.client.delete(*uid.keys.values())
            script.before(uid)
            assert script.run(uid, recorded=False) == script.reply

    def test_a_refusal_is_recorded_too(self, uid: LinkProgram) -> None:
        script = catalogue.script("statefulTrySetLink")
        uid.set_link(3)
        assert script.run(uid) == ["3"]
        uid.remove_link()
        assert script.run(uid) == ["3"]
        assert uid.pod() is None

    @WITH_RECORD
    def test_the_record_expires_and_then_the_call_is_a_new_one(
        self, uid: LinkProgram, script: Script
    ) -> None:
        script.before(uid)
        script.run(uid)
        assert 58_000 <= uid.client.pttl(uid.op) <= 60_000
        uid.client.delete(*uid.keys.values())
        script.before(uid)
        with pytest.raises(AssertionError), unchanged(uid.client, *link_keys(uid, script)):
            script.run(uid)

    @WITH_RECORD
    def test_without_its_key_nothing_is_recorded(self, uid: LinkProgram, script: Script) -> None:
        if script.record_may_be_left_out:
            script.before(uid)
            script.run(uid, recorded=False, op_ms=60_000)
            assert not uid.client.exists(uid.op)

    @WITH_RECORD
    def test_for_no_time_nothing_is_recorded(self, uid: LinkProgram, script: Script) -> None:
        script.before(uid)
        assert script.run(uid, op_ms=0) == script.reply
        assert not uid.client.exists(uid.op)
        # Nor is a record that is there heeded: the call is a new one.
        uid.client.delete(*uid.keys.values())
        script.before(uid)
        uid.client.set(uid.op, '["nonsense"]')
        assert script.run(uid, op_ms=0) == script.reply

    @WITH_RECORD
    def test_an_error_is_not_recorded(self, uid: LinkProgram, script: Script) -> None:
        uid.client.set(uid.link, "abc")
        with pytest.raises(redis.exceptions.ResponseError, match="SFCORRUPT"):
            script.run(uid)
        assert not uid.client.exists(uid.op)

    @WITH_RECORD
    def test_a_damaged_record_is_an_error(self, uid: LinkProgram, script: Script) -> None:
        script.before(uid)
        uid.client.hset(uid.op, "a", "b")
        with (
            unchanged(uid.client, *uid.keys.values()),
            pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"),
        ):
            script.run(uid)


class TestWithoutRecord:
    """What may be sent again without a record finds what it has made."""

    @pytest.mark.parametrize(
        "script", [row for row in SCRIPTS if row.harmless], ids=lambda row: row.name
    )
    def test_a_replay_changes_no_link_and_no_claim(self, uid: LinkProgram, script: Script) -> None:
        script.before(uid)
        script.run(uid)
        with unchanged(uid.client, uid.link, uid.hash, uid.claim_record):
            script.run(uid)


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
    @EVERY
    def test_a_write_is_refused(self, uid: LinkProgram, script: Script, damage: str) -> None:
        make, first_word = DAMAGES[damage]
        make(uid)
        with unchanged(uid.client, *uid.keys.values()):
            with pytest.raises(redis.exceptions.ResponseError) as caught:
                script.run(uid)
            assert str(caught.value).startswith(first_word)
            assert "ada" not in str(caught.value)

    @pytest.mark.parametrize(
        "record", ["", "7", "7 3", "07 3 a", "x 3 a", "7 x a", "7 - a", "7 3 -", f"{2**53} 3 a"]
    )
    @ON_CLAIMS
    def test_a_damaged_claim_record_stops_every_script_of_claims(
        self, uid: LinkProgram, script: Script, record: str
    ) -> None:
        uid.set_link(3)
        uid.client.set(uid.claim_record, record)
        self.assert_no_claim(uid, script, "SFCORRUPT The claim record")

    @ON_CLAIMS
    def test_so_does_one_of_another_type(self, uid: LinkProgram, script: Script) -> None:
        uid.set_link(3)
        uid.client.hset(uid.claim_record, "a", "b")
        self.assert_no_claim(uid, script, r"WRONGTYPE KEYS\[3\]")

    @ON_CLAIMS
    def test_an_evicted_link_that_was_listed_as_nonsense(
        self, uid: LinkProgram, script: Script
    ) -> None:
        uid.client.hset(uid.hash, uid.service, "x")
        self.assert_no_claim(uid, script, "SFCORRUPT The link")

    def assert_no_claim(self, uid: LinkProgram, script: Script, error: str) -> None:
        with (
            unchanged(uid.client, *uid.keys.values()),
            pytest.raises(redis.exceptions.ResponseError, match=f"^{error}"),
        ):
            script.run(uid)

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
        ("script", "argument", "bad"),
        [
            pytest.param(row, name, bad, id=f"{row.name}-{name}-{bad}")
            for row, name, bad in bad_argv()
        ],
    )
    def test_each_is_checked(
        self, uid: LinkProgram, script: Script, argument: str, bad: str
    ) -> None:
        several = isinstance(script.args[argument], list)
        changed: dict[str, Any] = {argument: [bad] if several else bad}
        self.assert_refused(uid, script, script.argv(**changed))

    @pytest.mark.parametrize(
        "script", [row for row in SCRIPTS if row.access == "write"], ids=lambda row: row.name
    )
    def test_missing_arguments(self, uid: LinkProgram, script: Script) -> None:
        self.assert_refused(uid, script, [])

    def assert_refused(self, uid: LinkProgram, script: Script, argv: list[Any]) -> None:
        script.before(uid)
        with (
            unchanged(uid.client, *uid.keys.values()),
            pytest.raises(redis.exceptions.ResponseError, match=r"^SFARG "),
        ):
            run_script(uid.client, script.name, script.keys_of(uid), *argv)

    @ON_CLAIMS
    def test_a_missing_claim_record(self, uid: LinkProgram, script: Script) -> None:
        with pytest.raises(redis.exceptions.ResponseError, match=r"^SFARG the claim record"):
            run_script(uid.client, script.name, [uid.link, uid.hash], *script.argv())
