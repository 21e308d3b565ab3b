"""Writes the drawings of the documents: ``architecture.svg``, ``link.svg`` and ``claim.svg`` in ``docs/images``.

    python tools/drawings.py            # write them
    python tools/drawings.py --check    # fail if one is out of date

Every text stands in a box with a colour of its own, and every line is a middle grey. Both can be read on a light page
and on a dark one.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
import tomllib
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "sfroute"
IMAGES: Final = ROOT / "docs" / "images"

FILLS: Final = {
    "outside": ("#e4e6ea", "#23262b"),
    "front": ("#cfe1f7", "#0d2a4d"),
    "io": ("#cdeae3", "#0b312a"),
    "pure": ("#fbe8bd", "#3f2f05"),
    "note": ("#5d6970", "#ffffff"),
}
LINE: Final = "#8a949a"
ARROW: Final = (
    '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{LINE}" stroke="none"/></marker>'
)
Point = tuple[float, float]


@dataclass
class Drawing:
    """Boxes and lines."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def box(
        self, x: float, y: float, width: float, kind: str, *lines: str, height: float = 46
    ) -> None:
        """A box with some lines, the first one set in bold."""
        fill, ink = FILLS[kind]
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}"/>'
        )
        first = y + height / 2 - 8 * (len(lines) - 1) + 4.5
        for number, line in enumerate(lines):
            weight = ' font-weight="600"' if number == 0 else ' font-size="12"'
            self.parts.append(
                f'<text x="{x + width / 2:g}" y="{first + 16 * number:g}" fill="{ink}"{weight}>'
                f"{escape(line)}</text>"
            )

    def cell(self, x: float, y: float, width: float, height: float, *lines: str) -> None:
        """A box with small lines, all alike."""
        fill, ink = FILLS["outside"]
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}"/>'
        )
        first = y + height / 2 - 7.5 * (len(lines) - 1) + 4
        for number, line in enumerate(lines):
            self.parts.append(
                f'<text x="{x + width / 2:g}" y="{first + 15 * number:g}" fill="{ink}" font-size="12">'
                f"{escape(line)}</text>"
            )

    def line(self, *points: Point, both: bool = False) -> None:
        """A line with an arrow at its end."""
        way = " ".join(f"{'M' if n == 0 else 'L'}{x:g} {y:g}" for n, (x, y) in enumerate(points))
        start = ' marker-start="url(#arrow)"' if both else ""
        self.parts.append(f'<path d="{way}"{start} marker-end="url(#arrow)"/>')

    def label(self, x: float, y: float, *lines: str) -> None:
        """What a line means, in a box on it."""
        width = max(len(line) for line in lines) * 7 + 16
        height = 15 * len(lines) + 7
        fill, ink = FILLS["note"]
        self.parts.append(
            f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" height="{height:g}" rx="6" '
            f'fill="{fill}"/>'
        )
        for number, line in enumerate(lines):
            at = y + 4 + 15 * (number - (len(lines) - 1) / 2)
            self.parts.append(
                f'<text x="{x:g}" y="{at:g}" fill="{ink}" font-size="12">{escape(line)}</text>'
            )

    def svg(self) -> str:
        """The file."""
        attributes = (
            f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="{escape(self.title)}" '
            'font-family="system-ui, sans-serif" font-size="14" text-anchor="middle"'
        )
        return "\n".join(
            [
                f"<svg {attributes}>",
                f"<title>{escape(self.title)}</title>",
                f"<defs>{ARROW}</defs>",
                f'<g fill="none" stroke="{LINE}" stroke-width="1.6">',
                *[part for part in self.parts if part.startswith("<path")],
                "</g>",
                *[part for part in self.parts if not part.startswith("<path")],
                "</svg>\n",
            ]
        )


# --- the house


@dataclass(frozen=True)
class Room:
    """A folder of the package, or a module beside the folders."""

    name: str
    purpose: str
    modules: tuple[str, ...]


def floors() -> list[list[Room]]:
    """The rooms of each floor, from the callers down: the layers that ``pyproject.toml`` holds the imports to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["name"] == "the house"
    )
    return [[room(name) for name in re.findall(r"\w+", layer)] for layer in layers]


def room(name: str) -> Room:
    """What its docstring says it is for, and what is in it."""
    folder = PACKAGE / name
    if not folder.is_dir():
        return Room(f"{name}.py", summary(PACKAGE / f"{name}.py"), ())
    names = {
        f"{entry.name}/" if entry.is_dir() else entry.stem
        for entry in folder.iterdir()
        if entry.suffix == ".py" or (entry / "__init__.py").is_file()
    }
    return Room(
        f"{name}/", summary(folder / "__init__.py"), tuple(sorted(names - {"__init__", "__main__"}))
    )


def summary(module: Path) -> str:
    """The first sentence of its docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return re.split(r"[.;]\s", f"{text.partition(chr(10))[0]} ")[0].rstrip(".").replace("``", "")


