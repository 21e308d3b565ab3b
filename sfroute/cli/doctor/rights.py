"""The rights of the router's user, one by one. The server is asked, and nothing is executed.

``redis.acl_check_cmd()`` (Redis 7.0) tells a script whether its caller may execute a command, so the right to ``EVAL``
is all that this takes. ACLs are each server's own: a replica without them breaks things only when it takes over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from ..._contract.keys import (
    claim_key,
    link_key,
    link_prefix,
    operation_key,
    rebalance_key,
    state_key,
    workload_key,
)
from ..common import counted, listed
from ..nodes import Node, Store, code_of
from .findings import Check, Finding

__all__ = ["Kind", "Right", "acl_name", "gather_rights", "judge_rights", "rights"]

_ASK: Final = "return redis.acl_check_cmd(unpack(ARGV)) and 1 or 0"
_NOBODY: Final = "sfroute-doctor"


class Kind(StrEnum):
    """The purpose of the URL's user. docs/how-to/secure.md has a rule for each."""

    GATEWAY = "gateway"
    POD = "pod"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Right:
    """A right, and its purpose.

    Attributes:
        command: what is asked for, on keys that nobody has.
        purpose: what does not work without it.
        needed: without it something fails; else something works less well.
        kinds: who needs it.
    """

    command: tuple[str, ...]
    purpose: str
    needed: bool = True
    kinds: frozenset[Kind] = frozenset(Kind)

    @property
    def name(self) -> str:
        """The command with its subcommand, and the kind of key."""
        container = self.command[0] in ("CLIENT", "CLUSTER", "SCRIPT")
        words = " ".join(self.command[: 2 if container else 1])
        kinds = [_kind(part) for part in self.command[1:] if part.startswith("sf:")]
        return f"{words} on {kinds[0]}" if kinds else words


def _kind(key: str) -> str:
    if key.startswith("sf:own:"):
        return "claim records (sf:own:*)"
    if key.startswith("sf:op:"):
        return "operation records (sf:op:*)"
    if ":state:" in key:
        return "states"
    if ":rebalance:" in key:
        return "the turns of rebalances"
    if ":workload:" in key:
        return "workload states"
    return "the hashes of uids" if key.endswith("}") else "links"


def rights(namespace: str, kind: Kind, *, cluster: bool) -> list[Right]:
    """Everything that the commands and scripts of such a program do."""
    link, links = link_key(namespace, _NOBODY, _NOBODY), link_prefix(namespace, _NOBODY)
    record, claim = operation_key(namespace, _NOBODY, "0"), claim_key(namespace, _NOBODY, _NOBODY)
    turn = rebalance_key(namespace, _NOBODY)
    state, workload = state_key(namespace, _NOBODY), workload_key(namespace, _NOBODY)
    look_ups, scripts, pods = "looking links up", "writing links", "knowing the pods"
    heartbeats, evacuation, claims = "heartbeats", "evacuation", "claiming users for a pod"
    reporting = frozenset({Kind.POD, Kind.OPERATOR})
    routing = frozenset({Kind.GATEWAY, Kind.OPERATOR})
    operating = frozenset({Kind.OPERATOR})
    found = [
        Right(("PING",), "telling a dead server from one that refuses", needed=False),
        Right(("GET", link), look_ups),
        Right(("PTTL", link), look_ups),
        Right(("HGETALL", links), look_ups, kinds=routing),
        Right(("EVALSHA", "0" * 40, "1", link), scripts),
        Right(("EVAL", "", "1", link), scripts),
        Right(("SET", link, "0"), scripts),
        Right(("DEL", link), scripts),
        Right(("EXPIRE", link, "1"), scripts),
        Right(("PEXPIRE", link, "1"), scripts, kinds=routing),
        Right(("PERSIST", link), "making a link persistent again", kinds=routing),
        Right(("HSET", links, _NOBODY, "0"), scripts),
        Right(("HDEL", links, _NOBODY), scripts),
        Right(("HEXISTS", links, _NOBODY), scripts, kinds=routing),
        Right(("HGET", links, _NOBODY), claims, kinds=reporting),
        Right(("GET", claim), claims, kinds=reporting),
        Right(("SET", claim, "0"), claims, kinds=reporting),
        Right(("PTTL", claim), claims, kinds=reporting),
        Right(("EXPIRE", claim, "1"), claims, kinds=reporting),
        Right(("PEXPIRE", claim, "1"), claims, kinds=reporting),
        Right(("PERSIST", claim), claims, kinds=reporting),
        Right(("GET", record), scripts),
        Right(("SET", record, "0"), scripts),
        Right(("PEXPIRE", record, "1"), scripts),
        Right(("PTTL", record), "handing users over", kinds=reporting),
        Right(("EVALSHA", "0" * 40, "1", state), pods),
        Right(("TIME",), pods),
        Right(("HGET", state, "0"), pods),
        Right(("HLEN", state), pods),
        Right(("HGETALL", state), pods),
        Right(("HSET", state, "0", ""), heartbeats, kinds=reporting),
        Right(("HDEL", state, "0"), heartbeats, kinds=reporting),
        Right(("GET", workload), "reading workload states", kinds=routing),
        Right(("SET", workload, ""), "writing workload states", kinds=operating),
        Right(
            ("CLIENT", "TRACKING", "ON"),
            "hearing of changes: answers are cached for half a second only",
            needed=False,
        ),
        Right(("INFO", "replication"), "noticing a primary that has lost its data", needed=False),
        Right(("WAIT", "1", "1"), "RouterConfig.min_replica_acks", needed=False),
        Right(("SCAN", "0"), evacuation, kinds=operating),
        *(
            Right((*words, turn, *more), "rebalancing", kinds=operating)
            for words, more in ((("GET",), ()), (("SET",), ("0",)), (("DEL",), ()))
        ),
    ]
    if cluster:
        found += [
            Right(("CLUSTER", "SLOTS"), "finding the servers"),
            Right(("ASKING",), "users whose slot is being moved"),
            Right(("CLUSTER", "NODES"), evacuation, needed=False, kinds=operating),
        ]
    return [right for right in found if kind in right.kinds]


