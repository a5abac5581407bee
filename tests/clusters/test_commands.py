"""The commands of jobs/README.md and docs/clusters.md are commands: Ray's parser takes them, files and settings exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from typing import Any

import pytest

from next_ray.settings import load_config
from tests.clusters.demands import ROOT

pytestmark = pytest.mark.ray
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "jobs" / "README.md", ROOT / "docs" / "clusters.md"]


def commands(program: str) -> list[list[str]]:
    """Every command of a program in fenced blocks and inline code, as words; assignments before it are left out."""
    found = []
    for page in PAGES:
        text = page.read_text()
        lines = [line for lang, block in FENCED.findall(text) if not lang for line in block.splitlines()]
        spoken = [code for code in re.findall(r"`([^`]+)`", FENCED.sub("", text)) if re.search("[./=]", code)]  # else a mention
        for line in [*lines, *spoken]:
            for part in line.split(" && "):
                words = part.split("$(")[0] if program == "kubectl" else part
                try:
                    split = shlex.split(words)
                except ValueError:
                    continue
                while split and re.fullmatch(r"[A-Z_]+=.*", split[0]):
                    split = split[1:]
                if split[:1] == [program]:
                    found.append(split[1:])
    return found


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The name and parameters of a Ray command; a usage error where Ray would report one."""
    from ray.scripts.scripts import cli

    command: Any = cli
    names = []
    while hasattr(command, "commands") and words:
        name, *words = words
        names.append(name)
        command = command.commands[name]
    return " ".join(names), command.make_context(names[-1], list(words)).params


def test_rays_commands_parse() -> None:
    found = [parsed(words) for words in commands("ray")]
    names = [name for name, _ in found]
    assert {"job submit", "job status", "job logs", "job list", "job stop", "up", "down", "start", "drain-node"} <= set(names)
    for name, parameters in found:
        if name in ("up", "down", "dashboard"):
            assert (ROOT / parameters["cluster_config_file"]).exists()
    with pytest.raises(Exception, match="No such option"):
        parsed(["job", "stop", "--gracefully", "x"])


def test_what_is_submitted_is_a_valid_run_and_arrives_unchanged() -> None:
    submitted = [parameters["entrypoint"] for name, parameters in map(parsed, commands("ray")) if name == "job submit"]
    assert submitted
    for words in submitted:
        arrived = shlex.split(subprocess.list2cmdline(words))  # how `ray job submit` sends it, and how the shell of the job reads it
        assert arrived == list(words)
        assert arrived[:3] == ["python", "-m", "next_ray.run"]
        job, *settings = [word for word in arrived[3:] if not word.startswith("--")]
        config = load_config(str(ROOT / job), settings)
        assert config.cluster.device == "gpu" and config.cluster.learner_labels and config.rollout.min_engines


def test_kubectls_commands_name_what_there_is() -> None:
    found = commands("kubectl")
    assert {words[0] for words in found} >= {"apply", "get", "logs", "patch", "delete", "create", "port-forward"}
    manifests = "".join(path.read_text() for path in (ROOT / "jobs" / "kuberay").glob("*.yaml"))
    for words in found:
        files = [after for before, after in pairwise(words) if before == "-f"]
        assert all((ROOT / file).is_file() for file in files)
        if words[0] in ("get", "patch", "delete"):
            assert f"name: {words[2]}" in manifests
        if words[:2] == ["create", "secret"]:
            assert words[3] in manifests and words[4].removeprefix("--from-literal=").split("=")[0] in ("auth_token", "password")
        for word in words:
            if word.startswith("--patch="):
                assert json.loads(word.removeprefix("--patch="))["spec"].keys() == {"suspend"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_knows_the_flags() -> None:
    for words in commands("kubectl"):
        verb = words[:3] if words[0] == "create" else words[:1]
        usage = subprocess.run(["kubectl", *verb, "--help"], capture_output=True, text=True, check=True).stdout
        for word in words:
            if word.startswith("--"):
                assert f"{word.partition('=')[0]}=" in usage, (verb, word)


def test_the_roles_are_json_and_cover_what_the_store_and_the_autoscaler_do() -> None:
    text = (ROOT / "docs" / "clusters.md").read_text()
    worker, head = (json.loads(block) for lang, block in FENCED.findall(text) if lang == "json")
    actions = {action for statement in worker["Statement"] for action in statement["Action"]}
    assert {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:AbortMultipartUpload"} <= actions
    starting, ending, passing = head["Statement"]
    assert {"ec2:RunInstances", "ec2:CreateTags"} <= set(starting["Action"]) and "ec2:TerminateInstances" in ending["Action"]
    from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

    assert list(ending["Condition"]["StringEquals"]) == [f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}"]
    assert passing["Resource"].endswith("role/next-ray-worker"), "and no other role"
