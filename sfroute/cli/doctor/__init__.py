"""``sfroute doctor``: is everything as the router needs it? Facts are gathered here and judged there, apart."""

from .command import doctor

__all__ = ["doctor"]
