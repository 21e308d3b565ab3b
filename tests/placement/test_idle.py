"""Idle links as users have them: of pods with small numbers, with writes whose answers are lost, of silent pods."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import redis.cluster
from support.program import LinkProgram, StateProgram, make_idle

from sfroute import (
    AsyncRouter,
    OutcomeUnknown,
    PlacementConfig,
    PruneProgress,
    RetryConfig,
    RouterConfig,
)
from sfroute._contract.keys import SLOTS, link_key, rebalance_key, state_key
from sfroute.embedded import LocalCluster, Node

from .conftest import ONE_SERVER
from .test_evacuation import count_links, write_links
from .test_listing import every

Raw = redis.cluster.RedisCluster
UIDS = [f"u{number}" for number in range(40)]


def idle_links(raw: Raw, namespace: str, pod: int) -> None:
    write_links(raw, namespace, "chat", [(uid, pod) for uid in UIDS])
    for uid in UIDS:
        make_idle(raw, link_key(namespace, uid, "chat"))


class TestOfASmallPodId:
    """Redis 7 keeps one object, and so one idle time, for all links to such a pod."""

    async def test_prune_removes_all(self, cluster: LocalCluster, raw: Raw, namespace: str) -> None:
        idle_links(raw, namespace, 3)
        async with AsyncRouter.from_url(cluster.url) as router:
            last = (await every(router.prune(namespace, "chat", idle=1800.0)))[-1]
        assert last == PruneProgress(40, 40, removed=40, done=True)
        assert count_links(raw, namespace, "chat", UIDS).total() == 0

    async def test_so_does_an_evacuation(
        self, cluster: LocalCluster, raw: Raw, namespace: str
    ) -> None:
        StateProgram(raw, namespace, "chat").set(1, "Running")
        idle_links(raw, namespace, 5)
        async with AsyncRouter.from_url(cluster.url) as router:
            steps = router.evacuate(namespace, "chat", 5, idle=1800.0, remove_idle=True)
            last = (await every(steps))[-1]
        assert (last.removed, last.moved) == (40, 0)
        assert count_links(raw, namespace, "chat", UIDS).total() == 0


@ONE_SERVER
async def test_the_claims_of_pods_that_are_silent_together_hold(
    cluster: LocalCluster, raw: Raw, namespace: str
) -> None:
    """It is more likely that they cannot reach the store."""
    ada = LinkProgram(raw, namespace, "ada", "chat")
    ada.claim(1, "life")
    states = StateProgram(raw, namespace, "chat")
    for pod in range(2):
        state = {"status": "Running", "by": "life", "at": states.server_ms() - 60_000}
        raw.hset(states.key, str(pod), json.dumps(state))
    make_idle(raw, ada.link)
    for placement, removed in (
        (PlacementConfig(all_silent="keep"), 0),
        (PlacementConfig(all_silent="move"), 1),
    ):
        config = RouterConfig(placement=placement)
        async with AsyncRouter.from_url(cluster.url, config=config) as router:
            last = (await every(router.prune(namespace, "chat", idle=1800.0)))[-1]
        assert (last.claimed, last.removed) == (1 - removed, removed)


@ONE_SERVER
class TestALostReply:
    """It is of one link: the others are treated, and the outcome says that some were not."""

    @pytest.fixture
    def mute(self, cluster: LocalCluster) -> Iterator[Node]:
        """The primary that is gone through first. ``stop_writes`` makes it answer none."""
        primaries = [cluster.primary_of(slot) for slot in range(0, SLOTS, 100)]
        node = min(primaries, key=lambda node: node.address)
        yield node
        cluster.execute(node, "CLIENT", "UNPAUSE")

    @pytest.fixture
    def service(self, cluster: LocalCluster, namespace: str, mute: Node) -> str:
        """One that has links there, and not what the pods are told by."""
        return next(
            name
            for name in (f"chat{number}" for number in range(1000))
            if mute.address
            not in {
                cluster.primary_of(key(namespace, name)).address
                for key in (state_key, rebalance_key)
            }
        )

    @staticmethod
    def stop_writes(cluster: LocalCluster, node: Node) -> None:
        cluster.execute(node, "CLIENT", "PAUSE", "600000", "WRITE")

    @pytest.mark.slow
    async def test_prune_goes_on(
        self, cluster: LocalCluster, raw: Raw, namespace: str, mute: Node, service: str
    ) -> None:
        write_links(raw, namespace, service, [(uid, 3) for uid in UIDS])
        keys = [link_key(namespace, uid, service) for uid in UIDS]
        for key in keys:
            make_idle(raw, key)
        unanswered = [cluster.primary_of(key).address for key in keys].count(mute.address)
        config = RouterConfig(retry=RetryConfig(deadline=3.0))
        async with AsyncRouter.from_url(cluster.url, config=config) as router:
            self.stop_writes(cluster, mute)
            last = (await every(router.prune(namespace, service, idle=1800.0)))[-1]
        assert (last.removed, last.failed) == (40 - unanswered, unanswered)

    @pytest.mark.slow
    async def test_rebalance_goes_on_and_raises_at_the_end(
        self, cluster: LocalCluster, raw: Raw, namespace: str, mute: Node, service: str
    ) -> None:
        states = StateProgram(raw, namespace, service)
        for pod in range(2):
            states.set(pod, '{"status":"Running"}', 1)
        uids = [f"u{number}" for number in range(120)]
        # The other primaries have more than the 30 who are to be moved.
        write_links(raw, namespace, service, [(uid, int(n >= 90)) for n, uid in enumerate(uids)])
        config = RouterConfig(
            retry=RetryConfig(deadline=3.0), placement=PlacementConfig(pod_timeout=120.0)
        )
        async with AsyncRouter.from_url(cluster.url, config=config) as router:
            self.stop_writes(cluster, mute)
            with pytest.raises(OutcomeUnknown):
                await every(router.rebalance(namespace, service, max_skew=1.0))
        assert count_links(raw, namespace, service, uids) == {0: 60, 1: 60}
