"""``sfroute demo``: pods and gateways as processes of their own, on a real cluster that loses a primary.

``director`` starts everything and judges the outcome; ``pod`` and ``gateway`` are what it starts; ``child`` is how they
talk; ``traffic`` makes the requests; ``report`` shows what happened.
"""

from __future__ import annotations

from .command import demo

__all__ = ["demo"]
