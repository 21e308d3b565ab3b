"""The version stands in sfroute/_version.py, and everything that tells it has it from there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

from sfroute import __version__
from sfroute.embedded import LocalServer

ROOT = Path(__file__).parent.parent
ANOTHER = "7.6.5.dev4"

RECORDS = {"benchmarks.md", "cli.md", "operation-records.md", "performance.md", "scale.md"}
"""They say which version was measured, or ran."""

SPAN = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sfroute import Router, RouterConfig, TelemetryConfig

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
config = RouterConfig(telemetry=TelemetryConfig(tracer_provider=provider))
with Router.from_url("redis://127.0.0.1:{port}", config=config) as router:
    router.get_linked_pod("n", "ada", "chat")
for span in exporter.get_finished_spans():
    print(span.instrumentation_scope.version)
"""


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in which nothing but that one file is changed."""
    folder = tmp_path_factory.mktemp("another")
    for name in ("sfroute", "lua_scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "sfroute" / "_version.py"
    file.write_text(file.read_text().replace(__version__, ANOTHER))
    return folder


def run(folder: Path, *arguments: str) -> str:
    """What Python writes if the package is found in the folder."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_command_tells_it(another: Path) -> None:
    assert run(another, "-m", "sfroute.cli", "--version") == f"sfroute {ANOTHER}\n"


def test_spans_tell_it(another: Path) -> None:
    with LocalServer() as server:
        told = run(another, "-c", SPAN.replace("{port}", str(server.node.port)))
    assert set(told.split()) == {ANOTHER}


def test_the_build_reads_it_from_there() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in pyproject["project"]
    assert pyproject["project"]["dynamic"] == ["version"]
    assert pyproject["tool"]["hatch"]["version"] == {"path": "sfroute/_version.py"}


def test_the_installation_is_of_this_version() -> None:
    assert metadata.version("sfroute") == __version__, "make venv installs it anew"


def test_it_is_what_installers_understand() -> None:
    assert str(Version(__version__)) == __version__


def test_no_document_repeats_it() -> None:
    repeated = re.compile(rf"\bsfroute\W{{1,2}}v?{re.escape(__version__)}\b")
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("lua_scripts/*")]
    assert [
        path.name
        for path in documents
        if repeated.search(path.read_text(encoding="utf-8")) and path.name not in RECORDS
    ] == []


def test_the_changelog_ends_with_it() -> None:
    """At the top is what is not released; the version below, once there is one, is this."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, *released = re.findall(r"^## \[([^]]+)\]", text, re.MULTILINE)
    assert unreleased == "Unreleased"
    assert released[:1] in ([], [__version__])
    assert [Version(each) for each in released] == sorted(map(Version, released), reverse=True)
