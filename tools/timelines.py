"""Writes the drawings with a time axis: a link, a claim, users of a dead primary, a store that forgets.

    python tools/timelines.py            # draw them from docs/images/timelines.json
    python tools/timelines.py --run      # first do it all on a real cluster, and note when what was seen
    python tools/timelines.py --check    # fail if a drawing is not what the notes say

Observers ask again and again, some milliseconds apart: a bar begins and ends when one of them saw a change. All times
are of one process's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

from drawings import FILLS, IMAGES, LINE

from sfroute import AsyncPodAgent, AsyncRouter, Isolated, Lost, Rejoined
from sfroute._contract.keys import link_key, slot_of, state_key
from sfroute.embedded import LocalCluster, Node

NOTES: Final = IMAGES / "timelines.json"
NAMESPACE, SERVICE, UID = "production", "chat", "ada"
POLL: Final = 0.005
"""Seconds between two looks of an observer."""


# --- what was seen


@dataclass
class Timeline:
    """One run: bars in rows, and events above them.

    Attributes:
        title: what the drawing shows, for who does not see it.
        rows: name -> bars; each from when to when, in which colour, with which words.
        events: when, and what somebody did or was told.
    """

    title: str
    rows: dict[str, list[list[Any]]] = field(default_factory=dict)
    events: list[list[Any]] = field(default_factory=list)
    origin: float = 0.0

    def now(self) -> float:
        """Of the clock that does not jump."""
        return time.monotonic()

    def zero(self) -> None:
        """The drawing counts from here."""
        self.origin = self.now()

    def tell(self, what: str) -> None:
        """Note an event."""
        self.events.append([self.now(), what])

    def see(self, row: str, kind: str, words: str, at: float | None = None) -> None:
        """What an observer sees now, or saw at an instant: the last bar goes on, or another begins."""
        bars, now = self.rows.setdefault(row, []), self.now() if at is None else at
        if bars:
            bars[-1][1] = now
        if not bars or bars[-1][2:] != [kind, words]:
            bars.append([now, now, kind, words])

    def rounded(self) -> dict[str, Any]:
        """For the file: from the origin, to a millisecond."""

        def at(instant: float) -> float:
            return round(instant - self.origin, 3)

        return {
            "title": self.title,
            "rows": {
                name: [[at(a), at(b), kind, words] for a, b, kind, words in bars]
                for name, bars in self.rows.items()
            },
            "events": [[at(instant), what] for instant, what in self.events],
        }


@contextlib.asynccontextmanager
async def observed(*looks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Each look is repeated until the block ends. What one raises ends the block."""

    async def repeat(look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await look()
            await asyncio.sleep(POLL)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(repeat(look)) for look in looks]
        yield
        for task in tasks:
            task.cancel()


async def ask(node: Node, *command: str) -> Any:
    """A command to a server, past the router."""
    return (await asyncio.to_thread(node.commands, command))[0]


# --- the runs


async def life_of_a_link(cluster: LocalCluster) -> Timeline:
    """Proposed, accepted, in grace, accepted again, expired."""
    line = Timeline("The life of a link, seen in the store and by a second gateway")
    key = link_key(NAMESPACE, UID, SERVICE)
    node = cluster.primary_of(key)
    async with (
        AsyncRouter.from_url(cluster.url) as gateway,
        AsyncRouter.from_url(cluster.url) as second,
        AsyncRouter.from_url(cluster.url) as router,
        AsyncPodAgent(router, NAMESPACE, SERVICE, 2) as agent,
    ):

        async def in_the_store() -> None:
            left = await ask(node, "PTTL", key)
            kinds = {-2: ("outside", "none"), -1: ("io", "persistent")}
            line.see("in the store", *kinds.get(left, ("front", "temporary")))

        async def at_the_other_gateway() -> None:
            pod = await second.get_linked_pod(NAMESPACE, UID, SERVICE)
            line.see(
                "another gateway says",
                *(("outside", "None") if pod is None else ("pure", f"pod {pod}")),
            )

        # A gateway that has just started waits for pods that may have claimed the user before it did.
        for number in range(30):
            await gateway.route(NAMESPACE, f"user-{number}", SERVICE)
        line.zero()
        async with observed(in_the_store, at_the_other_gateway):
            await asyncio.sleep(0.5)
            line.tell("route(persist_seconds=3)")
            await gateway.route(NAMESPACE, UID, SERVICE, persist_seconds=3)
            await asyncio.sleep(1)
            line.tell("agent.accept()")
            await agent.accept(UID)
            await asyncio.sleep(1.5)
            line.tell("release(grace=2)")
            await agent.release(UID, grace=2)
            await asyncio.sleep(1)
            line.tell("back: accept()")
            await agent.accept(UID)
            await asyncio.sleep(1)
            line.tell("release(grace=2)")
            await agent.release(UID, grace=2)
            await asyncio.sleep(3)
    return line


