"""The manifest's bytes: canonical JSON out, strictly validated JSON in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from next_ray.errors import CorruptCheckpointError, StoreError
from next_ray.types import CheckpointKind, Manifest, ObjectEntry

FORMAT = "next-ray-checkpoint/1"
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_ENTRY_BYTES = 256 * 2**30
MAX_OBJECTS = 4000
_KIND_ORDER = (
    CheckpointKind.PREDICTED,
    CheckpointKind.MERGED,
    CheckpointKind.TRAINED,
    CheckpointKind.JUMPED,
    CheckpointKind.REVERTED,
)
_FILE = re.compile(r"(\d{8})-([a-z]+)\.json")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[str, Field(pattern=r"^\d{8}-(trained|predicted|jumped|reverted|merged)$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Entry(_Strict):
    path: str = Field(max_length=100)
    size_bytes: int = Field(ge=0, le=MAX_ENTRY_BYTES)
    sha256: Sha256

    @model_validator(mode="after")
    def _content_addressed(self) -> _Entry:
        if not re.fullmatch(rf"objects/{self.sha256}\.(safetensors|json)", self.path):
            raise ValueError("an object's path is objects/<its sha256>.safetensors or .json")
        return self


class _Document(_Strict):
    format: Literal["next-ray-checkpoint/1"]
    id: Id
    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    step: int = Field(ge=0, le=99_999_999)
    kind: CheckpointKind
    parents: list[Id] = Field(max_length=1000)
    base_fingerprint: str = Field(min_length=1, max_length=200)
    rank: int = Field(ge=0, le=65536)
    scale: float
    objects: dict[Annotated[str, Field(pattern=r"^[a-z_]{1,40}([0-9]{5})?$")], _Entry] = Field(max_length=MAX_OBJECTS)
    metadata: dict[str, Any]
    created_at: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")

    @model_validator(mode="after")
    def _named_after_its_content(self) -> _Document:
        if self.id != checkpoint_id(self.step, self.kind):
            raise ValueError(f"id {self.id!r} does not belong to step {self.step} and kind {self.kind}")
        if self.objects and (self.rank == 0) is not ("weights_00000" in self.objects):
            raise ValueError("rank 0 stands for full weights, weights_00000 and on, and any other for an adapter")
        return self


def checkpoint_id(step: int, kind: CheckpointKind) -> str:
    """The id of a run's checkpoint: one a step and kind."""
    return f"{step:08d}-{kind}"


def manifest_path(checkpoint: str) -> str:
    """Where a manifest lies, relative to the run."""
    return f"manifests/{checkpoint}.json"


def id_of(path: str) -> str | None:
    """The checkpoint id that a manifest's path names; None for a path that is no manifest's."""
    match = _FILE.fullmatch(path.rpartition("/")[2])
    return f"{match[1]}-{match[2]}" if match and match[2] in list(CheckpointKind) else None


def order(checkpoint: str) -> tuple[int, int]:
    """Sort key of an id: by step, then as they come to be used: trained, jumped, reverted."""
    step, _, kind = checkpoint.partition("-")
    return int(step), _KIND_ORDER.index(CheckpointKind(kind))


def kind_of(checkpoint: str) -> CheckpointKind:
    """The kind in an id."""
    return CheckpointKind(checkpoint.partition("-")[2])


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON: keys sorted, two spaces, ASCII, a final newline. Raises ValueError for what JSON cannot hold."""
    document = {
        "format": FORMAT,
        "id": manifest.id,
        "run": manifest.run,
        "step": manifest.step,
        "kind": str(manifest.kind),
        "parents": list(manifest.parents),
        "base_fingerprint": manifest.base_fingerprint,
        "rank": manifest.rank,
        "scale": manifest.scale,
        "objects": {name: {"path": e.path, "size_bytes": e.size_bytes, "sha256": e.sha256} for name, e in manifest.objects.items()},
        "metadata": dict(manifest.metadata),
        "created_at": manifest.created_at,
    }
    data = (json.dumps(document, sort_keys=True, indent=2, allow_nan=False) + "\n").encode("ascii")
    if len(data) > MAX_MANIFEST_BYTES:
        raise ValueError(f"the manifest of {manifest.id} would have {len(data)} bytes, more than {MAX_MANIFEST_BYTES}; keep metadata small")
    _Document.model_validate_json(data)
    return data


def decode(data: bytes, checkpoint: str, run: str, origin: str) -> Manifest:
    """Read and check a manifest that was found as `checkpoint` in `run`; `origin` names it in errors.

    Raises:
        StoreError: another format version.
        CorruptCheckpointError: anything else that is not a manifest of this checkpoint.
    """
    try:
        document = _Document.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"])) or "document"
        if problem["loc"] == ("format",) and problem["type"] == "literal_error":
            raise StoreError(
                f"{origin} is not in format {FORMAT!r}: another version of next_ray wrote it. Read it with that one."
            ) from None
        raise CorruptCheckpointError(f"{origin} is not a valid manifest: {place}: {problem['msg']}. {remedy(origin)}") from None
    if document.id != checkpoint or document.run != run:
        raise CorruptCheckpointError(f"{origin} says it is checkpoint {document.id} of run {document.run}. {remedy(origin)}")
    return _to_noun(document)


def remedy(origin: str) -> str:
    """What to do about a damaged checkpoint."""
    return f"Restore it from a copy, or delete {origin} to go on from the checkpoint before it."


def _to_noun(document: _Document) -> Manifest:
    objects: Mapping[str, ObjectEntry] = {name: ObjectEntry(e.path, e.size_bytes, e.sha256) for name, e in sorted(document.objects.items())}
    return Manifest(
        id=document.id,
        run=document.run,
        step=document.step,
        kind=document.kind,
        parents=tuple(document.parents),
        base_fingerprint=document.base_fingerprint,
        rank=document.rank,
        scale=document.scale,
        objects=objects,
        metadata=document.metadata,
        created_at=document.created_at,
    )
