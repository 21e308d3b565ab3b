"""What metrics tell of pods, their agents and services, so that a lack of pods is seen before users are."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sfroute import AsyncPodAgent, AsyncRouter, NoRoutablePod, PlacementConfig, RouterConfig
from sfroute.embedded import LocalCluster
from sfroute.telemetry import AgentStats
from sfroute.telemetry.watched import MAX_SERVICES, OTHER

from .tap import Tap

SERVICE = "chat"
LABEL = ("sfroute.service", SERVICE)
LIVELY = RouterConfig(placement=PlacementConfig(pod_view_max_age=0.05, pod_timeout=3.0))


def pods(tap: Tap) -> dict[str, int]:
    """Status -> pods of the service, those statuses that some pod has."""
    return {
        dict(labels)["sfroute.pod.status"]: value
        for labels, value in tap.metrics()["sfroute.pods"].items()
        if LABEL in labels and value
    }


async def test_pods_by_status_and_those_that_may_take_users(
    make_router: Callable[..., Any], node: LocalCluster, tap: Tap, namespace: str
) -> None:
    router = make_router(node.url, config=tap.config())
    for pod, state in enumerate(("Ready", "Running", "Draining", "Stopped", "what is this")):
        await router.set_service_state(namespace, SERVICE, pod, state)
    await router.get_pods(namespace, SERVICE)
    assert pods(tap) == {"Running": 2, "Draining": 1, "Stopped": 1, "Unknown": 1}
    metrics = tap.metrics()
    assert metrics["sfroute.pods.routable"] == {(LABEL,): 2}
    assert metrics["sfroute.pods.emptying"] == {(LABEL,): 0}
    assert metrics["sfroute.pods.ejected"] == {(LABEL,): 0}
    assert metrics["sfroute.pods.failures"] == {(): 0}
    for _ in range(3):
        router.report_failure(namespace, SERVICE, 1)
    assert tap.metrics()["sfroute.pods.ejected"] == {(LABEL,): 1}
    assert tap.metrics()["sfroute.pods.failures"] == {(): 3}
    # States without stamps and loads: nothing is known of those.
    assert "sfroute.pods.heartbeat.age" not in metrics
    assert "sfroute.pods.load.skew" not in metrics
    assert "sfroute.pods.room" not in metrics
    await router.aclose()
    assert "sfroute.pods" not in tap.metrics()


@pytest.mark.slow
async def test_a_view_that_nobody_renews_says_nothing_of_now(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    """Users do not come at night; pods that are well must not look silent then."""
    async with AsyncRouter.from_url(node.url, config=tap.config(base=LIVELY)) as router:
        async with AsyncPodAgent(
            router, namespace, SERVICE, 1, heartbeat=0.1, lease=None, sigterm=False
        ):
            await router.get_pods(namespace, SERVICE, fresh=True)
            before = tap.metrics()
            await asyncio.sleep(2 * LIVELY.placement.pod_timeout)
            for name in ("sfroute.pods", "sfroute.pods.routable", "sfroute.pods.heartbeat.age"):
                assert tap.metrics()[name] == before[name]
        assert before["sfroute.pods.routable"] == {(LABEL,): 1}


@pytest.mark.slow
async def test_a_lack_of_pods_is_seen_before_a_user_meets_it(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config(base=LIVELY)) as router:
        began = time.monotonic()
        for pod, load in enumerate((1.0, 3.0)):
            agent = AsyncPodAgent(
                router,
                namespace,
                SERVICE,
                pod,
                heartbeat=30,
                lease=None,
                load=partial(float, load),
                sigterm=False,
            )
            await agent.start()
        await router.get_pods(namespace, SERVICE, fresh=True)
        metrics = tap.metrics()
        assert metrics["sfroute.pods.routable"] == {(LABEL,): 2}
        assert metrics["sfroute.pods.load"] == {(LABEL,): 4.0}
        assert metrics["sfroute.pods.load.skew"] == {(LABEL,): 1.5}
        (age,) = metrics["sfroute.pods.heartbeat.age"].values()
        # By the clock of the server, which counts milliseconds.
        assert 0 <= age < time.monotonic() - began + 0.1
        # They fall silent: nobody has asked anything yet.
        async with asyncio.timeout(30):
            while pods(tap) != {"dead": 2}:
                await router.get_pods(namespace, SERVICE, fresh=True)
        assert tap.metrics()["sfroute.pods.routable"] == {(LABEL,): 0}
        with pytest.raises(NoRoutablePod):
            await router.route(namespace, "u", SERVICE)


async def test_pods_that_take_nobody_new_carry_their_load_all_the_same(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    """Autoscalers go by the sum: it must not fall when pods fill up."""
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:

        async def say(pod: int, room: int = 1, status: str = "Running", **more: int) -> None:
            state = {"status": status, "load": 200, "max_claims": 200, "room": room, **more}
            await router.set_service_state(namespace, SERVICE, pod, json.dumps(state))

        async def load() -> float:
            await router.get_pods(namespace, SERVICE, fresh=True)
            (value,) = tap.metrics()["sfroute.pods.load"].values()
            return float(value)

        for pod in range(3):
            await say(pod)
        assert await load() == 600
        for pod in range(3):
            await say(pod, room=0)
            assert await load() == 600
        await say(0, status="Pending")
        await say(1, status="Draining")
        assert await load() == 600
        # These have no users any more.
        await say(0, status="Stopped")
        await say(1, at=1)
        assert await load() == 200


async def test_a_load_that_was_seen_long_ago_is_not_shown(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    """A gateway without requests does not look again; its old peak would keep autoscalers up."""
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        await router.set_service_state(namespace, SERVICE, 1, '{"status": "Running", "load": 9}')
        await router.get_pods(namespace, SERVICE)
        engine = router._inside.engine
        assert tap.metrics()["sfroute.pods.load"] == {(LABEL,): 9.0}
        engine.clock = lambda: time.monotonic() + 61
        assert "sfroute.pods.load" not in tap.metrics()


async def test_two_routers_that_see_the_same_pods_count_them_once(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with (
        AsyncRouter.from_url(node.url, config=tap.config()) as one,
        AsyncRouter.from_url(node.url, config=tap.config()) as other,
    ):
        await one.set_service_state(namespace, SERVICE, 1, "Running")
        await one.get_pods(namespace, SERVICE)
        await one.set_service_state(namespace, SERVICE, 1, "Stopped")
        await other.get_pods(namespace, SERVICE)
        assert pods(tap) == {"Stopped": 1}


async def test_what_an_agent_holds_and_has_sent(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        assert not any(name.startswith("sfroute.agent.") for name in tap.metrics())
        agent = AsyncPodAgent(
            router, namespace, SERVICE, 3, heartbeat=30, lease=None, sigterm=False
        )
        async with agent:
            for uid in ("ada", "grace"):
                await agent.accept(uid)
            assert tap.metrics()["sfroute.agent.claims"] == {(): 2}
            assert await agent.drain(0) == 2
            metrics = tap.metrics()
            assert metrics["sfroute.agent.drain.left"] == {(): 2}
            beats = metrics["sfroute.agent.heartbeats"]
            assert beats[(("sfroute.outcome", "failed"),)] == 0
            stored = beats[(("sfroute.outcome", "stored"),)]
            assert stored >= 1
        # What it has counted stays, what it held does not.
        metrics = tap.metrics()
        assert "sfroute.agent.claims" not in metrics
        assert metrics["sfroute.agent.heartbeats"][(("sfroute.outcome", "stored"),)] > stored
    beats = tap.metrics()["sfroute.agent.heartbeats"]
    assert beats[(("sfroute.outcome", "stored"),)] > stored


async def test_everything_an_agent_can_say_has_its_metric(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    class Holder:
        def _agent_stats(self) -> AgentStats:
            return AgentStats(
                claims=7,
                sessions=9,
                drain_left=3,
                lease_margin=1.5,
                lost={"moved": 2},
                confirmed=40,
                reasserted=5,
            )

    class Later(Holder):
        def _agent_stats(self) -> AgentStats:
            return AgentStats(claims=1, lease_margin=4.0)

    async with AsyncRouter.from_url(node.url, config=tap.config()) as router:
        for agent in (Holder(), Later()):
            router._telemetry.agents.add(agent)
        metrics = tap.metrics()
    assert metrics["sfroute.agent.claims"] == {(): 8}
    assert metrics["sfroute.agent.sessions"] == {(): 9}
    assert metrics["sfroute.agent.drain.left"] == {(): 3}
    assert metrics["sfroute.agent.lease.margin"] == {(): 1.5}
    assert metrics["sfroute.agent.claims.lost"] == {
        (("sfroute.reason", reason),): count
        for reason, count in {"moved": 2, "removed": 0, "superseded": 0}.items()
    }
    assert metrics["sfroute.agent.claims.confirmed"] == {(): 40}
    assert metrics["sfroute.agent.claims.reasserted"] == {(): 5}


@pytest.mark.parametrize("wanted", ["off", "on"])
async def test_durations_are_told_apart_by_service_if_that_is_wanted(
    wanted: str, node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with AsyncRouter.from_url(node.url, config=tap.config(service_label=wanted)) as router:
        for service in ("chat", "game", "game"):
            await router.set_workload_state(namespace, service, "busy")
    durations = tap.metrics()["sfroute.operation.duration"]
    by_service = {dict(labels).get("sfroute.service"): n for labels, n in durations.items()}
    assert by_service == ({None: 3} if wanted == "off" else {"chat": 1, "game": 2})


async def test_services_that_strangers_name_are_counted_together(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    more = 5
    async with AsyncRouter.from_url(node.url, config=tap.config(service_label="on")) as router:
        for number in range(MAX_SERVICES + more):
            await router.set_service_state(namespace, f"s{number}", 0, "Running")
            await router.get_pods(namespace, f"s{number}")
        metrics = tap.metrics()
    told_apart = {dict(labels)["sfroute.service"] for labels in metrics["sfroute.pods"]}
    assert len(told_apart) == MAX_SERVICES + 1
    assert metrics["sfroute.pods.routable"][(("sfroute.service", OTHER),)] == more
    # The worker records them; closing the router has waited for it.
    durations = tap.metrics()["sfroute.operation.duration"]
    assert len(durations) <= 2 * (MAX_SERVICES + 1)


async def test_what_a_pod_does_for_a_user_is_in_the_users_trace(
    node: LocalCluster, tap: Tap, namespace: str
) -> None:
    async with (
        AsyncRouter.from_url(node.url, config=tap.config()) as router,
        AsyncPodAgent(router, namespace, SERVICE, 3, heartbeat=5, sigterm=False) as agent,
    ):
        with tap.tracer.start_as_current_span("connect"):
            claim = await agent.accept("ada")
            await agent.release(claim)
        with tap.tracer.start_as_current_span("preStop"):
            await agent.drain(0)
    accept, release = tap.children(tap.one("connect"))
    assert [accept.name, release.name] == ["sfroute accept", "sfroute release"]
    for call in (accept, release):
        assert dict(call.attributes or {}) == {
            "sfroute.namespace": namespace,
            "sfroute.service": SERVICE,
        }
        assert {span.kind.name for span in tap.children(call)} == {"CLIENT"}
    (drain,) = tap.children(tap.one("preStop"))
    assert drain.name == "sfroute drain"
    durations = tap.metrics()["sfroute.operation.duration"]
    assert durations[(("sfroute.operation", "accept"),)] == 1