async def life_of_a_claim(cluster: LocalCluster) -> Timeline:
    """Accepted, moved, without heartbeats for longer than the lease, released."""
    line = Timeline("The life of a claim, at two pods")
    states = cluster.primary_of(state_key(NAMESPACE, SERVICE))
    # A user of another primary: only heartbeats stop when that of the states does.
    uid = next(
        name
        for name in (f"user-{number}" for number in range(1000))
        if cluster.primary_of(link_key(NAMESPACE, name, SERVICE)) is not states
    )
    async with (
        AsyncRouter.from_url(cluster.url) as operator,
        AsyncRouter.from_url(cluster.url) as one,
        AsyncRouter.from_url(cluster.url) as other,
        AsyncPodAgent(one, NAMESPACE, SERVICE, 3, heartbeat=0.5, lease=2) as old,
        AsyncPodAgent(other, NAMESPACE, SERVICE, 4, heartbeat=0.5, lease=2) as new,
    ):
        agents = {"pod 3 owns": old, "pod 4 owns": new}

        async def look(row: str, agent: AsyncPodAgent) -> None:
            line.see(row, *(("io", "yes") if agent.owns(uid) else ("outside", "no")))

        async def heed(pod: int, agent: AsyncPodAgent) -> None:
            async for event in agent.events():
                if isinstance(event, Lost):
                    line.tell(f"pod {pod}: Lost, {event.reason}")
                elif isinstance(event, (Isolated, Rejoined)) and pod == 4:
                    line.tell(f"pod {pod}: {type(event).__name__}")

        async with asyncio.TaskGroup() as group:
            heeding = [group.create_task(heed(3, old)), group.create_task(heed(4, new))]
            line.zero()
            async with observed(*(lambda r=r, a=a: look(r, a) for r, a in agents.items())):
                await asyncio.sleep(0.5)
                line.tell("accept() at pod 3")
                first = await old.accept(uid)
                await asyncio.sleep(1)
                line.tell("moved to pod 4")
                await operator.set_linked_pod(NAMESPACE, uid, SERVICE, 4)
                await asyncio.sleep(0.5)
                line.tell("accept() at pod 4: greater fence")
                second = await new.accept(uid)
                assert second.fence > first.fence
                await asyncio.sleep(1)
                line.tell("no heartbeats")
                cluster.pause(states)
                await asyncio.sleep(2.5)
                line.tell("they go on")
                cluster.resume(states)
                await asyncio.sleep(2.5)
                line.tell("release()")
                await new.release(uid)
                await asyncio.sleep(0.7)
            for task in heeding:
                task.cancel()
    return line


