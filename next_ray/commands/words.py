"""The words of a command line that names a job: one YAML file and `key=value` settings, in any order."""

from __future__ import annotations

from collections.abc import Sequence

from next_ray.errors import ConfigError

JOB = "JOB.yaml | key=value"
"""What a help text calls these words."""


def job_and_overrides(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The YAML file is the one word without `=`."""
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise ConfigError(f"One job file at a time, got {', '.join(files)}. Overrides are written key=value, without spaces.")
    return (files[0] if files else None), [word for word in words if "=" in word]
