"""When something was sent again, why, after which node's answer, and after what pause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import Event, ReadableSpan

from sfroute import OutcomeUnknown, RetryConfig, RouterConfig, StoreUnavailable
from sfroute._contract.keys import link_key
from sfroute.embedded import LocalCluster

from .tap import Tap

SERVICE = "chat"
REASON, PAUSE = "sfroute.retry.reason", "sfroute.retry.pause"


def retries(span: ReadableSpan) -> list[Event]:
    """The events of retries, each of them within the span."""
    events = list(span.events)
    assert {event.name for event in events} <= {"sfroute.retry"}
    assert span.start_time is not None
    assert span.end_time is not None
    times = [span.start_time, *(event.timestamp for event in events), span.end_time]
    assert times == sorted(times)
    return events


@pytest.mark.slow
async def test_the_time_a_write_has_waited_for_a_lost_primary_is_divided_by_its_retries(
    make_router: Callable[..., Any], tap: Tap
) -> None:
    config = RouterConfig(retry=RetryConfig(deadline=1.0, connect_timeout=0.5))
    with LocalCluster(1, 0) as cluster:
        (node,) = cluster.nodes
        router = make_router(cluster.url, config=tap.config(base=config))
        await router.set_linked_pod("n", "u", SERVICE, 1)
        cluster.kill(node)
        with pytest.raises((StoreUnavailable, OutcomeUnknown)):
            await router.set_linked_pod("n", "u", SERVICE, 2)
        await router.aclose()
    call = tap.spans("sfroute set_linked_pod")[-1]
    (store,) = tap.children(call)
    events = retries(store)
    assert len(events) >= 2
    for event in events:
        attributes = event.attributes or {}
        assert attributes[REASON] == "connection"
        assert attributes["server.port"] == node.port
        assert attributes["server.address"] == "127.0.0.1"
        assert 0.0 <= float(str(attributes[PAUSE])) <= 0.25
    # What the store's span tells in time, the call's names.
    assert retries(call) == []
    assert (call.attributes or {})["sfroute.retry.reasons"] == ("connection",) * len(events)


async def test_a_look_up_tells_of_its_retries_on_the_span_of_the_call(
    make_router: Callable[..., Any], tap: Tap
) -> None:
    with LocalCluster(2, 0) as cluster:
        router = make_router(cluster.url, config=tap.config())
        await router.get_linked_pod("n", "u", SERVICE)
        key = link_key("n", "u", SERVICE)
        source = cluster.primary_of(key)
        (target,) = (node for node in cluster.nodes if node is not source)
        slot = int(cluster.execute(source, "CLUSTER", "KEYSLOT", key))  # type: ignore[arg-type]
        cluster.move_slot(slot, target)
        await router.get_linked_pod("n", "u", SERVICE, fresh=True)
        await router.aclose()
    (event,) = retries(tap.spans("sfroute get_linked_pod")[-1])
    assert event.attributes == {
        REASON: "MOVED",
        PAUSE: 0.0,
        "server.address": "127.0.0.1",
        "server.port": source.port,
    }
    # The batch in which it travelled has met the same error.
    assert [len(retries(span)) for span in tap.spans("GET")] == [0, 1, 0]
