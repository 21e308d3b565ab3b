"""The gateway at work on this machine: a cluster, three pods, two gateways, and users who count.

    python examples/gateway/demo.py [--stay] [--report FILE]

Pods are restarted one after the other; then a primary of the cluster and a pod are killed. No user loses a count, and
none gets another pod unless the user's pod has ended. `--stay` leaves everything running afterwards, for curl; Ctrl-C
ends it. `--report` writes every answer that a user got to FILE.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from deployment import NAMESPACE, SERVICE, Deployment
from users import Crowd, contradictions

from sfroute._contract.keys import state_key


def say(text: str) -> None:
    print(text, flush=True)


async def tell_story(deployment: Deployment, crowd: Crowd) -> None:
    """What happens while users count."""
    await crowd.more(2)
    say(f"{len(crowd.users)} users count: {crowd.requests} requests so far")
    first, *others = sorted(deployment.pods)
    await restart(deployment, first)
    # The one that holds the states of the pods: heartbeats fail too, until its replica takes over.
    primary = deployment.cluster.primary_of(state_key(NAMESPACE, SERVICE))
    await asyncio.to_thread(deployment.cluster.kill, primary)
    say("the primary that holds the states of the pods was killed")
    for pod in others:
        await restart(deployment, pod)
    await asyncio.to_thread(deployment.cluster.wait_healthy)
    say("its replica has taken over")
    await crowd.more(2)
    # The one with the most users: the pod that was restarted last has hardly any.
    pods = Counter(user.counted[-1].pod for user in crowd.users)
    ((pod, users),) = pods.most_common(1)
    await deployment.end_pod(pod, signal.SIGKILL)
    say(f"pod {pod} with {users} users was killed: no drain, no last word")
    await crowd.more(4)


async def restart(deployment: Deployment, pod: int) -> None:
    began = time.monotonic()
    await deployment.restart_pod(pod)
    say(f"pod {pod} drained, ended and started again in {time.monotonic() - began:.1f} s")


def show_outcome(deployment: Deployment, crowd: Crowd) -> bool:
    """True if nothing was lost that need not be."""
    found = [
        f"{user.uid}: {what}"
        for user in crowd.users
        for what in contradictions(user, deployment.ended)
    ]
    moves = sum(
        len({one.process for one in user.answers if one.process}) - 1 for user in crowd.users
    )
    failures = {why: crowd.failures.count(why) for why in sorted(set(crowd.failures))}
    say(
        f"\n{crowd.requests} requests, {len(crowd.failures)} failed {failures or ''}\n"
        f"{moves} users moved because their pod had ended; {len(found)} contradictions"
    )
    for what in found:
        say(f"  {what}")
    return not found


def write_report(deployment: Deployment, crowd: Crowd, file: Path) -> None:
    users = {user.uid: [asdict(one) for one in user.answers] for user in crowd.users}
    file.write_text(json.dumps({"ended": deployment.ended, "users": users}))


async def play(*, stay: bool, report: Path | None) -> int:
    say("starting a cluster of six nodes, three pods and two gateways")
    async with Deployment() as deployment:
        async with Crowd(deployment.urls) as crowd:
            await tell_story(deployment, crowd)
        fine = show_outcome(deployment, crowd)
        if report is not None:
            write_report(deployment, crowd, report)
        if stay and fine:
            url = f"{deployment.urls[0]}/count"
            say(f"\nTry it (Ctrl-C ends it): curl -X POST -H 'X-User-Id: ada' {url}")
            await asyncio.Event().wait()
    return 0 if fine else 1


async def run(*, stay: bool, report: Path | None) -> int:
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupted.set)
    scene = asyncio.create_task(play(stay=stay, report=report))
    wish = asyncio.create_task(interrupted.wait())
    await asyncio.wait([scene, wish], return_when=asyncio.FIRST_COMPLETED)
    wish.cancel()
    if scene.done():
        return scene.result()
    say("\nending: gateways, pods, cluster")
    scene.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await scene
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--stay", action="store_true")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    sys.exit(asyncio.run(run(stay=options.stay, report=options.report)))
