"""Importing reasoning-gym."""

from __future__ import annotations

import warnings
from types import ModuleType


def reasoning_gym() -> ModuleType:
    """The library, without the syntax warnings that one of its dependencies prints whenever it is compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        import reasoning_gym as library
        import reasoning_gym.factory
    return library
