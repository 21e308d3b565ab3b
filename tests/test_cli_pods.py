"""``sfroute pods``, ``watch``, ``top``, ``drain`` and ``evacuate``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.command import COMMAND, Operator, environment

from sfroute import DRAINING, RUNNING, AsyncPodAgent, AsyncRouter, PodAgent, Router
from sfroute.cli.drain import asked_state, taken_up
from sfroute.cli.top.facts import Counters, rates
from sfroute.embedded import LocalCluster, LocalServer
from sfroute.states import asked_to_drain

QUICK = 0.1
"""Seconds between heartbeats."""


@pytest.fixture
def operator(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Operator]:
    with Router.from_url(sfroute_cluster.url) as router:
        yield Operator(router, sfroute_cluster.url, sfroute_namespace)


@contextlib.contextmanager
def agent(operator: Operator, pod: int, **options: Any) -> Iterator[PodAgent]:
    """A pod that sends heartbeats."""
    with PodAgent(
        operator.router, operator.namespace, operator.service, pod, heartbeat=QUICK, **options
    ) as speaker:
        yield speaker


def stamp(operator: Operator, pod: int, seconds_ago: float) -> None:
    """A state whose stamp says so."""
    at = int((time.time() - seconds_ago) * 1000)
    operator.report(pod, json.dumps({"status": "Running", "load": 0.25, "at": at}))


# --- pods


def test_pods_shows_each_pod_and_whether_it_takes_new_users(operator: Operator) -> None:
    operator.report(0)
    operator.report(1, "Draining")
    stamp(operator, 2, 0)
    stamp(operator, 10, 60)
    done = operator("pods")
    assert (done.code, done.err) == (0, "")
    heading, *rows = [line.split() for line in done.lines]
    assert heading == ["POD", "STATUS", "LOAD", "AGE", "NEW", "USERS"]
    assert rows[0] == ["0", "Running", "-", "-", "yes"]
    assert rows[1] == ["1", "Draining", "-", "-", "no:", "status", "'Draining'"]
    assert rows[2][:3] == ["2", "Running", "0.25"]
    assert rows[3][:3] == ["10", "Running", "0.25"]
    assert "no: last heartbeat 6" in done.lines[4]
    # Who is more patient sees it alive.
    assert operator("pods", "--pod-timeout", "90").lines[4].endswith("yes")


def test_pods_counts_links_and_shows_who_only_has_links(operator: Operator) -> None:
    operator.report(0)
    for number in range(40):
        operator.link(f"user-{number}", number % 4 and 7, 50 if number % 2 else -1)
    done = operator("pods", "--links", "--json")
    assert [(row["pod"], row["links"], row["why_not"]) for row in done.json_lines] == [
        (0, 10, None),
        (7, 30, "not reported"),
    ]
    assert operator("pods", "--links").lines[2].split()[:5] == ["7", "-", "-", "-", "30"]


def test_pods_in_json_have_all_fields(operator: Operator) -> None:
    operator.report(3, '{"status":"Running","load":0.5,"zone":"b"}')
    assert operator("pods", "--json").json == {
        "pod": 3,
        "status": "Running",
        "load": 0.5,
        "age": None,
        "takes_new_users": True,
        "why_not": None,
        "extra": {"zone": "b"},
    }


def test_pods_of_a_service_that_nobody_reports_exit_with_3(operator: Operator) -> None:
    assert operator("pods") == (3, "", "sfroute: no pod of 'chat' has reported a state\n")


def test_tables_fit_80_columns(operator: Operator) -> None:
    operator.report(2**63 - 1, json.dumps({"status": "Strange " * 12, "load": 123456789.123}))
    for command in (("pods", "--links"), ("top", "--count", "1")):
        done = operator(*command, COLUMNS="80")
        assert max(map(len, done.lines)) <= 80
        # Nothing is cut off.
        assert "".join(done.out.split()).count("Strange") >= 12


# --- drain


def test_a_pod_with_an_agent_takes_the_request_up(operator: Operator) -> None:
    with agent(operator, 3) as speaker:
        done = operator("drain", "3")
        assert done == (0, "pod 3 drains: its agent has taken it up\n", "")
        assert speaker.status == DRAINING
        assert speaker.conflicts == 0
        assert operator("drain", "3").out == "pod 3 drains already\n"
        done = operator("drain", "3", "--undo", "--json")
        assert (done.code, done.json["outcome"]) == (0, "taken up")
        assert done.err == "sfroute: pod 3 takes new users: its agent has taken it up\n"
        assert speaker.status == RUNNING


async def test_what_an_agent_does_itself_is_not_undone_by_a_request(
    operator: Operator, sfroute_cluster: LocalCluster
) -> None:
    async with (
        AsyncRouter.from_url(sfroute_cluster.url) as router,
        AsyncPodAgent(router, operator.namespace, "chat", 3, heartbeat=QUICK) as speaker,
    ):
        draining = asyncio.create_task(speaker.drain(30))
        await wait_for_async(lambda: speaker.status == DRAINING)
        done = await asyncio.to_thread(operator, "drain", "3", "--undo", "--seconds", "1")
        assert done.code == 1
        assert "pod 3 itself goes on reporting another state" in done.err
        assert speaker.status == DRAINING
        draining.cancel()


def test_a_process_that_begins_anew_does_not_drain_for_the_one_before(operator: Operator) -> None:
    operator.report(3, '{"status":"Draining","drain":true}')
    with agent(operator, 3) as speaker:
        wait_for(lambda: "at" in json.loads(operator("state", "get", "3").out.split("\t")[1]))
        assert speaker.status == RUNNING


def test_a_pod_that_sends_no_heartbeat_stays_draining(operator: Operator) -> None:
    operator.report(3)
    done = operator("drain", "3", "--seconds", "0.3")
    assert done == (0, "pod 3 drains; it has reported nothing itself within 0.3 s\n", "")
    assert operator("state", "get", "3").out == "3\tDraining\n"
    assert operator("drain", "3", "--undo", "--seconds", "0.3").code == 0
    assert operator("state", "get", "3").out == "3\tRunning\n"


def test_a_program_that_goes_on_is_told_of(operator: Operator) -> None:
    operator.report(3)
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(QUICK):
            operator.report(3)

    other = threading.Thread(target=go_on)
    other.start()
    try:
        done = operator("drain", "3", "--seconds", "2")
    finally:
        ended.set()
        other.join()
    assert (done.code, done.out) == (1, "")
    assert "it must be drained by its own program" in done.err


def test_a_pod_that_is_gone_is_left_alone(operator: Operator) -> None:
    done = operator("drain", "3")
    assert done == (3, "", "sfroute: pod 3 has reported no state; nothing was written\n")
    assert operator("state", "get").code == 3
    operator.report(3, "Stopped")
    assert "has stopped" in operator("drain", "3").err
    assert operator("state", "get", "3").out == "3\tStopped\n"


def test_a_request_keeps_the_stamp_so_that_a_dead_pod_goes_on_looking_dead() -> None:
    state = '{"status":"Running","load":0.5,"at":17,"by":"x","zone":"b"}'
    asked = json.loads(asked_state(state, undo=False))
    assert asked == {**json.loads(state), "status": "Draining", "drain": True}
    back = json.loads(asked_state(json.dumps(asked), undo=True))
    assert back == {**json.loads(state), "drain": False}
    for plain in ("Running", "0.5-1700000000000-1", "[1]", '{"status":'):
        assert asked_state(plain, undo=False) == "Draining"
        assert not taken_up(plain, undo=False)


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        ('{"drain":true}', True),
        ('{"status":"Running","drain":false}', False),
        ('{"status":"Draining"}', None),
        ('{"drain":1}', None),
        ("[true]", None),
        ("Draining", None),
        ("", None),
        ("[" * 100_000, None),
    ],
)
def test_only_a_plain_yes_or_no_is_a_request(state: str, asked: bool | None) -> None:
    assert asked_to_drain(state) is asked


@pytest.mark.parametrize("state", ["0.5-{at}-1", '{{"status":"Draining","at":{at}}}'])
def test_a_pod_that_is_silent_is_not_said_to_drain(operator: Operator, state: str) -> None:
    written = state.format(at=int((time.time() - 545) * 1000))
    operator.report(1, written)
    for undo in ((), ("--undo",)):
        done = operator("drain", "1", *undo)
        assert (done.code, done.out) == (3, "")
        assert "pod 1 has been silent for 54" in done.err
        assert "to move those it has: sfroute evacuate 1 --service chat" in done.err
    assert operator("drain", "1", "--json").json["outcome"] == "silent"
    # Else it would look alive again.
    assert operator("state", "get", "1").out == f"1\t{written}\n"
    done = operator("drain", "1", "--pod-timeout", "900", "--seconds", "0.3")
    assert done.code == 0


# --- evacuate


def test_evacuate_moves_every_link_off_a_pod(operator: Operator) -> None:
    for pod in (0, 1, 2):
        operator.report(pod, "Draining" if pod == 2 else "Running")
    for number in range(300):
        operator.link(f"user-{number}", number % 3, 500 if number % 2 else -1)
    done = operator("evacuate", "2", "--dry-run")
    assert done == (0, "100 links to pod 2; nothing was changed\n", "")
    assert operator("evacuate", "2", "--dry-run", "--json").json["moved"] == 0
    done = operator("evacuate", "2", "--yes")
    assert done == (0, "100 links moved off pod 2\n", "")
    counts = {row["pod"]: row["links"] for row in operator("pods", "--links", "--json").json_lines}
    assert counts[2] == 0
    assert counts[0] + counts[1] == 300
    # Whoever starts it again finds nothing left.
    done = operator("evacuate", "2", "--json")
    assert (done.code, done.json["found"], done.json["moved"]) == (0, 0, 0)


def test_evacuate_asks_first_and_says_that_the_pod_still_takes_users(operator: Operator) -> None:
    operator.report(0)
    operator.report(1)
    operator.link("ada", 1)
    done = operator("evacuate", "1")
    assert (done.code, done.out) == (2, "")
    assert "pod 1 still takes new users; to stop that: sfroute drain 1 --service chat" in done.err
    assert "--yes" in done.err
    assert operator.pod_of("ada") == 1


def test_evacuate_does_not_say_of_a_silent_pod_that_it_takes_users(operator: Operator) -> None:
    operator.report(0)
    stamp(operator, 2, 60)
    operator.link("ada", 2)
    assert "new users" not in operator("evacuate", "2").err
    assert "still takes new users" in operator("evacuate", "2", "--pod-timeout", "900").err
    assert operator("evacuate", "2", "--yes") == (0, "1 link moved off pod 2\n", "")


@pytest.mark.parametrize(("answer", "code", "owner"), [(b"n\n", 1, 1), (b"y\n", 0, 0)])
def test_evacuate_does_as_it_is_answered(
    operator: Operator, answer: bytes, code: int, owner: int
) -> None:
    operator.report(0)
    operator.report(1, "Draining")
    operator.link("ada", 1)
    inner, outer = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "evacuate", "1"],
        stdin=outer,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**operator.variables),
    ) as running:
        os.write(inner, answer)
        out, err = running.communicate(timeout=20)
    assert running.returncode == code
    assert b"Move 1 link of 'chat' off pod 1?" in err
    assert out == (b"" if code else b"1 link moved off pod 1\n")
    assert operator.pod_of("ada") == owner
    os.close(outer)
    os.close(inner)


def test_evacuate_to_nobody_fails(operator: Operator) -> None:
    operator.report(1, "Draining")
    operator.link("ada", 1)
    done = operator("evacuate", "1", "--yes")
    assert (done.code, done.out) == (1, "")
    assert "no routable pod for service 'chat'" in done.err
    assert operator.pod_of("ada") == 1


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "fast"])
def test_a_rate_that_is_none_is_refused(operator: Operator, rate: str) -> None:
    done = operator("evacuate", "1", "--rate", rate)
    assert (done.code, done.out) == (2, "")
    assert "--rate" in done.err


def test_an_interrupted_evacuation_says_how_far_it_came_and_can_go_on(operator: Operator) -> None:
    operator.report(0)
    for number in range(300):
        operator.link(f"user-{number}", 7)
    with subprocess.Popen(
        [*COMMAND, "evacuate", "7", "--yes", "--rate", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**operator.variables),
    ) as running:
        wait_for(lambda: operator("pods", "--links", "--json").json_lines[0]["links"] > 0)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
    assert (running.returncode, out) == (130, "")
    assert "links moved so far: " in err
    assert operator("evacuate", "7", "--yes").code == 0
    assert operator("pods", "--links", "--json").json_lines[0]["links"] == 300


# --- watch


def test_watch_writes_a_line_for_each_change(operator: Operator) -> None:
    operator.report(0)
    with subprocess.Popen(
        [*COMMAND, "watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**operator.variables),
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None

        def hear() -> tuple[str, int]:
            assert running.stdout is not None
            heard = json.loads(running.stdout.readline())
            return heard["change"], heard["pod"]

        assert hear() == ("joined", 0)
        operator.report(4)
        assert hear() == ("joined", 4)
        operator.report(0, "Draining")
        assert hear() == ("draining", 0)
        operator.report(0, "Stopped")
        assert hear() == ("left", 0)
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 130
        assert running.stderr.read() == ""


# --- top


def test_top_shows_pods_links_and_rates(operator: Operator) -> None:
    operator.report(0)
    for number in range(30):
        operator.link(f"user-{number}", 0)
    done = operator("top", "--count", "2", "--interval", "0.2", "--json")
    assert done.code == 0
    first, second = done.json_lines
    assert [(row["pod"], row["links"]) for row in first["pods"]] == [(0, 30)]
    assert [node["look_ups_per_second"] for node in first["primaries"]] == [None] * 3
    assert all(node["look_ups_per_second"] >= 0 for node in second["primaries"])
    # The look at the pods itself is a script.
    assert sum(node["scripts_per_second"] for node in second["primaries"]) > 0
    # This router's lanes, which have read something.
    assert sum(node["lanes"] for node in second["primaries"]) >= 0
    text = operator("top", "--count", "1")
    assert "links 30 (0 s ago)" in text.out
    assert next(line.split()[:2] for line in text.lines if "Running" in line) == ["0", "Running"]


def test_top_on_a_terminal_is_one_screen_that_changes(operator: Operator) -> None:
    operator.report(0)
    inner, outer = pty.openpty()
    variables = environment(**operator.variables, TERM="xterm-256color")
    variables |= {"COLUMNS": "80", "LINES": "24"}
    del variables["NO_COLOR"]
    with subprocess.Popen(
        [*COMMAND, "top", "--interval", "0.2"],
        stdin=outer,
        stdout=outer,
        stderr=subprocess.PIPE,
        env=variables,
    ) as running:
        os.close(outer)
        seen = ""

        def shows(text: str) -> bool:
            nonlocal seen
            if select.select([inner], [], [], 0.1)[0]:
                seen += os.read(inner, 65536).decode()
            return text in seen

        wait_for(lambda: shows("links 0 ("))
        # The other screen of the terminal, and colours.
        assert "\x1b[?1049h" in seen
        assert "\x1b[32mRunning" in seen
        operator.report(0, "Draining")
        wait_for(lambda: shows("\x1b[33mDraining"))
        running.send_signal(signal.SIGINT)
        wait_for(lambda: shows("\x1b[?1049l"))
        assert running.wait(10) == 130
        assert running.stderr is not None
        assert running.stderr.read() == b""
    os.close(inner)


def test_rates_are_differences_over_time() -> None:
    before = Counters(at=10.0, look_ups=100, writes=10, hits=50, misses=50)
    now = Counters(at=12.0, look_ups=300, writes=10, hits=230, misses=70)
    seen = rates("a:1", before, now)
    assert (seen.look_ups, seen.writes, seen.hit_ratio, seen.reads) == (100.0, 0.0, 0.9, 200)
    # The first look, one that failed, and a server that began anew tell none.
    assert rates("a:1", None, now).look_ups is None
    assert rates("a:1", before, Counters(trouble="no connection")).look_ups is None
    assert rates("a:1", now, before).look_ups is None
    assert rates("a:1", before, Counters(at=12.0, look_ups=100, hits=50)).hit_ratio is None


def test_a_single_node_is_served_too(sfroute_namespace: str) -> None:
    with LocalServer() as server, Router.from_url(server.url) as router:
        operator = Operator(router, server.url, sfroute_namespace)
        operator.report(0)
        operator.report(1, "Draining")
        operator.link("ada", 1)
        assert operator("evacuate", "1", "--yes").out == "1 link moved off pod 1\n"
        assert operator("pods", "--links").lines[1].split()[4] == "1"
        assert operator("top", "--count", "1").code == 0
        done = operator("doctor", "--json")
        assert done.code == 0
        summaries = {check["check"]: check["summary"] for check in done.json_lines}
        assert summaries["slots"] == "a single server: it has all keys"


# --- waiting


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


async def wait_for_async(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the agent tells nobody
            await asyncio.sleep(0.02)
