"""Where a run's things lie below `<store>/<run>/`, and which names people may choose."""

from __future__ import annotations

import re

from next_ray.errors import StoreError

IDENTITY = "run.json"
LEASE = "lease.json"
DELETING = "deleting.json"
MANIFESTS = "manifests"
OBJECTS = "objects"
TABLES = "tables"
RECORDS = "records"
CONFIG, SUMMARY, SCORES, ATTEMPTS = "config", "summary", "scores", "attempts"
"""Records: the configuration of the newest start, the end's numbers, the end's accuracy by prompt, a folder of attempted jumps."""
TRACKERS, FORKED = "trackers", "forked_from"
"""Records: what trackers know the run by; where the first checkpoint of a run that was forked comes from."""
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TABLE = re.compile(r"[a-z][a-z0-9_]{0,60}")


def check_run(run: str) -> str:
    """The run's name if it is one."""
    if not _RUN.fullmatch(run):
        raise StoreError(f"run.name {run[:100]!r} is not a name of letters, digits, dots, hyphens and underscores, at most 100 long.")
    return run


def check_table(name: str) -> str:
    """The table's name if it is one."""
    if not _TABLE.fullmatch(name):
        raise ValueError(f"{name!r} is not a table name: lower-case letters, digits and underscores")
    return name
