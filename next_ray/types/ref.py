"""A handle to a value that lives elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ref(Generic[T]):
    """A handle to a value that lives elsewhere: a Ray object reference in a run, the value itself in a test.

    Only `actors/` (or a test's fake) makes and resolves the content; the loop passes it on unopened.
    """

    value: Any
