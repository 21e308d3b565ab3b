"""A program in another language on the same store: it knows the keys and the scripts, and no router of sfroute."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import redis
import redis.cluster
import redis.exceptions

from sfroute._contract.keys import link_key, slot_of
from sfroute._net.connection import encode

from .model import Model

Client = redis.Redis | redis.cluster.RedisCluster
T = TypeVar("T")

REMAINING = """
local now = redis.call('TIME')
return {redis.call('PTTL', KEYS[1]), now[1] * 1000 + math.floor(now[2] / 1000)}
"""
SCRIPT_FOLDER = Path(__file__).parent.parent.parent / "lua_scripts"


@cache
def source_of(script: str) -> str:
    return (SCRIPT_FOLDER / f"{script}.lua").read_text()


def run_script(client: Client, script: str, keys: list[str], *args: str | int) -> list[Any]:
    """EVALSHA, and EVAL if the server does not know the script (yet, or any more)."""
    source = source_of(script)
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    try:
        return cast("list[Any]", client.evalsha(sha, len(keys), *keys, *args))
    except redis.exceptions.NoScriptError:
        return cast("list[Any]", client.eval(source, len(keys), *keys, *args))


@contextmanager
def unchanged(client: Client, *keys: str) -> Iterator[None]:
    """Fails if the content, type or instant of expiry of a key is another one afterwards."""
    before = [(client.dump(key), expires_at(client, key)) for key in keys]
    yield
    assert [(client.dump(key), expires_at(client, key)) for key in keys] == before


def expires_at(client: Client, key: str) -> object:
    """The key's expiry in milliseconds since 1970, -1 without expiry, -2 without a key."""
    node = owner_of(client, key)
    try:
        return node.pexpiretime(key)
    except redis.exceptions.ResponseError:
        # Redis 6.2 has no PEXPIRETIME. Its script reads the clock and the remaining time with nothing in between.
        remaining, now = cast("list[int]", node.eval(REMAINING, 1, key))
        return remaining if remaining < 0 else pytest.approx(now + remaining, abs=10)


def owner_of(client: Client, key: str) -> redis.Redis:
    """A client of the one server that holds the key."""
    if isinstance(client, redis.cluster.RedisCluster):
        node = client.nodes_manager.get_node_from_slot(slot_of(key))
        return client.get_redis_connection(node)
    return client


def make_idle(client: Client, key: str) -> None:
    """As if nobody had read or written the key for an hour."""
    where = owner_of(client, key).connection_pool.connection_kwargs
    # What DUMP answers is no text.
    with redis.Redis(where["host"], where["port"], protocol=2) as binary:
        content: Any = binary.dump(key)
        binary.restore(key, 0, content, replace=True, idletime=3600)


def in_threads(count: int, call: Callable[[int], T]) -> list[T]:
    """The results of ``call(0)``, ``call(1)``, ..., all made at once."""
    start = threading.Barrier(count)

    def wait_and_call(number: int) -> T:
        start.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait_and_call, range(count)))


