"""What was wrong with a server: its address, its own error code or the system's words, and nothing else of it."""

from __future__ import annotations

from .._contract.error_replies import meaning
from .causes import in_brackets
from .connection import Address, ConnectionLost, HandshakeRefused, ReplyError

__all__ = ["trouble"]


def trouble(address: Address | None, error: BaseException | None) -> str:
    """What was wrong last, and where, for an error text.

    Such as ``"127.0.0.1:7001 answers LOADING: it is loading its data"``, or ``"127.0.0.1:7001 cannot be reached
    (Connection refused)"``. ``error``: a ``ReplyError`` that is nothing but a code, or what a connection failed with.
    """
    if address is None:
        return "no node serves the slot"
    if isinstance(error, ReplyError):
        code = str(error)
        said = meaning(code)
        return f"{address} answers {code}: {said}" if said else f"{address} answers {code}"
    if isinstance(error, (ConnectionLost, HandshakeRefused)):
        # These texts are our own.
        text = str(error)
        return text if str(address) in text else f"{address}: {text}"
    return f"{address} does not answer{in_brackets(error)}"
