"""What telemetry costs the caller: the same calls with and without an OpenTelemetry SDK.

    python benchmarks/tracing.py [--rounds N]

Every contender is a router of its own on the same cluster, with the providers injected, so that all run in one process,
interleaved. *Hits in bursts* are fewer than the queue holds, with the worker done between two bursts: what a caller
waits for a hit. *Hits without pause* let the worker compete with the caller for the interpreter and overflow the queue:
what a machine at its limit does. A burst's time is the median of its chunks of 50 calls.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack

from harness import Comparison, Target, machine, table
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBasedTraceIdRatio

import sfroute
from sfroute.embedded import LocalCluster
from sfroute.telemetry import Telemetry

NAMESPACE, SERVICE = "bench", "game"
CHUNK = 50
BURST = 2000
BY_HAND = "dict in a coroutine"
NONE, ON, OFF, RATIO = "no SDK", "always_on", "always_off", "ratio 0.01"


class Discard(SpanExporter):
    """The end of every span. What an exporter costs is the exporter's."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def providers() -> dict[str, TracerProvider | None]:
    """One for each contender."""
    samplers = {ON: ALWAYS_ON, OFF: ALWAYS_OFF, RATIO: ParentBasedTraceIdRatio(0.01)}
    made: dict[str, TracerProvider | None] = {NONE: None}
    for name, sampler in samplers.items():
        provider = made[name] = TracerProvider(sampler=sampler)
        provider.add_span_processor(BatchSpanProcessor(Discard()))
    return made


def config_of(provider: TracerProvider | None) -> sfroute.RouterConfig:
    return sfroute.RouterConfig(
        cache=sfroute.CacheConfig(max_entries=20_000),
        telemetry=sfroute.TelemetryConfig(tracer_provider=provider),
    )


def wait_until_done(telemetry: Telemetry, provider: TracerProvider | None) -> None:
    """Nothing of the last burst may run in the next one."""
    while telemetry.queued:
        time.sleep(0.01)
    if provider is not None:
        provider.force_flush()


Burst = Callable[[int], float]
"""Make so many hits; the seconds of one, as the median of chunks."""


def dict_burst(loop: asyncio.AbstractEventLoop) -> Burst:
    """What a hit is measured by: a dict of values and deadlines, asked in a coroutine."""
    clock = time.monotonic
    held = {(NAMESPACE, "hot", SERVICE): (5, clock() + 3600)}

    async def get(namespace: str, uid: str, service: str) -> int | None:
        entry = held.get((namespace, uid, service))
        return entry[0] if entry is not None and entry[1] > clock() else None

    return _burst_of(loop, get)


