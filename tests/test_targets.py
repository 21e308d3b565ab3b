"""What a router can be made of: URLs and redis-py's clients, read without a secret getting out."""

from __future__ import annotations

import inspect
import ssl
import subprocess
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
from conftest import SERVERS, AwaitableRouter
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider
from support.program import LinkProgram

from sfroute import AsyncRouter, ConfigError, RetryConfig, Router, RouterConfig, StoreError
from sfroute._contract.keys import link_key
from sfroute._net.connection import Address
from sfroute._net.targets import StoreTarget, target_of_client, target_of_url
from sfroute._net.url_options import HONOURED, REFUSED
from sfroute.embedded import LocalCluster, LocalServer
from sfroute.embedded._tls import make_certificates

PASSWORD = "p@ss:w/rd %?#,é"
ENCODED = "p%40ss%3Aw%2Frd%20%25%3F%23%2C%C3%A9"


async def credentials(target: StoreTarget) -> tuple[str, ...]:
    return await target.wire_settings(RouterConfig()).credentials.get()


class TestUrls:
    @pytest.mark.parametrize(
        ("scheme", "cluster", "tls"),
        [
            ("redis", False, False),
            ("rediss", False, True),
            ("redis+cluster", True, False),
            ("rediss+cluster", True, True),
        ],
    )
    def test_the_scheme_says_cluster_and_tls(self, scheme: str, cluster: bool, tls: bool) -> None:
        target = target_of_url(f"{scheme}://db.example.org:7000")
        assert target.cluster is cluster
        assert (target.wire_settings(RouterConfig()).dialer.tls is not None) is tls
        assert target.nodes == (Address("db.example.org", 7000),)

    @pytest.mark.parametrize(
        ("hosts", "nodes"),
        [
            ("a", [("a", 6379)]),
            ("a:1,b:2,c", [("a", 1), ("b", 2), ("c", 6379)]),
            ("a:1, b:2", [("a", 1), ("b", 2)]),
            ("[::1]:7000,[fe80::1]", [("::1", 7000), ("fe80::1", 6379)]),
            ("127.0.0.1:7000", [("127.0.0.1", 7000)]),
        ],
    )
    def test_it_names_one_node_or_several(self, hosts: str, nodes: list[tuple[str, int]]) -> None:
        assert list(target_of_url(f"redis+cluster://{hosts}").nodes) == nodes

    @pytest.mark.parametrize(
        ("userinfo", "expected"),
        [
            ("", ()),
            (f":{ENCODED}@", (PASSWORD,)),
            (f"gateway:{ENCODED}@", ("gateway", PASSWORD)),
        ],
    )
    @pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
    async def test_credentials_are_percent_encoded(
        self, scheme: str, userinfo: str, expected: tuple[str, ...]
    ) -> None:
        assert await credentials(target_of_url(f"{scheme}://{userinfo}a:1")) == expected

    def test_options_have_redis_pys_names(self) -> None:
        target = target_of_url("rediss+cluster://a,b?socket_connect_timeout=2.5&ssl_cert_reqs=none")
        assert target.options["socket_connect_timeout"] == 2.5
        assert target.options["ssl_cert_reqs"] == "none"

    def test_certificates_are_checked_unless_it_says_not_to(self) -> None:
        checked = target_of_url("rediss://a").wire_settings(RouterConfig()).dialer.tls
        assert checked is not None
        assert checked.context().check_hostname
        assert checked.context().verify_mode.name == "CERT_REQUIRED"
        trusting = target_of_url("rediss://a?ssl_cert_reqs=none&ssl_check_hostname=false")
        unchecked = trusting.wire_settings(RouterConfig()).dialer.tls
        assert unchecked is not None
        assert unchecked.context().verify_mode.name == "CERT_NONE"

    def test_a_certificate_file_that_is_missing_is_a_config_error(self) -> None:
        target = target_of_url(f"rediss://:{ENCODED}@a?ssl_ca_certs=/nowhere/ca.pem")
        with pytest.raises(ConfigError, match=r"TLS settings.*check the ssl_\* options") as caught:
            target.wire_settings(RouterConfig())
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize("path", ["", "/", "/0", "?db=0", "/0?socket_connect_timeout=1"])
    def test_database_0_may_be_named(self, path: str) -> None:
        assert target_of_url(f"redis://a{path}").nodes == (Address("a", 6379),)

    @pytest.mark.parametrize(
        ("url", "text"),
        [
            ("", "must begin with one of redis://"),
            ("http://:{0}@a:1", "must begin with one of redis://"),
            ("REDIS://:{0}@a:1", "must begin with one of redis://"),
            ("redis:a", "must begin with one of redis://"),
            ("unix:///tmp/redis.sock", "must begin with one of redis://"),
            ("redis://", "name each node as host or host:port"),
            ("redis://:{0}@", "name each node as host or host:port"),
            ("redis+cluster://a,,b", "name each node as host or host:port"),
            ("redis://:{0}@a:x", "name each node as host or host:port"),
            ("redis://:{0}@a:65536", "name each node as host or host:port"),
            ("redis://:{0}@a:0", "name each node as host or host:port"),
            ("redis://:{0}@a:-1", "name each node as host or host:port"),
            ("redis://:{0}@[::1:7000", "name each node as host or host:port"),
            ("redis://:{0}@a:1,b:2", "for a cluster use redis\\+cluster://"),
            ("redis+cluster://:{0}@a:1,:{0}@b:2", "once, before the first node"),
            ("redis+cluster://:{0}@a:1/1", "database other than 0"),
            ("redis+cluster://:{0}@a:1?db=1", "database other than 0"),
            ("redis://a/queue", "database other than 0"),
            ("redis://:{0}@a?db=x", "database other than 0"),
            ("redis://:{0}@a#?db=0", "must not have a part after #"),
            ("redis://:{0}@a?socket_connect_timeout=abc", "a number of seconds > 0"),
            ("redis://:{0}@a?socket_connect_timeout=inf", "a number of seconds > 0"),
            ("redis://:{0}@a?password={0}", "the password twice"),
            ("redis://a?password={0}&password={0}", "the option password twice"),
            ("redis://:{0}@a?client_name=", "client_name has no value"),
            ("redis://:{0}@a?client_name=two%20words", "printable ASCII without spaces"),
            ("rediss://:{0}@a?ssl_cert_reqs=nome", "none, optional or required"),
            ("rediss://:{0}@a?ssl_check_hostname=flase", "true or false"),
            ("rediss://:{0}@a?ssl=false", "means TLS, and ssl=false denies it"),
            ("redis://:{0}@a?ssl=maybe", "true or false"),
            ("redis+cluster://a?ssl_ca_certs=x", "no effect without TLS; use rediss\\+cluster://"),
            ("redis://a?ssl=false&ssl_ca_certs=x", "no effect without TLS"),
            ("redis://gateway:1?{0}@a", "the option that it names"),
            ("redis://:{0}@a?ssl_ca_cert=x", "does not know the option ssl_ca_cert"),
            ("redis+cluster://:{0}@a?hots=b", "does not know the option hots"),
        ],
    )
    @pytest.mark.parametrize("front", [Router, AsyncRouter])
    def test_one_that_cannot_be_used_is_refused_without_being_repeated(
        self, front: type[Router | AsyncRouter], url: str, text: str
    ) -> None:
        with pytest.raises(ConfigError, match=text) as caught:
            front.from_url(url.format(ENCODED))
        said = "".join(traceback.format_exception(caught.value))
        assert ENCODED not in said
        assert PASSWORD not in said

    def test_without_tls_there_is_none(self) -> None:
        for url in ("redis://a?ssl=false", "redis+cluster://a?ssl=0"):
            assert target_of_url(url).wire_settings(RouterConfig()).dialer.tls is None

    def test_tls_may_be_asked_for_by_its_option(self) -> None:
        target = target_of_url("redis://a?ssl=true")
        assert target.wire_settings(RouterConfig()).dialer.tls is not None

    @pytest.mark.parametrize("url", [None, b"redis://a", 7])
    def test_one_that_is_no_text_is_refused(self, url: Any) -> None:
        with pytest.raises(ConfigError, match="URL must be a str"):
            Router.from_url(url)

    def test_no_repr_shows_the_password(self) -> None:
        url = f"redis+cluster://gateway:{ENCODED}@a:1"
        target = target_of_url(url)
        shown = f"{target!r} {target.wire_settings(RouterConfig())!r}"
        shown += f"{Router.from_url(url)!r} {AsyncRouter.from_url(url)!r}"
        assert PASSWORD not in shown
        assert ENCODED not in shown


