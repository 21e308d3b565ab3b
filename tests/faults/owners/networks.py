"""Cutting single processes off from the store: by network namespaces where they can be had, else by proxies.

With namespaces a process has a network of its own, joined to the servers' by a bridge. To cut it off, its cable is
taken out of the bridge: packets vanish, connections stay open, and nobody is told. With proxies what passes is held
back, and connections are still accepted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Protocol, Self

from sfroute.embedded import LocalCluster

from ..network import Network

__all__ = ["Cables", "Namespaces", "Proxies", "namespaces_work"]

_SECONDS: Final = 10


class Cables(Protocol):
    """What joins processes to the store."""

    def enter(self, name: str) -> Sequence[str]:
        """What to put before the command of a process, so that it runs where ``name`` is."""

    def remap(self, name: str) -> dict[str, tuple[str, int]]:
        """``"host:port"`` of a node -> where it can be reached from there."""

    def cut(self, name: str) -> None:
        """Nothing passes from now on."""

    def heal(self, name: str) -> None:
        """It passes again."""


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=_SECONDS)


def namespaces_work() -> bool:
    """True if this process may make network namespaces, bridges and cables."""
    if shutil.which("ip") is None:
        return False
    name = f"sfroute-try-{os.getpid()}"
    try:
        _run("ip", "netns", "add", name)
    except subprocess.SubprocessError:
        return False
    try:
        _run("ip", "-n", name, "link", "add", "try0", "type", "bridge")
        _run("ip", "-n", name, "link", "add", "try1", "type", "veth", "peer", "name", "try2")
    except subprocess.SubprocessError:
        return False
    finally:
        _run("ip", "netns", "del", name)
    return True


class Namespaces:
    """A network namespace for each name, a context manager for ``with``."""

    def __init__(self, cluster: LocalCluster, names: Sequence[str]) -> None:
        self._cluster = cluster
        self._numbers = {name: number for number, name in enumerate(names)}
        own = os.getpid()
        self._bridge = f"sf{own}"
        self._net = f"10.{64 + own % 128}.{own // 128 % 256}"
        self._made = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            _run("ip", "link", "add", self._bridge, "type", "bridge")
            stack.callback(_run, "ip", "link", "del", self._bridge)
            _run("ip", "addr", "add", f"{self._net}.1/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
            for name, number in self._numbers.items():
                space, cable = self._space(name), self._cable(name)
                _run("ip", "netns", "add", space)
                stack.callback(_run, "ip", "netns", "del", space)
                _run(
                    *("ip", "link", "add", cable, "type", "veth"),
                    *("peer", "name", "eth0", "netns", space),
                )
                address = f"{self._net}.{10 + number}/24"
                _run("ip", "-n", space, "addr", "add", address, "dev", "eth0")
                _run("ip", "-n", space, "link", "set", "eth0", "up")
                _run("ip", "-n", space, "link", "set", "lo", "up")
                _run("ip", "link", "set", cable, "master", self._bridge, "up")
            for node in self._cluster.nodes:
                # Nobody but these namespaces reaches the bridge.
                self._cluster.execute(node, "CONFIG", "SET", "protected-mode", "no")
                self._cluster.execute(node, "CONFIG", "SET", "bind", f"127.0.0.1 {self._net}.1")
            self._made = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._made.close()

    def _space(self, name: str) -> str:
        return f"{self._bridge}-{self._numbers[name]}"

    def _cable(self, name: str) -> str:
        return f"{self._bridge}v{self._numbers[name]}"

    def enter(self, name: str) -> Sequence[str]:
        """See ``Cables``."""
        return () if name not in self._numbers else ("ip", "netns", "exec", self._space(name))

    def remap(self, name: str) -> dict[str, tuple[str, int]]:
        """See ``Cables``."""
        if name not in self._numbers:
            return {}
        return {
            f"{host}:{port}": (f"{self._net}.1", port) for host, port in self._cluster.startup_nodes
        }

    def cut(self, name: str) -> None:
        """See ``Cables``."""
        _run("ip", "link", "set", self._cable(name), "nomaster")

    def heal(self, name: str) -> None:
        """See ``Cables``."""
        _run("ip", "link", "set", self._cable(name), "master", self._bridge)


class Proxies:
    """Proxies before all nodes for each name, a context manager for ``with``."""

    def __init__(self, cluster: LocalCluster, names: Sequence[str]) -> None:
        nodes = cluster.startup_nodes
        self._networks = {name: Network(nodes, nodes) for name in names}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for network in self._networks.values():
            self._stack.enter_context(network)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def enter(self, name: str) -> Sequence[str]:
        """See ``Cables``."""
        return ()

    def remap(self, name: str) -> dict[str, tuple[str, int]]:
        """See ``Cables``."""
        return self._networks[name].remap if name in self._networks else {}

    def cut(self, name: str) -> None:
        """See ``Cables``."""
        network = self._networks[name]
        for proxy in network.proxies():
            network.do(proxy.hang)

    def heal(self, name: str) -> None:
        """See ``Cables``."""
        network = self._networks[name]
        for proxy in network.proxies():
            network.do(proxy.resume)
