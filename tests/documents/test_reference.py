"""The reference: written pages are what their programs write, the others name everything there is."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from support.documents import ROOT, block, executed

import sfroute
import sfroute.asgi
import sfroute.embedded
import sfroute.wsgi
from sfroute import Claim, Isolated, Lost, Rejoined, RetryConfig, errors
from sfroute._contract.keys import operation_key, state_key, workload_key
from sfroute._contract.pod_states import ROUTABLE, read_pod
from sfroute._operations.links import IN_THE_NETWORK

sys.path.insert(0, str(ROOT / "tools"))

API = ROOT / "docs" / "reference" / "api"
KEYS = (ROOT / "docs" / "reference" / "keys.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", ["reference_pages.py", "drawings.py", "timelines.py"])
def test_what_is_written_by_a_program_is_what_it_writes_now(program: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / program), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_sessions_of_the_command_are_what_it_shows() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "cli_sessions.py"), "--check-sessions"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_is_in_the_reference() -> None:
    shown = [
        name
        for page in API.glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(shown) == len(set(shown))
    there = {f"sfroute.{name}" for name in sfroute.__all__ if name != "__version__"}
    there |= {f"sfroute.asgi.{name}" for name in sfroute.asgi.__all__}
    there |= {f"sfroute.wsgi.{name}" for name in sfroute.wsgi.__all__}
    # The other names of this door are annotations of these two.
    there |= {"sfroute.fastapi.routed", "sfroute.fastapi.claimed"}
    # Reply and Role are types of arguments and attributes.
    there |= {
        f"sfroute.embedded.{n}" for n in sfroute.embedded.__all__ if n not in {"Reply", "Role"}
    }
    assert set(shown) == there | {"sfroute.telemetry.setup"}


def test_the_tree_of_errors_is_that_of_the_module() -> None:
    assert block("docs/reference/api/errors.md", "text", 0).text in inspect.getdoc(errors).replace(  # type: ignore[union-attr]
        "\n    ", "\n"
    )


def test_the_configuration_of_the_page_is_one() -> None:
    found = block("docs/reference/configuration.md", "python", 0)
    with executed(found, "redis+cluster://127.0.0.1:6379") as names:
        assert names["config"].cache.max_age == 2.0
        assert isinstance(names["router"], sfroute.AsyncRouter)


def test_every_step_of_the_drawing_is_taken_in_the_room_where_it_stands() -> None:
    from drawings import STEPS, floors

    rooms = {room.name: set(room.modules) for floor in floors() for room in floor}
    assert set(STEPS) <= set(rooms)
    for name, steps in STEPS.items():
        assert set(re.findall(r"(\w+)\.py\b", " ".join(steps))) <= rooms[name], name


def test_every_module_that_the_page_on_architecture_names_is_one() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)?\w+\.py)`", page))
    assert len(named) >= 20
    paths = {
        path.relative_to(ROOT / "sfroute").as_posix() for path in (ROOT / "sfroute").rglob("*.py")
    }
    names = {path.rpartition("/")[2] for path in paths}
    assert [name for name in named if name not in (paths if "/" in name else names)] == []


def test_every_key_is_on_the_page() -> None:
    for key in (
        state_key("<namespace>", "<service>"),
        workload_key("<namespace>", "<service>"),
        operation_key("<namespace>", "<uid>", "<token>"),
    ):
        assert f"| `{key}` |" in KEYS


def test_states_are_read_as_the_page_says() -> None:
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \| *(yes)? *\| *(yes)? *\|$", KEYS, re.MULTILINE)
    words = rows.pop(0)[0], rows.pop(0)[0]
    assert set(re.findall(r"`(\w+)`", words[0])) == ROUTABLE
    for word in re.findall(r"`(\w+)`", ", ".join(words)):
        assert (read_pod(0, word, None).status, read_pod(0, word, None).load) == (word, None)
    seen = 0
    for states, status, load, _ in rows:
        for form in re.findall(r"`(<load>.+?)`", states):
            state = form.replace("\\|", "|").replace("<load>", "0.5")
            state = re.sub(r"<epoch\w+>", "1700000000", state)
            pod = read_pod(0, state, None)
            assert (f"`{pod.status}`", pod.load) == (status, 0.5 if load else None)
            seen += 1
    assert seen == 4
    assert read_pod(0, "whatever", None).status == "Unknown"


def test_the_pages_of_the_site_are_all_there() -> None:
    """Nothing in the navigation is missing, and nothing is missing from it."""
    text = (ROOT / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r": (\S+\.md)$", text, re.MULTILINE))
    outside = {
        *("index.md", "changelog.md", "contributing.md", "security.md"),
        "lua_scripts/README.md",
    }
    docs = ROOT / "docs"
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert listed - outside == there


def test_pictures_are_small_and_drawings_fetch_nothing() -> None:
    for path in Path(ROOT / "docs" / "images").iterdir():
        assert path.stat().st_size < 300_000, path.name
        if path.suffix == ".svg":
            text = path.read_text(encoding="utf-8")
            addresses = set(re.findall(r"https?://[^\"' )]+", text))
            assert all(address.startswith("http://www.w3.org/") for address in addresses), path.name


# --- operation records


def test_records_are_kept_as_long_as_the_page_says() -> None:
    page = (ROOT / "docs/reference/operation-records.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) s(?:, the default)? \| (\d+) s \|$", page, re.MULTILINE)
    assert len(rows) == 3
    assert str(int(RetryConfig().deadline)) in {deadline for deadline, _ in rows}
    for deadline, kept in rows:
        assert 2 * int(deadline) + IN_THE_NETWORK == int(kept)


# --- the glossary, and the list before production


def test_the_glossary_has_the_words_of_the_types() -> None:
    page = (ROOT / "docs/reference/glossary.md").read_text(encoding="utf-8")
    hints = [get_type_hints(kind)[name] for kind, name in ((Claim, "how"), (Lost, "reason"))]
    words = {word for hint in hints for word in get_args(hint)}
    words |= {kind.__name__ for kind in (Isolated, Rejoined, Lost)}
    assert {word for word in words if f"`{word}`" not in page} == set()


def test_the_list_before_production_names_lines_of_the_doctor() -> None:
    page = (ROOT / "docs/how-to/production.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`sfroute doctor`, line `(\w+)`", page))
    checks = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "sfroute/cli/doctor").glob("*.py")
    )
    assert len(named) >= 5
    assert {line for line in named if not re.search(rf'Check\(\s*"{line}"', checks)} == set()