def sync_burst(router: sfroute.Router, uid: str) -> Burst:
    get, clock = router.get_linked_pod, time.perf_counter

    def burst(calls: int) -> float:
        get(NAMESPACE, uid, SERVICE)
        chunks = []
        for _ in range(calls // CHUNK):
            began = clock()
            for _ in range(CHUNK):
                get(NAMESPACE, uid, SERVICE)
            chunks.append((clock() - began) / CHUNK)
        return statistics.median(chunks)

    return burst


def _burst_of(
    loop: asyncio.AbstractEventLoop, get: Callable[[str, str, str], Awaitable[object]]
) -> Burst:
    clock = time.perf_counter

    async def run(calls: int) -> float:
        await get(NAMESPACE, "hot", SERVICE)
        chunks = []
        for _ in range(calls // CHUNK):
            began = clock()
            for _ in range(CHUNK):
                await get(NAMESPACE, "hot", SERVICE)
            chunks.append((clock() - began) / CHUNK)
        return statistics.median(chunks)

    return lambda calls: loop.run_until_complete(run(calls))


class Contender:
    """A way to make hits, and what has to be over before the next one may."""

    def __init__(self, burst: Burst, telemetry: Telemetry, provider: TracerProvider | None) -> None:
        self.burst = burst
        self.telemetry = telemetry
        self.provider = provider
        self.calls = self.dropped = 0

    def once(self) -> float:
        wait_until_done(self.telemetry, self.provider)
        return self.burst(BURST)

    def sustained(self, seconds: float = 0.5) -> float:
        """The mean of a hit while there is no pause."""
        wait_until_done(self.telemetry, self.provider)
        dropped, calls, began = self.telemetry.dropped, 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            self.burst(BURST)
            calls += BURST
        took = time.perf_counter() - began
        self.calls += calls
        self.dropped += self.telemetry.dropped - dropped
        return took / calls


def miss(
    loop: asyncio.AbstractEventLoop,
    plain: sfroute.AsyncRouter,
    recorded: sfroute.AsyncRouter,
    provider: TracerProvider,
    concurrency: int,
    operations: int,
    numbers: Iterator[int],
) -> Comparison:
    """Misses of uids nobody asked for before, in a traced and in an untraced router."""
    tracer = provider.get_tracer("bench")

    async def with_bare_span(uid: str) -> None:
        with tracer.start_as_current_span(
            "get_linked_pod",
            attributes={"a": "get_linked_pod", "b": NAMESPACE, "c": SERVICE, "d": "miss", "e": 1},
        ):
            await plain.get_linked_pod(NAMESPACE, uid, SERVICE)

    async def alone(uid: str) -> None:
        await plain.get_linked_pod(NAMESPACE, uid, SERVICE)

    async def traced(uid: str) -> None:
        await recorded.get_linked_pod(NAMESPACE, uid, SERVICE)

    def timed(call: Callable[[str], Awaitable[None]]) -> Callable[[], float]:
        async def worker(uids: Iterator[str]) -> None:
            for uid in uids:
                await call(uid)

        async def measure() -> float:
            uids = iter([f"miss-{next(numbers)}" for _ in range(operations)])
            began = time.perf_counter()
            await asyncio.gather(*(worker(uids) for _ in range(concurrency)))
            return (time.perf_counter() - began) / operations

        def work() -> float:
            wait_until_done(recorded._inside.telemetry, provider)
            return loop.run_until_complete(measure())

        return work

    return Comparison(
        f"async miss, {concurrency} at a time",
        "no SDK, in a bare span",
        {
            "no SDK, in a bare span": timed(with_bare_span),
            "no SDK": timed(alone),
            ON: timed(traced),
        },
    )


def hits(
    url: str, loop: asyncio.AbstractEventLoop, stack: ExitStack
) -> tuple[dict[str, Contender], dict[str, Contender], dict[str, sfroute.AsyncRouter]]:
    """A router of each front for each way of tracing, kept open by ``stack``: hits in threads, in tasks, routers."""
    made = providers()
    in_threads: dict[str, Contender] = {}
    in_tasks: dict[str, Contender] = {}
    async_routers: dict[str, sfroute.AsyncRouter] = {}
    for name, provider in made.items():
        if provider is not None:
            stack.callback(provider.shutdown)
        router = stack.enter_context(sfroute.Router.from_url(url, config=config_of(provider)))
        router.set_linked_pod(NAMESPACE, "hot", SERVICE, 5)
        background = router._background
        assert background is not None
        in_threads[name] = Contender(
            sync_burst(router, "hot"), background.inside.telemetry, provider
        )
        async_router = sfroute.AsyncRouter.from_url(url, config=config_of(provider))
        loop.run_until_complete(async_router.open())
        stack.callback(_close, loop, async_router)
        in_tasks[name] = Contender(
            _burst_of(loop, async_router.get_linked_pod), async_router._inside.telemetry, provider
        )
        async_routers[name] = async_router
    return in_threads, in_tasks, async_routers


def _close(loop: asyncio.AbstractEventLoop, router: sfroute.AsyncRouter) -> None:
    loop.run_until_complete(router.aclose())


def hits_in_bursts(
    in_threads: dict[str, Contender], in_tasks: dict[str, Contender], by_hand: Burst
) -> list[Comparison]:
    """What a caller waits for a hit."""
    does = {NONE: "nothing recorded", ON: "a span for every hit, made by the worker"}
    return [
        Comparison(
            "sync hit, in bursts",
            NONE,
            {name: contender.once for name, contender in in_threads.items()},
            does=does,
            target=Target(ON, 2.0, of_time=True),
            group="tracing",
        ),
        Comparison(
            "async hit, in bursts",
            BY_HAND,
            {
                BY_HAND: lambda: by_hand(BURST),
                **{name: contender.once for name, contender in in_tasks.items()},
            },
            does={**does, BY_HAND: "(value, deadline), unbounded, nothing recorded"},
            target=Target(ON, 1.3, of_time=True),
            group="tracing",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with LocalCluster(3, 0) as cluster, ExitStack() as stack:
        in_threads, in_tasks, async_routers = hits(cluster.url, loop, stack)
        traced = in_tasks[ON].provider
        assert traced is not None
        once = hits_in_bursts(in_threads, in_tasks, dict_burst(loop))
        without_pause = [
            Comparison(
                f"{kind} hit, without pause", NONE, {n: c.sustained for n, c in contenders.items()}
            )
            for kind, contenders in (("sync", in_threads), ("async", in_tasks))
        ]
        numbers = itertools.count()
        misses = [
            miss(loop, async_routers[NONE], async_routers[ON], traced, concurrency, 400, numbers)
            for concurrency in (1, 10)
        ]
        for comparison in once + misses:
            comparison.run(rounds)
        for comparison in without_pause:
            comparison.run(max(3, rounds // 3))
        print(machine("sfroute", "redis", "opentelemetry-sdk"))
        print(f"server: {cluster.server_version}, 3 primaries, {rounds} rounds, interleaved")
        print(table(once + misses + without_pause))
        for kind, contenders in (("sync", in_threads), ("async", in_tasks)):
            for name in (ON, OFF, RATIO):
                share = contenders[name].dropped / contenders[name].calls
                print(f"  {kind}, without pause, {name}: {share:.0%} of the hits dropped unseen")
    loop.close()


if __name__ == "__main__":
    main()
