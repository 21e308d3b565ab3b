"""``sfroute where``: all that is stored of one link, and of the pod that it leads to."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from .._contract.claims import ClaimRecord, parse_record
from .._contract.keys import check_link_names, claim_key, left_key, link_key, link_prefix
from .._contract.pod_states import gone
from .._contract.replies import corrupt, script_pod
from ..errors import StoreError
from ..types import Pod
from .common import (
    NO,
    AsJson,
    Namespace,
    Service,
    Url,
    as_json_line,
    complain,
    open_router,
    require,
    run,
    write,
)
from .nodes import NODE_ERRORS, code_of, failed, open_store
from .nothing import end_with_nothing
from .pods import POD_TIMEOUT, PodTimeout, router_config, status_words

__all__ = ["where"]

_MICROSECONDS: Final = 1_000_000
_UNREAD: Final = "the link could not be read"
_NOTE: Final = re.compile(rb"(gone|away|excluded):(\d{1,19}):(\d{1,19}):(\d{1,13})(?: |$)")
"""The newest move, as statefulComputeLinkIfAbsent notes it."""
_WHY: Final = {
    "gone": "pod {} was gone, or full",
    "away": "the user was away while pod {} drained",
    "excluded": "a gateway could not use pod {}",
}

_NOT_RECORDED: Final = (
    "not recorded: a gateway that moves a link off a pod records why, for ten minutes; first placements, evacuations, "
    "rebalances and writes record nothing"
)


def where(
    uid: Annotated[str, typer.Argument(help="The user.", show_default=False)],
    pod_timeout: PodTimeout = POD_TIMEOUT,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Show where a uid is: its link, the pod's address and last heartbeat, and which life claimed it, and when.

    The row "why" says why a gateway has moved the link off another pod. That is kept for ten minutes. A first
    placement, an evacuation, a rebalance and a write keep no reason.

    If the states of the pods cannot be read, the link is told without them.

    A fence is the server's clock when the uid passed to its pod, or the last fence plus one if that is greater.

    Exit code 3 if the uid has no link.
    """
    require(url=url, namespace=namespace, service=service)
    check_link_names(namespace, uid, service)
    found, any_pod = run(_look(url, namespace, uid, service, pod_timeout))
    if as_json:
        sys.stdout.write(as_json_line({"uid": uid, "service": service, **found}))
    elif found["pod"] is not None:
        for row in _rows(found):
            write(*row)
    if found["pod"] is None:
        text = f"the uid has no link of service {service!r} in namespace {namespace!r}"
        if not any_pod:
            end_with_nothing(text, url=url, namespace=namespace, service=service)
        # Pods report: the names are right, and many uids have no link. Nothing is looked for in all keys.
        complain(text)
        raise typer.Exit(NO)


async def _look(
    url: str, namespace: str, uid: str, service: str, pod_timeout: float
) -> tuple[dict[str, Any], bool]:
    """What is found, and whether a pod of the service has reported; True if that cannot be read."""

    async def pods() -> Mapping[int, Pod] | StoreError:
        try:
            async with open_router(url, router_config(pod_timeout)) as router:
                return await router.get_pods(namespace, service, fresh=True)
        except StoreError as error:
            # The states are in another slot: the link is told without them.
            return error

    stored, reported = await asyncio.gather(_stored(url, namespace, uid, service), pods())
    if isinstance(reported, StoreError):
        return {**stored, "at": None, "at_unread": str(reported)}, True
    owner = stored["pod"]
    pod = reported.get(owner) if owner is not None else None
    about = None
    if pod is not None:
        about = {
            "status": pod.status,
            "dead": pod.id in gone({pod.id: pod}, pod_timeout),
            "age": pod.age,
            "life": pod.life,
            "address": pod.address,
            "labels": dict(pod.labels),
        }
    return {**stored, "at": about}, bool(reported)


