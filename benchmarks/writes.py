"""Writes: links set by script, of uids that nobody looks up."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

from contenders import DOES, AsyncPeer, Coredis, Glide, RedisPy, Sfroute
from harness import Comparison, Target
from setting import CONFIG, Setting

__all__ = ["comparisons"]


def comparisons(setting: Setting) -> list[Comparison]:
    """One at a time, and 100."""
    peers: list[tuple[str, AsyncPeer, bool]] = [
        ("redis-py Script", setting.opened(RedisPy()), False),
        ("coredis Script", setting.opened(Coredis()), False),
        ("valkey-glide Script", setting.opened(Glide()), False),
        ("sfroute", setting.opened(Sfroute(CONFIG)), False),
        ("sfroute, uvloop", setting.opened(Sfroute(CONFIG), fast=True), True),
    ]
    numbers = itertools.count()

    def take(count: int) -> list[str]:
        return [f"write-{next(numbers) % 200_000:014d}" for _ in range(count)]

    def linking(peer: AsyncPeer) -> Callable[[str], Awaitable[object]]:
        return lambda uid: peer.link(uid, next(numbers) % 7)

    does = {
        name: DOES["sfroute write" if name.startswith("sfroute") else "script"]
        for name, _, _ in peers
    }
    return [
        Comparison(
            f"set_linked_pod, {concurrency} at a time",
            "redis-py Script",
            {
                name: setting.together(
                    linking(peer), concurrency, setting.size(operations), fast=fast, uids=take
                )
                for name, peer, fast in peers
            },
            does=does,
            target=Target("sfroute", 3.0) if concurrency == 100 else None,
            group="writes",
        )
        for concurrency, operations in ((1, 800), (100, 3000))
    ]
