"""A fork that runs none of Python's hooks (uWSGI's), and a background thread that does not run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sfroute import OutcomeUnknown, RetryConfig, Router, RouterConfig, StoreUnavailable
from sfroute.embedded import LocalServer

PROGRAM = Path(__file__).parent / "programs" / "foreign_fork.py"


@pytest.mark.parametrize("front", ["sync", "async"])
def test_workers_forked_without_hooks_have_routers_of_their_own(
    single: LocalServer, namespace: str, front: str
) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), single.url, namespace, front],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(
        [
            "shared [None, 1, 1, 1]",
            *(f"worker{n} [None, {10 * n}, 2, {10 * n}]" for n in range(1, 4)),
            *["ended 0"] * 3,
            "parent [None, 5, 2, 5]",
            "reconnects 0",
        ]
    )


@pytest.mark.slow
def test_nobody_waits_without_end_for_a_thread_that_is_held_up(
    single: LocalServer, namespace: str
) -> None:
    """By a credential provider that blocks, say. Calls that take long are no such thing."""
    config = RouterConfig(retry=RetryConfig(deadline=0.3))
    with Router.from_url(single.url, config=config) as router:
        router.set_linked_pod(namespace, "ada", "chat", 1)
        background = router._running()
        background.loop.call_soon_threadsafe(time.sleep, 8)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="does not run"):
            router.get_linked_pod(namespace, "bob", "chat")
        with pytest.raises(OutcomeUnknown, match="does not run"):
            router.set_linked_pod(namespace, "bob", "chat", 2)
        assert time.monotonic() - began < 6
