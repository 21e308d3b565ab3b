"""Pods in Python, Node.js and Go behind one proxy: users count while pods are restarted in turn, and one is killed.

    python examples/polyglot/polyglot.py

What is not on this machine is left out, and said. It takes less than a minute, and ends everything that it has started.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import Counter
from itertools import pairwise

import httpx
from fleet import Fleet, say

USERS = 12
PAUSE = 0.04
WAIT_SECONDS = 30.0


class User:
    """One who counts.

    Attributes:
        counts: what they were told, in this order.
        answered_by: language -> answers.
        errors: what came instead of an answer -> how often.
    """

    def __init__(self, url: str, uid: str, leave: threading.Event) -> None:
        self.counts: list[int] = []
        self.answered_by: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._url, self._uid, self._leave = url, uid, leave
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        headers = {"X-User-Id": self._uid}
        with httpx.Client(base_url=self._url, headers=headers, trust_env=False, timeout=20) as http:
            while not self._leave.wait(PAUSE):
                try:
                    answer = http.post("/count")
                except httpx.TransportError as error:
                    self.errors[type(error).__name__] += 1
                    continue
                if answer.status_code == 200:
                    told = answer.json()
                    self.counts.append(told["count"])
                    self.answered_by[told.get("language", "python")] += 1
                else:
                    self.errors[f"status {answer.status_code}"] += 1

    @property
    def resets(self) -> int:
        """How often a pod did not know what an earlier one had counted."""
        return sum(later <= earlier for earlier, later in pairwise(self.counts))


def everybody_goes_on(users: list[User], more: int = 10) -> None:
    seen = [len(user.counts) for user in users]
    deadline = time.monotonic() + WAIT_SECONDS
    while any(len(u.counts) < n + more for u, n in zip(users, seen, strict=True)):
        if time.monotonic() > deadline:
            raise RuntimeError("some user gets no answer any more")
        time.sleep(0.05)


def main() -> int:
    began = time.monotonic()
    # `kill` ends it as Ctrl-C does: in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    leave = threading.Event()
    users: list[User] = []
    with Fleet() as fleet:
        try:
            users += [User(fleet.url, f"user{number}", leave) for number in range(USERS)]
            everybody_goes_on(users)
            say(f"{USERS} users count")
            for pod in fleet.languages:
                fleet.restart(pod)
            everybody_goes_on(users)
            fleet.kill(1)
            everybody_goes_on(users)
        finally:
            leave.set()
            for user in users:
                user.thread.join()
    return report(users, time.monotonic() - began)


def report(users: list[User], seconds: float) -> int:
    answered = sum((user.answered_by for user in users), Counter[str]())
    errors = sum((user.errors for user in users), Counter[str]())
    resets = sum(user.resets for user in users)
    rows = [
        ("requests", answered.total() + errors.total()),
        *((f"answered by {language}", count) for language, count in answered.most_common()),
        *((f"error: {what}", count) for what, count in errors.most_common()),
        ("errors", errors.total()),
        ("counters reset", resets),
    ]
    width = max(len(name) for name, _ in rows)
    say("\n" + "\n".join(f"{name:{width}}  {count:>6}" for name, count in rows))
    say(
        f"\n{seconds:.0f} s; a request under way at a pod that ends is lost, and the user tries again"
    )
    # One for each user and pod that has ended.
    return int(resets > 0 or errors.total() > len(users) * 4)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        sys.exit(f"the demo failed: {error}")
