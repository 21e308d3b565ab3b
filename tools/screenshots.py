"""Writes the screenshots of the documents: ``docs/images/top.svg`` and ``docs/images/site.png``.

    python tools/screenshots.py            # both
    python tools/screenshots.py top        # `sfroute top` on a terminal, watching a cluster under load
    python tools/screenshots.py site       # the site; needs `make docs` and Debian's chromium

``top`` needs nothing but this project. It reads the screen from a pty, with its colours.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import http.server
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cli_sessions import World, loaded, world
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT: Final = Path(__file__).parents[1]
IMAGES: Final = ROOT / "docs" / "images"
SITE: Final = ROOT / ".cache" / "site"
COLUMNS: Final = 80
LINES: Final = 24

# A dark screen with colours that can be told apart; the frame of rich without its fonts, which come from a CDN.
THEME: Final = TerminalTheme(
    (30, 33, 41),
    (216, 222, 233),
    [
        (59, 66, 82),
        (224, 108, 117),
        (152, 195, 121),
        (229, 192, 123),
        (97, 175, 239),
        (198, 120, 221),
        (86, 182, 194),
        (216, 222, 233),
    ],
)
FRAME: Final = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; \
font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>\
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


# --- sfroute top


def screen(at: World, line: str) -> str:
    """What a command shows last on a terminal, with its colours."""
    inner, outer = pty.openpty()
    fcntl.ioctl(outer, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**at.environment(), "TERM": "xterm-256color", "LINES": str(LINES)}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(  # noqa: S603 - our own command
        at.argv(line), stdin=outer, stdout=outer, stderr=outer, env=environment
    ) as running:
        os.close(outer)
        shown = b""
        while True:
            try:
                some = os.read(inner, 65536)
            except OSError:  # the other end is closed
                break
            if not some:
                break
            shown += some
        assert running.wait() == 0
    os.close(inner)
    return shown.decode()


def last_frame(shown: str) -> str:
    """The last of several screens that were drawn over each other."""
    frame = re.split(r"\x1b\[\?1049[hl]|\x1b\[H|\x1b\[2J|(?:\x1b\[1A\x1b\[2K)+", shown)
    screens = [text for text in frame if "sfroute top" in text]
    return re.sub(r"\x1b\[\?\d+[hl]|\x1b\[2K|\r", "", screens[-1]).rstrip()


def top() -> None:
    """Draw the screen of a cluster under load."""
    with world() as at, loaded(at):
        shown = screen(at, "sfroute top --count 4 --interval 1")
        text = Text.from_ansi(at.tidy(last_frame(shown)))
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(text)
        drawn = console.export_svg(
            title="sfroute top", theme=THEME, code_format=FRAME, unique_id="top"
        )
    (IMAGES / "top.svg").write_text(drawn, encoding="utf-8")


# --- the site


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder over HTTP on loopback."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Silent, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def photograph(url: str, picture: Path, width: int, height: int) -> None:
    """A page as a browser without a screen, a profile or a network shows it."""
    program = shutil.which("chromium")
    if program is None:
        sys.exit("chromium is not installed")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(  # noqa: S603 - the browser of this machine
            [
                program,
                *(
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-quic",
                    "--no-first-run",
                ),
                *(
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                ),
                # Whoever asks for anything but this machine gets nothing.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--hide-scrollbars",
                "--virtual-time-budget=5000",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                f"--screenshot={picture}",
                url,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def site() -> None:
    """Photograph the first page of the site."""
    if not (SITE / "index.html").is_file():
        sys.exit("there is no site yet: make docs")
    with served(SITE) as url:
        photograph(f"{url}/index.html", IMAGES / "site.png", 1360, 900)


def main() -> None:
    """Make what is asked for."""
    makers = {"top": top, "site": site}
    parser = argparse.ArgumentParser(description="Make the pictures of the documents.")
    parser.add_argument("pictures", nargs="*", choices=[*makers, []], default=list(makers))
    for name in parser.parse_args().pictures:
        makers[name]()


if __name__ == "__main__":
    main()
