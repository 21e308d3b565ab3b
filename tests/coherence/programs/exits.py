"""The interpreter ends while a router is open, and somebody calls it still. Prints ``ok``.

Arguments: URL of a single server, namespace, and when the call comes.
"""

from __future__ import annotations

import atexit
import sys
import threading
from typing import TYPE_CHECKING

url, namespace, when = sys.argv[1:]
if TYPE_CHECKING:
    from sfroute import Router
router: Router | None = None


def call() -> None:
    from sfroute import RouterClosed

    assert router is not None
    for operation in (
        lambda: router.get_linked_pod(namespace, "unknown", "chat"),
        lambda: router.get_linked_pod(namespace, "ada", "chat"),
        lambda: router.set_linked_pod(namespace, "ada", "chat", 2),
        router.stats,
    ):
        try:
            operation()
        except RouterClosed:
            continue
        raise AssertionError("a call was answered after the router was closed")
    print("ok")


def call_while_it_is_open() -> None:
    assert router is not None
    assert router.get_linked_pod(namespace, "unknown", "chat") is None
    assert router.set_linked_pod(namespace, "ada", "chat", 2) == 1
    print("ok")


def first_use() -> None:
    """A router that nobody has used before: whether it works or says it is closed, it does not hang."""
    from sfroute import RouterClosed

    assert router is not None
    try:
        assert router.get_linked_pod(namespace, "unknown", "chat") is None
        router.close()
    except RouterClosed:
        pass
    print("ok")


# Exit handlers run in the reverse order of their registration; importing sfroute registers the one that closes routers.
if when == "before":
    atexit.register(call)
elif when == "first_use":
    atexit.register(first_use)

from sfroute import CacheConfig, RouterConfig  # noqa: E402
from sfroute import Router as _Router  # noqa: E402

router = _Router.from_url(url, config=RouterConfig(cache=CacheConfig(max_age=60.0)))
if when != "first_use":
    router.set_linked_pod(namespace, "ada", "chat", 1)
    assert router.get_linked_pod(namespace, "ada", "chat") == 1
if when == "after":
    atexit.register(call_while_it_is_open)
elif when == "daemon":
    # Threads that still ask while everything ends.
    def keep_asking() -> None:
        from sfroute import RouterClosed

        assert router is not None
        try:
            while True:
                router.get_linked_pod(namespace, "ada", "chat", fresh=True)
        except RouterClosed:
            pass

    for _ in range(4):
        threading.Thread(target=keep_asking, daemon=True).start()
    print("ok")