class LinkProgram:
    """One uid's link to one service, changed and looked at by such a program."""

    def __init__(self, client: Client, namespace: str, uid: str, service: str) -> None:
        self.client = client
        self.namespace = namespace
        self.uid = uid
        self.service = service
        self.hash = f"sf:{{{namespace}:lk:{uid}}}"
        self.link = f"{self.hash}{service}"
        self.claim_record = f"sf:own:{self.hash[3:]}{service}"
        self.op = f"sf:op:{{{namespace}:lk:{uid}}}:token"
        self.keys = {
            "link": self.link,
            "hash": self.hash,
            "op": self.op,
            "claim": self.claim_record,
            "left": f"sf:op:{self.hash[3:]}:left:{self.service}",
            "request": f"sf:op:{self.hash[3:]}:to:{self.service}",
            "state": f"sf:{{{namespace}:state:{service}}}",
        }
        """By the names that the heads of the scripts give them."""

    def run(self, script: str, *args: str | int) -> list[Any]:
        return run_script(self.client, script, [self.link, self.hash], self.service, *args)

    def run_on_claim(self, script: str, *args: str | int) -> list[Any]:
        keys = [self.link, self.hash, self.claim_record]
        return run_script(self.client, script, keys, self.service, *args)

    def set_link(self, pod: int, persist_seconds: int = -1) -> list[Any]:
        return self.run("statefulSetLink", pod, persist_seconds)

    def try_set_link(self, pod: int, persist_seconds: int = -1) -> list[Any]:
        return self.run("statefulTrySetLink", pod, persist_seconds)

    def set_link_if_absent(
        self, pod: int, persist_seconds: int = -1, *, refresh: bool = False
    ) -> list[Any]:
        return self.run("statefulSetLinkIfAbsent", pod, persist_seconds, int(refresh))

    def remove_link(self, persist_seconds: int = -1) -> list[Any]:
        return self.run("statefulRemoveLink", persist_seconds)

    def remove_link_with_id(self, pod: int, persist_seconds: int = -1) -> list[Any]:
        return self.run("statefulRemoveLinkWithId", persist_seconds, pod)

    def remove_idle_link(self, pod: int, idle: int) -> list[Any]:
        return self.run("statefulRemoveLinkWithId", -1, pod, 0, idle)

    def compute_link(
        self,
        persist_seconds: int | str = -1,
        *,
        mode: str = "place",
        gone: tuple[int, ...] = (),
        candidates: tuple[int, ...] = (),
    ) -> list[Any]:
        script = "statefulComputeLinkIfAbsent"
        return self.run(script, persist_seconds, mode, 0, len(gone), *gone, *candidates)

    def place(
        self, persist_seconds: int, *, gone: tuple[int, ...] = (), candidates: tuple[int, ...]
    ) -> list[Any]:
        """As a gateway does, with all keys."""
        keys = [self.link, self.hash, self.op, self.keys["left"], self.claim_record]
        args: list[str | int] = [self.service, persist_seconds, "place", 1, len(gone)]
        args += [*gone, *candidates]
        self.client.delete(self.op)
        return run_script(self.client, "statefulComputeLinkIfAbsent", keys, *args)

    def exclude(
        self, *excluded: int, candidates: tuple[int, ...], settle_ms: int = 5000
    ) -> list[Any]:
        """As a gateway does whose caller says which pods must not be used."""
        keys = [self.link, self.hash, self.op, self.keys["left"], self.claim_record]
        args: list[str | int] = [self.service, -1, "place", 0, len(excluded)]
        args += [*excluded, *candidates, "settle", settle_ms]
        return run_script(self.client, "statefulComputeLinkIfAbsent", keys, *args)

    def remove_claimed_link(self, pod: int | None = None) -> None:
        """As a gateway does; ``pod``: only if it is that pod's."""
        keys = [self.link, self.hash, self.op, self.claim_record]
        script = "statefulRemoveLink" if pod is None else "statefulRemoveLinkWithId"
        more = () if pod is None else (pod,)
        self.client.delete(self.op)
        run_script(self.client, script, keys, self.service, -1, *more, 1)

    def get_link_if_persist(self) -> list[Any]:
        return run_script(self.client, "statefulGetLinkIfPersist", [self.link])

    def get_link_service(self) -> dict[str, str]:
        flat = iter(run_script(self.client, "statefulGetLinkService", [self.hash]))
        return dict(zip(flat, flat, strict=True))

    def claim(self, pod: int, life: str = "life") -> tuple[int, str, int]:
        """Owner, outcome, fence."""
        owner, outcome, fence = self.run_on_claim("statefulClaim", pod, life)
        return int(owner), outcome, int(fence)

    def confirm(self, pod: int, life: str, fence: int) -> tuple[int, str, int]:
        """Owner (-1: none), outcome, fence."""
        owner, outcome, found = self.run_on_claim("statefulConfirmClaim", pod, life, fence)
        return int(owner), outcome, int(found)

    def release_claim(
        self, pod: int, life: str = "life", fence: int = 0, persist_seconds: int = -1
    ) -> bool:
        (released,) = self.run_on_claim("statefulReleaseClaim", persist_seconds, pod, life, fence)
        return bool(released)

    def hand_over(
        self,
        pod: int,
        target: int,
        mode: str = "ask",
        *,
        settle_ms: int = 5000,
        ended: tuple[str, ...] = (),
    ) -> str:
        """What became of it."""
        names = ("link", "hash", "claim", "op", "left", "request")
        keys = [self.keys[name] for name in names]
        args: list[str | int] = [self.service, pod, target, mode, 10_000, 0, settle_ms, *ended]
        (outcome,) = run_script(self.client, "statefulHandOver", keys, *args)
        return str(outcome)

    def age_notes(self, seconds: float) -> None:
        """Let the moves of the link that are noted have been so much earlier."""
        noted = str(self.client.get(self.keys["left"])).split()
        parts = [note.rpartition(":") for note in noted]
        aged = [f"{rest}:{int(at) - int(1000 * seconds)}" for rest, _, at in parts]
        self.client.set(self.keys["left"], " ".join(aged), keepttl=True)

    # --- what the store holds

    def request(self) -> str | None:
        """What the pod is asked."""
        return cast("str | None", self.client.get(self.keys["request"]))

    def record(self) -> str | None:
        """The claim record."""
        return cast("str | None", self.client.get(self.claim_record))

    def pod(self) -> str | None:
        return cast("str | None", self.client.get(self.link))

    def ttl(self) -> int:
        """Seconds; -1 without expiry, -2 without a link."""
        return self.client.ttl(self.link)

    def listed(self) -> str | None:
        """The pod in the uid's hash."""
        return cast("str | None", self.client.hget(self.hash, self.service))


