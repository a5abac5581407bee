"""Energies, linearity and the path of the weights of a stored run, from as many of its adapters as may be read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from next_ray.delta.factors import difference, from_base, spectra
from next_ray.delta.gauge import align
from next_ray.delta.trajectory import WeightTrajectory, from_adapters
from next_ray.inspect.analysis import Inspection, default_horizon, inspect_trajectory
from next_ray.inspect.plane import plane
from next_ray.report.page.data import Weights
from next_ray.store.checkpoints import RESUMABLE, CheckpointStore
from next_ray.types import Adapter, CheckpointKind, LoraFactors, Manifest, ModuleTriplets

TRAJECTORY, PATH = 16, 24
"""Checkpoints that are measured of the one trajectory that is inspected, and of the whole path."""

METHODS = ("persistence", "two-point", "linear-fit")
"""What is back tested here: methods of plain arithmetic. `python -m next_ray.inspect` tries all."""

READERS = 4


def measured(store: CheckpointStore, manifests: Sequence[Manifest], measure_bytes: int) -> Weights:
    """What the adapters show; what was left out is said in the notes. Raises `StoreError` for adapters that are damaged or gone."""
    found = [manifest for manifest in manifests if manifest.kind in RESUMABLE and "adapter" in manifest.objects]
    if any(manifest.is_whole for manifest in manifests):
        return Weights(notes=("All weights were trained; python -m next_ray.inspect measures such checkpoints.",))
    if len(found) < 2:
        return Weights()
    largest = max(manifest.objects["adapter"].size_bytes for manifest in found)
    allowed = measure_bytes // largest
    if allowed < 2:
        size = f"An adapter has {largest / 2**20:.0f} MiB and at most {measure_bytes / 2**20:.0f} MiB are read"
        return Weights(notes=(f"{size}: give --measure MIB to read more, or use python -m next_ray.inspect.",))
    first = _first_trajectory(found)
    inspected = _evenly(first, min(TRAJECTORY, allowed))
    path = _path(found, max(2, min(PATH, allowed - len(inspected))))
    wanted = {manifest.id: manifest for manifest in (*inspected, *path)}
    with ThreadPoolExecutor(READERS) as pool:
        adapters = dict(zip(wanted, pool.map(store.load_adapter, wanted.values()), strict=True))
    return Weights(
        inspection=_inspection(inspected, [adapters[one.id] for one in inspected]),
        plane=plane([one.id for one in path], _gram([adapters[one.id] for one in path])),
        notes=_notes(len(inspected), len(first), len(path), len(found), first[0]),
    )


def _first_trajectory(found: Sequence[Manifest]) -> list[Manifest]:
    """The trained checkpoints from which the first jump was tried."""
    trained = [manifest for manifest in found if manifest.kind is CheckpointKind.TRAINED]
    start = min((manifest.metadata.get("segment_start", 0) for manifest in trained), default=0)
    return [manifest for manifest in trained if manifest.metadata.get("segment_start", 0) == start] or list(found)


def _evenly(manifests: Sequence[Manifest], count: int) -> list[Manifest]:
    """At most `count`, at an even distance back from the newest: a line through them needs that."""
    every = -(-len(manifests) // count)
    return list(manifests[::-1][::every][::-1])


def _path(found: Sequence[Manifest], count: int) -> list[Manifest]:
    """At most about `count`: all jumps with both their ends, the last one, and of the others some, evenly."""
    by_id = {manifest.id: manifest for manifest in found}
    turns = [manifest for manifest in found if manifest.kind is not CheckpointKind.TRAINED]
    kept = {id_ for turn in turns[-count // 2 :] for id_ in (turn.id, *turn.parents) if id_ in by_id} | {found[-1].id}
    others = [manifest for manifest in found if manifest.id not in kept]
    kept |= {manifest.id for manifest in _evenly(others, max(1, count - len(kept)))}
    return [manifest for manifest in found if manifest.id in kept]


def _inspection(manifests: Sequence[Manifest], adapters: Sequence[Adapter]) -> Inspection | None:
    if len(manifests) < 2:
        return None
    from next_ray.extrapolate.methods.registry import make

    trajectory = from_adapters([manifest.step for manifest in manifests], adapters)
    horizon = default_horizon(trajectory.num_checkpoints)
    known = replace(trajectory, computed={horizon: _triplets(trajectory)})
    return inspect_trajectory(known, [make(name) for name in METHODS], horizon)


def _triplets(trajectory: WeightTrajectory) -> dict[str, list[ModuleTriplets]]:
    """G and L of every checkpoint, without the targets that only the predictor needs; here nobody waits for torch."""
    found: dict[str, list[ModuleTriplets]] = {name: [] for name in trajectory.modules}
    before: dict[str, LoraFactors] = {}
    for t in range(trajectory.num_checkpoints):
        now = {name: history.factors[t] for name, history in trajectory.modules.items()}  # pyright: ignore[reportAttributeAccessIssue]
        own = spectra({name: from_base(factors) for name, factors in now.items()})
        steps = spectra({name: difference(factors, before[name]) for name, factors in now.items()}) if before else own
        for name, spectrum in own.items():
            global_ = align(spectrum.top, found[name][-1].global_ if found[name] else None)
            local = align(steps[name].top, global_)
            found[name].append(ModuleTriplets(global_, local, None, spectrum.energy, spectrum.frobenius_energy))
        before = now
    return found


def _gram(adapters: Sequence[Adapter]) -> np.ndarray:
    """Inner products of all weights, float64 [K, K]."""
    modules = from_adapters(range(1, len(adapters) + 1), adapters).modules
    return np.sum([module.gram() for module in modules.values()], axis=0)


def _notes(inspected: int, all_inspected: int, path: int, all_: int, first: Manifest) -> tuple[str, ...]:
    start = first.metadata.get("segment_start", 0)
    which = f"from step {start}" if start else "from the base"
    notes = [f"Energy, layers and linearity are of the first trajectory, {which}."] if all_inspected < all_ else []
    if inspected < all_inspected or path < all_:
        shares = f"{inspected} of {all_inspected} checkpoints of that trajectory and {path} of {all_} of the path"
        notes.append(
            f"To keep the report quick, {shares} were read (--measure reads more of large adapters; next_ray.inspect measures all)."
        )
    return tuple(notes)
