"""The TLS context of new connections, made again when a file that it was read from has changed.

Certificates are rotated on disk under a running process. A context that was read once would refuse the servers' new
certificates, and show them an old one of its own, until a restart.

Who may touch it: only the event loop.
"""

from __future__ import annotations

import inspect
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import redis
from redis.asyncio.connection import RedisSSLContext

from ..errors import ConfigError
from ..telemetry.logs import log_fields

__all__ = ["TlsFiles"]

_log = logging.getLogger("sfroute.store")

_FILES: Final = ("ca_certs", "ca_path", "certfile", "keyfile")
_Seen = tuple[tuple[int, int, int] | None, ...]


class TlsFiles:
    """redis-py's own reading of its ``ssl_*`` options; certificates are checked unless it was told not to.

    Raises:
        ConfigError: the files cannot be read, or the options contradict each other.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        accepted = inspect.signature(RedisSSLContext.__init__).parameters
        self._given: dict[str, Any] = {"cert_reqs": "required", "check_hostname": True} | {
            name.removeprefix("ssl_"): value
            for name, value in options.items()
            if name.startswith("ssl_")
            and name.removeprefix("ssl_") in accepted
            and value is not None
        }
        self._paths = [str(self._given[name]) for name in _FILES if self._given.get(name)]
        if not any(self._given.get(name) for name in ("ca_certs", "ca_path", "ca_data")):
            system = ssl.get_default_verify_paths()
            self._paths += [path for path in (system.cafile, system.capath) if path]
        self._seen = self._complained_of = self._look()
        try:
            self._context = self._read()
        except (OSError, redis.RedisError) as error:
            raise ConfigError(
                f"the TLS settings cannot be used ({type(error).__name__}: {error}); check the ssl_* options"
            ) from error

    def context(self) -> ssl.SSLContext:
        """The context for a connection that is made now.

        While new files cannot be used, such as a certificate whose key is not there yet, the old context stays.
        """
        seen = self._look()
        if seen != self._seen:
            try:
                self._context = self._read()
            except (OSError, redis.RedisError) as error:
                if seen != self._complained_of:
                    self._complained_of = seen
                    _log.warning(
                        "the changed TLS files cannot be used (%s); the settings read before stay until they can",
                        type(error).__name__,
                        extra=log_fields(error=error),
                    )
            else:
                # As of before they were read: a change meanwhile is seen next time.
                self._seen = seen
        return self._context

    def _read(self) -> ssl.SSLContext:
        return RedisSSLContext(**self._given).get()

    def _look(self) -> _Seen:
        return tuple(map(_fingerprint, self._paths))


def _fingerprint(path: str) -> tuple[int, int, int] | None:
    """What tells one content of a file from another; through symbolic links, as Kubernetes replaces those."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
