"""``race.py FOLDER UID SLOT TURNS``: what ``race.mjs`` does."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "gateway"))

from counters import Counters, Fenced


async def main(folder: str, uid: str, slot: int, turns: int) -> None:
    counters = Counters(f"{folder}/")
    print("ready", flush=True)
    sys.stdin.readline()
    acknowledged = []
    for _ in range(turns):
        fence = time.time_ns() // 10**6 * 4000 + slot
        for _ in range(3):
            try:
                acknowledged.append((fence, await counters.add(uid, fence)))
            except Fenced:
                break
    print("\n".join(f"{fence} {count}" for fence, count in acknowledged))


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
