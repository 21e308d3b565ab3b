"""One server: its configuration, its process, and commands sent to it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.retry import Retry

from sfroute._chance import chance
from sfroute.errors import ConfigError

from ._supervisor import LocalClusterError, PortTaken, Supervisor
from ._tls import Certificates

__all__ = [
    "BUS_OFFSET",
    "HOST",
    "Node",
    "Reply",
    "Role",
    "ServerSettings",
    "fields",
    "why_not_free",
]

HOST: Final = "127.0.0.1"
BUS_OFFSET: Final = 10000
"""The cluster bus listens on port + 10000, by convention of the servers."""
# These ports, and their cluster bus ports, lie below the ephemeral ranges of Linux (from 32768) and macOS (from 49152).
_PORTS: Final = range(10000, 20000)
_PORT_ATTEMPTS: Final = 8
_LOG_TAIL: Final = 2000
_COMMAND_SECONDS: Final = 5.0
_UP_SECONDS: Final = 0.5

Role = Literal["primary", "replica"]
Reply = str | bytes | int | list["Reply"] | None
"""A server's reply to a command, in RESP2."""

# Directives that this module sets and relies on.
_RESERVED: Final = frozenset(
    {
        "bind",
        "cluster-config-file",
        "cluster-enabled",
        "cluster-node-timeout",
        "daemonize",
        "dir",
        "logfile",
        "masterauth",
        "pidfile",
        "port",
        "primaryauth",
        "requirepass",
        "tls-ca-cert-file",
        "tls-cert-file",
        "tls-cluster",
        "tls-key-file",
        "tls-port",
        "tls-replication",
    }
)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What all servers of a cluster have in common."""

    binary: Path
    cluster: bool
    node_timeout_ms: int = 1000
    tls: Certificates | None = None
    password: str | None = field(default=None, repr=False)
    extra: Mapping[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        reserved = sorted(_RESERVED.intersection(name.lower() for name in self.extra))
        if reserved:
            raise ConfigError(
                f"extra_config must not set {', '.join(reserved)}: sfroute sets it; leave it out"
            )
        if any("\n" in f"{name}{value}" for name, value in self.extra.items()):
            raise ConfigError(
                "extra_config must hold one line per directive; remove the line break"
            )

    def lines(self, port: int, directory: Path) -> list[str]:
        """The lines of a server's configuration file. If a directive appears twice, the last value counts."""
        lines = [
            f"bind {HOST}",
            f"dir {_quoted(str(directory))}",
            "daemonize no",
            'save ""',
            "appendonly no",
            "repl-diskless-sync yes",
            "repl-diskless-sync-delay 0",
            f"{'tls-port' if self.tls else 'port'} {port}",
        ]
        if self.cluster:
            lines += [
                "cluster-enabled yes",
                "cluster-config-file nodes.conf",
                f"cluster-node-timeout {self.node_timeout_ms}",
                # Replicas keep the primary that they were given.
                "cluster-allow-replica-migration no",
            ]
        if self.tls:
            lines += [
                "port 0",
                f"tls-cert-file {_quoted(str(self.tls.certificate))}",
                f"tls-key-file {_quoted(str(self.tls.key))}",
                f"tls-ca-cert-file {_quoted(str(self.tls.ca))}",
                "tls-auth-clients no",
                "tls-replication yes",
            ]
            lines += ["tls-cluster yes"] if self.cluster else []
        if self.password is not None:
            lines += [f"{name} {_quoted(self.password)}" for name in ("requirepass", "masterauth")]
        return lines + [f"{name} {_value(value)}" for name, value in self.extra.items()]


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'


