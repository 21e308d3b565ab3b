"""Policies that go by what pods say of themselves: labels, version, room. Pure.

Each sorts the candidates into groups and lets another policy, ``then``, order the best group. The rest follow by load:
the script that places a uid takes the first pod that is not gone, so they matter only if all of the best have gone
meanwhile. They are not ranked by ``then``, because a policy may remember what it has ranked (``RoundRobin``).

A pod without room is never in the best group while another pod has room.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from .._contract.attributes import is_label, is_label_name
from ..errors import InvalidArgument
from .policies import Candidate, Policy, PowerOfTwoChoices, Rendezvous, check_policy

__all__ = ["NewestVersion", "Prefer", "Require", "SoftAffinity", "version_key"]


class Prefer:
    """The pods with a label first, in the order of ``then``; the others, by load, if none of those has room.

    Args:
        label: the label's name, such as ``"zone"``.
        value: its value, such as ``"a"``.
        then: orders the pods that have it, and all pods if none has. None: the power of two choices.
    """

    def __init__(self, label: str, value: str, then: Policy | None = None) -> None:
        self._label, self._value = _checked(label, value)
        self._then = _checked_then(then)

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        return _best_first(
            self._then, uid, candidates, lambda one: one.labels.get(self._label) == self._value
        )


class Require:
    """Only the pods with a label, in the order of ``then``. If none may take the uid, ``NoRoutablePod`` says so.

    Args:
        label: the label's name, such as ``"tier"``.
        value: its value, such as ``"gpu"``.
        then: orders the pods that have it. None: the power of two choices.
    """

    def __init__(self, label: str, value: str, then: Policy | None = None) -> None:
        self._label, self._value = _checked(label, value)
        self._then = _checked_then(then)

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        found = [one for one in candidates if one.labels.get(self._label) == self._value]
        return list(self._then.rank(uid, found)) if found else []


class NewestVersion:
    """The pods of the newest version first, in the order of ``then``; then the next newer one, and so on.

    For rolling updates: who has to leave a pod goes to one that is not about to leave, too. Versions are compared as
    Semantic Versioning does, whatever the number of parts: 2.10 is newer than 2.9, and 2.1 than 2.1-rc.1. Pods without
    the label come last.

    Args:
        label: the name of the label that holds the version.
        then: orders the pods of one version. None: the power of two choices.
    """

    def __init__(self, label: str = "version", then: Policy | None = None) -> None:
        self._label, _ = _checked(label, "")
        self._then = _checked_then(then)

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        keys = {
            one.id: version_key(one.labels[self._label]) if self._label in one.labels else ()
            for one in candidates
        }
        with_room = [one for one in candidates if _has_room(one)] or candidates
        newest = max(keys[one.id] for one in with_room)
        return _best_first(
            self._then,
            uid,
            candidates,
            lambda one: keys[one.id] == newest,
            lambda others: sorted(others, key=lambda one: keys[one.id], reverse=True),
        )


class SoftAffinity:
    """The same pod for a uid on every gateway, as long as that pod has room: for caches worth finding again, such as
    those of prompt prefixes.

    Pods are in the order of ``Rendezvous``. A pod whose share in use has reached ``spill_at`` is passed over for the
    next one; if all have, ``then`` decides. The share is that of ``max_claims`` if the pod has a limit, else its load
    per capacity.

    Args:
        spill_at: the share, ``> 0``. For loads that are counts it is a count.
        then: orders the pods if all of them are that full. None: the power of two choices.
    """

    def __init__(self, spill_at: float = 0.8, then: Policy | None = None) -> None:
        if isinstance(spill_at, bool) or not isinstance(spill_at, (int, float)) or not spill_at > 0:
            raise InvalidArgument("spill_at must be a number > 0")
        self._spill_at = spill_at
        self._then = _checked_then(then)
        self._affinity = Rendezvous()

    def rank(self, uid: str, candidates: Sequence[Candidate]) -> list[int]:
        """See ``Policy``."""
        free = [one for one in candidates if _has_room(one) and _used(one) < self._spill_at]
        if not free:
            return _best_first(self._then, uid, candidates, lambda one: True)
        chosen = self._affinity.rank(uid, free)
        return [*chosen, *_others(candidates, chosen)]


def _used(one: Candidate) -> float:
    """The share of a pod that is in use."""
    if one.max_claims and one.room is not None:
        return 1.0 - one.room / one.max_claims
    return one.load


def _has_room(one: Candidate) -> bool:
    return one.room is None or one.room > 0


def _best_first(
    then: Policy,
    uid: str,
    candidates: Sequence[Candidate],
    is_best: Callable[[Candidate], bool],
    order: Callable[[list[Candidate]], list[Candidate]] = lambda others: others,
) -> list[int]:
    """The best in the order of ``then``, and the rest by load, those of ``order`` first."""
    with_room = [one for one in candidates if _has_room(one)] or candidates
    best = [one for one in with_room if is_best(one)] or with_room
    chosen = list(then.rank(uid, best))
    return [*chosen, *_others(candidates, chosen, order)]


def _others(
    candidates: Sequence[Candidate],
    chosen: Sequence[int],
    order: Callable[[list[Candidate]], list[Candidate]] = lambda others: others,
) -> list[int]:
    listed = set(chosen)
    others = sorted(
        (one for one in candidates if one.id not in listed), key=lambda one: (one.load, one.id)
    )
    return [one.id for one in sorted(order(others), key=lambda one: not _has_room(one))]


def _checked(label: str, value: str) -> tuple[str, str]:
    if not is_label_name(label):
        raise InvalidArgument(
            "label must be the name of a label: a str of 1 to 64 bytes, all printable"
        )
    if not is_label(value):
        raise InvalidArgument(
            "value must be the value of a label: a str of at most 128 bytes, all printable"
        )
    return label, value


def _checked_then(then: Policy | None) -> Policy:
    check_policy(then, "then")
    return PowerOfTwoChoices() if then is None else then


# --- versions

_Part = tuple[int, int, str]
_END: Final[_Part] = (-1, 0, "")
"""Less than any part: of two versions that begin alike the shorter is the older."""
_RELEASE: Final[_Part] = (2, 0, "")
"""Stands for "no pre-release", which is newer than any."""


def version_key(version: str) -> tuple[tuple[_Part, ...], tuple[_Part, ...]] | tuple[()]:
    """What versions are sorted by (Semantic Versioning 2.0.0, section 11); never raises.

    A leading ``v`` and what follows a ``+`` do not count. Missing parts are zeros: 2.1 is as new as 2.1.0. A part that
    is no number is newer than any number.
    """
    release, _, pre = version.partition("+")[0].removeprefix("v").partition("-")
    parts = [_part(part) for part in re.split(r"[.\s]+", release) if part]
    while parts and parts[-1] == (0, 0, ""):
        parts.pop()
    suffix = (*(_part(part) for part in pre.split(".")), _END) if pre else (_RELEASE,)
    return ((*parts, _END), suffix)


def _part(text: str) -> _Part:
    if text.isascii() and text.isdigit():
        return (0, int(text), "")
    return (1, 0, text)
