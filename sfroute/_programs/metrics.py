"""The metrics of one process, or of several that share a socket, in Prometheus's text format.

The numbers are those of ``sfroute.telemetry``, read through an OpenTelemetry SDK. A proxy or a Prometheus that asks a
shared socket reaches any of the workers, so each worker asks all: every series has the label ``worker``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, generate_latest

__all__ = ["Metrics", "merged"]

_log = logging.getLogger("sfroute.serve")

ASK_SECONDS: Final = 1.0
MAX_BYTES: Final = 16 * 2**20


class Metrics:
    """The metrics of a worker.

    Args:
        number: the worker's.
        folder: where the workers meet; None if there is only one.

    Attributes:
        provider: what the router's telemetry writes to.
    """

    def __init__(self, number: int, folder: Path | None) -> None:
        self._number = number
        self._folder = folder
        # The default registry, which has the metrics of the process as well.
        self.provider = MeterProvider(
            metric_readers=[PrometheusMetricReader()], shutdown_on_exit=False
        )

    async def text(self) -> bytes:
        """Those of all workers that answer."""
        texts = {self._number: generate_latest(REGISTRY).decode()}
        if self._folder is not None:
            others = {
                int(path.stem): path
                for path in self._folder.glob("*.sock")
                if int(path.stem) != self._number
            }
            found = await asyncio.gather(*(_ask(path) for path in others.values()))
            texts |= {
                number: text for number, text in zip(others, found, strict=True) if text is not None
            }
        return merged(sorted(texts.items())).encode()

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Answer the other workers until the block ends."""
        if self._folder is None:
            yield
            return
        path = self._folder / f"{self._number}.sock"
        path.unlink(missing_ok=True)  # of a worker before this one

        async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                writer.write(generate_latest(REGISTRY))
                with contextlib.suppress(ConnectionError):  # whoever asked has gone
                    await writer.drain()

        server = await asyncio.start_unix_server(tell, path)
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)


async def _ask(path: Path) -> str | None:
    try:
        async with asyncio.timeout(ASK_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path, limit=MAX_BYTES)
            with contextlib.closing(writer):
                return (await reader.read(-1)).decode()
    except (OSError, TimeoutError) as error:
        _log.warning("worker %s tells no metrics: %s", path.stem, type(error).__name__)
        return None


def merged(texts: Iterable[tuple[int, str]]) -> str:
    """Texts of several workers as one, each sample labelled with its worker, each family described once."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number, text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                _, kind, family, *_ = line.split(" ", 3)
                head = heads.setdefault(family, [])
                if not any(known.startswith(f"# {kind} ") for known in head):
                    head.append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, number))
    return "".join(
        f"{line}\n" for family, head in heads.items() for line in (*head, *samples.get(family, ()))
    )


def _labelled(sample: str, number: int) -> str:
    # No name of a metric holds a brace or a blank, so the first of either ends it.
    label = f'worker="{number}"'
    brace, blank = sample.find("{"), sample.find(" ")
    if 0 <= brace < blank:
        rest = sample[brace + 1 :]
        return f"{sample[:brace]}{{{label}{'' if rest.startswith('}') else ','}{rest}"
    return f"{sample[:blank]}{{{label}}}{sample[blank:]}"