def options_of_redis_py() -> set[str]:
    """Every keyword argument with which redis-py makes a client or a connection; each can stand in a URL of its own."""
    kinds: list[Any] = [
        redis.Redis,
        redis.cluster.RedisCluster,
        redis.asyncio.Redis,
        redis.asyncio.cluster.RedisCluster,
        redis.connection.AbstractConnection,
        redis.connection.Connection,
        redis.connection.SSLConnection,
        redis.asyncio.connection.AbstractConnection,
        redis.asyncio.connection.Connection,
        redis.asyncio.connection.SSLConnection,
    ]
    names = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    names |= set(redis.cluster.REDIS_ALLOWED_KEYS)
    names |= set(redis.asyncio.connection.URL_QUERY_ARGUMENT_PARSERS)
    return names - {"self", "kwargs"}


EFFECTS: dict[str, tuple[str, Callable[[StoreTarget, RouterConfig], object], object]] = {
    "username": ("gw", lambda target, _: target.options["username"], "gw"),
    "password": ("secret", lambda target, _: target.options["password"], "secret"),
    "db": ("0", lambda target, _: target.nodes, (Address("a", 6379),)),
    "client_name": ("checkout", lambda _, config: config.client_name, "checkout"),
    "socket_connect_timeout": ("0.7", lambda _, config: config.retry.connect_timeout, 0.7),
    "protocol": ("3", lambda target, _: target.nodes, (Address("a", 6379),)),
    "read_from_replicas": ("no", lambda target, _: target.nodes, (Address("a", 6379),)),
    "ssl": ("yes", lambda target, _: context_of(target) is not None, True),
    "ssl_cert_reqs": ("none", lambda target, _: context_of(target).verify_mode, ssl.CERT_NONE),
    "ssl_check_hostname": ("0", lambda target, _: context_of(target).check_hostname, False),
    "ssl_ciphers": (
        "ECDHE-RSA-AES256-GCM-SHA384",
        lambda target, _: "ECDHE-RSA-AES128-GCM-SHA256" not in ciphers_of(target),
        True,
    ),
    "ssl_min_version": (
        "772",
        lambda target, _: context_of(target).minimum_version,
        ssl.TLSVersion.TLSv1_3,
    ),
    "ssl_include_verify_flags": (
        "[VERIFY_CRL_CHECK_LEAF]",
        lambda target, _: ssl.VERIFY_CRL_CHECK_LEAF in context_of(target).verify_flags,
        True,
    ),
    "ssl_exclude_verify_flags": (
        "VERIFY_X509_TRUSTED_FIRST",
        lambda target, _: ssl.VERIFY_X509_TRUSTED_FIRST in context_of(target).verify_flags,
        False,
    ),
}
"""Option -> a value, what it changes, and to what."""
FILES_OF_TLS = {
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
}
"""Honoured with real files below."""