def _value(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or '""'


def _free_port(*, bus: bool) -> int:
    """A port that is free now. A server that finds it taken by then is given another."""
    for port in chance.sample(_PORTS, 200):
        if not why_not_free(port, bus=bus):
            return port
    raise LocalClusterError(
        f"no free port found between {_PORTS.start} and {_PORTS.stop - 1}; stop other servers on this machine"
    )


def why_not_free(port: int, *, bus: bool) -> str:
    """Why a server cannot listen on a port, or (``bus``) on its cluster bus port. Empty if it can."""
    for needed in (port, port + BUS_OFFSET) if bus else (port,):
        with socket.socket() as probe:
            # As the servers do: a port in TIME_WAIT can be bound, a port with a listener cannot.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, needed))
            except OSError as error:
                return f"port {needed} of {HOST} is not free ({error.strerror})"
    return ""


class Node:
    """One server of a local cluster.

    Attributes:
        host: ``"127.0.0.1"``.
        port: the port it listens on. Changes with ``restart(node, new_port=True)``.
        pid: its process id. Changes with each restart.
        node_id: its id in the cluster, which never changes. Empty for a single server.
        role: ``"primary"`` or ``"replica"``, as last seen by ``refresh``, ``wait_healthy`` or ``failover``.
        slots: the slots it serves, as last seen. Empty for a replica.
        epoch: the configuration epoch of its slots, as last seen. If two nodes claim a slot, the higher epoch wins.
        paused: ``pause`` stopped it, and ``resume`` has not continued it yet.
    """

    def __init__(self, name: str, settings: ServerSettings, supervisor: Supervisor) -> None:
        self.host = HOST
        self.port = 0
        self.pid = 0
        self.node_id = ""
        self.role: Role = "primary"
        self.slots: tuple[range, ...] = ()
        self.epoch = 0
        self.paused = False
        self._settings = settings
        self._supervisor = supervisor
        self._attempts = 0
        self._directory = supervisor.directory / name
        self._log = self._directory / "server.log"
        self._directory.mkdir(mode=0o700)

    def __repr__(self) -> str:
        state = "paused" if self.paused else "alive" if self.alive else "dead"
        return f"<Node {self.host}:{self.port} {self.role} pid={self.pid} {state}>"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    @property
    def alive(self) -> bool:
        """True while its process exists, paused or not."""
        return self._supervisor.stop.alive and self._supervisor.status(self.pid) is None

    def launch(self, port: int | None = None) -> None:
        """Start the process, on a free port if None is given. ``is_up`` says when it answers."""
        self._attempts = 0 if port is None else _PORT_ATTEMPTS
        self._launch(port)

    def _launch(self, port: int | None) -> None:
        self.port = port or _free_port(bus=self._settings.cluster)
        config = self._directory / "server.conf"
        lines = self._settings.lines(self.port, self._directory)
        # The password goes into a file: a command line would show it to every user of the machine.
        config.touch(mode=0o600)
        config.write_text("\n".join([*lines, ""]))
        self._log.unlink(missing_ok=True)
        self.paused = False
        self.pid = self._supervisor.start([str(self._settings.binary), str(config)], self._log)

    def is_up(self) -> bool:
        """True once the launched process answers. If another process took its port, it is launched on another one.

        Raises:
            ConfigError: the server was built without TLS.
            LocalClusterError: the process ended. The text holds the end of its log.
        """
        status = self._supervisor.status(self.pid)
        if status is not None:
            self._relaunch(status)
            return False
        try:
            info = self.info("server", timeout=_UP_SECONDS)
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            return (
                False  # not ready yet; or a stranger has the port, and our server is about to end
            )
        return info.get("process_id") == str(self.pid)

    def _relaunch(self, status: int) -> None:
        log = self._log.read_text(errors="replace")
        self._attempts += 1
        if "already in use" in log and self._attempts < _PORT_ATTEMPTS:
            self._launch(None)
            return
        if self._settings.tls and ("connection type tls" in log or "'tls-" in log):
            raise ConfigError(
                f"TLS needs a server built with TLS, and {self._settings.binary} was built without; "
                "use another, such as Debian's redis-server (server_binary=; on the command line --server)"
            )
        kind = PortTaken if "already in use" in log else LocalClusterError
        raise kind(
            f"{self._settings.binary} exited during startup with status {status}; the end of its log:\n"
            f"{log[-_LOG_TAIL:].strip()}"
        )

    def log_tail(self) -> str:
        """The end of the server's log, for error texts."""
        return self._log.read_text(errors="replace")[-_LOG_TAIL:].strip()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it has not ended. With SIGKILL, returns when it has ended."""
        self._supervisor.signal(self.pid, number)
        self.paused = self.alive and (
            number == signal.SIGSTOP or (self.paused and number != signal.SIGCONT)
        )

    def info(self, section: str, *, timeout: float = _COMMAND_SECONDS) -> dict[str, str]:
        """One section of INFO."""
        return fields(self.commands(("INFO", section), timeout=timeout)[0])

    def commands(
        self,
        *commands: tuple[str | bytes | int | float, ...],
        decode: bool = True,
        timeout: float = _COMMAND_SECONDS,
    ) -> list[Reply]:
        """Send commands over a new connection and return the replies.

        Raises:
            redis.RedisError: an error reply (``redis.ResponseError``), or the server cannot be reached.
        """
        connection = self._connect(decode, timeout)
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            return [connection.read_response() for _ in commands]
        finally:
            connection.disconnect()

    # Any: redis-py does not type the methods of its connections.
    def _connect(self, decode: bool, timeout: float) -> Any:
        tls = self._settings.tls
        options: dict[str, Any] = {"ssl_ca_certs": os.fspath(tls.ca)} if tls else {}
        connection_class: type[Connection] = SSLConnection if tls else Connection
        return connection_class(
            host=self.host,
            port=self.port,
            password=self._settings.password,
            protocol=2,
            decode_responses=decode,
            driver_info=None,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            **options,
        )


def fields(text: Reply) -> dict[str, str]:
    """Lines of ``name:value``."""
    assert isinstance(text, str)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
