"""The pods of examples/ in other languages: what is here to run them, and how."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

__all__ = ["ROOT", "build_go", "find_node", "go_command", "node_command"]

ROOT: Final = Path(__file__).parents[2]


def find_node() -> str | None:
    return shutil.which("node")


def node_command() -> list[str] | None:
    """The pod in Node.js; a port and a folder follow. None without node."""
    node = find_node()
    return None if node is None else [node, str(ROOT / "examples" / "node" / "pod.mjs")]


def go_command(folder: Path) -> list[str] | None:
    """The same for the pod in Go, which is built into this folder. None without go."""
    program = build_go(ROOT / "examples" / "go", ".", into=folder)
    return None if program is None else [program]


def build_go(sources: Path, *files: str, into: Path | None = None) -> str | None:
    """Build a program in Go; where it is. None without go."""
    go = shutil.which("go") or shutil.which(ROOT / ".cache" / "venv-go" / "bin" / "go")
    if go is None:
        return None
    folder = into or sources
    # Go's own packages are compiled once, which takes a minute.
    variables = {"GOCACHE": str(ROOT / ".cache" / "go-build"), "GOPATH": str(folder / "path")}
    done = subprocess.run(
        [go, "build", "-o", str(folder / "program"), *files],
        cwd=sources,
        env={**os.environ, **variables, "GOPROXY": "off", "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(folder / "program")
