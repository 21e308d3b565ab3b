"""The reference: written pages are what their programs write, the others name everything there is."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import ROOT, block, executed

import sfroute
import sfroute.asgi
import sfroute.embedded
from sfroute import errors
from sfroute.keys import operation_key, state_key, workload_key
from sfroute.states import ROUTABLE, read_pod

API = ROOT / "docs" / "reference" / "api"
KEYS = (ROOT / "docs" / "reference" / "keys.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", ["reference_pages.py", "drawings.py"])
def test_what_is_written_by_a_program_is_what_it_writes_now(program: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / program), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_sessions_of_the_command_are_what_it_shows() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "cli_sessions.py"), "--check-sessions"],
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


def test_every_module_of_the_drawing_is_one() -> None:
    drawn = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    modules = set(re.findall(r"(\w+)\.py\b", drawn))
    assert len(modules) >= 20
    package = ROOT / "sfroute"
    assert [name for name in modules if not (package / f"{name}.py").is_file()] == []


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
    outside = {"index.md", "changelog.md", "contributing.md", "lua_scripts/README.md"}
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
