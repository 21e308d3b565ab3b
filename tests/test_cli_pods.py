"""``sfroute pods``, ``watch``, ``top``, ``drain`` and ``evacuate``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from support.command import COMMAND, Operator, environment
from support.processes import Child, read_until

from sfroute import DRAINING, RUNNING, AsyncPodAgent, AsyncRouter, PodAgent, Router
from sfroute._contract.keys import link_key
from sfroute._contract.pod_states import asked_to_drain
from sfroute.cli.drain import asked_state, taken_up
from sfroute.cli.top.facts import Counters, Watcher, rates
from sfroute.embedded import LocalCluster, LocalServer

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
    assert rows[3][:5] == ["10", "dead", "(was", "Running)", "0.25"]
    assert "no: last heartbeat 6" in done.lines[4]
    # Who is more patient sees it alive.
    assert operator("pods", "--pod-timeout", "90").lines[4].endswith("yes")


def test_pods_shows_addresses_and_labels_if_any_pod_says_them(operator: Operator) -> None:
    operator.report(0)
    said = {"address": "10.0.3.7:8080", "labels": {"zone": "a", "version": "2.1"}}
    operator.report(1, json.dumps({"status": "Running", **said}))
    hostile = {"address": "a\u202eb:1", "labels": {"zone": "\x1b[2Jc", "tier": "\u00e9"}}
    operator.report(2, json.dumps({"status": "Running", **hostile}))
    done = operator("pods")
    assert [line.split()[-2:] for line in done.lines] == [
        ["ADDRESS", "LABELS"],
        ["-", "-"],
        ["10.0.3.7:8080", "version=2.1,zone=a"],
        ["-", "tier=\u00e9"],
    ]
    rows = operator("pods", "--json").json_lines
    assert [row.get("address") for row in rows] == [None, "10.0.3.7:8080", None]
    assert rows[1]["labels"] == said["labels"]


def test_pods_shows_the_room_of_those_that_have_a_limit(operator: Operator) -> None:
    operator.report(0)
    operator.report(1, json.dumps({"status": "Running", "max_claims": 100, "room": 0}))
    lines = operator("pods").lines
    assert lines[0].split()[-1] == "ROOM"
    assert [line.split()[-3:] for line in lines[2:]] == [["0", "of", "100"]]


def test_pods_shows_when_each_life_started_and_how_many_had_the_id(operator: Operator) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    for lives in (1, 2, 3, 4, 5, 6):
        with agent(operator, 3):
            row = operator("pods", "--json").json
            assert row["lives"] == min(lives, 5)
            assert before <= datetime.fromisoformat(row["started"]) <= datetime.now(UTC)
            heading, shown = operator("pods").lines
            if lives == 1:
                assert heading.endswith("NEW USERS")
                continue
            assert heading.split()[-2:] == ["STARTED", "LIVES"]
            assert shown.split()[-1] == (str(lives) if lives < 5 else "5+")
            local = datetime.fromisoformat(row["started"]).astimezone()
            assert f"{local:%m-%d %H:%M:%S}" in shown


def test_a_start_is_shown_in_any_time_zone(operator: Operator) -> None:
    """The calendar ends earlier where clocks are ahead of UTC, and begins later where they are behind."""
    operator.report(3, json.dumps({"status": "Running", "up": 253402300799000, "before": "x"}))
    operator.report(4, json.dumps({"status": "Running", "up": 253402214399000, "before": "x"}))
    operator.report(5, json.dumps({"status": "Running", "up": 1, "before": "x"}))
    for zone, last, first in (
        ("UTC", "12-30 23:59:59", "01-01 00:00:00"),
        ("XXX-23:59", "12-31 23:58:59", "01-01 23:59:00"),
        ("XXX+23:59", "12-30 00:00:59", "12-31 00:01:00"),
    ):
        with time_zone(zone):
            done = operator("pods")
        assert (done.code, done.err) == (0, "")
        assert done.lines[1].split()[-2:] == ["-", "-"]
        assert last in done.lines[2]
        assert first in done.lines[3]


@contextlib.contextmanager
def time_zone(zone: str) -> Iterator[None]:
    """``zone`` as POSIX has it: its sign is the other way round."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            yield
    finally:
        time.tzset()


@pytest.mark.parametrize("up", ["-1", "0", "1e30", "true", "[]", '"x"', "9" * 19])
def test_a_start_that_no_calendar_has_is_not_shown(operator: Operator, up: str) -> None:
    operator.report(3, f'{{"status":"Running","up":{up},"before":7}}')
    done = operator("pods")
    assert (done.code, done.err) == (0, "")
    assert "STARTED" not in done.out
    assert "started" not in operator("pods", "--json").json


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
        "dead": False,
        "takes_new_users": True,
        "why_not": None,
        "extra": {"zone": "b"},
    }