def context_of(target: StoreTarget) -> ssl.SSLContext:
    tls = target.wire_settings(RouterConfig()).dialer.tls
    assert tls is not None
    return tls.context()


def ciphers_of(target: StoreTarget) -> set[str]:
    return {cipher["name"] for cipher in context_of(target).get_ciphers()}


class TestEachOptionOfRedisPy:
    """Nothing that a URL says is ignored: it has its effect, or it is refused with the reason."""

    def test_it_is_honoured_or_refused(self) -> None:
        assert not set(HONOURED) & set(REFUSED)
        assert options_of_redis_py() <= set(HONOURED) | set(REFUSED)
        assert set(HONOURED) == set(EFFECTS) | FILES_OF_TLS

    @pytest.mark.parametrize("name", EFFECTS)
    def test_one_that_is_honoured_has_an_effect(self, name: str) -> None:
        value, effect, expected = EFFECTS[name]
        scheme = "rediss" if name.startswith("ssl_") else "redis"
        target = target_of_url(f"{scheme}://a?{name}={value}")
        assert effect(target, target.completed(RouterConfig())) == expected

    @pytest.mark.parametrize("name", sorted(REFUSED))
    @pytest.mark.parametrize("front", [Router, AsyncRouter])
    def test_one_that_is_refused_says_why(
        self, front: type[Router | AsyncRouter], name: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"option {name} is not honoured: .+"):
            front.from_url(f"redis+cluster://a?{name}=1")

    @pytest.mark.parametrize(
        ("option", "why"), [("protocol=2", "RESP3"), ("read_from_replicas=true", "replica")]
    )
    def test_a_value_that_cannot_be_had_is_refused(self, option: str, why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            Router.from_url(f"redis+cluster://a?{option}")

    def test_files_of_tls_are_read(self, tmp_path: Path) -> None:
        made = make_certificates(tmp_path)
        ca, certificate, key = (str(path) for path in (made.ca, made.certificate, made.key))
        locked = str(tmp_path / "locked.key")
        lock = ["openssl", "ec", "-aes128", "-passout", "pass:open", "-in", key, "-out", locked]
        subprocess.run(lock, check=True, capture_output=True)
        url = f"rediss://a?ssl_certfile={certificate}&ssl_keyfile={locked}&ssl_password="
        context_of(target_of_url(f"{url}open"))
        with pytest.raises(ConfigError, match="TLS settings cannot be used"):
            context_of(target_of_url(f"{url}shut"))
        before = len(context_of(target_of_url("rediss://a")).get_ca_certs())
        for option in (f"ssl_ca_certs={ca}", f"ssl_ca_data={quote(Path(ca).read_text())}"):
            trusted = context_of(target_of_url(f"rediss://a?{option}")).get_ca_certs()
            assert len(trusted) == before + 1
        with pytest.raises(ConfigError, match="TLS settings cannot be used"):
            context_of(target_of_url("rediss://a?ssl_ca_data=nonsense"))
        context_of(target_of_url(f"rediss://a?ssl_ca_path={tmp_path}"))

    def test_what_the_configuration_says_goes_before_the_url(self) -> None:
        target = target_of_url("redis://a?client_name=url&socket_connect_timeout=0.7")
        given = RouterConfig(client_name="given", retry=RetryConfig(connect_timeout=0.3))
        assert target.completed(given) == given

    @pytest.mark.parametrize("option", ["ssl_validate_ocsp", "ssl_validate_ocsp_stapled"])
    def test_a_check_that_a_client_makes_and_we_cannot_is_refused(self, option: str) -> None:
        client = redis.Redis(ssl=True)
        client.connection_pool.connection_kwargs[option] = True
        with pytest.raises(ConfigError, match=f"{option} cannot be taken over"):
            Router(client)


class TestWhatIsNoClient:
    @pytest.mark.parametrize("front", [Router, AsyncRouter])
    @pytest.mark.parametrize("client", [None, "redis://a", object(), redis.Redis])
    def test_it_is_refused_by_its_type(
        self, front: type[Router | AsyncRouter], client: Any
    ) -> None:
        with pytest.raises(ConfigError, match=f"redis-py client.*this is {type(client).__name__}"):
            front(client)

    def test_a_unix_socket_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="Unix socket"):
            Router(redis.Redis(unix_socket_path="/tmp/redis.sock"))

    def test_another_database_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="database 0"):
            Router(redis.Redis(db=1))

    @pytest.mark.parametrize("front", [Router, AsyncRouter])
    def test_a_config_must_be_a_router_config(self, front: type[Router | AsyncRouter]) -> None:
        with pytest.raises(ConfigError, match="config must be a RouterConfig"):
            front.from_url("redis://a", config={})  # type: ignore[arg-type]