async def _stored(url: str, namespace: str, uid: str, service: str) -> dict[str, Any]:
    link, claim = link_key(namespace, uid, service), claim_key(namespace, uid, service)
    hash_key = link_prefix(namespace, uid)
    async with open_store(url) as store:
        node = store.at(link)
        try:
            value, ttl, listed, record, noted = await node.ask_many(
                [
                    ("GET", link),
                    ("PTTL", link),
                    ("HGET", hash_key, service),
                    ("GET", claim),
                    ("GET", left_key(namespace, uid, service)),
                ]
            )
        except NODE_ERRORS as error:
            raise failed(_UNREAD, node.address, error) from None
    for key, reply in ((link, value), (link, ttl), (hash_key, listed)):
        if isinstance(reply, NODE_ERRORS):
            if code_of(reply) == "WRONGTYPE":
                raise corrupt(key, "a value that the contract does not allow")
            raise failed(_UNREAD, node.address, reply)
    pod = script_pod(value, link) if value is not None else None
    found: dict[str, Any] = {
        "pod": pod,
        "persistent": None if pod is None else ttl == -1,
        "expires_in": ttl / 1000 if pod is not None and ttl >= 0 else None,
        "listed": None if listed is None else script_pod(listed, hash_key),
        "why": _why(noted, pod),
    }
    if isinstance(noted, NODE_ERRORS):
        found["why_unread"] = code_of(noted)
    if isinstance(record, NODE_ERRORS):
        return {**found, "claim": None, "claim_unread": code_of(record)}
    return {**found, "claim": _claim(record, claim)}


def _why(noted: Any, pod: int | None) -> dict[str, Any] | None:
    """Why the link is where it is; None if that is not noted, or if it has been changed otherwise since."""
    found = _NOTE.match(noted) if isinstance(noted, bytes) else None
    if found is None or int(found[3]) != pod:
        return None
    at = datetime.fromtimestamp(int(found[4]) / 1000, UTC)
    return {
        "reason": found[1].decode(),
        "from": int(found[2]),
        "at": at.isoformat(timespec="seconds"),
    }


def _claim(record: Any, key: str) -> dict[str, Any] | None:
    if record is None:
        return None
    parsed: ClaimRecord | None = (
        parse_record(record.decode("utf-8", "replace")) if isinstance(record, bytes) else None
    )
    if parsed is None:
        raise corrupt(key, "no claim record")
    since = datetime.fromtimestamp(parsed.fence / _MICROSECONDS, UTC)
    return {
        "fence": parsed.fence,
        "pod": parsed.pod,
        "life": parsed.life,
        "since": since.isoformat(timespec="seconds"),
    }


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    kind = "persistent" if found["persistent"] else f"temporary, for {found['expires_in']:.0f} s"
    rows = [("link", f"pod {found['pod']}, {kind}")]
    if found["persistent"] and found["listed"] != found["pod"]:
        rows.append(("flaw", "the uid's hash does not list it; sfroute doctor --repair mends that"))
    rows.append(("why", _why_words(found)))
    at, claim = found["at"], found["claim"]
    if "at_unread" in found:
        rows.append(("pod", f"its state could not be read: {found['at_unread']}"))
    elif at is None:
        rows.append(("pod", "has reported no state"))
    else:
        heard = f", last heartbeat {at['age']:.1f} s ago" if at["age"] is not None else ""
        rows.append(("pod", f"{status_words(at)}{heard}"))
        if at["address"] is not None:
            rows.append(("address", at["address"]))
        if at["labels"]:
            said = (f"{name}={word}" for name, word in sorted(at["labels"].items()))
            rows.append(("labels", ",".join(said)))
    if claim is None:
        why = (
            f" could not be read ({found['claim_unread']})" if "claim_unread" in found else " none"
        )
        rows.append(("claim", why.strip()))
    elif claim["pod"] is None:
        rows.append(("claim", f"over; the last fence was {claim['fence']}"))
    else:
        words = _claim_words(claim, found["pod"], at)
        back = "" if found["persistent"] else ", if the user comes back in time"
        rows.append(("claim", words + back))
        rows.append(("fence", str(claim["fence"])))
        rows.append(("since", claim["since"]))
    return rows


def _why_words(found: Mapping[str, Any]) -> str:
    if "why_unread" in found:
        return f"could not be read ({found['why_unread']})"
    why = found["why"]
    return (
        _NOT_RECORDED
        if why is None
        else f"{_WHY[why['reason']].format(why['from'])}, at {why['at']}"
    )


def _claim_words(claim: Mapping[str, Any], pod: int, at: Mapping[str, Any] | None) -> str:
    if claim["pod"] != pod:
        return f"of pod {claim['pod']}, which does not count: the link leads elsewhere"
    if at is not None and at["life"] is not None and at["life"] != claim["life"]:
        return f"of life {claim['life']}, an earlier one of the pod; it runs as {at['life']}"
    return f"of life {claim['life']}"
