"""The kit of deploy/: by the schemas of Kubernetes, by the standards of its namespace, and by what the programs do."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import pytest

pytest.importorskip("kubernetes_validate", reason="the group `examples` is not installed")

import httpx
import kubernetes_validate  # type: ignore[import-untyped]
from deployment import free_port
from pod import NOTICE_SECONDS

from deploy.rendered import (
    DEPLOY,
    ROOT,
    VARIANTS,
    containers,
    environment,
    pod_specs,
    resource,
    resources,
    text_of,
)
from sfroute import AsyncRouter
from sfroute.embedded import LocalCluster

EXAMPLE = ROOT / "examples" / "gateway"
VERSIONS = ("1.30", "1.37")
OPEN_REQUESTS_SECONDS = 5
STORE_DEADLINE_SECONDS = 5

variants = pytest.mark.parametrize("variant", VARIANTS)


def chat(variant: str = "base") -> dict[str, Any]:
    (found,) = pod_specs(variant)["chat"]["containers"]
    assert isinstance(found, dict)
    return found


@variants
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(version: str, variant: str) -> None:
    found = resources(variant)
    for one in found:
        assert kubernetes_validate.validate(one, version, strict=True) == version
    assert len(found) >= 14


@variants
def test_everything_is_in_the_namespace_and_labelled(variant: str) -> None:
    """Those that components add, too: an autoscaler elsewhere would find nothing to scale."""
    for one in resources(variant):
        metadata = one["metadata"]
        if one["kind"] != "Namespace":
            assert metadata["namespace"] == "sfroute-example", (one["kind"], metadata["name"])
        assert metadata["labels"]["app.kubernetes.io/part-of"] == "sfroute-example"


def test_the_checker_would_tell_of_a_mistake() -> None:
    wrong = resource("base", "StatefulSet", "chat")
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 40
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


# --- what the namespace, and others, let through

RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("persistentVolumeClaim", "projected", "secret"),
}
"""https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""