class TestClientSettings:
    async def test_a_credential_provider_is_asked_anew_for_each_connection(self) -> None:
        class Rotating(CredentialProvider):
            number = 0

            def get_credentials(self) -> tuple[str, str]:
                self.number += 1
                return "gateway", f"password{self.number}"

        settings = target_of_client(redis.Redis(credential_provider=Rotating())).wire_settings(
            RouterConfig()
        )
        assert await settings.credentials.get() == ("gateway", "password1")
        assert await settings.credentials.get() == ("gateway", "password2")

    async def test_a_password_alone_is_taken(self) -> None:
        assert await credentials(target_of_client(redis.Redis(password=PASSWORD))) == (PASSWORD,)

    async def test_tls_is_taken(self) -> None:
        client = redis.Redis(ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False)
        tls = target_of_client(client).wire_settings(RouterConfig()).dialer.tls
        assert tls is not None
        assert tls.context().verify_mode.name == "CERT_NONE"


@pytest.fixture(scope="module")
def guarded(server: str) -> Iterator[LocalCluster]:
    """A cluster that asks for a password."""
    with LocalCluster(
        primaries=3, replicas_per_primary=0, server_binary=SERVERS[server], password=PASSWORD
    ) as cluster:
        yield cluster


Operate = Callable[[Any], Awaitable[None]]


