"""The programs of examples/gateway import each other by name; so do their tests."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

sys.path.insert(0, str(ROOT / "examples" / "gateway"))
