"""Everything that sfroute can do, a row each: the operations of its fronts, and the scripts in the store.

Read it to learn the interface; add a row to extend it. What the tests hold of every operation, or of every script, they
derive from these rows: bad arguments, spans, rights in the store, garbage as an answer, repetition after a lost reply.
``test_catalogue.py`` fails for whatever is public, or lies in ``lua_scripts/``, and has no row.

The rows speak of namespace ``ns``, uid ``ada`` and service ``chat``; ``arguments()`` puts other names in their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from unittest.mock import ANY

from support.program import LinkProgram, pod_or_none
from support.rows import Operation, Script

from sfroute import NoRoutablePod

SERVICE: Final = {"namespace": "ns", "service": "chat"}
LINK: Final = {"namespace": "ns", "uid": "ada", "service": "chat"}
TIMEOUT: Final = {"timeout": None}

SECRET: Final = "grace.hopper+1906"
"""A uid to be recognised wherever it turns up; every bad uid has it, if it has room for it."""


# --- operations


_PODS: Final[list[Any]] = [-1, True, False, 1.0, "1", b"1", None, 2**63, [0], float("nan")]
_NO_SHELL: Final = "a command is a process of its own: it has no cache, and makes its own router"
_OF_A_POD: Final = "the pod's process does it"

OPERATIONS: Final = (
    # Routing, and links
    Operation(
        name="route",
        access="write",
        args={
            **LINK,
            "persist_seconds": -1,
            "policy": None,
            "exclude": [9],
            "beside": None,
            "wait": 0.1,
            **TIMEOUT,
        },
        # None is for what the configuration says.
        bad={"persist_seconds": [0, -2, 2**63, True, 1.5, "60", float("inf")]},
        sends=("GET", "statefulGetService", "statefulComputeLinkIfAbsent"),
        cached=True,
        raises=(NoRoutablePod,),
        cli=("route", "ada"),
        model="it chooses: compute_link is what it decides by",
    ),
    Operation(
        name="get_linked_pod",
        access="read",
        args={**LINK, **TIMEOUT},
        sends=("GET",),
        cached=True,
        cli=("link", "get", "ada"),
    ),
    Operation(
        name="get_linked_pod_if_persist",
        access="read",
        args={**LINK, **TIMEOUT},
        sends=("GET",),
        cached=True,
        cli="`link get` tells the kind, too",
    ),
    Operation(
        name="batch_get_linked_pod",
        access="read",
        args={"namespace": "ns", "uids": ["ada"], "service": "chat", **TIMEOUT},
        sends=("GET",),
        cached=True,
        cli=("link", "batch", "ada"),
    ),
    Operation(
        name="get_link_service",
        access="read",
        args={"namespace": "ns", "uid": "ada", **TIMEOUT},
        sends=("HGETALL",),
        cached=True,
        cli=("link", "services", "ada"),
    ),
    Operation(
        name="set_linked_pod",
        access="write",
        args={**LINK, "pod": 1, "persist_seconds": -1, **TIMEOUT},
        sends=("statefulSetLink",),
        cli=("link", "set", "ada", "1"),
    ),
    Operation(
        name="try_set_linked_pod",
        access="write",
        args={**LINK, "pod": 1, "persist_seconds": -1, **TIMEOUT},
        sends=("statefulTrySetLink",),
        cli=("link", "try-set", "ada", "1"),
    ),
    Operation(
        name="set_linked_pod_if_absent",
        access="write",
        args={**LINK, "pod": 1, "persist_seconds": -1, "refresh": False, **TIMEOUT},
        sends=("statefulSetLinkIfAbsent",),
        cli=("link", "set-if-absent", "ada", "1"),
    ),
    Operation(
        name="move_linked_pod",
        access="write",
        args={**LINK, "expected": 1, "pod": 2, **TIMEOUT},
        sends=("statefulComputeLinkIfAbsent",),
        cli="`link set` moves one uid, `evacuate` all of a pod",
    ),
    Operation(
        name="remove_linked_pod",
        access="write",
        args={**LINK, "persist_seconds": -1, **TIMEOUT},
        sends=("statefulRemoveLink",),
        cli=("link", "remove", "ada"),
    ),
    Operation(
        name="remove_linked_pod_with_id",
        access="write",
        args={**LINK, "pod": 1, "persist_seconds": -1, **TIMEOUT},
        sends=("statefulRemoveLinkWithId",),
        cli=("link", "remove", "ada", "--pod", "1"),
    ),
    # States
    Operation(
        name="set_service_state",
        access="write",
        args={**SERVICE, "pod": 1, "state": "Running", **TIMEOUT},
        sends=("HSET",),
        user="pod",
        cli=("state", "set", "1", "Running"),
    ),
    Operation(
        name="get_service_state",
        access="read",
        args={**SERVICE, **TIMEOUT},
        sends=("HGETALL",),
        cli=("state", "get"),
    ),
    Operation(
        name="get_pods",
        access="read",
        args={**SERVICE, **TIMEOUT},
        sends=("statefulGetService",),
        cli=("pods",),
        model="how states are read is the table of tests/test_states.py",
    ),
    Operation(
        name="pod_address",
        access="read",
        args={**SERVICE, "pod": 1, **TIMEOUT},
        sends=("statefulGetService",),
        cli="`pods` shows the addresses of all",
        model="how states are read is the table of tests/test_states.py",
    ),
    Operation(
        name="watch",
        access="read",
        args=SERVICE,
        sends=("statefulGetService",),
        iterated=True,
        cli=("watch",),
        model="it goes on: tests/placement/test_watch.py",
    ),
    Operation(
        name="evacuate",
        access="write",
        args={
            **SERVICE,
            "pod": 9,
            "policy": None,
            "rate": None,
            "dry_run": False,
            "idle": None,
            "remove_idle": False,
        },
        sends=("statefulGetService",),
        iterated=True,
        user="operator",
        raises=(NoRoutablePod,),
        cli=("evacuate", "1", "--yes"),
        model="it goes on: tests/placement/test_evacuation.py",
    ),
    Operation(
        name="rebalance",
        access="write",
        args={
            **SERVICE,
            "max_skew": 1.2,
            "rate": None,
            "idle_only": False,
            "dry_run": False,
            "force": False,
            "patience": 1.0,
        },
        sends=("SET", "GET", "statefulGetService"),
        iterated=True,
        user="operator",
        cli=("rebalance", "--yes"),
        model="it goes on: tests/placement/test_rebalance.py",
    ),
    Operation(
        name="links",
        access="read",
        args={**SERVICE, "pod": 1},
        # None is for the links of all pods.
        bad={"pod": [bad for bad in _PODS if bad is not None]},
        sends=("SCAN",),
        iterated=True,
        user="operator",
        cli=("links",),
        model="it goes on: tests/placement/test_listing.py",
    ),
    Operation(
        name="forget",
        access="write",
        args={"namespace": "ns", "uid": "ada"},
        sends=("HGETALL", "PTTL", "SCAN", "PTTL"),
        user="operator",
        cli=("forget", "ada", "--yes"),
        model="tests/placement/test_listing.py",
    ),
    Operation(
        name="prune",
        access="write",
        args={**SERVICE, "idle": 60.0, "rate": None, "dry_run": False},
        bad={"idle": [None, 0, -1, True, "1", float("inf"), float("nan")]},
        sends=("SCAN",),
        iterated=True,
        user="operator",
        cli=("prune", "--idle", "60", "--yes"),
        model="it goes on: tests/placement/test_listing.py",
    ),
    Operation(
        name="set_workload_state",
        access="write",
        args={**SERVICE, "state": "up", **TIMEOUT},
        sends=("SET",),
        user="operator",
        cli=("workload", "set", "Busy"),
    ),
    Operation(
        name="get_workload_state",
        access="read",
        args={**SERVICE, **TIMEOUT},
        sends=("GET",),
        cli=("workload", "get"),
    ),
    Operation(
        name="get_workload_state_batch",
        access="read",
        args={"namespace": "ns", "services": ["chat"], **TIMEOUT},
        sends=("GET",),
        cli="a shell asks for one after the other",
    ),
    # Tools
    Operation(
        name="execute_script",
        access="write",
        args={"name": "statefulGetLinkService", "keys": ["sf:{ns:lk:ada}"], "args": [], **TIMEOUT},
        sends=("statefulGetLinkService",),
        cli="`redis-cli --eval` does it",
        model="it is the store's side",
    ),
    Operation(
        name="invalidate",
        access="local",
        args=LINK,
        # None is for all of a uid's links.
        bad={"service": ["", "a}", 7, b"chat"]},
        cli=_NO_SHELL,
        model="the model has no cache",
    ),
    Operation(
        name="report_failure",
        access="local",
        args={**SERVICE, "pod": 1},
        cli=_NO_SHELL,
        model="the model chooses no pods",
    ),
    Operation(name="stats", access="local", cli=_NO_SHELL, model="the model has no cache"),
    # From opening to closing
    Operation(name="from_url", access="local", cli=_NO_SHELL, model="the model needs none"),
    Operation(
        name="open", access="read", args=TIMEOUT, cli=_NO_SHELL, model="the model needs none"
    ),
    Operation(name="aclose", access="local", cli=_NO_SHELL, model="the model needs none"),
)
"""What a router does."""

AGENT_OPERATIONS: Final = (
    Operation(
        name="start",
        access="write",
        sends=("statefulSetState",),
        user="pod",
        cli=_OF_A_POD,
        model="tests/placement/test_agent.py",
    ),
    Operation(
        name="accept",
        access="write",
        args={"uid": "ada"},
        sends=("statefulClaim",),
        user="pod",
        cli=_OF_A_POD,
        model="tests/test_claim_scripts.py",
    ),
    Operation(
        name="release",
        access="write",
        args={"claim": "ada", "grace": 30},
        sends=("statefulReleaseClaim",),
        user="pod",
        cli=_OF_A_POD,
        model="tests/test_claim_scripts.py",
    ),
    Operation(
        name="pause",
        access="write",
        sends=("statefulSetState",),
        user="pod",
        cli=_OF_A_POD,
        model="tests/placement/test_room.py",
    ),
    Operation(
        name="resume",
        access="write",
        sends=("statefulSetState",),
        user="pod",
        cli=_OF_A_POD,
        model="tests/placement/test_room.py",
    ),
    Operation(
        name="drain",
        access="write",
        args={"deadline": 0.1},
        sends=("statefulSetState",),
        user="pod",
        cli="`drain` asks the pod's process to do it",
        model="tests/placement/test_agent.py",
    ),
    Operation(
        name="stop",
        access="write",
        sends=("statefulSetState",),
        user="pod",
        cli=_OF_A_POD,
        model="tests/placement/test_agent.py",
    ),
    Operation(
        name="session",
        access="local",
        args={"uid": "ada", "grace": 30},
        cli=_OF_A_POD,
        model="tests/placement/test_ownership.py",
    ),
    Operation(
        name="owns",
        access="local",
        args={"uid": "ada"},
        # What cannot be a uid was never claimed.
        bad={"uid": [[SECRET]]},
        cli=_OF_A_POD,
        model="tests/placement/test_ownership.py",
    ),
    Operation(
        name="claim_of",
        access="local",
        args={"uid": "ada"},
        bad={"uid": [[SECRET]]},
        cli=_OF_A_POD,
        model="tests/web/test_pod_middleware.py",
    ),
    Operation(
        name="events",
        access="read",
        iterated=True,
        cli=_OF_A_POD,
        model="it goes on: tests/placement/test_ownership.py",
    ),
    Operation(name="pod", access="local", cli="`pods` tells it", model="a property"),
    Operation(name="status", access="local", cli="`pods` tells it", model="a property"),
    Operation(name="conflicts", access="local", cli=_OF_A_POD, model="a property"),
)
"""What a pod's agent does."""

