"""How a connection to a node begins: its name is resolved, an address of it that answers is found, TLS is agreed on.

A name may have several addresses, and the first may be silent: a node that was taken away, IPv6 without a route. They
are tried as RFC 8305 (Happy Eyeballs) says: the next one begins when the last has failed or been silent for
``ATTEMPT_DELAY``, those before it go on, and the first to connect wins. It all counts towards the caller's time.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Any, Final, NamedTuple, TypeVar

from ..errors import ConfigError
from .threads import BlockingQuestions
from .tls import TlsFiles

__all__ = ["ATTEMPT_DELAY", "Address", "AddressRemap", "Dialer", "remapped"]

_P = TypeVar("_P", bound=asyncio.BaseProtocol)

ATTEMPT_DELAY: Final = 0.25
"""Seconds after which the next address is tried beside a silent one; what RFC 8305 recommends."""
RESOLVER_THREADS: Final = 4
"""Names that can be asked for at once. A name whose resolver hangs takes one, however often it is asked for."""


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


AddressRemap = Callable[[tuple[str, int]], tuple[str, int]]
"""From the address that a node announces to the one where it can be reached; see ``RouterConfig.address_remap``."""


def remapped(remap: AddressRemap | None, announced: Address) -> Address:
    """Where a node can be reached.

    Raises:
        ConfigError: the application's function raised, or returned no address.
    """
    if remap is None:
        return announced
    try:
        reached = remap((announced.host, announced.port))
    except Exception as error:
        raise ConfigError(
            f"RouterConfig.address_remap raised {type(error).__name__} for {announced}; it must return (host, port)"
        ) from error
    # It is the application's: not everything that is typed is so.
    given: Any = reached
    match given:
        case (str(host), int(port)) if host and 0 < port < 65536:
            return Address(host, port)
    raise ConfigError(f"RouterConfig.address_remap must return (host, port) for {announced}")


class _Candidate(NamedTuple):
    """One of the addresses of a name."""

    family: int
    sockaddr: tuple[Any, ...]


class Dialer:
    """Connects to nodes, with TLS if there is any."""

    def __init__(self, tls: TlsFiles | None = None) -> None:
        self.tls: Final = tls
        self._resolver: BlockingQuestions[list[_Candidate]] = BlockingQuestions(
            "sfroute-resolver", RESOLVER_THREADS
        )

    async def connect(
        self, make_protocol: Callable[[], _P], address: Address
    ) -> tuple[asyncio.Transport, _P]:
        """Like the event loop's ``create_connection``. Raises ``OSError``, which includes ``ssl.SSLError``."""
        sock = await _first_to_connect(await self._resolve(address))
        try:
            return await asyncio.get_running_loop().create_connection(
                make_protocol,
                sock=sock,
                ssl=self.tls.context() if self.tls is not None else None,
                server_hostname=address.host if self.tls is not None else None,
            )
        except BaseException:
            sock.close()
            raise

    async def _resolve(self, address: Address) -> list[_Candidate]:
        try:
            return _look_up(address, socket.AI_NUMERICHOST)
        except socket.gaierror:
            pass  # a name, not an address
        found = await self._resolver.ask(address, lambda: _look_up(address, 0))
        return list(_families_in_turn(found))


def _look_up(address: Address, flags: int) -> list[_Candidate]:
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:
        # Python encodes the name before it asks: a label that is empty or too long.
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
    # The scope of a link-local address is a number behind it; with the name of it, asyncio would ask a resolver.
    return [
        _Candidate(family, (str(sockaddr[0]).partition("%")[0], *sockaddr[1:]))
        for family, _, _, _, sockaddr in found
    ]


def _families_in_turn(candidates: Iterable[_Candidate]) -> Iterable[_Candidate]:
    """IPv6 and IPv4 in turn, the resolver's first choice first."""
    by_family: dict[int, list[_Candidate]] = {}
    for candidate in candidates:
        by_family.setdefault(candidate.family, []).append(candidate)
    in_turn = chain.from_iterable(zip_longest(*by_family.values()))
    return (candidate for candidate in in_turn if candidate is not None)


async def _first_to_connect(candidates: list[_Candidate]) -> socket.socket:
    if len(candidates) == 1:
        return await _connected(candidates[0])
    waiting = deque(candidates)
    attempts: set[asyncio.Task[socket.socket]] = set()
    failure: OSError | None = None
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(asyncio.create_task(_connected(waiting.popleft())))
            done, _ = await asyncio.wait(
                attempts,
                timeout=ATTEMPT_DELAY if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                try:
                    sock = attempt.result()
                except OSError as error:
                    failure = failure or error
                    attempts.discard(attempt)
                else:
                    attempts.discard(attempt)
                    return sock
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_close_unwanted)
    raise failure or OSError("the name has no address")


def _close_unwanted(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _connected(candidate: _Candidate) -> socket.socket:
    sock = socket.socket(candidate.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, candidate.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock
