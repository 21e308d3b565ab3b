"""Whether a pod that turns a user away has only moved: it was restarted, and listens at another address now."""

from __future__ import annotations

from .._commands.command import Command
from .._contract.claims import ClaimRecord, parse_record
from .._contract.keys import claim_key
from .._net.connection import encode
from .._pods.views import ServiceView
from ..errors import StoreUnavailable
from ..types import Link
from .engine import Engine, Parts
from .forgotten import RESERVE_SECONDS

__all__ = ["is_elsewhere"]


async def is_elsewhere(
    engine: Engine, link: tuple[str, str, str], found: Link, give_up: float
) -> bool:
    """True if the pod says another address by now than ``found`` has, where it turned the user away. False if the user
    may be moved off it.

    While the pods cannot be read, another gateway may have seen the pod start again, and have sent the user there. The
    claim tells: if the life at that address has the user, nobody has. If not, the pods are asked for, until the
    deadline or, where nobody has the user, until routing needs what is left. ``link``: namespace, uid and service,
    checked. ``give_up``: the deadline of the call that this is the first part of, as an instant.

    Raises what ``route()`` raises; ``StoreUnavailable`` if another life of the pod has the user, and where that
    listens could not be read.
    """
    if found.address is None:
        return False
    namespace, _, service = link
    parts = await engine.opened_by(give_up, "route")
    seen = await parts.views.look(namespace, service, fresh=True, give_up=give_up)
    if seen.view is None or seen.current or _has_moved(seen.view, found):
        return seen.view is not None and _has_moved(seen.view, found)
    pod = seen.view.pods.get(found.pod)
    life = pod.life if pod is not None else None
    claim = await _claim_of(parts, link, give_up)
    claimed_by = claim.life if claim is not None and claim.pod == found.pod else None
    if claimed_by is not None and claimed_by == life:
        return False
    elsewhere = claimed_by is not None and life is not None
    reserve = 0.0 if elsewhere else min(RESERVE_SECONDS, (give_up - engine.clock()) / 2)
    try:
        view = await parts.views.get(namespace, service, fresh=True, give_up=give_up - reserve)
    except StoreUnavailable:
        if elsewhere:
            raise
        return False
    return _has_moved(view, found)


def _has_moved(view: ServiceView, found: Link) -> bool:
    return view.addresses.get(found.pod) not in (None, found.address)


async def _claim_of(parts: Parts, link: tuple[str, str, str], give_up: float) -> ClaimRecord | None:
    key = claim_key(*link)
    record = await parts.commands.run(Command("route", key, "GET", encode("GET", key)), give_up)
    return parse_record(record.decode("utf-8", "replace")) if isinstance(record, bytes) else None
