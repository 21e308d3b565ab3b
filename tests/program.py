"""A program in another language on the same store: it knows the keys and the scripts, and no router of sfroute."""

from __future__ import annotations

import hashlib
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
from model import Model

from sfroute.keys import slot_of

Client = redis.Redis | redis.cluster.RedisCluster
T = TypeVar("T")

SCRIPT_FOLDER = Path(__file__).parent.parent / "lua_scripts"


WRITES: dict[str, tuple[str | int, ...]] = {
    "statefulSetLink": (7, 50),
    "statefulSetLinkIfAbsent": (7, 50, 1),
    "statefulTrySetLink": (7, 50),
    "statefulRemoveLink": (50,),
    "statefulRemoveLinkWithId": (50, 3),
    "statefulComputeLinkIfAbsent": (50, "place", 0, 1, 3, 7),
}
"""Every script that changes links, with arguments that change a temporary link of pod 3 with 10 seconds left."""


def writing_args(script: str, op_ms: int | str) -> tuple[str | int, ...]:
    """The arguments of ``WRITES`` with how long the operation record is kept."""
    args = WRITES[script]
    if script == "statefulComputeLinkIfAbsent":
        return (*args[:2], op_ms, *args[3:])
    return (*args, op_ms)


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
        # Redis 6.2 has no PEXPIRETIME; the clock and the remaining time are read one after the other.
        remaining = node.pttl(key)
        if remaining < 0:
            return remaining
        seconds, micros = node.time()
        return pytest.approx(seconds * 1000 + micros // 1000 + remaining, abs=50)


def owner_of(client: Client, key: str) -> redis.Redis:
    """A client of the one server that holds the key."""
    if isinstance(client, redis.cluster.RedisCluster):
        node = client.nodes_manager.get_node_from_slot(slot_of(key))
        return client.get_redis_connection(node)
    return client


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
        self.service = service
        self.hash = f"sf:{{{namespace}:lk:{uid}}}"
        self.link = f"{self.hash}{service}"
        self.op = f"sf:op:{{{namespace}:lk:{uid}}}:token"

    def run(self, script: str, *args: str | int) -> list[Any]:
        return run_script(self.client, script, [self.link, self.hash], self.service, *args)

    def run_once(self, script: str, *args: str | int) -> list[Any]:
        """The same with an operation record; the last of ``args`` is how long it is kept."""
        keys = [self.link, self.hash, self.op]
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

    def get_link_if_persist(self) -> list[Any]:
        return run_script(self.client, "statefulGetLinkIfPersist", [self.link])

    def get_link_service(self) -> dict[str, str]:
        flat = iter(run_script(self.client, "statefulGetLinkService", [self.hash]))
        return dict(zip(flat, flat, strict=True))

    # --- what the store holds

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


RunScript = Callable[..., list[Any]]


class ScriptFront:
    """The router's operations on links, made of the scripts alone, as a program in another language would."""

    def __init__(self, client: Client, run: RunScript) -> None:
        self._client = client
        self._run = run

    def _link(self, script: str, namespace: str, uid: str, service: str, *args: str | int) -> Any:
        hash_key = f"sf:{{{namespace}:lk:{uid}}}"
        return self._run(script, [f"{hash_key}{service}", hash_key], service, *args)

    def set_linked_pod(
        self, namespace: str, uid: str, service: str, pod: int, persist_seconds: int
    ) -> int | None:
        (previous,) = self._link("statefulSetLink", namespace, uid, service, pod, persist_seconds)
        return pod_or_none(previous)

    def try_set_linked_pod(
        self, namespace: str, uid: str, service: str, pod: int, persist_seconds: int
    ) -> tuple[bool, int]:
        script = "statefulTrySetLink"
        owner, *previous = self._link(script, namespace, uid, service, pod, persist_seconds)
        return bool(previous), int(owner)

    def set_linked_pod_if_absent(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int,
        *,
        refresh: bool,
    ) -> int:
        script, flag = "statefulSetLinkIfAbsent", int(refresh)
        (owner,) = self._link(script, namespace, uid, service, pod, persist_seconds, flag)
        return int(owner)

    def remove_linked_pod(
        self, namespace: str, uid: str, service: str, persist_seconds: int
    ) -> bool:
        return bool(self._link("statefulRemoveLink", namespace, uid, service, persist_seconds)[0])

    def remove_linked_pod_with_id(
        self, namespace: str, uid: str, service: str, pod: int, persist_seconds: int
    ) -> bool:
        script = "statefulRemoveLinkWithId"
        return bool(self._link(script, namespace, uid, service, persist_seconds, pod)[0])

    def compute_link(
        self,
        namespace: str,
        uid: str,
        service: str,
        persist_seconds: int,
        mode: str,
        gone: list[int],
        candidates: list[int],
    ) -> tuple[int | None, str, int | None]:
        args: list[str | int] = [persist_seconds, mode, 0, len(gone), *gone, *candidates]
        script = "statefulComputeLinkIfAbsent"
        owner, outcome, previous, _ = self._link(script, namespace, uid, service, *args)
        return pod_or_none(owner), outcome, pod_or_none(previous)

    def expire(self, namespace: str, uid: str, service: str) -> bool:
        """Bring forward the end of a temporary link; True if there was one."""
        key = f"sf:{{{namespace}:lk:{uid}}}{service}"
        if self._client.pttl(key) < 0:
            return False
        self._client.pexpire(key, 1)
        while self._client.exists(key):
            pass
        return True

    def forget_scripts(self, namespace: str) -> None:
        """Every server loses its scripts, as it does when it is restarted."""
        for node in primaries(self._client):
            node.script_flush()


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
