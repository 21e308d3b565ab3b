"""``sfroute doctor``: does the router have what it needs? Some modules gather facts, others judge them."""

from .command import doctor

__all__ = ["doctor"]