WAYS: Final = ("one lookup", "one write", "a server's push", "a fork, in the child")
STEPS: Final[dict[str, tuple[str, str, str, str]]] = {
    "_fronts/": (
        "1 router.py, sync.py:\nfresh in the cache? return it",
        "1 router.py:\nevery argument is checked",
        "",
        "2 sync.py: forget the thread\nrouter.py: use the new cache",
    ),
    "_operations/": (
        "2 links.py:\nthe names are checked",
        "2 links.py: drop the entry,\nmark its flight dirty",
        "",
        "2 engine.py: forget all parts,\nopen again on next use",
    ),
    "_lookups/": (
        "3 lookups.py: join the flight\nof the key, or open one;\ndispatch.py, lane.py: send it",
        "",
        "3 lane.py: on_push()\n5 cache.py: drop the entry,\nmark its flight dirty",
        "",
    ),
    "_commands/": (
        "",
        "3 commands.py: EVALSHA,\nagain until the deadline\nwhere that is safe",
        "",
        "",
    ),
    "_net/": (
        "4 cluster_topology.py: where\nthe slot is served\n5 channel.py: one write for\nall of this turn of the loop",
        "4 cluster_topology.py: where\nthe slot is served\n5 channel.py: one write for\nall of this turn of the loop",
        "1 connection.py: parse, in\nthe order of the wire\n2 channel.py: pass it on",
        "3 nodes.py,\ncluster_topology.py: give\nup inherited sockets",
    ),
    "telemetry/": ("", "", "", "2 recorder.py, metrics.py:\nempty queue, zero counters"),
    "_contract/": (
        "6 replies.py: the value;\nthe cache stores it",
        "6 replies.py: the result;\nthe entry is dropped again",
        "4 keys.py: the entry\nthat the key belongs to",
        "",
    ),
    "_forks.py": ("", "", "", "1 tell every router"),
}
"""What happens on a floor, by room, for each of ``WAYS``."""

ROOMS, CELL, GAP, LINE_HEIGHT = 360.0, 182.0, 8.0, 15.0
PURE: Final = ("_contract/", "config.py", "errors.py", "types.py")


def architecture() -> str:
    """The rooms of the package, floor by floor, and what happens in them."""
    d = Drawing(
        int(ROOMS + len(WAYS) * (CELL + GAP) + 2 * 12),
        0,
        "The rooms of sfroute, from the callers down",
    )
    for number, way in enumerate(WAYS):
        d.box(_column(number), 10, CELL, "note", way, height=28)
    d.box(12, 10, ROOMS, "note", "a floor imports only what is below it", height=28)
    y = 48.0
    for floor in floors():
        height = max(_height(room) for room in floor)
        for room in floor:
            if room is not floor[0]:
                y += height + 2
                height = _height(room)
            _draw_room(d, room, y, height)
        y += height + GAP
    d.box(
        12,
        y,
        d.width - 24,
        "outside",
        "Redis or Valkey",
        "links and states; pushes what changes",
        height=40,
    )
    y += 50
    for x, kind, text in (
        (12, "front", "what callers see"),
        (187, "io", "what they are made of"),
        (402, "pure", "pure: no I/O, tested without a server"),
    ):
        d.box(x, y, len(text) * 8 + 24, kind, text, height=24)
    d.height = int(y + 36)
    return d.svg()


def _column(number: int) -> float:
    return 12 + ROOMS + GAP + number * (CELL + GAP)


def _wrapped(room: Room) -> list[str]:
    return [*textwrap.wrap(room.purpose, 54), *textwrap.wrap(", ".join(room.modules), 54)]


def _height(room: Room) -> float:
    steps = max((cell.count("\n") + 1 for cell in STEPS.get(room.name, ()) if cell), default=0)
    return 14 + LINE_HEIGHT * max(1 + len(_wrapped(room)), steps)