class StateProgram:
    """The states of one service's pods."""

    def __init__(self, client: Client, namespace: str, service: str) -> None:
        self.client = client
        self.key = f"sf:{{{namespace}:state:{service}}}"

    def set(self, *args: str | int) -> tuple[str, str | None]:
        """The server's clock and the state before."""
        server_ms, previous = run_script(self.client, "statefulSetState", [self.key], *args)
        return server_ms, previous

    def get(self, pod: int) -> tuple[int, str | None, int]:
        """The server's clock, the state and its age."""
        reply = run_script(self.client, "statefulGetServicePod", [self.key], pod)
        return int(reply[0]), reply[1], int(reply[2])

    def get_all(self) -> dict[str, tuple[str, int]]:
        """Pod -> state and age."""
        _, *rest = run_script(self.client, "statefulGetService", [self.key])
        return {
            pod: (state, int(age))
            for pod, state, age in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
        }

    def fields(self) -> dict[str, str]:
        return cast("dict[str, str]", self.client.hgetall(self.key))

    def server_ms(self) -> int:
        (server_ms,) = run_script(self.client, "statefulGetService", [f"{self.key}none"])
        return int(server_ms)


def pod_or_none(reply: str) -> int | None:
    return None if reply == "-1" else int(reply)


def primaries(client: Client) -> list[redis.Redis]:
    if isinstance(client, redis.cluster.RedisCluster):
        nodes = client.nodes_manager.get_nodes_by_server_type("primary")
        return [client.get_redis_connection(node) for node in nodes]
    return [client]


def read_keys(client: Client, namespace: str) -> dict[str, tuple[str | dict[str, str], int]]:
    """Every key of a namespace, with its content and remaining milliseconds (-1 without expiry)."""
    found: dict[str, tuple[str | dict[str, str], int]] = {}
    for node in primaries(client):
        keys = list(node.scan_iter(match=f"*{{{namespace}:*", count=10_000))
        pipe = node.pipeline(transaction=False)
        for key in keys:
            pipe.type(key)
        types = pipe.execute()
        for key, kind in zip(keys, types, strict=True):
            pipe.get(key) if kind == "string" else pipe.hgetall(key)
            pipe.pttl(key)
        answers = pipe.execute()
        found |= dict(zip(keys, zip(answers[::2], answers[1::2], strict=True), strict=True))
    return found


def delete_keys(client: Client, keys: Iterable[str]) -> None:
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.unlink(key)
    pipe.execute()


def check_keys(client: Client, model: Model, namespace: str) -> None:
    """Keys, contents and expiries are what the contract says, and nothing else is there."""
    found = read_keys(client, namespace)
    records = [key for key in found if key.startswith("sf:op:")]
    for key in records:
        _, remaining_ms = found.pop(key)
        assert remaining_ms > 0, "an operation record that never expires"
    assert {key: content for key, (content, _) in found.items()} == model.keys()
    expiring = {key: ttl for key, (_, ttl) in found.items() if ttl != -1}
    assert expiring == pytest.approx(model.remaining_ms(), abs=2000)
    delete_keys(client, [*found, *records])


def pour_links(
    client: redis.cluster.RedisCluster, namespace: str, service: str, uids: Iterable[str], pod: int
) -> None:
    """Very many links, faster than a client's pipelines; they are not listed in the uids' hashes."""
    commands: dict[tuple[str, int], list[bytes]] = {}
    for uid in uids:
        key = link_key(namespace, uid, service)
        node = client.nodes_manager.slots_cache[slot_of(key)][0]
        commands.setdefault((node.host, node.port), []).append(encode("SET", key, pod))
    for address, some in commands.items():
        with socket.create_connection(address) as connection:
            quiet, loud = encode("CLIENT", "REPLY", "OFF"), encode("CLIENT", "REPLY", "ON")
            connection.sendall(b"".join([quiet, *some, loud]))
            assert connection.recv(16) == b"+OK\r\n"
