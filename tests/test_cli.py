"""The ``sfroute`` command: ``route`` and ``cluster up``; as a process of its own where signals and streams matter."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import pytest
from support.command import COMMAND, consecutive_ports, environment, sfroute
from support.processes import Child

from sfroute import Router
from sfroute.embedded import LocalCluster

SERVICE: Final = "chat"


class Target:
    """A service with three pods on a cluster, and the options that name it."""

    def __init__(self, router: Router, url: str, namespace: str) -> None:
        self.router = router
        self.url = url
        self.namespace = namespace

    @property
    def options(self) -> list[str]:
        return ["--url", self.url, "--namespace", self.namespace, "--service", SERVICE]

    def link(self, uid: str, pod: int) -> None:
        self.router.set_linked_pod(self.namespace, uid, SERVICE, pod)


@pytest.fixture
def target(sfroute_cluster: LocalCluster, sfroute_namespace: str) -> Iterator[Target]:
    with Router.from_url(sfroute_cluster.url) as router:
        for pod in range(3):
            router.set_service_state(sfroute_namespace, SERVICE, pod, "Running")
        yield Target(router, sfroute_cluster.url, sfroute_namespace)


# --- route: the answers


def pods_of(out: str) -> list[tuple[str, str]]:
    """uid and pod of each line. The source depends on what is under way when a uid comes twice."""
    lines = [line.split("\t") for line in out.splitlines()]
    assert {source for *_, source in lines} <= {"cache", "store"}
    return [(uid, pod) for uid, pod, _ in lines]


def test_route_writes_a_line_for_each_line_in_the_order_of_the_input(target: Target) -> None:
    uids = [f"user-{number}" for number in range(1000)]
    for number, uid in enumerate(uids):
        if number % 2:
            target.link(uid, number % 3)
    done = sfroute("route", *target.options, given="\n".join(uids))
    assert (done.code, done.err) == (0, "")
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [uid for uid, *_ in lines] == uids
    assert all(int(pod) == number % 3 for number, (_, pod, _) in enumerate(lines) if number % 2)
    assert [source for *_, source in lines] == ["placed", "store"] * 500
    by_pod = target.router.batch_get_linked_pod(target.namespace, uids, SERVICE)
    assert {uid: int(pod) for uid, pod, _ in lines} == {
        uid: pod for pod, members in by_pod.items() for uid in members
    }


def test_route_takes_uids_as_arguments(target: Target) -> None:
    target.link("ada", 2)
    target.link("grace", 0)
    done = sfroute("route", *target.options, "grace", "ada", "grace")
    assert done.code == 0
    assert pods_of(done.out) == [("grace", "0"), ("ada", "2"), ("grace", "0")]


def test_a_dash_is_standard_input_and_no_uid(target: Target) -> None:
    target.link("ada", 2)
    done = sfroute("route", "-", *target.options, given="ada\n")
    assert (done.code, done.out) == (0, "ada\t2\tstore\n")
    assert target.router.get_linked_pod(target.namespace, "-", SERVICE) is None


def test_route_takes_its_target_from_the_environment(target: Target) -> None:
    target.link("ada", 1)
    done = sfroute(
        "route",
        given="ada\n",
        SFROUTE_URL=target.url,
        SFROUTE_NAMESPACE=target.namespace,
        SFROUTE_SERVICE=SERVICE,
    )
    assert (done.code, done.out) == (0, "ada\t1\tstore\n")


def test_route_writes_json_lines(target: Target) -> None:
    target.link("é b", 1)
    done = sfroute("route", *target.options, "--json", given="é b\n")
    assert done.code == 0
    assert json.loads(done.out) == {
        "uid": "é b",
        "pod": 1,
        "persistent": True,
        "source": "store",
        "stale": False,
        "address": None,
    }


def test_route_skips_blank_lines_and_reads_files_from_windows(target: Target) -> None:
    target.link("ada", 1)
    done = sfroute("route", *target.options, given="\ufeffada\r\n\r\n   \n\nada")
    assert (done.code, done.err) == (0, "")
    assert pods_of(done.out) == [("ada", "1"), ("ada", "1")]


def test_route_answers_before_its_input_ends(target: Target) -> None:
    target.link("é b", 1)
    with Child[bytes](
        [*COMMAND, "route", *target.options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for source in ("store", "cache", "cache"):
            running.stdin.write("é b\n".encode())
            running.stdin.flush()
            assert running.stdout.readline() == f"é b\t1\t{source}\n".encode()
        running.stdin.close()
        assert running.wait() == 0


# --- route: what goes wrong


def test_a_bad_uid_is_reported_by_its_line_and_the_others_go_on(target: Target) -> None:
    target.link("ada", 1)
    done = sfroute("route", *target.options, given="ada\nsecret}name\n\nada\n")
    assert (done.code, pods_of(done.out)) == (1, [("ada", "1"), ("ada", "1")])
    assert "line 2: uid must not contain" in done.err
    assert "secret" not in done.err
    assert "Traceback" not in done.err


def test_a_line_that_is_not_utf8_is_reported_by_its_line(target: Target) -> None:
    target.link("ada", 1)
    done = sfroute("route", *target.options, given=b"ada\nse\xffcret\nada\n")
    assert (done.code, pods_of(done.out)) == (1, [("ada", "1"), ("ada", "1")])
    assert "line 2: the uid must be UTF-8; byte 3" in done.err


def test_a_service_without_pods_is_reported(target: Target) -> None:
    options = [*target.options[:-1], "nobody"]
    done = sfroute("route", *options, given="ada\n")
    assert (done.code, done.out) == (1, "")
    assert "line 1: no routable pod for service 'nobody'" in done.err


def test_route_gives_up_when_nothing_can_be_routed(target: Target) -> None:
    options = [*target.options[:-1], "nobody"]
    done = sfroute("route", *options, given="\n".join(f"user-{n}" for n in range(5000)))
    assert done.code == 1
    assert "giving up after 100 failures in a row" in done.err
    assert len(done.err.splitlines()) < 110


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "--url"),
        (["--url", "redis://127.0.0.1:1"], "--namespace"),
        (["--url", "redis://127.0.0.1:1", "--namespace", "n"], "--service"),
        (["--url", "127.0.0.1", "--namespace", "n", "--service", "s"], "must begin with one of"),
        (
            ["--url", "redis://127.0.0.1:1", "--namespace", "a:b", "--service", "s"],
            "namespace must not contain",
        ),
        (["--nonsense"], "No such option"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(
    options: list[str], complaint: str
) -> None:
    done = sfroute("route", *options, given="ada\n")
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_store_that_is_not_there_is_reported_without_the_url() -> None:
    url = "redis://:hunter2@127.0.0.1:1"
    done = sfroute("route", "--namespace", "n", "--service", "s", "ada", SFROUTE_URL=url)
    assert (done.code, done.out) == (1, "")
    assert "no answer within 5 s" in done.err
    assert "hunter2" not in done.err
    assert "Traceback" not in done.err


def test_a_reader_that_goes_away_ends_route_quietly(target: Target) -> None:
    target.link("ada", 1)
    with Child[bytes](
        [*COMMAND, "route", *target.options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        running.stdin.write(b"ada\n")
        # The input stays open: what ends the command is that nobody reads its output.
        running.stdin.flush()
        # Most of it is the start of Python.
        assert running.wait() == 128 + signal.SIGPIPE
        assert running.stderr.read() == b""


# --- cluster up


@pytest.mark.slow
def test_cluster_up_keeps_a_cluster_until_it_is_told_to_end() -> None:
    with Child(
        [*COMMAND, "cluster", "up", "--primaries", "1", "--replicas", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        url = running.stdout.readline().strip()
        with Router.from_url(url) as router:
            router.set_linked_pod("n", "ada", SERVICE, 0)
            assert router.get_linked_pod("n", "ada", SERVICE) == 0
        running.send_signal(signal.SIGINT)
        assert running.wait() == 0
        assert "1 primary and 0 replicas" in running.stderr.read()


def test_cluster_up_says_what_is_wrong_with_a_server() -> None:
    before = signal.getsignal(signal.SIGINT)
    done = sfroute("cluster", "up", "--server", "/nowhere/redis-server")
    assert signal.getsignal(signal.SIGINT) is before
    assert (done.code, done.out) == (2, "")
    assert "/nowhere/redis-server" in done.err
    assert "Traceback" not in done.err


def up(*options: str, usual_port: int | None = None) -> tuple[str, str]:
    """What `cluster up` of one node writes to standard output and standard error until Ctrl-C."""
    command = COMMAND
    if usual_port is not None:
        program = (
            "import sfroute.cli, sfroute.cli.cluster as c; c.USUAL_PORT = {}; sfroute.cli.main()"
        )
        command = [sys.executable, "-c", program.format(usual_port)]
    with Child(
        [*command, "cluster", "up", "--primaries", "1", "--replicas", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as running:
        assert running.stdout is not None
        first = running.stdout.readline()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
        assert running.returncode == 0
        return first + out, err


def test_cluster_up_takes_the_port_that_was_asked_for() -> None:
    first = consecutive_ports(1)
    out, err = up("--port", str(first))
    assert out == f"redis+cluster://127.0.0.1:{first}\n"
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("offset", [0, 10000])
def test_cluster_up_fails_if_the_port_that_was_asked_for_is_taken(offset: int) -> None:
    first = consecutive_ports(6)
    with socket.create_server(("127.0.0.1", first + 5 + offset)):
        done = sfroute("cluster", "up", "--port", str(first))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"sfroute: port {first + 5 + offset} of 127.0.0.1 is not free (")
    assert f"need ports {first} to {first + 5}, and {first + 10000} to" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("port", ["0", "55531", "65536", "x"])
def test_cluster_up_refuses_a_port_that_cannot_be(port: str) -> None:
    done = sfroute("cluster", "up", "--port", port)
    assert (done.code, done.out) == (2, "")
    assert "port" in done.err
    assert "Traceback" not in done.err


def test_cluster_up_takes_the_usual_port_if_nobody_has_it() -> None:
    first = consecutive_ports(1)
    out, err = up(usual_port=first)
    assert out == f"redis+cluster://127.0.0.1:{first}\n"
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("offset", [0, 10000])
def test_cluster_up_takes_others_if_the_usual_port_is_taken_and_says_so(offset: int) -> None:
    first = consecutive_ports(1)
    with socket.create_server(("127.0.0.1", first + offset)):
        out, err = up(usual_port=first)
    assert out.startswith("redis+cluster://127.0.0.1:")
    assert out != f"redis+cluster://127.0.0.1:{first}\n"
    said, _ = err.splitlines()
    assert (
        said == f"sfroute: {first} and the ports after it are not all free: the nodes have others"
    )


def test_the_version_is_shown() -> None:
    assert sfroute("--version").out.startswith("sfroute ")
