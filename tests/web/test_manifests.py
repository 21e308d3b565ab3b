"""The Kubernetes manifests of the example: by the schemas of Kubernetes, and by what the programs do."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes_validate", reason="the group `examples` is not installed")

import httpx
import kubernetes_validate  # type: ignore[import-untyped]
from deployment import free_port
from pod import NOTICE_SECONDS

from sfroute import AsyncRouter
from sfroute.embedded import LocalCluster

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "gateway"
FILES = sorted((EXAMPLE / "kubernetes").glob("*.yaml"))
VERSIONS = ("1.30", "1.37")
OPEN_REQUESTS_SECONDS = 5
STORE_DEADLINE_SECONDS = 5


def resources() -> list[dict[str, Any]]:
    return [
        one for file in FILES for one in kubernetes_validate.utils.resources_from_file(str(file))
    ]


def resource(kind: str, name: str) -> dict[str, Any]:
    (found,) = (
        one for one in resources() if (one["kind"], one["metadata"]["name"]) == (kind, name)
    )
    return found


def container(kind: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = resource(kind, name)["spec"]["template"]["spec"]["containers"][0]
    return spec


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(version: str) -> None:
    checked = {
        one["kind"]: kubernetes_validate.validate(one, version, strict=True) for one in resources()
    }
    assert set(checked) == {"Deployment", "PodDisruptionBudget", "Service", "StatefulSet"}
    assert set(checked.values()) == {version}


def test_the_checker_would_tell_of_a_mistake() -> None:
    wrong = resource("StatefulSet", "chat")
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 40
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_grace_period_holds_the_whole_end_of_a_pod() -> None:
    environment = {one["name"]: one.get("value") for one in container("StatefulSet", "chat")["env"]}
    spec = resource("StatefulSet", "chat")["spec"]["template"]["spec"]
    drain = float(environment["DRAIN_SECONDS"])
    assert spec["terminationGracePeriodSeconds"] >= (
        drain + NOTICE_SECONDS + OPEN_REQUESTS_SECONDS + STORE_DEADLINE_SECONDS
    )


def test_the_pods_are_where_the_gateway_looks_for_them() -> None:
    service = resource("Service", "chat")["spec"]
    pods = resource("StatefulSet", "chat")
    assert service["clusterIP"] == "None"
    assert pods["spec"]["serviceName"] == "chat"
    environment = {
        one["name"]: one.get("value") for one in container("Deployment", "gateway")["env"]
    }
    address = environment["POD_ADDRESS"].format(
        service=environment["SFROUTE_SERVICE"], namespace="production", pod=2
    )
    port = service["ports"][0]["port"]
    assert address == f"http://{pods['metadata']['name']}-2.chat.production.svc:{port}"


async def test_the_hook_drains_a_pod_that_then_ends_at_once(
    sfroute_cluster: LocalCluster, sfroute_namespace: str
) -> None:
    manifest = container("StatefulSet", "chat")
    *_, program = manifest["lifecycle"]["preStop"]["exec"]["command"]
    port = free_port()
    address = f"http://127.0.0.1:{manifest['ports'][0]['containerPort']}"
    assert address in program
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLE / manifest["command"][1]),
        env={
            **os.environ,
            "SFROUTE_URL": sfroute_cluster.url,
            "SFROUTE_NAMESPACE": sfroute_namespace,
            "POD_NAME": "chat-2",
            "PORT": str(port),
            "DRAIN_SECONDS": "10",
        },
    )
    try:
        async with (
            AsyncRouter.from_url(sfroute_cluster.url) as router,
            httpx.AsyncClient(trust_env=False, base_url=f"http://127.0.0.1:{port}") as http,
        ):
            async for change in router.watch(sfroute_namespace, "chat"):
                assert (change.kind, change.pod.id) == ("joined", 2)
                break
            # No user can do it: what comes through a gateway has a uid.
            refused = await http.post("/drain", headers={"x-sfroute-uid": "ada"})
            assert refused.status_code == 404
            hook = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program.replace(address, str(http.base_url).rstrip("/"))
            )
            assert await hook.wait() == 0
            assert (await http.get("/healthz")).json()["status"] == "Draining"
        process.terminate()
        # It has drained already: what is left is the second in which gateways notice.
        async with asyncio.timeout(5):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_what_the_containers_run_is_there() -> None:
    assert (EXAMPLE / container("StatefulSet", "chat")["command"][1]).is_file()
    command = shlex.join(container("Deployment", "gateway")["command"])
    module, _, factory = command.split("--factory ")[1].split()[0].partition(":")
    assert f"def {factory}(" in (EXAMPLE / f"{module}.py").read_text(encoding="utf-8")
