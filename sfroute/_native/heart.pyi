from collections.abc import Callable
from typing import Any

SOURCE: str

def learn(read: type, entry: type, epoch: type, /) -> None: ...
def learn_hits(
    router: type,
    entry: type,
    epoch: type,
    flight: type,
    counts: type,
    telemetry: type,
    entry_of: Callable[..., Any],
    /,
) -> None: ...
def learn_misses(**classes: Any) -> None: ...
def Wakes(loop: object, /) -> object: ...  # noqa: N802 - a class
def HotMethod(function: Callable[..., Any], /) -> Callable[..., Any]: ...  # noqa: N802 - a class
def land(lane: object, data: bytes, tokens: object, /) -> int: ...
def pack(tag: bytes, service: str, /) -> bytes: ...
