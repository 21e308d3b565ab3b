"""``sfroute agent``: real processes; the pod's calls over HTTP, its life by its child's."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("kubernetes_validate", reason="the group `examples` is not installed")

import httpx
import jsonschema  # type: ignore[import-untyped]
from support.command import sfroute
from support.programs import Program, client_of, free_port, running, until

from sfroute import Router
from sfroute._programs.openapi import agent_document
from sfroute.embedded import LocalCluster

# They start processes.
pytestmark = pytest.mark.slow

PLAIN_POD = Path(__file__).parent / "plain_pod.py"
QUICK = ("--heartbeat", "0.2", "--lease", "3", "--drain", "0.5")


@contextlib.contextmanager
def minded(
    cluster: LocalCluster,
    folder: Path,
    namespace: str,
    *more: str,
    pod: int = 0,
    command: tuple[str, ...] = ("sleep", "600"),
) -> Iterator[Program]:
    """A command, minded."""
    listen = () if "--listen" in more else ("--listen", "127.0.0.1:0")
    with running(
        "agent",
        *("--url", cluster.url, "--namespace", namespace, "--service", "chat"),
        *("--pod", str(pod), *QUICK, *listen, *more, "--", *command),
        folder=folder,
        code=None,  # the command's
    ) as program:
        yield program


@pytest.fixture
def router(cluster: LocalCluster) -> Iterator[Router]:
    with Router.from_url(cluster.url) as router:
        yield router


@pytest.fixture
def agent(cluster: LocalCluster, namespace: str, tmp_path: Path) -> Iterator[httpx.Client]:
    with minded(cluster, tmp_path, namespace) as program, client_of(program.urls[0]) as client:
        until(lambda: client.get("/status").json()["status"] == "Running")
        yield client


def status_of(router: Router, namespace: str, pod: int = 0) -> str | None:
    found = router.get_pods(namespace, "chat", fresh=True).get(pod)
    return found.status if found else None


def fits(answer: httpx.Response, path: str) -> Any:
    document = agent_document()
    operation = document["paths"][path][answer.request.method.lower()]
    schema = operation["responses"][str(answer.status_code)]["content"]["application/json"][
        "schema"
    ]
    jsonschema.validate(answer.json(), {**schema, "components": document["components"]})
    return answer.json()


# --- claims and sessions


def test_a_claim_is_that_of_the_pods_agent(
    agent: httpx.Client, router: Router, namespace: str
) -> None:
    path = "/claims/{uid}"
    assert fits(agent.get("/claims/a%2Fb%20%C3%BC"), path) == {"owned": False}
    claim = fits(agent.put("/claims/a%2Fb%20%C3%BC"), path)
    assert (claim["pod"], claim["how"]) == (0, "placed")
    assert router.get_linked_pod(namespace, "a/b ü", "chat", fresh=True) == 0
    answer = agent.put("/claims/a%2Fb%20%C3%BC")
    # For the pod's 421, if its database refuses the fence.
    assert answer.headers["X-Sfroute-Service"] == "chat"
    again = fits(answer, path)
    assert (again["how"], again["fence"]) == ("kept", claim["fence"])
    assert fits(agent.get("/claims/a%2Fb%20%C3%BC"), path)["fence"] == claim["fence"]
    # An older claim releases nothing.
    older = agent.delete("/claims/a%2Fb%20%C3%BC", params={"turn": claim["turn"]})
    assert fits(older, path) == {"released": False}
    assert fits(agent.delete("/claims/a%2Fb%20%C3%BC?grace=30"), path) == {"released": True}
    assert router.get_linked_pod_if_persist(namespace, "a/b ü", "chat", fresh=True) is None
    assert router.get_linked_pod(namespace, "a/b ü", "chat", fresh=True) == 0
    assert fits(agent.get("/claims/a%2Fb%20%C3%BC"), path) == {"owned": False}


def test_the_owner_is_told_with_the_headers_of_a_421(
    agent: httpx.Client, router: Router, namespace: str
) -> None:
    router.set_linked_pod(namespace, "ada", "chat", 7)
    for method, where in (("PUT", "/claims/ada"), ("POST", "/claims/ada/sessions")):
        answer = agent.request(method, where)
        assert answer.status_code == 409
        assert fits(answer, where.replace("ada", "{uid}"))["owner"] == 7
        assert answer.headers["X-Sfroute-Owner"] == "7"
        assert answer.headers["X-Sfroute-Service"] == "chat"


def test_the_last_session_lets_the_user_go(
    agent: httpx.Client, router: Router, namespace: str
) -> None:
    first, second = (
        fits(agent.post("/claims/ada/sessions"), "/claims/{uid}/sessions") for _ in range(2)
    )
    assert first["fence"] == second["fence"]
    assert agent.get("/status").json()["sessions"] == 2
    assert fits(agent.delete(f"/sessions/{first['session']}"), "/sessions/{session}")["ended"]
    assert agent.get("/claims/ada").json()["owned"]
    assert agent.delete(f"/sessions/{first['session']}").status_code == 404
    agent.delete(f"/sessions/{second['session']}")
    assert not agent.get("/claims/ada").json()["owned"]
    assert router.get_linked_pod(namespace, "ada", "chat", fresh=True) is None


def test_a_pod_that_is_paused_or_full_says_so(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    more = ("--max-claims", "1", "--address", "10.0.3.7:8080", "--label", "version=2.1")
    with (
        minded(cluster, tmp_path, namespace, *more) as program,
        client_of(program.urls[0]) as client,
    ):
        until(lambda: client.put("/claims/ada").status_code == 200)
        found = router.get_pods(namespace, "chat", fresh=True)[0]
        assert (found.address, dict(found.labels)) == ("10.0.3.7:8080", {"version": "2.1"})
        full = client.put("/claims/eve")
        assert fits(full, "/claims/{uid}")["reason"] == "full"
        assert (full.status_code, full.headers["X-Sfroute-Full"]) == (409, "1")
        client.delete("/claims/ada")
        assert fits(client.post("/pause"), "/pause") == {"paused": True}
        assert (
            fits(client.post("/claims/eve/sessions"), "/claims/{uid}/sessions")["reason"]
            == "paused"
        )
        assert fits(client.get("/status"), "/status")["status"] == "Pending"
        assert fits(client.post("/resume"), "/resume") == {"paused": False}
        assert client.put("/claims/eve").status_code == 200


def test_what_cannot_be_is_refused_without_naming_the_user(agent: httpx.Client) -> None:
    for method, where, status in (
        ("PUT", "/claims/s%7Dcret", 400),
        ("PUT", "/claims/%ff", 400),
        ("PUT", "/claims/s%C3%BCcret%7D", 400),
        ("DELETE", "/claims/scret?grace=-1", 400),
        ("DELETE", "/claims/scret?turn=x", 400),
        ("DELETE", "/claims/scret?to=7", 400),
        ("DELETE", "/claims/scret?turn=1&to=7&grace=0", 400),
        ("POST", "/drain?deadline=soon", 400),
        ("PUT", "/claims/scret/sessions", 404),
        ("PUT", "/claims/scret/more/of/it", 404),
        ("PUT", "/claims", 404),
        ("GET", "/", 404),
    ):
        answer = agent.request(method, where)
        assert answer.status_code == status, where
        assert "cret" not in answer.text
    assert fits(agent.get("/status"), "/status")["lease"] is True


def test_the_document_is_served_and_filed(agent: httpx.Client) -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "openapi" / "agent.json"
    assert agent.get("/openapi.json").json() == json.loads(page.read_text()) == agent_document()


# --- events


class Reader:
    """Reads the events of an agent."""

    def __init__(self, client: httpx.Client, headers: dict[str, str] | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.last = ""
        self._client = client
        self._thread = threading.Thread(target=self._read, args=(headers or {},))
        self._thread.start()

    def _read(self, headers: dict[str, str]) -> None:
        with self._client.stream("GET", "/events", headers=headers) as answer:
            name = ""
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "id":
                    self.last = value
                elif field == "event":
                    name = value
                elif field == "data":
                    self.events.append((name, json.loads(value)))

    def wait(self, name: str) -> dict[str, Any]:
        until(lambda: any(found == name for found, _ in self.events))
        return next(fields for found, fields in self.events if found == name)

    def join(self) -> list[str]:
        """After the agent's end."""
        self._thread.join(10)
        assert not self._thread.is_alive()
        return [name for name, _ in self.events]


