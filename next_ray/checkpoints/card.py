"""What an exported folder says about itself: the lineage record and the model card made from it. Neither holds a secret or a time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from next_ray import __version__

FORMAT = 1
LIBRARIES = ("torch", "peft", "numpy", "safetensors")


@dataclass(frozen=True)
class Parent:
    """One checkpoint that the result was made from; `sha256` by file name."""

    step: int
    path: str
    format: str
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lineage:
    """Where a result comes from: parents and base, method with settings, alpha, horizon (checkpoints), seed, and the evidence for it."""

    base_name: str
    parents: Sequence[Parent]
    method: str
    alpha: float
    horizon: int
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, str] = field(default_factory=dict)
    base_fingerprint: str | None = None


def lineage_record(lineage: Lineage, facts: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """`next_ray_lineage.json` as a JSON object."""
    return {
        "format": FORMAT,
        "base": {"name": clean(lineage.base_name), "fingerprint": lineage.base_fingerprint},
        "parents": [{"step": p.step, "path": clean(p.path), "format": p.format, "sha256": dict(p.sha256)} for p in lineage.parents],
        "method": {"name": lineage.method, "settings": {key: _plain(value) for key, value in lineage.settings.items()}},
        "alpha": lineage.alpha,
        "horizon": lineage.horizon,
        "seed": lineage.seed,
        "evidence": {key: clean(str(value)) for key, value in lineage.evidence.items()},
        "result": dict(facts),
        "versions": {"next_ray": __version__, **{name: _version(name) for name in LIBRARIES}},
        "files": dict(sorted(files.items())),
    }


def clean(text: str) -> str:
    """A path or URL without what must not leave the machine: credentials, query and fragment of a URL, the user's home."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text):
        parts = urlsplit(text)
        text = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=/|$)", "~", text) if len(home) > 1 else text


def model_card(record: Mapping[str, Any]) -> str:
    """README.md with Hugging Face front matter."""
    result, method = record["result"], record["method"]
    adapter = result["kind"] == "adapter"
    first, last = record["parents"][0], record["parents"][-1]
    return "\n".join(
        [
            *_front_matter(record, adapter),
            f"# {method['name']}@{record['alpha']:g}",
            "",
            f"Not trained: extrapolated by `{method['name']}` (alpha {record['alpha']:g}, horizon {record['horizon']} checkpoint(s)) from "
            f"{len(record['parents'])} checkpoint(s), steps {first['step']} to {last['step']}, of `{record['base']['name']}`. "
            "It may be better or worse than the last of them; evaluate it beside that one.",
            "",
            "## What is here",
            *(_adapter_facts(result) if adapter else _merged_facts(result)),
            "",
            "## How it was made",
            f"- settings: `{json.dumps(method['settings'], sort_keys=True)}`, seed {record['seed']}",
            "- versions: " + ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
            *[f"- {key}: {value}" for key, value in record["evidence"].items()],
            "",
            "## Parents",
            *[f"- step {p['step']}: `{p['path']}` ({p['format']})" for p in record["parents"]],
            "",
            "Hashes of the parents and of the files here are in `next_ray_lineage.json`.",
            "",
        ]
    )


def _front_matter(record: Mapping[str, Any], adapter: bool) -> list[str]:
    tags = ["next_ray", "extrapolation", record["method"]["name"], *(["lora"] if adapter else [])]
    return [
        "---",
        f"base_model: {json.dumps(record['base']['name'])}",
        f"base_model_relation: {'adapter' if adapter else 'finetune'}",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags:",
        *[f"- {json.dumps(tag)}" for tag in tags],
        "---",
    ]


def _adapter_facts(result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- a LoRA adapter of rank {result['rank']} and scale {result['scale']:g} on {result['modules']} modules "
        f"({result['moved_modules']} of them extrapolated), {result['dtype']}",
        "- " + _losses(result),
        "- PEFT: `PeftModel.from_pretrained(base, folder)`",
    ]
    if result["modules_to_save"]:
        return [
            *lines,
            f"- with whole modules from the last checkpoint ({', '.join(result['modules_to_save'])}), which vLLM does not serve: "
            "merge (`--merge`) for vLLM",
        ]
    needed = result["vllm_max_lora_rank"]
    return [
        *lines,
        f"- vLLM: `LLM(base, enable_lora=True, max_lora_rank={needed})`"
        if needed
        else "- vLLM: too wide for it; recompress (`--rank`) or merge (`--merge`)",
    ]


def _losses(result: Mapping[str, Any]) -> str:
    if result["exact"]:
        return "exact: nothing was truncated"
    rounded = f", {result['rounding_error']:.1e} of the delta lost to rounding to {result['dtype']}" if result["rounding_error"] else ""
    return f"relative truncation error {result['truncation_error']:.3g}{rounded} (Frobenius norms)"


def _merged_facts(result: Mapping[str, Any]) -> list[str]:
    return [
        "- a full model: base and delta added in float32, rounded once to the base's dtype; everything else is the base's, bit for bit",
        f"- {result['changed_entries']:,} of the {result['touched_entries']:,} entries of {result['touched_tensors']} tensors changed",
        f"- {result['rounding_error']:.1%} of the delta (Frobenius norm) was lost to the dtype's rounding",
        *([f"- checked: logits differ from base + adapter by {result['verified']:.1e} of the largest"] if "verified" in result else []),
    ]


def _plain(value: Any) -> Any:
    """A setting as JSON holds it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
