"""A cluster with TLS and a password, as production ones are: the server's certificate is checked by default."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis.asyncio.cluster
import redis.cluster
from conftest import AwaitableRouter
from test_lifecycle import forward

from sfroute import AsyncRouter, Router, StoreError
from sfroute._contract.keys import link_key, slot_of
from sfroute._net.tls import TlsFiles
from sfroute.embedded import LocalCluster, LocalServer
from sfroute.embedded._tls import Certificates, make_certificates

PASSWORD = "p@ss:w/rd %"


@pytest.fixture(scope="module")
def secured(tls_server_binary: str) -> Iterator[LocalCluster]:
    with LocalCluster(
        3, 0, server_binary=tls_server_binary, tls=True, password=PASSWORD
    ) as secured:
        yield secured


@pytest.fixture(scope="module")
def secured_node(tls_server_binary: str) -> Iterator[LocalServer]:
    with LocalServer(server_binary=tls_server_binary, tls=True, password=PASSWORD) as secured:
        yield secured


@pytest.fixture(params=["cluster", "single node"])
def store(request: pytest.FixtureRequest) -> LocalCluster | LocalServer:
    fixture = "secured" if request.param == "cluster" else "secured_node"
    found: LocalCluster | LocalServer = request.getfixturevalue(fixture)
    return found


async def operate(router: Any, namespace: str) -> None:
    """A script, lookups over several nodes, and a plain command."""
    for pod in range(6):
        assert await router.set_linked_pod(namespace, f"u{pod}", "chat", pod) is None
    uids = [f"u{pod}" for pod in range(6)]
    found = await router.batch_get_linked_pod(namespace, uids, "chat")
    assert found == {pod: [f"u{pod}"] for pod in range(6)}
    await router.set_workload_state(namespace, "chat", "up")
    assert await router.get_workload_state(namespace, "chat") == "up"


async def test_it_is_used_like_any_other(
    make_router: Callable[..., Any], store: LocalCluster | LocalServer, namespace: str
) -> None:
    router = make_router(store.url)
    await operate(router, namespace)
    assert all(lane.tracked for lane in router.stats().lanes)
    await router.aclose()


@pytest.mark.parametrize("front", ["async", "sync"])
@pytest.mark.parametrize("client_kind", ["async", "sync"])
async def test_clients_with_tls_hand_their_settings_on(
    secured: LocalCluster, namespace: str, front: str, client_kind: str
) -> None:
    host, port = secured.startup_nodes[0]
    options: Any = {"ssl": True, "ssl_ca_certs": str(secured.ca_cert), "password": PASSWORD}
    client: Any
    if client_kind == "async":
        client = redis.asyncio.cluster.RedisCluster(host=host, port=port, **options)
    else:
        client = redis.cluster.RedisCluster(host=host, port=port, **options)
    router: Any = AsyncRouter(client) if front == "async" else AwaitableRouter(Router(client))
    await operate(router, namespace)
    await router.aclose()
    if client_kind == "async":
        await client.aclose()
    else:
        client.close()


@pytest.fixture
def wrong_authority(tmp_path: Path) -> Path:
    """The certificate of an authority that signed nothing here."""
    certificate = tmp_path / "other.crt"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=other"
    files = ["-keyout", str(tmp_path / "other.key"), "-out", str(certificate)]
    subprocess.run([*make.split(), *files], check=True, capture_output=True)
    return certificate


@pytest.mark.parametrize("authority", ["unknown", "wrong"])
async def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(
    make_router: Callable[..., Any],
    store: LocalCluster | LocalServer,
    wrong_authority: Path,
    authority: str,
) -> None:
    url = store.url.partition("?")[0]
    if authority == "wrong":
        url += f"?ssl_ca_certs={quote(str(wrong_authority))}"
    router = make_router(url)
    with pytest.raises(StoreError, match=r"certificate of .* was not accepted") as caught:
        await router.open()
    assert not caught.value.retryable
    assert PASSWORD not in str(caught.value)
    await router.aclose()


async def test_the_check_can_be_switched_off(
    make_router: Callable[..., Any], store: LocalCluster | LocalServer, namespace: str
) -> None:
    url = store.url.partition("?")[0] + "?ssl_cert_reqs=none&ssl_check_hostname=false"
    router = make_router(url)
    await operate(router, namespace)
    await router.aclose()


async def test_a_certificate_for_another_name_is_refused_at_once(
    make_router: Callable[..., Any], store: LocalCluster | LocalServer
) -> None:
    """It is the right server, and the right authority: only not whom the URL names."""
    _, port = store.startup_nodes[0]

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await forward(reader, writer, port)

    async with await asyncio.start_server(pass_on, "127.0.0.2", 0) as elsewhere:
        there = elsewhere.sockets[0].getsockname()[1]
        scheme = "rediss+cluster" if isinstance(store, LocalCluster) else "rediss"
        authority = quote(str(store.ca_cert))
        url = f"{scheme}://:{quote(PASSWORD, safe='')}@127.0.0.2:{there}?ssl_ca_certs={authority}"
        router = make_router(url)
        with pytest.raises(StoreError, match=r"certificate of .* was not accepted.*127\.0\.0\.2"):
            await router.open()
        await router.aclose()


@pytest.mark.parametrize("version", ["", "&ssl_min_version=771", "&ssl_min_version=772"])
async def test_the_version_can_be_asked_for(
    make_router: Callable[..., Any], secured_node: LocalServer, namespace: str, version: str
) -> None:
    router = make_router(secured_node.url + version)
    await operate(router, namespace)
    await router.aclose()


class TestFilesThatAreRotated:
    """Under a running router: what was read once would refuse the servers' new certificate, or show an old one."""

    @pytest.fixture(scope="class")
    @staticmethod
    def rotated(tls_server_binary: str) -> Iterator[LocalCluster]:
        with LocalCluster(3, 0, server_binary=tls_server_binary, tls=True) as rotated:
            yield rotated

    @staticmethod
    def rotate(cluster: LocalCluster, made: Certificates) -> None:
        """Let the servers use other certificates from now on, and end all connections."""
        trusted = cluster.ca_cert
        assert trusted is not None
        # The tests' own way in trusts what is in this file.
        both = trusted.read_text() + made.ca.read_text()
        trusted.write_text(both)
        names = ("tls-ca-cert-file", "tls-cert-file", "tls-key-file")
        settings = zip(names, (made.ca, made.certificate, made.key), strict=True)
        changes = [str(part) for pair in settings for part in pair]
        for node in cluster.nodes:
            # All at once: a certificate without its key is refused. A client's certificate is checked if it has one.
            cluster.execute(node, "CONFIG", "SET", *changes, "tls-auth-clients", "optional")
        for node in cluster.nodes:
            cluster.execute(node, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    @staticmethod
    def install(made: Certificates, link: Path) -> None:
        """As Kubernetes does it: all files change at once, by a symbolic link that is replaced."""
        new = link.with_suffix(".new")
        new.symlink_to(made.ca.parent)
        new.replace(link)

    @staticmethod
    def make(folder: Path) -> Certificates:
        folder.mkdir()
        return make_certificates(folder)

    @pytest.mark.parametrize("with_certificate", [False, True])
    async def test_new_connections_use_the_new_ones(
        self,
        make_router: Callable[..., Any],
        rotated: LocalCluster,
        namespace: str,
        tmp_path: Path,
        with_certificate: bool,
    ) -> None:
        first, second = self.make(tmp_path / "first"), self.make(tmp_path / "second")
        mounted = tmp_path / "mounted"
        self.install(first, mounted)
        self.rotate(rotated, first)
        url = f"{rotated.url.partition('?')[0]}?ssl_ca_certs={mounted}/ca.crt"
        if with_certificate:
            url += f"&ssl_certfile={mounted}/server.crt&ssl_keyfile={mounted}/server.key"
        router = make_router(url)
        await router.set_linked_pod(namespace, "ada", "chat", 3)

        self.install(second, mounted)
        self.rotate(rotated, second)
        assert await router.set_linked_pod(namespace, "ada", "chat", 4) == 3
        await operate(router, namespace)
        # A slot that moves is learnt from the slot map, over a connection of its own.
        slot = slot_of(link_key(namespace, "ada", "chat"))
        source = rotated.primary_of(slot)
        rotated.move_slot(slot, next(node for node in rotated.nodes if node is not source))
        assert await router.set_linked_pod(namespace, "ada", "chat", 5) == 4
        await router.aclose()

    async def test_half_of_a_rotation_changes_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A certificate whose key is not there yet: what was read before stays, and is read again later."""
        first, second = self.make(tmp_path / "first"), self.make(tmp_path / "second")
        files = TlsFiles(
            {
                "ssl_ca_certs": str(first.ca),
                "ssl_certfile": str(first.certificate),
                "ssl_keyfile": str(first.key),
            }
        )
        before = files.context()
        assert files.context() is before
        second.certificate.replace(first.certificate)
        assert files.context() is before
        assert files.context() is before
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "stay until they can" in caplog.text
        second.key.replace(first.key)
        after = files.context()
        assert after is not before
        assert files.context() is after