@pytest.fixture
def operate(namespace: str) -> Operate:
    """Some of everything: a script, a lookup, a batch and a plain command."""

    async def operate(router: Any) -> None:
        assert await router.set_linked_pod(namespace, "ada", "chat", 3) is None
        assert await router.get_linked_pod(namespace, "ada", "chat") == 3
        found = await router.batch_get_linked_pod(namespace, ["bob", "ada"], "chat", fresh=True)
        assert found == {3: ["ada"]}
        await router.set_workload_state(namespace, "chat", "up")
        assert await router.get_workload_state(namespace, "chat") == "up"
        assert await router.get_link_service(namespace, "ada") == {"chat": 3}

    return operate


@pytest.mark.parametrize("decode_responses", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
class TestClients:
    async def test_an_asyncio_cluster_client_is_borrowed_and_never_closed(
        self, guarded: LocalCluster, operate: Operate, decode_responses: bool, protocol: int
    ) -> None:
        host, port = guarded.startup_nodes[0]
        client = redis.asyncio.cluster.RedisCluster(
            host=host,
            port=port,
            password=PASSWORD,
            decode_responses=decode_responses,
            protocol=protocol,
        )
        async with AsyncRouter(client) as router:
            await operate(router)
        assert await client.set("still", "usable")
        await client.aclose()

    async def test_an_asyncio_cluster_client_in_use_is_borrowed_too(
        self, guarded: LocalCluster, operate: Operate, decode_responses: bool, protocol: int
    ) -> None:
        host, port = guarded.startup_nodes[0]
        client = redis.asyncio.cluster.RedisCluster(
            host=host,
            port=port,
            password=PASSWORD,
            decode_responses=decode_responses,
            protocol=protocol,
        )
        await client.set("in", "use")
        async with AsyncRouter(client) as router, AsyncRouter(client) as other:
            await operate(router)
            assert await other.get_linked_pod("ns", "nobody", "chat") is None
        assert await client.get("in") in ("use", b"use")
        await client.aclose()

    @pytest.mark.parametrize("front", ["async", "sync"])
    async def test_of_a_sync_cluster_client_the_settings_are_taken(
        self,
        guarded: LocalCluster,
        operate: Operate,
        front: str,
        decode_responses: bool,
        protocol: int,
    ) -> None:
        host, port = guarded.startup_nodes[0]
        client = redis.cluster.RedisCluster(
            host=host,
            port=port,
            credential_provider=UsernamePasswordCredentialProvider("default", PASSWORD),
            decode_responses=decode_responses,
            protocol=protocol,
        )
        router: Any = AsyncRouter(client) if front == "async" else AwaitableRouter(Router(client))
        await operate(router)
        await router.aclose()
        assert client.get("nothing") is None
        client.close()

    @pytest.mark.parametrize("front", ["async", "sync"])
    @pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis])
    async def test_of_a_single_nodes_client_the_settings_are_taken(
        self, single: LocalServer, operate: Operate, front: str, kind: Any,
        decode_responses: bool, protocol: int,
    ) -> None:  # fmt: skip
        host, port = single.startup_nodes[0]
        client = kind(
            host=host,
            port=port,
            password=PASSWORD,
            decode_responses=decode_responses,
            protocol=protocol,
        )
        router: Any = AsyncRouter(client) if front == "async" else AwaitableRouter(Router(client))
        await operate(router)
        await router.aclose()


