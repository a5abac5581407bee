"""Files that appear whole or not at all, where the user asked for them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from next_ray.errors import ConfigError


def check_file(path: Path, option: str) -> None:
    """Before any work is done for it; raises `ConfigError` for a path that is a folder or lies in none."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path}: a file in a folder that exists is needed.")


def write_whole(path: Path, text: str, option: str) -> None:
    """Write a UTF-8 file, or leave what was there; raises `ConfigError` naming the option that asked for it."""
    try:
        with scratch_folder(path.absolute().parent, path.name) as scratch:
            (scratch / path.name).write_text(text, encoding="utf-8")
            os.replace(scratch / path.name, path)
    except OSError as error:
        raise ConfigError(f"{option} {path} could not be written: {error.strerror or error}.") from None


@contextmanager
def scratch_folder(beside: Path, name: str) -> Iterator[Path]:
    """A hidden folder in `beside` that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=beside, ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)
