"""The demo: its traffic, its judgement, and that it leaves nothing behind. CI plays it in full."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console

from sfroute import AsyncPodAgent, AsyncRouter, Router
from sfroute._contract.keys import link_key, slot_of, state_key
from sfroute.embedded import LocalCluster

ROOT: Final = Path(__file__).parent.parent
DEMO: Final = ROOT / "examples" / "demo"
# Its programs import each other by name.
sys.path.insert(0, str(DEMO))

from arrivals import NEWCOMERS, PLAYING, Arrivals, ArrivalsResult  # noqa: E402
from arrivals import USERS as GUESTS  # noqa: E402
from chat_gateway import SETTINGS  # noqa: E402
from departures import Departures, DeparturesResult, Sent, noticed_after  # noqa: E402
from director import NAMESPACE, direct  # noqa: E402
from failover import Failover  # noqa: E402
from failover_result import FailoverResult, GatewayReport, PodReport, percentile  # noqa: E402
from traffic import Traffic  # noqa: E402
from wipe import USERS, Wipe, WipeResult  # noqa: E402

# --- the traffic


def test_the_traffic_is_the_same_every_time() -> None:
    assert Traffic().stream() == Traffic().stream()
    assert Traffic().stream() != Traffic(seed=1).stream()


def test_the_gateways_share_the_traffic_without_rest() -> None:
    traffic = Traffic(requests=1001)
    shares = [traffic.share(number, 2) for number in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(traffic.stream())


def test_users_are_as_unequal_as_zipf_says() -> None:
    traffic = Traffic(requests=200_000, users=100, exponent=1.0)
    counts = Counter(uid for _, uid in traffic.stream())
    harmonic = sum(1 / rank for rank in range(1, 101))
    for rank in (1, 2, 10, 100):
        expected = 200_000 / rank / harmonic
        # Six standard deviations of a binomial count; the seed is fixed, so this never flickers.
        assert abs(counts[traffic.uid(rank)] - expected) < 6 * expected**0.5
    assert set(counts) <= set(traffic.uids())


def test_requests_arrive_at_the_rate() -> None:
    last = Traffic(requests=20_000, rate=2_000.0).stream()[-1][0]
    assert last == pytest.approx(10.0, rel=0.03)


# --- the judgement

ALL_WELL: Final = FailoverResult(
    expected=4,
    gateways=[
        GatewayReport("asyncio", [(0.0, 0.001, "placed", False), (1.0, 0.5, "store", False)], []),
        GatewayReport("threads", [(1.1, 0.0001, "cache", True), (9.0, 0.002, "store", False)], []),
    ],
    pods=[
        PodReport(0, frozenset({"ada"}), 3, 10, 0),
        PodReport(1, frozenset({"grace"}), 1, 10, 1),
    ],
    links={0: ["ada"], 1: ["grace"]},
    killed="127.0.0.1:7000",
    killed_at=1.2,
    recovered_at=2.0,
    whole_at=2.5,
)


ALL_MOVED: Final = DeparturesResult(
    drained=500,
    drained_kept=500,
    drained_new=0,
    drained_moved=500,
    crashed=600,
    crashed_moved=600,
    crash_seconds=1.2,
    evacuated=1_000,
    evacuated_moved=1_000,
    evacuation_seconds=0.5,
    pods_in_the_end=frozenset({3}),
)


EVENED_OUT: Final = ArrivalsResult(
    users=630,
    before={0: 206, 1: 205, 2: 204, 3: 15},
    after={0: 166, 1: 165, 2: 165, 3: 134},
    newcomers=30,
    newcomers_at_added=15,
    planned=119,
    moved=40,
    handed_over=79,
    asked=79,
    kept=0,
    strayed=0,
    claimed=570,
    owned=570,
    lost=0,
)


def with_gateway(report: GatewayReport) -> FailoverResult:
    return replace(ALL_WELL, gateways=[report, ALL_WELL.gateways[1]])


def with_pod(pod: PodReport) -> FailoverResult:
    return replace(ALL_WELL, pods=[pod, ALL_WELL.pods[1]])


def test_all_is_well_when_every_request_met_the_one_pod_of_its_user() -> None:
    assert ALL_WELL.broken_promises() == []
    assert ALL_WELL.during_failover() == [0.5]
    assert ALL_WELL.apart_from_failover() == [0.0001, 0.001, 0.002]


@pytest.mark.parametrize(
    ("outcome", "complaint"),
    [
        (
            with_gateway(
                GatewayReport("asyncio", ALL_WELL.gateways[0].answers[1:], ["StoreUnavailable: x"])
            ),
            "the gateway on asyncio saw 1 times: StoreUnavailable: x",
        ),
        (
            with_gateway(GatewayReport("asyncio", ALL_WELL.gateways[0].answers[1:], [])),
            "1 of 4 requests were not routed",
        ),
        (
            with_pod(PodReport(0, frozenset({"ada"}), 2, 10, 0)),
            "3 requests arrived at the pods, not 4",
        ),
        (
            with_pod(PodReport(0, frozenset({"ada", "grace"}), 3, 10, 0)),
            "1 users met both pod 0 and pod 1",
        ),
        (
            replace(ALL_WELL, links={1: ["grace"]}),
            "the store links 0 users to pod 0, which has seen 1",
        ),
        (
            replace(ALL_WELL, killed_at=3.0, recovered_at=4.0, whole_at=5.0),
            "no request was made while the primary was gone",
        ),
    ],
)
def test_each_broken_promise_is_told(outcome: FailoverResult, complaint: str) -> None:
    assert complaint in outcome.broken_promises()


def test_all_is_well_when_pods_have_left_in_order() -> None:
    assert ALL_MOVED.broken_promises() == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"drained_kept": 499}, "1 users lost their pod while it drained"),
        ({"drained_new": 2}, "2 new users were sent to a draining pod"),
        ({"drained_moved": 497}, "3 users were sent to a stopped pod"),
        ({"crashed_moved": 599}, "1 users of a dead pod got no living one"),
        ({"crash_seconds": 1.9}, "users were sent to a dead pod for 1.90 s, not 1.83 s at most"),
        ({"evacuated_moved": 999}, "999 of 1000 users were evacuated"),
        ({"pods_in_the_end": frozenset({2, 3})}, "in the end users are on the pods [2, 3]"),
    ],
)
def test_each_departure_that_went_wrong_is_told(change: dict[str, Any], complaint: str) -> None:
    assert replace(ALL_MOVED, **change).broken_promises() == [complaint]


@pytest.mark.parametrize(
    ("requests", "seconds"),
    [
        ([], 0.0),
        ([Sent(100.5, 103.0, 2, True)], 0.0),
        # Its answer took long; it began early.
        ([Sent(100.5, 103.0, 1, True), Sent(101.5, 101.6, 2, True)], 0.5),
        ([Sent(102.5, 102.6, 1, True), Sent(100.5, 100.6, 1, True)], 2.5),
        # What is said to be old may be wrong, and what follows counts from then on; not what came before.
        ([Sent(102.5, 102.6, 1, False)], 0.0),
        ([Sent(100.5, 102.0, 1, False), Sent(102.5, 102.6, 1, True)], 0.5),
        ([Sent(102.5, 102.6, 1, True), Sent(102.7, 103.0, 2, False)], 2.5),
    ],
)
def test_a_dead_pod_is_judged_by_when_requests_began(requests: list[Sent], seconds: float) -> None:
    assert noticed_after(requests, 1, since=100.0) == pytest.approx(seconds)


def test_all_is_well_when_pods_are_even_after_a_rebalance() -> None:
    assert EVENED_OUT.broken_promises() == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"after": {0: 166, 1: 165, 2: 165, 3: 133}},
            "629 of 630 users have a pod after the rebalance",
        ),
        ({"newcomers_at_added": 0}, "nobody new was sent to the pod that was added"),
        (
            {"after": {0: 167, 1: 164, 2: 165, 3: 134}},
            "a pod has 167 users after the rebalance, not 166 at most",
        ),
        ({"planned": 120}, "119 of 120 users were moved"),
        ({"asked": 80}, "pods were asked for 80 users and handed 79 over"),
        ({"kept": 1}, "1 users were not let go"),
        ({"strayed": 2}, "2 users met a third pod during the rebalance"),
        ({"owned": 569}, "pods own 569 of 570 users"),
        ({"lost": 1}, "1 claims were lost in the rebalance"),
    ],
)
def test_each_arrival_that_went_wrong_is_told(change: dict[str, Any], complaint: str) -> None:
    assert replace(EVENED_OUT, **change).broken_promises() == [complaint]


def test_a_rebalance_for_which_no_pod_was_asked_shows_nothing() -> None:
    unasked = replace(EVENED_OUT, moved=119, handed_over=0, asked=0)
    assert unasked.broken_promises() == ["no pod was asked to hand a user over"]


def test_users_are_shown_as_bars() -> None:
    console = Console(width=80, no_color=True)
    with console.capture() as shown:
        console.print(EVENED_OUT.tables())
    lines = [line.split() for line in shown.get().splitlines()]
    assert ["0", "206", "#" * 20, "166", "#" * 16] in lines
    assert ["3", "15", "#", "134", "#" * 13] in lines
    text = " ".join(shown.get().split())
    assert "40 were away and moved, 79 were handed over by their pods, 0 lost." in text


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1.0), (25, 1.0), (26, 2.0), (50, 2.0), (99, 4.0), (100, 4.0)]
)
def test_percentiles_are_nearest_ranks(percent: float, value: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == value


def test_the_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 99) == 0.0


def test_the_tables_show_the_figures() -> None:
    console = Console(width=120, no_color=True)
    with console.capture() as shown:
        console.print(ALL_WELL.tables())
    text = " ".join(shown.get().split())
    assert "asyncio 2 0 (0 %) 0 1.000 500.0 500 0" in text
    assert "threads 2 1 (50 %) 1 0.100 2.0 2 0" in text
    assert "1 1 1 10 1" in text
    assert "Primary 127.0.0.1:7000 was killed in the middle." in text
    assert "Its replica took over after 0.8 s; it was back as a replica after 1.3 s." in text


def test_the_figures_are_there_for_programs_too() -> None:
    fields = json.loads(json.dumps(ALL_WELL.fields()))
    assert [gateway["router"] for gateway in fields["gateways"]] == ["asyncio", "threads"]
    assert [pod["pod"] for pod in fields["pods"]] == sorted(pod.pod for pod in ALL_WELL.pods)
    assert (fields["primary_killed"], fields["failover_seconds"]) == ("127.0.0.1:7000", 0.8)
    assert fields["whole_seconds"] == 1.3
    assert json.loads(json.dumps(ALL_MOVED.fields()))["pods_in_the_end"] == [3]
    assert json.loads(json.dumps(EVENED_OUT.fields()))["after"]["3"] == 134


# --- the play


class Silent:
    """An audience that remembers."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.done = 0

    def say(self, text: str) -> None:
        self.heard.append(text)

    def routed(self, requests: int) -> None:
        self.done = requests