async def a_primary_dies(cluster: LocalCluster) -> Timeline:
    """Users of that primary and of others, while its replica takes over."""
    line = Timeline("What users notice when a primary is killed")
    for row in ("the primary", "writes there", "known users of it", "all other users"):
        line.rows[row] = []
    key = link_key(NAMESPACE, UID, SERVICE)
    primary = cluster.primary_of(key)
    replica = cluster.replica_of(primary)
    here: list[str] = []
    elsewhere: list[str] = []
    for number in range(400):
        uid = f"user-{number}"
        there = cluster.primary_of(slot_of(link_key(NAMESPACE, uid, SERVICE))) is primary
        (here if there else elsewhere).append(uid)
    async with AsyncRouter.from_url(cluster.url) as router:
        for pod in range(3):
            await router.set_service_state(NAMESPACE, SERVICE, pod, "Running")
        for uid in (*here, *elsewhere):
            await router.route(NAMESPACE, uid, SERVICE)

        async def known(row: str, uids: list[str]) -> None:
            stale, began = 0, line.now()
            for uid in uids[:20]:
                link = await router.route(NAMESPACE, uid, SERVICE)
                stale += link.stale
            slow = line.now() - began > 0.2
            kind = ("pure", "at once, marked stale") if stale else ("io", "at once")
            line.see(row, *(("front", "late") if slow else kind))

        async def servers() -> None:
            if primary.alive:
                line.see("the primary", "io", "up")
            else:
                role = (await ask(replica, "ROLE"))[0]
                line.see(
                    "the primary",
                    *(("io", "its replica") if role == "master" else ("note", "dead")),
                )

        async def write() -> None:
            began = line.now()
            await router.set_linked_pod(NAMESPACE, here[-1], SERVICE, 1)
            took = line.now() - began
            words = f"one waits {took:.1f} s" if took > 0.2 else "at once"
            bars = line.rows.setdefault("writes there", [])
            if bars and bars[-1][2:] == ["io", words]:
                bars[-1][1] = line.now()
            else:
                bars.append([began, line.now(), "front" if took > 0.2 else "io", words])

        looks = (
            servers,
            lambda: known("known users of it", here),
            write,
            lambda: known("all other users", elsewhere),
        )
        async with observed(*looks):
            await asyncio.sleep(0.7)
            line.zero()
            line.tell("kill -9")
            cluster.kill(primary)
            await asyncio.sleep(4)
    assert any(words.startswith("one waits") for *_, words in line.rows["writes there"])
    return line


USERS: Final = 3000


COUNTER: Final = """
import json, sys, time
import redis

told = json.loads(sys.stdin.readline())
servers = [(redis.Redis(host, port), keys) for (host, port), keys in told]
print("ready", flush=True)
while True:
    found = 0
    for server, keys in servers:
        pipeline = server.pipeline(transaction=False)
        for key in keys:
            pipeline.exists(key)
        found += sum(pipeline.execute())
    print(time.monotonic(), found, flush=True)
"""
"""Counts the links that are there, over and over: in a process of its own, whose clock is the same."""


