"""The pods of examples/gateway import each other by name; so does what starts them here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "gateway"))
