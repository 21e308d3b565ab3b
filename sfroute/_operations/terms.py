"""What a caller of ``route()`` asks for, and the checks of it."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Final

from .._contract.keys import check_pod
from .._pods.policies import Policy
from ..errors import InvalidArgument

__all__ = ["RouteTerms", "checked_exclude", "checked_wait"]

MAX_WAIT: Final = 10.0**9


@dataclass(frozen=True, slots=True)
class RouteTerms:
    """What a caller of ``route()`` asks for, checked.

    Attributes:
        persist_seconds: the kind of link to make.
        policy: how to choose; None: the router's own.
        exclude: pods that must not be used.
        fresh: neither the link nor the pods from a cache.
        wait: seconds to wait for a pod that may take the uid.
        beside: the uid next to which the uid is placed, None for none; checked.
    """

    persist_seconds: int
    policy: Policy | None
    exclude: frozenset[int]
    fresh: bool
    beside: str | None = None
    wait: float = 0.0

    @property
    def question(self) -> Hashable:
        """Equal for terms under which two placements of a uid are one."""
        return self.persist_seconds, id(self.policy), self.exclude, self.beside


def checked_exclude(exclude: Collection[int]) -> frozenset[int]:
    """The pods that must not be used. Raises ``InvalidArgument``."""
    if not isinstance(exclude, Collection) or isinstance(exclude, (str, bytes)):
        raise InvalidArgument(
            f"exclude must be a collection of pod ids, not {type(exclude).__name__}"
        )
    for pod in exclude:
        check_pod(pod, "exclude")
    return frozenset(exclude)


def checked_wait(wait: float | None) -> float:
    """Seconds to wait, 0.0 for None. Raises ``InvalidArgument``."""
    if wait is None:
        return 0.0
    if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not 0 <= wait <= MAX_WAIT:
        raise InvalidArgument("wait must be seconds >= 0, or None")
    return float(wait)