@variants
def test_a_namespace_that_enforces_restricted_takes_the_pods(variant: str) -> None:
    (namespace,) = (one for one in resources(variant) if one["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    specs = pod_specs(variant)
    assert set(specs) == {"chat", "gateway"}
    for spec in specs.values():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for volume in spec.get("volumes", ()):
            assert len(volume.keys() & RESTRICTED_VOLUMES) == 1
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] != 0
        assert pod["seccompProfile"]["type"] == "RuntimeDefault"
        for container in containers(spec):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context.keys() <= {
                *("allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem"),
            }
            assert not any("hostPort" in port for port in container.get("ports", ()))


@variants
def test_only_gateways_reach_the_pods(variant: str) -> None:
    policies = [one["spec"] for one in resources(variant) if one["kind"] == "NetworkPolicy"]
    everything = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert everything in policies  # and so nothing but what the others name
    labels = {"app": "chat"}
    of_chat = [
        rule
        for policy in policies
        if policy["podSelector"].get("matchLabels") == labels
        for rule in policy.get("ingress", ())
    ]
    assert [rule["from"] for rule in of_chat] == [
        [{"podSelector": {"matchLabels": {"app": "gateway"}}}]
    ]
    assert all("ingress" not in p for p in policies if "matchExpressions" in p["podSelector"])


@variants
def test_ports_and_selectors_that_are_named_are_there(variant: str) -> None:
    of_app = {
        one["spec"]["template"]["metadata"]["labels"]["app"]: one["spec"]
        for one in resources(variant)
        if one["kind"] in {"Deployment", "StatefulSet"}
    }
    ports = {
        app: {
            port["name"]
            for container in containers(spec["template"]["spec"])
            for port in container.get("ports", ())
        }
        for app, spec in of_app.items()
    }
    assert ports == {"chat": {"http"}, "gateway": {"http", "told"}}
    for one in resources(variant):
        spec = one.get("spec", {})
        if one["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
            assert spec["selector"]["matchLabels"]["app"] in of_app
        elif one["kind"] == "Service":
            assert spec["selector"]["app"] in of_app
        elif one["kind"] == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            scaled = resource(variant, target["kind"], target["name"])["spec"]
            assert "replicas" not in scaled  # the autoscaler has the say


def test_secrets_are_only_referred_to() -> None:
    for variant in VARIANTS:
        assert "Secret" not in {one["kind"] for one in resources(variant)}
        for spec in pod_specs(variant).values():
            for container in containers(spec):
                if "env" in container and "SFROUTE_NAMESPACE" in environment(container):
                    assert "secretKeyRef" in environment(container)["SFROUTE_URL"]
    assert "://" not in text_of("base").replace("http://127.0.0.1:8080/drain", "")


def test_with_tls_the_authority_is_where_the_comment_says() -> None:
    component = (DEPLOY / "components" / "tls" / "kustomization.yaml").read_text(encoding="utf-8")
    mounted = [
        f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"
        for spec in pod_specs("overlays/production").values()
        for container in containers(spec)
        for mount in container.get("volumeMounts", ())
        for volume in spec["volumes"]
        if volume["name"] == mount["name"] == "store-ca"
    ]
    assert len(mounted) == 2
    assert all(f"?ssl_ca_certs={path}" in component for path in mounted)


# --- the pods


@variants
def test_the_grace_period_holds_the_whole_end_of_a_pod(variant: str) -> None:
    drain = float(environment(chat(variant))["DRAIN_SECONDS"])
    assert pod_specs(variant)["chat"]["terminationGracePeriodSeconds"] >= (
        drain + NOTICE_SECONDS + OPEN_REQUESTS_SECONDS + STORE_DEADLINE_SECONDS
    )


def test_the_pods_say_where_they_are() -> None:
    told = environment(chat())
    assert told["POD_IP"]["fieldRef"]["fieldPath"] == "status.podIP"
    assert told["PORT"] == str(chat()["ports"][0]["containerPort"])
    assert told["HOST"] == "0.0.0.0"


def test_interchangeable_pods_take_ids_and_have_no_ordinals() -> None:
    found = resource("overlays/interchangeable", "Deployment", "chat")
    assert not {"serviceName", "podManagementPolicy"} & found["spec"].keys()
    assert environment(chat("overlays/interchangeable"))["POD"] == "auto"
    assert "POD" not in environment(chat())
    kinds = [one["kind"] for one in resources("overlays/interchangeable")]
    assert "StatefulSet" not in kinds


async def until_there(router: AsyncRouter, namespace: str, service: str) -> int:
    async for change in router.watch(namespace, service):
        assert change.kind == "joined"
        return change.pod.id
    raise AssertionError


@variants
async def test_the_hook_drains_a_pod_that_then_ends_at_once(
    sfroute_cluster: LocalCluster, sfroute_namespace: str, variant: str
) -> None:
    manifest = chat(variant)
    *_, program = manifest["lifecycle"]["preStop"]["exec"]["command"]
    port = free_port()
    address = f"http://127.0.0.1:{manifest['ports'][0]['containerPort']}"
    assert address in program
    given = {name: value for name, value in environment(manifest).items() if isinstance(value, str)}
    host, at = sfroute_cluster.startup_nodes[0]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLE / manifest["command"][1]),
        env={
            **os.environ,
            **given,
            "HOST": "127.0.0.1",
            "SFROUTE_URL": sfroute_cluster.url,
            "SFROUTE_NAMESPACE": sfroute_namespace,
            "DATABASE": f"redis://{host}:{at}",
            "POD_NAME": "chat-2" if variant != "overlays/interchangeable" else "chat-7c9f-x8k2p",
            "PORT": str(port),
            "DRAIN_SECONDS": "10",
        },
    )
    try:
        async with (
            AsyncRouter.from_url(sfroute_cluster.url) as router,
            httpx.AsyncClient(
                trust_env=False, base_url=f"http://127.0.0.1:{port}", timeout=20
            ) as http,
        ):
            joined = await until_there(router, sfroute_namespace, "chat")
            assert joined == (0 if variant == "overlays/interchangeable" else 2)
            probe = manifest["readinessProbe"]["httpGet"]["path"]
            assert (await http.get(probe)).json()["status"] == "Running"
            counted = await http.post("/count", headers={"x-sfroute-uid": sfroute_namespace})
            assert counted.json()["count"] == 1
            gone = await http.delete("/count", headers={"x-sfroute-uid": sfroute_namespace})
            assert gone.status_code == 204
            # No user can do it: what comes through a gateway has a uid.
            refused = await http.post("/drain", headers={"x-sfroute-uid": "ada"})
            assert refused.status_code == 404
            hook = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program.replace(address, str(http.base_url).rstrip("/"))
            )
            assert await hook.wait() == 0
            assert (await http.get(probe)).json()["status"] == "Draining"
        process.terminate()
        # It has drained already: what is left is the second in which gateways notice.
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# --- the gateways


def test_the_sidecar_is_asked_by_its_proxy_alone() -> None:
    spec = pod_specs("base")["gateway"]
    (sidecar,), (caddy,) = spec["initContainers"], spec["containers"]
    assert sidecar["restartPolicy"] == "Always"
    (listen,) = (one for one in sidecar["args"] if one.startswith("--listen="))
    path = listen.removeprefix("--listen=unix:")
    assert f"unix/{path}" in (DEPLOY / "base" / "Caddyfile").read_text(encoding="utf-8")
    for container in (sidecar, caddy):
        (mount,) = (one for one in container["volumeMounts"] if one["name"] == "socket")
        assert path.startswith(f"{mount['mountPath']}/")


def test_the_copy_of_the_proxy_is_not_where_its_folder_must_be() -> None:
    (caddy,) = pod_specs("base")["gateway"]["containers"]
    copied, started = caddy["command"][-1].split(" && exec ")
    copy = copied.split()[-1]
    assert started.split()[0] == copy
    folders = {f"{home}/caddy" for name, home in environment(caddy).items() if "XDG" in name}
    assert folders == {"/tmp/caddy"}
    assert copy not in folders


def test_the_grace_period_of_a_gateway_holds_its_hook_and_open_requests() -> None:
    spec = pod_specs("base")["gateway"]
    (caddy,) = spec["containers"]
    hook = caddy["lifecycle"]["preStop"]["sleep"]["seconds"]
    (grace,) = (
        int(line.split()[1].removesuffix("s"))
        for line in (DEPLOY / "base" / "Caddyfile").read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("grace_period")
    )
    assert spec["terminationGracePeriodSeconds"] >= hook + grace + 10  # `sfroute serve --grace`
