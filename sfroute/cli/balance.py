"""``sfroute balance``: how a service's users are spread over its pods."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

from .._contract.keys import check_service_names
from .._contract.pod_states import gone, rejections
from .._pods.balance import MAX_SKEW, Member, members, plan_moves, skew_of_members
from .._pods.policies import capacity_of
from ..types import Pod
from .common import (
    AsJson,
    Namespace,
    Service,
    Url,
    as_json_line,
    counted,
    open_router,
    plain_table,
    require,
    run,
    show,
    write,
)
from .nothing import end_with_nothing
from .pods import POD_TIMEOUT, PodTimeout, link_counts, router_config

__all__ = ["balance", "skew_of"]

_BAR: Final = 30


def balance(
    pod_timeout: PodTimeout = POD_TIMEOUT,
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Show how many users each pod of a service has, as bars, and whether that is even enough.

    The skew compares the fullest pod with an even share among the pods that take users, by capacity. 1.0 is even. It is
    balanced if `sfroute rebalance` would move nobody: up to 1.2, and above it where whole users or full pods leave no
    better spread. All links are counted, which scans all keys.

    Exit code 3 if no pod has reported and there are no links.
    """
    require(url=url, namespace=namespace, service=service)
    check_service_names(namespace, service)

    async def work() -> tuple[dict[int, Pod], Mapping[int, int]]:
        async with open_router(url, router_config(pod_timeout)) as router:
            pods = await router.get_pods(namespace, service, fresh=True)
        return pods, await link_counts(url, namespace, service) or {}

    pods, links = run(work())
    rows, spread = _rows(pods, links, pod_timeout), _spread(pods, links, pod_timeout)
    skew = skew_of_members(spread)
    to_move = sum(moves.users for moves in plan_moves(spread, MAX_SKEW))
    total = sum(links.values())
    if as_json:
        for row in rows:
            sys.stdout.write(as_json_line(row))
        balanced = None if skew is None else not to_move
        summary = {
            "links": total,
            "skew": skew,
            "elsewhere": _elsewhere(rows),
            "balanced": balanced,
            "to_move": to_move,
        }
        sys.stdout.write(as_json_line(summary))
    elif rows:
        _show(rows)
        even = "" if skew is None else f", skew {skew:.2f}"
        lost = f"; {_elsewhere(rows):,} at pods that are gone" if _elsewhere(rows) else ""
        write(f"{counted(total, 'link')}{even}{lost}")
        if skew is not None:
            write(_verdict(to_move))
    if not rows:
        text = f"no pod of {service!r} in namespace {namespace!r} has reported or has links"
        end_with_nothing(text, url=url, namespace=namespace, service=service)


def _verdict(to_move: int) -> str:
    if not to_move:
        return "balanced: `sfroute rebalance` would move nobody"
    return (
        f"not balanced: `sfroute rebalance` would move {counted(to_move, 'user')}; "
        "`sfroute rebalance --dry-run` shows from where to where"
    )


def _spread(pods: Mapping[int, Pod], links: Mapping[int, int], pod_timeout: float) -> list[Member]:
    """The pods that take users."""
    rejected = rejections(pods, gone(pods, pod_timeout))
    return members((pod for number, pod in pods.items() if number not in rejected), links)


def skew_of(pods: Mapping[int, Pod], links: Mapping[int, int], pod_timeout: float) -> float | None:
    """The users of the fullest pod by capacity, as a multiple of an even share; of the pods that take users.

    None if none has any. Pure.
    """
    return skew_of_members(_spread(pods, links, pod_timeout))


def _rows(
    pods: Mapping[int, Pod], links: Mapping[int, int], pod_timeout: float
) -> list[dict[str, Any]]:
    dead = gone(pods, pod_timeout)
    rejected = rejections(pods, dead)
    rows = []
    for number in sorted(pods.keys() | links.keys()):
        pod = pods.get(number)
        rows.append(
            {
                "pod": number,
                "links": links.get(number, 0),
                "takes_new_users": pod is not None and number not in rejected,
                "gone": pod is None or number in dead,
                "capacity": capacity_of(pod) if pod is not None else None,
                "room": pod.room if pod is not None else None,
                "max_claims": pod.max_claims if pod is not None else None,
            }
        )
    return rows


def _elsewhere(rows: list[dict[str, Any]]) -> int:
    return sum(row["links"] for row in rows if row["gone"])


def _show(rows: list[dict[str, Any]]) -> None:
    most = max(row["links"] for row in rows) or 1
    limited = any(row["room"] is not None for row in rows)
    cells = []
    for row in rows:
        bar = "#" * round(_BAR * row["links"] / most)
        note = "gone" if row["gone"] else "" if row["takes_new_users"] else "takes nobody"
        line = [str(row["pod"]), f"{row['links']:,}"]
        if limited:
            line.append("-" if row["room"] is None else f"{row['room']} of {row['max_claims']}")
        cells.append([*line, bar, note])
    headings = [">POD", ">LINKS", *([">ROOM"] if limited else []), "", ""]
    show(plain_table(headings, cells))