def test_every_reader_hears_of_a_loss_and_one_that_returns_misses_nothing(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    with minded(cluster, tmp_path, namespace) as program, client_of(program.urls[0]) as client:
        readers = [Reader(client), Reader(client)]
        for reader in readers:
            assert reader.wait("running") == {"pod": 0}
        seen = readers[0].last
        claim = client.put("/claims/ada").json()
        router.set_service_state(namespace, "chat", 4, "Running")
        router.set_linked_pod(namespace, "ada", "chat", 4)
        expected = {"uid": "ada", "fence": claim["fence"], "reason": "moved", "owner": 4}
        for reader in (*readers, Reader(client, {"Last-Event-ID": seen})):
            assert reader.wait("lost") == expected
            readers.append(reader)
        assert not client.get("/claims/ada").json()["owned"]
        assert program.end() == 128 + signal.SIGTERM  # of sleep
        assert readers[-1].join() == ["lost", "draining", "stopped"]
        assert [reader.join() for reader in readers[:2]] == [
            ["running", "lost", "draining", "stopped"]
        ] * 2
    assert status_of(router, namespace) == "Stopped"


def test_without_the_store_the_pod_is_isolated(
    own_cluster: LocalCluster, namespace: str, tmp_path: Path
) -> None:
    more = ("--heartbeat", "0.2", "--lease", "1")
    with (
        minded(own_cluster, tmp_path, namespace, *more) as program,
        client_of(program.urls[0]) as client,
    ):
        until(lambda: client.put("/claims/ada").status_code == 200)
        reader = Reader(client)
        for node in own_cluster.nodes:
            own_cluster.pause(node)
        reader.wait("isolated")
        assert client.get("/claims/ada").json() == {"owned": False}
        assert client.get("/status").json()["lease"] is False
        for node in own_cluster.nodes:
            own_cluster.resume(node)
        reader.wait("rejoined")
        until(lambda: client.get("/claims/ada").json()["owned"])
        program.process.send_signal(signal.SIGTERM)
        program.process.send_signal(signal.SIGTERM)
        reader.join()


# --- the child


def test_the_pod_begins_when_it_is_healthy_and_says_its_load(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "sick").touch()
    probes = ("--health", f"http://127.0.0.1:{port}/healthz", "--load", f"http://127.0.0.1:{port}/")
    command = (sys.executable, str(PLAIN_POD), str(port), str(tmp_path))
    more = (*probes, "--failures", "2")
    with (
        minded(cluster, tmp_path, namespace, *more, command=command) as program,
        client_of(program.urls[0]) as client,
    ):
        seen = tmp_path / "seen"
        # It is there before what is written into it.
        until(lambda: seen.exists() and seen.read_text() == f"{program.urls[0]} 0")
        time.sleep(0.5)  # nothing must happen
        assert status_of(router, namespace) is None
        assert client.put("/claims/ada").headers["X-Sfroute-Reason"] == "not-running"
        assert client.get("/status").json()["status"] == "NotRunning"
        (tmp_path / "sick").unlink()
        until(lambda: status_of(router, namespace) == "Running")
        until(lambda: router.get_pods(namespace, "chat", fresh=True)[0].load == 0.25)
        first = client.put("/claims/ada").json()
        # Its port is dead, or says that it is not well: its users are moved.
        (tmp_path / "sick").touch()
        until(lambda: status_of(router, namespace) == "Failed")
        assert not client.get("/claims/ada").json()["owned"]
        (tmp_path / "sick").unlink()
        until(lambda: status_of(router, namespace) == "Running")
        # Another life: what was in its memory may be gone.
        second = client.put("/claims/ada").json()
        assert second["how"] == "inherited"
        assert second["fence"] > first["fence"]
        assert program.end() == 0
    assert (tmp_path / "ended").exists()
    assert status_of(router, namespace) == "Stopped"


def test_a_dead_port_is_a_failed_pod(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        probe = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        with minded(cluster, tmp_path, namespace, "--health", probe, "--failures", "1") as program:
            until(lambda: status_of(router, namespace) == "Running")
            listening.close()
            until(lambda: status_of(router, namespace) == "Failed")
            assert "the pod has failed" in program.log


def test_files_tell_health_and_load(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    well, load = tmp_path / "well", tmp_path / "load"
    load.write_text("12.5\n")
    more = ("--health", str(well), "--failures", "1", "--load", str(load))
    with minded(cluster, tmp_path, namespace, *more):
        well.touch()
        until(lambda: status_of(router, namespace) == "Running")
        until(lambda: router.get_pods(namespace, "chat", fresh=True)[0].load == 12.5)
        load.write_text("much")
        until(lambda: router.get_pods(namespace, "chat", fresh=True)[0].load is None)
        well.unlink()
        until(lambda: status_of(router, namespace) == "Failed")


def test_a_child_that_ends_says_stopped_at_once(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    for script, code in (("sleep 1; exit 3", 3), ("sleep 1; kill -9 $$", 137)):
        with minded(cluster, tmp_path, namespace, command=("sh", "-c", script)) as program:
            until(lambda: status_of(router, namespace) == "Running")
            assert program.process.wait(15) == code
        assert status_of(router, namespace) == "Stopped"


def test_sigterm_drains_before_the_child_is_told(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    port = free_port()
    command = (sys.executable, str(PLAIN_POD), str(port), str(tmp_path))
    health = ("--health", f"http://127.0.0.1:{port}/healthz", "--drain", "30")
    with (
        minded(cluster, tmp_path, namespace, *health, command=command) as program,
        client_of(program.urls[0]) as client,
    ):
        until(lambda: client.put("/claims/ada").status_code == 200)
        program.process.send_signal(signal.SIGTERM)
        until(lambda: status_of(router, namespace) == "Draining")
        time.sleep(1.0)  # nothing must happen
        assert not (tmp_path / "ended").exists()
        assert client.get("/claims/ada").json()["owned"]
        client.delete("/claims/ada")
        assert program.process.wait(15) == 0
        assert (tmp_path / "ended").exists()
    assert status_of(router, namespace) == "Stopped"


def test_a_pod_that_is_told_to_end_before_it_is_well_does_not_begin(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    """Its child gets well while it ends: users who came then would be cut off."""
    port = free_port()
    (tmp_path / "sick").touch()
    command = (sys.executable, str(PLAIN_POD), str(port), str(tmp_path), "stubborn")
    more = ("--health", f"http://127.0.0.1:{port}/healthz", "--child-grace", "3")
    with (
        minded(cluster, tmp_path, namespace, *more, command=command) as program,
        client_of(program.urls[0]) as client,
    ):
        reader = Reader(client)
        until(lambda: _listens(port))
        program.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)  # it has been heard
        (tmp_path / "sick").unlink()
        program.process.wait(15)
        assert reader.join() == ["stopped"]
    assert status_of(router, namespace) is None


def test_a_stubborn_child_is_killed_with_what_it_has_started(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    port = free_port()
    inner = f"{sys.executable} {PLAIN_POD} {port} {tmp_path} stubborn"
    more = ("--drain", "0", "--child-grace", "0.5")
    command = ("sh", "-c", f"{inner}; true")
    with minded(cluster, tmp_path, namespace, *more, command=command) as program:
        until((tmp_path / "seen").exists)
        until(lambda: status_of(router, namespace) == "Running")
        program.end()
    until(lambda: not _listens(port))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_child_does_not_outlive_an_agent_that_is_killed(
    cluster: LocalCluster, namespace: str, tmp_path: Path
) -> None:
    port = free_port()
    command = (sys.executable, str(PLAIN_POD), str(port), str(tmp_path))
    with minded(cluster, tmp_path, namespace, command=command) as program:
        until(lambda: _listens(port))
        program.end(signal.SIGKILL)
    until((tmp_path / "ended").exists)


def test_a_newer_process_with_the_pods_id_ends_it(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    with minded(cluster, tmp_path, namespace) as older, client_of(older.urls[0]) as client:
        until(lambda: client.get("/status").json()["status"] == "Running")
        reader = Reader(client)
        with minded(cluster, tmp_path, namespace) as newer, client_of(newer.urls[0]) as other:
            until(lambda: other.get("/status").json()["status"] == "Running")
            reader.wait("superseded")
            older.process.wait(15)
            reader.join()
            assert status_of(router, namespace) == "Running"
        assert "another process has this pod's id" in older.log


def test_a_unix_socket_is_for_its_user_only(
    cluster: LocalCluster, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"
    with minded(cluster, tmp_path, namespace, "--listen", f"unix:{path}") as program:
        assert path.stat().st_mode & 0o777 == 0o600
        with client_of(program.urls[0]) as client:
            until(lambda: client.put("/claims/ada").status_code == 200)
    assert not path.exists()


def test_it_may_start_before_the_store(tmp_path: Path) -> None:
    with LocalCluster(1, 0) as cluster:
        (_, port), *_ = cluster.startup_nodes
    with minded(cluster, tmp_path, "n") as program, client_of(program.urls[0]) as client:
        assert client.put("/claims/ada").headers["X-Sfroute-Reason"] == "not-running"
        with LocalCluster(1, 0, first_port=port):
            until(lambda: client.put("/claims/ada").status_code == 200, 20)
            program.end()


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pod", "0"], "write the command of the pod after `--`"),
        (["--pod", "0", "--health", "ftp://x"], "cannot be probed"),
        (["--pod", "0", "--health", "tcp://x"], "must name a port"),
        (["--pod", "0", "--listen", "7070"], "no address to listen on"),
        (["--pod", "0", "--lease", "1", "--", "true"], "lease must be seconds"),
    ],
)
def test_what_cannot_work_is_told(arguments: list[str], said: str) -> None:
    options = ("--url", "redis://127.0.0.1:1", "--namespace", "n", "--service", "s")
    done = sfroute("agent", *options, *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in re.sub(r"\s+", " ", done.err)


def test_a_command_that_is_not_there_is_127(tmp_path: Path) -> None:
    arguments = ("--url", "redis://127.0.0.1:1", "--namespace", "n", "--service", "s", "--pod", "0")
    with running(
        "agent", *arguments, "--listen", "127.0.0.1:0", "--", "/no/such", folder=tmp_path
    ) as program:
        assert program.process.wait(15) == 127
        assert "No such file" in program.log


def test_the_pod_is_the_number_of_the_host_name() -> None:
    from sfroute import ConfigError
    from sfroute._programs.minding import pod_of_host_name

    assert pod_of_host_name("chat-12.chat.prod.svc") == 12
    assert pod_of_host_name("chat-eu-0") == 0
    for name in ("chat", "chat-", "chat-x", "7", "chat-²"):
        with pytest.raises(ConfigError, match="--pod"):
            pod_of_host_name(name)
