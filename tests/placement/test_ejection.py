"""``report_failure()``: whom a gateway places on a pod that could not be reached, through both fronts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import redis.cluster
from support.program import LinkProgram, StateProgram

from sfroute import AsyncRouter, LeastLoaded, NoRoutablePod, Require, RouterConfig
from sfroute._pods.failures import UIDS_PER_TRIAL
from sfroute.embedded import LocalCluster

Raw = redis.cluster.RedisCluster
FAIR = {"status": "Running", "load": 5.0}
EMPTY = {"status": "Running", "load": 0.0}
"""As of a pod whose heart beats and whose port is dead: nobody ever arrives."""


@pytest.fixture
def states(raw: Raw, namespace: str) -> StateProgram:
    """Four pods; number 2 seems to be empty."""
    states = StateProgram(raw, namespace, "chat")
    for pod in range(4):
        states.set(pod, json.dumps(EMPTY if pod == 2 else FAIR))
    return states


async def placed(router: Any, namespace: str, uids: range, **terms: Any) -> list[int]:
    links = [await router.route(namespace, f"u{one}", "chat", **terms) for one in uids]
    return [link.pod for link in links]


async def until_it_is_over(router: Any) -> None:
    """The pause of an ejection is timed by the router's clock."""
    async with asyncio.timeout(20):
        while router.stats().ejected:  # noqa: ASYNC110 - nothing happens then
            await asyncio.sleep(0.02)


async def test_new_users_avoid_a_reported_pod_at_once(
    router: Any, states: StateProgram, namespace: str
) -> None:
    assert await placed(router, namespace, range(1), policy=LeastLoaded()) == [2]
    router.report_failure(namespace, "chat", 2)
    assert 2 not in await placed(router, namespace, range(1, 25), policy=LeastLoaded())
    stats = router.stats()
    assert stats.failures_reported == 1
    assert stats.ejected == {(namespace, "chat"): (2,)}


async def test_a_link_stays_and_one_that_is_excluded_goes_elsewhere(
    router: Any, raw: Raw, states: StateProgram, namespace: str
) -> None:
    for uid, pod in (("ada", 2), ("bob", 0), ("eve", 2)):
        LinkProgram(raw, namespace, uid, "chat").set_link(pod)
    router.report_failure(namespace, "chat", 2)
    assert (await router.route(namespace, "ada", "chat", fresh=True)).pod == 2
    link = await router.route(namespace, "bob", "chat", exclude=[0], policy=LeastLoaded())
    assert link.pod in {1, 3}
    # A room stays together: whoever is placed beside a uid comes to its pod.
    assert (await router.route(namespace, "friend", "chat", beside="eve")).pod == 2


async def test_rather_a_reported_pod_than_none(
    router: Any, states: StateProgram, namespace: str
) -> None:
    for pod in range(4):
        states.set(pod, json.dumps({**FAIR, "labels": {"zone": "ab"[pod % 2]}}))
    router.report_failure(namespace, "chat", 1)
    router.report_failure(namespace, "chat", 3)
    assert set(await placed(router, namespace, range(20))) == {0, 2}
    # Both pods of the zone are reported.
    assert (await placed(router, namespace, range(20, 21), policy=Require("zone", "b")))[0] in {
        1,
        3,
    }
    with pytest.raises(NoRoutablePod):
        await router.route(namespace, "ada", "chat", policy=Require("zone", "c"))
    # Everything that may take the uid at all is reported.
    assert (await router.route(namespace, "bob", "chat", exclude=[0, 2, 3])).pod == 1


async def test_another_gateway_goes_by_its_own_experience(
    make_router: Callable[..., Any],
    cluster: LocalCluster,
    states: StateProgram,
    namespace: str,
) -> None:
    one, other = (make_router(cluster.url) for _ in range(2))
    await one.open()
    one.report_failure(namespace, "chat", 2)
    assert (await placed(one, namespace, range(1), policy=LeastLoaded())) != [2]
    assert (await placed(other, namespace, range(1, 2), policy=LeastLoaded())) == [2]
    # About one uid they agree, whatever they think of its pod.
    assert (await one.route(namespace, "u1", "chat")).pod == 2
    for router in (one, other):
        await router.aclose()


async def test_after_a_pause_one_user_tries_it(
    router: Any, states: StateProgram, namespace: str
) -> None:
    await placed(router, namespace, range(1))
    router.report_failure(namespace, "chat", 2)
    ejected = asyncio.get_running_loop().time()
    before = await placed(router, namespace, range(1, UIDS_PER_TRIAL + 1), policy=LeastLoaded())
    assert 2 not in before
    await until_it_is_over(router)
    assert asyncio.get_running_loop().time() - ejected > 0.9
    uids = range(100, 120)
    links = await asyncio.gather(
        *(router.route(namespace, f"u{uid}", "chat", policy=LeastLoaded()) for uid in uids)
    )
    assert [link.pod for link in links].count(2) == 1
    router.report_failure(namespace, "chat", 2)
    assert router.stats().ejected == {(namespace, "chat"): (2,)}


async def test_a_user_who_is_linked_already_is_no_trial(
    router: Any, raw: Raw, states: StateProgram, namespace: str
) -> None:
    """A temporary link is extended by the script that also places uids."""
    router.report_failure(namespace, "chat", 2)
    await placed(router, namespace, range(UIDS_PER_TRIAL + 1), policy=LeastLoaded())
    await until_it_is_over(router)
    ada = LinkProgram(raw, namespace, "ada", "chat")
    ada.set_link(0, 20)
    for _ in range(3):
        link = await router.route(
            namespace, "ada", "chat", persist_seconds=1000, policy=LeastLoaded(), fresh=True
        )
        assert link.pod == 0
        ada.set_link(0, 20)
    assert await placed(router, namespace, range(100, 101), policy=LeastLoaded()) == [2]


async def test_a_new_life_of_the_pod_starts_afresh(
    router: Any, states: StateProgram, namespace: str
) -> None:
    states.set(2, json.dumps({**EMPTY, "by": "a"}))
    await router.get_pods(namespace, "chat", fresh=True)
    router.report_failure(namespace, "chat", 2)
    await router.get_pods(namespace, "chat", fresh=True)
    assert router.stats().ejected
    states.set(2, json.dumps({**EMPTY, "by": "b"}))
    await router.get_pods(namespace, "chat", fresh=True)
    assert not router.stats().ejected
    assert await placed(router, namespace, range(1), policy=LeastLoaded()) == [2]


async def test_an_ejection_is_logged(
    cluster: LocalCluster, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = RouterConfig(logger=logging.getLogger("gateway"))
    async with AsyncRouter.from_url(cluster.url, config=config) as router:
        with caplog.at_level(logging.INFO, "gateway.pods"):
            for _ in range(3):
                router.report_failure(namespace, "chat", 7)
    (record,) = [one for one in caplog.records if one.name == "gateway.pods"]
    said = {name: getattr(record, f"sfroute.{name}") for name in ("namespace", "service", "pod")}
    assert said == {"namespace": namespace, "service": "chat", "pod": 7}


async def test_a_router_that_is_not_open_has_nobody_to_tell(cluster: LocalCluster) -> None:
    router = AsyncRouter.from_url(cluster.url)
    router.report_failure("ns", "chat", 7)
    assert router.stats().failures_reported == 1
    assert not router.stats().ejected
