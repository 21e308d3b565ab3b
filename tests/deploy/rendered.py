"""What `kubectl kustomize` makes of deploy/."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
VARIANTS: Final = ("base", "overlays/production", "overlays/interchangeable")


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}: `make test-deploy` brings it")
    return found


@functools.cache
def text_of(variant: str) -> str:
    command = [program("kubectl"), "kustomize", str(DEPLOY / variant)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def resources(variant: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text_of(variant)))


def resource(variant: str, kind: str, name: str) -> dict[str, Any]:
    (found,) = (
        one for one in resources(variant) if (one["kind"], one["metadata"]["name"]) == (kind, name)
    )
    return found


def pod_specs(variant: str) -> dict[str, dict[str, Any]]:
    """Name -> the spec of the pods of each workload."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in resources(variant)
        if one["kind"] in {"Deployment", "StatefulSet"}
    }


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [*spec.get("initContainers", []), *spec["containers"]]
    return found


def environment(container: dict[str, Any]) -> dict[str, Any]:
    """Name -> value, or where it comes from."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}
