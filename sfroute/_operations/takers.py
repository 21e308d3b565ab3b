"""Who may take a uid, what is said of a link for that, and why nobody may. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from .._contract.pod_states import rejections
from .._pods.views import Seen, ServiceView
from ..errors import NoRoutablePod
from ..types import Link, Pod, PodView

__all__ = ["Takers", "marked", "nobody"]


class Takers(NamedTuple):
    """Who may take a uid, and what that is known by; ``current``: as good as it should be."""

    view: ServiceView
    pods: list[Pod]
    current: bool

    def loses(self, pod: int) -> bool:
        """As ``Seen.loses``."""
        return Seen(self.view, self.current).loses(pod)

    def mode(self, excluded: Collection[int]) -> str:
        """``"settle"`` if only the caller's word is against these pods: for that a link is not moved to and fro.
        ``"place"`` if they say themselves that they are gone or full.
        """
        known = (self.loses(pod) or self.view.rooms.get(pod) == 0 for pod in excluded)
        return "place" if all(known) else "settle"

    def lose(self) -> list[int]:
        """The pods whose users are moved by ``Seen.loses``."""
        return self.view.leaving() if self.current else []


def marked(link: Link, known: Seen | Takers) -> Link:
    """The link, with what was known of the pods when it was decided."""
    view = known.view
    if view is None:
        return link._replace(pod_view="old")
    pod_view: PodView = "current"
    if not known.current:
        pod_view = "old"
    elif link.pod in view.spared:
        pod_view = "silent"
    return link._replace(pod_view=pod_view, address=view.addresses.get(link.pod))


def nobody(link: tuple[str, str, str], takers: Takers, exclude: Collection[int]) -> NoRoutablePod:
    """The error that says of each pod of the service why it may not take the uid."""
    view = takers.view
    rejected = dict.fromkeys(view.pods, "not heard of for too long")
    rejected.update(dict.fromkeys(view.emptied & view.pods.keys(), "is being emptied"))
    rejected.update(
        (pod, f"has no room: all {view.pods[pod].max_claims} that it takes")
        for pod, room in view.rooms.items()
        if not room
    )
    for pod in takers.pods:
        rejected[pod.id] = (
            "not proposed by the policy, or the uid was moved off it just now, or twice within a minute"
        )
    rejected.update(rejections(view.pods, view.gone, exclude))
    return NoRoutablePod(link[0], link[2], rejected)
