"""`jobs/kuberay/` against the CRDs of KubeRay, the rules that its operator adds, Ray's scheduler, and what the comments promise."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from next_ray import __version__
from next_ray.settings import load_config
from tests.clusters.demands import GPU_JOBS, LABELS, ROOT, launched
from tests.clusters.trim_crd import FILE

pytestmark = pytest.mark.ray
FOLDER = ROOT / "jobs" / "kuberay"
SCHEMA = json.loads(FILE.read_text())
DOCUMENTS = [document for path in sorted(FOLDER.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in DOCUMENTS if document["kind"] == kind]


JOB, CLUSTER = of_kind("RayJob")[0]["spec"], of_kind("RayCluster")[0]["spec"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}


def complaints(document: Any, schema: dict[str, Any]) -> list[str]:
    validator = Draft202012Validator({**schema, "$defs": SCHEMA["$defs"]})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def pod_template() -> dict[str, Any]:
    """The CRD's schema of a pod template, which is Kubernetes' own."""
    schema = SCHEMA["kinds"]["RayJob"]
    for name in ("spec", "submitterPodTemplate"):
        schema = schema["properties"][name]
        while "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "head", CLUSTER["headGroupSpec"]["template"]
    yield from ((name, group["template"]) for name, group in GROUPS.items())
    yield "submitter", JOB["submitterPodTemplate"]
    yield "redis", of_kind("StatefulSet")[0]["spec"]["template"]


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_the_crd_allows_it(kind: str) -> None:
    (document,) = of_kind(kind)
    assert not complaints(document, SCHEMA["kinds"][kind])


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (["spec", "authOptions", "mode"], "password", "'password' is not one of"),
        (["spec", "autoscalerOption"], {}, "autoscalerOption"),
        (["spec", "workerGroupSpecs", 0, "maxReplicas"], "8", "maxReplicas"),
        (["spec", "headGroupSpec", "template", "spec", "containers", 0, "image"], 3, "image"),
        (["spec", "workerGroupSpecs", 1, "template", "spec", "tolerations", 0, "operators"], "Exists", "operators"),
        (["spec", "gcsFaultToleranceOptions", "backend"], "etcd", "'etcd' is not one of"),
    ],
)
def test_the_crds_schema_would_find_a_mistake(path: list[Any], value: Any, complaint: str) -> None:
    document = copy.deepcopy(of_kind("RayCluster")[0])
    at = document
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    assert any(complaint in found for found in complaints(document, SCHEMA["kinds"]["RayCluster"]))


def test_redis_and_the_accounts_are_what_kubernetes_takes() -> None:
    (redis,) = of_kind("StatefulSet")
    template = redis["spec"]["template"]
    assert not complaints(template, pod_template())
    assert complaints({**template, "spec": {**template["spec"], "container": []}}, pod_template())
    labels = template["metadata"]["labels"]
    assert redis["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (service,) = of_kind("Service")
    assert service["spec"]["selector"].items() <= labels.items()
    assert CLUSTER["gcsFaultToleranceOptions"]["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    accounts = {account["metadata"]["name"] for account in of_kind("ServiceAccount")}
    assert accounts == {template["spec"]["serviceAccountName"] for name, template in pods() if name not in ("submitter", "redis")}
    (policy,) = of_kind("NetworkPolicy")
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    assert all(chosen <= template["metadata"]["labels"].items() for _, template in pods())


def test_the_job_and_the_standing_cluster_are_the_same_cluster() -> None:
    assert JOB["rayClusterSpec"] == CLUSTER


def test_kuberays_operator_would_accept_it() -> None:
    """What its `validation.go` asks beyond the schema, as far as it concerns these manifests."""
    assert version("ray") == CLUSTER["rayVersion"]
    assert CLUSTER["autoscalerOptions"]["version"] == "v2" and CLUSTER["enableInTreeAutoscaling"]
    for group in (CLUSTER["headGroupSpec"], *GROUPS.values()):
        assert "restartPolicy" not in group["template"]["spec"], "autoscaler v2 wants Never, and sets it"
        assert "labels" not in group["rayStartParams"]
        assert not (group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & group["rayStartParams"].keys())
        names = {variable["name"] for variable in group["template"]["spec"]["containers"][0]["env"]}
        assert not names & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "RAY_enable_autoscaler_v2", "RAY_AUTH_TOKEN"}
    for group in GROUPS.values():
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"], "from zero, and back"
    for document in DOCUMENTS:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", document["metadata"]["name"])
    assert JOB["shutdownAfterJobFinishes"], "else it cannot be suspended"


def test_no_pod_is_root_or_unbounded_and_no_secret_is_written_down() -> None:
    for name, template in pods():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0, name
        (container,) = spec["containers"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert name == "head" or not spec.get("automountServiceAccountToken", True)
        assert not re.search(r":latest$|^[^:@]+$", container["image"]), "a pinned image"
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "next-ray-token"}
    assert CLUSTER["gcsFaultToleranceOptions"]["redisPassword"].keys() == {"valueFrom"}
    assert not of_kind("Secret")


def test_engines_are_on_spot_and_the_rest_is_not() -> None:
    def terms(template: dict[str, Any]) -> list[dict[str, Any]]:
        return template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]

    for name, template in pods():
        if name in ("submitter", "redis"):
            continue
        operators = {expression["operator"] for term in terms(template) for expression in term["matchExpressions"]}
        assert operators == ({"In"} if name.startswith("engine") else {"NotIn", "DoesNotExist"})
        tolerated = {one["key"] for one in template["spec"].get("tolerations", [])}
        assert ("cloud.google.com/gke-spot" in tolerated) is name.startswith("engine")
        assert ("nvidia.com/gpu" in tolerated) is (name != "head")
    assert {name: group["labels"]["market"] for name, group in GROUPS.items()} == {
        "learner": "on-demand",
        "engine": "spot",
        "engine-tp": "spot",
    }


def test_rays_scheduler_finds_pods_for_every_gpu_job() -> None:
    kinds = {}
    for name, group in GROUPS.items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        resources = {"CPU": int(limits["cpu"]), "GPU": int(limits["nvidia.com/gpu"])}
        kinds[name] = {"resources": resources, "labels": group["labels"], "max_workers": group["maxReplicas"], "priority": 0}
    for path in GPU_JOBS:
        nodes, unplaced = launched(kinds, 20, load_config(str(path), LABELS))
        assert not unplaced and nodes["learner"] == 1, path.name


def test_the_entrypoint_is_a_valid_run_from_the_image() -> None:
    words = shlex.split(JOB["entrypoint"])
    assert words[:3] == ["python", "-m", "next_ray.run"] and words[3].startswith("--restarts=")
    job, *settings = words[4:]
    assert job.startswith("/opt/next_ray/jobs/")
    config = load_config(str(ROOT / job.removeprefix("/opt/next_ray/")), settings)
    assert (config.cluster.learner_labels, config.cluster.engine_labels) == ({"market": "on-demand"}, {"market": "spot"})
    assert config.cluster.device == "gpu", "from zero there is no GPU to be seen when the run starts"
    assert config.store.url.startswith("s3://") and config.run.output_dir.startswith("/")
    assert subprocess.list2cmdline(words) == " ".join(JOB["entrypoint"].split()), "as `ray job submit` hands it on"


def test_the_image_has_the_pinned_set_and_the_pods_have_the_image() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    assert f"FROM rayproject/ray:{version('ray')}-py311-gpu" in lines
    sources = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert sources and all((ROOT / source).exists() for source in sources)
    assert any("--no-deps -r /opt/next_ray/requirements/gpu.txt" in line for line in lines)
    images = {template["spec"]["containers"][0]["image"] for name, template in pods() if name != "redis"}
    assert images == {f"REPLACE/next-ray:{__version__}"}


def test_a_pod_that_is_deleted_drains_its_node_first() -> None:
    from ray.scripts.scripts import drain_node

    for group in GROUPS.values():
        spec = group["template"]["spec"]
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert subprocess.run(["bash", "-n", "-c", command[2]], check=False).returncode == 0
        words = shlex.split(command[2].partition(";")[0])
        assert words[:2] == ["ray", "drain-node"]
        parsed = drain_node.make_context("drain-node", words[2:])
        assert parsed.params["deadline_remaining_seconds"] < spec["terminationGracePeriodSeconds"]
