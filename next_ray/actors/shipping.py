"""The base model on every node: actors start where the driver's folder may not exist."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from next_ray.config import ModelSection
from next_ray.errors import ModelError
from next_ray.models.folder import cache_root, publish, read_files, write_files
from next_ray.models.resolve import PreparedModel, prepare_model
from next_ray.models.tiny_spec import TinySpec

MADE_HERE = ("tiny", "smollm2-135m")
"""Models that no other node can fetch by name; they are small and travel through the object store."""


@dataclass(frozen=True)
class ModelPlace:
    """Where the driver has the model, and enough to find the same one elsewhere."""

    section: ModelSection
    path: str
    fingerprint: str


def place_of(section: ModelSection, model: PreparedModel) -> ModelPlace:
    """The place to hand to actors; a hub model is pinned to the commit that the driver found."""
    pinned = section.model_copy(update={"revision": model.revision}) if model.revision else section
    return ModelPlace(pinned, model.path, model.fingerprint)


def shipped(model: PreparedModel) -> Any:
    """A reference to the files of a model made here, None when there is one node or every node can fetch the model itself."""
    several = sum(node["Alive"] for node in ray.nodes()) > 1
    return ray.put(read_files(Path(model.path))) if several and model.name in MADE_HERE else None


def localize(place: ModelPlace, files: dict[str, bytes] | None) -> str:
    """The model's folder on this node: the driver's path if it is here too, else shipped or fetched, and the same by fingerprint.

    Raises:
        ModelError: the model cannot be had on this node, or is another one here.
    """
    if Path(place.path).is_dir():
        return place.path
    if files is not None:
        root = cache_root(place.section.cache_dir)
        return str(publish(root / "models" / f"shipped-{place.fingerprint[:16]}", lambda draft: write_files(files, draft)))
    found = prepare_model(place.section, _cannot_train)
    if found.fingerprint != place.fingerprint:
        raise ModelError(
            f"{place.section.name} on {ray.util.get_node_ip_address()} is not the driver's (fingerprints {found.fingerprint[:12]} and "
            f"{place.fingerprint[:12]}). Pin model.revision, or put one copy on a file system that all nodes share."
        )
    return found.path


def _cannot_train(spec: TinySpec, folder: Path) -> None:
    raise ModelError("The tiny model was not shipped to this node; this is a defect of next_ray.")
