"""What the driven processes share: metrics with exemplars on a port, and phases that are named on their input."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from exemplars import Shown
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, start_http_server

__all__ = ["NAMESPACE", "Phase", "Serving", "serving"]

NAMESPACE = "shown"

Phase = Callable[[], Awaitable[Mapping[str, int]]]


class Serving:
    """A process whose metrics are served.

    Attributes:
        meters: the provider to record them with.
    """

    def __init__(self, meters: MeterProvider, port: int) -> None:
        self.meters = meters
        self._port = port

    async def run(self, phases: Mapping[str, Phase]) -> None:
        """Print the port; then do what each line of the input names, and print what came of it. Ends with the input."""
        print(self._port, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await phases[line.strip()]()), flush=True)


@asynccontextmanager
async def serving() -> AsyncIterator[Serving]:
    """Serve the metrics of this process."""
    registry, shown = CollectorRegistry(), Shown()
    registry.register(shown)
    meters = MeterProvider(metric_readers=shown.readers, shutdown_on_exit=False)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield Serving(meters, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        meters.shutdown()
