"""Puts the commands together and turns errors into messages and exit codes."""

from __future__ import annotations

import errno
import sys
from typing import Annotated, Final

import typer

from .._version import __version__
from ..cli import (
    agent,
    balance,
    cluster,
    demo,
    doctor,
    drain,
    evacuate,
    gateways,
    link,
    listing,
    pods,
    rebalance,
    route,
    serve,
    states,
    top,
    where,
)
from ..errors import ConfigError, InvalidArgument, SfrouteError, StoreUnavailable
from .common import (
    CALLED_WRONGLY,
    FAILED,
    complain,
    discard_output,
    reader_went_away,
)

__all__ = ["app", "run"]

app = typer.Typer(
    name="sfroute",
    help="Which pod of a stateful service owns this user?",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    # A mistake of the user is told in a sentence; a mistake of ours gets a plain traceback, fit for a bug report.
    pretty_exceptions_enable=False,
    # Docstrings are wrapped as the code is; this joins their lines.
    rich_markup_mode="markdown",
)
app.command("route")(route.route)
app.add_typer(link.app, name="link")
app.command("pods")(pods.pods)
app.command("gateways")(gateways.gateways)
app.command("watch")(pods.watch)
app.command("top")(top.top)
app.command("drain")(drain.drain)
app.command("evacuate")(evacuate.evacuate)
app.command("where")(where.where)
app.command("balance")(balance.balance)
app.command("rebalance")(rebalance.rebalance)
app.command("links")(listing.links)
app.command("forget")(listing.forget)
app.command("prune")(listing.prune)
app.add_typer(states.state_app, name="state")
app.add_typer(states.workload_app, name="workload")
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)
# Whatever follows the command is the command's.
app.command("agent", context_settings={"allow_interspersed_args": False})(agent.agent)
app.command("demo")(demo.demo)
app.add_typer(cluster.app, name="cluster")


_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Only a write of the output fails in these ways."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sfroute {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Which pod of a stateful service owns this user?"""


def run(arguments: list[str] | None = None) -> int:
    """Run the command that ``sys.argv`` or ``arguments`` name; return the exit code."""
    try:
        code = _run(arguments)
        # Not left to Python, which does it when it exits, and complains of a reader that went away.
        sys.stdout.flush()
    except BrokenPipeError:
        return reader_went_away()
    except OSError as error:
        if error.errno not in _FULL:
            raise
        discard_output()
        complain(f"the output could not be written ({error.strerror})")
        return FAILED
    return code


def _run(arguments: list[str] | None) -> int:
    try:
        # One name, also as `python -m sfroute.cli`.
        app(arguments, prog_name="sfroute")
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        return ended.code if isinstance(ended.code, int) else 0
    except (ConfigError, InvalidArgument) as error:
        complain(str(error))
        return CALLED_WRONGLY
    except SfrouteError as error:
        complain(str(error))
        if isinstance(error, StoreUnavailable):
            complain("to see what is wrong: sfroute doctor")
        return FAILED
    return 0
