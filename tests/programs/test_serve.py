"""``sfroute serve``: real processes, on real sockets, asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
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
from prometheus_client.parser import text_string_to_metric_families
from support.command import sfroute
from support.programs import Program, client_of, running, until

from sfroute import Router
from sfroute._programs.openapi import DECIDE_REASONS, decide_document
from sfroute.embedded import LocalCluster

# They start processes.
pytestmark = pytest.mark.slow

ADA = {"X-User-Id": "ada"}


@contextlib.contextmanager
def serving(
    cluster: LocalCluster, folder: Path, namespace: str | None, *more: str, uid: str = "header"
) -> Iterator[Program]:
    where = {"header": ("--uid-header", "X-User-Id")}.get(uid, ())
    names = ["--namespace", namespace, "--service", "chat"] if namespace else []
    listen = () if "--listen" in more else ("--listen", "127.0.0.1:0")
    with running(
        "serve", "--url", cluster.url, *names, *where, *listen, *more, folder=folder
    ) as it:
        yield it


@pytest.fixture
def router(cluster: LocalCluster, namespace: str) -> Iterator[Router]:
    with Router.from_url(cluster.url) as router:
        for pod in (0, 3):
            router.set_service_state(namespace, "chat", pod, "Running")
        yield router


@pytest.fixture
def served(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> Iterator[httpx.Client]:
    upstream = ("--upstream", "http://chat-{pod}.chat:8080")
    with (
        serving(cluster, tmp_path, namespace, *upstream) as program,
        client_of(program.urls[0]) as client,
    ):
        until(lambda: client.get("/readyz").status_code == 200)
        yield client


def fits(answer: httpx.Response, path: str = "/decide") -> None:
    """The answer is one of the document's."""
    document = decide_document()
    found = document["paths"][path]["get"]["responses"][str(answer.status_code)]
    schema = found["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), {**schema, "components": document["components"]})


# --- answers


def test_the_answers_are_those_of_route(
    served: httpx.Client, router: Router, namespace: str
) -> None:
    for number in range(20):
        uid = f"user {number}/ü"
        answer = served.get("/decide", headers={b"X-User-Id": uid.encode()})
        assert answer.status_code == 200
        fits(answer)
        link = router.route(namespace, uid, "chat", fresh=True)
        pod = answer.json()["pod"]
        assert pod == link.pod
        assert answer.headers["X-Sfroute-Pod"] == str(pod)
        assert answer.headers["X-Sfroute-Upstream"] == f"http://chat-{pod}.chat:8080"
        assert answer.headers["X-Sfroute-Source"] == answer.json()["source"] == "placed"
        assert answer.headers["X-Sfroute-Uid"] == f"user%20{number}%2F%C3%BC"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "X-Sfroute-Stale" not in answer.headers
        again = [served.get("/decide", headers={b"X-User-Id": uid.encode()}) for _ in range(2)]
        # The first of them finds the link that the decision before it made.
        assert [(one.json()["pod"], one.json()["source"]) for one in again] == [
            (pod, "store"),
            (pod, "cache"),
        ]


def test_new_users_avoid_a_pod_that_refused_the_connection(
    served: httpx.Client, router: Router, namespace: str
) -> None:
    router.set_linked_pod(namespace, "ada", "chat", 0)
    served.get("/decide?exclude=0&refused=1", headers=ADA)
    others = [served.get("/decide", headers={"X-User-Id": f"u{one}"}) for one in range(20)]
    assert {answer.headers["X-Sfroute-Pod"] for answer in others} == {"3"}


def test_a_pod_that_was_excluded_for_one_user_takes_all_others(
    served: httpx.Client, router: Router, namespace: str
) -> None:
    """A proxy may exclude a pod that took the request and closed: one user's requests could do that to any pod."""
    router.set_linked_pod(namespace, "ada", "chat", 0)
    for query in (
        "exclude=0",
        "exclude=0&refused=0",
        "refused=&exclude=0",
        "exclude=0&refused=%3Cnil%3E",
    ):
        assert served.get(f"/decide?{query}", headers=ADA).status_code == 200
    others = [served.get("/decide", headers={"X-User-Id": f"u{one}"}) for one in range(40)]
    assert {answer.headers["X-Sfroute-Pod"] for answer in others} == {"0", "3"}


def test_pod_0_is_a_pod_and_an_excluded_one_is_left(
    served: httpx.Client, router: Router, namespace: str
) -> None:
    router.set_linked_pod(namespace, "ada", "chat", 0)
    assert served.get("/decide", headers=ADA).headers["X-Sfroute-Pod"] == "0"
    moved = served.get("/decide?exclude=0", headers=ADA)
    assert (moved.headers["X-Sfroute-Pod"], moved.headers["X-Sfroute-Source"]) == ("3", "moved")
    assert router.get_linked_pod(namespace, "ada", "chat", fresh=True) == 3
    nobody = served.get("/decide?exclude=0,3", headers=ADA)
    assert (nobody.status_code, nobody.headers["X-Sfroute-Reason"]) == (503, "no-pod")
    assert nobody.headers["Retry-After"] == "1"
    fits(nobody)


def test_any_method_is_answered_alike_and_head_without_a_body(served: httpx.Client) -> None:
    pod = served.get("/decide", headers=ADA).headers["X-Sfroute-Pod"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = served.request(method, "/decide", headers=ADA, content=b"x" * 10)
        assert (answer.status_code, answer.headers["X-Sfroute-Pod"]) == (200, pod)
    head = served.head("/decide", headers=ADA)
    assert (head.content, head.headers["X-Sfroute-Pod"]) == (b"", pod)


def test_refusals_say_why_and_never_name_the_user(served: httpx.Client) -> None:
    for url, headers, reason in (
        ("/decide", {}, "no-user"),
        ("/decide", {"X-User-Id": "s}cret"}, "no-such-user"),
        ("/decide?exclude=s}cret", ADA, "bad-question"),
    ):
        answer = served.get(url, headers=headers)
        assert answer.status_code == DECIDE_REASONS[reason][0]
        assert answer.headers["X-Sfroute-Reason"] == answer.json()["reason"] == reason
        assert answer.headers["Cache-Control"] == "no-store"
        assert "s}cret" not in answer.text
        fits(answer)
    for path, status in (("/", 404), ("/decided", 404), ("/metrics/", 404)):
        assert served.get(path).status_code == status
    assert served.post("/metrics").status_code == 405


def test_a_client_that_sends_the_headers_of_a_decision_changes_nothing(
    served: httpx.Client, router: Router, namespace: str
) -> None:
    router.set_linked_pod(namespace, "ada", "chat", 3)
    forged = {"X-Sfroute-Pod": "0", "X-Sfroute-Uid": "eve", "X-Sfroute-Upstream": "http://evil"}
    answer = served.get("/decide", headers={**forged, **ADA})
    assert (answer.json()["pod"], answer.headers["X-Sfroute-Uid"]) == (3, "ada")
    assert served.get("/decide", headers=forged).headers["X-Sfroute-Reason"] == "no-user"


def test_wait_waits_for_a_pod(served: httpx.Client, router: Router, namespace: str) -> None:
    for pod in (0, 3):
        router.set_service_state(namespace, "chat", pod, "Stopped")
    until(lambda: served.get("/decide", headers={"X-User-Id": "eve"}).status_code == 503)
    began = time.monotonic()
    assert served.get("/decide?wait=0.6", headers=ADA).status_code == 503
    assert 0.6 <= time.monotonic() - began < 5
    starting = threading.Timer(0.7, router.set_service_state, (namespace, "chat", 5, "Running"))
    starting.start()
    answer = served.get("/decide?wait=15", headers=ADA)
    starting.join()
    assert (answer.status_code, answer.json()["pod"]) == (200, 5)


def test_names_in_the_path_and_a_uid_in_the_users_url(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    options = ("--uid-path", "/users/{uid}", "--uri-header", "X-Forwarded-Uri")
    with (
        serving(cluster, tmp_path, None, *options, uid="path") as program,
        client_of(program.urls[0]) as client,
    ):
        router.set_linked_pod(namespace, "ada", "chat", 3)
        path = f"/decide/{namespace}/chat"
        answer = client.get(path, headers={"X-Forwarded-Uri": "/users/ada/cart?exclude=3"})
        assert answer.headers["X-Sfroute-Pod"] == "3"
        # The request of Envoy's ext_authz: the user's own method, path and query after a prefix.
        answer = client.post(f"{path}/users/ada/cart?exclude=3", content=b"")
        assert answer.headers["X-Sfroute-Pod"] == "3"
        assert client.get("/decide").headers["X-Sfroute-Reason"] == "bad-question"
        fits(client.get(path), "/decide/{namespace}/{service}")


def test_nginx_gets_no_status_that_it_cannot_pass_on(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    with (
        serving(cluster, tmp_path, namespace, "--mode", "nginx") as program,
        client_of(program.urls[0]) as client,
    ):
        assert client.get("/decide", headers=ADA).status_code == 200
        for url, headers, reason, status in (
            ("/decide", {}, "no-user", 401),
            ("/decide", {"X-User-Id": "a{b"}, "no-such-user", 403),
            ("/decide?wait=x", ADA, "bad-question", 403),
            ("/decide?exclude=0,3", ADA, "no-pod", 403),
        ):
            answer = client.get(url, headers=headers)
            assert (answer.status_code, answer.headers["X-Sfroute-Reason"]) == (status, reason)


def test_an_address_that_the_pod_has_published(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    state = '{"status":"Running","address":"10.0.0.7:8080"}'
    router.set_service_state(namespace, "chat", 3, state)
    router.set_linked_pod(namespace, "ada", "chat", 3)
    router.set_linked_pod(namespace, "eve", "chat", 0)
    with (
        serving(cluster, tmp_path, namespace, "--upstream", "http://{address}") as program,
        client_of(program.urls[0]) as client,
    ):
        answer = client.get("/decide", headers=ADA)
        assert answer.headers["X-Sfroute-Upstream"] == "http://10.0.0.7:8080"
        answer = client.get("/decide", headers={"X-User-Id": "eve"})
        assert (answer.status_code, answer.headers["X-Sfroute-Reason"]) == (503, "no-address")


def test_an_address_with_a_scheme_never_becomes_a_wrong_url(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    state = '{"status":"Running","address":"http://10.0.0.7:8080"}'
    router.set_service_state(namespace, "chat", 3, state)
    router.set_linked_pod(namespace, "ada", "chat", 3)
    with (
        serving(cluster, tmp_path, namespace, "--upstream", "http://{address}") as program,
        client_of(program.urls[0]) as client,
    ):
        answer = client.get("/decide", headers=ADA)
        assert (answer.status_code, answer.headers["X-Sfroute-Reason"]) == (503, "bad-address")
        assert "X-Sfroute-Upstream" not in answer.headers
        fits(answer)
    with (
        serving(cluster, tmp_path, namespace, "--upstream", "{address}") as program,
        client_of(program.urls[0]) as client,
    ):
        answer = client.get("/decide", headers=ADA)
        assert answer.headers["X-Sfroute-Upstream"] == "http://10.0.0.7:8080"


@pytest.mark.parametrize(("option", "name"), [("", "sfroute-serve"), ("?client_name=edge", "edge")])
def test_its_connections_have_a_name_of_their_own_or_that_of_the_url(
    cluster: LocalCluster, namespace: str, tmp_path: Path, option: str, name: str
) -> None:
    with (
        running(
            *("serve", "--url", cluster.url + option, "--namespace", namespace),
            *("--service", "chat", "--uid-header", "X-User-Id", "--listen", "127.0.0.1:0"),
            folder=tmp_path,
        ) as program,
        client_of(program.urls[0]) as client,
    ):
        until(lambda: client.get("/readyz").status_code == 200)
        client.get("/decide", headers=ADA)
        listed = [str(node.commands(("CLIENT", "LIST"))[0]) for node in cluster.nodes]
        assert any(f"name={name};sfroute=" in text for text in listed)


# --- the store


def test_without_the_store_known_users_are_routed_and_marked(
    own_cluster: LocalCluster, namespace: str, tmp_path: Path
) -> None:
    with Router.from_url(own_cluster.url) as router:
        router.set_service_state(namespace, "chat", 3, "Running")
        router.set_linked_pod(namespace, "ada", "chat", 3)
    with (
        serving(own_cluster, tmp_path, namespace) as program,
        client_of(program.urls[0]) as client,
    ):
        assert "X-Sfroute-Stale" not in client.get("/decide", headers=ADA).headers
        for node in own_cluster.nodes:
            own_cluster.kill(node)

        def is_marked() -> bool:
            answer = client.get("/decide", headers=ADA)
            assert (answer.status_code, answer.headers["X-Sfroute-Pod"]) == (200, "3")
            marked = answer.headers.get("X-Sfroute-Stale") == "true"
            assert answer.json()["stale"] is marked
            return bool(marked)

        until(is_marked, 20)
        answer = client.get("/decide", headers={"X-User-Id": "eve"})
        assert (answer.status_code, answer.headers["X-Sfroute-Reason"]) == (503, "store")
        fits(answer)
        assert client.get("/readyz").status_code == 200  # it goes on answering
        assert "ada" not in program.log


def test_it_may_start_before_the_store(tmp_path: Path) -> None:
    cluster = LocalCluster(1, 0)
    with cluster:
        url = cluster.url
        (_, port), *_ = cluster.startup_nodes
    arguments = ("--url", url, "--namespace", "n", "--service", "chat", "--uid-header", "X-User-Id")
    with (
        running("serve", *arguments, "--listen", "127.0.0.1:0", folder=tmp_path) as program,
        client_of(program.urls[0]) as client,
    ):
        assert client.get("/healthz").status_code == 200
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (503, "store")
        with LocalCluster(1, 0, first_port=port):
            until(lambda: client.get("/readyz").status_code == 200, 20)


# --- the process


def test_a_unix_socket_has_its_mode_and_is_removed(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    path = tmp_path / "s.sock"
    left = socket.socket(socket.AF_UNIX)  # as a process leaves it that was killed
    left.bind(str(path))
    left.close()
    listen = ("--listen", f"unix:{path}", "--listen", "127.0.0.1:0", "--socket-mode", "600")
    with serving(cluster, tmp_path, namespace, *listen) as program:
        assert [url.partition(":")[0] for url in program.urls] == ["unix", "http"]
        assert path.stat().st_mode & 0o777 == 0o600
        pods = set()
        for url in program.urls:
            with client_of(url) as client:
                pods.add(client.get("/decide", headers=ADA).headers["X-Sfroute-Pod"])
        assert len(pods) == 1
        again = sfroute(
            *("serve", "--url", cluster.url, "--namespace", namespace, "--service", "chat"),
            *("--uid-header", "X-User-Id", "--listen", f"unix:{path}"),
        )
        assert (again.code, again.out) == (2, "")
        assert re.search(r"cannot listen on unix:.*Address already in use", again.err)
    assert not path.exists()


def series(client: httpx.Client, name: str, **labels: str) -> dict[str, float]:
    """Worker -> value, summed over other labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                worker = sample.labels["worker"]
                found[worker] = found.get(worker, 0) + sample.value
    return found


def test_workers_share_the_socket_and_any_tells_the_metrics_of_all(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path
) -> None:
    with serving(cluster, tmp_path, namespace, "--workers", "3") as program:
        url = program.urls[0]

        def ask(count: int) -> None:
            for number in range(count):
                with client_of(url) as client:  # a connection each: any worker gets it
                    assert client.get("/decide", headers={"X-User-Id": f"u{number}"}).is_success

        ask(60)
        with client_of(url) as client:
            until(lambda: set(series(client, "process_resident_memory_bytes")) == {"0", "1", "2"})
            # A worker looks a uid up once.
            asked = series(client, "sfroute_cache_requests_total")
            assert 60 <= sum(asked.values()) <= 120
            pids = series(client, "process_start_time_seconds")
        # One that dies is started anew.
        (victim, *_) = children_of(program.process.pid)
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in children_of(program.process.pid))
        until(lambda: len(children_of(program.process.pid)) == 3)
        ask(30)
        with client_of(url) as client:
            until(lambda: len(series(client, "process_start_time_seconds")) == 3)
            assert series(client, "process_start_time_seconds") != pids
        assert "has died; it is started anew" in program.log
        workers = children_of(program.process.pid)
        program.process.kill()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_ends_in_order(
    cluster: LocalCluster, namespace: str, router: Router, tmp_path: Path, workers: str
) -> None:
    more = ("--linger", "3", "--workers", workers)
    with serving(cluster, tmp_path, namespace, *more) as program:
        with client_of(program.urls[0]) as client:
            until(lambda: client.get("/readyz").status_code == 200)
            began = time.monotonic()
            program.process.send_signal(signal.SIGTERM)
            until(lambda: client.get("/readyz").status_code == 503)
            # It goes on answering, for those who have not heard.
            for _ in range(10):
                assert client.get("/decide", headers=ADA).status_code == 200
        assert program.process.wait(10) == 0
        assert time.monotonic() - began >= 3
        assert program.log == ""


def test_a_question_that_waits_is_answered_before_the_end(
    cluster: LocalCluster, namespace: str, tmp_path: Path
) -> None:
    answers: list[Any] = []
    with serving(cluster, tmp_path, namespace) as program, client_of(program.urls[0]) as client:
        asking = threading.Thread(
            target=lambda: answers.append(client.get("/decide?wait=2", headers=ADA))
        )
        asking.start()
        time.sleep(0.5)  # the question must be there; nobody tells when
        assert program.end() == 0
        asking.join()
    assert [answer.headers["X-Sfroute-Reason"] for answer in answers] == ["no-pod"]


# --- mistakes, and the document


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "exactly one of --uid-header"),
        (["--uid-header", "a", "--uid-cookie", "b"], "exactly one of --uid-header"),
        (["--uid-header", "X-Sfroute-Uid"], "must not come from X-Sfroute headers"),
        (["--uid-header", "a b"], "the name of a header"),
        (["--uid-path", "/users"], "the path template"),
        (["--uid-header", "a", "--upstream", "http://x"], "the upstream template must hold"),
        (["--uid-header", "a", "--listen", "7080"], "no address to listen on"),
        (["--uid-header", "a", "--listen", "unix:"], "names no socket"),
        (["--uid-header", "a", "--socket-mode", "999"], "must be octal"),
        (["--uid-header", "a", "--persist-seconds", "0"], "persist_seconds"),
        (["--uid-header", "a", "--service", "a{b"], "service"),
    ],
)
def test_what_cannot_work_is_told_before_it_listens(arguments: list[str], said: str) -> None:
    done = sfroute("serve", "--url", "redis://127.0.0.1:1", "--namespace", "n", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_the_document_is_served_and_filed(served: httpx.Client) -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "openapi" / "serve.json"
    assert served.get("/openapi.json").json() == json.loads(page.read_text()) == decide_document()


def test_the_document_has_every_reason_once() -> None:
    document = decide_document()
    for status in ("400", "503"):
        words = document["paths"]["/decide"]["get"]["responses"][status]["description"]
        said = set(re.findall(r"`([a-z-]+)`: ", words))
        assert said == {reason for reason, (of, _) in DECIDE_REASONS.items() if str(of) == status}
