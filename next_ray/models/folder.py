"""Model folders: published atomically, checked before use, fingerprinted by content.

A folder under the cache exists only when it is complete: it is made beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from next_ray.errors import ModelError

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
VOLATILE_KEYS = ("transformers_version", "_name_or_path")
"""Keys of `config.json` that say who wrote it, not what the model is."""

MAX_DOCUMENT_BYTES = 64 * 2**20
"""Of a configuration or an index of tensors."""

_BLOCK_BYTES = 1 << 22
_WEIGHT_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")


def cache_root(cache_dir: str | None) -> Path:
    """Where prepared models are kept: the argument, else `$NEXT_RAY_CACHE`, else `~/.cache/next_ray`."""
    return Path(cache_dir or os.environ.get("NEXT_RAY_CACHE") or "~/.cache/next_ray").expanduser().absolute()


def publish(target: Path, make: Callable[[Path], None]) -> Path:
    """Return `target`, made first if it is not there: `make` fills a folder beside it, which is then renamed.

    Of several processes that make the same folder, one wins and all return the winner's. A failed `make` leaves nothing.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        make(draft)
        draft.chmod(0o755)
        os.rename(draft, target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars from transformers for a while."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file of a flat folder by name: how a small model crosses machines."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def write_files(files: dict[str, bytes], folder: Path) -> None:
    """The inverse of `read_files`; a name that is not a plain file name is a `ModelError`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if name != Path(name).name or name in {"", ".", ".."}:
            raise ModelError(f"A model folder cannot hold a file named {name!r}.")
        (folder / name).write_bytes(data)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model in `folder`, by name.

    Raises `ModelError` when there are none (pickle weights are refused), one is missing or one is not readable.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        files = [folder / name for name in _indexed(index)]
        if missing := [path.name for path in files if not path.is_file()]:
            raise ModelError(f"{folder}: {INDEX_FILE} names {', '.join(missing)}, not found. Download the model again.")
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"{folder}: the weights are only there as pickle ({', '.join(pickles[:3])}), which can run code when loaded and is "
                "never read. Use a revision with .safetensors files, or convert: load it where you trust it and call "
                "save_pretrained."
            )
        raise ModelError(f"{folder}: no .safetensors file. Point model.name at a folder with {CONFIG_FILE}, a tokenizer and weights.")
    for path in files:
        try:
            with safe_open(path, framework="np") as handle:
                handle.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not a complete safetensors file ({error}). Download the model again.") from error
    return files


def count_tensors(files: list[Path]) -> int:
    """How many tensors the weight files hold, from their headers."""
    count = 0
    for path in files:
        with safe_open(path, framework="np") as handle:
            count += len(handle.keys())
    return count


def _indexed(index: Path) -> list[str]:
    """The weight files that an index names: files beside it, never elsewhere."""
    table = read_json(index).get("weight_map")
    names = sorted(set(table.values())) if isinstance(table, dict) and all(isinstance(name, str) for name in table.values()) else []
    if not names or not all(_WEIGHT_FILE.fullmatch(name) for name in names):
        raise ModelError(f"{index}: weight_map is no table of tensors and .safetensors files beside it. Download the model again.")
    return names


def fingerprint(folder: Path, files: list[Path], cache: Path) -> str:
    """sha256 (hex) over the configuration and the weight files' contents, whatever the folder is called.

    Contents are hashed once: `cache` keeps each file's hash with its path, size and modification time.
    """
    config = {key: value for key, value in read_json(folder / CONFIG_FILE).items() if key not in VOLATILE_KEYS}
    lines = [json.dumps(config, sort_keys=True), *(f"{path.name} {_file_sha256(path, cache)}" for path in files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _file_sha256(path: Path, cache: Path) -> str:
    """The file's sha256, from `cache` when the file has not changed since."""
    real = path.resolve()
    stat = real.stat()
    key = f"{real} {stat.st_size} {stat.st_mtime_ns}"
    note = cache / "fingerprints" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if note.is_file() and (known := read_json(note)).get("file") == key:
        return known["sha256"]
    digest = hashlib.sha256()
    with real.open("rb") as handle:
        while block := handle.read(_BLOCK_BYTES):
            digest.update(block)
    note.parent.mkdir(parents=True, exist_ok=True)
    draft = note.with_name(f".{note.name}.{os.getpid()}")
    draft.write_text(json.dumps({"file": key, "sha256": digest.hexdigest()}))
    draft.replace(note)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `ModelError` when it is missing or something else."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise ModelError(f"{path} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB; that is no such file of a model.")
        value = json.loads(data)
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent}: no {path.name}. Point model.name at a model folder in Hugging Face format.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON ({str(error)[:200]}). Download the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object. Download the model again.")
    return value
