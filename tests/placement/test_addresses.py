"""What pods say of themselves, from the agent to the gateway: addresses, labels, and policies that go by them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis.cluster
from support.program import LinkProgram, StateProgram

from sfroute import (
    InvalidArgument,
    LeastLoaded,
    NewestVersion,
    NoRoutablePod,
    PlacementConfig,
    Pod,
    Prefer,
    Require,
    RouterConfig,
)

from .conftest import ONE_SERVER
from .test_agent import agent_of, speaker, state

__all__ = ["speaker"]

pytestmark = ONE_SERVER

Raw = redis.cluster.RedisCluster
ADDRESS = "10.0.3.7:8080"


class TestAnAgent:
    async def test_its_address_and_labels_reach_gateways(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        labels = {"version": "2.1", "zone": "a"}
        async with agent_of(speaker, namespace, "chat", 3, address=ADDRESS, labels=labels):
            labels["zone"] = "changed later"
            reported = state(states)
            assert (reported["address"], reported["labels"]["zone"]) == (ADDRESS, "a")
            pod = (await speaker.get_pods(namespace, "chat", fresh=True))[3]
            assert (pod.address, pod.labels) == (ADDRESS, {"version": "2.1", "zone": "a"})
            assert await speaker.pod_address(namespace, "chat", 3) == ADDRESS
            assert await speaker.pod_address(namespace, "chat", 4) is None

    @pytest.mark.slow
    async def test_every_answer_of_route_has_the_address(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3, address=ADDRESS):
            found = [await speaker.route(namespace, "ada", "chat") for _ in range(3)]
            found.append(await speaker.route(namespace, "ada", "chat", fresh=True))
            states.set(5, "Running")
            found.append(await speaker.route(namespace, "ada", "chat", exclude=[5]))
        assert [(link.source, link.address) for link in found] == [
            ("placed", ADDRESS),
            ("store", ADDRESS),
            ("cache", ADDRESS),
            ("store", ADDRESS),
            ("cache", ADDRESS),
        ]

    @pytest.mark.slow
    async def test_a_restart_under_another_address_is_told_at_once(
        self, speaker: Any, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3, address=ADDRESS):
            await speaker.route(namespace, "ada", "chat")
        async with agent_of(speaker, namespace, "chat", 3, address="10.0.3.8:8080"):
            assert await speaker.pod_address(namespace, "chat", 3, fresh=True) == "10.0.3.8:8080"
            assert (await speaker.route(namespace, "ada", "chat")).address == "10.0.3.8:8080"

    async def test_without_them_the_state_has_no_such_fields(
        self, speaker: Any, states: StateProgram, namespace: str
    ) -> None:
        async with agent_of(speaker, namespace, "chat", 3, labels={}):
            assert not {"address", "labels"} & state(states).keys()
            assert (await speaker.route(namespace, "ada", "chat")).address is None

    @pytest.mark.parametrize(
        "options",
        [
            *({"address": bad} for bad in ["", 7, b"a:1", "a b", "a\n", "a\x7f", "x" * 256]),
            *({"address": bad} for bad in ["\u00e9" * 128, "a\ud800", "a\u2028", ["a:1"]]),
            *({"labels": bad} for bad in ["zone", [("zone", "a")], {1: "a"}, {"zone": 1}]),
            *({"labels": bad} for bad in [{"": "a"}, {"z\n": "a"}, {"zone": "a\x1b[31m"}]),
            *({"labels": bad} for bad in [{"z" * 65: "a"}, {"zone": "a" * 129}, {"z": "\ud800"}]),
            {"labels": {f"l{number}": "" for number in range(17)}},
        ],
        ids=lambda options: repr(options)[:30],
    )
    async def test_bad_ones_are_refused(
        self, speaker: Any, namespace: str, options: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidArgument, match=next(iter(options))):
            agent_of(speaker, namespace, "chat", 3, **options)


class TestWhatStrangersWrite:
    """A state is text that any program with the right to may write."""

    async def pod(self, router: Any, raw: Raw, namespace: str, **fields: Any) -> Pod:
        written = json.dumps({"status": "Running", **fields})
        raw.hset(f"sf:{{{namespace}:state:chat}}", "3", written)
        found: Pod = (await router.get_pods(namespace, "chat", fresh=True))[3]
        return found

    @pytest.mark.parametrize(
        "address", ["", "a b", "a\x1b[2J", "x" * 256, "x" * 100_000, 7, ["a:1"], {"a": 1}, None]
    )
    async def test_an_address_that_breaks_its_rule_is_none(
        self, router: Any, raw: Raw, namespace: str, address: Any
    ) -> None:
        pod = await self.pod(router, raw, namespace, address=address)
        assert pod.address is None
        assert "address" not in pod.extra
        assert (await router.route(namespace, "ada", "chat")).address is None

    async def test_labels_are_bounded(self, router: Any, raw: Raw, namespace: str) -> None:
        good = {f"l{number:02}": "x" * 128 for number in range(20)}
        bad = {"": "a", "n": 1, "o": {}, "e\x1b": "a", "long": "x" * 129, "y" * 65: "a"}
        pod = await self.pod(router, raw, namespace, labels={**bad, **good})
        assert pod.labels == {f"l{number:02}": "x" * 128 for number in range(16)}

    @pytest.mark.parametrize("labels", [["zone"], "zone", 7, None, {"zone": ["a"]}])
    async def test_what_is_no_label_is_none(
        self, router: Any, raw: Raw, namespace: str, labels: Any
    ) -> None:
        assert (await self.pod(router, raw, namespace, labels=labels)).labels == {}
        link = await router.route(namespace, "ada", "chat", policy=Prefer("zone", "a"))
        assert link.pod == 3

    @pytest.mark.parametrize("number", [-1, 1.5, True, "4", [4], None])
    async def test_a_room_that_is_no_number_of_users_is_no_limit(
        self, router: Any, raw: Raw, namespace: str, number: Any
    ) -> None:
        pod = await self.pod(router, raw, namespace, max_claims=number, room=number)
        assert (pod.max_claims, pod.room) == (None, None)


class TestPolicies:
    """By labels, on a real store: what the policies promise in detail is in tests/test_preferences.py."""

    def report(
        self, raw: Raw, namespace: str, pod: int, status: str = "Running", **labels: str
    ) -> None:
        written = json.dumps({"status": status, "labels": labels, "load": pod})
        raw.hset(f"sf:{{{namespace}:state:chat}}", str(pod), written)

    async def test_prefer_spills_and_require_does_not(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        self.report(raw, namespace, 1, "Draining", zone="a")
        self.report(raw, namespace, 2, zone="b")
        near, only = Prefer("zone", "a"), Require("zone", "a")
        assert (await router.route(namespace, "ada", "chat", policy=near)).pod == 2
        with pytest.raises(NoRoutablePod, match="pod 2: not proposed by the policy"):
            await router.route(namespace, "bob", "chat", policy=only)
        self.report(raw, namespace, 1, zone="a")
        assert (await router.route(namespace, "bob", "chat", policy=only, fresh=True)).pod == 1
        assert (await router.route(namespace, "eve", "chat", policy=near)).pod == 1

    async def test_in_a_rolling_update_with_spare_pods_everybody_moves_once(
        self, make_router: Any, cluster: Any, raw: Raw, namespace: str
    ) -> None:
        """As a Deployment does it: a new pod comes, an old one drains and goes, one after the other."""
        config = RouterConfig(placement=PlacementConfig(pod_view_max_age=0.01))
        router = make_router(cluster.url, config=config)
        policy = NewestVersion(then=LeastLoaded())
        uids = [f"u{number}" for number in range(60)]
        for pod in range(3):
            self.report(raw, namespace, pod, version="1.9")
        moves = dict.fromkeys(uids, 0)
        where = {uid: (await router.route(namespace, uid, "chat")).pod for uid in uids}
        assert set(where.values()) == {0, 1, 2}
        for old in range(3):
            self.report(raw, namespace, 10 + old, version="1.10")
            self.report(raw, namespace, old, "Stopped", version="1.9")
            for uid in uids:
                link = await router.route(namespace, uid, "chat", policy=policy, fresh=True)
                moves[uid] += link.pod != where[uid]
                where[uid] = link.pod
        assert set(moves.values()) == {1}
        await router.aclose()


class TestBeside:
    async def test_uids_are_placed_where_the_room_is(
        self, router: Any, states: StateProgram, namespace: str
    ) -> None:
        for pod in range(8):
            states.set(pod, "Running")
        for room in ("red", "blue"):
            pods = {
                (await router.route(namespace, f"{room}-{number}", "chat", beside=room)).pod
                for number in range(20)
            }
            assert pods == {await router.get_linked_pod(namespace, room, "chat")}

    async def test_who_has_a_pod_stays_there(
        self, router: Any, states: StateProgram, uid: LinkProgram, namespace: str
    ) -> None:
        states.set(1, "Running")
        states.set(2, "Running")
        uid.set_link(1)
        await router.set_linked_pod(namespace, "room", "chat", 2)
        assert (await router.route(namespace, "ada", "chat", beside="room")).pod == 1
        assert (await router.route(namespace, "bob", "chat", beside="room")).pod == 2

    async def test_a_pod_that_takes_nobody_is_passed_over_and_the_room_stays(
        self, router: Any, states: StateProgram, namespace: str
    ) -> None:
        states.set(1, "Running")
        states.set(2, "Draining")
        await router.set_linked_pod(namespace, "room", "chat", 2)
        assert (await router.route(namespace, "ada", "chat", beside="room")).pod == 1
        link = await router.route(namespace, "bob", "chat", beside="room", exclude=[2])
        assert link.pod == 1
        assert await router.get_linked_pod(namespace, "room", "chat", fresh=True) == 2

    async def test_a_room_whose_pod_is_gone_moves_first(
        self, router: Any, states: StateProgram, namespace: str
    ) -> None:
        states.set(1, "Running")
        states.set(2, "Stopped")
        await router.set_linked_pod(namespace, "room", "chat", 2)
        await router.set_linked_pod(namespace, "ada", "chat", 2)
        assert (await router.route(namespace, "ada", "chat", beside="room")).pod == 1
        assert await router.get_linked_pod(namespace, "room", "chat") == 1
