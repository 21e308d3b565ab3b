"""What ``sfroute agent`` learns of its child: whether it is healthy, and its load.

Both come from a URL, which is asked by HTTP GET, or from a file.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ..errors import ConfigError

__all__ = ["Probe"]

MAX_BYTES: Final = 65536


@dataclass(frozen=True)
class Probe:
    """Where to look: ``http://127.0.0.1:8080/healthz``, ``tcp://127.0.0.1:8080``, or a file's path.

    Attributes:
        where: the URL or the path.
        timeout: seconds after which an HTTP or TCP probe has failed.
    """

    where: str
    timeout: float = 1.0
    _kind: str = field(init=False, repr=False, default="file")
    _host: str = field(init=False, repr=False, default="")
    _port: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        if "://" not in self.where:
            if not self.where:
                raise ConfigError("a probe needs a URL or the path of a file")
            return
        try:
            parts = urlsplit(self.where)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in {"http", "tcp"} or not parts.hostname:
            raise ConfigError(
                f"{self.where!r} cannot be probed: it must be like http://127.0.0.1:8080/healthz, "
                "tcp://127.0.0.1:8080, or the path of a file"
            )
        if parts.scheme == "tcp" and port is None:
            raise ConfigError(f"{self.where!r} must name a port")
        object.__setattr__(self, "_kind", parts.scheme)
        object.__setattr__(self, "_host", parts.hostname)
        object.__setattr__(self, "_port", port or 80)

    async def healthy(self) -> bool:
        """True if it answers 2xx, takes connections, or exists."""
        if self._kind == "file":
            return Path(self.where).exists()  # noqa: ASYNC240 - one call for a local file
        found = await self._ask()
        return found is not None and (self._kind == "tcp" or 200 <= found[0] < 300)

    async def number(self) -> float:
        """The number that is its text; NaN if there is none."""
        if self._kind == "file":
            try:
                text = Path(self.where).read_text(encoding="utf-8")[:64]  # noqa: ASYNC240
            except (OSError, UnicodeDecodeError):
                return math.nan
        else:
            found = await self._ask()
            if found is None or not 200 <= found[0] < 300:
                return math.nan
            text = found[1][:64].decode("ascii", errors="replace")
        try:
            return float(text.strip())
        except ValueError:
            return math.nan

    async def _ask(self) -> tuple[int, bytes] | None:
        """Status and body; None if there is no answer."""
        try:
            async with asyncio.timeout(self.timeout):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    return await self._converse(reader, writer)
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError):
            return None

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, bytes]:
        if self._kind == "tcp":
            return 200, b""
        parts = urlsplit(self.where)
        target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        writer.write(f"GET {target} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        # HTTP/1.0: the answer ends with the connection.
        answer = b""
        while len(answer) < MAX_BYTES and (some := await reader.read(MAX_BYTES)):
            answer += some
        head, _, body = answer.partition(b"\r\n\r\n")
        _, status, *_ = head.split(b" ", 2)
        return int(status), body


class Health:
    """Heeds no single failure: a pod counts as failed after ``failures`` in a row, and as healthy after one success."""

    def __init__(self, probe: Probe | None, failures: int) -> None:
        self._probe = probe
        self._failures = failures
        self._failed = failures
        """In a row. Until the first success the pod has not begun."""

    async def look(self) -> bool:
        """Probe, and say what the pod counts as."""
        if self._probe is None or await self._probe.healthy():
            self._failed = 0
        else:
            self._failed += 1
        return self._failed < self._failures


class Load:
    """The load as it was probed last."""

    def __init__(self, probe: Probe | None) -> None:
        self._probe = probe
        self._last = math.nan

    async def look(self) -> None:
        """Probe."""
        if self._probe is not None:
            self._last = await self._probe.number()

    @property
    def source(self) -> Load | None:
        """For the agent; None if nobody knows the load."""
        return self if self._probe is not None else None

    def __call__(self) -> float:
        """For the agent's heartbeats."""
        return self._last
