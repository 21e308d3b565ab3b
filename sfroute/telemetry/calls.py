"""Records public calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from time import monotonic
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from .facade import Telemetry

__all__ = ["traced"]

_NOTHING: Final[Mapping[str, object]] = {}

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S", bound="HasTelemetry")


class HasTelemetry(Protocol):
    """A router or an agent, with its telemetry."""

    _telemetry: Telemetry


def traced(
    method: Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]]:
    """Record a public operation: one span and one duration per call.

    The operation is named after the method. Its namespace, service, uid and pod are the arguments with these names, or
    come from ``_about`` of an object that stands for one pod.
    """
    operation = method.__name__
    parameters = list(inspect.signature(method).parameters)
    places = [
        (name, parameters.index(name) - 1 if name in parameters else None)
        for name in ("namespace", "service", "uid", "pod")
    ]

    @functools.wraps(method)
    async def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        telemetry = self._telemetry
        if monotonic() < telemetry.asleep_until:
            return await method(self, *args, **kwargs)
        subject: list[Any] = []
        about = getattr(self, "_about", _NOTHING)
        for name, place in places:
            given = place is not None and place < len(args)
            value = args[place] if given and place is not None else kwargs.get(name)
            subject.append(about.get(name) if value is None else value)
        pod = subject.pop()
        record = telemetry.begin(operation, *subject)
        if record is not None and type(pod) is int:
            record.pod = pod
        if record is None:
            return await method(self, *args, **kwargs)
        return await telemetry.follow(record, method(self, *args, **kwargs))

    return call
