"""The door: paths of anybody's checkpoints in, a trajectory out.

Nothing but headers and configurations is read here; weights are read module by module, when somebody asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from next_ray.checkpoints.adapters import SavedTensors, StoredAdapter, StoredFactors, open_peft_folder
from next_ray.checkpoints.bases import CheckedBase, find_base, match_adapter, match_saved
from next_ray.checkpoints.discover import Found, discover, gaps
from next_ray.checkpoints.imported import Imported, NothingSaved, Source
from next_ray.checkpoints.models import SavedVectors, StoredMatrix, open_model_folder, same_tensors
from next_ray.delta.history import FactorHistory
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import CheckpointFormatError


def open_trajectory(
    paths: str | Sequence[str],
    base: str | None = None,
    keep_saved: bool = True,
    segment: int | None = None,
    endpoint_url: str | None = None,
) -> Imported:
    """Read the checkpoints of one training run, whichever trainer wrote them.

    The same arguments give the same import in another process: workers open the paths themselves.

    Args:
        paths: one path or several: checkpoint folders in any order, folders that hold them, or one run of our store (its URL or folder).
        base: folder or name of the model that training started from; None: what the checkpoints name. Full models need a folder.
        keep_saved: keep tensors that an adapter holds whole (`modules_to_save`); False refuses such checkpoints.
        segment: for a run that jumped, the step at which the trajectory began; None: the newest.
        endpoint_url: S3 server other than AWS.

    Raises:
        CheckpointFormatError: the checkpoints cannot be read or do not belong together; the message names the file.
        StoreError: the store cannot be read.
    """
    paths = [paths] if isinstance(paths, str) else [str(path) for path in paths]
    runs = [path for path in paths if is_run(path)]
    if runs:
        if len(paths) > 1:
            raise CheckpointFormatError(
                f"{runs[0]} is a run of a store and holds a whole trajectory; it cannot be combined with other paths."
            )
        return _from_run(runs[0], base, segment, endpoint_url)
    if segment is not None:
        raise CheckpointFormatError("A segment can be chosen of a run of our store only; name the checkpoints instead.")
    found, notes = discover(paths)
    return _from_models(found, base, notes) if found[0].kind == "dense" else _from_adapters(found, base, keep_saved, notes)


def is_run(path: str) -> bool:
    """Whether a path names a run of our store: a URL, or a local run folder."""
    return "://" in path or all(os.path.isdir(os.path.join(path, part)) for part in ("manifests", "objects"))


def run_and_checkpoint(place: str) -> tuple[str, str | None]:
    """`RUN@CHECKPOINT` apart (None: the newest); `24` is short for `00000024-trained`, `24-jumped` for `00000024-jumped`."""
    run, at, checkpoint = place.rpartition("@")
    if not at or "/" in checkpoint or ("://" not in place and is_run(place)):
        return place, None
    step, _, kind = checkpoint.partition("-")
    return run, f"{int(step):08d}-{kind or 'trained'}" if step.isdecimal() and len(step) <= 8 else checkpoint


def _from_adapters(found: list[Found], base: str | None, keep_saved: bool, notes: list[str]) -> Imported:
    folders = [open_peft_folder(checkpoint.folder) for checkpoint in found]
    adapters = tuple(folder.adapter for folder in folders)
    checked = find_base(base, {str(checkpoint.folder): folder.config.base for checkpoint, folder in zip(found, folders, strict=True)})
    if not keep_saved and (holding := next((adapter for adapter in adapters if adapter.saved), None)):
        raise CheckpointFormatError(
            f"{holding.file.path} holds {next(iter(holding.saved))!r} whole (modules_to_save), which was not asked for."
        )
    if not all(folder.config.starts_at_zero for folder in folders):
        notes.append("The adapters were initialized at random (init_lora_weights false): the first delta holds the initialization too.")
    sources = [
        Source(checkpoint.step, str(checkpoint.folder), checkpoint.format, (str(adapter.file.path),))
        for checkpoint, adapter in zip(found, adapters, strict=True)
    ]
    return _adapter_import(sources, adapters, checked, notes, folders[-1].document)


def _from_run(path: str, base: str | None, segment: int | None, endpoint_url: str | None) -> Imported:
    from next_ray.checkpoints.store_run import (  # no folder of checkpoints should wait for a store's libraries
        folders,
        open_run,
        prepared_base,
    )

    run = open_run(path, segment, endpoint_url)
    if not run.adapters and base is None:
        base = prepared_base(run)
    checked = find_base(base, {run.url: run.base_name}, run.base_fingerprint)
    if not run.adapters:
        if checked.base.path is None:
            raise CheckpointFormatError(
                f"{run.url} holds full weights, which are compared with the base {run.base_name!r}; give its folder (--base FOLDER)."
            )
        made = folders(run, checked.base.path, endpoint_url)
        found = [Found(manifest.step, folder, "store", "dense") for manifest, folder in zip(run.manifests, made, strict=True)]
        return _dense_import(found, checked, list(run.notes))
    sources = [
        Source(
            step=manifest.step,
            path=f"{run.url}/manifests/{manifest.id}.json",
            format="store",
            files=(str(adapter.file.path),),
            sha256={adapter.file.path.name: manifest.objects["adapter"].sha256},
        )
        for manifest, adapter in zip(run.manifests, run.adapters, strict=True)
    ]
    return _adapter_import(sources, run.adapters, checked, list(run.notes), {})


def _adapter_import(
    sources: Sequence[Source], adapters: tuple[StoredAdapter, ...], checked: CheckedBase, notes: list[str], config: Mapping[str, object]
) -> Imported:
    _same_modules(adapters)
    if whole := list(adapters[0].saved):
        notes.append(
            f"{', '.join(whole[:3])}{f' (and {len(whole) - 3} more)' if len(whole) > 3 else ''} was trained whole (modules_to_save): not "
            "extrapolated, results take it from the last checkpoint."
        )
    renamed: dict[str, str] = {}
    if checked.model is not None:
        renamed = match_adapter(adapters[0], checked.model)
        notes += match_saved(adapters[0], checked.model)
    if renamed:
        module, tensor = next(iter(renamed.items()))
        notes.append(f"The base's files name {len(renamed)} modules otherwise, for example {module} is {tensor} there.")
    steps = tuple(source.step for source in sources)
    return Imported(
        trajectory=WeightTrajectory(steps, {name: FactorHistory(StoredFactors(adapters, name)) for name in adapters[0].pairs}),
        kind="adapter",
        sources=tuple(sources),
        base=checked.base,
        saved=SavedTensors(adapters) if adapters[0].saved else NothingSaved(),
        notes=(*notes, *checked.notes, *gaps(steps)),
        adapter_config=config,
        renamed=renamed,
    )


def _from_models(found: list[Found], base: str | None, notes: list[str]) -> Imported:
    if base is None:
        raise CheckpointFormatError(
            f"{found[0].folder} is a full model: give the folder of the base that training started from (--base FOLDER)."
        )
    checked = find_base(base, {})
    if checked.model is None:
        raise CheckpointFormatError(
            f"The base {base!r} is not a folder here; full checkpoints are compared with it, so it is needed (--base FOLDER)."
        )
    return _dense_import(found, checked, notes)


def _dense_import(found: Sequence[Found], checked: CheckedBase, notes: list[str]) -> Imported:
    assert checked.model is not None
    models = (checked.model, *(open_model_folder(checkpoint.folder) for checkpoint in found))
    for model in models[1:]:
        same_tensors(model, checked.model)
    from next_ray.delta.dense import DenseHistory  # no mistake should wait for torch

    steps = tuple(checkpoint.step for checkpoint in found)
    saved = SavedVectors(models)
    if saved.names:
        notes.append(f"{len(saved.names)} tensors are no matrices (norms, biases, stacked experts): taken over, not extrapolated.")
    return Imported(
        trajectory=WeightTrajectory(
            steps, {name: DenseHistory(StoredMatrix(models, name), len(found)) for name in checked.model.matrices()}
        ),
        kind="dense",
        sources=tuple(
            Source(checkpoint.step, str(checkpoint.folder), checkpoint.format, tuple(str(file.path) for file in model.files))
            for checkpoint, model in zip(found, models[1:], strict=True)
        ),
        base=checked.base,
        saved=saved if saved.names else NothingSaved(),
        notes=(*notes, *checked.notes, *gaps(steps)),
    )


def _same_modules(adapters: Sequence[StoredAdapter]) -> None:
    """All adapters hold the same modules and whole tensors, in the same sizes; ranks may differ."""
    first = adapters[0]
    for adapter in adapters[1:]:
        if odd := sorted(set(adapter.pairs) ^ set(first.pairs)) or sorted(set(adapter.saved) ^ set(first.saved)):
            raise CheckpointFormatError(
                f"{adapter.file.path} and {first.file.path} hold different modules, for example {odd[0]!r}: they are of two runs."
            )
        for name in first.pairs:
            if adapter.shape(name) != first.shape(name):
                raise CheckpointFormatError(
                    f"{adapter.file.path}: module {name!r} is {list(adapter.shape(name))}, in {first.file.path} {list(first.shape(name))}: "
                    "they are adapters of two models."
                )
        for name, own in first.saved.items():
            if adapter.file.entries[adapter.saved[name]].shape != first.file.entries[own].shape:
                raise CheckpointFormatError(f"{adapter.file.path}: tensor {name!r} has another shape than in {first.file.path}.")