COMMANDS_OF_THEIR_OWN: Final[Mapping[tuple[str, ...], tuple[list[str], str]]] = {
    ("top",): (["--count", "1"], "shows what `get_pods` and `watch` tell, again and again"),
    ("state", "remove"): (["1"], "takes a state away; pods only replace theirs"),
    ("drain",): (["1"], "asks the agent of a pod"),
    ("where",): (["ada"], "shows a link with its claim, which only pods and the doctor read"),
    ("gateways",): ([], "reads who is connected, past every front"),
    ("balance",): ([], "counts what `links` lists"),
    ("doctor",): ([], "looks at the servers, past every front"),
    ("agent",): (["--pod", "0"], "the pod's agent, for a command in any language"),
    ("serve",): (["--uid-header", "X-User-Id"], "asks `route` for proxies, over HTTP"),
    ("demo",): ([], "brings a store of its own"),
    ("cluster", "up"): ([], "brings a store of its own"),
}
"""Commands that are no operation: what they need, and why they are there."""

REPEATABLE_COMMANDS: Final = {"SET", "HSET"}
"""Writes that are no scripts: to send one again says the same once more."""


# --- bad arguments of operations, by name

_NAMES: Final[list[Any]] = [
    *(None, 1, True, b"chat", ["chat"], {"chat": 1}, "", "a{b", "a}b", "a\nb", "a\x00"),
    *("\x7f", "\x85", "x" * 513, "ü" * 257, "a\ud800"),
]
_SEQUENCES: Final[list[Any]] = ["chat", b"chat", None, 3, {"chat"}, {"chat": 1}, iter(["chat"])]

