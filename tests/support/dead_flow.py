"""A network link on which one TCP flow can go dead and wake again, while all others pass.

Two network namespaces, the gateway's and the server's, with a router between them. Packets of a dead flow are dropped
on the way, silently, as a broken path of a load-balanced network drops them; both kernels go on as TCP does. Linux and
root only.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from .processes import Child

__all__ = ["DeadFlowLink", "require_namespaces"]

_CLONE_NEWNET: Final = 0x40000000
_STATE: Final = 3
_CLOSED: Final = frozenset({"06", "07"})
"""TIME_WAIT and CLOSE: nothing is sent in these."""


def require_namespaces() -> None:
    """Skip where they cannot be made."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip(
            "a flow that goes dead needs Linux, root and iproute2 (ip netns): NOT TESTED HERE"
        )
    name = f"sfprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("this machine gives no network namespaces (ip netns add): NOT TESTED HERE")
    subprocess.run(["ip", "netns", "del", name], check=True)


class DeadFlowLink:
    """See the module's text. A context manager for ``with``, with a server behind the link.

    Attributes:
        address: where the server listens.
    """

    def __init__(self, server_binary: str) -> None:
        self.address = ("10.11.2.2", 7000)
        self._names = {side: f"sf{os.getpid()}{side}" for side in ("gw", "rt", "srv")}
        self._binary = server_binary
        self._directory = tempfile.TemporaryDirectory(prefix="sfroute-deadflow-")
        self._server: Child[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._unmake()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unmake()

    def _make(self) -> None:
        gateway, router, server = self._names.values()
        for name in self._names.values():
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for number, side in enumerate((gateway, server), 1):
            near, far = f"n{number}", f"f{number}"
            _ip(
                "link",
                "add",
                near,
                "netns",
                side,
                "type",
                "veth",
                "peer",
                "name",
                far,
                "netns",
                router,
            )
            _ip("-n", side, "addr", "add", f"10.11.{number}.2/24", "dev", near)
            _ip("-n", side, "link", "set", near, "up")
            _ip("-n", router, "addr", "add", f"10.11.{number}.1/24", "dev", far)
            _ip("-n", router, "link", "set", far, "up")
            _ip("-n", side, "route", "add", "default", "via", f"10.11.{number}.1")
        with self._inside("rt"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        host, port = self.address
        self._server = Child(
            [
                *("ip", "netns", "exec", server, self._binary, "--port", str(port), "--bind", host),
                *("--protected-mode", "no", "--save", "", "--dir", self._directory.name),
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        with self._inside("gw"):
            while True:
                with suppress(OSError), socket.create_connection(self.address, 1):
                    break
                assert time.monotonic() < deadline, "the server behind the link does not answer"
                time.sleep(0.05)

    def _unmake(self) -> None:
        if self._server is not None:
            self._server.end()
        for name in self._names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        self._directory.cleanup()

    @contextmanager
    def gateway_side(self) -> Iterator[None]:
        """Sockets that this thread makes meanwhile are on the gateway's side, for life."""
        with self._inside("gw"):
            yield

    @contextmanager
    def _inside(self, side: str) -> Iterator[None]:
        with (
            Path("/proc/thread-self/ns/net").open() as home,
            Path(f"/run/netns/{self._names[side]}").open() as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def kill_flow(self, gateway_port: int) -> None:
        """Drop, from now on, whatever the flow from this port of the gateway sends."""
        rule = ["ipproto", "tcp", "sport", str(gateway_port), "blackhole"]
        _ip("-n", self._names["rt"], "rule", "add", "pref", "10", *rule)

    def wake_flows(self) -> None:
        """Let everything pass again."""
        _ip("-n", self._names["rt"], "rule", "del", "pref", "10")

    def may_still_send(self, gateway_port: int) -> bool:
        """True while the gateway's kernel has a socket with this port that sends, or tries to."""
        with self._inside("gw"):
            lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
        for line in lines:
            local, state = line.split()[1], line.split()[_STATE]
            if int(local.partition(":")[2], 16) == gateway_port and state not in _CLOSED:
                return True
        return False


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
