"""What a pod says of itself beside its status: its address and its labels. Pure.

The rules, stated once. An agent refuses what breaks them; of a state that another program has written, a reader leaves
out what breaks them:

- An address is 1 to 255 bytes of UTF-8, printable, without spaces. sfroute never connects to it, and what its parts
  mean is between pods and gateways: ``10.0.3.7:8080``, ``[fd00::7]:8080``, ``http://chat-2.chat:8080``.
- There are at most 16 labels. A name has 1 to 64 bytes, a value at most 128; all of their characters are printable.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Final

from ..errors import InvalidArgument

__all__ = [
    "MAX_LABELS",
    "bounded_labels",
    "check_address",
    "check_labels",
    "check_pod_name",
    "is_address",
    "is_label",
    "is_label_name",
]

MAX_ADDRESS_BYTES: Final = 255
MAX_LABELS: Final = 16
MAX_NAME_BYTES: Final = 64
MAX_VALUE_BYTES: Final = 128


def _is_text(value: object, most: int) -> bool:
    """True for a str of printable characters and at most so many bytes."""
    # Half of a surrogate pair, which UTF-8 cannot hold, is not printable.
    return (
        isinstance(value, str)
        and len(value) <= most
        and value.isprintable()
        and len(value.encode()) <= most
    )


def is_address(value: object) -> bool:
    """True for what may be an address."""
    return (
        isinstance(value, str)
        and _is_text(value, MAX_ADDRESS_BYTES)
        and value != ""
        and " " not in value
    )


def is_label_name(value: object) -> bool:
    """True for what may be the name of a label."""
    return value != "" and _is_text(value, MAX_NAME_BYTES)


def is_label(value: object) -> bool:
    """True for what may be the value of a label."""
    return _is_text(value, MAX_VALUE_BYTES)


def bounded_labels(value: object) -> dict[str, str]:
    """Of what a state has as its labels: those that keep the rules, the first ones if there are too many."""
    if not isinstance(value, Mapping):
        return {}
    good = ((name, word) for name, word in value.items() if is_label_name(name) and is_label(word))
    return dict(islice(good, MAX_LABELS))


def check_address(address: object) -> None:
    """Raise ``InvalidArgument`` unless it is an address, or None."""
    if address is not None and not is_address(address):
        raise InvalidArgument(
            f"address must be a str of 1 to {MAX_ADDRESS_BYTES} bytes, printable and without spaces, or None"
        )


def check_pod_name(name: object) -> None:
    """Raise ``InvalidArgument`` unless it can be the name under which a pod comes back, or None."""
    if name is not None and (name == "" or not _is_text(name, MAX_ADDRESS_BYTES)):
        raise InvalidArgument(
            f"name must be a str of 1 to {MAX_ADDRESS_BYTES} bytes, all printable, or None"
        )


def check_labels(labels: object) -> None:
    """Raise ``InvalidArgument`` unless they are labels, or None."""
    if labels is None:
        return
    if not isinstance(labels, Mapping):
        raise InvalidArgument(
            f"labels must be a mapping of str to str, not {type(labels).__name__}"
        )
    if len(labels) > MAX_LABELS:
        raise InvalidArgument(f"labels must be at most {MAX_LABELS}; got {len(labels)}")
    if not all(is_label_name(name) and is_label(word) for name, word in labels.items()):
        raise InvalidArgument(
            f"labels must have names of 1 to {MAX_NAME_BYTES} bytes and values of at most {MAX_VALUE_BYTES}, "
            "each a str of printable characters"
        )
