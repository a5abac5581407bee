"""Open the cluster (or start an embedded one), and place actors with a visible wait."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import ray
from ray._private.state import state as cluster_state
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from next_ray.actors.waits import waiting
from next_ray.aftermath import Aftermath
from next_ray.config import ClusterSection
from next_ray.errors import ActorLostError, NextRayError, ObjectGoneError, PlacementError
from next_ray.rollout.spec import OPENMP_WAITING

Device = Literal["cpu", "gpu"]

END_AGENTS = 'sleep 1; for pid in "$@"; do grep -qi agent "/proc/$pid/cmdline" && kill -9 "$pid"; done'
"""Ends those of the processes that are still what they were."""
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
"""Where learners and engines of one machine listen for each other."""
EMBEDDED_STARTS = 3
"""How often an embedded Ray is started before the run gives up."""


@dataclass(frozen=True)
class OpenCluster:
    """What the run found: where actors run and what there is."""

    device: Device
    resources: Mapping[str, float]
    dashboard_url: str | None
    embedded: bool


@contextmanager
def open_cluster(config: ClusterSection, namespace: str, embedded_cpus: int) -> Iterator[OpenCluster]:
    """Connect to the cluster of `RAY_ADDRESS` (set by `ray job submit`), or start one on this machine; closes it at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address:
            context = ray.init(address="auto" if address.startswith("http") else address, **common)
        else:
            with _on_loopback():
                context = _start_embedded(
                    address="local", num_cpus=embedded_cpus, include_dashboard=config.dashboard, dashboard_host="127.0.0.1", **common
                )
    except Exception as error:  # Ray raises a bare Exception when its processes do not come up in time
        where = f"the cluster at RAY_ADDRESS={address}" if address else f"an embedded Ray on this machine in {EMBEDDED_STARTS} attempts"
        raise PlacementError(
            f"Could not open {where}: {error}. Check that it runs, and that RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH are those "
            "of that cluster."
        ) from error
    with ExitStack() as stack:
        if not address:
            stack.callback(agents_end_with_driver().close)
        stack.callback(ray.shutdown)
        resources = ray.cluster_resources()
        device = config.device if config.device != "auto" else ("gpu" if resources.get("GPU", 0) >= 1 else "cpu")
        yield OpenCluster(device, resources, context.dashboard_url or None, embedded=not address)


def agents_end_with_driver() -> Aftermath:
    """End an embedded Ray's agents when this process is killed: they alone would stay, for the minute in which they report the loss.

    All else ends by itself: the kernel ends Ray's other processes with this one, and they their workers.
    """
    agents = [process.pid for process in psutil.Process().children(recursive=True) if _is_agent(process)]
    return Aftermath(END_AGENTS, *map(str, agents))


def _is_agent(process: psutil.Process) -> bool:
    try:
        return "agent" in " ".join(process.cmdline()).lower()
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _on_loopback() -> Iterator[None]:
    """What starts in the block talks over loopback, and so do the actors of its Ray: nobody else is to reach them.

    Ray has a switch for it, meant for systems whose firewalls ask; it is read when Ray is imported.
    """
    from ray._private import ray_constants

    wanted = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0", **LOOPBACK}
    before = {name: os.environ.get(name) for name in wanted}
    switch = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(wanted)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = switch
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _start_embedded(**options: Any) -> Any:
    """`ray.init`, tried again: Ray gives its agents 15 s to come up, which a busy machine may not keep."""
    for attempt in range(1, EMBEDDED_STARTS + 1):
        try:
            return ray.init(**options)
        except Exception:
            ray.shutdown()
            if attempt == EMBEDDED_STARTS:
                raise


def free_address() -> tuple[str, int]:
    """This node's address and a port that is free there, for a process group."""
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return address, probe.getsockname()[1]


async def place(
    bundles: Sequence[Mapping[str, float]], labels: Mapping[str, str], what: str, wait_s: float, say: Callable[[str], None]
) -> PlacementGroup:
    """Reserve bundles for `what`; says what is missing while it waits, ever less often. Cancelling it gives the reservation up.

    Raises `PlacementError` after `wait_s` seconds.
    """
    selector: Any = [dict(labels)] * len(bundles) if labels else None
    group = placement_group([dict(b) for b in bundles], strategy="PACK", bundle_label_selector=selector)
    try:
        await _until_placed(group, f"asked for {_bundles_sentence(bundles, labels)}", labels, what, wait_s, say)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