@pytest.mark.slow
async def test_a_gateway_tells_nobody_of_a_link_that_dies_with_its_primary() -> None:
    async with LocalCluster(primaries=3, replicas_per_primary=1) as cluster, AsyncExitStack() as on:
        plain = await on.enter_async_context(AsyncRouter.from_url(cluster.url))
        gateway = await on.enter_async_context(AsyncRouter.from_url(cluster.url, config=SETTINGS))
        threads = on.enter_context(Router.from_url(cluster.url, config=SETTINGS))
        for pod in range(2):
            await on.enter_async_context(AsyncPodAgent(plain, NAMESPACE, "chat", pod))
        # Both have connections for writes; and the pods' states stay where they are.
        for number in range(20):
            await gateway.route(NAMESPACE, f"early-{number}", "chat")
            await asyncio.to_thread(threads.route, NAMESPACE, f"early-{number}", "chat")
        cluster.refresh()
        of_states = cluster.primary_of(state_key(NAMESPACE, "chat"))
        doomed = next(one for one in cluster.nodes if one.role == "primary" and one != of_states)
        users = [
            uid
            for uid in (f"user-{number}" for number in range(200))
            if any(slot_of(link_key(NAMESPACE, uid, "chat")) in part for part in doomed.slots)
        ][:4]

        # What the primary executes from now on, its replica never hears.
        replica = cluster.replica_of(doomed)
        cluster.pause(replica)
        doomed.commands(("CLIENT", "KILL", "TYPE", "replica"))
        answers = [
            *(asyncio.ensure_future(gateway.route(NAMESPACE, uid, "chat")) for uid in users[::2]),
            *(
                asyncio.ensure_future(asyncio.to_thread(threads.route, NAMESPACE, uid, "chat"))
                for uid in users[1::2]
            ),
        ]
        keys = [link_key(NAMESPACE, uid, "chat") for uid in users]
        async with asyncio.timeout(60):
            while doomed.commands(*(("EXISTS", key) for key in keys)) != [1] * len(keys):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        told, _ = await asyncio.wait(answers, timeout=0.3)
        assert not told

        cluster.kill(doomed)
        cluster.resume(replica)
        async with asyncio.timeout(60):
            while await asyncio.to_thread(cluster.primary_of, keys[0]) is doomed:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await asyncio.to_thread(cluster.restart, doomed)
        pods = {
            uid: (await answer).pod
            for uid, answer in zip([*users[::2], *users[1::2]], answers, strict=True)
        }
        linked = await plain.batch_get_linked_pod(NAMESPACE, users, "chat")
        assert {uid: pod for pod, uids in linked.items() for uid in uids} == pods


