"""A user's own evaluation, named on the command line."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

from next_ray.errors import ConfigError, ExtrapolationError


@cache
def load_evaluator(name: str) -> Callable[[Path], float]:
    """`package.module:function` as a function from a candidate's folder to its accuracy in 0..1.

    Raises:
        ConfigError: there is no such function. The function that is returned raises `ExtrapolationError` when the user's fails or
            gives something that is no accuracy.
    """
    module, _, attribute = name.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--evaluator {name}: {error}. Write package.module:function, importable from the current folder.") from error
    if not callable(function):
        raise ConfigError(f"--evaluator {name} is not a function.")

    def evaluate(folder: Path) -> float:
        try:
            accuracy = float(cast(float, function(folder)))
        except Exception as error:  # whatever a user's function raises
            raise ExtrapolationError(f"The evaluator {name} failed on {folder}: {type(error).__name__}: {error}") from error
        if not (math.isfinite(accuracy) and 0.0 <= accuracy <= 1.0):
            raise ExtrapolationError(f"The evaluator {name} gave {accuracy}; an accuracy between 0 and 1 is needed.")
        return accuracy

    return evaluate
