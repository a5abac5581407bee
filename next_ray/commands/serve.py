"""What `python -m next_ray.serve` does: the base and all checkpoints of a run answer under OpenAI's protocol, until it is stopped."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.commands.words import job_and_overrides
from next_ray.config.serve import ServeConfig
from next_ray.errors import ConfigError
from next_ray.settings import load_as

if TYPE_CHECKING:
    from next_ray.actors.cluster import OpenCluster
    from next_ray.actors.served import RunCatalogue
    from next_ray.models.resolve import PreparedModel
    from next_ray.rollout.spec import EngineSpec
    from next_ray.store.checkpoints import CheckpointStore
    from next_ray.types import Manifest

KEY_VARIABLE = "NEXT_RAY_API_KEY"
KEY_FILE = "serve_key"
MIN_KEY_CHARS = 16
LOOK_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and serve; returns the exit code."""
    return ended(lambda: _run(argv), "requests in work were finished; nothing is served any more")


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_intermixed_args(argv)
    config = load_as(ServeConfig, *job_and_overrides(arguments.settings))
    serve_run(arguments.run, config, arguments.base, arguments.endpoint_url)


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "serve",
        "RUN[@STEP] [SERVE.yaml] [key=value ...]",
        "A run's base, checkpoints, jumped and final model behind one OpenAI-compatible address (docs/serving.md).",
        ["tiny", "s3://bucket/runs/math@24 port=8001 replicas.max=4"],
    )
    parser.add_argument("run", metavar="RUN[@STEP]", help="its name, folder or URL; @24, @24-jumped: that checkpoint and the base only")
    parser.add_argument("settings", nargs="*", metavar="SERVE.yaml | key=value", help="a YAML file and settings that override it")
    parser.add_argument("--base", metavar="MODEL", help="folder or name of the model that training started from")
    parser.add_argument("--endpoint-url", metavar="URL", help="S3 server other than AWS")
    return parser


class Opened(NamedTuple):
    """What was found in the store: the model for the engine, its names, the adapters beside it, and their largest rank."""

    model: PreparedModel
    names: tuple[str, ...]
    catalogue: RunCatalogue | None
    rank: int