class Counter:
    """A row of how many of these keys were there. It is ready when it is made, and looks from then on."""

    def __init__(self, cluster: LocalCluster, keys: list[str]) -> None:
        self._keys = len(keys)
        nodes = [
            (node.address, [key for key in keys if slot_of(key) in slots_of(node)])
            for node in cluster.nodes
        ]
        self._process = subprocess.Popen(  # noqa: S603  # this very interpreter
            [sys.executable, "-c", COUNTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(nodes) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ready\n"

    def end(self, line: Timeline, since: float) -> None:
        """Note what it has seen."""
        self._process.terminate()
        said, _ = self._process.communicate()
        for row in said.splitlines()[:-1]:  # the last may have been cut
            at, found = row.split()
            if float(at) < since:
                continue
            if int(found) == self._keys:
                line.see("in the store", "io", "all links", float(at))
            elif found == "0":
                line.see("in the store", "note", "none", float(at))
            else:
                line.see("in the store", "front", "some", float(at))


def slots_of(node: Node) -> set[int]:
    """The slots that a primary serves."""
    return {slot for part in node.slots for slot in part}


async def the_store_forgets(cluster: LocalCluster) -> Timeline:
    """All nodes are emptied under claimed users."""
    line = Timeline(
        f"What happens when the store forgets: FLUSHALL on every node, with {USERS:,} claimed users"
    )
    for row in ("in the store", "a route() just then", "pods own"):
        line.rows[row] = []
    uids = [f"user-{number}" for number in range(USERS)]
    # A sample, so that one count takes little time.
    counter = Counter(cluster, [link_key(NAMESPACE, uid, SERVICE) for uid in uids[::10]])
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(AsyncRouter.from_url(cluster.url))
        agents = []
        for pod in range(3):
            router = await stack.enter_async_context(AsyncRouter.from_url(cluster.url))
            agents.append(
                await stack.enter_async_context(AsyncPodAgent(router, NAMESPACE, SERVICE, pod))
            )
        homes = {uid: agents[number % 3] for number, uid in enumerate(uids)}
        await asyncio.gather(*(agent.accept(uid) for uid, agent in homes.items()))
        await gateway.batch_get_linked_pod(NAMESPACE, uids, SERVICE)

        async def owned() -> None:
            count = sum(agent.owns(uid) for uid, agent in homes.items())
            line.see(
                "pods own", "io" if count == USERS else "note", f"{count:,} of {USERS:,} users"
            )

        async def routed(uid: str) -> None:
            began = line.now()
            link = await gateway.route(NAMESPACE, uid, SERVICE, fresh=True)
            took = (line.now() - began) * 1000
            assert link.pod == homes[uid].pod
            line.rows.setdefault("a route() just then", []).append(
                [began, line.now(), "pure", f"{took:.0f} ms: the same pod"]
            )

        while not all(agent.owns(uid) for uid, agent in homes.items()):  # noqa: ASYNC110
            await asyncio.sleep(POLL)
        began = line.now()
        async with observed(owned):
            await asyncio.sleep(0.3)
            line.zero()
            line.tell("FLUSHALL, all nodes")
            await asyncio.gather(*(ask(node, "FLUSHALL") for node in cluster.nodes))
            await routed(uids[-1])
            await asyncio.sleep(1.2)
        await asyncio.to_thread(counter.end, line, began)
    return line


RUNS: Final[dict[str, tuple[Callable[[LocalCluster], Coroutine[Any, Any, Timeline]], int]]] = {
    "time-link": (life_of_a_link, 0),
    "time-claim": (life_of_a_claim, 0),
    "time-primary": (a_primary_dies, 1),
    "time-forgotten": (the_store_forgets, 0),
}
"""Name of the drawing -> what is done, and how many replicas each primary has for it."""


def run(names: list[str]) -> None:
    """Do it, and keep what was seen."""
    notes = json.loads(NOTES.read_text(encoding="utf-8")) if NOTES.exists() else {"runs": {}}
    for name in names or list(RUNS):
        work, replicas = RUNS[name]
        with LocalCluster(3, replicas) as cluster:
            notes["server"] = f"{cluster.server_name} {cluster.server_version}"
            done = asyncio.run(work(cluster))
        notes["runs"][name] = done.rounded()
    NOTES.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")


# --- the drawings

WIDTH, LEFT, RIGHT, BAR, GAP = 900, 170, 24, 30, 12
LETTER: Final = 6.7
"""Pixels that a letter of a bar takes, at most."""
STEPS: Final = (0.1, 0.2, 0.5, 1.0)


def drawing(name: str, notes: dict[str, Any], server: str) -> str:
    """One of them, as SVG."""
    rows: dict[str, list[list[Any]]] = notes["rows"]
    first = min(bar[0] for bars in rows.values() for bar in bars)
    last = max(bar[1] for bars in rows.values() for bar in bars)
    scale = (WIDTH - LEFT - RIGHT) / (last - first)

    def at(seconds: float) -> float:
        return float(LEFT + (seconds - first) * scale)

    parts: list[str] = []
    levels: list[float] = []
    placed: list[tuple[float, float, int, str]] = []
    for seconds, what in sorted(notes["events"]):
        width = len(what) * LETTER + 14
        x = min(max(at(seconds), LEFT + width / 2 - 60), WIDTH - width / 2 - 2)
        level = next(
            (number for number, end in enumerate(levels) if x - width / 2 > end + 4), len(levels)
        )
        if level == len(levels):
            levels.append(0)
        levels[level] = x + width / 2
        placed.append((at(seconds), x, level, what))
    top = 12 + 28 * len(levels)
    height = top + 14 + (BAR + GAP) * len(rows) + 46
    bottom = top + 14 + (BAR + GAP) * len(rows)
    fill, ink = FILLS["note"]
    for exact, x, level, what in placed:
        y = 10 + 28 * level
        width = len(what) * LETTER + 14
        parts += [
            f'<path d="M{exact:.1f} {y + 22}V{bottom}" stroke="{LINE}" stroke-dasharray="3 3"/>',
            f'<rect x="{x - width / 2:.1f}" y="{y}" width="{width:.1f}" height="22" rx="6" fill="{fill}"/>',
            f'<text x="{x:.1f}" y="{y + 15}" fill="{ink}">{escape(what)}</text>',
        ]
    for number, (row, bars) in enumerate(rows.items()):
        y = top + 14 + (BAR + GAP) * number
        parts += [
            f'<rect x="4" y="{y}" width="{LEFT - 14}" height="{BAR}" rx="6" fill="{fill}"/>',
            f'<text x="{LEFT / 2 - 3:.1f}" y="{y + 19}" fill="{ink}">{escape(row)}</text>',
        ]
        for begins, ends, kind, words in bars:
            colour, letters = FILLS[kind]
            width = max(2.0, (ends - begins) * scale)
            parts.append(
                f'<rect x="{at(begins):.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}">'
                f"<title>{escape(words)}: {begins:.3f} s to {ends:.3f} s</title></rect>"
            )
            if len(words) * LETTER < width:
                parts.append(
                    f'<text x="{at(begins) + width / 2:.1f}" y="{y + 19}" fill="{letters}">{escape(words)}</text>'
                )
            elif len(bars) == 1:
                room = len(words) * LETTER + 14
                parts += [
                    f'<rect x="{at(ends) + 6:.1f}" y="{y + 4}" width="{room:.1f}" height="22" rx="6" fill="{fill}"/>',
                    f'<text x="{at(ends) + 6 + room / 2:.1f}" y="{y + 19}" fill="{ink}">{escape(words)}</text>',
                ]
    step = next((each for each in STEPS if (last - first) / each <= 16), 2.0)
    parts.append(f'<path d="M{LEFT} {bottom}H{WIDTH - RIGHT}" stroke="{LINE}"/>')
    for count in range(math.ceil(first / step), int(last / step) + 1):
        x = at(count * step)
        if x >= LEFT - 0.5:
            label = f"{count * step:g} s"
            parts += [
                f'<path d="M{x:.1f} {bottom}v5" stroke="{LINE}"/>',
                f'<rect x="{x - 17:.1f}" y="{bottom + 8}" width="34" height="17" rx="4" fill="{fill}"/>',
                f'<text x="{x:.1f}" y="{bottom + 20}" fill="{ink}" font-size="11">{label}</text>',
            ]
    title = escape(notes["title"])
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{title}" font-family="system-ui, sans-serif" font-size="12" '
        'text-anchor="middle" fill="none">'
    )
    return "\n".join(
        [
            head,
            f"<title>{title}</title>",
            f"<desc>{name}: {server}</desc>",
            *parts,
            "</svg>\n",
        ]
    )


def main() -> int:
    """Draw, after a run if one is asked for; or check."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--run"]:
        run(arguments[1:])
    notes = json.loads(NOTES.read_text(encoding="utf-8"))
    made = {
        IMAGES / f"{name}.svg": drawing(name, notes["runs"][name], notes["server"])
        for name in RUNS
        if name in notes["runs"]
    }
    if arguments == ["--check"]:
        old = [
            path
            for path, text in made.items()
            if not path.exists() or path.read_text(encoding="utf-8") != text
        ]
        for path in old:
            sys.stderr.write(f"{path} is out of date; run: python tools/timelines.py\n")
        return 1 if old or len(made) != len(RUNS) else 0
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
