"""The program in examples/node, in a process of its own, with the methods of the router."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from .processes import Child

__all__ = ["EXAMPLE", "NodeError", "NodeLinks", "require_node"]

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "node"


def require_node() -> str:
    """The program ``node``; skips where it or ioredis is not there. What CI has not installed where it could have is a
    failure.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on PATH")
    if not (EXAMPLE / "node_modules" / "ioredis").is_dir():
        assert "SFROUTE_CI_RUN" not in os.environ, "CI did not install ioredis, though node is here"
        pytest.skip("ioredis is not installed: make node-packages")
    return node


class NodeError(Exception):
    """What the program threw."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def _camel_case(name: str) -> str:
    return re.sub("_([a-z])", lambda found: found[1].upper(), name)


class NodeLinks:
    """The links as the program sees them.

    ``set_linked_pod(...)`` and so on call its ``setLinkedPod(...)``; options go there as one object.
    """

    def __init__(self, nodes: list[tuple[str, int]]) -> None:
        self._process = Child[bytes](
            [require_node(), "calls.mjs", ",".join(f"{host}:{port}" for host, port in nodes)],
            cwd=EXAMPLE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def call(self, method: str, *args: Any) -> Any:
        """Make a call. Raises ``NodeError``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # ASCII: a lone surrogate passes too, as an escape.
        self._process.stdin.write(json.dumps([method, *args]).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise NodeError(answer["error"], answer["message"])
        return answer["result"]

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        if operation.startswith("_"):
            raise AttributeError(operation)
        method = _camel_case(operation)

        def call(*args: Any, **options: Any) -> Any:
            named = {_camel_case(name): value for name, value in options.items()}
            result = self.call(method, *args, *([named] if named else []))
            if operation == "try_set_linked_pod":
                return result["success"], result["pod"]
            return result

        return call

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(timeout=10) == 0
        finally:
            self._process.end()
