"""What the tools say of deploy/, and whether the image is made of what it needs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from support.documents import block

from deploy.rendered import DEPLOY, ROOT, VARIANTS, program, resources, text_of

PAGE = "docs/how-to/kubernetes.md"
DOCKERFILE = DEPLOY / "Dockerfile"


def checkov(folder: Path, framework: str, *arguments: str) -> dict[str, Any]:
    # It would ask its maker for descriptions of its checks.
    command = [program("checkov"), "--skip-download", "--output", "json", "--framework", framework]
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "LOG_LEVEL": "ERROR"},
    )
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("variant", VARIANTS)
def test_checkov_finds_nothing_without_its_reason(variant: str, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(text_of(variant), encoding="utf-8")
    found = checkov(tmp_path, "kubernetes", "--file", "all.yaml")
    results = found["results"]
    assert [(one["check_id"], one["resource"]) for one in results["failed_checks"]] == []
    assert found["summary"]["parsing_errors"] == 0
    assert found["summary"]["passed"] > 100
    for one in results["skipped_checks"]:
        assert len(one["check_result"]["suppress_comment"]) > 20


@pytest.mark.timeout(240)
def test_checkov_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    shutil.copy(DOCKERFILE, tmp_path)
    found = checkov(tmp_path, "dockerfile", "--file", "Dockerfile")
    assert [one["check_id"] for one in found["results"]["failed_checks"]] == []
    assert found["summary"]["passed"] > 20


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [program("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def stages() -> dict[str, list[str]]:
    """Name -> the instructions of a stage, each on one line."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("FROM "):
            found[line.split(" AS ")[1]] = lines = []
        elif line and not line.startswith("#"):
            lines.append(line)
    return found


@pytest.mark.timeout(240)
def test_what_the_image_copies_is_enough_to_install_the_package(tmp_path: Path) -> None:
    """No image can be built here. Its first stage is done by hand: copy, and let pip make the package."""
    source = tmp_path / "src"
    source.mkdir()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for line in stages()["build"]:
        if line.startswith("COPY "):
            *names, target = line.split()[1:]
            for name in names:
                assert f"!{name.rstrip('/')}" in ignored
                to = source / target
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    if target.endswith("/"):
                        to.mkdir(exist_ok=True)
                    shutil.copy(ROOT / name, to)
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*wheel, "."], cwd=source, check=True)
    (made,) = tmp_path.glob("sfroute-*.whl")
    names = zipfile.ZipFile(made).namelist()
    assert "sfroute/_programs/serving.py" in names
    assert any(name.startswith("sfroute/lua_scripts/") for name in names)


def test_the_images_hold_compiled_modules_that_depend_on_the_sources_alone(tmp_path: Path) -> None:
    """The same layers, whenever they are built. No container can keep what it compiles."""
    built = "/opt/sfroute/lib"
    folder = tmp_path / "sfroute"
    shutil.copytree(ROOT / "sfroute", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for stage in ("build", "build-example"):
        compiling = stages()[stage][-1].rpartition(" && ")[2].split()
        assert (compiling[0], compiling[-1]) == ("/opt/sfroute/bin/python", built)
        command = [sys.executable, *compiling[1:-1], str(folder)]
        made: list[dict[Path, bytes]] = []
        for time in (10**9, 2 * 10**9):
            for file in folder.rglob("*.py"):
                os.utime(file, (time, time))
            subprocess.run(command, check=True)
            made.append({file: file.read_bytes() for file in folder.rglob("*.pyc")})
            for file in made[-1]:
                file.unlink()
        assert made[0] == made[1] != {}


def test_the_images_run_what_the_manifests_say() -> None:
    instructions = stages()
    assert 'ENTRYPOINT ["sfroute"]' in instructions["sfroute"]
    assert "COPY examples/gateway/*.py ./" in instructions["example"]
    for name in ("sfroute", "example"):
        assert "USER 65532:65532" in instructions[name]
    pods = {
        container["image"]
        for one in resources("base")
        if one["kind"] in {"Deployment", "StatefulSet"}
        for spec in [one["spec"]["template"]["spec"]]
        for container in [*spec.get("initContainers", []), *spec["containers"]]
    }
    built = set(re.findall(r"-t (\S+) \.", DOCKERFILE.read_text(encoding="utf-8")))
    assert built == {image for image in pods if "sfroute" in image}


def test_the_rule_of_the_adapter_makes_the_metric_that_the_autoscaler_asks_for() -> None:
    rules = yaml.safe_load(block(PAGE, "yaml", 0).text)["rules"]["external"]
    (autoscaler,) = (
        one
        for one in resources("overlays/production")
        if (one["kind"], one["metadata"]["name"]) == ("HorizontalPodAutoscaler", "chat")
    )
    (metric,) = autoscaler["spec"]["metrics"]
    asked = metric["external"]["metric"]
    (rule,) = rules
    assert rule["name"]["as"] == asked["name"]
    assert rule["seriesQuery"].startswith(asked["name"])
    assert metric["external"]["target"]["type"] == "AverageValue"


def test_the_commands_of_the_page_name_what_is_there() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    for found in re.findall(r"^\$ kubectl apply -k (\S+)", text, re.MULTILINE):
        assert (ROOT / found / "kustomization.yaml").is_file()
    for found in re.findall(r"^\$ docker build .*$", text, re.MULTILINE):
        arguments = shlex.split(found)
        assert (ROOT / arguments[arguments.index("-f") + 1]).is_file()
        assert arguments[arguments.index("--target") + 1] in stages()
