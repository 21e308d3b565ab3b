"""Gateway processes under load, as seen by the harness."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from sfroute._contract.keys import SLOTS, link_key, slot_of

from .gateway import NAMESPACE, SERVICE, Plan
from .history import Call, read_histories

__all__ = ["GROUPS", "UIDS", "Load", "group_of", "uid_slot"]

GROUPS = 3
UIDS_IN_GROUP = 32


def uid_slot(uid: str) -> int:
    """The slot of a uid's keys."""
    return slot_of(link_key(NAMESPACE, uid, SERVICE))


def group_of(uid: str) -> int:
    """Which of the first three primaries it belongs to at the beginning."""
    slot = uid_slot(uid)
    return next(n for n in range(GROUPS) if slot < SLOTS * (n + 1) // GROUPS)


def _uids() -> list[list[str]]:
    groups: list[list[str]] = [[] for _ in range(GROUPS)]
    number = 0
    while any(len(group) < UIDS_IN_GROUP for group in groups):
        uid = f"u{number}"
        number += 1
        group = groups[group_of(uid)]
        if len(group) < UIDS_IN_GROUP:
            group.append(uid)
    return groups


UIDS = _uids()
"""The uids of the load, by the primary that serves them at the beginning."""


class Load:
    """``gateways`` processes with ``workers`` workers altogether, a context manager for ``with``.

    Attributes:
        retries: what the routers counted, after ``stop``.
    """

    def __init__(
        self,
        nodes: Sequence[tuple[str, int]],
        folder: Path,
        seed: int,
        *,
        gateways: int = 4,
        workers: int = 8,
        pause: float = 0.025,
        min_replica_acks: int = 0,
        remap: dict[str, tuple[str, int]] | None = None,
    ) -> None:
        self.retries: Counter[str] = Counter()
        self._plans = [
            Plan(
                nodes=list(nodes),
                remap=remap or {},
                history=str(folder / f"gateway-{number}.jsonl"),
                seed=seed,
                number=number,
                gateways=gateways,
                workers=workers // gateways,
                groups=UIDS,
                pause=pause,
                min_replica_acks=min_replica_acks,
            )
            for number in range(gateways)
        ]
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        for plan in self._plans:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.gateway", json.dumps(asdict(plan))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            for process in self._processes:
                if _stream(process.stdout).readline() != "ready\n":
                    raise RuntimeError("a gateway did not come up; its error is above")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def stop(self) -> list[Call]:
        """Let calls under way end, and return all that there were, in the order of their beginning."""
        for process in self._processes:
            _stream(process.stdin).close()
        for process in self._processes:
            said = _stream(process.stdout).read()
            if process.wait() != 0 or not said:
                raise RuntimeError("a gateway failed; its error is above")
            self.retries.update(json.loads(said)["retries"])
        return read_histories(Path(plan.history) for plan in self._plans)

    def _end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout):
                _stream(stream).close()


def _stream(stream: IO[Any] | None) -> IO[Any]:
    assert stream is not None
    return stream
