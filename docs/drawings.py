"""Makes the drawings of the documents, ``images/architecture.svg`` and ``images/link.svg``.

    python docs/drawings.py            # write them
    python docs/drawings.py --check    # fail if one is not what this makes

Every text stands in a box of its own colour, and lines are of a middle grey: so they can be read on light and on dark
pages, whatever the viewer thinks is its mode.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

IMAGES: Final = Path(__file__).parent / "images"

FILLS: Final = {
    "outside": ("#e4e6ea", "#23262b"),
    "face": ("#cfe1f7", "#0d2a4d"),
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
        """A box with up to three lines, the first one set in bold."""
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


def architecture() -> str:
    """The modules, and who hands what to whom."""
    d = Drawing(900, 790, "The modules of sfroute, from the callers down to the servers")
    d.box(20, 10, 250, "outside", "a task", "await router.route(...)")
    d.box(630, 10, 250, "outside", "a thread", "router.route(...)")
    d.box(20, 90, 250, "face", "router.py", "AsyncRouter: the operations")
    d.box(325, 90, 250, "face", "background.py", "the loop in a thread, the way in")
    d.box(630, 90, 250, "face", "sync.py", "Router: cached answers here")
    d.line((145, 56), (145, 88))
    d.line((755, 56), (755, 88))
    d.line((630, 113), (577, 113))
    d.line((325, 113), (272, 113))

    d.box(20, 175, 250, "io", "routing.py, links.py", "place and move; read and write")
    d.box(325, 175, 250, "io", "evacuation.py", "emptying a pod")
    d.box(630, 175, 250, "io", "pods.py, asgi.py", "the pod's side; middleware")
    d.line((145, 136), (145, 173))
    d.line((240, 136), (390, 173))
    d.line((700, 175), (480, 152), (272, 130))

    d.box(
        20,
        260,
        860,
        "io",
        "engine.py",
        "everything that does I/O: opened once, closed once",
        height=42,
    )
    d.line((145, 221), (145, 258))
    d.line((450, 221), (450, 258))

    d.box(20, 345, 250, "io", "lookup.py", "flights, retries, serve-stale")
    d.box(325, 345, 250, "io", "store.py, calls.py, acks.py", "writes, scripts, batches")
    d.box(630, 345, 250, "io", "views.py", "the pods of a service")
    for x in (145, 450, 755):
        d.line((x, 302), (x, 343))

    d.box(20, 430, 118, "io", "lane.py", "tracked reads")
    d.box(152, 430, 118, "pure", "cache.py", "entries")
    d.box(630, 430, 118, "pure", "states.py", "what they mean")
    d.box(762, 430, 118, "pure", "placement.py", "policies")
    d.line((79, 391), (79, 428))
    d.line((211, 391), (211, 428))
    d.line((138, 453), (150, 453))
    d.line((689, 391), (689, 428))
    d.line((821, 391), (821, 428))
    d.line((630, 380), (577, 380))

    d.box(
        20, 520, 555, "io", "channel.py", "a connection that comes back: batches, bounds, heartbeat"
    )
    d.box(
        20,
        605,
        555,
        "io",
        "wire.py",
        "one RESP3 connection: replies and pushes in the order of the wire",
    )
    d.box(630, 520, 250, "io", "topology.py", "which primary serves a slot")
    d.box(630, 605, 250, "outside", "redis-py", "slot map, credentials, TLS")
    d.line((79, 476), (79, 518))
    d.line((450, 391), (450, 518))
    d.line((297, 566), (297, 603))
    d.line((520, 391), (640, 518))
    d.line((755, 566), (755, 603))

    d.box(
        20,
        695,
        860,
        "outside",
        "Redis or Valkey",
        "primaries: links, states; they push what changes",
        height=42,
    )
    d.line((297, 651), (297, 693), both=True)
    d.line((755, 651), (755, 693))
    for x, kind, text in (
        (20, "face", "what callers see"),
        (215, "io", "does I/O, on the event loop"),
        (485, "pure", "pure: tested without a server"),
    ):
        d.box(x, 758, len(text) * 8 + 24, kind, text, height=24)
    return d.svg()


def link() -> str:
    """The life of a link."""
    d = Drawing(900, 420, "The life of a link: none, proposed, accepted, in grace")
    d.box(20, 170, 150, "outside", "no link", "None", height=56)
    d.box(430, 20, 150, "face", "proposed", "temporary", height=56)
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


def main() -> int:
    """Write the drawings, or check them."""
    made = {IMAGES / "architecture.svg": architecture(), IMAGES / "link.svg": link()}
    if sys.argv[1:] == ["--check"]:
        old = [path for path, text in made.items() if path.read_text(encoding="utf-8") != text]
        for path in old:
            sys.stderr.write(f"{path} is not what this draws; run: make docs-reference\n")
        return 1 if old else 0
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
