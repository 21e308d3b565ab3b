"""Nodes that announce addresses which lead nowhere from here, as in containers and behind NAT: ``address_remap``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio.cluster
import redis.cluster
from conftest import AwaitableRouter, make_cluster

from sfroute import AsyncRouter, ConfigError, RetryConfig, Router, RouterConfig, StoreError
from sfroute._contract.keys import link_key, slot_of, workload_key
from sfroute.embedded import LocalCluster

Pair = tuple[str, int]


@pytest.fixture(scope="module")
def elsewhere(server: str) -> Iterator[LocalCluster]:
    """A cluster whose nodes call themselves by names that no resolver knows."""
    with make_cluster(server, node_timeout_ms=15_000, replicas_per_primary=0) as cluster:
        for number, node in enumerate(cluster.nodes):
            for name, value in (
                ("cluster-announce-hostname", f"node-{number}.sfroute.invalid"),
                ("cluster-preferred-endpoint-type", "hostname"),
            ):
                cluster.execute(node, "CONFIG", "SET", name, value)
        yield cluster


def to_here(pair: Pair) -> Pair:
    """Where the names lead to."""
    host, port = pair
    return ("127.0.0.1" if host.endswith(".sfroute.invalid") else host), port


def make(front: str, source: Any, config: RouterConfig | None) -> Any:
    kind: Any = AsyncRouter if front == "async" else Router
    router = kind.from_url(source, config=config) if isinstance(source, str) else kind(source)
    return router if front == "async" else AwaitableRouter(router)


@pytest.fixture(params=["async", "sync"])
def front(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["configuration", "client", "borrowed client"])
async def router(
    request: pytest.FixtureRequest, front: str, elsewhere: LocalCluster
) -> AsyncIterator[Any]:
    """A router that was told of ``to_here`` in one of three ways."""
    host, port = elsewhere.startup_nodes[0]
    client: Any = None
    if request.param == "configuration":
        router = make(front, elsewhere.url, RouterConfig(address_remap=to_here))
    elif request.param == "client":
        client = redis.cluster.RedisCluster(host=host, port=port, address_remap=to_here)
        client.close()
        router = make(front, client, None)
    else:
        client = redis.asyncio.cluster.RedisCluster(host=host, port=port, address_remap=to_here)
        router = make(front, client, None)
    yield router
    await router.aclose()
    if request.param == "borrowed client":
        await client.aclose()


class TestWhereNodesAre:
    async def test_slot_map(self, router: Any, elsewhere: LocalCluster, namespace: str) -> None:
        uids = [f"u{number}" for number in range(30)]
        for pod, uid in enumerate(uids):
            assert await router.set_linked_pod(namespace, uid, "chat", pod) is None
        found = await router.batch_get_linked_pod(namespace, uids, "chat")
        assert found == {pod: [uid] for pod, uid in enumerate(uids)}
        assert {lane.address for lane in router.stats().lanes} == {
            f"127.0.0.1:{port}" for _, port in elsewhere.startup_nodes
        }

    async def test_moved(self, router: Any, elsewhere: LocalCluster, namespace: str) -> None:
        await router.set_linked_pod(namespace, "ada", "chat", 3)
        slot = slot_of(link_key(namespace, "ada", "chat"))
        source = elsewhere.primary_of(slot)
        target = next(node for node in elsewhere.nodes if node is not source)
        elsewhere.move_slot(slot, target)
        assert await router.set_linked_pod(namespace, "ada", "chat", 4) == 3
        elsewhere.move_slot(slot, source)
        assert (await router.batch_get_linked_pod(namespace, ["ada"], "chat", fresh=True)) == {
            4: ["ada"]
        }
        assert router.stats().retries["MOVED"] >= 1

    async def test_ask(self, router: Any, elsewhere: LocalCluster, namespace: str) -> None:
        await router.open()
        # A lookup, and a write of one key: with two keys a script is answered TRYAGAIN while its slot moves.
        for key, use in (
            (link_key(namespace, "ada", "chat"), router.get_linked_pod(namespace, "ada", "chat")),
            (workload_key(namespace, "chat"), router.set_workload_state(namespace, "chat", "up")),
        ):
            source = elsewhere.primary_of(key)
            target = next(node for node in elsewhere.nodes if node is not source)
            asked = router.stats().retries.get("ASK", 0)
            with elsewhere.moving_slot(slot_of(key), target):
                await use
                assert router.stats().retries["ASK"] > asked
            elsewhere.move_slot(slot_of(key), source)
        assert await router.get_workload_state(namespace, "chat") == "up"


# Enough for a first answer beside other tests; what cannot be reached is told only at the deadline.
HASTY = RetryConfig(deadline=2.0, connect_timeout=1.0)


class TestWhatGoesWrong:
    async def test_errors_name_where_a_node_was_looked_for(
        self, elsewhere: LocalCluster, namespace: str, front: str
    ) -> None:
        async def use(remap: Callable[[Pair], Pair]) -> str:
            router = make(front, elsewhere.url, RouterConfig(address_remap=remap, retry=HASTY))
            with pytest.raises((StoreError, ConfigError)) as caught:
                await router.set_linked_pod(namespace, "ada", "chat", 3)
            await router.aclose()
            chain: list[str] = []
            error: BaseException | None = caught.value
            while error is not None:
                chain.append(str(error))
                error = error.__cause__ or error.__context__
            return "\n".join(chain)

        assert "sfroute.invalid" not in await use(lambda _: ("127.0.0.1", 1))
        assert "address_remap must return (host, port) for node-" in await use(lambda _: None)  # type: ignore[arg-type, return-value]
        assert "address_remap must return (host, port) for node-" in await use(lambda _: ("a", 0))

        def wrong(pair: Pair) -> Pair:
            raise KeyError(pair)

        assert "address_remap raised KeyError for node-" in await use(wrong)

    def test_it_must_be_callable(self) -> None:
        with pytest.raises(ConfigError, match="address_remap must be a callable"):
            RouterConfig(address_remap={"a": "b"})  # type: ignore[arg-type]

    def test_it_cannot_differ_from_a_borrowed_clients(self) -> None:
        client = redis.asyncio.cluster.RedisCluster(host="a", port=1)
        with pytest.raises(ConfigError, match="must be given to the RedisCluster client"):
            AsyncRouter(client, config=RouterConfig(address_remap=to_here))
        client = redis.asyncio.cluster.RedisCluster(host="a", port=1, address_remap=to_here)
        AsyncRouter(client, config=RouterConfig(address_remap=to_here))
