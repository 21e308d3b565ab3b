"""``sfroute serve``: tells proxies the pod of each user."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from typing import Annotated, Literal

import typer

from .._web.requests import CookieUid, HeaderUid, PathUid, QueryUid, UidExtractor
from .common import (
    FAILED,
    AsJson,
    Url,
    as_json_line,
    complain,
    require,
)

__all__ = ["needs_extra", "serve", "start_logging"]

Listen = Annotated[
    list[str] | None,
    typer.Option(
        "--listen",
        help="Where to listen: `127.0.0.1:7080`, `[::1]:7080` or `unix:/run/sfroute.sock`. Repeat it for several.",
    ),
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    typer.Option(help="The lowest level that is logged to standard error."),
]
SocketMode = Annotated[
    str, typer.Option(help="The permissions of unix sockets, in octal: who may ask.")
]


def serve(
    uid_header: Annotated[
        str | None,
        typer.Option(help="The header with the uid. The proxy must set it: clients can send any."),
    ] = None,
    uid_cookie: Annotated[str | None, typer.Option(help="The cookie with the uid.")] = None,
    uid_path: Annotated[
        str | None,
        typer.Option(help="The uid as a segment of the user's path, such as `/users/{uid}`."),
    ] = None,
    uid_query: Annotated[
        str | None,
        typer.Option(
            help="The query parameter with the uid: of the user's URL, or of the request to `/decide` "
            "if there is no `--uri-header`."
        ),
    ] = None,
    uri_header: Annotated[
        str | None,
        typer.Option(
            help="The header in which the proxy passes the user's own URL on, such as `X-Forwarded-Uri`."
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="The template of `X-Sfroute-Upstream`, such as `http://chat-{pod}.chat:8080`; "
            "also `{namespace}`, `{service}`, and the `{address}` that the pod has published. "
            "With text around it, that must be `host:port`; an address with a scheme is answered 503 `bad-address`."
        ),
    ] = None,
    mode: Annotated[
        Literal["http", "nginx"],
        typer.Option(help="`nginx`: no status but 200, 401 and 403; a header has the reason."),
    ] = "http",
    persist_seconds: Annotated[
        int | None,
        typer.Option(help="The kind of link to make: seconds, or -1 for one without expiry."),
    ] = None,
    listen: Listen = None,
    socket_mode: SocketMode = "660",
    workers: Annotated[int, typer.Option(min=1, max=256, help="How many processes.")] = 1,
    linger: Annotated[
        float,
        typer.Option(
            min=0,
            max=3600,
            help="Seconds to go on serving after SIGTERM. Meanwhile `/readyz` answers 503, "
            "so that new requests go elsewhere.",
        ),
    ] = 0.0,
    grace: Annotated[
        float,
        typer.Option(min=1, max=3600, help="Seconds to wait for requests in flight."),
    ] = 10.0,
    log_level: LogLevel = "warning",
    url: Url = "",
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            envvar="SFROUTE_NAMESPACE",
            help="The namespace of the service; without it the request's path names it.",
        ),
    ] = "",
    service: Annotated[
        str,
        typer.Option(
            "--service",
            envvar="SFROUTE_SERVICE",
            help="The service that owns the users; without it the request's path names it.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Answer `GET /decide` with the pod of the user a request comes from, for nginx, HAProxy, Caddy, Envoy and others.

    One line says where it listens; then it serves until SIGTERM or Ctrl-C. Also there: `/healthz`, `/readyz`,
    `/metrics` and `/openapi.json`. While the store is away it goes on answering, as `route()` does, and says so.

    Bind it where only proxies can ask: whoever can ask can place users. `--json` is for that one line and for the log.
    """
    require(url=url)
    needs_extra("serve", "uvicorn", "uvloop", "opentelemetry.exporter.prometheus")
    from .._programs.listening import Address
    from .._programs.questions import Rules, Upstream
    from .._programs.serving import Serving
    from .._programs.serving import serve as run_server

    rules = Rules(
        uid=_extractor(uid_header, uid_cookie, uid_path, uid_query),
        namespace=namespace or None,
        service=service or None,
        uri_header=uri_header,
        upstream=Upstream(upstream) if upstream is not None else None,
        persist_seconds=persist_seconds,
        mode=mode,
    )
    serving = Serving(
        url=url,
        rules=rules,
        addresses=[Address(one) for one in listen or ["127.0.0.1:7080"]],
        socket_mode=read_mode(socket_mode),
        workers=workers,
        grace=grace,
        linger=linger,
    )
    start_logging(log_level, as_json=as_json)

    def announce(urls: list[str]) -> None:
        if as_json:
            typer.echo(as_json_line({"listening": urls, "workers": workers}), nl=False)
        else:
            typer.echo(f"listening on {', '.join(urls)}")
        sys.stdout.flush()

    code = run_server(serving, announce)
    if code:
        raise typer.Exit(FAILED)


def _extractor(
    header: str | None, cookie: str | None, path: str | None, query: str | None
) -> UidExtractor:
    given: list[UidExtractor] = []
    if header is not None:
        given.append(HeaderUid(header))
    if cookie is not None:
        given.append(CookieUid(cookie))
    if path is not None:
        given.append(PathUid(path))
    if query is not None:
        given.append(QueryUid(query))
    if len(given) != 1:
        raise typer.BadParameter(
            "give exactly one of --uid-header, --uid-cookie, --uid-path and --uid-query"
        )
    return given[0]


def read_mode(text: str) -> int:
    """The permissions of a socket."""
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise typer.BadParameter("it must be octal, such as 660", param_hint="--socket-mode")
    return mode


def needs_extra(extra: str, *modules: str) -> None:
    """End the command unless the modules of an extra are installed."""
    missing = []
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # its parent is not there
            found = None
        if found is None:
            missing.append(module)
    if missing:
        complain(
            f"this command needs {' and '.join(missing)}; run: pip install 'sfroute[cli,{extra}]'"
        )
        raise typer.Exit(FAILED)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def start_logging(level: str, *, as_json: bool) -> None:
    """Log to standard error: a program that runs for long tells there what happens."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(process)d] %(message)s")
    handler.setFormatter(_JsonLines() if as_json else plain)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What it says below that are its own steps, which the programs announce in their own words.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
