"""A run behind Ray Serve: each replica is an engine with all of the run's models, and Serve's proxy gives every request to one."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.schema import ApplicationStatus, LoggingConfig

from next_ray.actors.cluster import Device, actor_environment
from next_ray.actors.shipping import ModelPlace, localize
from next_ray.adapter import write_peft_folder
from next_ray.config.serve import ServeConfig
from next_ray.errors import ModelError, PlacementError
from next_ray.model_names import name_of, short_names
from next_ray.rollout.api import ApiSpec, OpenAIApi
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import Manifest

APP = "next_ray"
DEPLOYMENT = "models"
DRAIN_S = 20.0
"""How long requests in work may take when the server ends, seconds."""
POLL_S = 0.5
ENDED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


class RunCatalogue:
    """The adapters of a run's store; `only` leaves one of its checkpoints. Those of another base, and full weights, are left out."""

    def __init__(self, store: CheckpointStore, base_name: str, base_fingerprint: str, only: str | None = None) -> None:
        self._store, self._base_name, self._fingerprint, self._only = store, base_name, base_fingerprint, only
        self._manifests: dict[str, Manifest] = {}

    def look(self) -> Mapping[str, str]:
        """Short names first, then all checkpoints by step; manifests are read once."""
        present = [one for one in self._store.ids() if self._only in (None, one)]
        for checkpoint in present:
            if checkpoint not in self._manifests:
                self._manifests[checkpoint] = self._store.manifest(checkpoint)
        fitting = [one for one in present if self._fits(self._manifests[one])]
        names = {name: self._name(checkpoint) for name, checkpoint in short_names(fitting).items()}
        return names | {self._name(checkpoint): self._name(checkpoint) for checkpoint in fitting}

    def write(self, name: str, folder: Path) -> bool:
        """Write the adapter of `name`, verified, as a PEFT folder."""
        found = [manifest for manifest in self._manifests.values() if self._name(manifest.id) == name]
        if not found:
            return False
        write_peft_folder(self._store.load_adapter(found[0]), folder, self._base_name)
        return True

    def _name(self, checkpoint: str) -> str:
        return name_of(self._store.run, checkpoint)

    def _fits(self, manifest: Manifest) -> bool:
        return not manifest.is_whole and manifest.base_fingerprint == self._fingerprint


@dataclass(frozen=True)
class Serving:
    """What is served: the engine's model (and its files, where other nodes cannot fetch them), its API, and the run's adapters on it.

    `on_loopback` says that all of the cluster is this machine.
    """

    place: ModelPlace
    files: Any
    api: ApiSpec
    catalogue: RunCatalogue | None
    on_loopback: bool = True


class Replica:
    """One engine and its application, in an actor of Serve's."""

    def __init__(self, serving: Serving) -> None:
        if serving.on_loopback:
            keep_on_loopback()
        path = localize(serving.place, ray.get(serving.files) if serving.files is not None else None)
        engine = replace(serving.api.engine, model_path=path)
        self._api = OpenAIApi(replace(serving.api, engine=engine), serving.catalogue)

    async def __serve_build_asgi_app__(self) -> Any:
        """Serve calls this in the replica's event loop."""
        try:
            return await self._api.open()
        except BaseException:
            self._api.close()
            raise

    async def check_health(self) -> None:
        """Serve asks; a replica whose engine is dead is replaced."""
        await self._api.check()


def keep_on_loopback() -> None:
    """Bind to loopback what Serve opens in a replica's process, once the replica stands, for calls between deployments.

    Serve binds it to all interfaces, without a key, and unpickles what comes.
    """
    replica: Any = importlib.import_module("ray.serve._private.replica")
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]:", "127.0.0.1:"))


@contextmanager
def served(serving: Serving, config: ServeConfig, device: Device, say: Callable[[str], None]) -> Iterator[Callable[[], str]]:
    """Serve for the block, which begins when requests are answered; at its end those in work are finished, `DRAIN_S` at most.

    Yields a look at the replicas: a sentence on how many there are; `say` is told what is waited for meanwhile.

    Raises:
        PlacementError: Serve is in use on this cluster, or there is no place for a replica within `cluster.wait_s`.
        ModelError: the engine did not start.
    """
    _refuse_second_serve()
    for name in ("ray.serve", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=config.host, port=config.port), logging_config=quiet)
    try:
        target = serve.RunTarget(deployment(config, device).bind(serving), name=APP, route_prefix="/", logging_config=quiet)
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        _until_running(config.cluster.wait_s, say)
        yield _replicas
    finally:
        serve.delete(APP)  # the proxy stays until the last answer is given
        serve.shutdown()


def _refuse_second_serve() -> None:
    if serve.status().proxies:
        raise PlacementError(
            "Ray Serve is in use on this cluster, and this command would take its address and end it. Serve the run on another cluster, "
            "or without RAY_ADDRESS on this machine."
        )


def deployment(config: ServeConfig, device: Device) -> Any:
    """Ray Serve's deployment of `Replica` with the resources and the autoscaling that the configuration asks for."""
    engine, replicas = config.engine, config.replicas
    resources: dict[str, Any] = {"num_cpus": engine.tensor_parallel_size if device == "cpu" else 0}
    if device == "gpu":
        resources["num_gpus"] = engine.tensor_parallel_size
    if config.cluster.engine_labels:
        resources["label_selector"] = dict(config.cluster.engine_labels)
    return serve.deployment(
        serve.ingress(None)(Replica),
        name=DEPLOYMENT,
        ray_actor_options={**resources, "runtime_env": actor_environment(device, engine.threads)},
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.min,
            initial_replicas=max(1, replicas.min),
            max_replicas=replicas.max,
            target_ongoing_requests=replicas.target_requests,
            upscale_delay_s=replicas.upscale_delay_s,
            downscale_delay_s=replicas.downscale_delay_s,
        ),
        max_ongoing_requests=max(2 * engine.max_num_seqs, int(2 * replicas.target_requests)),
        max_constructor_retry_count=1,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=DRAIN_S,
    )


def _until_running(wait_s: float, say: Callable[[str], None]) -> None:
    started, said = time.monotonic(), ""
    while True:
        app = serve.status().applications.get(APP)
        if app is not None and app.status == ApplicationStatus.RUNNING:
            return
        detail = "" if app is None or DEPLOYMENT not in app.deployments else app.deployments[DEPLOYMENT].message
        if app is not None and app.status in ENDED:
            raise ModelError(f"The engine did not start: {cause_of(detail or app.message)} Ray's logs, under serve/, have the whole story.")
        waited = time.monotonic() - started
        if waited > wait_s:
            raise PlacementError(f"No replica answers after {waited:.0f} s (cluster.wait_s). {detail}".strip())
        if detail and detail != said and "initializ" not in detail:
            say(f"waiting {waited:.0f} s: {detail.splitlines()[0]}")
            said = detail
        time.sleep(POLL_S)


def cause_of(message: str) -> str:
    """The last line of a traceback, which says what was wrong, or what else Serve says."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("next_ray.errors.")]
    cause = (errors or lines or ["it gives no reason"])[-1].removeprefix("next_ray.errors.")
    return cause if cause.endswith(".") else f"{cause}."


def _replicas() -> str:
    app = serve.status().applications.get(APP)
    states = {} if app is None or DEPLOYMENT not in app.deployments else app.deployments[DEPLOYMENT].replica_states
    return ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()) if count) or "none"
