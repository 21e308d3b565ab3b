"""Error replies: what each means for the command that got it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfroute._contract.error_replies import (
    MAX_HOPS,
    Failure,
    Kind,
    Step,
    next_step,
    read_failure,
)


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
        ("OOM command not allowed when used memory > 'maxmemory'.", Kind.FULL),
        ("MISCONF Redis is configured to save RDB snapshots, but it is not able to", Kind.FULL),
        ("NOREPLICAS Not enough good replicas to write.", Kind.WAIT),
        ("MASTERDOWN Link with MASTER is down", Kind.RELOCATE),
        ("READONLY You can't write against a read only replica.", Kind.RELOCATE),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", Kind.CORRUPT),
        ("SFCORRUPT The link holds something that is not a pod id", Kind.CORRUPT),
        ("SFARG pod must be a decimal pod id", Kind.FATAL),
        ("NOPERM this user has no permissions", Kind.FATAL),
        ("ERR unknown command 'EVALSHA', with args beginning with: 'x' ", Kind.UNKNOWN),
        ("ERR value is not an integer or out of range", Kind.FATAL),
    ],
)
def test_each_code_has_its_consequence(message: str, kind: Kind) -> None:
    failure = read_failure(message)
    assert (failure.kind, failure.code) == (kind, message.partition(" ")[0])


IN_SCRIPT_62 = (
    "ERR Error running script (call to f_d447ecdcf669bdef424b545f9f1078cd94bb55de): "
    "@user_script:75: @user_script: 75: "
)
"""As Redis 6.2 says it."""

RETURNED_62 = "@user_script: 58: "
"""As Redis 6.2 says it of an error that the script caught with ``pcall``, and returned."""


@pytest.mark.parametrize(
    ("message", "kind", "code"),
    [
        ("-READONLY You can't write against a read only replica.", Kind.RELOCATE, "READONLY"),
        ("-OOM command not allowed when used memory > 'maxmemory'.", Kind.FULL, "OOM"),
        ("-MISCONF Redis is configured to save RDB snapshots.", Kind.FULL, "MISCONF"),
        (
            "Lua script attempted to execute a write command while the cluster is down and readonly",
            Kind.WAIT,
            "CLUSTERDOWN",
        ),
        ("attempt to index a nil value", Kind.FATAL, "ERR"),
    ],
)
@pytest.mark.parametrize("prefix", [IN_SCRIPT_62, RETURNED_62])
def test_a_command_in_a_script_is_refused_as_one_outside(
    prefix: str, message: str, kind: Kind, code: str
) -> None:
    assert read_failure(prefix + message) == Failure(kind, code)


def test_a_script_that_names_a_code_in_its_own_words_is_not_believed() -> None:
    for message in (
        "ERR user_script:1: -READONLY",
        "ERR Error running script (call to f_x): @user_script:1: -READONLY",
        f"ERR x {IN_SCRIPT_62}-READONLY",
        f"ERR {RETURNED_62}-READONLY",
    ):
        assert read_failure(message).kind is Kind.FATAL


@pytest.mark.parametrize(
    "message",
    [
        "ERR Script attempted to execute a write command while the cluster is down and readonly script: d447, on @x:7.",
        "ERR Can not execute a write command 'set' while the cluster is down and readonly script: on @x:75.",
        "ERR Can not execute a command 'get' while the cluster is down script: on @user_script:1.",
    ],
)
def test_a_cluster_that_is_down_in_the_middle_of_a_script_is_down(message: str) -> None:
    assert read_failure(message) == Failure(Kind.WAIT, "CLUSTERDOWN")


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


@pytest.mark.slow
@given(st.text())
def test_any_text_is_read(message: str) -> None:
    assert isinstance(read_failure(message).kind, Kind)
    assert isinstance(read_failure(f"MOVED {message}").kind, Kind)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (Kind.MOVED, Step.FOLLOW),
        (Kind.ASK, Step.FOLLOW),
        (Kind.NOSCRIPT, Step.BY_SOURCE),
        (Kind.WAIT, Step.PAUSE),
        (Kind.RELOCATE, Step.PAUSE),
        (Kind.CORRUPT, Step.FAIL),
        (Kind.FATAL, Step.FAIL),
    ],
)
def test_each_kind_has_its_next_step(kind: Kind, step: Step) -> None:
    assert next_step(Failure(kind, "CODE"), 0, source_at_hand=True) is step


@pytest.mark.parametrize("kind", [Kind.MOVED, Kind.ASK])
def test_after_three_redirects_in_a_row_the_next_one_pauses(kind: Kind) -> None:
    steps = [next_step(Failure(kind, "CODE"), hops) for hops in range(MAX_HOPS + 1)]
    assert steps == [Step.FOLLOW] * 3 + [Step.PAUSE]


def test_a_script_that_is_unknown_by_its_source_too_fails() -> None:
    assert next_step(Failure(Kind.NOSCRIPT, "NOSCRIPT"), 0) is Step.FAIL
