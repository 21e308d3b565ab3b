"""``sfroute cluster``: a real cluster on this machine."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from ..embedded import LocalCluster
from ..embedded._supervisor import PortTaken
from .common import AsJson, as_json_line, complain, counted

__all__ = ["app"]

USUAL_PORT: Final = 16379
"""The default port. The documents show it, so commands copied from them work."""

app = typer.Typer(help="A real cluster on this machine, for development.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """A real cluster on this machine, for development."""


@app.command()
def up(
    primaries: Annotated[int, typer.Option(min=1, help="Nodes that share the slots.")] = 3,
    replicas: Annotated[int, typer.Option(min=0, help="Replicas of each primary.")] = 1,
    server: Annotated[
        Path | None,
        typer.Option(
            help="A redis-server or valkey-server to use instead of the one in the package."
        ),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Only TLS; the URL names the CA.")] = False,
    password: Annotated[
        str | None,
        typer.Option(envvar="SFROUTE_CLUSTER_PASSWORD", help="Ask clients for this password."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="The first node's port. The others get the next ones; each cluster bus is on its port + 10000. "
            f"Without it {USUAL_PORT}, or any free ports if one of those is taken.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a cluster, write its URL to standard output, and keep it until Ctrl-C.

    All its processes and data are gone afterwards, however this one ends.
    """

    def at(first_port: int | None) -> LocalCluster:
        return LocalCluster(
            primaries,
            replicas,
            server_binary=server,
            tls=tls,
            password=password,
            first_port=first_port,
        )

    with _until_told() as ended, _started(at, port) as (cluster, elsewhere):
        if as_json:
            fields = {
                "url": cluster.url,
                "server": cluster.server_name,
                "version": cluster.server_version,
                "primaries": primaries,
                "replicas": primaries * replicas,
            }
            typer.echo(as_json_line(fields), nl=False)
        else:
            typer.echo(cluster.url)
        if elsewhere:
            # After the URL, which is the first line on a terminal too.
            complain(f"{USUAL_PORT} and the ports after it are not all free: the nodes have others")
        typer.echo(
            f"{cluster.server_name} {cluster.server_version}, {counted(primaries, 'primary')} and "
            f"{counted(primaries * replicas, 'replica')}; Ctrl-C ends it",
            err=True,
        )
        while not ended.is_set():
            # In pieces: a signal that arrives in an unbounded wait would be handled only afterwards on some systems.
            ended.wait(1.0)


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """What Ctrl-C and SIGTERM set, instead of what they do otherwise."""
    told = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: told.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _started(
    at: Callable[[int | None], LocalCluster], port: int | None
) -> Iterator[tuple[LocalCluster, bool]]:
    """A cluster at the port that was asked for. By default the usual port, or other ports if that is taken."""
    elsewhere = False
    cluster = at(USUAL_PORT if port is None else port)
    try:
        cluster.start()
    except PortTaken:
        if port is not None:
            raise
        elsewhere = True
        cluster = at(None)
        cluster.start()
    try:
        yield cluster, elsewhere
    finally:
        cluster.shutdown()
