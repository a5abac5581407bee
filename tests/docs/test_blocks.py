"""YAML of the documents is a configuration that loads, Python compiles and imports what exists, JSON is JSON."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest
import yaml

from next_ray.config import Config
from next_ray.config.warmstart import WarmstartConfig
from next_ray.errors import ConfigError
from next_ray.settings import load_as
from tests.docs.blocks import DOCUMENTS, ROOT, Block, blocks

BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]
FOREIGN = {
    "apiVersion": "an object of Kubernetes; tests/test_cluster.py validates jobs/kuberay",
    "cluster_name": "Ray's cluster launcher; tests/test_cluster.py validates cluster.yaml",
    "available_node_types": "Ray's cluster launcher; tests/test_cluster.py validates cluster.yaml",
    "scrape_configs": "Prometheus's own settings",
    "groups": "Prometheus's rules",
}
"""Top-level keys of YAML that is somebody else's configuration, and who checks it."""


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def check_yaml(text: str, folder: Path) -> None:
    tree = yaml.safe_load(text)
    assert isinstance(tree, dict), "not a mapping: label the block `text` if it is no configuration"
    if set(tree) & set(FOREIGN):
        return
    schema = WarmstartConfig if {"output", "training"} & set(tree) else Config
    job = folder / "job.yaml"
    job.write_text(text)
    load_as(schema, str(job))


@pytest.mark.parametrize("block", of("yaml", "yml"), ids=lambda block: block.place)
def test_yaml_is_a_configuration(block: Block, tmp_path: Path) -> None:
    check_yaml(block.text, tmp_path)


def test_wrong_yaml_is_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nmae"):
        check_yaml("run:\n  nmae: x\n", tmp_path)


@pytest.mark.parametrize("block", of("python", "py"), ids=lambda block: block.place)
def test_python_compiles_and_imports_what_exists(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "next_ray":
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("block", of("json"), ids=lambda block: block.place)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


def test_blocks_are_found_at_all() -> None:
    assert len(of("yaml", "yml")) >= 3 and len(of("python", "py")) >= 3
    assert {block.path for block in BLOCKS} >= {ROOT / "README.md", ROOT / "docs" / "data.md"}
