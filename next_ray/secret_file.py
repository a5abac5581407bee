"""A secret in a file that only its owner can read: Ray's token, the key of a served run."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from next_ray.errors import ConfigError

NUM_BYTES = 32


def kept_secret(path: Path) -> str:
    """The secret in `path`; a new random one is written there, mode 600, when there is no such file.

    Raises `ConfigError` when the file belongs to somebody else, others may read it, or it cannot be read or made.
    """
    try:
        if not path.exists():
            _make(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor) as file:
            facts = os.fstat(descriptor)
            if facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o077:
                raise ConfigError(f"{path} holds a secret and can be read by others. Make it yours alone (chmod 600), or remove it.")
            return file.read().strip()
    except OSError as error:
        raise ConfigError(f"{path}, which holds a secret, cannot be read or made: {error.strerror or error}.") from None


def _make(path: Path) -> None:
    """Whole or not at all; of two processes the later one's secret stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(NUM_BYTES))
    draft.replace(path)