_UIDS: Final[list[Any]] = [
    *(f"{SECRET}{bad}" if isinstance(bad, str) and bad else bad for bad in _NAMES),
    *(SECRET.encode(), [SECRET], (SECRET, "chat"), f"{SECRET}}}"),
]

BAD: Final[Mapping[str, list[Any]]] = {
    "namespace": [*_NAMES, "a:b"],
    "service": _NAMES,
    "uid": _UIDS,
    "pod": _PODS,
    "expected": _PODS,
    "persist_seconds": [0, -2, 2**63, True, 1.5, "60", None, float("inf")],
    "claim": [SECRET.encode(), [SECRET], None, 7, f"{SECRET}}}"],
    "grace": [0, -2, 2**63, True, 1.5, "60", float("inf")],
    "deadline": [-1, True, "1", None, float("inf"), float("nan")],
    "state": [None, 1, b"Running", ["Running"], "a\ud800"],
    "services": [*_SEQUENCES, *([bad] for bad in _NAMES)],
    "uids": [*_SEQUENCES, SECRET, [f"{SECRET}}}"], [SECRET, None], [[SECRET]]],
    "name": ["", "nosuch", "statefulsetlink", None, 3, b"statefulSetLink", ["x"]],
    "keys": [*_SEQUENCES, SECRET, [], ["{a}", "{b}"], [3], [None], ["a", None], ["a\ud800"]],
    "args": [*_SEQUENCES, [None], [1.5], [True], [["a"]], ["a\ud800"]],
    "policy": ["best", int, object()],
    "timeout": [0, -1, True, "1", float("inf"), float("nan"), 86401],
    "wait": [-1, True, "1", float("inf"), float("nan")],
    "beside": [bad for bad in _UIDS if bad is not None],
    "exclude": [3, "3", None, ["3"], [-1], [True]],
    "rate": [0, -1, True, "1", float("inf"), float("nan")],
    "idle": [0, -1, True, "1", float("inf"), float("nan")],
    "max_skew": [0.9, -1, True, "1.2", None, float("inf"), float("nan")],
    "patience": [0, -1, True, "1", None, 86_401, float("inf"), float("nan")],
}
"""What each argument must not be."""

