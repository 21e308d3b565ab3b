"""The Lua scripts: where their files are, and the SHA1 under which a server knows each.

The files are part of the contract with programs in other languages and live in ``lua_scripts/`` of the project. A wheel
carries them as ``sfroute/lua_scripts``; an editable install or a clone has them beside the package.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from .errors import ConfigError, InvalidArgument

__all__ = ["SCRIPTS", "SCRIPT_NAMES", "Script", "get_script"]

SCRIPT_NAMES: Final = (
    "statefulSetLink",
    "statefulSetLinkIfAbsent",
    "statefulTrySetLink",
    "statefulRemoveLink",
    "statefulRemoveLinkWithId",
    "statefulGetLinkIfPersist",
    "statefulComputeLinkIfAbsent",
    "statefulGetServicePod",
    "statefulGetService",
    "statefulSetState",
    "statefulGetLinkService",
)


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script.

    Attributes:
        name: its name, such as ``"statefulSetLink"``; the file is ``<name>.lua``.
        source: the file's bytes, what ``EVAL`` takes.
        sha: the SHA1 of ``source`` in lower-case hex, what ``EVALSHA`` takes.
    """

    name: str
    source: bytes
    sha: str

    @property
    def read_only(self) -> bool:
        """True if its header says that it changes nothing."""
        return b"\n-- Access: read\n" in self.source


def _folders() -> tuple[Traversable, Traversable]:
    package = resources.files("sfroute")
    return package / "lua_scripts", Path(__file__).resolve().parent.parent / "lua_scripts"


def _load(folders: tuple[Traversable, ...]) -> dict[str, Script]:
    # The first folder that is there must be complete: scripts of two versions are never mixed.
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ConfigError(
            "this installation of sfroute has no Lua scripts; reinstall it (looked for the folders "
            + " and ".join(str(folder) for folder in folders)
            + ")"
        )
    scripts: dict[str, Script] = {}
    for name in SCRIPT_NAMES:
        file = folder / f"{name}.lua"
        try:
            source = file.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"this installation of sfroute cannot read the Lua script {file}; reinstall it"
            ) from error
        sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
        scripts[name] = Script(name, source, sha)
    return scripts


class _Scripts(Mapping[str, Script]):
    """Reads all files at the first use, once, in whichever thread comes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[str, Script] | None = None

    def _all(self) -> dict[str, Script]:
        loaded = self._loaded
        if loaded is None:
            with self._lock:
                loaded = self._loaded
                if loaded is None:
                    loaded = self._loaded = _load(_folders())
        return loaded

    def __getitem__(self, name: str) -> Script:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SCRIPT_NAMES)

    def __len__(self) -> int:
        return len(SCRIPT_NAMES)


SCRIPTS: Final[Mapping[str, Script]] = _Scripts()
"""Script name -> script. The files are read at the first use.

``ConfigError`` is raised then if the installation lacks them.
"""


def get_script(name: str) -> Script:
    """The script of this name; ``InvalidArgument`` if there is none, with the names there are."""
    if name not in SCRIPT_NAMES:
        raise InvalidArgument(f"script must be one of {', '.join(SCRIPT_NAMES)}, not {name!r:.80}")
    return SCRIPTS[name]
