"""Every error sfroute raises.

::

    SfrouteError
    ├── InvalidArgument (ValueError)   an argument broke a rule; nothing was sent
    ├── ConfigError (ValueError)       the configuration cannot work; nothing was sent
    ├── StoreError                     Redis or Valkey could not do what was asked
    │   ├── StoreUnavailable           no usable answer before the deadline
    │   ├── OutcomeUnknown             a write may or may not have been executed
    │   ├── CorruptReply               a key holds what no link can be
    │   └── ScriptFailed               a Lua script raised an error
    ├── NoRoutablePod                  there is nobody to place the uid on
    ├── NoRoom                         this pod takes no new users; another one may
    └── RouterClosed                   the router was closed before or during the call

"Not linked" is not an error: it is ``None``. Exceptions of redis-py never reach a caller; where one was the reason, it
is the ``__cause__``. No error text holds a uid or a credential.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = [
    "ConfigError",
    "CorruptReply",
    "InvalidArgument",
    "NoRoom",
    "NoRoutablePod",
    "OutcomeUnknown",
    "RouterClosed",
    "ScriptFailed",
    "SfrouteError",
    "StoreError",
    "StoreUnavailable",
]


class SfrouteError(Exception):
    """The base of every error this library raises."""


class InvalidArgument(SfrouteError, ValueError):
    """An argument broke a rule of the contract; nothing was sent to any server.

    The text names the argument, the rule and what would be right.
    """


class ConfigError(SfrouteError, ValueError):
    """The configuration, URL or client cannot work as given; the text says what would."""


class StoreError(SfrouteError):
    """The store could not do what was asked.

    Attributes:
        operation: the public operation that failed, such as ``"set_linked_pod"``.
        retryable: True if calling again may succeed without any repair of the data or the set-up.
    """

    def __init__(self, message: str, *, operation: str = "", retryable: bool = False) -> None:
        super().__init__(message)
        self.operation = operation
        self.retryable = retryable


class StoreUnavailable(StoreError):
    """No usable answer came before the deadline, and nothing was changed by this call.

    The last cause is chained as ``__cause__``.
    """

    def __init__(self, message: str, *, operation: str = "", retryable: bool = True) -> None:
        super().__init__(message, operation=operation, retryable=retryable)


class OutcomeUnknown(StoreError):
    """A write was sent and its answer was lost: it may or may not have been executed.

    Read the link (``fresh=True``) before deciding anything that depends on it.
    """


class CorruptReply(StoreError):
    """A key holds what no link can be, such as text where a pod id belongs, or the wrong type.

    Attributes:
        key: the whole key, for repair. It contains the uid; the text of the error does not.
    """

    def __init__(self, message: str, *, operation: str = "", key: str = "") -> None:
        super().__init__(message, operation=operation, retryable=False)
        self.key = key


class ScriptFailed(StoreError):
    """A Lua script answered with an error.

    Attributes:
        script: the name of the script, such as ``"statefulSetLink"``.
    """

    def __init__(self, message: str, *, operation: str = "", script: str = "") -> None:
        super().__init__(message, operation=operation, retryable=False)
        self.script = script


class NoRoutablePod(SfrouteError):
    """The uid has no usable link and the service has no pod that may take it.

    Attributes:
        namespace: the namespace asked for.
        service: the service asked for.
        rejected: pod id -> why it was not chosen; empty if no pod of the service is known.
    """

    def __init__(self, namespace: str, service: str, rejected: Mapping[int, str]) -> None:
        if rejected:
            shown = sorted(rejected.items())[:8]
            considered = "; ".join(f"pod {pod}: {why}" for pod, why in shown)
            if len(rejected) > len(shown):
                considered += f"; and {len(rejected) - len(shown)} more"
        else:
            considered = "no pod has reported a state; does the service run, and does it report?"
        super().__init__(
            f"no routable pod for service {service!r} in namespace {namespace!r} ({considered})"
        )
        self.namespace = namespace
        self.service = service
        self.rejected: Mapping[int, str] = dict(rejected)

    def __reduce__(self) -> tuple[type[NoRoutablePod], tuple[str, str, Mapping[int, str]]]:
        """How to copy it, and to send it to another process."""
        return type(self), (self.namespace, self.service, self.rejected)


class NoRoom(SfrouteError):
    """This pod takes no new users just now. From ``agent.accept`` and ``agent.session``; nothing was changed.

    The gateway may place the user elsewhere: ``router.route(..., exclude=[error.pod])``.

    Attributes:
        pod: the pod that takes nobody.
        reason: ``"full"``: it has as many as ``max_claims``. ``"paused"``: ``agent.pause()`` was called.
        retryable: True: another pod may take the user now, and this one later.
    """

    retryable = True

    def __init__(self, pod: int, reason: Literal["full", "paused"], max_claims: int | None) -> None:
        why = "it is paused" if reason == "paused" else f"it has all {max_claims} that it takes"
        super().__init__(
            f"pod {pod} takes no new users: {why}. Route the user again, with exclude=[{pod}]"
        )
        self.pod = pod
        self.reason: Literal["full", "paused"] = reason
        self._max_claims = max_claims

    def __reduce__(self) -> tuple[type[NoRoom], tuple[int, Literal["full", "paused"], int | None]]:
        """How to copy it, and to send it to another process."""
        return type(self), (self.pod, self.reason, self._max_claims)


class RouterClosed(SfrouteError):
    """The router was closed before or during the call; open a new one."""

    def __init__(self, message: str = "the router is closed; open a new one") -> None:
        super().__init__(message)
