"""Users of the counter: they count all the time, through any gateway, and check every answer.

A user may get another pod only if the pod's process has ended, and no count is ever lost: the next pod goes on where
the last one was. Anything else is a contradiction: another user's count, two pods that both count for one user.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

__all__ = ["Answer", "Crowd", "User", "contradictions"]


@dataclass(frozen=True)
class Answer:
    """What a user was told.

    Attributes:
        at: when (`time.monotonic`).
        process: the pod's process, None if the request failed: nobody knows then whether it counted.
        pod: the pod.
        count: the count.
        failure: why there is none.
    """

    at: float
    process: str | None = None
    pod: int = -1
    count: int = 0
    failure: str = ""


@dataclass
class User:
    """One user, and what they were told, in order."""

    uid: str
    answers: list[Answer] = field(default_factory=list)

    def hear(self, said: Mapping[str, Any]) -> None:
        self.answers.append(
            Answer(time.monotonic(), said["process"], said["pod"], int(said["count"]))
        )

    def fail(self, why: str) -> None:
        self.answers.append(Answer(time.monotonic(), failure=why))

    @property
    def counted(self) -> list[Answer]:
        """Those that were a count."""
        return [answer for answer in self.answers if not answer.failure]


class Crowd:
    """Users that count, until the block ends. Every fourth does it by WebSocket.

    Args:
        gateways: the addresses of the gateways; a user takes another one each time.
        users: how many.
        pause: seconds between two requests of a user, on average.
    """

    def __init__(self, gateways: list[str], users: int = 40, pause: float = 0.25) -> None:
        self.users = [User(f"user-{number}") for number in range(users)]
        self._gateways = gateways
        self._pause = pause
        self._working: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Crowd:
        limits = httpx.Limits(max_connections=len(self.users))
        self._http = httpx.AsyncClient(limits=limits, timeout=10, trust_env=False)
        for number, user in enumerate(self.users):
            count = self._by_websocket if number % 4 == 3 else self._by_http
            self._working.append(asyncio.create_task(count(user)))
        return self

    async def __aexit__(self, *error: object) -> None:
        for one in self._working:
            one.cancel()
        outcomes = await asyncio.gather(*self._working, return_exceptions=True)
        await self._http.aclose()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    @property
    def requests(self) -> int:
        return sum(len(user.answers) for user in self.users)

    @property
    def failures(self) -> list[str]:
        return [one.failure for user in self.users for one in user.answers if one.failure]

    async def more(self, rounds: int, seconds: float = 60) -> None:
        """Wait until each user has been told so many more counts.

        Raises:
            TimeoutError: some have not after so many seconds; why not, as far as they were told.
        """
        wanted = {user.uid: len(user.counted) + rounds for user in self.users}
        give_up = time.monotonic() + seconds
        while waiting := [user for user in self.users if len(user.counted) < wanted[user.uid]]:
            for one in self._working:
                if one.done():
                    one.result()
            if time.monotonic() > give_up:
                told = {user.answers[-1].failure for user in waiting if user.answers} - {""}
                raise TimeoutError(
                    f"{len(waiting)} of {len(self.users)} users could not count {rounds} times in "
                    f"{seconds:g} s: {', '.join(sorted(told)) or 'they got no answer'}"
                )
            await asyncio.sleep(0.02)

    async def _rest(self) -> None:
        await asyncio.sleep(random.uniform(0.5, 1.5) * self._pause)

    async def _by_http(self, user: User) -> None:
        for gateway in self._from_anywhere():
            try:
                response = await self._http.post(
                    f"{gateway}/count", headers={"x-user-id": user.uid}
                )
            except httpx.TransportError as error:
                user.fail(type(error).__name__)
            else:
                if response.status_code == 200:
                    user.hear(response.json())
                else:
                    user.fail(f"HTTP {response.status_code}")
            await self._rest()

    async def _by_websocket(self, user: User) -> None:
        for gateway in self._from_anywhere():
            address = gateway.replace("http://", "ws://")
            with contextlib.suppress(ConnectionClosed):
                try:
                    websocket = await connect(
                        f"{address}/ws", additional_headers={"x-user-id": user.uid}, proxy=None
                    )
                except InvalidStatus as refusal:
                    user.fail(f"HTTP {refusal.response.status_code}")
                except (OSError, InvalidHandshake) as error:
                    user.fail(type(error).__name__)
                else:
                    async with websocket:
                        await self._talk(user, websocket)
            await self._rest()

    async def _talk(self, user: User, websocket: ClientConnection) -> None:
        # Not for ever on one connection: reconnecting is what users do.
        for _ in range(20):
            with contextlib.suppress(TimeoutError):
                # Nothing was sent: a pod that closes now is no failure.
                async with asyncio.timeout(random.uniform(0.5, 1.5) * self._pause):
                    await websocket.recv()
            await websocket.send("count")
            try:
                said = httpx.Response(200, content=await websocket.recv()).json()
            except ConnectionClosed as closed:
                user.fail(type(closed).__name__)
                raise
            user.hear(said)

    def _from_anywhere(self) -> itertools.cycle[str]:
        return itertools.cycle(random.sample(self._gateways, len(self._gateways)))


def contradictions(user: User, ended: Mapping[str, float]) -> list[str]:
    """What a user was told that cannot be, if pods count right and two never count for one user.

    Args:
        user: the user.
        ended: processes of pods that were told to end, or killed, and when.
    """
    found = []
    left: set[str] = set()
    process, count, unsure = None, 0, 0
    for answer in user.answers:
        if answer.process is None:
            unsure += 1
            continue
        if answer.process != process:
            if process is not None and ended.get(process, float("inf")) > answer.at:
                found.append(f"moved from {process} to {answer.process}, but that one lives")
            if answer.process in left:
                found.append(f"moved back to {answer.process}")
            if process is not None:
                left.add(process)
            process = answer.process
        if not count < answer.count <= count + 1 + unsure:
            found.append(f"count {answer.count} after {count} ({unsure} requests had failed)")
        count, unsure = answer.count, 0
    return found