NOT_CHECKED: Final = {
    "fresh": "whatever is true or false",
    "stale_ok": "whatever is true or false",
    "refresh": "whatever is true or false",
    "dry_run": "whatever is true or false",
    "remove_idle": "tests/placement/test_evacuation.py",
    "idle_only": "tests/placement/test_rebalance.py",
    "force": "tests/placement/test_rebalance.py",
    "url": "tests/test_targets.py",
    "config": "tests/test_config.py",
}
"""Arguments without bad values, and why."""


# --- scripts


def _temporary(uid: LinkProgram) -> None:
    uid.set_link(3, 10)


def _persistent(uid: LinkProgram) -> None:
    uid.set_link(3)


def _reported(uid: LinkProgram) -> None:
    uid.client.hset(uid.keys["state"], "7", "Running")


_LINK_KEYS: Final = ("link", "hash", "op")
_CLAIM_KEYS: Final = ("link", "hash", "claim", "op")
_OP_MS: Final = 60_000
_POD_TEXTS: Final = ["", "-1", "abc", "1.5", "007", str(2**63), "1" * 20, "+1", " 1"]
_LIFE_TEXTS: Final = ["", "-", "a b", "a" * 65, "\u00e9", ".a"]
_FENCE_TEXTS: Final = ["", "-1", "1.5", "x", "07", str(2**53 - 1), "1" * 17]

