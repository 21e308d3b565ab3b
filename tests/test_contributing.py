"""What CONTRIBUTING.md and the page on development tell to run is there, and git checks what CI checks."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import find_redis70

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DEVELOPMENT = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))


def code(text: str) -> list[str]:
    """What stands in backticks, and the commands of the blocks."""
    spans = re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    )
    return spans + re.findall(r"^\$ (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("text", [CONTRIBUTING, DEVELOPMENT], ids=["contributing", "development"])
def test_every_target_that_is_named_is_there(text: str) -> None:
    named = {word for each in code(text) for word in re.findall(r"\bmake ([a-z-]+)", each)}
    assert len(named) > 10
    assert named <= TARGETS


def test_every_target_is_named_on_one_of_the_pages() -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)", CONTRIBUTING + DEVELOPMENT))
    said_elsewhere = {"help", "demo", "gateway-demo", "clean", "venv"}
    assert TARGETS - named - said_elsewhere == set()


def test_every_file_that_is_named_is_there() -> None:
    paths = {each.split()[0] for each in code(CONTRIBUTING) if re.match(r"[\w.-]+/[\w./-]+", each)}
    written = {"dist/"}
    assert {"tests/support/model.py", "sfroute/_version.py", ".venv/bin/python"} <= paths
    assert [path for path in paths - written if not (ROOT / path).exists()] == []


@pytest.mark.slow
def test_the_command_for_one_test_finds_one() -> None:
    commands = [each for each in code(CONTRIBUTING) if "SFROUTE_TEST_SERVERS=" in each]
    assert len(commands) == 2
    for command in commands:
        (arguments,) = re.findall(r'make test ARGS="([^"]*)"$', command)
        (server,) = re.findall(r"SFROUTE_TEST_SERVERS=(\w+)", command)
        if server == "redis70" and find_redis70() is None:
            continue
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments.split()],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_git_checks_what_ci_checks() -> None:
    """The hooks are local: nothing is fetched, and `.ci/run` runs them on all files."""
    config = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")

    def values(name: str) -> list[str]:
        return re.findall(rf"^[ -]*{name}: (.*)$", config, re.MULTILINE)

    assert values("repo") == ["local"]
    assert values("id") == ["lint", "types"]
    assert values("entry") == [f"make --no-print-directory {name}" for name in values("id")]
    assert values("language") == ["system", "system"]
    assert values("pass_filenames") == ["false", "false"]
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^step '(lint|types)' check \1$", run, re.MULTILINE) == ["lint", "types"]
    assert "pre-commit run --all-files" in run


def test_the_source_distribution_has_the_page_and_the_hooks() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = pyproject["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"/CONTRIBUTING.md", "/.pre-commit-config.yaml"} <= set(included)
