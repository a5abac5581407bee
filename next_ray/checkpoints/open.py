"""The door: paths of anybody's checkpoints in, a trajectory out."""

from __future__ import annotations

from collections.abc import Sequence

from next_ray.checkpoints.adapters import PeftFolder, SavedTensors, StoredAdapter, StoredFactors, open_peft_folder
from next_ray.checkpoints.discover import Found, discover, gaps
from next_ray.checkpoints.imported import Base, Imported, NothingSaved, Source
from next_ray.delta.history import FactorHistory
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import CheckpointFormatError


def open_trajectory(paths: Sequence[str], base: str | None = None, keep_saved: bool = True) -> Imported:
    """Read the checkpoints of one training run, whichever trainer wrote them. Weights are read later, module by module.

    Args:
        paths: checkpoint folders in any order, or folders that hold them.
        base: folder or name of the model that training started from; None: what the checkpoints' configurations name.
        keep_saved: keep tensors that were trained whole (`modules_to_save`); False refuses such checkpoints.

    Raises:
        CheckpointFormatError: the checkpoints cannot be read or do not belong together; the message names the file.
    """
    found, notes = discover(paths)
    folders = [open_peft_folder(checkpoint.folder) for checkpoint in found]
    return _adapters(found, folders, base, keep_saved, notes)


def _adapters(found: list[Found], folders: list[PeftFolder], base: str | None, keep_saved: bool, notes: list[str]) -> Imported:
    adapters = tuple(folder.adapter for folder in folders)
    _same_modules(adapters)
    modules = {name: FactorHistory(StoredFactors(adapters, name)) for name in adapters[0].pairs}
    steps = tuple(checkpoint.step for checkpoint in found)
    return Imported(
        trajectory=WeightTrajectory(steps, modules),
        kind="adapter",
        sources=tuple(
            Source(checkpoint.step, str(checkpoint.folder), checkpoint.format, (str(adapter.file.path),))
            for checkpoint, adapter in zip(found, adapters, strict=True)
        ),
        base=Base(base or folders[0].config.base),
        saved=SavedTensors(adapters) if adapters[0].saved else NothingSaved(),
        notes=(*notes, *gaps(steps)),
        adapter_config=folders[-1].document,
    )


def _same_modules(adapters: Sequence[StoredAdapter]) -> None:
    first = adapters[0]
    for adapter in adapters[1:]:
        if odd := sorted(set(adapter.pairs) ^ set(first.pairs)) or sorted(set(adapter.saved) ^ set(first.saved)):
            raise CheckpointFormatError(
                f"{adapter.file.path} and {first.file.path} hold different modules, for example {odd[0]!r}: they are of two runs."
            )
        for name in first.pairs:
            if adapter.shape(name) != first.shape(name):
                raise CheckpointFormatError(
                    f"{adapter.file.path}: module {name!r} is {adapter.shape(name)}, in {first.file.path} {first.shape(name)}: "
                    "they are adapters of two models."
                )
