"""Where files are: one file, a folder or a pattern, on this machine, on S3, on the Hugging Face hub or any other fsspec file system."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import has_magic
from typing import Any

from next_ray.data import hub
from next_ray.errors import DataError

EXTENSIONS = (".jsonl", ".json", ".parquet", ".csv")


def extension_of(name: str) -> str | None:
    """The extension that decides the format, in small letters; None when it is not one that is read."""
    return next((known for known in EXTENSIONS if name.lower().endswith(known)), None)


def find_files(path: str, storage_options: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The file system of a path and the names of its files there, in the order of their names.

    A folder stands for all files in it and below whose extension is read, a pattern (`*`, `?`, `[ab]`, `**`) for those it matches.
    Hidden files and those whose name starts with `_` are passed over. Call it within `readable`.

    Args:
        path: local path or fsspec URL.
        storage_options: for S3, where they say which endpoint.

    Raises:
        DataError: nothing matches, the extension is unknown, or the files are of several formats.
    """
    files, root = file_system(path, storage_options)
    if has_magic(root) and not files.exists(root):
        found = {name: info["type"] for name, info in files.glob(root, detail=True).items()}
        names = [name for name, kind in found.items() if kind == "file"]
        what = "no file matches this pattern"
    elif files.info(root)["type"] == "directory":
        names, what = files.find(root), "this folder holds no file that is read"
    else:
        if extension_of(root) is None:
            raise DataError(f"{path}: the extension decides the format; {', '.join(EXTENSIONS)} are read.")
        return files, [root]
    names = sorted(name for name in names if extension_of(name) and not name.rpartition("/")[2].startswith((".", "_")))
    if not names:
        raise DataError(f"{path}: {what} ({', '.join(EXTENSIONS)}). Check the path.")
    formats = sorted({str(extension_of(name)) for name in names})
    if len(formats) > 1:
        raise DataError(
            f"{path}: files of several formats, {', '.join(formats)}. Say which: {path.rstrip('/')}/*{formats[-1]}, for example."
        )
    return files, names


def file_system(path: str, storage_options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of a path or URL, and what the path is called there."""
    import fsspec

    on_s3 = "s3://" in path or "s3a://" in path
    files, root = fsspec.core.url_to_fs(path, **(storage_options if on_s3 else {}))
    if path.startswith(hub.HUB):
        hub.connect(files, root)
    return files, root


@contextmanager
def readable(path: str, setting: str) -> Iterator[None]:
    """Whatever file system or network raise becomes a `DataError` that names the path, its setting and what to do."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        text = hub.complaint(error) if path.startswith(hub.HUB) else _complaint(error, setting)
        if text is None:
            raise
        raise DataError(f"{path}: {text}") from error


def _complaint(error: Exception, setting: str) -> str | None:
    """What was wrong and what to do; None for what is no error of a place."""
    match error:
        case FileNotFoundError():
            return f"no such file. Check {setting}."
        case PermissionError():
            return f"access denied ({error}). Check the credentials in the environment and the file's permissions."
        case OSError() | ImportError() | ValueError():
            lines = str(error).strip().splitlines()
            cause = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
            return f"cannot be read ({cause}). Check the address, the endpoint and the network."
    # botocore's errors (no credentials, endpoint unreachable) share no base class with the standard library's.
    if type(error).__module__.startswith("botocore"):
        return f"{error}. Check store.endpoint_url and the AWS credentials in the environment."
    return None
