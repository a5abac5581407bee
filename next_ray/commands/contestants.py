"""What a user may name as a model: a folder, a hub id, `tiny`, an adapter folder, a checkpoint of a run, and either with its base.

`BASE+FOLDER` and `BASE+RUN` say where the base is; `RUN@CHECKPOINT` which checkpoint, `RUN@24` or `RUN@24-jumped` by its step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from next_ray.adapter import CONFIG_FILE
from next_ray.checkpoints.adapters import open_peft_folder, read_peft_folder
from next_ray.checkpoints.discover import step_folder
from next_ray.checkpoints.hashes import file_sha256
from next_ray.checkpoints.open import is_run, run_and_checkpoint
from next_ray.checkpoints.store_run import store_of
from next_ray.checkpoints.whole import cached_model
from next_ray.config import ModelSection
from next_ray.errors import CheckpointFormatError, ConfigError, ModelError
from next_ray.models.resolve import PreparedModel, not_cached, prepare_model
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import Adapter, Manifest


@dataclass(frozen=True)
class Location:
    """A run of a store, the id of one of its checkpoints (None: the newest), and the S3 server other than AWS."""

    run: str
    checkpoint: str | None
    endpoint_url: str | None


@dataclass(frozen=True)
class Contestant:
    """A model to be judged.

    Args:
        name: as the user wrote it.
        label: what tables call it.
        base: the model that the engine loads.
        adapter: served on it; None: the base itself is judged.
        identity: of its weights.
        step: RL steps it was trained for, None when nobody knows.
    """

    name: str
    label: str
    base: PreparedModel
    adapter: Adapter | None
    identity: str
    step: int | None


def open_contestants(names: Sequence[str], labels: Sequence[str] | None = None, endpoint_url: str | None = None) -> list[Contestant]:
    """Open the models in their order; raises `NextRayError` for what cannot be read, and for one that is named twice.

    Args:
        names: see the module.
        labels: one a model, all different; None: the names' last parts.
        endpoint_url: S3 server other than AWS, for runs of a store.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"The model {twice[0]} is named twice.")
    bases: dict[str, PreparedModel] = {}
    shown = short_labels(names) if labels is None else labels
    return [replace(_open(name, bases, endpoint_url), label=label) for name, label in zip(names, shown, strict=True)]


def short_labels(names: Sequence[str]) -> list[str]:
    """The last parts of paths and hub ids, as many as it takes to tell all of them apart."""
    parts = [name.rstrip("/").split("/") for name in names]
    for count in range(1, max(map(len, parts))):
        tails = ["/".join(one[-count:]) for one in parts]
        if len(set(tails)) == len(tails):
            return tails
    return list(names)


def _open(name: str, bases: dict[str, PreparedModel], endpoint_url: str | None) -> Contestant:
    base_name, place = _base_and_place(name)
    if (Path(place) / CONFIG_FILE).is_file():
        base_name = base_name or open_peft_folder(Path(place)).config.base
        if not base_name:
            raise CheckpointFormatError(f"{place} does not name its base model. Write BASE+{place}.")
        return _with_adapter(name, _base(base_name, bases), Path(place))
    run, checkpoint = run_and_checkpoint(place)
    if is_run(run):
        return _of_run(name, Location(run, checkpoint, endpoint_url), base_name, bases)
    base = _base(name, bases)
    return Contestant(name, name, base, None, base.fingerprint, None)


def _base_and_place(name: str) -> tuple[str | None, str]:
    """`BASE+PLACE` apart; a plus that is part of a path or URL is none between two."""
    base, _, place = name.rpartition("+")
    known = (Path(place) / CONFIG_FILE).is_file() or is_run(run_and_checkpoint(place)[0])
    return (base, place) if base and "://" not in base and known else (None, name)


def _base(name: str, bases: dict[str, PreparedModel]) -> PreparedModel:
    if name not in bases:
        try:
            bases[name] = prepare_model(ModelSection(name=name), not_cached)
        except ModelError as error:  # whose own words are about a job's settings
            raise ModelError(reworded(str(error))) from error
    return bases[name]


def reworded(text: str) -> str:
    """What is said about the job's setting, said about a model that the user named."""
    return re.sub(r"([Pp])oint model\.name at", lambda found: "Name" if found[1] == "P" else "name", text).replace(
        "model.name=", "the model "
    )


def _with_adapter(name: str, base: PreparedModel, folder: Path) -> Contestant:
    opened = open_peft_folder(folder).adapter
    if opened.saved:
        raise CheckpointFormatError(
            f"{folder} holds {next(iter(opened.saved))!r} whole (modules_to_save), which no engine serves. Merge it."
        )
    adapter = read_peft_folder(folder)
    identity = f"{base.fingerprint}+{file_sha256(Path(opened.file.path))}+{file_sha256(folder / CONFIG_FILE)}"
    return Contestant(name, name, base, _fitting(adapter, base, str(folder)), identity, _step_of(folder))


def _step_of(folder: Path) -> int | None:
    """The step in the name of a trainer's checkpoint folder."""
    digits = step_folder(folder).name.rpartition("-")[2].rpartition("_")[2]
    return int(digits) if digits.isdecimal() and digits != step_folder(folder).name else None


def _of_run(name: str, place: Location, base_name: str | None, bases: dict[str, PreparedModel]) -> Contestant:
    with checkpoint_of(place.run, place.checkpoint, place.endpoint_url) as (store, manifest):
        base = base_of(store, manifest, base_name, f"BASE+{place.run}", bases)
        if manifest.is_whole:
            judged = _base(str(cached_model(store, manifest, Path(base.path))), bases)
            return Contestant(name, name, judged, None, judged.fingerprint, manifest.step)
        adapter = store.load_adapter(manifest)
        identity = f"{base.fingerprint}+{manifest.objects['adapter'].sha256}"
        return Contestant(name, name, base, _fitting(adapter, base, f"{store.url}, checkpoint {manifest.id}"), identity, manifest.step)


@contextmanager
def checkpoint_of(run: str, checkpoint: str | None, endpoint_url: str | None) -> Iterator[tuple[CheckpointStore, Manifest]]:
    """A run's store, open for the block, and one of its checkpoints (None: the newest); `CheckpointFormatError` when there is none."""
    with store_of(run, endpoint_url) as store:
        manifest = store.manifest(checkpoint) if checkpoint else store.latest()
        if manifest is None:
            raise CheckpointFormatError(f"{store.url} holds no checkpoint. Give the run's URL, store.url followed by run.name.")
        yield store, manifest


def base_of(
    store: CheckpointStore, manifest: Manifest, given: str | None, remedy: str, bases: dict[str, PreparedModel] | None = None
) -> PreparedModel:
    """The model that a checkpoint was trained from, by the user's word or the run's; `CheckpointFormatError` when it is another one."""
    trained_from = str(store.identity().get("model") or "")
    if not (given or trained_from):
        raise CheckpointFormatError(f"{store.url} does not name its base model. Write {remedy}.")
    base = _base(given or trained_from, {} if bases is None else bases)
    if base.fingerprint != manifest.base_fingerprint:
        raise CheckpointFormatError(
            f"{store.url}: {manifest.id} was trained from {trained_from or 'another model'}, and the {base.name} that is here has "
            f"other weights. Say where the right one is: {remedy}."
        )
    return base


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
