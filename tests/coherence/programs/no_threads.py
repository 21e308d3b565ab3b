"""No thread can be started: a stack of 16 TiB cannot be had. Then one can. Prints ``ok``.

Argument: URL of a single server.
"""

from __future__ import annotations

import sys
import threading

from sfroute import Router, StoreUnavailable

(url,) = sys.argv[1:]
usual = threading.stack_size(2**44)
router = Router.from_url(url)
try:
    router.open()
except StoreUnavailable as error:
    assert "no thread could be started" in str(error)  # noqa: PT017
else:
    raise AssertionError("a thread was started")
threading.stack_size(usual)
with router:
    assert router.get_linked_pod("none", "ada", "chat") is None
print("ok")
