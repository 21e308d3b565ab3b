"""The Lua scripts: where their files are, and the SHA-1 by which a server knows each.

The files are part of the contract with programs in other languages, and live in the project's ``lua_scripts/``. A wheel
contains them as ``sfroute/lua_scripts``. An editable install or a clone has them beside the package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from ..errors import ConfigError, InvalidArgument

__all__ = ["SCRIPTS", "Script", "get_script", "script_named"]


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script.

    Attributes:
        name: its name, such as ``"statefulSetLink"``; the file is ``<name>.lua``.
        source: the file's bytes, for ``EVAL``.
        sha: the SHA-1 of ``source`` in lower-case hex, for ``EVALSHA``.
    """

    name: str
    source: bytes
    sha: str

    @property
    def read_only(self) -> bool:
        """True if its header says that it only reads."""
        return b"\n-- Access: read\n" in self.source


def _folders() -> tuple[Traversable, Traversable]:
    package = resources.files("sfroute")
    return package / "lua_scripts", Path(__file__).resolve().parent.parent.parent / "lua_scripts"


def _load(folders: tuple[Traversable, ...]) -> dict[str, Script]:
    # One folder alone: scripts of two versions are never mixed.
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ConfigError(
            "this installation of sfroute has no Lua scripts; reinstall sfroute (looked in "
            + " and ".join(str(folder) for folder in folders)
            + ")"
        )
    scripts: dict[str, Script] = {}
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name, _, kind = file.name.partition(".")
        if kind != "lua":
            continue
        try:
            source = file.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"this installation of sfroute cannot read the Lua script {file}; reinstall sfroute"
            ) from error
        sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
        scripts[name] = Script(name, source, sha)
    return scripts


@cache
def _all_scripts() -> dict[str, Script]:
    return _load(_folders())


class _Scripts(Mapping[str, Script]):
    """Reads all files at the first use. Two threads may both read them at first; they read the same."""

    def __getitem__(self, name: str) -> Script:
        return _all_scripts()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_all_scripts())

    def __len__(self) -> int:
        return len(_all_scripts())


SCRIPTS: Final[Mapping[str, Script]] = _Scripts()
"""Script name -> script, sorted by name. The first use reads the files, and raises ``ConfigError`` if it cannot."""


def get_script(name: str) -> Script:
    """A script that the package itself calls. Raises ``ConfigError`` if this installation lacks it."""
    script = _all_scripts().get(name)
    if script is None:
        raise ConfigError(
            f"this installation of sfroute lacks the Lua script {name}.lua; reinstall sfroute"
        )
    return script


def script_named(name: str) -> Script:
    """A script that a caller names. Raises ``InvalidArgument``, listing the names, if there is none."""
    if not isinstance(name, str) or name not in SCRIPTS:
        raise InvalidArgument(f"script must be one of {', '.join(SCRIPTS)}, not {name!r:.80}")
    return SCRIPTS[name]
