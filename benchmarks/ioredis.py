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

_ROOT = Path(__file__).parent.parent
_PROGRAM = Path(__file__).parent / "ioredis_peer"


def _skip(why: str) -> None:
    print(f"ioredis is skipped: {why}", file=sys.stderr)


def _install() -> Path | None:
    node = shutil.which("node")
    try:
        command = [_ROOT / ".ci" / "node-packages", _PROGRAM.relative_to(_ROOT)]
        done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        _skip("npm took more than a minute to install it")
        return None
    if node is None or done.returncode != 0:
        _skip(done.stderr.strip())
        return None
    return Path(node)


def version() -> str | None:
    """What is installed, None if it is not."""
    description = _PROGRAM / "node_modules" / "ioredis" / "package.json"
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
            cwd=_PROGRAM,
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