def _draw_room(d: Drawing, room: Room, y: float, height: float) -> None:
    kind = (
        "io" if room.name.startswith("_") or room.name in ("telemetry/", "embedded/") else "front"
    )
    d.box(
        12,
        y,
        ROOMS,
        "pure" if room.name in PURE else kind,
        room.name,
        *_wrapped(room),
        height=height,
    )
    for number, cell in enumerate(STEPS.get(room.name, ())):
        if cell:
            d.cell(_column(number), y, CELL, height, *cell.split("\n"))


# --- the life of a link


def link() -> str:
    """The life of a link."""
    d = Drawing(900, 420, "The life of a link: none, proposed, accepted, in grace")
    d.box(20, 170, 150, "outside", "no link", "None", height=56)
    d.box(430, 20, 150, "front", "proposed", "temporary", height=56)
    d.box(430, 170, 150, "io", "accepted", "persistent", height=56)
    d.box(430, 330, 150, "pure", "in grace", "temporary", height=56)
    # From no link, and back to it.
    d.line((75, 170), (75, 36), (428, 36))
    d.label(250, 36, "route(persist_seconds=N)")
    d.line((430, 62), (125, 62), (125, 168))
    d.label(280, 66, "nobody came: it expires")
    d.line((170, 184), (428, 184))
    d.label(300, 184, "route()")
    d.line((430, 212), (172, 212))
    d.label(300, 212, "agent.release()")
    d.line((430, 358), (95, 358), (95, 228))
    d.label(250, 358, "it expires")
    # Between the lives.
    d.line((505, 76), (505, 168))
    d.label(505, 122, "agent.accept()")
    d.line((470, 226), (470, 328))
    d.label(395, 277, "agent.release(grace=N)")
    d.line((540, 328), (540, 226))
    d.label(640, 277, "the user is back: agent.accept()")
    # To another pod.
    d.line((580, 186), (640, 186), (640, 48), (582, 48))
    d.label(
        735, 117, "its pod is gone, or excluded:", "route(persist_seconds=N)", "proposes another"
    )
    d.line((580, 204), (640, 204), (640, 222), (582, 222))
    d.label(745, 213, "evacuate(): at another pod,", "kind and time kept")
    return d.svg()


# --- the life of a claim


def claim() -> str:
    """The life of a claim at its pod."""
    d = Drawing(
        940,
        470,
        "The life of a claim at its pod: not held, owned, doubtful, lost, isolated, in grace",
    )
    d.box(20, 200, 150, "outside", "not held", "owns: False", height=56)
    d.box(395, 200, 150, "io", "owned", "owns: True", height=56)
    d.box(770, 200, 150, "front", "doubtful", "owns: False", height=56)
    d.box(395, 20, 150, "pure", "in grace", "owns: False", height=56)
    d.box(770, 400, 150, "outside", "lost", "event: Lost", height=56)
    d.box(395, 400, 150, "front", "isolated", "event: Isolated", height=56)
    # From nobody's, and back.
    d.line((170, 215), (393, 215))
    d.label(282, 212, "accept(), session()")
    d.line((395, 242), (172, 242))
    d.label(282, 246, "release()")
    # A grace period.
    d.line((450, 200), (450, 78))
    d.label(372, 150, "release(grace=N)")
    d.line((490, 76), (490, 198))
    d.label(592, 122, "back: accept(),", "the same fence")
    d.line((395, 48), (95, 48), (95, 198))
    d.label(245, 48, "the link expires")
    # Doubt.
    d.line((545, 215), (768, 215))
    d.label(657, 202, "the link has changed,", "or its primary is silent")
    d.line((770, 242), (547, 242))
    d.label(657, 254, "the store confirms,", "or it is restored")
    d.line((845, 256), (845, 398))
    d.label(845, 330, "moved, removed,", "superseded")
    # The lease.
    d.line((470, 256), (470, 398))
    d.label(470, 330, "the lease ran out")
    d.line((545, 428), (700, 428), (700, 300), (800, 300), (800, 258))
    d.label(690, 380, "a heartbeat is stored:", "event: Rejoined")
    return d.svg()


def main() -> int:
    """Write the drawings, or check them."""
    made = {
        IMAGES / "architecture.svg": architecture(),
        IMAGES / "link.svg": link(),
        IMAGES / "claim.svg": claim(),
    }
    if sys.argv[1:] == ["--check"]:
        old = [path for path, text in made.items() if path.read_text(encoding="utf-8") != text]
        for path in old:
            sys.stderr.write(f"{path} is out of date; run: make docs-reference\n")
        return 1 if old else 0
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
