"""From what a caller has, a URL or a redis-py client, to what a router needs: start nodes and connection settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.connection import RedisSSLContext, parse_url
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.cluster import RedisCluster as SyncRedisCluster
from redis.connection import SSLConnection as SyncSSLConnection
from redis.credentials import UsernamePasswordCredentialProvider
from redis.maint_notifications import MaintNotificationsConfig

from .config import RouterConfig
from .errors import ConfigError
from .slotmap import distrust
from .wire import Address, Credentials, WireSettings

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


@dataclass(frozen=True, slots=True)
class StoreTarget:
    """Where the store is and how to connect. ``repr`` shows no secret.

    Attributes:
        cluster: a cluster, or a single node.
        nodes: start nodes of the cluster, or the one node.
        options: redis-py's connection keyword arguments, credentials included.
        borrowed: the caller's own asyncio client, whose slot map is used and which is never closed.
    """

    cluster: bool
    nodes: tuple[Address, ...]
    options: Mapping[str, Any] = field(repr=False)
    borrowed: AsyncRedisCluster | None = field(default=None, repr=False)

    def wire_settings(self, config: RouterConfig) -> WireSettings:
        """The settings of every connection the router makes itself."""
        options = self.options
        provider = options.get("credential_provider")
        if provider is None and (options.get("username") or options.get("password")):
            provider = UsernamePasswordCredentialProvider(
                options.get("username"), options.get("password")
            )

        async def credentials() -> Credentials:
            if provider is None:
                return ()
            return tuple(str(part) for part in await provider.get_credentials_async())

        return WireSettings(
            credentials=credentials,
            tls=_tls_context(options) if _uses_tls(options) else None,
            client_name=config.client_name,
            connect_timeout=config.retry.connect_timeout,
        )

    def make_cluster_client(self, config: RouterConfig) -> AsyncRedisCluster:
        """A redis-py client of the router's own: it learns the slot map, nothing else is sent through it."""
        accepted = inspect.signature(AsyncRedisCluster.__init__).parameters
        options = {name: value for name, value in self.options.items() if name in accepted}
        options |= {
            "ssl": _uses_tls(self.options),
            "protocol": 3,
            "legacy_responses": False,
            "decode_responses": False,
            "socket_timeout": config.retry.connect_timeout,
            "socket_connect_timeout": config.retry.connect_timeout,
            "client_name": config.client_name,
            # A slot without an owner is the trouble of that slot's users only.
            "require_full_coverage": False,
            "startup_nodes": [ClusterNode(node.host, node.port) for node in self.nodes],
        }
        if "maint_notifications_config" in accepted:  # since redis-py 8.1
            # Valkey refuses the command behind it.
            options["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
        if "driver_info" in accepted:
            # Behind it is CLIENT SETINFO: one more right to give, and one that Redis 7.0 does not know.
            options["driver_info"] = None
        client = AsyncRedisCluster(**options)
        distrust(client)
        return client


def _uses_tls(options: Mapping[str, Any]) -> bool:
    connection_class = options.get("connection_class")
    return bool(options.get("ssl")) or (
        isinstance(connection_class, type)
        and issubclass(connection_class, (AsyncSSLConnection, SyncSSLConnection))
    )


def _tls_context(options: Mapping[str, Any]) -> Any:
    """redis-py's own reading of its ``ssl_*`` options; certificates are checked unless it was told not to."""
    accepted = inspect.signature(RedisSSLContext.__init__).parameters
    given = {
        name.removeprefix("ssl_"): value
        for name, value in options.items()
        if name.startswith("ssl_") and name.removeprefix("ssl_") in accepted and value is not None
    }
    given.setdefault("cert_reqs", "required")
    given.setdefault("check_hostname", True)
    try:
        return RedisSSLContext(**given).get()
    except (OSError, redis.RedisError) as error:
        raise ConfigError(
            f"the TLS settings cannot be used ({type(error).__name__}: {error}); check the ssl_* options"
        ) from error


def target_of_url(url: str) -> StoreTarget:
    """Read ``redis://``, ``rediss://``, ``redis+cluster://`` or ``rediss+cluster://``.

    Several start nodes are separated by commas (``redis+cluster://user:password@a:6379,b:6379``); user and password
    stand once, percent-encoded. Options follow as a query string, under redis-py's names
    (``?ssl_ca_certs=/etc/ca.pem``).

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
    plain = f"redis{'s' if tls else ''}://{userinfo}{'@' if userinfo else ''}unused{tail}"
    try:
        options: dict[str, Any] = dict(parse_url(plain))
    except ValueError as error:
        raise ConfigError(
            "the URL's options cannot be read; use redis-py's names and values"
        ) from error
    options.pop("host", None)
    # connection_class is what redis-py makes of rediss://.
    unknown = sorted(options.keys() - _known_options() - {"connection_class"})
    if unknown:
        raise ConfigError(
            f"redis-py does not know the option {unknown[0]:.40} of the URL; use the names of its keyword arguments"
        )
    if options.pop("db", 0):
        raise ConfigError("the URL must not name a database other than 0: a cluster has no other")
    return StoreTarget(cluster, nodes, options)


def _known_options() -> set[str]:
    """redis-py's connection keyword arguments: a name with a slip of the pen must not be ignored."""
    classes = (redis.asyncio.Redis, AsyncRedisCluster)
    return {name for kind in classes for name in inspect.signature(kind.__init__).parameters}


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
    """Take start nodes, credentials and connection settings of a redis-py client.

    An asyncio ``RedisCluster`` is borrowed: its slot map is used, and it is never closed. Of the others only the
    settings are taken.

    Raises:
        ConfigError: not a client of redis-py, or one that cannot be used.
    """
    if isinstance(client, AsyncRedisCluster):
        nodes = tuple(Address(str(n.host), int(n.port)) for n in client.startup_nodes)
        return StoreTarget(True, nodes, client.get_connection_kwargs(), borrowed=client)
    if isinstance(client, SyncRedisCluster):
        options = dict(client.nodes_manager.connection_kwargs)
        started = client.nodes_manager.startup_nodes.values()
        return StoreTarget(True, tuple(Address(str(n.host), int(n.port)) for n in started), options)
    if isinstance(client, (redis.asyncio.Redis, redis.Redis)):
        pool = client.connection_pool
        options = {**pool.connection_kwargs, "connection_class": pool.connection_class}
        if not options.get("host"):
            raise ConfigError("the client must connect by TCP: a Unix socket is not supported")
        if options.get("db"):
            raise ConfigError("the client must use database 0: a cluster has no other")
        node = Address(str(options["host"]), int(options.get("port") or _DEFAULT_PORT))
        return StoreTarget(False, (node,), options)
    raise ConfigError(
        "a router is made from a redis-py client (RedisCluster or Redis, sync or asyncio), or by "
        f"from_url(...); this is {type(client).__name__}"
    )
