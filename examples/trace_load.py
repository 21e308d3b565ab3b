"""A gateway under load whose traces are sampled: 64 requests at a time, one in ten of them recorded.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 python examples/trace_load.py

It starts a cluster and the gateway of ``trace_demo.py``, lets users come and come back, and sends the sampled traces to
that back end. At the end it says how many of the sampled requests that missed the cache show their call to the store.
"""

from __future__ import annotations

import asyncio
import os

from trace_demo import ENDPOINT, NAMESPACE, SERVICE, Gateway, Receiver

from sfroute import AsyncRouter, telemetry
from sfroute.embedded import LocalCluster

AT_ONCE = 64
USERS = 1280
SAMPLER = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}


async def drive(url: str) -> None:
    """Each user logs in and sends two messages; so many users at a time."""
    async with AsyncRouter.from_url(url) as router:
        for pod in range(4):
            await router.set_service_state(NAMESPACE, SERVICE, pod, "Running")
        gateway = Gateway(router)
        for first in range(0, USERS, AT_ONCE):
            uids = [f"user-{number}" for number in range(first, first + AT_ONCE)]
            for path in ("POST /login", "POST /messages", "POST /messages"):
                await asyncio.gather(*(gateway.serve(uid, path) for uid in uids))


def run() -> None:
    """Set the SDK up, serve, and flush."""
    shut_down = telemetry.setup("gateway", metrics=False)
    with LocalCluster(3, 0) as cluster:
        asyncio.run(drive(cluster.url))
    shut_down()


def report(receiver: Receiver) -> None:
    """Say of each sampled login, which misses the cache, where its lookup is: below it, or linked with it."""
    spans = receiver.spans
    lookups = {span.span_id: span for span in spans if span.name.endswith("GET")}
    logins = {span.span_id for span in spans if span.name == "POST /login"}
    routes = [
        span for span in spans if span.parent_span_id in logins and span.name == "sfroute route"
    ]
    below = {span.parent_span_id for span in lookups.values()}
    linked = {
        route.span_id for route in routes if any(link.span_id in lookups for link in route.links)
    }
    shown = [route for route in routes if route.span_id in below | linked]
    print(f"{len(logins)} of {USERS} logins were sampled; {AT_ONCE} came at a time")
    print(
        f"{len(shown)} of them show their lookup: "
        f"{sum(route.span_id in below for route in shown)} have it below, the others are linked with it"
    )


def main() -> None:
    os.environ.update({name: os.environ.get(name, value) for name, value in SAMPLER.items()})
    if os.environ.get(ENDPOINT):
        run()
        print(f"traces of service 'gateway' were sent to {os.environ[ENDPOINT]}")
        return
    with Receiver().running() as receiver:
        os.environ[ENDPOINT] = receiver.endpoint
        run()
        report(receiver)


if __name__ == "__main__":
    main()
