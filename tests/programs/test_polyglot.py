"""The pods of examples/ in Node.js and Go, minded by ``sfroute agent``: users' counts go on wherever the users go."""

from __future__ import annotations

import contextlib
import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("kubernetes_validate", reason="the group `examples` is not installed")

import httpx
from support.pods import go_command, node_command
from support.programs import Program, free_port, running, until

from sfroute import NoRoutablePod, Router
from sfroute.embedded import LocalCluster

# They start processes.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["node", "go"])
def pod_command(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """How a pod is run: without its port and folder."""
    if request.param == "node":
        return node_command() or pytest.skip("there is no node")
    found = go_command(tmp_path_factory.mktemp("go"))
    return found or pytest.skip("there is no go: `PATH=$(.ci/go):$PATH` brings one")


class Pod:
    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self.port = port

    def ask(self, uid: str) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=10) as client:
            return client.get(
                f"http://127.0.0.1:{self.port}/", headers={"X-Sfroute-Uid": quote(uid, safe="")}
            )


class Fleet:
    """Pods of one service, and the one thing a gateway does: follow the link."""

    def __init__(self, router: Router, namespace: str) -> None:
        self.router = router
        self.namespace = namespace
        self.pods: dict[int, Pod] = {}

    def count(self, uid: str) -> int:
        """The user's count, after one request."""
        answers: list[int] = []

        def answered() -> bool:
            with contextlib.suppress(httpx.TransportError, NoRoutablePod):
                link = self.router.route(self.namespace, uid, "chat", fresh=True)
                answer = self.pods[link.pod].ask(uid)
                if answer.status_code == 200:
                    assert answer.json()["pod"] == link.pod
                    answers.append(answer.json()["count"])
            return bool(answers)

        until(answered, 20)
        return answers[0]


@contextlib.contextmanager
def pod(
    fleet: Fleet,
    cluster: LocalCluster,
    folder: Path,
    number: int,
    command: list[str],
    *,
    unix: bool,
) -> Iterator[Pod]:
    port = free_port()
    listen = f"unix:{folder}/agent-{number}-{port}.sock" if unix else "127.0.0.1:0"
    counters = folder / "counters"
    counters.mkdir(exist_ok=True)
    with running(
        "agent",
        *("--url", cluster.url, "--namespace", fleet.namespace, "--service", "chat"),
        *("--pod", str(number), "--listen", listen, "--heartbeat", "0.3", "--lease", "2"),
        *("--drain", "1", "--health", f"http://127.0.0.1:{port}/healthz"),
        *("--", *command, str(port), str(counters)),
        folder=folder,
        code=0,
    ) as program:
        made = fleet.pods[number] = Pod(program, port)
        until(
            lambda: (
                (found := fleet.router.get_pods(fleet.namespace, "chat", fresh=True).get(number))
                is not None
                and found.status == "Running"
                and made.ask("probe").status_code in (200, 421)
            ),
            20,
        )
        yield made


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_a_users_count_goes_on_through_a_restart_and_a_crash(
    sfroute_cluster: LocalCluster,
    sfroute_namespace: str,
    tmp_path: Path,
    pod_command: list[str],
    unix: bool,
) -> None:
    uids = ["ada", "a/b ü", "eve", "zoe"]
    with Router.from_url(sfroute_cluster.url) as router, contextlib.ExitStack() as stack:
        fleet = Fleet(router, sfroute_namespace)

        def start(number: int) -> Pod:
            return stack.enter_context(
                pod(fleet, sfroute_cluster, tmp_path, number, pod_command, unix=unix)
            )

        first, second = start(0), start(1)
        for expected in (1, 2):
            assert [fleet.count(uid) for uid in uids] == [expected] * 4
        # Another pod has the user, and says who, so that a gateway can follow.
        owner = router.get_linked_pod(sfroute_namespace, "ada", "chat", fresh=True)
        assert owner in (0, 1)
        refused = fleet.pods[1 - owner].ask("ada")
        assert refused.status_code == 421
        assert refused.headers["X-Sfroute-Owner"] == str(owner)
        assert refused.headers["X-Sfroute-Service"] == "chat"
        # In order: its users are moved, or come back to its next life.
        assert first.program.end() == 0
        assert [fleet.count(uid) for uid in uids] == [3] * 4
        third = start(0)
        assert [fleet.count(uid) for uid in uids] == [4] * 4
        # A crash: the lease passes, then the users are moved.
        second.program.end(signal.SIGKILL)
        del fleet.pods[1]
        fleet.pods[1] = third  # nobody answers for it as pod 1
        assert [_count_elsewhere(fleet, uid) for uid in uids] == [5] * 4
        # Told of a loss, a pod forgets: what it had counted would be old.
        router.set_service_state(sfroute_namespace, "chat", 9, "Running")
        router.set_linked_pod(sfroute_namespace, "ada", "chat", 9)
        until(lambda: third.ask("ada").status_code == 421)
        assert router.remove_linked_pod(sfroute_namespace, "ada", "chat")
        router.set_service_state(sfroute_namespace, "chat", 9, "Stopped")
        assert _count_elsewhere(fleet, "ada") == 6


def test_a_pod_whose_fence_is_refused_says_so_to_the_gateway(
    sfroute_cluster: LocalCluster, sfroute_namespace: str, tmp_path: Path, pod_command: list[str]
) -> None:
    """As one that was stopped and has not yet been told: 421 and the service, so that the gateway asks again."""
    with (
        Router.from_url(sfroute_cluster.url) as router,
        pod(
            Fleet(router, sfroute_namespace), sfroute_cluster, tmp_path, 0, pod_command, unix=True
        ) as only,
    ):
        assert only.ask("ada").json()["count"] == 1
        of_ada = f"of-{hashlib.sha256(b'ada').hexdigest()}"
        (stored,) = (tmp_path / "counters" / of_ada).iterdir()
        fence = int(stored.name.partition("-")[0])
        # What a pod with a newer claim does.
        stored.rename(stored.with_name(f"{fence + 1}-2"))
        for _ in range(2):
            refused = only.ask("ada")
            assert (refused.status_code, refused.headers["X-Sfroute-Service"]) == (421, "chat")
        assert [file.name for file in stored.parent.iterdir()] == [f"{fence + 1}-2"]


def _count_elsewhere(fleet: Fleet, uid: str) -> int:
    """At pod 0, once the user is there."""
    until(lambda: fleet.router.route(fleet.namespace, uid, "chat", fresh=True).pod == 0, 20)
    return fleet.count(uid)
