"""Hashes of the files that an import read: lineage for model cards."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from next_ray.checkpoints.bases import base_fingerprint
from next_ray.checkpoints.imported import Imported, Source
from next_ray.checkpoints.models import open_model_folder
from next_ray.errors import CheckpointFormatError


def with_hashes(imported: Imported) -> Imported:
    """The same import with every source's sha256 and, where the base is here, its fingerprint; reads the files once."""
    base = imported.base
    if base.path is not None and base.fingerprint is None:
        base = replace(base, fingerprint=base_fingerprint(open_model_folder(base.path)))
    return replace(imported, base=base, sources=tuple(_hashed(source) for source in imported.sources))


def file_sha256(path: Path) -> str:
    """A file's sha256, hex; raises `CheckpointFormatError` when it cannot be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointFormatError(f"{path} cannot be read: {error.strerror or error}.") from None


def _hashed(source: Source) -> Source:
    missing = [Path(file) for file in source.files if Path(file).name not in source.sha256]
    return replace(source, sha256={**source.sha256, **{path.name: file_sha256(path) for path in missing}})
