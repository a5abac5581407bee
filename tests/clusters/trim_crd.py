"""`python -m tests.clusters.trim_crd CRD.yaml ...` writes kuberay.json: what KubeRay's CRDs allow, as JSON Schema.

The files are `ray-operator/config/crd/bases/ray.io_rayclusters.yaml` and `ray.io_rayjobs.yaml` of ray-project/kuberay. Descriptions
go, parts that occur several times are kept once, and unknown keys are refused, as `kubectl` does by default.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("kuberay.json")
ORIGIN = "ray-project/kuberay, ray-operator/config/crd/bases, version v1 of each kind, commit feeaf72f of 2026-08-19; made by trim_crd.py"
LICENCE = "Apache-2.0, copyright the KubeRay authors"
KEPT = {"type", "required", "enum", "pattern", "maxLength", "minLength", "maximum", "minimum", "maxItems", "minItems"}
WORTH_SHARING = 300


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An OpenAPI schema of a CRD as JSON Schema without descriptions, closed where the CRD is."""
    found = {key: value for key, value in schema.items() if key in KEPT}
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "items" in schema:
        found["items"] = strict(schema["items"])
    if "properties" in schema:
        found["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), Mapping):
        found["additionalProperties"] = strict(schema["additionalProperties"])
    return found


def key(schema: Any) -> str:
    return json.dumps(schema, sort_keys=True)


def parts(schema: Any) -> list[Any]:
    """A schema and all schemas in it."""
    inner = [schema.get("items"), schema.get("additionalProperties"), *schema.get("properties", {}).values()]
    return [schema, *(part for one in inner if isinstance(one, dict) for part in parts(one))]


def share(schema: Any, often: set[str], names: dict[str, str], shared: dict[str, Any]) -> Any:
    """The schema with references to `shared` for what occurs often."""
    text = key(schema)
    if text in names:
        return {"$ref": f"#/$defs/{names[text]}"}
    found = dict(schema)
    for where in ("items", "additionalProperties"):
        if isinstance(found.get(where), dict):
            found[where] = share(found[where], often, names, shared)
    if "properties" in found:
        found["properties"] = {name: share(part, often, names, shared) for name, part in found["properties"].items()}
    if text not in often:
        return found
    names[text] = f"part{len(names)}"
    shared[names[text]] = found
    return {"$ref": f"#/$defs/{names[text]}"}


def main(paths: Sequence[str]) -> None:
    kinds = {}
    for path in paths:
        definition = yaml.load(Path(path).read_text(), Loader=yaml.CSafeLoader)
        (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
        kinds[definition["spec"]["names"]["kind"]] = strict(version["schema"]["openAPIV3Schema"])
    counts = Counter(key(part) for schema in kinds.values() for part in parts(schema))
    often = {text for text, count in counts.items() if count > 1 and len(text) > WORTH_SHARING}
    shared: dict[str, Any] = {}
    names: dict[str, str] = {}
    kinds = {kind: share(schema, often, names, shared) for kind, schema in kinds.items()}
    head = f'"origin": {json.dumps(ORIGIN)},\n"licence": {json.dumps(LICENCE)},\n'
    lines = [f"{json.dumps(name)}: {json.dumps(schema)}" for name, schema in shared.items()]
    bodies = [f"{json.dumps(kind)}: {json.dumps(schema)}" for kind, schema in kinds.items()]
    FILE.write_text("{\n" + head + '"$defs": {\n' + ",\n".join(lines) + '\n},\n"kinds": {\n' + ",\n".join(bodies) + "\n}\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
