"""Breaks real clusters under load, keeps a history of every call, and checks it.

``python -m tests.faults`` runs the whole schedule; ``docs/explanation/faults.md`` tells what came of it.
"""

import sys
from pathlib import Path

# ``tests/support`` is found as pytest finds it, also by ``python -m tests.faults``.
_TESTS = str(Path(__file__).resolve().parent.parent)
if _TESTS not in sys.path:
    sys.path.insert(0, _TESTS)