@pytest.fixture(scope="module")
def single(server: str) -> Iterator[LocalServer]:
    with LocalServer(server_binary=SERVERS[server], password=PASSWORD) as single:
        yield single


class TestServers:
    async def test_a_single_node_works_like_a_cluster(
        self, make_router: Callable[..., Any], single: LocalServer, operate: Operate
    ) -> None:
        router = make_router(single.url)
        await operate(router)
        await router.aclose()

    async def test_a_cluster_asking_for_a_password_gets_it(
        self, make_router: Callable[..., Any], guarded: LocalCluster, operate: Operate
    ) -> None:
        router = make_router(guarded.url)
        await operate(router)
        await router.aclose()

    async def test_one_node_that_answers_is_enough(
        self, make_router: Callable[..., Any], cluster: LocalCluster, operate: Operate
    ) -> None:
        host, port = cluster.startup_nodes[-1]
        router = make_router(f"redis+cluster://127.0.0.1:1,{host}:{port}")
        await operate(router)
        await router.aclose()

    @pytest.mark.parametrize("password", ["wrong", None])
    async def test_a_wrong_password_is_told_at_once(
        self,
        make_router: Callable[..., Any],
        guarded: LocalCluster,
        single: LocalServer,
        password: str | None,
    ) -> None:
        for servers in (guarded, single):
            url = servers.url.replace(
                f":{servers.url.split(':', 2)[2].split('@')[0]}@",
                "" if password is None else f":{password}@",
            )
            router = make_router(url)
            with pytest.raises(StoreError, match="password") as caught:
                await router.get_linked_pod("ns", "ada", "chat")
            assert not caught.value.retryable
            await router.aclose()

    async def test_a_node_of_a_cluster_is_no_single_node(
        self, make_router: Callable[..., Any], cluster: LocalCluster, namespace: str
    ) -> None:
        owner = cluster.primary_of(link_key(namespace, "ada", "chat"))
        other = next(node for node in cluster.nodes if node is not owner)
        router = make_router(f"redis://{other.host}:{other.port}")
        with pytest.raises(StoreError, match=r"use a redis\+cluster:// URL"):
            await router.get_linked_pod(namespace, "ada", "chat")
        await router.aclose()

    async def test_a_single_node_is_no_cluster(
        self, make_router: Callable[..., Any], single: LocalServer
    ) -> None:
        router = make_router(single.url.replace("redis://", "redis+cluster://"))
        with pytest.raises(StoreError, match="redis://"):
            await router.open()
        await router.aclose()


async def test_programs_in_other_languages_see_what_a_borrowed_client_wrote(
    cluster: LocalCluster, raw: redis.cluster.RedisCluster, namespace: str
) -> None:
    host, port = cluster.startup_nodes[0]
    client = redis.asyncio.cluster.RedisCluster(host=host, port=port, decode_responses=True)
    async with AsyncRouter(client) as router:
        await router.set_linked_pod(namespace, "ada", "chat", 3)
    link = LinkProgram(raw, namespace, "ada", "chat")
    assert (link.pod(), link.listed()) == ("3", "3")
    await client.aclose()