def test_pods_of_a_service_that_nobody_reports_exit_with_3(operator: Operator) -> None:
    where = f"'chat' in namespace '{operator.namespace}'"
    done = operator("pods")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith(f"sfroute: no pod of {where} has reported a state\n")


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
    assert (done.code, done.out) == (3, "")
    # Nobody has reported here: then the names that exist follow.
    assert done.err.startswith("sfroute: pod 3 has reported no state; nothing was written\n")
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


@pytest.mark.parametrize("more", [("--yes",), ("--dry-run",)])
def test_evacuate_says_that_it_knows_no_such_pod(operator: Operator, more: tuple[str]) -> None:
    operator.report(0)
    operator.link("ada", 0)
    told = "sfroute: pod 7 has reported no state, and no link leads to it\n"
    assert operator("evacuate", "7", *more) == (3, "", told)
    done = operator("evacuate", "7", *more, "--json")
    assert (done.code, done.json["found"], done.err) == (3, 0, told)
    # A link alone is enough, and so is a state.
    operator.link("bob", 7)
    assert operator("evacuate", "7", *more).code == 0
    assert operator("evacuate", "0", "--dry-run").code == 0


IDLE_POD = 20_000
"""Redis 7.0 keeps one object for all keys that hold the same number below 10,000, and so one idle time."""


def test_evacuate_counts_idle_links_apart_and_leaves_or_removes_them(
    operator: Operator, sfroute_cluster: LocalCluster
) -> None:
    operator.report(0)
    operator.report(IDLE_POD, "Draining")
    for number in range(12):
        operator.link(f"user-{number}", IDLE_POD)
    for number in range(5):
        make_idle(operator, sfroute_cluster, f"user-{number}", 31 * 86_400)
    pod = str(IDLE_POD)
    done = operator("evacuate", pod, "--idle", "30d", "--dry-run")
    assert done == (0, f"7 links to pod {pod}; 5 more idle; nothing was changed\n", "")
    done = operator("evacuate", pod, "--idle", "30d", "--yes")
    assert done == (0, f"7 links moved off pod {pod}; 5 idle left\n", "")
    # They are as idle as before; and nobody removes links without being asked.
    done = operator("evacuate", pod, "--idle", "30d", "--remove-idle")
    assert (done.code, done.out) == (2, "")
    assert f"Move 0 links of 'chat' off pod {pod} and remove 5 idle ones?" in done.err
    done = operator("evacuate", pod, "--idle", "30d", "--remove-idle", "--yes", "--json")
    assert (done.code, done.json["moved"], done.json["removed"]) == (0, 0, 5)
    assert [operator.pod_of(f"user-{number}") for number in (0, 4, 5, 11)] == [None, None, 0, 0]


def test_doctor_counts_idle_links_and_leaves_them_idle(
    operator: Operator, sfroute_cluster: LocalCluster
) -> None:
    operator.report(IDLE_POD)
    for number in range(4):
        operator.link(f"user-{number}", IDLE_POD)
    make_idle(operator, sfroute_cluster, "user-0", 31 * 86_400)
    for _ in range(2):
        found = {
            check["check"]: check
            for check in operator("doctor", "--idle", "30d", "--json").json_lines
        }
        assert found["links"]["summary"] == "4 links, 1 of them idle"
    operator("pods", "--links")
    found = {
        check["check"]: check for check in operator("doctor", "--idle", "30d", "--json").json_lines
    }
    assert found["links"]["summary"] == "4 links, 1 of them idle"
    done = operator("doctor", "--idle", "30d", "--no-keys")
    assert (done.code, done.out) == (2, "")


def make_idle(operator: Operator, cluster: LocalCluster, uid: str, seconds: int) -> None:
    """As if nobody had read or written the link for so long."""
    key = link_key(operator.namespace, uid, "chat")
    with redis.Redis(*cluster.primary_of(key).address) as client:
        raw: Any = client
        raw.restore(key, 0, raw.dump(key), replace=True, idletime=seconds)


@pytest.mark.parametrize("idle", ["0", "0d", "-1", "30 d", "1w", "d", "nan", "1e9", "\u0661d"])
def test_an_idle_time_that_is_none_is_refused(operator: Operator, idle: str) -> None:
    done = operator("evacuate", "1", "--idle", idle)
    assert (done.code, done.out) == (2, "")
    assert "--idle" in done.err
    assert operator("evacuate", "1", "--remove-idle").code == 2


def test_evacuate_fails_for_links_that_no_call_accepts(
    operator: Operator, sfroute_cluster: LocalCluster
) -> None:
    operator.report(0)
    operator.link("ada", 1)
    key = f"sf:{{{operator.namespace}:lk:ev}}il}}chat"
    sfroute_cluster.execute(sfroute_cluster.primary_of(key), "SET", key, "1")
    told = (
        "1 link to pod 1 cannot be moved: no call accepts the uid. To see some: sfroute doctor "
        f"--namespace {operator.namespace} --show-uids"
    )
    done = operator("evacuate", "1", "--dry-run")
    assert done == (0, "1 link to pod 1; nothing was changed\n", f"sfroute: {told}\n")
    done = operator("evacuate", "1", "--yes")
    assert done == (1, "1 link moved off pod 1\n", f"sfroute: {told}\n")
    assert operator("evacuate", "1", "--json").json["refused"] == 1


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
    told = operator("evacuate", "2").err
    assert "new users" not in told
    assert "alive" not in told
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
    with Child[bytes](
        [*COMMAND, "evacuate", "1"],
        stdin=outer,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**operator.variables),
    ) as running:
        os.write(inner, answer)
        out, err = running.communicate()
    assert running.returncode == code
    assert b"Move 1 link of 'chat' off pod 1?" in err
    assert b"take pod 1 to be alive: users it has claimed lose" in err.partition(b"Move 1 link")[0]
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


