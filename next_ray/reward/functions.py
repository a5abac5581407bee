"""A user's own reward function, imported by `module:function` inside the verifier process."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any


class FunctionError(ImportError):
    """The function cannot be had, and why."""


def search(paths: Sequence[str]) -> None:
    """Look for modules in these folders too, after all others, so that nothing there hides a library."""
    sys.path.extend(path for path in paths if path not in sys.path)


@lru_cache(maxsize=64)
def load_function(name: str) -> Callable[..., Any]:
    """The function `name`, written `module:function`; raises `FunctionError`."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # whatever the module's own code raises, SystemExit included
        raise FunctionError(f"importing {module} failed with {type(error).__name__}: {error}") from error
    if not callable(found):
        raise FunctionError(f"{module} has no function {attribute}")
    return found


def judge_function(name: str, completion: str, answer: str, metadata: Mapping[str, Any]) -> float:
    """What the function returns; raises ValueError unless that is a number from 0 to 1."""
    value = float(load_function(name)(completion, answer, metadata))
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise ValueError(f"{name} returned {value}; a reward function returns a number from 0 to 1")
    return value
