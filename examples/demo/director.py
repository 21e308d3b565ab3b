"""The course of the demo: one cluster, and the scenes that are played on it, one after the other.

A scene is a class with ``play``. To add one, write its module and put it into ``SCENES`` in ``__main__.py``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from rich.console import RenderableType
from rich.table import Table

from sfroute.embedded import LocalCluster

__all__ = ["NAMESPACE", "Audience", "Result", "Scene", "direct", "table"]

NAMESPACE: Final = "demo"
"""Of every scene; each has a service of its own."""


class Audience(Protocol):
    """Who is told what happens."""

    def say(self, text: str) -> None:
        """Something happened."""

    def routed(self, requests: int) -> None:
        """So many requests have been dealt with."""


class Result(Protocol):
    """What a scene observed."""

    def broken_promises(self) -> list[str]:
        """What was promised and did not hold, as sentences; empty if all is well."""

    def fields(self) -> dict[str, Any]:
        """What was observed, for JSON."""

    def tables(self) -> RenderableType:
        """The same for people, at most 80 columns wide."""


class Scene(Protocol):
    """Something that happens to a cluster, its pods and its gateways."""

    @property
    def name(self) -> str:
        """One word, its key in the JSON."""

    async def play(self, cluster: LocalCluster, audience: Audience) -> Result:
        """Play the scene. It ends every process that it started, however it ends.

        Raises:
            ChildFailed: a process ended before its time.
            SfrouteError: the cluster did not answer.
        """


async def direct(scenes: Sequence[Scene], audience: Audience) -> Mapping[str, Result]:
    """Play the scenes on one cluster; return what each observed. Nothing that was started is left, however it ends.

    Raises:
        ChildFailed: a process ended before its time.
        SfrouteError: the cluster did not start or did not answer.
    """
    began = time.monotonic()
    async with LocalCluster(primaries=3, replicas_per_primary=1) as cluster:
        took = time.monotonic() - began
        audience.say(
            f"{cluster.server_name.capitalize()} {cluster.server_version}: "
            f"3 primaries and 3 replicas, up in {took:.1f} s"
        )
        return {scene.name: await scene.play(cluster, audience) for scene in scenes}


def table(title: str) -> Table:
    """An empty table, narrow enough for 80 columns."""
    return Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
