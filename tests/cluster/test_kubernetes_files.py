"""The files for Kubernetes: what KubeRay's schema and its operator's rules say of them, and their references."""

import copy
import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from job_lines import ROOT, parsed

import raypurify

KUBERAY = ROOT / "cluster/kuberay"
SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text())
KUSTOMIZATIONS = sorted(KUBERAY.rglob("kustomization.yaml"))
BUILT = ["base", "overlays/small", "overlays/large", *(f"jobs/{path.name}" for path in (KUBERAY / "jobs").iterdir())]
KUBECTL = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has Kustomize, is not here")


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@functools.cache
def built(folder: str) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(KUBERAY / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr  # of deprecated fields
    return list(yaml.safe_load_all(done.stdout))


def rays(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [document for document in found if document.get("apiVersion") == "ray.io/v1"]


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def groups(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield spec["headGroupSpec"]
    yield from spec["workerGroupSpecs"]


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in groups(cluster_spec(document)):
        yield group["template"]["spec"]
    if document["kind"] == "RayJob":
        yield document["spec"]["submitterPodTemplate"]["spec"]


def check_operator_rules(document: dict[str, Any]) -> None:
    """What KubeRay's operator refuses beyond its schema (ray-operator/controllers/ray/utils/validation.go)."""
    spec = cluster_spec(document)
    scales = spec.get("enableInTreeAutoscaling", False)
    second = spec.get("autoscalerOptions", {}).get("version") == "v2"
    version = tuple(int(part) for part in spec["rayVersion"].split("."))
    assert spec["authOptions"]["mode"] == "token"
    assert version >= (2, 52, 0)
    for group in groups(spec):
        parameters = group.get("rayStartParams", {})
        assert "labels" not in parameters
        assert not (group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters))
        if scales and second:
            assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert second or ("idleTimeoutSeconds" not in group and not group.get("priority"))
        assert not group.get("priority") or version >= (2, 56, 0)
    if spec.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb":
        assert version >= (2, 57, 0)
        assert not {"redisAddress", "redisUsername", "redisPassword"} & set(spec["gcsFaultToleranceOptions"])
    if document["kind"] == "RayJob":
        job = document["spec"]
        assert not (job.get("backoffLimit") and "clusterSelector" in job)
        assert not (job.get("ttlSecondsAfterFinished") and not job.get("shutdownAfterJobFinishes"))


def shape(group: dict[str, Any]) -> dict[str, float]:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: str(path.parent.relative_to(KUBERAY)))
def test_what_a_kustomization_refers_to_is_there(path: Path) -> None:
    (kustomization,) = documents(path)
    assert kustomization["kind"] in ("Kustomization", "Component")
    for name in (*kustomization.get("resources", ()), *kustomization.get("components", ())):
        target = (path.parent / name).resolve()
        assert target.is_file() or (target / "kustomization.yaml").is_file(), name
    for patch in kustomization.get("patches", ()):
        assert yaml.safe_load(patch["patch"])


def test_every_file_is_reached_by_a_kustomization() -> None:
    reached = {KUBERAY / "operator-values.yaml", *KUSTOMIZATIONS}
    for path in KUSTOMIZATIONS:
        reached |= {(path.parent / name).resolve() for name in documents(path)[0].get("resources", ())}
    assert set(KUBERAY.rglob("*.yaml")) <= reached


def test_the_files_follow_kuberays_schema_before_they_are_built() -> None:
    found = [document for path in KUBERAY.rglob("*.yaml") for document in rays(documents(path))]
    assert {document["kind"] for document in found} == {"RayCluster", "RayJob"}
    for document in found:
        jsonschema.validate(document, SCHEMA)
        if document["kind"] == "RayCluster":
            check_operator_rules(document)


def test_the_schema_refuses_what_is_misspelt() -> None:
    (cluster,) = documents(KUBERAY / "base/raycluster.yaml")
    wrong = copy.deepcopy(cluster)
    wrong["spec"]["workerGroupSpecs"][0]["idleTimeoutSecond"] = 60
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)
    wrong = copy.deepcopy(cluster)
    wrong["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


@KUBECTL
@pytest.mark.parametrize("folder", BUILT)
def test_what_is_built_follows_kuberays_schema_and_rules(folder: str) -> None:
    (document,) = rays(built(folder))
    assert document["kind"] == ("RayJob" if folder.startswith("jobs/") else "RayCluster")
    jsonschema.validate(document, SCHEMA)
    check_operator_rules(document)


@KUBECTL
@pytest.mark.parametrize("folder", BUILT)
def test_what_is_built_is_what_a_platform_accepts(folder: str) -> None:
    found = built(folder)
    (document,) = rays(found)
    spec = cluster_spec(document)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    if spec["enableInTreeAutoscaling"]:
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert all(group["idleTimeoutSeconds"] and group["minReplicas"] == 0 for group in spec["workerGroupSpecs"])
    accounts = {account["metadata"]["name"] for account in found if account["kind"] == "ServiceAccount"}
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert pod.get("serviceAccountName", "raypurify-head") in accounts
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert container["name"] == "ray-job-submitter" or limits == requests  # Ray counts on all that it is told of
        for variable in container.get("env", ()):
            assert "KEY" not in variable["name"]
            assert "TOKEN" not in variable["name"]


@KUBECTL
@pytest.mark.parametrize("folder", BUILT)
def test_images_have_this_projects_version_and_cuda_where_there_is_a_gpu(folder: str) -> None:
    (document,) = rays(built(folder))
    for pod in pods(document):
        (container,) = pod["containers"]
        kind = "cuda" if "nvidia.com/gpu" in container["resources"]["limits"] else "cpu"
        assert container["image"].endswith(f"/raypurify:{raypurify.__version__}-{kind}")


@KUBECTL
@pytest.mark.parametrize("folder", [folder for folder in BUILT if folder.startswith("jobs/")])
def test_a_job_has_room_on_its_cluster_and_an_end(folder: str) -> None:
    (document,) = rays(built(folder))
    job = document["spec"]
    arguments = parsed(job["entrypoint"])
    workers = [group for group in job["rayClusterSpec"]["workerGroupSpecs"] for _ in range(group["maxReplicas"])]
    needs = arguments.resources.needs
    assert needs.check([shape(group) for group in workers], grows=False) is None
    assert job["shutdownAfterJobFinishes"]
    assert min(job["ttlSecondsAfterFinished"], job["backoffLimit"], job["activeDeadlineSeconds"]) > 0
    assert job["submissionMode"] == "K8sJobMode"


@KUBECTL
def test_a_queued_job_is_of_a_fixed_size_and_has_room_in_its_queue() -> None:
    (document,) = rays(built("jobs/evaluate-in-queue"))
    queues = {document["kind"]: document for document in built("queues")}
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queues["LocalQueue"]["metadata"]["name"]
    assert queues["LocalQueue"]["spec"]["clusterQueue"] == queues["ClusterQueue"]["metadata"]["name"]
    (resources,) = queues["ClusterQueue"]["spec"]["resourceGroups"]
    (flavor,) = resources["flavors"]
    assert flavor["name"] == queues["ResourceFlavor"]["metadata"]["name"]
    quotas = {quota["name"]: quota["nominalQuota"] for quota in flavor["resources"]}
    assert list(quotas) == resources["coveredResources"]
    spec = cluster_spec(document)
    assert not spec["enableInTreeAutoscaling"]
    workers = spec["workerGroupSpecs"]
    assert all(group["minReplicas"] == group["replicas"] == group["maxReplicas"] for group in workers)
    asked = [shape(group) for group in workers for _ in range(group["replicas"])] + [shape(spec["headGroupSpec"])]
    assert sum(each["CPU"] for each in asked) <= quotas["cpu"]
    assert sum(each["GPU"] for each in asked) <= quotas["nvidia.com/gpu"]
    covered = {name for pod in pods(document) for name in pod["containers"][0]["resources"]["requests"]}
    assert covered <= set(quotas)
