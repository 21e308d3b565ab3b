"""ioredis with autopipelining, in a node process that takes its work from a pipe.

Optional: it needs node and npm, and a package registry that npm can reach. Without them a line says that it is skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from contenders import key_of

__all__ = ["Process", "version"]

_PROGRAM = Path(__file__).parent / "ioredis_peer"
_INSTALLED = Path(__file__).parent.parent / ".cache" / "ioredis"
_NAME = "node_modules/ioredis/package.json"


def _skip(why: str) -> None:
    print(f"ioredis is skipped: {why}", file=sys.stderr)


def _install() -> Path | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        _skip("node and npm are not both on PATH")
        return None
    _INSTALLED.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "peer.cjs"):
        shutil.copy(_PROGRAM / name, _INSTALLED / name)
    if not (_INSTALLED / _NAME).exists():
        try:
            command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
            subprocess.run(command, cwd=_INSTALLED, check=True, timeout=60, capture_output=True)
        except (subprocess.SubprocessError, OSError):
            _skip("npm could not install it")
            return None
    return Path(node)


def version() -> str | None:
    """What is installed, None if it is not."""
    description = _INSTALLED / _NAME
    if not description.exists():
        return None
    return str(json.loads(description.read_text())["version"])


class Process:
    """The node process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    def start(cls, nodes: Sequence[tuple[str, int]]) -> Self | None:
        """Started and connected; None where that is not possible."""
        node = _install()
        if node is None:
            return None
        process = subprocess.Popen(
            [node, "peer.cjs", json.dumps(nodes)],
            cwd=_INSTALLED,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            process.kill()
            process.wait()
            _skip("it did not connect")
            return None
        return cls(process)

    def gets(self, uids: list[str], concurrency: int) -> float:
        """GETs of these links, so many at a time; the seconds of one, by node's clock."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"keys": [key_of(uid) for uid in uids], "concurrency": concurrency}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline()) / len(uids)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
