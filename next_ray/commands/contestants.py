"""What a user may name as a model: a folder, a hub id, `tiny`, a base with an adapter, an adapter folder, a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from next_ray.adapter import CONFIG_FILE
from next_ray.checkpoints.adapters import open_peft_folder, read_peft_folder
from next_ray.checkpoints.discover import step_folder
from next_ray.checkpoints.hashes import file_sha256
from next_ray.checkpoints.open import is_run
from next_ray.config import ModelSection
from next_ray.errors import CheckpointFormatError, ConfigError, ModelError
from next_ray.models.resolve import PreparedModel, prepare_model
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import Adapter


@dataclass(frozen=True)
class Contestant:
    """A model to be judged. `identity` is of its weights; `step` the RL steps it was trained for, None when nobody knows."""

    label: str
    base: PreparedModel
    adapter: Adapter | None
    identity: str
    step: int | None


def open_contestants(names: Sequence[str], endpoint_url: str | None = None) -> list[Contestant]:
    """Open the models in their order; raises `NextRayError` for what cannot be read, and for one that is named twice."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"The model {twice[0]} is named twice.")
    bases: dict[str, PreparedModel] = {}
    return [_open(name, bases, endpoint_url) for name in names]


def _open(name: str, bases: dict[str, PreparedModel], endpoint_url: str | None) -> Contestant:
    base_name, plus, folder = name.rpartition("+")
    if plus and base_name and (Path(folder) / CONFIG_FILE).is_file():
        return _with_adapter(name, _base(base_name, bases), Path(folder))
    if (Path(name) / CONFIG_FILE).is_file():
        base_name = open_peft_folder(Path(name)).config.base
        if not base_name:
            raise CheckpointFormatError(f"{name} does not name its base model. Write BASE+{name}.")
        return _with_adapter(name, _base(base_name, bases), Path(name))
    path, at, checkpoint = name.rpartition("@")
    run = path if at else name
    if is_run(run):
        return _of_run(name, run, checkpoint if at else None, bases, endpoint_url)
    base = _base(name, bases)
    return Contestant(name, base, None, base.fingerprint, None)


def _base(name: str, bases: dict[str, PreparedModel]) -> PreparedModel:
    if name not in bases:
        bases[name] = prepare_model(ModelSection(name=name), _not_cached)
    return bases[name]


def _not_cached(spec: object, folder: Path) -> None:
    raise ModelError("The tiny model is not in the cache. `python -m next_ray.run` makes it.")


def _with_adapter(label: str, base: PreparedModel, folder: Path) -> Contestant:
    opened = open_peft_folder(folder).adapter
    if opened.saved:
        raise CheckpointFormatError(
            f"{folder} holds {next(iter(opened.saved))!r} whole (modules_to_save), which no engine serves. Merge it."
        )
    adapter = read_peft_folder(folder)
    identity = f"{base.fingerprint}+{file_sha256(Path(opened.file.path))}+{file_sha256(folder / CONFIG_FILE)}"
    return Contestant(label, base, _fitting(adapter, base, str(folder)), identity, _step_of(folder))


def _step_of(folder: Path) -> int | None:
    """The step in the name of a trainer's checkpoint folder."""
    digits = step_folder(folder).name.rpartition("-")[2].rpartition("_")[2]
    return int(digits) if digits.isdecimal() and digits != step_folder(folder).name else None


def _of_run(label: str, path: str, checkpoint: str | None, bases: dict[str, PreparedModel], endpoint_url: str | None) -> Contestant:
    url = path if "://" in path else f"file://{Path(path).absolute()}"
    root, _, run = url.rstrip("/").rpartition("/")
    with CheckpointStore(root, run, endpoint_url) as store:
        manifest = store.manifest(checkpoint) if checkpoint else store.latest()
        if manifest is None:
            raise CheckpointFormatError(f"{store.url} holds no checkpoint. Give the run's URL, store.url followed by run.name.")
        name = store.identity().get("model")
        base = _base(name if isinstance(name, str) else "", bases)
        if base.fingerprint != manifest.base_fingerprint:
            raise CheckpointFormatError(f"{store.url}: {manifest.id} was trained from another {name} than the one that is here.")
        adapter = store.load_adapter(manifest)
        identity = f"{base.fingerprint}+{manifest.objects['adapter'].sha256}"
        return Contestant(label, base, _fitting(adapter, base, f"{store.url}, checkpoint {manifest.id}"), identity, manifest.step)


def _fitting(adapter: Adapter, base: PreparedModel, where: str) -> Adapter:
    """Every module must be one of the base's, in its size: an engine would pass over the others."""
    for module, factors in adapter.items():
        shape = (factors.b.shape[0], factors.a.shape[1])
        if base.linear_shapes.get(module) != shape:
            expected = base.linear_shapes.get(module)
            has = f"has it as {list(expected)}" if expected else "has no such linear layer"
            raise CheckpointFormatError(
                f"{where}: module {module!r} is {list(shape)}, but the base {base.name} {has}. Is it the right base?"
            )
    return adapter
