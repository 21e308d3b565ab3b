"""Which faults of ownership are done to which stage, one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sfroute.embedded import LocalClusterError

from ..disturb import Skipped
from . import scenes
from .record import History, now
from .scenes import Scene
from .stage import Phase, Settings, Stage
from .table import OwnersRow, evaluate

__all__ = ["OWNERS_ACTS", "OwnersAct", "is_asked_for", "run_owners"]


@dataclass(frozen=True, slots=True)
class OwnersAct:
    """Faults done one after the other to one stage."""

    settings: Settings
    scenes: tuple[tuple[str, Scene], ...]


_USERS: Final = Settings(users=0)

OWNERS_ACTS: Final = (
    OwnersAct(
        _USERS,
        (
            ("no fault", scenes.nothing),
            ("users moved by `exclude` and `set`", scenes.exclusion),
            ("pod evacuated", scenes.evacuation),
            ("pod stopped beyond its lease", scenes.stop_pods),
            ("pod killed", scenes.kill_pods),
            ("gateway killed", scenes.kill_gateways),
            ("pod restarted, all in turn", scenes.rolling_restart),
            ("two processes with one pod id", scenes.twins),
            ("`FLUSHALL` of all nodes", scenes.flush_all),
            ("node restarted without its data", scenes.restart_one),
            ("node restarted without its data, all in turn", scenes.restart_in_turn),
            ("all nodes restarted without their data", scenes.restart_all),
        ),
    ),
    OwnersAct(
        replace(_USERS, eviction="allkeys-lru"),
        (("`allkeys-lru` with too little memory", scenes.evict),),
    ),
    OwnersAct(
        replace(_USERS, cuttable=("pod-0", "gateway-1")),
        (
            ("pod cut off for half of its lease", scenes.cut_pod_shortly),
            ("pod cut off beyond its lease", scenes.cut_pod),
            ("gateway cut off beyond a lease", scenes.cut_gateway),
        ),
    ),
    OwnersAct(
        replace(_USERS, replicas=1, min_replica_acks=1),
        (
            ("primary killed, with acknowledgements", scenes.kill_primary),
            ("primary deaf to its cluster, with acknowledgements", scenes.deafen_primary),
        ),
    ),
)


def is_asked_for(name: str, only: Sequence[str]) -> bool:
    """``only``: parts of names, of which one must be there; if there are none, every one is."""
    return not only or any(part in name for part in only)


def run_owners(
    only: Sequence[str], users: int, seed: int, server_binary: str | None, keep: Path
) -> list[OwnersRow]:
    """Do the faults that were asked for, and judge what was observed. ``keep``: for the histories.

    ``only``: parts of names. Without any, all are done.
    """
    rows = []
    for number, act in enumerate(OWNERS_ACTS):
        chosen = [scene for scene in act.scenes if is_asked_for(scene[0], only)]
        if chosen:
            folder = keep / str(number)
            folder.mkdir(parents=True)
            settings = replace(act.settings, users=users, seed=seed, server_binary=server_binary)
            phases, history = _play(chosen, settings, folder)
            rows += evaluate(history, phases)
    return rows


def _play(
    chosen: Sequence[tuple[str, Scene]], settings: Settings, folder: Path
) -> tuple[list[Phase], History]:
    phases: list[Phase] = []
    # The paths of sockets must be short.
    with (
        tempfile.TemporaryDirectory(prefix="sfo-") as sockets,
        Stage(settings, folder, Path(sockets)) as stage,
    ):
        for name, scene in chosen:
            filled = stage.fill()
            phase = Phase(name, now())
            try:
                scene(stage, phase)
            except Skipped as reason:
                stage.rest()
                print(f"  {name}: left out, {reason}", flush=True)
                continue
            except LocalClusterError as error:
                # What was seen until now is judged all the same.
                phase.failure = f"the servers did not recover: {error}"
            phase.end = now()
            phases.append(phase)
            took = phase.end - phase.start
            print(f"  {name}: {filled:,} users, {phase.times} in {took:.1f} s", flush=True)
            if phase.failure:
                break
        return phases, stage.history()
