"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from next_ray.errors import StoreError

LINEAGE_FILE = "next_ray_lineage.json"
"""In every exported folder, and what tells one from any other folder."""


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `target` that takes its place when the block ends well; otherwise nothing is left of it.

    Raises:
        StoreError: `target` exists (with `overwrite`: and is not wholly made of earlier exports), or the disk refuses.
    """
    check_target(target, overwrite)
    draft: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield draft
        draft.chmod(0o755)
        _put_in_place(draft, target)
    except OSError as error:
        raise StoreError(f"{target} could not be written ({error}). Nothing was left there; check disk space and access.") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def check_target(target: Path, overwrite: bool = False) -> None:
    """Raises `StoreError` when `new_folder` would refuse `target`."""
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise StoreError(f"{target} exists already. Choose another folder, or add --overwrite to replace an earlier export.")
    if not is_export(target):
        raise StoreError(
            f"{target} is not an earlier export ({LINEAGE_FILE} is not in it), so it is not overwritten. Choose another folder."
        )


def is_export(folder: Path) -> bool:
    """An exported folder, or a folder of nothing but exported folders."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    entries = list(folder.iterdir())
    return (folder / LINEAGE_FILE).is_file() or (bool(entries) and all((entry / LINEAGE_FILE).is_file() for entry in entries))


def _put_in_place(draft: Path, target: Path) -> None:
    """Rename; what was there before comes back when that fails."""
    if not target.exists():
        os.rename(draft, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    before = aside / target.name
    try:
        os.rename(target, before)
        os.rename(draft, target)
    finally:
        if before.exists() and not target.exists():
            os.rename(before, target)
        shutil.rmtree(aside, ignore_errors=True)
