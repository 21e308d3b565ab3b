"""The tutorial, typed as it stands: two terminals, two files, and what each command shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.documents import Block, Terminal, Typed, block, same, typed
from support.processes import Child

PAGE = "docs/tutorial.md"
FILES = {
    "pod.py": block(PAGE, "python", 0),
    "gateway.py": block(PAGE, "python", 1),
}
SESSION = [
    block(PAGE, "console", 2),
    block(PAGE, "console", 3),
    block(PAGE, "console", 4),
    block(PAGE, "console", 5),
    block(PAGE, "console", 6),
    block(PAGE, "console", 7),
    block(PAGE, "console", 8),
    block(PAGE, "console", 9),
    block(PAGE, "console", 10),
]
"""The second terminal."""
SHOWN_URL, _ = typed(block(PAGE, "console", 1))[0].shown


@contextmanager
def first_terminal(found: Block, folder: Path) -> Iterator[str]:
    """The block that starts the cluster, and where it then is."""
    (cluster,) = typed(found)
    assert cluster.command.split()[0] == "sfroute"
    with Child(
        [sys.executable, "-m", "sfroute.cli", *cluster.command.split()[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    ) as running:
        assert running.stdout is not None
        try:
            shown = [running.stdout.readline(), running.stdout.readline()]
            if shown[0].strip() != SHOWN_URL:
                # Somebody on this machine has the ports of the page; the command says so, after its first line.
                assert "not all free" in shown.pop()
                shown.append(running.stdout.readline())
            assert same(shown) == same(cluster.shown)
            yield shown[0].strip()
        finally:
            running.terminate()
            running.communicate()


def test_the_files_are_named_where_they_are_shown() -> None:
    for name, found in FILES.items():
        assert f"`{name}`" in found.before


def test_the_url_to_copy_is_of_nodes_that_the_cluster_has() -> None:
    exported = typed(block(PAGE, "console", 2))[1].command.removeprefix("export SFROUTE_URL=")
    assert exported.startswith("redis+cluster://127.0.0.1:16379,")
    assert SHOWN_URL.startswith(f"{exported},")


def test_the_first_block_makes_an_environment_with_the_extras() -> None:
    assert [entry.command for entry in typed(block(PAGE, "console", 0))] == [
        "python3 -m venv venv && . venv/bin/activate",
        "pip install '/path/to/sfroute[cli,embedded]'",
    ]


# A minute of it is waiting, and it starts Python fifteen times: where ten programs share a core, each start takes five
# seconds.
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_command_shows_what_the_page_shows(tmp_path: Path) -> None:
    for name, found in FILES.items():
        # Where commands take seconds, a pod that waits 15 has left before the page has looked at it. At the last pod,
        # which the page only waits for, nobody looks.
        text = found.text.replace("drain(deadline=15)", "drain(deadline=45 if pod == 1 else 1)")
        assert (text != found.text) == (name == "pod.py")
        (tmp_path / name).write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name[:8] != "SFROUTE_"}
    with (
        first_terminal(block(PAGE, "console", 1), tmp_path) as url,
        Terminal(tmp_path, environment) as terminal,
    ):
        for found in SESSION:
            for entry in typed(found):
                shown = seen(terminal, entry, url)
                wait, _, listing = entry.command.rpartition("; ")
                if wait.startswith("sleep"):
                    # The page waits as long as an idle machine needs.
                    for _ in range(20):
                        if shown == same(entry.shown):
                            break
                        shown = same(terminal.run(f"sleep 1; {listing}"))
                assert shown == same(entry.shown), f"{found}: {entry.command}"


def seen(terminal: Terminal, entry: Typed, url: str) -> list[str]:
    """What a command shows, on the cluster of the first terminal, in the environment the tests run in."""
    if entry.command == ". venv/bin/activate":
        return []
    if entry.command.startswith("export SFROUTE_URL=") and url != SHOWN_URL:
        return same(terminal.run(f"export SFROUTE_URL={url}"))
    shown = terminal.run(entry.command)
    # The shell's own word on a job that was killed, which a terminal shows at another time.
    return same([line for line in shown if not line.startswith("bash: line ")])
