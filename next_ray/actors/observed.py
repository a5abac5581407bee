"""The actors of a run as others see them: what they are called, where they are, and where in their code they are right now."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import psutil
import ray
from ray._private import state
from ray.core.generated import gcs_pb2
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from next_ray import stacks

NAME_VARIABLE = "NEXT_RAY_ACTOR"
"""Environment variable of an actor's process: what messages call it, `rollout engine 0`."""
TABLE: Any = gcs_pb2.ActorTableData  # pyright: ignore[reportAttributeAccessIssue] made at run time
"""A row of the head node's table of actors. Ray's public list of them asks the dashboard, which may be off."""
READ_S = 60.0
"""How long a node may take to read the stacks of its actors; a busy one has to start a process for it first."""


class RunActor:
    """Base of a run's actors: the dashboard calls them what messages call them, and their stacks can be read while they hang."""

    def __new__(cls, *_: object, **__: object) -> Self:
        """Ray makes actors so, and no actor has to remember it."""
        stacks.answer()
        return super().__new__(cls)

    def __repr__(self) -> str:
        return os.environ.get(NAME_VARIABLE, type(self).__name__)


@dataclass(frozen=True)
class Whereabouts:
    """An actor as the cluster knows it; `pid` is 0 and `node` empty as long as it has no process."""

    actor_id: str
    name: str
    state: str
    pid: int
    node: str
    address: str

    def describe(self) -> str:
        """For messages."""
        where = f"pid {self.pid} on {self.address}" if self.pid else "without a process"
        return f"{self.name} ({where}, {self.state.lower()})"


def run_actors() -> list[Whereabouts]:
    """This driver's actors that are not dead, in the order of their names. Asks the head node; blocks for that long."""
    job = ray.get_runtime_context().get_job_id()
    rows = state.state._connect_and_get_accessor().get_actor_table(ray.JobID.from_hex(job), None)
    found = [_whereabouts(TABLE.FromString(row)) for row in rows]
    return sorted((one for one in found if one.state != "DEAD"), key=lambda one: (one.name, one.actor_id))


def _whereabouts(row: Any) -> Whereabouts:
    name = row.repr_name or row.class_name
    return Whereabouts(
        row.actor_id.hex(), name, TABLE.ActorState.Name(row.state), row.pid, row.address.node_id.hex(), row.address.ip_address
    )


async def read_stacks(actors: Sequence[Whereabouts]) -> dict[str, str]:
    """The stacks of actors and of the processes that they started, by actor id; a node that does not answer is said to be one."""
    nodes = {one.node for one in actors if one.pid}
    texts = await asyncio.gather(*(_read_on(node, [one.pid for one in actors if one.node == node]) for node in nodes))
    by_pid = {(node, pid): text for node, found in zip(nodes, texts, strict=True) for pid, text in found.items()}
    return {one.actor_id: by_pid.get((one.node, one.pid), "(no process yet)") for one in actors}


async def _read_on(node: str, pids: Sequence[int]) -> Mapping[int, str]:
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    reading = asyncio.wrap_future(_stacks_of.options(scheduling_strategy=where).remote(pids).future())
    try:
        return await asyncio.wait_for(reading, READ_S)
    except (TimeoutError, RayError) as error:
        lines = str(error).strip().splitlines()
        return dict.fromkeys(pids, f"(its node did not read them: {lines[0] if lines else f'no answer in {READ_S:g} s'})")


@ray.remote(num_cpus=0, max_retries=0)
def _stacks_of(pids: Sequence[int]) -> dict[int, str]:
    """Runs on the actors' node."""
    return {pid: family_stacks(pid) for pid in pids}


def family_stacks(pid: int) -> str:
    """The stacks of a process and of its descendants on this machine, each below a line that says what it is."""
    try:
        parent = psutil.Process(pid)
        return "\n\n".join(_titled(process) for process in [parent, *parent.children(recursive=True)])
    except psutil.NoSuchProcess:
        return "(this process has just ended)"


def _titled(process: psutil.Process) -> str:
    try:
        title = f"process {process.pid}, {process.status()}: {' '.join(process.cmdline())[:120] or process.name()}"
    except psutil.NoSuchProcess:
        return f"process {process.pid}: (has just ended)"
    return f"{title}\n{stacks.read(process.pid)}"
