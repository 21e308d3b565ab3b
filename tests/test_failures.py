"""Error replies: what each means for the command that got it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfroute.failures import Failure, Kind, read_failure


@pytest.mark.parametrize(
    ("message", "failure"),
    [
        ("MOVED 3999 127.0.0.1:6381", Failure(Kind.MOVED, "MOVED", 3999, "127.0.0.1", 6381)),
        ("ASK 3999 db.example.org:6381", Failure(Kind.ASK, "ASK", 3999, "db.example.org", 6381)),
        ("MOVED 0 ::1:6381", Failure(Kind.MOVED, "MOVED", 0, "::1", 6381)),
        ("MOVED 0 [::1]:6381", Failure(Kind.MOVED, "MOVED", 0, "::1", 6381)),
    ],
)
def test_a_redirect_says_where_to(message: str, failure: Failure) -> None:
    assert read_failure(message) == failure


@pytest.mark.parametrize("host", ["", "?"])
def test_a_redirect_without_a_host_means_the_one_that_sent_it(host: str) -> None:
    assert read_failure(f"MOVED 7 {host}:6381") == Failure(Kind.MOVED, "MOVED", 7, "", 6381)


@pytest.mark.parametrize(
    "message",
    [
        *("MOVED", "MOVED 1", "ASK x 127.0.0.1:1", "MOVED 1 host", "MOVED 1 host:x"),
        *("MOVED 16384 host:1", "ASK 99999 host:1", "MOVED 1 host:0", "MOVED 1 host:65536"),
        "MOVED \u0661 host:1",
        # More digits than Python turns into a number.
        f"MOVED 1 host:{'9' * 5000}",
        f"MOVED {'9' * 5000} host:1",
    ],
)
def test_a_redirect_that_cannot_be_read_is_fatal(message: str) -> None:
    assert read_failure(message).kind is Kind.FATAL


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("NOSCRIPT No matching script. Please use EVAL.", Kind.NOSCRIPT),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Kind.WAIT),
        ("CLUSTERDOWN Hash slot not served", Kind.WAIT),
        ("LOADING Redis is loading the dataset in memory", Kind.WAIT),
        ("BUSY Redis is busy running a script", Kind.WAIT),
        ("OOM command not allowed when used memory > 'maxmemory'.", Kind.WAIT),
        ("NOREPLICAS Not enough good replicas to write.", Kind.WAIT),
        ("MASTERDOWN Link with MASTER is down", Kind.RELOCATE),
        ("READONLY You can't write against a read only replica.", Kind.RELOCATE),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", Kind.CORRUPT),
        ("SFCORRUPT The link holds something that is not a pod id", Kind.CORRUPT),
        ("SFARG pod must be a decimal pod id", Kind.FATAL),
        ("NOPERM this user has no permissions", Kind.FATAL),
        ("ERR unknown command", Kind.FATAL),
    ],
)
def test_each_code_has_its_consequence(message: str, kind: Kind) -> None:
    failure = read_failure(message)
    assert (failure.kind, failure.code) == (kind, message.partition(" ")[0])


def test_too_many_clients_pass_by_themselves() -> None:
    assert read_failure("ERR max number of clients reached") == Failure(Kind.WAIT, "MAXCLIENTS")


@pytest.mark.parametrize(
    "message",
    [
        "ERR ACL failure in script: No permissions to access a key script: on @user_script:1.",
        "ERR The user executing the script can't run this command or subcommand script: x",
    ],
)
def test_a_right_that_a_script_lacks_is_a_missing_right(message: str) -> None:
    assert read_failure(message) == Failure(Kind.FATAL, "NOPERM")


@pytest.mark.parametrize("message", ["", "user_script:1: oops", "oops", "sf:{ns:lk:ada} 1"])
def test_a_text_without_a_code_is_an_err(message: str) -> None:
    assert read_failure(message) == Failure(Kind.FATAL, "ERR")


@given(st.text())
def test_any_text_is_read(message: str) -> None:
    assert isinstance(read_failure(message).kind, Kind)
    assert isinstance(read_failure(f"MOVED {message}").kind, Kind)
