"""The ``sfroute`` command. One module per group of commands; ``app`` puts them together."""

from __future__ import annotations

import importlib.util
import io
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit the process.

    Exit codes: 0 done, 1 something failed, 2 called wrongly, 3 the answer is no, 130 interrupted, 141 the reader of the
    output went away, 143 told to end (SIGTERM).
    """
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        # The library works without them, so installing it does not bring them.
        sys.stderr.write(
            f"sfroute: the command line needs {' and '.join(missing)}; run: pip install 'sfroute[cli]'\n"
        )
        sys.exit(1)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    # What the terminal's encoding does not have is no reason for a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from .app import run

        code = run()
    except KeyboardInterrupt:  # before any command has begun
        code = 130
    sys.exit(code)
