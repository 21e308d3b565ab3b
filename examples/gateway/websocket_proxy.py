"""Forwards WebSockets: the pod's handshake first, then the client's, then messages in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import httpx
from forwarding import (
    TIMEOUT,
    NoAddress,
    end_to_end,
    headers_for_pod,
    is_refusal,
    report,
    reroute,
    unavailable,
    url_at_pod,
)
from spans import calling
from starlette.responses import PlainTextResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from sfroute import SfrouteError

__all__ = ["WebSocketProxy"]

HANDSHAKE_SECONDS = 10.0
"""For the pod's answer to a handshake. It claims the user first, which may take its own deadline for the store."""
ENDS = (ConnectionClosed, WebSocketDisconnect)
"""How a side that has gone is noticed."""


class Unreached(OSError):
    """No connection to the pod was made, so it has not seen the handshake."""


class WebSocketProxy:
    """Forwards WebSockets to the pod that the middleware has put into the scope."""

    async def forward(self, client: WebSocket) -> None:
        try:
            pod = await self._dial_pod(client)
        except (SfrouteError, NoAddress):
            await deny(client, unavailable())
        except InvalidStatus as refusal:
            await deny(client, passed_on(refusal))
        except TimeoutError:
            await deny(client, PlainTextResponse("the pod did not answer in time\n", 504))
        except (OSError, InvalidHandshake):
            await deny(client, PlainTextResponse("the pod was lost\n", 502))
        else:
            async with pod:
                await client.accept(subprotocol=pod.subprotocol)
                await relay(client, pod)

    async def _dial_pod(self, client: WebSocket) -> ClientConnection:
        """A connection to the user's pod; to another one if nobody listens there, once."""
        try:
            return await self._dial(client)
        except Unreached as error:
            if not is_refusal(error):
                report(client)
                raise
            await reroute(client)
        return await self._dial(client)

    async def _dial(self, client: WebSocket) -> ClientConnection:
        url = url_at_pod(client)
        headers = [
            # The library sends text in UTF-8.
            (name.decode("latin-1"), value.decode(errors="replace"))
            for name, value in headers_for_pod(client)
            # The headers of the handshake are the connection's own: the library makes new ones.
            if not name.startswith(b"sec-websocket-")
        ]
        with calling(client.scope["sfroute"]):
            connection = await reached(url)
            return await connect(
                str(url.copy_with(scheme="wss" if url.scheme == "https" else "ws")),
                additional_headers=headers,
                subprotocols=[Subprotocol(one) for one in client.scope["subprotocols"]] or None,
                user_agent_header=None,
                compression=None,
                open_timeout=HANDSHAKE_SECONDS,
                proxy=None,
                sock=connection,
            )


async def reached(url: httpx.URL) -> socket.socket:
    """A connection to the pod, in the time that it has for this alone. Raises `Unreached`."""
    loop = asyncio.get_running_loop()
    failures = []
    try:
        async with asyncio.timeout(TIMEOUT.connect):
            port = url.port or (443 if url.scheme == "https" else 80)
            every = await loop.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, address in every:
                try:
                    return await connected(family, kind, protocol, address)
                except OSError as error:  # another address may do
                    failures.append(error)
    except OSError as error:  # a TimeoutError is one
        raise Unreached from error
    raise Unreached from ExceptionGroup("no address of the pod could be reached", failures)


async def connected(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


def passed_on(refusal: InvalidStatus) -> Response:
    """The pod's answer to the handshake; if it is a 421 the middleware follows it."""
    said = refusal.response
    answer = Response(bytes(said.body or b""), said.status_code)
    answer.raw_headers += [
        (name, value)
        for name, value in end_to_end(
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in said.headers.raw_items()
        )
        if name not in {b"content-length", b"date", b"server"}
    ]
    return answer


async def deny(client: WebSocket, answer: Response) -> None:
    """Answer the handshake; a server that cannot closes instead."""
    if "websocket.http.response" in client.scope.get("extensions", {}):
        await client.send_denial_response(answer)
    else:
        await client.close(1013)


async def relay(client: WebSocket, pod: ClientConnection) -> None:
    """Pass messages on in both directions until one side closes; then close the other with its code."""

    async def to_pod() -> int | None:
        while (message := await client.receive())["type"] != "websocket.disconnect":
            text = message.get("text")
            await pod.send(message["bytes"] if text is None else text)
        code: int | None = message.get("code")
        return code

    async def to_client() -> None:
        async for data in pod:
            await (client.send_text(data) if isinstance(data, str) else client.send_bytes(data))

    relays = [asyncio.create_task(to_pod()), asyncio.create_task(to_client())]
    try:
        await asyncio.wait(relays, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in relays:
            one.cancel()
        outcomes = await asyncio.gather(*relays, return_exceptions=True)
    if pod.close_code is None:
        code = outcomes[0]
        await pod.close(sendable(code if isinstance(code, int) else None, lost=1001))
    else:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it may have left meanwhile
            # Of a pod that was lost the user learns that it is worth while to connect again.
            await client.close(sendable(pod.close_code, lost=1012), pod.close_reason)
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, ENDS):
            raise outcome


def sendable(code: int | None, lost: int) -> int:
    """The close code to pass on: two of them only say that none came (RFC 6455, 7.4.1)."""
    if code is None or code == 1005:
        return 1000
    return lost if code == 1006 else code
