"""The requests of the failover scene: who asks, and when. Every run has the same ones."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

__all__ = ["Traffic"]


@dataclass(frozen=True, slots=True)
class Traffic:
    """A stream of requests whose users are as unequal as users are.

    Attributes:
        requests: how many.
        users: from how many uids.
        exponent: of Zipf's law: the user of rank k makes a share of the requests proportional to 1 / k**exponent. Of
            visits to web pages it is 0.64 to 0.83 (Breslau et al., "Web Caching and Zipf-like Distributions", 1999).
        rate: requests per second, on average; they arrive at random (a Poisson process).
        seed: of the random numbers.
    """

    requests: int = 20_000
    users: int = 5_000
    exponent: float = 0.8
    rate: float = 2_000.0
    seed: int = 20_000

    def uid(self, rank: int) -> str:
        """The uid of the user of this rank."""
        return f"user-{rank:05d}"

    def uids(self) -> list[str]:
        """Every uid that may ask."""
        return [self.uid(rank) for rank in range(1, self.users + 1)]

    def stream(self) -> list[tuple[float, str]]:
        """All requests in order: seconds after the start, and the uid that asks."""
        source = random.Random(self.seed)
        ranks = range(1, self.users + 1)
        weights = list(itertools.accumulate(1 / rank**self.exponent for rank in ranks))
        who = source.choices(ranks, cum_weights=weights, k=self.requests)
        when = itertools.accumulate(source.expovariate(self.rate) for _ in range(self.requests))
        return [(seconds, self.uid(rank)) for seconds, rank in zip(when, who, strict=True)]

    def share(self, gateway: int, gateways: int) -> list[tuple[float, str]]:
        """The requests that arrive at one of several gateways: a load balancer deals them out in turn."""
        return self.stream()[gateway::gateways]
