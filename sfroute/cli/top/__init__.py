"""``sfroute top``: a live screen. One module gathers the facts, another draws them."""

from .command import top

__all__ = ["top"]