@pytest.mark.slow
async def test_a_primary_dies_and_nothing_gets_lost() -> None:
    audience = Silent()
    scenes = (
        Failover(Traffic(requests=3_000, users=1_000, rate=1_500.0)),
        Arrivals(),
        Departures(),
        Wipe(),
    )
    results = await direct(scenes, audience)
    assert {name: result.broken_promises() for name, result in results.items()} == {
        "failover": [],
        "arrivals": [],
        "departures": [],
        "wipe": [],
    }
    assert audience.done == 3_000
    assert any("kill -9: primary" in text for text in audience.heard)
    assert any("kill -9: pod 1" in text for text in audience.heard)
    assert any("pod 3 is added" in text for text in audience.heard)
    assert any(text.startswith("rebalance, at most 100 a second: ") for text in audience.heard)
    failover, arrivals, departures, wipe = (
        results[name] for name in ("failover", "arrivals", "departures", "wipe")
    )
    assert isinstance(failover, FailoverResult)
    assert isinstance(arrivals, ArrivalsResult)
    assert (arrivals.users, arrivals.claimed) == (GUESTS + NEWCOMERS, PLAYING)
    assert set(arrivals.before) == set(arrivals.after) == {0, 1, 2, 3}
    assert arrivals.before[3] == arrivals.newcomers_at_added
    assert isinstance(departures, DeparturesResult)
    assert min(departures.drained, departures.crashed) > 400
    assert isinstance(wipe, WipeResult)
    assert wipe.users == USERS
    assert all(pod.heartbeats > 0 for pod in failover.pods)


def children_of(pid: int) -> set[int]:
    """The processes below one, whichever of its threads started them: the servers too."""
    found = set()
    for thread in (Path("/proc") / str(pid) / "task").iterdir():
        for child in (thread / "children").read_text().split():
            found |= {int(child), *children_of(int(child))}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_nothing_behind(number: signal.Signals) -> None:
    demo = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sfroute.cli", "demo", stderr=subprocess.PIPE
    )
    assert demo.stderr is not None
    while (line := await demo.stderr.readline()) and b"route 20,000 requests" not in line:
        pass
    everybody = children_of(demo.pid)
    demo.send_signal(number)
    said = (await demo.stderr.read()).decode()
    assert await demo.wait() == 130
    assert len(everybody) >= 6 + 3 + 2
    assert said.splitlines()[-1] == "sfroute: interrupted; everything it started has ended"
    assert "Traceback" not in said
    assert [pid for pid in everybody if (Path("/proc") / str(pid)).exists()] == []


def test_an_installed_package_says_where_the_demo_is(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "sfroute", tmp_path / "sfroute", ignore=shutil.ignore_patterns("__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "-m", "sfroute.cli", "demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "examples/demo" in done.stderr
    assert "make demo" in done.stderr
