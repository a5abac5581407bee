"""Held-out accuracies as a file."""

from __future__ import annotations

import json
from pathlib import Path

from next_ray.errors import ConfigError


def read_accuracies(path: Path) -> dict[int, float]:
    """Training step to accuracy from a JSON object; step 0 is the base. Raises `ConfigError` for anything else."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The accuracies {path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise ConfigError(f"The accuracies {path} are not JSON ({error}).") from None
    example = 'An object is needed with training steps and shares between 0 and 1, like {"0": 0.31, "10": 0.35}.'
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"The accuracies {path} are not a JSON object. {example}")
    found: dict[int, float] = {}
    for step, value in table.items():
        if not step.isdecimal() or isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"The accuracies {path} hold {step!r}: {value!r}. {example}")
        found[int(step)] = float(value)
    return found