async def _until_placed(
    group: PlacementGroup, asked: str, labels: Mapping[str, str], what: str, wait_s: float, say: Callable[[str], None]
) -> None:
    """Ask again and again: Ray's own way to wait blocks a thread, which a run that ends meanwhile could not get rid of."""
    started, said_s = time.monotonic(), 2.5
    while not _is_placed(group):
        waited = time.monotonic() - started
        if waited > min(wait_s, 2 * said_s):
            have, labelled = _resources_sentence(ray.cluster_resources()), labels_sentence(ray.nodes(), labels)
            if waited > wait_s:
                raise PlacementError(
                    f"No place for {what}: {asked}; the cluster has {have} in all, {_resources_sentence(ray.available_resources())} "
                    f"free{labelled}. Waited {waited:.0f} s (cluster.wait_s). Add nodes, ask for less, or wait longer."
                )
            said_s = waited
            say(f"waiting {waited:.0f} s for {what}: {asked}; the cluster has {have}{labelled}")
        await asyncio.sleep(0.1 if waited < 5 else 1)


def is_intact(group: PlacementGroup) -> bool:
    """Whether all bundles of a placement group lie on nodes that live and are not about to be taken away."""
    if not _is_placed(group):
        return False
    usable = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - set(draining_nodes())
    return nodes_of(group) <= usable


def _is_placed(group: PlacementGroup) -> bool:
    return placement_group_table(group).get("state") == "CREATED"


def nodes_of(group: PlacementGroup) -> set[str]:
    """The nodes on which a placement group's bundles lie, as far as they are placed."""
    table: Mapping[str, Any] = placement_group_table(group)
    return set(table.get("bundles_to_node_id", {}).values())


def draining_nodes() -> Mapping[str, int]:
    """Nodes that the cluster is about to take away, and when, milliseconds since 1970 (0: unknown)."""
    return cluster_state.get_draining_nodes()


def _bundles_sentence(bundles: Sequence[Mapping[str, float]], labels: Mapping[str, str]) -> str:
    one = ", ".join(f"{amount:g} {name}" for name, amount in bundles[0].items())
    wanted = " with labels " + ", ".join(f"{k}={v}" for k, v in labels.items()) if labels else ""
    return f"{len(bundles)} x ({one}){wanted}"


def _resources_sentence(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU")) if resources else "nothing"


def labels_sentence(nodes: Sequence[Mapping[str, Any]], wanted: Mapping[str, str]) -> str:
    """What the living nodes (rows of `ray.nodes()`) say about the labels that are asked for, to go on a sentence; empty for none."""
    if not wanted:
        return ""
    found = Counter(", ".join(f"{key}={node['Labels'].get(key, '(none)')}" for key in wanted) for node in nodes if node["Alive"])
    return "; its nodes have " + "; ".join(f"{text} ({count})" for text, count in sorted(found.items()))


LOSSES = (
    RayActorError,
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    OutOfMemoryError,
    GetTimeoutError,
    NodeDiedError,
    WorkerCrashedError,
    ObjectLostError,
)
"""What Ray raises when an actor, its node or an object that it held is gone."""


async def result(ref: Any, what: str) -> Any:
    """Await an actor call; a user error inside comes out as itself, a dead actor or a lost object as an `ActorLostError`."""
    try:
        with waiting(ref, what):
            return await ref
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, NextRayError):
            raise cause from None
        if isinstance(cause, LOSSES):
            raise _lost(cause, what) from error
        raise
    except LOSSES as error:
        raise _lost(error, what) from error


async def answer(ref: Any, what: str) -> Any:
    """`result`, where any error but the user's own means that the actor cannot be used any more: an `ActorLostError` too."""
    try:
        return await result(ref, what)
    except RayTaskError as error:
        lines = str(error).strip().splitlines()
        raise ActorLostError(f"{what} failed: {lines[-1] if lines else type(error).__name__}") from error


def _lost(error: BaseException, what: str) -> ActorLostError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if isinstance(error, ObjectLostError):
        return ObjectGoneError(f"What {what} was to use is lost: {reason}.")
    return ActorLostError(f"The actor for {what} died: {reason}.")


def actor_environment(device: str, threads: int, extra: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The runtime environment of an actor: thread counts set before any library is imported."""
    variables = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    variables |= OPENMP_WAITING
    if device == "cpu":
        variables |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        # Batches of ever new sizes: oneDNN would keep the last 1,024 of its products, 150 KiB each.
        variables["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "64"
    return {"env_vars": {**variables, **(extra or {})}}
