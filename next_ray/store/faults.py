"""What can go wrong with a storage operation, as few kinds as callers tell apart. Messages never hold credentials."""

from __future__ import annotations

import os

from next_ray.errors import StoreError

_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")


class MissingObjectError(StoreError):
    """The object does not exist."""


class ConflictError(StoreError):
    """A conditional write lost: the object exists already, or is no longer the version that was read."""


class TransientStoreError(StoreError):
    """The operation may succeed when it is tried again: timeout, lost connection, server busy."""


class TooLargeError(StoreError):
    """The object is larger than what the reader accepts."""


def scrub(text: str) -> str:
    """`text` without the values of the credential variables of this process, on one line."""
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name)
        if value:
            text = text.replace(value, "***")
    return " ".join(text.split())
