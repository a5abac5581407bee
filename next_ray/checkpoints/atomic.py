"""Folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from next_ray.errors import StoreError

LINEAGE_FILE = "next_ray_lineage.json"
"""In every exported folder, and what tells one from any other folder."""

DRAFT, BEFORE = "draft", "before"
"""In a work folder: what is being made, and what it replaces for the moment of the exchange."""


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `target` that takes its place when the block ends well; otherwise nothing is left of it.

    What a killed process left of an earlier attempt at the same target is swept first.

    Raises:
        StoreError: `target` exists (with `overwrite`: and is not wholly made of earlier exports), or the disk refuses.
    """
    check_target(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _work_folder(target) as work:
            draft = work / DRAFT
            draft.mkdir()
            yield draft
            with _locked(target.parent):
                check_target(target, overwrite)  # another process may have been faster
                _put_in_place(work, target)
    except BrokenPipeError:  # of the terminal, not of a file
        raise
    except OSError as error:
        raise StoreError(f"{target} could not be written ({error}). Nothing was left there; check disk space and access.") from error


def check_target(target: Path, overwrite: bool = False) -> None:
    """Raises `StoreError` when `new_folder` would refuse `target`."""
    try:
        reason = _refusal(target, overwrite)
    except OSError as error:
        reason = f"{str(target)[:300]} cannot be looked at ({error.strerror}). Choose another folder."
    if reason is not None:
        raise StoreError(reason)


def is_export(folder: Path) -> bool:
    """An exported folder, or a folder of nothing but exported folders."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    entries = list(folder.iterdir())
    return (folder / LINEAGE_FILE).is_file() or (bool(entries) and all((entry / LINEAGE_FILE).is_file() for entry in entries))


def _refusal(target: Path, overwrite: bool) -> str | None:
    if target.is_symlink():
        return f"{target} is a symbolic link (to {target.readlink()}), which is not replaced. Name the folder itself, or another."
    if not target.exists():
        return None
    if not overwrite:
        return f"{target} exists already. Choose another folder, or add --overwrite to replace an earlier export."
    if not target.is_dir():
        return f"{target} is a file, not an earlier export, so it is not overwritten. Choose another folder."
    if not is_export(target):
        return f"{target} is not an earlier export ({LINEAGE_FILE} is not in it), so it is not overwritten. Choose another folder."
    return None


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target`, locked while its process lives: one that nobody holds is a killed process's."""
    prefix = f".{target.name}.next_ray-"
    with _locked(target.parent):
        for remains in target.parent.glob(f"{glob.escape(prefix)}????????"):
            _sweep(remains, target)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        lock = _lock(work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _sweep(remains: Path, target: Path) -> None:
    """Remove a work folder that nobody holds; what it was about to replace goes back to its place."""
    lock = _lock(remains)
    if lock is None:
        return
    try:
        if (remains / BEFORE).exists() and not target.exists():
            os.rename(remains / BEFORE, target)
        shutil.rmtree(remains, ignore_errors=True)
    finally:
        os.close(lock)


def _put_in_place(work: Path, target: Path) -> None:
    """Rename; what was there before comes back when that fails."""
    if not target.exists():
        os.rename(work / DRAFT, target)
        return
    try:
        os.rename(target, work / BEFORE)
        os.rename(work / DRAFT, target)
    finally:
        if not target.exists():
            os.rename(work / BEFORE, target)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time looks over `folder`'s work folders, where its file system has locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """A handle that holds the folder's lock until it is closed; None when another process holds it or there are no locks."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