SCRIPTS: Final = (
    Script(
        name="statefulSetLink",
        access="write",
        keys=_LINK_KEYS,
        args={"service": "chat", "pod": 7, "persist_seconds": 50, "op_ms": _OP_MS},
        before=_temporary,
        reply=["3"],
        value=lambda reply: pod_or_none(reply[0]),
    ),
    Script(
        name="statefulSetLinkIfAbsent",
        access="write",
        keys=_LINK_KEYS,
        args={"service": "chat", "pod": 7, "persist_seconds": 50, "refresh": 1, "op_ms": _OP_MS},
        before=_temporary,
        reply=["3"],
        value=lambda reply: int(reply[0]),
    ),
    Script(
        name="statefulTrySetLink",
        access="write",
        keys=_LINK_KEYS,
        args={"service": "chat", "pod": 7, "persist_seconds": 50, "op_ms": _OP_MS},
        before=_temporary,
        reply=["7", "3"],
        value=lambda reply: (len(reply) == 2, int(reply[0])),
    ),
    Script(
        name="statefulRemoveLink",
        access="write",
        keys=(*_LINK_KEYS, "claim"),
        args={"service": "chat", "persist_seconds": 50, "op_ms": _OP_MS},
        before=_temporary,
        reply=[1],
        value=lambda reply: bool(reply[0]),
    ),
    Script(
        name="statefulRemoveLinkWithId",
        access="write",
        keys=(*_LINK_KEYS, "claim"),
        args={"service": "chat", "persist_seconds": 50, "pod": 3, "op_ms": _OP_MS, "idle": 0},
        before=_temporary,
        reply=[1],
        value=lambda reply: bool(reply[0]),
    ),
    Script(
        name="statefulGetLinkIfPersist",
        access="read",
        keys=("link",),
        before=_persistent,
        reply=["3"],
    ),
    Script(
        name="statefulComputeLinkIfAbsent",
        access="write",
        keys=(*_LINK_KEYS, "left", "claim"),
        args={
            "service": "chat",
            "persist_seconds": 50,
            "mode": "place",
            "op_ms": _OP_MS,
            "gone_count": 1,
            "gone": [3],
            "candidates": [7],
            "settle": ["settle", 1000],
        },
        before=_temporary,
        reply=["7", "moved", "3", ANY],
    ),
    Script(
        name="statefulGetServicePod",
        access="read",
        keys=("state",),
        args={"pod": 7},
        before=_reported,
        reply=[ANY, "Running", "-1"],
        bad={"pod": []},  # any field of the hash
    ),
    Script(
        name="statefulGetService",
        access="read",
        keys=("state",),
        args={"max_fields": 10, "max_bytes": 100_000},
        before=_reported,
        reply=[ANY, "7", "Running", "-1"],
    ),
    Script(
        name="statefulSetState",
        access="write",
        keys=("state",),
        args={
            "pod": 7,
            "state": '{"by":"a"}',
            "stamp": 1,
            "prune_ms": 1000,
            "life": "a",
            "mode": "start",
            "gap_ms": 1000,
        },
        before=_reported,
        reply=[ANY, "Running", "stored", ANY],
        bad={"life": [life for life in _LIFE_TEXTS if life]},  # "" is for no life
        harmless="a state that is reported again is the same, only younger",
    ),
    Script(
        name="statefulTakePod",
        access="write",
        keys=("state",),
        args={"life": "a", "name": "chat-a", "silent_ms": 6000, "margin_ms": 1000},
        before=_reported,
        reply=["0"],
        harmless="a life that has an id gets the same one",
    ),
    Script(
        name="statefulGetLinkService",
        access="read",
        keys=("hash",),
        before=_persistent,
        reply=["chat", "3"],
    ),
    Script(
        name="statefulClaim",
        access="write",
        keys=_CLAIM_KEYS,
        args={"service": "chat", "pod": 3, "life": "a", "op_ms": _OP_MS},
        before=_temporary,
        reply=["3", "placed", ANY],
    ),
    Script(
        name="statefulConfirmClaim",
        access="write",
        keys=("link", "hash", "claim"),
        args={"service": "chat", "pod": 3, "life": "a", "fence": 7},
        before=_persistent,
        reply=["3", "restored", "7"],
        bad={"fence": [*_FENCE_TEXTS, "0"]},
        harmless="sent again, it finds what it has made",
    ),
    Script(
        name="statefulReleaseClaim",
        access="write",
        keys=_CLAIM_KEYS,
        args={
            "service": "chat",
            "persist_seconds": 50,
            "pod": 3,
            "life": "a",
            "fence": 0,
            "op_ms": _OP_MS,
            "target": 7,
        },
        before=_temporary,
        reply=[1],
    ),
    Script(
        name="statefulHandOver",
        access="write",
        keys=(*_CLAIM_KEYS, "left", "request"),
        args={
            "service": "chat",
            "pod": 3,
            "target": 7,
            "mode": "ask",
            "ask_ms": 1000,
            "op_ms": _OP_MS,
            "settle_ms": 5000,
            "ended": ["a"],
        },
        before=_temporary,
        reply=["moved"],
    ),
)
BAD_ARGV: Final[Mapping[str, list[str]]] = {
    "pod": _POD_TEXTS,
    "gone": _POD_TEXTS,
    "candidates": _POD_TEXTS,
    "target": _POD_TEXTS,
    "ended": _LIFE_TEXTS,
    "ask_ms": ["", "0", "-1", "1.5", "x", "1" * 16],
    "persist_seconds": ["", "0", "-2", "1.5", "abc", "1e3", "9007199254741", "01"],
    "refresh": ["", "2", "true"],
    "mode": ["", "keep", "PLACE"],
    "gone_count": ["", "-1", "3", "x"],
    "life": _LIFE_TEXTS,
    "fence": _FENCE_TEXTS,
    "name": ["x" * 256],
    "silent_ms": ["", "-1", "1.5", "x", "1" * 16],
    "margin_ms": ["", "-1", "1.5", "x", "1" * 16],
    "op_ms": ["", "-1", "00", "1.5", "1e3", "9" * 16],
    "stamp": ["", "2", "true"],
    "prune_ms": ["", "-1", "1.5", "x", "1" * 16],
    "idle": ["", "-1", "1.5", "x", "1" * 16],
    "gap_ms": ["", "-1", "1.5", "x", "1" * 16],
    "settle_ms": ["", "-1", "1.5", "x", "1" * 16],
    "settle": ["settle 0", "settle -1", "settle x"],
    "max_fields": ["", "-1"],
    "max_bytes": ["", "-1", "x", "1" * 16],
    "service": [],  # any text
    "state": [],  # any text; as JSON: tests/test_state_scripts.py
}
"""What each argument of a script must not be."""

