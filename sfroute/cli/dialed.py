"""Connections of redis-py's that begin like the router's own: the same TLS files, names and credentials."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from redis.asyncio.connection import Connection
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError, ResponseError

from .._net.connection import WireSettings
from .._net.credentials import CredentialsSource, NoCredentials
from .._net.dialer import Address, Dialer

__all__ = ["dialed"]


class _Connection(Connection):
    """A connection of redis-py's that begins like the router's own."""

    def __init__(self, *, dialer: Dialer, shown_as: str, **options: Any) -> None:
        super().__init__(**options)
        self._dialer = dialer
        self._shown_as = shown_as

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        # Not left to redis-py, for which a user without the right to CLIENT SETNAME cannot connect at all.
        await self.send_command("CLIENT", "SETNAME", self._shown_as)
        with contextlib.suppress(ResponseError):
            await self.read_response()

    async def _connect(self) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            reader = asyncio.StreamReader()
            transport, protocol = await self._dialer.connect(
                lambda: asyncio.StreamReaderProtocol(reader), Address(self.host, self.port)
            )
        self._reader = reader
        self._writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class _Provider(CredentialProvider):
    """The router's credentials, for redis-py."""

    def __init__(self, source: CredentialsSource) -> None:
        self._source = source

    async def get_credentials_async(self) -> Any:
        try:
            return await self._source.get()
        except NoCredentials as error:
            # redis-py closes the connection for errors of its own kind only.
            raise RedisError(str(error)) from error


def dialed(settings: WireSettings) -> dict[str, Any]:
    """The keyword arguments with which redis-py connects and authenticates as a router does."""
    options: dict[str, Any] = {"connection_class": _Connection, "dialer": settings.dialer}
    if settings.credentials.needed:
        options["credential_provider"] = _Provider(settings.credentials)
    return options