async def gather_rights(
    store: Store, wanted: Sequence[Right]
) -> dict[str, Mapping[Right, bool] | str]:
    """Server -> the rights it gives; or, in a word, why it did not say."""

    async def ask(node: Node) -> list[Any]:
        return await node.ask_many([("EVAL", _ASK, 0, *right.command) for right in wanted])

    found: dict[str, Mapping[Right, bool] | str] = {}
    for node, replies in await store.of_each(ask):
        found[str(node.address)] = _read(wanted, replies)
    return found


def _read(wanted: Iterable[Right], replies: Any) -> Mapping[Right, bool] | str:
    if isinstance(replies, BaseException):
        return code_of(replies)
    given: dict[Right, bool] = {}
    for right, reply in zip(wanted, replies, strict=True):
        if isinstance(reply, BaseException):
            text = str(reply)
            if "acl_check_cmd" in text and "nil value" in text:
                return "OLD"
            if (code := code_of(reply)) == "NOPERM":
                return code
            # A command that this server does not know: what needs it is another check's business.
            continue
        given[right] = reply == 1
    return given


# --- judging; pure


def judge_rights(told: Mapping[str, Mapping[Right, bool] | str]) -> Check:
    """One finding per right that is missing somewhere."""
    missing: dict[Right, list[str]] = {}
    silent: dict[str, list[str]] = {}
    count = 0
    for server, given in told.items():
        if isinstance(given, str):
            silent.setdefault(given, []).append(server)
            continue
        count = max(count, len(given))
        for right, allowed in given.items():
            if not allowed:
                missing.setdefault(right, []).append(server)
    findings = [
        Finding(
            "error" if right.needed else "warning",
            f"no right to {right.name} at {listed(servers)}: needed for {right.purpose}",
            f"give it on every server: +{acl_name(right)}, and the key patterns; "
            "docs/how-to/secure.md has the whole rule",
        )
        for right, servers in missing.items()
    ]
    if refused := silent.pop("NOPERM", []):
        findings.append(
            Finding(
                "error",
                f"no right to EVAL at {listed(refused)}: scripts make every write, so none works",
                "give it on every server; docs/how-to/secure.md has the whole rule",
            )
        )
    if "OLD" in silent:
        return Check("rights", "servers before 7.0 do not tell", tuple(findings), skipped=True)
    if not count and not findings:
        return Check("rights", "no server told", skipped=True)
    summary = f"{counted(count, 'right')} at {counted(len(told), 'server')}"
    return Check("rights", summary, tuple(findings))


def acl_name(right: Right) -> str:
    """As ACL rules have it, such as ``script|load``."""
    container = right.command[0] in ("CLIENT", "CLUSTER", "SCRIPT")
    return "|".join(right.command[: 2 if container else 1]).lower()
