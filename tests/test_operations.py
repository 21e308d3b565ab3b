"""Every operation, on real clusters, through both fronts: what it returns, and what it leaves in the store.

``ada`` is the link of uid ada to service chat as a program in another language sees it: it writes by plain commands
and scripts of its own, and looks at keys, types and times to live.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
import redis.cluster
from support.observe import commands, reads
from support.program import Client, LinkProgram, StateProgram, read_keys, unchanged

from sfroute import PERSIST_FOREVER, LeastLoaded, Link, NoRoutablePod, Pod, TrySetResult
from sfroute._contract.keys import MAX_POD, link_key, link_prefix, slot_of, state_key, workload_key
from sfroute.embedded import LocalCluster

Raw = redis.cluster.RedisCluster
ADA = ("ada", "chat")


@pytest.fixture
def ada(raw: Raw, namespace: str) -> LinkProgram:
    return LinkProgram(raw, namespace, *ADA)


def kept(link: LinkProgram) -> tuple[str | None, str | None]:
    """The pod in the link's key and in the uid's hash."""
    return link.pod(), link.listed()


def about(seconds: int) -> range:
    """Times to live of a link that was given ``seconds`` a moment ago."""
    return range(seconds - 5, seconds + 1)


class TestSetServiceState:
    async def test_it_writes_the_string_as_given(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        state = 'Running "ü" {}\n\x00 '
        assert await router.set_service_state(namespace, "chat", 0, state) is None
        assert raw.hgetall(state_key(namespace, "chat")) == {"0": state}

    async def test_it_replaces_that_pods_state_only(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        for pod, state in [(0, "Running"), (1, "Running"), (0, "")]:
            await router.set_service_state(namespace, "chat", pod, state)
        assert raw.hgetall(state_key(namespace, "chat")) == {"0": "", "1": "Running"}

    async def test_it_sets_no_expiry(self, router: Any, raw: Raw, namespace: str) -> None:
        await router.set_service_state(namespace, "chat", MAX_POD, "Running")
        assert raw.ttl(state_key(namespace, "chat")) == -1


class TestGetServiceState:
    async def test_of_an_unknown_service_it_is_empty(self, router: Any, namespace: str) -> None:
        assert await router.get_service_state(namespace, "chat") == {}

    async def test_it_gives_every_pods_state(self, router: Any, namespace: str) -> None:
        await router.set_service_state(namespace, "chat", 0, "Running")
        await router.set_service_state(namespace, "chat", 17, '{"status": "Draining"}')
        assert await router.get_service_state(namespace, "chat") == {
            0: "Running",
            17: '{"status": "Draining"}',
        }

    async def test_fields_that_are_no_pod_ids_are_skipped(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        fields: Any = {
            "0": "Running",
            "version": "2",
            "-1": "x",
            "": "x",
            "1.5": "x",
            str(2**63): "x",
        }
        raw.hset(state_key(namespace, "chat"), mapping=fields)
        assert await router.get_service_state(namespace, "chat") == {0: "Running"}

    async def test_it_sees_what_another_program_wrote_at_once(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        for state in ("Running", "Stopped"):
            raw.hset(state_key(namespace, "chat"), "0", state)
            assert await router.get_service_state(namespace, "chat") == {0: state}


class TestWorkloadState:
    async def test_set_workload_state_writes_the_string_as_given(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        assert await router.set_workload_state(namespace, "chat", "grün\n") is None
        assert raw.get(workload_key(namespace, "chat")) == "grün\n"
        assert raw.ttl(workload_key(namespace, "chat")) == -1

    async def test_get_workload_state_gives_it_back(self, router: Any, namespace: str) -> None:
        await router.set_workload_state(namespace, "chat", "scaling")
        assert await router.get_workload_state(namespace, "chat") == "scaling"

    async def test_an_empty_workload_state_is_a_state(self, router: Any, namespace: str) -> None:
        await router.set_workload_state(namespace, "chat", "")
        assert await router.get_workload_state(namespace, "chat") == ""
        assert await router.get_workload_state_batch(namespace, ["chat"]) == {"chat": ""}

    async def test_get_workload_state_of_an_unknown_service_is_none(
        self, router: Any, namespace: str
    ) -> None:
        assert await router.get_workload_state(namespace, "chat") is None


class TestGetWorkloadStateBatch:
    async def test_services_without_a_state_are_absent(self, router: Any, namespace: str) -> None:
        await router.set_workload_state(namespace, "chat", "up")
        assert await router.get_workload_state_batch(namespace, ["game", "chat"]) == {"chat": "up"}

    async def test_the_order_is_that_asked_for_and_duplicates_are_allowed(
        self, router: Any, namespace: str
    ) -> None:
        for service in ("a", "b", "c"):
            await router.set_workload_state(namespace, service, service.upper())
        found = await router.get_workload_state_batch(namespace, ("c", "a", "c", "b", "a"))
        assert list(found.items()) == [("c", "C"), ("a", "A"), ("b", "B")]

    async def test_an_empty_list_costs_nothing(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        before = commands(cluster)
        assert await router.get_workload_state_batch(namespace, []) == {}
        assert commands(cluster) == before

    async def test_thousands_of_services_over_all_slots_are_a_few_round_trips(
        self, router: Any, raw: Raw, cluster: LocalCluster, namespace: str
    ) -> None:
        services = [f"service-{number}" for number in range(3000)]
        write_all(raw, {workload_key(namespace, name): name.upper() for name in services[::2]})
        before = reads(cluster)
        found = await router.get_workload_state_batch(namespace, services)
        assert reads(cluster) - before < 300
        assert list(found.items()) == [(name, name.upper()) for name in services[::2]]


class TestSetLinkedPod:
    async def test_the_first_link_has_no_previous_pod(self, router: Any, namespace: str) -> None:
        assert await router.set_linked_pod(namespace, *ADA, 3) is None

    async def test_a_persistent_link_is_in_both_keys_without_expiry(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 3)
        assert kept(ada) == ("3", "3")
        assert (ada.ttl(), ada.client.ttl(ada.hash)) == (-1, -1)
        assert (ada.client.type(ada.link), ada.client.type(ada.hash)) == ("string", "hash")

    async def test_a_temporary_link_expires_and_is_not_in_the_hash(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 3, 100)
        assert kept(ada) == ("3", None)
        assert ada.ttl() in about(100)

    async def test_the_last_writer_wins_and_learns_the_previous_pod(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 3)
        assert await router.set_linked_pod(namespace, *ADA, 4, 100) == 3
        assert await router.set_linked_pod(namespace, *ADA, 5) == 4
        assert kept(ada) == ("5", "5")

    async def test_pod_0_is_a_previous_pod_like_any_other(
        self, router: Any, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0)
        assert await router.set_linked_pod(namespace, *ADA, 0) == 0

    async def test_a_temporary_link_leaves_the_hash(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, "ada", "game", 1)
        await router.set_linked_pod(namespace, *ADA, 3)
        await router.set_linked_pod(namespace, *ADA, 3, 100)
        assert ada.client.hgetall(ada.hash) == {"game": "1"}

    async def test_a_persistent_link_over_a_temporary_one_never_expires(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 3, 100)
        await router.set_linked_pod(namespace, *ADA, 3)
        assert (ada.ttl(), *kept(ada)) == (-1, "3", "3")

    async def test_the_largest_pod_is_kept_to_the_last_digit(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, MAX_POD)
        assert kept(ada) == (str(MAX_POD), str(MAX_POD))
        assert await router.get_linked_pod(namespace, *ADA) == MAX_POD

    async def test_nothing_else_stays_but_a_record_that_expires(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 3)
        others = {
            key: ttl
            for key, (_, ttl) in read_keys(ada.client, namespace).items()
            if key not in {ada.link, ada.hash}
        }
        assert len(others) == 1
        ((key, ttl),) = others.items()
        assert key.startswith(f"sf:op:{{{namespace}:lk:ada}}:")
        assert 0 < ttl <= 60_000


class TestTrySetLinkedPod:
    @pytest.mark.parametrize("persist_seconds", [PERSIST_FOREVER, 100])
    async def test_it_is_refused_by_a_different_pods_persistent_link(
        self, router: Any, ada: LinkProgram, namespace: str, persist_seconds: int
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0)
        with unchanged(ada.client, ada.link, ada.hash):
            result = await router.try_set_linked_pod(namespace, *ADA, 1, persist_seconds)
        assert result == TrySetResult(success=False, pod=0)

    async def test_it_links_a_uid_without_a_link(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        assert await router.try_set_linked_pod(namespace, *ADA, 0) == TrySetResult(True, 0)
        assert (ada.ttl(), *kept(ada)) == (-1, "0", "0")

    async def test_it_takes_over_a_different_pods_temporary_link(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0, 100)
        assert await router.try_set_linked_pod(namespace, *ADA, 1, 200) == (True, 1)
        assert kept(ada) == ("1", None)
        assert ada.ttl() in about(200)

    async def test_the_owner_of_a_persistent_link_may_make_it_temporary(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 1)
        assert await router.try_set_linked_pod(namespace, *ADA, 1, 100) == (True, 1)
        assert kept(ada) == ("1", None)

    async def test_the_owner_may_set_its_own_link_again(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 1)
        assert await router.try_set_linked_pod(namespace, *ADA, 1) == (True, 1)
        assert (ada.ttl(), *kept(ada)) == (-1, "1", "1")

    async def test_of_many_at_once_one_wins_and_all_learn_who(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        results = await asyncio.gather(
            *(router.try_set_linked_pod(namespace, *ADA, pod) for pod in range(50))
        )
        (winner,) = (pod for pod, result in enumerate(results) if result.success)
        assert {result.pod for result in results} == {winner}
        assert kept(ada) == (str(winner), str(winner))


class TestSetLinkedPodIfAbsent:
    @pytest.mark.parametrize("refresh", [False, True])
    async def test_an_absent_link_is_made(
        self, router: Any, ada: LinkProgram, namespace: str, refresh: bool
    ) -> None:
        owner = await router.set_linked_pod_if_absent(namespace, *ADA, 0, refresh=refresh)
        assert owner == 0
        assert (ada.ttl(), *kept(ada)) == (-1, "0", "0")

    async def test_an_absent_link_can_be_made_temporary(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        assert await router.set_linked_pod_if_absent(namespace, *ADA, 2, 100) == 2
        assert kept(ada) == ("2", None)
        assert ada.ttl() in about(100)

    @pytest.mark.parametrize("held_for", [PERSIST_FOREVER, 100])
    @pytest.mark.parametrize("asked_for", [PERSIST_FOREVER, 1000])
    async def test_an_existing_link_stays_and_its_owner_is_told(
        self, router: Any, ada: LinkProgram, namespace: str, held_for: int, asked_for: int
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0, held_for)
        with unchanged(ada.client, ada.link, ada.hash):
            assert await router.set_linked_pod_if_absent(namespace, *ADA, 1, asked_for) == 0

    @pytest.mark.parametrize("pod", [0, 1])
    async def test_a_refresh_extends_a_temporary_link(
        self, router: Any, ada: LinkProgram, namespace: str, pod: int
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0, 100)
        assert await router.set_linked_pod_if_absent(namespace, *ADA, pod, 1000, refresh=True) == 0
        assert kept(ada) == ("0", None)
        assert ada.ttl() in about(1000)

    async def test_a_refresh_never_shortens(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0, 1000)
        with unchanged(ada.client, ada.link, ada.hash):
            await router.set_linked_pod_if_absent(namespace, *ADA, 0, 100, refresh=True)

    async def test_a_refresh_to_persistent_keeps_the_link(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        # EXPIRE -1, as an earlier implementation had it, deletes the link.
        await router.set_linked_pod(namespace, *ADA, 0, 100)
        assert await router.set_linked_pod_if_absent(namespace, *ADA, 1, refresh=True) == 0
        assert (ada.ttl(), *kept(ada)) == (-1, "0", "0")

    async def test_a_refresh_leaves_a_persistent_link_alone(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0)
        with unchanged(ada.client, ada.link, ada.hash):
            assert await router.set_linked_pod_if_absent(namespace, *ADA, 0, 100, refresh=True) == 0

    async def test_many_at_once_are_told_one_owner(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        owners = await asyncio.gather(
            *(router.set_linked_pod_if_absent(namespace, *ADA, pod) for pod in range(50))
        )
        assert {str(owner) for owner in owners} == {ada.pod()} == {ada.listed()}


class TestGetLinkedPod:
    async def test_without_a_link_it_is_none(self, router: Any, namespace: str) -> None:
        assert await router.get_linked_pod(namespace, *ADA) is None

    @pytest.mark.parametrize("persist_seconds", [PERSIST_FOREVER, 100])
    async def test_pod_0_is_not_none(
        self, router: Any, namespace: str, persist_seconds: int
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0, persist_seconds)
        for _ in range(2):
            assert await router.get_linked_pod(namespace, *ADA) == 0

    async def test_a_second_answer_comes_from_the_cache(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 3)
        await router.get_linked_pod(namespace, *ADA)
        before = commands(cluster)
        assert await router.get_linked_pod(namespace, *ADA) == 3
        assert commands(cluster) == before

    async def test_fresh_asks_the_store(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 3)
        await router.get_linked_pod(namespace, *ADA)
        before = commands(cluster)
        assert await router.get_linked_pod(namespace, *ADA, fresh=True) == 3
        assert commands(cluster) - before == {"get": 1, "pttl": 1}

    async def test_an_own_write_is_visible_at_once(self, router: Any, namespace: str) -> None:
        for pod in range(20):
            await router.set_linked_pod(namespace, *ADA, pod)
            assert await router.get_linked_pod(namespace, *ADA) == pod

    async def test_uids_and_services_are_any_text_the_rules_allow(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        uid, service = "ü:lk: 'a'\U0001f600", "chat:v2 é"
        await router.set_linked_pod(namespace, uid, service, 3)
        assert raw.get(f"sf:{{{namespace}:lk:{uid}}}{service}") == "3"
        assert await router.get_linked_pod(namespace, uid, service) == 3
        assert await router.get_link_service(namespace, uid) == {service: 3}

    async def test_namespaces_do_not_meet(self, router: Any, namespace: str) -> None:
        await router.set_linked_pod(namespace, *ADA, 3)
        assert await router.get_linked_pod(f"{namespace}x", *ADA) is None


class TestGetLinkedPodIfPersist:
    async def test_without_a_link_it_is_none(self, router: Any, namespace: str) -> None:
        assert await router.get_linked_pod_if_persist(namespace, *ADA) is None

    async def test_a_persistent_link_counts(self, router: Any, namespace: str) -> None:
        await router.set_linked_pod(namespace, *ADA, 0)
        assert await router.get_linked_pod_if_persist(namespace, *ADA) == 0

    async def test_a_temporary_link_does_not_count(self, router: Any, namespace: str) -> None:
        await router.set_linked_pod(namespace, *ADA, 3, 100)
        assert await router.get_linked_pod_if_persist(namespace, *ADA) is None
        assert await router.get_linked_pod(namespace, *ADA) == 3

    async def test_it_is_served_by_the_same_cache_entry(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 3)
        await router.get_linked_pod(namespace, *ADA)
        before = commands(cluster)
        assert await router.get_linked_pod_if_persist(namespace, *ADA) == 3
        assert commands(cluster) == before

    async def test_fresh_asks_the_store(self, router: Any, raw: Raw, namespace: str) -> None:
        await router.set_linked_pod(namespace, *ADA, 3)
        await router.get_linked_pod_if_persist(namespace, *ADA)
        raw.expire(link_key(namespace, *ADA), 100)
        assert await router.get_linked_pod_if_persist(namespace, *ADA, fresh=True) is None


class TestBatchGetLinkedPod:
    async def test_uids_are_grouped_by_pod_in_the_order_given(
        self, router: Any, namespace: str
    ) -> None:
        for uid, pod in [("ada", 1), ("bob", 0), ("cyd", 1), ("eve", 0)]:
            await router.set_linked_pod(namespace, uid, "chat", pod)
        uids = ["eve", "cyd", "nobody", "bob", "ada"]
        found = await router.batch_get_linked_pod(namespace, uids, "chat")
        assert found == {0: ["eve", "bob"], 1: ["cyd", "ada"]}

    async def test_duplicates_are_kept(self, router: Any, namespace: str) -> None:
        await router.set_linked_pod(namespace, "ada", "chat", 0)
        await router.set_linked_pod(namespace, "bob", "chat", 0, 100)
        uids = ("ada", "bob", "ada", "ada")
        for _ in range(2):  # from the store, then from the cache
            assert await router.batch_get_linked_pod(namespace, uids, "chat") == {0: list(uids)}

    async def test_an_empty_list_costs_nothing(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        before = commands(cluster)
        assert await router.batch_get_linked_pod(namespace, [], "chat") == {}
        assert commands(cluster) == before

    async def test_only_what_the_cache_does_not_know_is_asked_for(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        uids = [f"u{number}" for number in range(10)]
        await router.batch_get_linked_pod(namespace, uids[:7], "chat")
        before = commands(cluster)
        await router.batch_get_linked_pod(namespace, uids, "chat")
        assert commands(cluster) - before == {"get": 3, "pttl": 3}

    async def test_fresh_asks_for_all(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        await router.batch_get_linked_pod(namespace, ["ada", "bob"], "chat")
        before = commands(cluster)
        await router.batch_get_linked_pod(namespace, ["ada", "bob"], "chat", fresh=True)
        assert commands(cluster) - before == {"get": 2, "pttl": 2}

    async def test_thousands_of_uids_over_all_slots_are_a_few_round_trips(
        self, router: Any, raw: Raw, cluster: LocalCluster, namespace: str
    ) -> None:
        uids = [f"user-{number}" for number in range(4000)]
        links = {
            link_key(namespace, uid, "chat"): str(n % 7) for n, uid in enumerate(uids) if n % 2
        }
        write_all(raw, links)
        assert len({slot_of(key) // 1000 for key in links}) == 17
        before = reads(cluster)
        found = await router.batch_get_linked_pod(namespace, uids, "chat")
        assert reads(cluster) - before < 400
        assert found == {
            pod: [uid for n, uid in enumerate(uids) if n % 2 and n % 7 == pod] for pod in range(7)
        }


class TestRemoveLinkedPod:
    async def test_without_a_link_it_is_false(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        assert await router.remove_linked_pod(namespace, *ADA) is False
        assert await router.remove_linked_pod(namespace, *ADA, 100) is False
        assert kept(ada) == (None, None)

    @pytest.mark.parametrize("held_for", [PERSIST_FOREVER, 100])
    async def test_it_deletes_the_link_now(
        self, router: Any, ada: LinkProgram, namespace: str, held_for: int
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0, held_for)
        assert await router.remove_linked_pod(namespace, *ADA) is True
        assert kept(ada) == (None, None)
        assert await router.get_linked_pod(namespace, *ADA) is None

    async def test_a_demoted_link_keeps_its_pod_and_gets_a_time_to_live(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        # DEL and then EXPIRE, as an earlier implementation had it, lost the link.
        await router.set_linked_pod(namespace, *ADA, 0)
        assert await router.remove_linked_pod(namespace, *ADA, 100) is True
        assert kept(ada) == ("0", None)
        assert ada.ttl() in about(100)
        assert await router.get_linked_pod(namespace, *ADA) == 0
        assert await router.get_linked_pod_if_persist(namespace, *ADA) is None

    async def test_the_uids_other_links_stay(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, "ada", "game", 1)
        await router.set_linked_pod(namespace, *ADA, 0)
        await router.remove_linked_pod(namespace, *ADA)
        assert ada.client.hgetall(ada.hash) == {"game": "1"}
        assert await router.get_linked_pod(namespace, "ada", "game") == 1


class TestRemoveLinkedPodWithId:
    async def test_the_order_of_the_go_executor_is_refused(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        """It has the seconds before the pod."""
        await router.set_linked_pod(namespace, *ADA, 1)
        with pytest.raises(TypeError, match="positional"):
            await router.remove_linked_pod_with_id(namespace, *ADA, 30, 1)
        assert kept(ada) == ("1", "1")

    @pytest.mark.parametrize("persist_seconds", [PERSIST_FOREVER, 100])
    async def test_a_late_disconnect_leaves_a_newer_link_alone(
        self, router: Any, ada: LinkProgram, namespace: str, persist_seconds: int
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0)
        await router.set_linked_pod(namespace, *ADA, 1)
        with unchanged(ada.client, ada.link, ada.hash):
            removed = await router.remove_linked_pod_with_id(
                namespace, *ADA, pod=0, persist_seconds=persist_seconds
            )
        assert removed is False

    async def test_it_deletes_that_pods_link(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0)
        assert await router.remove_linked_pod_with_id(namespace, *ADA, pod=0) is True
        assert kept(ada) == (None, None)

    async def test_it_demotes_that_pods_link(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 0)
        assert (
            await router.remove_linked_pod_with_id(namespace, *ADA, pod=0, persist_seconds=100)
            is True
        )
        assert kept(ada) == ("0", None)
        assert ada.ttl() in about(100)

    async def test_without_a_link_it_is_false(self, router: Any, namespace: str) -> None:
        assert await router.remove_linked_pod_with_id(namespace, *ADA, pod=0) is False

    async def test_pod_1_is_not_pod_10(self, router: Any, ada: LinkProgram, namespace: str) -> None:
        await router.set_linked_pod(namespace, *ADA, 10)
        assert await router.remove_linked_pod_with_id(namespace, *ADA, pod=1) is False
        assert kept(ada) == ("10", "10")


class TestGetLinkService:
    async def test_without_links_it_is_empty(self, router: Any, namespace: str) -> None:
        assert await router.get_link_service(namespace, "ada") == {}

    async def test_it_gives_persistent_links_only(self, router: Any, namespace: str) -> None:
        await router.set_linked_pod(namespace, "ada", "chat", 0)
        await router.set_linked_pod(namespace, "ada", "game", 7)
        await router.set_linked_pod(namespace, "ada", "mail", 5, 100)
        assert await router.get_link_service(namespace, "ada") == {"chat": 0, "game": 7}

    async def test_it_follows_own_writes_at_once(self, router: Any, namespace: str) -> None:
        for pod in range(5):
            await router.set_linked_pod(namespace, *ADA, pod)
            assert await router.get_link_service(namespace, "ada") == {"chat": pod}
        await router.remove_linked_pod(namespace, *ADA, 100)
        assert await router.get_link_service(namespace, "ada") == {}

    async def test_a_second_answer_comes_from_the_cache_and_is_the_callers_own(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        await router.set_linked_pod(namespace, *ADA, 3)
        (await router.get_link_service(namespace, "ada"))["game"] = 9
        before = commands(cluster)
        assert await router.get_link_service(namespace, "ada") == {"chat": 3}
        assert commands(cluster) == before

    async def test_fresh_asks_the_store(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.get_link_service(namespace, "ada")
        ada.client.hset(ada.hash, "chat", "4")
        assert await router.get_link_service(namespace, "ada", fresh=True) == {"chat": 4}


class TestExecuteScript:
    async def test_it_gives_the_raw_reply(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        keys = [ada.link, ada.hash]
        assert await router.execute_script("statefulSetLink", keys, ["chat", 3, -1]) == [b"-1"]
        assert await router.execute_script("statefulSetLink", keys, ["chat", 4, -1]) == [b"3"]
        assert kept(ada) == ("4", "4")

    async def test_what_it_writes_is_visible_at_once(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        for pod in range(5):
            keys = [ada.link.encode(), ada.hash.encode()]
            await router.execute_script("statefulSetLink", keys, [b"chat", str(pod), -1])
            assert await router.get_linked_pod(namespace, *ADA) == pod
            assert await router.get_link_service(namespace, "ada") == {"chat": pod}


class TestRoute:
    async def test_an_existing_link_is_kept_even_if_its_pod_is_unknown(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        ada.set_link(0)
        link = await router.route(namespace, *ADA)
        assert (link.pod, link.persistent, link.source, link.stale) == (0, True, "store", False)
        assert kept(ada) == ("0", "0")

    async def test_a_temporary_link_is_kept_as_it_is(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        ada.set_link(2, 100)
        assert await router.route(namespace, *ADA) == Link(2, persistent=False, source="store")
        assert ada.ttl() in about(100)

    async def test_a_second_answer_comes_from_the_cache(
        self, router: Any, cluster: LocalCluster, ada: LinkProgram, namespace: str
    ) -> None:
        ada.set_link(2)
        await router.route(namespace, *ADA)
        before = commands(cluster)
        link = await router.route(namespace, *ADA)
        assert (link.pod, link.source) == (2, "cache")
        assert 0 < link.age < 3
        assert commands(cluster) == before

    async def test_a_uid_without_a_link_is_placed_on_the_pod_the_policy_likes_best(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        for pod, load in [(0, 0.9), (1, 0.2), (2, 0.5)]:
            state = f'{{"status": "Running", "load": {load}}}'
            await router.set_service_state(namespace, "chat", pod, state)
        link = await router.route(namespace, *ADA, policy=LeastLoaded())
        assert link == Link(1, persistent=True, source="placed")
        assert (ada.ttl(), *kept(ada)) == (-1, "1", "1")

    async def test_by_default_seldom_on_the_most_loaded_one(
        self, router: Any, namespace: str
    ) -> None:
        for pod, load in [(0, 900), (1, 2), (2, 5)]:
            await router.set_service_state(
                namespace, "chat", pod, f'{{"status": "Running", "load": {load}}}'
            )
        links = [await router.route(namespace, f"u{number}", "chat") for number in range(90)]
        # Of two drawn at random it is both in a ninth of all cases.
        assert [link.pod for link in links].count(0) < 30

    async def test_pods_that_are_not_routable_are_passed_over(
        self, router: Any, namespace: str
    ) -> None:
        for pod, state in enumerate(["Draining", "Stopped", "Ready", "1-17-0"]):
            await router.set_service_state(namespace, "chat", pod, state)
        assert (await router.route(namespace, *ADA)).pod == 2

    async def test_a_pod_whose_heartbeat_is_old_is_passed_over(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        states = StateProgram(raw, namespace, "chat")
        states.set(1, '{"status": "Running", "load": 0.9}', 1)
        old = f'{{"status": "Running", "load": 0, "at": {states.server_ms() - 60_000}}}'
        await router.set_service_state(namespace, "chat", 0, old)
        assert (await router.route(namespace, *ADA)).pod == 1

    async def test_uids_are_spread_between_two_views_of_the_pods(
        self, router: Any, namespace: str
    ) -> None:
        for pod in range(3):
            await router.set_service_state(namespace, "chat", pod, "Running")
        links = [await router.route(namespace, f"u{number}", "chat") for number in range(60)]
        placed = Counter(link.pod for link in links)
        assert max(placed.values()) - min(placed.values()) <= 6

    async def test_without_pods_it_says_so(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        with pytest.raises(NoRoutablePod, match=r"service 'chat'.*no pod has reported") as caught:
            await router.route(namespace, *ADA)
        assert (caught.value.namespace, caught.value.service) == (namespace, "chat")
        assert caught.value.rejected == {}
        assert kept(ada) == (None, None)

    async def test_without_a_routable_pod_it_says_why_each_was_rejected(
        self, router: Any, ada: LinkProgram, namespace: str
    ) -> None:
        await router.set_service_state(namespace, "chat", 0, '{"status": "Draining"}')
        await router.set_service_state(namespace, "chat", 3, "nonsense")
        with pytest.raises(NoRoutablePod, match="pod 0: status 'Draining'; pod 3: status 'Unkn"):
            await router.route(namespace, *ADA)
        with pytest.raises(NoRoutablePod) as caught:
            await router.route(namespace, *ADA)
        assert caught.value.rejected == {0: "status 'Draining'", 3: "status 'Unknown'"}
        assert kept(ada) == (None, None)

    async def test_a_thousand_routes_at_once_of_one_unlinked_uid_make_one_link(
        self,
        router: Any,
        make_router: Callable[..., Any],
        cluster: LocalCluster,
        ada: LinkProgram,
        namespace: str,
    ) -> None:
        for pod in range(5):
            await router.set_service_state(namespace, "chat", pod, "Running")
        other = make_router(cluster.url)
        try:
            routes = [gateway.route(namespace, *ADA) for gateway in (router, other) * 500]
            links = await asyncio.gather(*routes)
        finally:
            await other.aclose()
        assert {link.pod for link in links} == {int(cast("str", ada.pod()))}
        # One gateway has placed it; those who asked it for the same meanwhile got that answer.
        assert len({n % 2 for n, link in enumerate(links) if link.source == "placed"}) == 1
        assert all(link.persistent for link in links)
        assert ada.client.hgetall(ada.hash) == {"chat": ada.pod()}


class TestGetPods:
    async def test_it_gives_what_is_known_of_each_pod(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        raw.hset(
            state_key(namespace, "chat"),
            mapping={"0": "Running", "2": "7-1700000000000-0", "x": "Running"},
        )
        pods = await router.get_pods(namespace, "chat")
        assert pods[0] == Pod(0, "Running")
        assert (pods[2].status, pods[2].load) == ("Stopped", 7.0)
        assert set(pods) == {0, 2}


class TestInvalidate:
    async def test_the_next_look_up_asks_the_store(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        await router.get_linked_pod(namespace, *ADA)
        await router.get_link_service(namespace, "ada")
        router.invalidate(namespace, "ada")
        before = commands(cluster)
        await router.get_linked_pod(namespace, *ADA)
        await router.get_link_service(namespace, "ada")
        assert commands(cluster) - before == {"get": 1, "pttl": 1, "hgetall": 1}

    async def test_one_service_of_a_uid_alone(
        self, router: Any, cluster: LocalCluster, namespace: str
    ) -> None:
        for service in ("chat", "game"):
            await router.get_linked_pod(namespace, "ada", service)
        router.invalidate(namespace, "ada", "chat")
        before = commands(cluster)
        for service in ("chat", "game"):
            await router.get_linked_pod(namespace, "ada", service)
        assert commands(cluster) - before == {"get": 1, "pttl": 1}


class TestOtherPrograms:
    """Plain SET and HSET by the contract, as a Go or Java program writes them."""

    @pytest.fixture
    def foreign(self, raw: Raw, namespace: str) -> str:
        raw.set(f"sf:{{{namespace}:lk:ada}}chat", "0")
        raw.hset(f"sf:{{{namespace}:lk:ada}}", mapping={"chat": "0"})
        raw.set(f"sf:{{{namespace}:lk:bob}}chat", "12", ex=100)
        raw.hset(f"sf:{{{namespace}:state:chat}}", mapping={"0": "Running", "12": "Draining"})
        raw.set(f"sf:{{{namespace}:workload:chat}}", "Ready")
        return namespace

    async def test_links_are_read(self, router: Any, foreign: str) -> None:
        assert await router.get_linked_pod(foreign, "ada", "chat") == 0
        assert await router.get_linked_pod(foreign, "bob", "chat") == 12
        assert await router.get_linked_pod_if_persist(foreign, "ada", "chat") == 0
        assert await router.get_linked_pod_if_persist(foreign, "bob", "chat") is None
        assert await router.get_link_service(foreign, "ada") == {"chat": 0}
        assert await router.get_link_service(foreign, "bob") == {}
        found = await router.batch_get_linked_pod(foreign, ["bob", "ada"], "chat")
        assert found == {12: ["bob"], 0: ["ada"]}

    async def test_states_are_read(self, router: Any, foreign: str) -> None:
        states = {0: "Running", 12: "Draining"}
        assert await router.get_service_state(foreign, "chat") == states
        assert await router.get_workload_state(foreign, "chat") == "Ready"
        assert await router.get_workload_state_batch(foreign, ["chat"]) == {"chat": "Ready"}

    async def test_links_are_respected(self, router: Any, foreign: str) -> None:
        assert await router.try_set_linked_pod(foreign, "ada", "chat", 5) == (False, 0)
        assert await router.set_linked_pod_if_absent(foreign, "bob", "chat", 5) == 12
        assert await router.remove_linked_pod_with_id(foreign, "ada", "chat", pod=5) is False
        assert (await router.route(foreign, "ada", "chat")).pod == 0
        assert await router.set_linked_pod(foreign, "bob", "chat", 5) == 12

    async def test_states_are_placed_by(self, router: Any, foreign: str) -> None:
        assert (await router.route(foreign, "cyd", "chat")).pod == 0

    async def test_a_link_that_is_in_no_hash_is_removed_all_the_same(
        self, router: Any, raw: Raw, namespace: str
    ) -> None:
        raw.set(link_key(namespace, *ADA), "3")
        assert await router.remove_linked_pod(namespace, *ADA) is True
        assert raw.exists(link_key(namespace, *ADA), link_prefix(namespace, "ada")) == 0


def write_all(raw: Client, strings: dict[str, str]) -> None:
    pipe = raw.pipeline(transaction=False)
    for key, value in strings.items():
        pipe.set(key, value, ex=600)
    pipe.execute()