def serve_run(place: str, config: ServeConfig, base: str | None = None, endpoint_url: str | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises `NextRayError` of the kind that fits: no such run or base, an address in use, a key that is too short, no place, no engine.
    """
    from next_ray.models.folder import cache_root
    from next_ray.run import protect_embedded_ray

    key_sha256, key_told = _key(config, cache_root(None))
    protect_embedded_ray(cache_root(None))
    from next_ray.actors.cluster import open_cluster

    _check_address(config.host, config.port)
    found = opened(place, base, endpoint_url)
    if config.engine.max_model_len > found.model.max_positions:
        longest = found.model.max_positions
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"max_model_len": longest})})
    _say(f"starting an engine on {found.model.name} (half a minute and more)")
    cores = config.replicas.max * config.engine.tensor_parallel_size
    with open_cluster(config.cluster, "next_ray-serve", cores) as cluster:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # the one that Ray has put there ends the process at once
        _serve(found, config, cluster, key_sha256, key_told)


def _serve(found: Opened, config: ServeConfig, cluster: OpenCluster, key_sha256: str, key_told: str) -> None:
    from next_ray.actors.served import Serving, served
    from next_ray.actors.shipping import place_of, shipped
    from next_ray.config import ModelSection
    from next_ray.data.jinja import chat_template
    from next_ray.data.prepare import load_tokenizer
    from next_ray.rollout.api import ApiSpec

    tokenizer = load_tokenizer(found.model.path, trust_remote_code=False)
    api = ApiSpec(
        engine=_engine(found, config, cluster),
        names=found.names,
        key_sha256=key_sha256,
        chat_template=chat_template(tokenizer, config.system_prompt, config.template),
        look_every_s=config.look_every_s,
    )
    place = place_of(ModelSection(name=found.model.name), found.model)
    serving = Serving(place, shipped(found.model), api, found.catalogue, on_loopback=cluster.embedded)
    with served(serving, config, cluster.device, _say) as replicas:
        _introduce(found, config, key_told)
        said = replicas()
        while True:
            time.sleep(LOOK_S)
            if (now := replicas()) != said:
                _say(f"replicas: {now}")
                said = now


def _engine(found: Opened, config: ServeConfig, cluster: OpenCluster) -> EngineSpec:
    from next_ray.config import DataSection, RolloutSection
    from next_ray.precision import native_dtype
    from next_ray.rollout.spec import EngineSpec

    engine = config.engine
    return EngineSpec(
        model_path=found.model.path,
        base_name=found.model.name,
        rollout=RolloutSection(
            tensor_parallel_size=engine.tensor_parallel_size,
            max_num_seqs=engine.max_num_seqs,
            dtype=native_dtype(cluster.device) if engine.dtype == "auto" else engine.dtype,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            kv_cache_gib=engine.kv_cache_gib,
            threads=engine.threads,
        ),
        max_lora_rank=found.rank,
        max_adapters=engine.adapters if found.catalogue else 0,
        max_model_len=engine.max_model_len,
        seed=0,
        device=cluster.device,
        deterministic=False,
        data=DataSection(),
    )


def opened(place: str, base: str | None = None, endpoint_url: str | None = None) -> Opened:
    """`RUN` or `RUN@CHECKPOINT`; raises `NextRayError` when there is no such checkpoint or its base is not to be had."""
    from next_ray.actors.served import RunCatalogue
    from next_ray.checkpoints.open import run_and_checkpoint
    from next_ray.commands.contestants import base_of, checkpoint_of
    from next_ray.commands.runs.opening import located
    from next_ray.model_names import BASE

    run, wanted = run_and_checkpoint(located(place))
    with checkpoint_of(run, wanted, endpoint_url) as (store, manifest):
        model = base_of(store, manifest, base, "--base FOLDER")
        if manifest.is_whole:
            return _whole(store, manifest, model)
        ranks = [manifest.rank] if wanted else [one.rank for one in store.manifests()]
        catalogue = RunCatalogue(store, model.name, model.fingerprint, wanted)
        return Opened(model, (BASE,), catalogue, max(ranks))


def _whole(store: CheckpointStore, manifest: Manifest, base: PreparedModel) -> Opened:
    """Full weights: an engine holds one model, so the checkpoint that was named (or the newest) is served and nothing beside it."""
    from next_ray.checkpoints.whole import cached_model
    from next_ray.config import ModelSection
    from next_ray.model_names import name_of, short_names
    from next_ray.models.resolve import not_cached, prepare_model

    model = prepare_model(ModelSection(name=str(cached_model(store, manifest, Path(base.path)))), not_cached)
    short = [name for name, checkpoint in short_names(store.ids()).items() if checkpoint == manifest.id]
    return Opened(model, (name_of(store.run, manifest.id), *short), None, 1)


def _key(config: ServeConfig, cache: Path) -> tuple[str, str]:
    """SHA-256 of the key, and where its user finds it; the variable is not passed on to the processes that are started."""
    from next_ray.secret_file import kept_secret

    given = os.environ.pop(KEY_VARIABLE, None)
    if given is None:
        path = Path(config.key_file).expanduser() if config.key_file else cache / KEY_FILE
        given, told = kept_secret(path), f"in {path}"
        source = str(path)
    else:
        told, source = f"what {KEY_VARIABLE} said", KEY_VARIABLE
    if len(given) < MIN_KEY_CHARS or not given.isascii() or not given.isprintable() or " " in given:
        raise ConfigError(f"{source} holds no API key: {MIN_KEY_CHARS} printable ASCII characters or more, without spaces, are needed.")
    return hashlib.sha256(given.encode()).hexdigest(), told


def _check_address(host: str, port: int) -> None:
    """Serve's proxy would try again and again."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on host={host} port={port}: {error.strerror or error}. Choose others, such as port=8001."
        ) from None


def _introduce(found: Opened, config: ServeConfig, key_told: str) -> None:
    names = {name: name for name in found.names} | dict(found.catalogue.look() if found.catalogue else {})
    url = f"http://{config.host}:{config.port}/v1"
    short = [f"{name} = {meant}" if name != meant else name for name, meant in names.items() if "@" not in name]
    others = [name for name in names if "@" in name]
    shown = others if len(others) <= 6 else [*others[:3], "...", *others[-2:]]
    print(f"{len(names)} names at {url} (Ctrl-C ends it)")
    print(f"  {', '.join([*short, *shown])}")
    print(f"  key: {key_told}")
    sys.stdout.flush()


def _say(text: str) -> None:
    from next_ray.commands.progress import say

    say(text)
