"""Sockets to listen on, and the uvicorn server that answers on them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn

from ..errors import ConfigError

__all__ = ["Address", "Server", "listening"]

BACKLOG: Final = 2048
KEEP_ALIVE_SECONDS: Final = 120
"""Longer than proxies keep idle connections (nginx: 60), so that it is they who close them: no request meets a
connection that is just being closed."""


@dataclass(frozen=True)
class Address:
    """Where to listen: ``127.0.0.1:7080``, ``[::1]:7080``, or ``unix:/run/sfroute.sock``."""

    text: str

    def __post_init__(self) -> None:
        if self.path is None:
            self._host_and_port()
        elif not self.path.name:
            raise ConfigError(f"{self.text!r} names no socket; it must be like unix:/run/x.sock")

    @property
    def path(self) -> Path | None:
        """Of a unix socket."""
        return Path(self.text[5:]) if self.text.startswith("unix:") else None

    def _host_and_port(self) -> tuple[str, int]:
        host, _, port = self.text.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ConfigError(
                f"{self.text!r} is no address to listen on; it must be like 127.0.0.1:7080 or unix:/run/x.sock"
            )
        return host.removeprefix("[").removesuffix("]"), int(port)

    def bind(self, mode: int) -> socket.socket:
        """A socket that listens. A unix socket gets this mode; one that a dead process left is replaced."""
        try:
            if self.path is not None:
                return _bind_unix(self.path, mode)
            host, port = self._host_and_port()
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen on {self.text}: {error.strerror or error}") from error


def _bind_unix(path: Path, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """How to call what listens there."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


@contextlib.contextmanager
def listening(addresses: Sequence[Address], mode: int) -> Iterator[list[socket.socket]]:
    """Sockets for all addresses. Raises ``ConfigError``. What unix sockets leave behind is removed afterwards."""
    with contextlib.ExitStack() as stack:
        listeners = []
        for address in addresses:
            listeners.append(stack.enter_context(address.bind(mode)))
            if address.path is not None:
                stack.callback(address.path.unlink, missing_ok=True)
        yield listeners


class Server(uvicorn.Server):
    """uvicorn's server without its own log lines. It ends when told; the first time after ``linger`` seconds.

    Args:
        app: the application.
        grace: seconds for which answers under way are waited for.
        linger: seconds for which it goes on serving after it was told to end.
        on_leave: called when it is told to end, so that ``/readyz`` can say so.
        signals: end at SIGTERM and SIGINT.
    """

    def __init__(
        self,
        app: Any,
        *,
        grace: float,
        linger: float = 0.0,
        on_leave: Callable[[], None] = lambda: None,
        signals: bool = True,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                loop="none",
                ws="none",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, round(grace)),
            )
        )
        self._linger = linger
        self._on_leave = on_leave
        self._signals = signals
        self._is_leaving = False
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """For uvicorn."""
        await super().startup(sockets)
        self.up.set()

    def leave(self) -> None:
        """End, after ``linger`` seconds; at once if it was told before. For the event loop."""
        if self._is_leaving or self._linger <= 0:
            self.stop()
        else:
            asyncio.get_running_loop().call_later(self._linger, self.stop)
        if not self._is_leaving:
            self._is_leaving = True
            self._on_leave()

    def stop(self) -> None:
        """End at once."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """For uvicorn."""
        with super().capture_signals() if self._signals else contextlib.nullcontext():
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """For uvicorn: SIGINT or SIGTERM came."""
        asyncio.get_running_loop().call_soon_threadsafe(self.leave)
