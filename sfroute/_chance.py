"""Random numbers: for pauses that a fleet must not make in step, and for policies that choose by lot."""

from __future__ import annotations

import random

chance = random.SystemRandom()
"""Not the generator of the module: an application that seeds it draws the same numbers with sfroute as without.

And not a ``random.Random`` either: after a fork, all workers would choose the same pods.
"""
