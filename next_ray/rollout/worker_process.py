"""What each of vLLM's own worker processes (tensor parallelism) does beside vLLM's work; named to vLLM by string.

Such a process notices by a pipe that its engine is gone, but only between two steps: one that waits for a peer in a collective would
stay and hold its memory and its GPU. So the kernel ends it.
"""

from __future__ import annotations

import multiprocessing
import os

from next_ray import stacks


class WorkerProcess:
    """Adds nothing to vLLM's worker class; loading this module is what counts."""


def join_engine() -> None:
    """Show stacks when asked, and end with the engine; does nothing in a process that is not one of vLLM's workers."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    stacks.answer()
    stacks.die_with_parent()
    if os.getppid() != parent.pid:
        os._exit(1)


join_engine()
