"""From what a caller has, a URL or a redis-py client, to what a router needs: start nodes and connection settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.cluster import RedisCluster as SyncRedisCluster
from redis.connection import SSLConnection as SyncSSLConnection

from ..config import RouterConfig
from ..errors import ConfigError
from .connection import WireSettings
from .credentials import CredentialsSource
from .dialer import Address, AddressRemap, Dialer
from .tls import TlsFiles
from .url_options import read_options

__all__ = ["AnyClient", "StoreTarget", "target_of_client", "target_of_url"]

AnyClient = AsyncRedisCluster | redis.asyncio.Redis | SyncRedisCluster | redis.Redis
"""The clients of redis-py that a router can be made from."""

_SCHEMES: Final = {
    "redis": (False, False),
    "rediss": (False, True),
    "redis+cluster": (True, False),
    "rediss+cluster": (True, True),
}
_DEFAULT_PORT: Final = 6379
_DEFAULTS: Final = RouterConfig()
_OCSP: Final = ("ssl_validate_ocsp", "ssl_validate_ocsp_stapled", "ssl_ocsp_context")


@dataclass(frozen=True, slots=True)
class StoreTarget:
    """Where the store is and how to connect. ``repr`` shows no secret.

    Attributes:
        cluster: a cluster, or a single node.
        nodes: start nodes of the cluster, or the one node.
        options: redis-py's keyword arguments for credentials and TLS; ``ssl`` says whether there is TLS at all. Of a
            URL also what ``completed`` takes over.
        address_remap: a client's own; see ``RouterConfig.address_remap``.
        borrowed: the caller's own asyncio client, whose slot map is used and which is never closed.
    """

    cluster: bool
    nodes: tuple[Address, ...]
    options: Mapping[str, Any] = field(repr=False)
    address_remap: AddressRemap | None = None
    borrowed: AsyncRedisCluster | None = field(default=None, repr=False)

    def completed(self, config: RouterConfig) -> RouterConfig:
        """The configuration, with what the URL or the client says where it leaves something at its default.

        Raises:
            ConfigError: both say something, and it cannot be reconciled.
        """
        name = self.options.get("client_name")
        if name is not None and config.client_name == _DEFAULTS.client_name:
            config = replace(config, client_name=name)
        seconds = self.options.get("socket_connect_timeout")
        if seconds is not None and config.retry.connect_timeout == _DEFAULTS.retry.connect_timeout:
            config = replace(config, retry=replace(config.retry, connect_timeout=seconds))
        if self.borrowed is not None and config.address_remap not in (None, self.address_remap):
            raise ConfigError(
                "RouterConfig.address_remap must be given to the RedisCluster client instead: "
                "the router follows the client's slot map"
            )
        if config.address_remap is None and self.address_remap is not None:
            config = replace(config, address_remap=self.address_remap)
        return config

    def wire_settings(self, config: RouterConfig, shown_as: str | None = None) -> WireSettings:
        """The settings of every connection the router makes itself.

        ``shown_as``: in ``CLIENT LIST``; None: under ``config.client_name``.
        """
        # A provider that is late must leave time to connect, or to say that it was late.
        deadline, connecting = config.retry.deadline, config.retry.connect_timeout
        return WireSettings(
            credentials=CredentialsSource(self.options, max(deadline - connecting, deadline / 2)),
            dialer=Dialer(TlsFiles(self.options) if self.options.get("ssl") else None),
            client_name=shown_as or config.client_name,
            connect_timeout=config.retry.connect_timeout,
            delivery_timeout=config.retry.deadline,
        )


def _uses_tls(options: Mapping[str, Any]) -> bool:
    connection_class = options.get("connection_class")
    return bool(options.get("ssl")) or (
        isinstance(connection_class, type)
        and issubclass(connection_class, (AsyncSSLConnection, SyncSSLConnection))
    )


def target_of_url(url: str) -> StoreTarget:
    """Read ``redis://``, ``rediss://``, ``redis+cluster://`` or ``rediss+cluster://``.

    Several start nodes are separated by commas (``redis+cluster://user:password@a:6379,b:6379``); user and password
    stand once, percent-encoded. Options follow as a query string, under redis-py's names
    (``?ssl_ca_certs=/etc/ca.pem``); ``url_options.py`` has all of them.

    Raises:
        ConfigError: the URL cannot be used; the text does not repeat it, since it may hold a password.
    """
    if not isinstance(url, str):
        raise ConfigError(f"the URL must be a str, not {type(url).__name__}")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ConfigError(
            f"the URL must begin with one of {', '.join(f'{s}://' for s in _SCHEMES)}"
        )
    cluster, tls = _SCHEMES[scheme]
    authority, tail = _split_authority(rest)
    userinfo, _, hosts = authority.rpartition("@")
    if "@" in userinfo:
        raise ConfigError(
            "the URL must name user and password once, before the first node, percent-encoded (@ is %40)"
        )
    nodes = tuple(_parse_node(host) for host in hosts.split(","))
    if not cluster and len(nodes) > 1:
        raise ConfigError(f"{scheme}:// names one node; for a cluster use {scheme}+cluster://")
    before, fragment, _ = tail.partition("#")
    if fragment:
        raise ConfigError("the URL must not have a part after #; in a password # is %23")
    path, _, query = before.partition("?")
    if path.strip("/") not in ("", "0"):
        raise ConfigError(
            "the URL must not name a database other than 0 after its nodes: a cluster has no other"
        )
    options = _with_tls(read_options(query), tls=tls, scheme=scheme)
    return StoreTarget(cluster, nodes, _with_userinfo(options, userinfo))


def _with_userinfo(options: dict[str, Any], userinfo: str) -> dict[str, Any]:
    username, _, password = userinfo.partition(":")
    given = {"username": unquote(username), "password": unquote(password)}
    for name, value in given.items():
        if value and name in options:
            raise ConfigError(f"the URL gives the {name} twice; give it once")
    return options | {name: value for name, value in given.items() if value}


def _with_tls(options: dict[str, Any], *, tls: bool, scheme: str) -> dict[str, Any]:
    """The options with ``ssl`` decided by scheme and option."""
    wanted = options.get("ssl", tls)
    if tls and not wanted:
        raise ConfigError(f"{scheme}:// means TLS, and ssl=false denies it; leave one of them out")
    idle = sorted(name for name in options if name.startswith("ssl_"))
    if idle and not wanted:
        raise ConfigError(
            f"the URL's option {idle[0]} has no effect without TLS; "
            f"use {scheme.replace('redis', 'rediss', 1)}://, or leave it out"
        )
    return options | {"ssl": wanted}


def _split_authority(rest: str) -> tuple[str, str]:
    for index, character in enumerate(rest):
        if character in "/?#":
            return rest[:index], rest[index:]
    return rest, ""


def _parse_node(text: str) -> Address:
    try:
        parts = urlsplit(f"//{text.strip()}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise ConfigError("the URL must name each node as host or host:port, separated by commas")
    return Address(host, port or _DEFAULT_PORT)


def target_of_client(client: AnyClient) -> StoreTarget:
    """Take start nodes, credentials, TLS settings and ``address_remap`` of a redis-py client.

    An asyncio ``RedisCluster`` is borrowed: its slot map is used, and it is never closed. Of the others only the
    settings are taken. Time-outs, retries and the name are those of ``RouterConfig``: a client's are for its own
    commands, and have defaults that cannot be told from a choice.

    Raises:
        ConfigError: not a client of redis-py, or one that cannot be used.
    """
    if isinstance(client, (AsyncRedisCluster, SyncRedisCluster)):
        manager = client.nodes_manager
        borrowed = client if isinstance(client, AsyncRedisCluster) else None
        options = (
            client.get_connection_kwargs() if borrowed is not None else manager.connection_kwargs
        )
        started = client.startup_nodes if borrowed is not None else manager.startup_nodes.values()
        nodes = tuple(Address(str(n.host), int(n.port)) for n in started)
        return StoreTarget(True, nodes, _taken_over(options), manager.address_remap, borrowed)
    if isinstance(client, (redis.asyncio.Redis, redis.Redis)):
        pool = client.connection_pool
        options = {**pool.connection_kwargs, "connection_class": pool.connection_class}
        if not options.get("host"):
            raise ConfigError("the client must connect by TCP: a Unix socket is not supported")
        if options.get("db"):
            raise ConfigError("the client must use database 0: a cluster has no other")
        node = Address(str(options["host"]), int(options.get("port") or _DEFAULT_PORT))
        return StoreTarget(False, (node,), _taken_over(options))
    raise ConfigError(
        "a router is made from a redis-py client (RedisCluster or Redis, sync or asyncio), or by "
        f"from_url(...); this is {type(client).__name__}"
    )


def _taken_over(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a client's connection arguments, those for credentials and TLS."""
    for name in _OCSP:
        if options.get(name):
            raise ConfigError(
                f"the client's {name} cannot be taken over: sfroute does not check OCSP; "
                "make the router by from_url(...), or from a client without it"
            )
    names = ("username", "password", "credential_provider")
    taken = {
        name: value
        for name, value in options.items()
        if value is not None and (name in names or name.startswith("ssl_"))
    }
    return taken | {"ssl": _uses_tls(options)}
