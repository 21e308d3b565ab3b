"""``sfroute agent``: runs a pod's command, and speaks for the pod."""

from __future__ import annotations

import socket
import sys
from typing import Annotated

import typer

from .common import AsJson, Namespace, Service, Url, as_json_line, require
from .serve import LogLevel, needs_extra, read_mode, start_logging

__all__ = ["agent"]


def agent(
    command: Annotated[
        list[str] | None, typer.Argument(help="The command of the pod, and its arguments.")
    ] = None,
    pod: Annotated[
        int | None,
        typer.Option(
            min=0, help="The pod's id; without it the number at the end of the host name."
        ),
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(
            help="How to check that the pod is healthy: `http://127.0.0.1:8080/healthz`, "
            "`tcp://127.0.0.1:8080`, or a file that exists. Without it, the pod is healthy while its command runs."
        ),
    ] = None,
    failures: Annotated[
        int,
        typer.Option(min=1, help="How many checks in a row must fail. One is made per heartbeat."),
    ] = 3,
    load: Annotated[
        str | None,
        typer.Option(help="Where to read the pod's load, a number: an `http://` URL or a file."),
    ] = None,
    probe_timeout: Annotated[
        float, typer.Option(min=0.01, max=60, help="Seconds that one check may take.")
    ] = 1.0,
    heartbeat: Annotated[float, typer.Option(help="Seconds between two heartbeats.")] = 2.0,
    lease: Annotated[
        float,
        typer.Option(
            help="Seconds for which the pod may act for its users without a stored heartbeat. 0: no limit."
        ),
    ] = 10.0,
    capacity: Annotated[
        float | None, typer.Option(help="The pod's share of the work, relative to the others.")
    ] = None,
    max_claims: Annotated[
        int | None,
        typer.Option(min=1, help="The most users the pod takes. Without it there is no limit."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Where gateways reach the pod, such as `10.0.3.7:8080`."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="A label for placement policies, such as `version=2.1`. Repeat it for several."
        ),
    ] = None,
    grace: Annotated[
        int,
        typer.Option(
            min=0,
            help="Seconds for which a link is kept for a reconnect, unless a call says otherwise.",
        ),
    ] = 0,
    drain: Annotated[
        float,
        typer.Option(
            "--drain",
            min=0,
            max=86400,
            help="Seconds to wait for users to leave after SIGTERM.",
        ),
    ] = 25.0,
    child_grace: Annotated[
        float,
        typer.Option(
            min=0.1, max=86400, help="Seconds between SIGTERM and SIGKILL to the command."
        ),
    ] = 10.0,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            help="Where the pod's processes call the agent: `127.0.0.1:7070` or `unix:/run/agent.sock`, or several.",
        ),
    ] = None,
    socket_mode: Annotated[
        str, typer.Option(help="The permissions of unix sockets, in octal.")
    ] = "600",
    log_level: LogLevel = "warning",
    url: Url = "",
    namespace: Namespace = "",
    service: Service = "",
    as_json: AsJson = False,
) -> None:
    """Run the command of a pod in any language, and speak for the pod: heartbeats, claims, sessions, draining.

    The command finds the address of the agent in `SFROUTE_AGENT`, and the pod's id in `SFROUTE_POD`. On SIGTERM the
    pod drains, then the command gets SIGTERM. When the command exits, the pod reports `Stopped`; when it is no
    longer healthy, `Failed`. The exit code is the command's, or 127 if it cannot be run.

    Write options before `--`, and the command after it. `--json` is for the line that says where it listens, and for
    the log.
    """
    require(url=url, namespace=namespace, service=service)
    needs_extra("serve", "uvicorn", "uvloop")
    from .._contract.keys import check_service_names
    from .._programs.listening import Address
    from .._programs.minding import Minding, mind, pod_of_host_name
    from .._programs.probes import Probe

    check_service_names(namespace, service)
    minding = Minding(
        url=url,
        namespace=namespace,
        service=service,
        pod=pod_of_host_name(socket.gethostname()) if pod is None else pod,
        addresses=[Address(one) for one in listen or ["127.0.0.1:7070"]],
        socket_mode=read_mode(socket_mode),
        health=Probe(health, probe_timeout) if health is not None else None,
        failures=failures,
        load=Probe(load, probe_timeout) if load is not None else None,
        heartbeat=heartbeat,
        lease=lease or None,
        capacity=capacity,
        max_claims=max_claims,
        address=address,
        labels=_labels(label or []),
        grace=grace or None,
        drain=drain,
        child_grace=child_grace,
    )
    if not command:
        raise typer.BadParameter("write the command of the pod after `--`", param_hint="COMMAND")
    start_logging(log_level, as_json=as_json)

    def announce(urls: list[str]) -> None:
        if as_json:
            typer.echo(as_json_line({"listening": urls, "pod": minding.pod}), nl=False)
        else:
            typer.echo(f"pod {minding.pod} calls {', '.join(urls)}")
        sys.stdout.flush()

    raise typer.Exit(mind(minding, command, announce))


def _labels(given: list[str]) -> dict[str, str] | None:
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter("it must be like version=2.1", param_hint="--label")
        found[name] = value
    return found or None