_SCRIPTS: Final = {row.name: row for row in SCRIPTS}


# --- finding rows


def script(name: str) -> Script:
    return _SCRIPTS[name]


def operation(name: str) -> Operation:
    return next(row for row in (*OPERATIONS, *AGENT_OPERATIONS) if row.name == name)


def on_store() -> list[Operation]:
    """The operations of a router that talk to the store."""
    return [row for row in OPERATIONS if row.sends]


def link_writes() -> list[Operation]:
    """The operations that change one link, by one script."""
    return [row for row in OPERATIONS if row.writes_link and len(row.sends) == 1]


def link_scripts() -> list[Script]:
    """The scripts that change links or claims."""
    return [row for row in SCRIPTS if row.access == "write" and "state" not in row.keys]


def bad_arguments(rows: Sequence[Operation]) -> Iterator[tuple[Operation, str, list[Any]]]:
    """Every argument of these operations, with what it must not be."""
    for row in rows:
        for name in row.args:
            if name not in NOT_CHECKED:
                yield row, name, row.bad.get(name, BAD[name])


def bad_argv() -> Iterator[tuple[Script, str, str]]:
    """Every argument of every script, with each value that it must not have."""
    for row in SCRIPTS:
        for name in row.args:
            for value in row.bad.get(name, BAD_ARGV[name]):
                yield row, name, value