@pytest.mark.slow
def test_an_interrupted_evacuation_says_how_far_it_came_and_can_go_on(operator: Operator) -> None:
    operator.report(0)
    for number in range(300):
        operator.link(f"user-{number}", 7)

    def links() -> int:
        # A server that gets no processor for some seconds ends the command, with no row: the next one may tell.
        done = operator("pods", "--links", "--json")
        assert done.code == 0 or "to see what is wrong: sfroute doctor" in done.err, done
        return int(done.json_lines[0]["links"]) if done.code == 0 else 0

    # So slow that it goes on for longer than a test may take.
    with Child(
        [*COMMAND, "evacuate", "7", "--yes", "--rate", "4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**operator.variables),
    ) as running:
        wait_for(lambda: links() > 0)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    assert (running.returncode, out) == (130, "")
    assert "links moved so far: " in err
    assert operator("evacuate", "7", "--yes").code == 0
    wait_for(lambda: links() == 300)


# --- watch


@pytest.mark.slow
def test_watch_says_what_it_waits_for() -> None:
    with LocalCluster(1, 0) as own, Router.from_url(own.url) as router:
        there = Operator(router, own.url, "shop")
        with Child(
            [*COMMAND, "watch"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**there.variables),
        ) as running:
            assert running.stdout is not None
            assert running.stderr is not None
            empty = "sfroute: no pod of 'chat' in 'shop' takes users; waiting for one\n"
            assert running.stderr.readline() == empty
            there.report(0)
            assert "\tjoined\t" in running.stdout.readline()
            (node,) = own.nodes
            own.kill(node)
            gone = running.stderr.readline()
            assert gone.startswith(f"sfroute: the store cannot be reached (127.0.0.1:{node.port}: ")
            assert gone.endswith("; waiting for it\n")
            own.restart(node)
            assert running.stderr.readline().startswith("sfroute: the store is back after ")
            running.send_signal(signal.SIGINT)
            assert running.wait() == 130


@pytest.mark.slow
def test_watch_writes_a_line_for_each_change(operator: Operator) -> None:
    operator.report(0)
    operator.report(2, "Draining")
    with Child(
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

        assert hear() == ("present", 0)
        assert hear() == ("present", 2)
        operator.report(4)
        assert hear() == ("joined", 4)
        operator.report(0, "Draining")
        assert hear() == ("draining", 0)
        operator.report(0, "Stopped")
        assert hear() == ("left", 0)
        running.send_signal(signal.SIGINT)
        assert running.wait() == 130
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
    assert ["0", "Running"] in [line.split()[:2] for line in text.lines]


def test_top_on_a_terminal_is_one_screen_that_changes(operator: Operator) -> None:
    operator.report(0)
    inner, outer = pty.openpty()
    variables = environment(**operator.variables, TERM="xterm-256color")
    variables |= {"COLUMNS": "80", "LINES": "24"}
    del variables["NO_COLOR"]
    with Child[bytes](
        [*COMMAND, "top", "--interval", "0.2"],
        stdin=outer,
        stdout=outer,
        stderr=subprocess.PIPE,
        env=variables,
    ) as running:
        os.close(outer)
        # The other screen of the terminal, and colours. A read may end anywhere in a screen; each next one is whole.
        assert b"\x1b[?1049h" in read_until(inner, b"links 0 (")
        read_until(inner, b"\x1b[32mRunning")
        operator.report(0, "Draining")
        read_until(inner, b"\x1b[33mDraining")
        running.send_signal(signal.SIGINT)
        assert b"\x1b[?1049l" in read_until(inner, None)
        assert running.wait() == 130
        assert running.stderr is not None
        assert running.stderr.read() == b""
    os.close(inner)


@pytest.mark.slow
async def test_top_counts_the_links_soon_again_if_a_server_did_not_answer() -> None:
    with LocalCluster(1, 0) as own:
        (node,) = own.nodes
        own.kill(node)
        # Longer than a test may take.
        watcher = Watcher(own.url, "shop", "chat", links_every=3600)
        counting = asyncio.create_task(watcher.count_links())
        await wait_for_async(lambda: watcher.link_trouble is not None)
        await asyncio.to_thread(own.restart, node)
        await wait_for_async(lambda: watcher.links is not None)
        assert watcher.link_trouble is None
        counting.cancel()


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


# --- waiting: as long as a test may take


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


async def wait_for_async(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.02)
