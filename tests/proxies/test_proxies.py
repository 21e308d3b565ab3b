"""Each recipe of the page on proxies, run: real proxies, real pods, and what their users see."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
import websockets.sync.client
from prometheus_client.parser import text_string_to_metric_families
from support.pods import go_command, node_command
from support.programs import client_of, until

from proxies.stage import NAMESPACE, PODS, PROXIES, Stage, stage
from sfroute import Router
from sfroute.embedded import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

NUMBERS = itertools.count()


# Its tests share pods, so they stay together where proxies are tested at the same time.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in PROXIES],
)
def on(
    request: pytest.FixtureRequest,
    sfroute_cluster: LocalCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stage]:
    """A proxy, in front of pods in Python. The pods of a proxy before it are forgotten."""
    for node in sfroute_cluster.nodes:
        node.commands(("FLUSHALL",))
    folder = tmp_path_factory.mktemp(request.param)
    with stage(sfroute_cluster, folder) as made, PROXIES[request.param](made):
        made.name = request.param
        yield made


@pytest.fixture
def ada() -> str:
    """A user whom no other test knows."""
    return f"ada{next(NUMBERS)}"


@pytest.fixture
def client(on: Stage) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=on.url, trust_env=False, timeout=20) as client:
        yield client


def count(client: httpx.Client, uid: str) -> dict[str, Any]:
    answer = client.post("/count", headers={"X-User-Id": uid})
    assert answer.status_code == 200, (answer.status_code, answer.text, answer.headers)
    found: dict[str, Any] = answer.json()
    return found


def test_a_user_stays_at_one_pod_and_connections_are_kept(on: Stage, client: httpx.Client) -> None:
    uids = [f"user{number}" for number in range(12)]
    first = {uid: count(client, uid)["pod"] for uid in uids}
    assert len(set(first.values())) > 1
    for expected in range(2, 8):
        for uid in uids:
            told = count(client, uid)
            assert (told["pod"], told["count"]) == (first[uid], expected)
    # 84 requests, and what the pods' start took.
    assert sum(on.connections_to(pod) for pod in PODS) < 30


def test_a_client_decides_nothing(on: Stage, client: httpx.Client, ada: str) -> None:
    own = count(client, ada)
    forged = {
        "X-Sfroute-Uid": "eve",
        "X-Sfroute-Pod": str((own["pod"] + 1) % 3),
        "X-Sfroute-Upstream": f"127.0.0.1:{on.ports[(own['pod'] + 1) % 3]}",
    }
    answer = client.post("/count?exclude=0,1,2", headers={"X-User-Id": ada, **forged})
    assert answer.status_code == 200
    assert (answer.json()["pod"], answer.json()["count"]) == (own["pod"], 2)
    for headers in (forged, {}):
        assert client.post("/count", headers=headers).status_code == 400
    assert client.get("/_sfroute/decide", headers={"X-User-Id": ada}).status_code == 404
    # The pod's answer is the pod's.
    assert client.get("/nothing", headers={"X-User-Id": ada}).status_code == 404


def test_websockets_go_to_the_same_pod(on: Stage, client: httpx.Client, ada: str) -> None:
    own = count(client, ada)
    with websockets.sync.client.connect(
        f"{on.url.replace('http', 'ws')}/ws",
        additional_headers={"X-User-Id": ada, "X-Sfroute-Uid": "eve"},
        proxy=None,
    ) as socket:
        for expected in (2, 3):
            socket.send("x")
            told = json.loads(socket.recv(10))
            assert (told["pod"], told["count"]) == (own["pod"], expected)
    assert count(client, ada)["count"] == 4


def test_a_moved_user_is_followed(on: Stage, client: httpx.Client, ada: str) -> None:
    told = count(client, ada)
    with Router.from_url(on.cluster.url) as router:
        for _ in range(10):
            before, other = told["pod"], (told["pod"] + 1) % 3
            router.set_linked_pod(NAMESPACE, ada, "chat", other)
            deadline = time.monotonic() + 20
            while told["pod"] != other:
                expected = told["count"] + 1
                told = count(client, ada)
                # Until the store's pushes have reached `sfroute serve` and the pod, it is still the former owner's.
                assert told["pod"] in (before, other)
                assert told["count"] == expected
                assert time.monotonic() < deadline, "nobody followed the user"


def test_a_pod_that_was_killed_is_excluded_at_once(
    on: Stage, client: httpx.Client, ada: str
) -> None:
    own = count(client, ada)
    on.end_pod(own["pod"], signal.SIGKILL)
    began = time.monotonic()
    told = count(client, ada)
    assert told["pod"] != own["pod"]
    assert told["count"] == 2
    # Long before its lease is over.
    assert time.monotonic() - began < 2.5
    on.start_pod(own["pod"])


def reports(on: Stage) -> float:
    """How often `sfroute serve` was told that a pod cannot be reached."""
    with client_of(on.asked) as client:
        told = client.get("/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
        if sample.name == "sfroute_pods_failures_total"
    )


@contextlib.contextmanager
def closing(port: int) -> Iterator[None]:
    """A pod that takes requests and closes without an answer."""
    with socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_only_a_pod_that_takes_no_connection_is_kept_from_new_users(
    on: Stage, client: httpx.Client, ada: str
) -> None:
    """Or one user whose requests end their connections would eject pod after pod."""
    own = count(client, ada)["pod"]
    on.end_pod(own, signal.SIGKILL)
    # Its heart goes on: nobody is moved for its silence, however slow this test is.
    state = {"status": "Running", "address": f"127.0.0.1:{on.ports[own]}"}
    other = f"{ada}-other"
    with Router.from_url(on.cluster.url) as router:
        router.set_service_state(NAMESPACE, "chat", own, json.dumps(state))
        router.set_linked_pod(NAMESPACE, other, "chat", own)
    before = reports(on)
    with closing(on.ports[own]):
        # Caddy and Traefik try another pod, nginx says 502, Envoy 503, and HAProxy closes, too.
        with contextlib.suppress(httpx.TransportError):
            client.post("/count", headers={"X-User-Id": ada})
        assert reports(on) == before
    assert count(client, other)["pod"] != own
    assert reports(on) == before + (on.name != "traefik")
    on.start_pod(own)


class User:
    """One who counts without a pause. `trouble`: answers that were no count."""

    def __init__(self, url: str, uid: str, leave: threading.Event) -> None:
        self.counts: list[int] = []
        self.trouble: Counter[str] = Counter()
        self._url, self.uid, self._leave = url, uid, leave
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, trust_env=False, timeout=20) as client:
            while not self._leave.is_set():
                try:
                    answer = client.post("/count", headers={"X-User-Id": self.uid})
                except httpx.TransportError as error:
                    self.trouble[type(error).__name__] += 1
                    continue
                if answer.status_code == 200:
                    self.counts.append(answer.json()["count"])
                else:
                    self.trouble[str(answer.status_code)] += 1
                self._leave.wait(0.04)


@contextlib.contextmanager
def counting(on: Stage) -> Iterator[Callable[[], None]]:
    """Users who count all the time. What is given waits until all have been answered anew."""
    for pod in PODS:
        if on.pods[pod].poll() is not None:
            on.start_pod(pod)
    leave = threading.Event()
    users = [User(on.url, f"user{number}", leave) for number in range(6)]

    def all_go_on() -> None:
        seen = [len(user.counts) for user in users]
        until(lambda: all(len(u.counts) > n + 5 for u, n in zip(users, seen, strict=True)), 60)

    try:
        all_go_on()
        yield all_go_on
        all_go_on()
    finally:
        leave.set()
        for user in users:
            user.thread.join()
    # Strictly growing: no user met a pod that did not know the last count.
    resets = [pair for user in users for pair in pairwise(user.counts) if pair[0] >= pair[1]]
    assert resets == []
    done = sum(len(user.counts) for user in users)
    trouble = sum((user.trouble for user in users), Counter[str]())
    print(f"{done} requests, trouble: {dict(trouble)}")
    # A request under way at a pod that is killed is lost.
    assert sum(trouble.values()) <= len(users)


def test_no_count_is_reset_through_a_rolling_restart_and_a_crash(on: Stage) -> None:
    with counting(on):
        for pod in PODS:
            on.end_pod(pod, signal.SIGTERM)
            on.start_pod(pod)
        on.end_pod(1, signal.SIGKILL)


@pytest.fixture(scope="module")
def other_languages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """Pods in Node.js and Go; both in one of them where the other is not here."""
    found = [node_command(), go_command(tmp_path_factory.mktemp("go"))]
    here = [command for command in found if command is not None]
    if not here:
        pytest.skip("there is neither node nor go: `make test-proxies` brings go")
    return {1: here[0], 2: here[-1]}


def test_no_count_is_reset_where_pods_are_in_several_languages(
    on: Stage, other_languages: dict[int, list[str]]
) -> None:
    with counting(on) as all_go_on:
        for pod, command in other_languages.items():
            on.end_pod(pod, signal.SIGTERM)
            on.commands[pod] = command
            on.launch_pod(pod)
        for pod in other_languages:
            on.await_pod(pod)
        all_go_on()
        for pod in PODS:
            on.end_pod(pod, signal.SIGTERM)
            on.start_pod(pod)
        all_go_on()
        # Its command ends with it.
        on.end_pod(1, signal.SIGKILL)
        all_go_on()
        on.kill_command(2)
