"""What type checkers tell of every operation: checked by ``make types``, never run.

Written by ``make api`` from the catalogue; do not edit.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import assert_type

from sfroute import (
    AsyncPodAgent,
    AsyncRouter,
    AsyncSession,
    Claim,
    EvacuationProgress,
    Link,
    ListedLink,
    Pod,
    PodAgent,
    PodChange,
    PodEvent,
    PruneProgress,
    RebalanceProgress,
    Router,
    RouterStats,
    Session,
    TrySetResult,
)


async def of_async_router(front: AsyncRouter) -> None:
    assert_type(
        await front.route(
            namespace="ns",
            uid="ada",
            service="chat",
            persist_seconds=-1,
            policy=None,
            exclude=[9],
            beside=None,
            wait=0.1,
            timeout=None,
        ),
        Link,
    )
    assert_type(
        await front.get_linked_pod(namespace="ns", uid="ada", service="chat", timeout=None),
        int | None,
    )
    assert_type(
        await front.get_linked_pod_if_persist(
            namespace="ns", uid="ada", service="chat", timeout=None
        ),
        int | None,
    )
    assert_type(
        await front.batch_get_linked_pod(
            namespace="ns", uids=["ada"], service="chat", timeout=None
        ),
        dict[int, list[str]],
    )
    assert_type(
        await front.get_link_service(namespace="ns", uid="ada", timeout=None), dict[str, int]
    )
    assert_type(
        await front.set_linked_pod(
            namespace="ns", uid="ada", service="chat", pod=1, persist_seconds=-1, timeout=None
        ),
        int | None,
    )
    assert_type(
        await front.try_set_linked_pod(
            namespace="ns", uid="ada", service="chat", pod=1, persist_seconds=-1, timeout=None
        ),
        TrySetResult,
    )
    assert_type(
        await front.set_linked_pod_if_absent(
            namespace="ns",
            uid="ada",
            service="chat",
            pod=1,
            persist_seconds=-1,
            refresh=False,
            timeout=None,
        ),
        int,
    )
    assert_type(
        await front.move_linked_pod(
            namespace="ns", uid="ada", service="chat", expected=1, pod=2, timeout=None
        ),
        int | None,
    )
    assert_type(
        await front.remove_linked_pod(
            namespace="ns", uid="ada", service="chat", persist_seconds=-1, timeout=None
        ),
        bool,
    )
    assert_type(
        await front.remove_linked_pod_with_id(
            namespace="ns", uid="ada", service="chat", pod=1, persist_seconds=-1, timeout=None
        ),
        bool,
    )
    assert_type(
        await front.set_service_state(
            namespace="ns", service="chat", pod=1, state="Running", timeout=None
        ),
        None,
    )
    assert_type(
        await front.get_service_state(namespace="ns", service="chat", timeout=None), dict[int, str]
    )
    assert_type(await front.get_pods(namespace="ns", service="chat", timeout=None), dict[int, Pod])
    assert_type(
        await front.pod_address(namespace="ns", service="chat", pod=1, timeout=None), str | None
    )
    assert_type(front.watch(namespace="ns", service="chat"), AsyncGenerator[PodChange, None])
    assert_type(
        front.evacuate(
            namespace="ns",
            service="chat",
            pod=9,
            policy=None,
            rate=None,
            dry_run=False,
            idle=None,
            remove_idle=False,
        ),
        AsyncGenerator[EvacuationProgress, None],
    )
    assert_type(
        front.rebalance(
            namespace="ns",
            service="chat",
            max_skew=1.2,
            rate=None,
            idle_only=False,
            dry_run=False,
            force=False,
            patience=1.0,
        ),
        AsyncGenerator[RebalanceProgress, None],
    )
    assert_type(
        front.links(namespace="ns", service="chat", pod=1), AsyncGenerator[ListedLink, None]
    )
    assert_type(await front.forget(namespace="ns", uid="ada"), int)
    assert_type(
        front.prune(namespace="ns", service="chat", idle=60.0, rate=None, dry_run=False),
        AsyncGenerator[PruneProgress, None],
    )
    assert_type(
        await front.set_workload_state(namespace="ns", service="chat", state="up", timeout=None),
        None,
    )
    assert_type(
        await front.get_workload_state(namespace="ns", service="chat", timeout=None), str | None
    )
    assert_type(
        await front.get_workload_state_batch(namespace="ns", services=["chat"], timeout=None),
        dict[str, str],
    )
    assert_type(
        await front.execute_script(
            name="statefulGetLinkService", keys=["sf:{ns:lk:ada}"], args=[], timeout=None
        ),
        object,
    )
    assert_type(front.invalidate(namespace="ns", uid="ada", service="chat"), None)
    assert_type(front.report_failure(namespace="ns", service="chat", pod=1), None)
    assert_type(front.stats(), RouterStats)
    assert_type(front.from_url(url="redis://"), AsyncRouter)
    assert_type(await front.open(timeout=None), None)
    assert_type(await front.aclose(), None)


def of_router(front: Router) -> None:
    assert_type(
        front.route(
            namespace="ns",
            uid="ada",
            service="chat",
            persist_seconds=-1,
            policy=None,
            exclude=[9],
            beside=None,
            wait=0.1,
            timeout=None,
        ),
        Link,
    )
    assert_type(
        front.get_linked_pod(namespace="ns", uid="ada", service="chat", timeout=None), int | None
    )
    assert_type(
        front.get_linked_pod_if_persist(namespace="ns", uid="ada", service="chat", timeout=None),
        int | None,
    )
    assert_type(
        front.batch_get_linked_pod(namespace="ns", uids=["ada"], service="chat", timeout=None),
        dict[int, list[str]],
    )
    assert_type(front.get_link_service(namespace="ns", uid="ada", timeout=None), dict[str, int])
    assert_type(
        front.set_linked_pod(
            namespace="ns", uid="ada", service="chat", pod=1, persist_seconds=-1, timeout=None
        ),
        int | None,
    )
    assert_type(
        front.try_set_linked_pod(
            namespace="ns", uid="ada", service="chat", pod=1, persist_seconds=-1, timeout=None
        ),
        TrySetResult,
    )
    assert_type(
        front.set_linked_pod_if_absent(
            namespace="ns",
            uid="ada",
            service="chat",
            pod=1,
            persist_seconds=-1,
            refresh=False,
            timeout=None,
        ),
        int,
    )
    assert_type(
        front.move_linked_pod(
            namespace="ns", uid="ada", service="chat", expected=1, pod=2, timeout=None
        ),
        int | None,
    )
    assert_type(
        front.remove_linked_pod(
            namespace="ns", uid="ada", service="chat", persist_seconds=-1, timeout=None
        ),
        bool,
    )
    assert_type(
        front.remove_linked_pod_with_id(
            namespace="ns", uid="ada", service="chat", pod=1, persist_seconds=-1, timeout=None
        ),
        bool,
    )
    assert_type(
        front.set_service_state(
            namespace="ns", service="chat", pod=1, state="Running", timeout=None
        ),
        None,
    )
    assert_type(
        front.get_service_state(namespace="ns", service="chat", timeout=None), dict[int, str]
    )
    assert_type(front.get_pods(namespace="ns", service="chat", timeout=None), dict[int, Pod])
    assert_type(front.pod_address(namespace="ns", service="chat", pod=1, timeout=None), str | None)
    assert_type(front.watch(namespace="ns", service="chat"), Generator[PodChange, None, None])
    assert_type(
        front.evacuate(
            namespace="ns",
            service="chat",
            pod=9,
            policy=None,
            rate=None,
            dry_run=False,
            idle=None,
            remove_idle=False,
        ),
        Generator[EvacuationProgress, None, None],
    )
    assert_type(
        front.rebalance(
            namespace="ns",
            service="chat",
            max_skew=1.2,
            rate=None,
            idle_only=False,
            dry_run=False,
            force=False,
            patience=1.0,
        ),
        Generator[RebalanceProgress, None, None],
    )
    assert_type(
        front.links(namespace="ns", service="chat", pod=1), Generator[ListedLink, None, None]
    )
    assert_type(front.forget(namespace="ns", uid="ada"), int)
    assert_type(
        front.prune(namespace="ns", service="chat", idle=60.0, rate=None, dry_run=False),
        Generator[PruneProgress, None, None],
    )
    assert_type(
        front.set_workload_state(namespace="ns", service="chat", state="up", timeout=None), None
    )
    assert_type(front.get_workload_state(namespace="ns", service="chat", timeout=None), str | None)
    assert_type(
        front.get_workload_state_batch(namespace="ns", services=["chat"], timeout=None),
        dict[str, str],
    )
    assert_type(
        front.execute_script(
            name="statefulGetLinkService", keys=["sf:{ns:lk:ada}"], args=[], timeout=None
        ),
        object,
    )
    assert_type(front.invalidate(namespace="ns", uid="ada", service="chat"), None)
    assert_type(front.report_failure(namespace="ns", service="chat", pod=1), None)
    assert_type(front.stats(), RouterStats)
    assert_type(front.from_url(url="redis://"), Router)
    assert_type(front.open(timeout=None), None)
    assert_type(front.close(), None)


async def of_async_pod_agent(front: AsyncPodAgent) -> None:
    assert_type(await front.start(), None)
    assert_type(await front.accept(uid="ada"), Claim)
    assert_type(await front.release(claim="ada", grace=30), bool)
    assert_type(await front.pause(), None)
    assert_type(await front.resume(), None)
    assert_type(await front.drain(deadline=0.1), int)
    assert_type(await front.stop(), None)
    assert_type(front.session(uid="ada", grace=30), AsyncSession)
    assert_type(front.owns(uid="ada"), bool)
    assert_type(front.claim_of(uid="ada"), Claim | None)
    assert_type(front.events(), AsyncGenerator[PodEvent, None])
    assert_type(front.pod, int)
    assert_type(front.status, str)
    assert_type(front.conflicts, int)


def of_pod_agent(front: PodAgent) -> None:
    assert_type(front.start(), None)
    assert_type(front.accept(uid="ada"), Claim)
    assert_type(front.release(claim="ada", grace=30), bool)
    assert_type(front.pause(), None)
    assert_type(front.resume(), None)
    assert_type(front.drain(deadline=0.1), int)
    assert_type(front.stop(), None)
    assert_type(front.session(uid="ada", grace=30), Session)
    assert_type(front.owns(uid="ada"), bool)
    assert_type(front.claim_of(uid="ada"), Claim | None)
    assert_type(front.events(), Generator[PodEvent, None, None])
    assert_type(front.pod, int)
    assert_type(front.status, str)
    assert_type(front.conflicts, int)
