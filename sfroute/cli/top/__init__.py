"""``sfroute top``: a live screen. What is seen is gathered in one module, and drawn in another."""

from .command import top

__all__ = ["top"]
