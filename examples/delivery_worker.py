"""A worker on asyncio: messages for users come in, and go out to their pods, one delivery per pod.

    python examples/delivery_worker.py URL < messages.txt

Each line is a uid, a space and a text. The worker takes up to a hundred lines at a time, and reads the links of all
their users in one round trip to each node of the cluster. Cached links need none.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator

from sfroute import AsyncRouter

NAMESPACE, SERVICE = "example", "chat"
AT_A_TIME = 100


async def batches(lines: asyncio.StreamReader) -> AsyncIterator[dict[str, list[str]]]:
    """uid -> texts, of what has come since the last time."""
    waiting: asyncio.Queue[bytes] = asyncio.Queue(AT_A_TIME)

    async def read() -> None:
        async for line in lines:
            await waiting.put(line)
        await waiting.put(b"")

    reading = asyncio.create_task(read())
    line = b"go on"
    while line:
        batch: dict[str, list[str]] = defaultdict(list)
        line = await waiting.get()
        while line:
            uid, _, text = line.decode().rstrip("\n").partition(" ")
            batch[uid].append(text)
            if waiting.empty() or len(batch) == AT_A_TIME:
                break
            line = await waiting.get()
        yield batch
    await reading


async def deliver(pod: int, messages: dict[str, list[str]]) -> None:
    """Where a real worker would send one request to the pod."""
    print(f"{SERVICE}-{pod}: {sum(map(len, messages.values()))} messages", flush=True)


async def work(url: str) -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    async with AsyncRouter.from_url(url) as router:
        async for batch in batches(lines):
            pods = await router.batch_get_linked_pod(NAMESPACE, list(batch), SERVICE)
            async with asyncio.TaskGroup() as deliveries:
                for pod, uids in pods.items():
                    deliveries.create_task(deliver(pod, {uid: batch[uid] for uid in uids}))
            absent = len(batch) - sum(map(len, pods.values()))
            if absent:
                # Who is linked to no pod is not there: what to do with their messages is the application's business.
                print(f"{absent} users are at no pod", flush=True)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))
