"""How large a test of scale is: small enough for every run, or as large as the documents promise.

``SFROUTE_TEST_SIZE=full`` chooses the latter; ``make test-scale`` runs the tests marked ``scale`` with it.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["FULL", "size"]

FULL: Final = os.environ.get("SFROUTE_TEST_SIZE") == "full"


def size(usual: int, full: int) -> int:
    """A number of examples, links or rounds."""
    return full if FULL else usual
