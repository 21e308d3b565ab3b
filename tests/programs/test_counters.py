"""The folder of counters that the pods of examples/ share: two pods that write at once for one user lose no count."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from support.pods import ROOT, build_go, find_node
from support.processes import Child

# They start processes.
pytestmark = pytest.mark.slow

RACING = ROOT / "tests" / "support" / "racing"
TURNS = 1500


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Language -> the program that races, as far as these languages are here."""
    found = {"python": [sys.executable, str(RACING / "race.py")]}
    if node := find_node():
        counters = ROOT / "examples" / "node" / "counters.mjs"
        found["node"] = [node, str(RACING / "race.mjs"), str(counters)]
    folder = tmp_path_factory.mktemp("racing")
    for file in (ROOT / "examples" / "go" / "counters.go", RACING / "race.go"):
        shutil.copy(file, folder)
    if program := build_go(folder, "counters.go", "race.go"):
        found["go"] = [program]
    return found


def race(
    commands: list[list[str]], folder: Path, uid: str = "ada", turns: int = TURNS
) -> list[list[tuple[int, int]]]:
    """What each process was acknowledged: fences, and counts."""
    with contextlib.ExitStack() as exits:
        processes = [
            exits.enter_context(
                Child(
                    [*command, str(folder), uid, str(slot), str(turns)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for slot, command in enumerate(commands)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        told = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes)
    return [
        [(int(fence), int(count)) for fence, count in map(str.split, lines.splitlines())]
        for lines in told
    ]


@pytest.mark.parametrize(
    "languages",
    [("python",) * 3, ("node",) * 3, ("go",) * 3, ("python", "node", "go")],
    ids=["python", "node", "go", "all"],
)
def test_pods_that_write_at_once_lose_no_count(
    commands: dict[str, list[str]], tmp_path: Path, languages: tuple[str, ...]
) -> None:
    """Each has fences newer than the others' by turns, as if the user was moved all the time."""
    for language in languages:
        if language not in commands:
            pytest.skip(f"there is no {language}")
    told = race([commands[language] for language in languages], tmp_path)
    assert all(told)
    counts = sorted((count, fence) for acknowledged in told for fence, count in acknowledged)
    # Each count was given once, and none is missing; whoever has a newer fence goes on where older ones were.
    assert [count for count, _ in counts] == list(range(1, len(counts) + 1))
    assert all(before <= after for (_, before), (_, after) in pairwise(counts))


@pytest.mark.parametrize("language", ["python", "node", "go"])
def test_no_file_is_named_by_what_a_stranger_chose(
    commands: dict[str, list[str]], tmp_path: Path, language: str
) -> None:
    """A uid may be longer than a file's name, and whoever logs an error of the file system logs the name."""
    if language not in commands:
        pytest.skip(f"there is no {language}")
    # As gateways encode it, which for Python's program makes another uid; it is as long, or longer.
    uid = "%C3%BC" * 100
    (told,) = race([commands[language]], tmp_path, uid, 1)
    assert [count for _, count in told] == [1, 2, 3]
    (folder,) = tmp_path.iterdir()
    assert re.fullmatch(r"of-[0-9a-f]{64}", folder.name)


def test_all_languages_name_the_same_folder(commands: dict[str, list[str]], tmp_path: Path) -> None:
    """Python's program gets the uid as it is, the others as gateways encode it."""
    for language, command in commands.items():
        race([command], tmp_path, "ü/é" if language == "python" else "%C3%BC%2F%C3%A9", 1)
    (folder,) = tmp_path.iterdir()
    (stored,) = folder.iterdir()
    assert stored.name.endswith(f"-{3 * len(commands)}")
