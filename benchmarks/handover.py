"""What waking a thread costs, without a network or a router: the floor of a lookup that a thread waits for.

    python benchmarks/handover.py [--threads N] [--rounds N]

As in ``sfroute/_fronts/background.py``: threads put a lock into a queue and wait for it; one other thread takes what
is there and releases the locks.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections import deque
from contextlib import suppress

from harness import machine

EACH = 2000
"""How often each thread waits in one round."""


def handover(threads: int) -> float:
    """Seconds for each wait."""
    inbox: deque[threading.Lock | None] = deque()
    bell = threading.Lock()
    bell.acquire()

    def ring() -> None:
        with suppress(RuntimeError):  # it rings already
            bell.release()

    def serve() -> None:
        while True:
            bell.acquire()
            while inbox:
                lock = inbox.popleft()
                if lock is None:
                    return
                lock.release()

    def ask() -> None:
        for _ in range(EACH):
            lock = threading.Lock()
            lock.acquire()
            inbox.append(lock)
            ring()
            lock.acquire()

    server = threading.Thread(target=serve)
    crew = [threading.Thread(target=ask) for _ in range(threads)]
    server.start()
    began = time.perf_counter()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    seconds = (time.perf_counter() - began) / (threads * EACH)
    inbox.append(None)
    ring()
    server.join()
    return seconds


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    handover(options.threads)
    found = [handover(options.threads) for _ in range(options.rounds)]
    print(machine("sfroute"))
    print(
        f"{options.threads} threads, {options.rounds} rounds: {statistics.median(found) * 1e6:.1f} us "
        f"({min(found) * 1e6:.1f}-{max(found) * 1e6:.1f}) for each wait"
    )


if __name__ == "__main__":
    main()
