"""What callers hold: ``AsyncRouter`` for asyncio, ``Router`` for threads, and the agents of pods."""
