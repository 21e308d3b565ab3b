"""The router's operations on links, made of the scripts alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import catalogue

from sfroute import AsyncRouter

from .program import Client, pod_or_none, primaries

__all__ = ["RunScript", "ScriptFront"]

RunScript = Callable[..., list[Any]]


class ScriptFront:
    """The router's operations on links, made of the scripts alone, as a program in another language would."""

    def __init__(self, client: Client, run: RunScript) -> None:
        self._client = client
        self._run = run

    def _link(self, script: str, namespace: str, uid: str, service: str, *args: str | int) -> Any:
        hash_key = f"sf:{{{namespace}:lk:{uid}}}"
        return self._run(script, [f"{hash_key}{service}", hash_key], service, *args)

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        """An operation that is one script: its arguments become ARGV by their names."""
        row = catalogue.operation(operation)
        (name,) = row.scripts
        script = catalogue.script(name)
        assert script.value is not None, f"{operation} is not the call of one script alone"
        signature = inspect.signature(getattr(AsyncRouter, operation))

        def call(*args: Any, **options: Any) -> Any:
            given = signature.bind(None, *args, **options)
            given.apply_defaults()
            link = {name: given.arguments[name] for name in ("namespace", "uid", "service")}
            argv = {
                name: int(value) if isinstance(value := given.arguments[name], bool) else value
                for name in script.args
                # The others are optional, and no arguments of this operation.
                if name != "service" and name in given.arguments
            }
            assert script.value is not None
            return script.value(self._link(script.name, *link.values(), *argv.values()))

        return call

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
