"""Why a server could not be reached, in the operating system's words."""

from __future__ import annotations

import os
import socket
import ssl

from .credentials import NoCredentials

__all__ = ["in_brackets", "what_the_system_said"]


def what_the_system_said(error: BaseException | None) -> str:
    """Why the last attempt to reach a server failed, such as ``"Connection refused"``; empty if that is not known.

    Only the system's own words: the text of any other error may hold what a server sent.
    """
    cause = error
    while cause is not None:
        if isinstance(cause, NoCredentials):
            return str(cause)
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        if isinstance(cause, (socket.gaierror, ssl.SSLError)):
            return cause.strerror or ""
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return ""


def in_brackets(error: BaseException | None) -> str:
    """The same for the end of a sentence: ``" (Connection refused)"``, or nothing."""
    said = what_the_system_said(error)
    return f" ({said})" if said else ""
