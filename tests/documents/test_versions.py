"""Versions: what is claimed to be tested is what some command tests."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from support.documents import ROOT

PAGE = (ROOT / "docs/explanation/versions.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def test_every_python_that_is_claimed_is_one_that_the_workflow_runs(
    workflow: dict[str, Any],
) -> None:
    claimed = {
        classifier.rpartition(" ")[2]
        for classifier in PROJECT["classifiers"]
        if re.search(r":: 3\.\d+$", classifier)
    }
    run = set(workflow["jobs"]["python"]["strategy"]["matrix"]["python"])
    said = {
        version
        for row in re.findall(r"^\| CPython \| (.+?) \|", PAGE, re.MULTILINE)
        for version in row.split(", ")
    }
    assert claimed == run == said


def test_what_the_workflow_runs_is_there(workflow: dict[str, Any]) -> None:
    commands = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert ".ci/run" in commands
    targets = {
        word
        for command in commands
        if command.startswith("make ")
        for word in command.split()[1:]
        if "=" not in word
    }
    assert {"build", "wheel-test", "test-python"} <= targets
    assert {
        name for name in targets if not re.search(rf"^{name}:", MAKEFILE, re.MULTILINE)
    } == set()


def test_the_scripts_that_are_shared_are_eleven() -> None:
    assert "eleven [scripts]" in PAGE
    # Those of claims and of this project's own needs came later, as additions.
    shared = [
        *("SetLink", "SetLinkIfAbsent", "TrySetLink", "RemoveLink", "RemoveLinkWithId"),
        *("GetLinkIfPersist", "ComputeLinkIfAbsent", "GetServicePod", "GetService"),
        *("SetState", "GetLinkService"),
    ]
    assert len(shared) == 11
    assert {n for n in shared if not (ROOT / f"lua_scripts/stateful{n}.lua").is_file()} == set()
