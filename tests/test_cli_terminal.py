"""What strangers wrote (uids, states, names) never commands a terminal, and input without an end takes no memory."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from support.command import COMMAND, Operator, environment

from sfroute import Router
from sfroute.cli.common import as_json_line, printable
from sfroute.embedded import LocalCluster

SERVICE: Final = "chat"
UNPRINTABLE: Final = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
EVERYTHING: Final = [chr(point) for point in range(sys.maxunicode + 1)]
HOSTILE: Final = "a\u202eb\u2066c\u2028d\u2029e\ufefff\u200bg\ue000h\U000e0041i\U000f0000j"
"""Turned around, isolated, broken into lines, invisible, private; all that a uid may hold."""


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


def unprintable_in(text: str) -> set[str]:
    return {
        each for each in text if each not in "\n\t" and unicodedata.category(each) in UNPRINTABLE
    }


@pytest.mark.slow
def test_every_unprintable_character_is_escaped_and_no_other() -> None:
    for start in range(0, len(EVERYTHING), 1000):
        # After a line's end, which is escaped, all others can be told apart.
        some = [each for each in EVERYTHING[start : start + 1000] if each != "\n"]
        for each, written in zip(some, printable("\n".join(some)).split(r"\x0a"), strict=True):
            if unicodedata.category(each) in UNPRINTABLE:
                assert written.isascii()
                assert written.isprintable()
            else:
                assert written == each
    assert printable("\n") == r"\x0a"


@pytest.mark.slow
def test_json_escapes_them_too_and_gives_them_back() -> None:
    for start in range(0, len(EVERYTHING), 1000):
        # Something between them: of two surrogates in a row a reader makes one character.
        text = "-".join(EVERYTHING[start : start + 1000])
        line = as_json_line(text)
        assert not unprintable_in(line)
        assert json.loads(line) == text


@pytest.mark.parametrize(
    "command",
    [
        ["state", "get"],
        ["state", "get", "--json"],
        ["pods"],
        ["pods", "--json"],
        ["workload", "get"],
        ["link", "services", HOSTILE],
        ["link", "services", HOSTILE, "--json"],
        ["link", "batch", HOSTILE],
        ["link", "batch", HOSTILE, "--json"],
        ["link", "get", HOSTILE],
        ["route", HOSTILE],
        ["route", HOSTILE, "--json"],
        ["doctor"],
        ["doctor", "--json"],
    ],
    ids=lambda command: " ".join(command).replace(HOSTILE, "UID"),
)
def test_nothing_of_a_strangers_reaches_the_terminal(
    operator: Operator, command: list[str]
) -> None:
    operator.report(0, json.dumps({"status": HOSTILE, "load": 1}, ensure_ascii=False))
    operator.report(1, HOSTILE)
    operator.report(3)
    operator.router.set_workload_state(operator.namespace, SERVICE, HOSTILE)
    operator.router.set_linked_pod(operator.namespace, HOSTILE, SERVICE, 3)
    operator.router.set_linked_pod(operator.namespace, HOSTILE, HOSTILE, 3)
    done = operator(*command)
    assert done.out
    assert not unprintable_in(done.out + done.err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_encoding_that_lacks_a_character_is_no_reason_for_a_traceback(
    operator: Operator, encoding: str
) -> None:
    operator.report(0, "läuft 日本")
    done = subprocess.run(
        [*COMMAND, "state", "get"],
        capture_output=True,
        env=environment(
            PYTHONIOENCODING=encoding,
            SFROUTE_URL=operator.url,
            SFROUTE_NAMESPACE=operator.namespace,
            SFROUTE_SERVICE=SERVICE,
        ),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    expected = "0\tläuft 日本\n".encode(encoding, errors="backslashreplace")
    assert done.stdout == expected


def read_from(operator: Operator, source: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # A tenth of a gigabyte beside what Python and its libraries map: a reader that keeps everything does not get far.
    limited = f"ulimit -v 1500000; exec {' '.join(COMMAND)} {' '.join(command)}"
    with source.open("rb") as given:
        return subprocess.run(
            ["bash", "-c", limited],
            stdin=given,
            capture_output=True,
            text=True,
            env=environment(
                SFROUTE_URL=operator.url,
                SFROUTE_NAMESPACE=operator.namespace,
                SFROUTE_SERVICE=SERVICE,
            ),
            check=False,
        )


@pytest.mark.parametrize("command", [["route"], ["link", "batch"]], ids=" ".join)
def test_input_without_an_end_is_given_up(operator: Operator, command: list[str]) -> None:
    operator.report(0)
    done = read_from(operator, Path("/dev/zero"), *command)
    assert done.returncode == 2
    assert done.stderr == (
        "sfroute: line 1 of standard input does not end within 1 MiB; give one uid per line\n"
    )


def test_a_line_that_is_too_long_fails_alone(operator: Operator, tmp_path: Path) -> None:
    operator.report(0)
    given = tmp_path / "uids"
    given.write_text(f"ada\n{'x' * 300_000}\ngrace\n{'y' * 5000}\nlinus\n{'z' * 70_000}")
    done = read_from(operator, given, "route")
    assert done.stdout == "".join(f"{uid}\t0\tplaced\n" for uid in ("ada", "grace", "linus"))
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "line 2",
        "line 4",
        "line 6",
        "sfroute",
    ]
    assert done.returncode == 1
