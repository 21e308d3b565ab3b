"""The guide on what to do after a scale-out: its pod and its program are run."""

from __future__ import annotations

import asyncio

from support.documents import block, executed

from sfroute import AsyncPodAgent, AsyncRouter, Handover, OutcomeUnknown
from sfroute.embedded import LocalServer

PAGE = "docs/how-to/scale-out.md"


async def test_pods_hand_users_over_and_the_program_says_how_many_are_left() -> None:
    saved: dict[str, int] = {}
    closed: list[tuple[str, int]] = []
    still_handled: list[str] = []
    connections: dict[str, list[Connection]] = {}

    class Connection:
        def __init__(self, uid: str) -> None:
            self.uid = uid

        async def close(self, code: int) -> None:
            closed.append((self.uid, code))

    async def save(uid: str, fence: int) -> None:
        if uid in connections:
            still_handled.append(uid)
        saved[uid] = fence

    class Interrupted:
        """An agent whose first release the store does not confirm in time."""

        def __init__(self, agent: AsyncPodAgent) -> None:
            self.events = agent.events
            self.agent = agent

        async def release(self, event: Handover) -> bool:
            released = await self.agent.release(event)
            if len(saved) == 1:
                raise OutcomeUnknown("no reply")
            return released

    with (
        LocalServer() as server,
        executed(block(PAGE, "python", 0)) as pod,
        executed(block(PAGE, "python", 1)) as program,
    ):
        async with (
            AsyncRouter.from_url(server.url) as router,
            AsyncPodAgent(router, "production", "chat", 0, sigterm=False) as old,
        ):
            fences = {}
            for number in range(20):
                uid = f"u{number}"
                fences[uid] = (await old.accept(uid)).fence
            connections |= {uid: [Connection(uid)] for uid in fences}
            async with AsyncPodAgent(router, "production", "chat", 1, sigterm=False):
                heeding = asyncio.create_task(pod["heed"](Interrupted(old), save, connections))
                assert await asyncio.to_thread(program["spread"], server.url) == 0
                assert len(saved) == 8
                assert still_handled == []
                assert saved.items() <= fences.items()
                assert closed == [(uid, 1012) for uid in saved]
                assert not any(map(old.owns, saved))
                for uid in saved:
                    assert (await router.route("production", uid, "chat")).pod == 1
        await heeding
