"""``sfroute cluster``: a real cluster on this machine."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from ..embedded import LocalCluster
from .common import AsJson, as_json_line

__all__ = ["app"]

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
        typer.Option(help="Another redis-server or valkey-server than that of the package."),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Only TLS; the URL names the CA.")] = False,
    password: Annotated[
        str | None,
        typer.Option(envvar="SFROUTE_CLUSTER_PASSWORD", help="Ask clients for this password."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a cluster, write its URL to standard output, and keep it until Ctrl-C.

    All its processes and data are gone afterwards, however this one ends.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with LocalCluster(
        primaries, replicas, server_binary=server, tls=tls, password=password
    ) as cluster:
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
        typer.echo(
            f"{cluster.server_name} {cluster.server_version}, {primaries} primaries and "
            f"{primaries * replicas} replicas; Ctrl-C ends it",
            err=True,
        )
        while not ended.is_set():
            # In pieces: a signal that arrives in an unbounded wait would be handled only afterwards on some systems.
            ended.wait(1.0)
