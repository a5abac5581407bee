"""Keep other people's warnings and chatter out of the user's sight, and in a file."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_QUIET_LIBRARIES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CONFIGURE_LOGGING": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Set before the libraries are imported; actors inherit them. A value that the user has set stays."""


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send warnings, library logging and all that is written to stdout and stderr (children's and C libraries' too) to `log`.

    Whoever shows something meanwhile writes to a copy of stdout made before (`duplicate_stdout`).

    Everything is put back at the end, so an error that leaves the block is shown where it always was.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    sys.stdout.flush()
    sys.stderr.flush()
    originals = {1: os.dup(1), 2: os.dup(2)}
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    handlers, level, shown = root.handlers[:], root.level, warnings.showwarning
    for stream in originals:
        os.dup2(target, stream)
    os.close(target)
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        warnings.showwarning = shown
        root.handlers[:] = handlers
        root.setLevel(level)
        handler.close()
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, original in originals.items():
            os.dup2(original, stream)
            os.close(original)


def duplicate_stdout() -> TextIO:
    """A second way to the present stdout, which `quiet` does not take away."""
    return os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace", buffering=1)
