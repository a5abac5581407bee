"""NExt's model of a trajectory: one network per (orientation, dimension) for the vectors and one for the sizes.

Shape legend: N examples, D dimension, C coordinates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from next_ray.config import PredictorSection
from next_ray.predict.coordinates import span_basis
from next_ray.predict.fit import Examples, fit, one_thread
from next_ray.predict.network import NextNetwork
from next_ray.predict.trajectory import AlignedTrajectory
from next_ray.types import Triplet

Orientation = Literal["u", "v"]
Example = tuple[int, str]

SIGMA_HIDDEN = 32
"""Width of the network for the sizes."""


class GroupKey(NamedTuple):
    """Vectors that share a network."""

    orientation: Orientation
    dimension: int


class VectorModel:
    """Predicts u_T and v_T. `num_coordinates` None works on the entries themselves, as released (slow: cost grows with D)."""

    def __init__(self, cfg: PredictorSection, seed: int, num_coordinates: int | None) -> None:
        self._cfg = cfg
        self._generator = torch.Generator().manual_seed(seed)
        self._num_coordinates = num_coordinates
        self._networks: dict[GroupKey, NextNetwork] = {}
        self._bases: dict[tuple[Orientation, str], np.ndarray] = {}

    def fit(self, trajectory: AlignedTrajectory, steps: int) -> float:
        """Fit all networks on every example of the trajectory, from where they are; returns the summed last losses."""
        self._update_bases(trajectory)
        loss = 0.0
        with one_thread():
            for key, members in sorted(_groups(trajectory, trajectory.examples()).items()):
                network = self._network(key)
                loss += fit(network, self._examples(trajectory, key, members, True), len(trajectory.targets), steps, self._cfg)
        return loss

    def predict(self, trajectory: AlignedTrajectory) -> dict[tuple[Orientation, str], np.ndarray]:
        """Unit vectors [D] for the last checkpoint's trained modules; modules of a group never fitted are left out."""
        result: dict[tuple[Orientation, str], np.ndarray] = {}
        last = trajectory.last_index
        with one_thread(), torch.no_grad():
            for key, members in _groups(trajectory, [(last, name) for name in trajectory.trained(last)]).items():
                if key not in self._networks:
                    continue
                inputs = self._examples(trajectory, key, members, False)
                found = self._networks[key](inputs.global_, inputs.local).double().numpy()
                for (_, name), row in zip(members, found, strict=True):
                    vector = self._bases[key.orientation, name] @ row if self._num_coordinates is not None else row
                    size = np.linalg.norm(vector)
                    if np.isfinite(size) and size > 0:
                        result[key.orientation, name] = (vector / size).astype(np.float32)
        return result

    def _network(self, key: GroupKey) -> NextNetwork:
        if key not in self._networks:
            dimension = key.dimension if self._num_coordinates is None else self._num_coordinates
            self._networks[key] = NextNetwork(dimension, self._cfg.hidden, self._generator)
        return self._networks[key]

    def _update_bases(self, trajectory: AlignedTrajectory) -> None:
        if self._num_coordinates is None:
            return
        deltas = [*trajectory.globals_.values(), *trajectory.locals_.values(), *trajectory.targets.values()]
        latest = trajectory.globals_[trajectory.last_index]
        for name in latest:
            for orientation in ("u", "v"):
                vectors = np.stack([_vector(delta[name], orientation) for delta in deltas])
                key = (orientation, name)
                previous = self._bases.get(key)
                self._bases[key] = span_basis(vectors, self._num_coordinates, _vector(latest[name], orientation), previous)

    def _examples(self, trajectory: AlignedTrajectory, key: GroupKey, members: Sequence[Example], targets: bool) -> Examples:
        def rows(deltas: dict[int, dict[str, Triplet]]) -> torch.Tensor:
            vectors = []
            for index, name in members:
                vector = _vector(deltas[index][name], key.orientation)
                vectors.append(vector if self._num_coordinates is None else vector @ self._bases[key.orientation, name])
            return torch.from_numpy(np.stack(vectors).astype(np.float32))

        empty = torch.empty(0)
        return Examples(rows(trajectory.globals_), rows(trajectory.locals_), rows(trajectory.targets) if targets else empty)


class SigmaModel:
    """Predicts sigma_T as sigma_L times exp of a standardised log ratio: positive, scale-free, never a dead ReLU.

    sigma_G grows along a trajectory, so the last checkpoint lies outside what was trained on. Inputs and the ratio are held to
    the range of the examples: the network interpolates and never runs away.
    """

    def __init__(self, cfg: PredictorSection, seed: int) -> None:
        self._cfg = cfg
        self._network = NextNetwork(1, SIGMA_HIDDEN, torch.Generator().manual_seed(seed), inner=SIGMA_HIDDEN)
        self._centre = np.zeros(3)
        self._spread = np.ones(3)
        self._low = np.zeros(3)
        self._high = np.zeros(3)

    def fit(self, trajectory: AlignedTrajectory, steps: int) -> float:
        """Fit on every example of the trajectory, from where the network is; returns the last loss."""
        members = trajectory.examples()
        size_g, size_l = _log_sizes(trajectory.globals_, members), _log_sizes(trajectory.locals_, members)
        ratio = _log_sizes(trajectory.targets, members) - size_l
        columns = np.stack([size_g, size_l, ratio], axis=1)
        self._centre, spread = columns.mean(axis=0), columns.std(axis=0)
        self._spread = np.where(spread > 1e-6, spread, 1.0)
        self._low, self._high = columns.min(axis=0), columns.max(axis=0)
        table = torch.from_numpy(((columns - self._centre) / self._spread).astype(np.float32))
        with one_thread():
            return fit(self._network, Examples(table[:, :1], table[:, 1:2], table[:, 2:]), len(trajectory.targets), steps, self._cfg)

    def predict(self, trajectory: AlignedTrajectory) -> dict[str, float]:
        """sigma_T > 0 for the last checkpoint's trained modules; sigma_T/sigma_L stays within the range seen."""
        last = trajectory.last_index
        members = [(last, name) for name in trajectory.trained(last)]
        size_l = _log_sizes(trajectory.locals_, members)
        columns = np.stack([_log_sizes(trajectory.globals_, members), size_l], axis=1).clip(self._low[:2], self._high[:2])
        table = torch.from_numpy(((columns - self._centre[:2]) / self._spread[:2]).astype(np.float32))
        with one_thread(), torch.no_grad():
            found = self._network(table[:, :1], table[:, 1:]).double().numpy()[:, 0]
        ratio = np.clip(found * self._spread[2] + self._centre[2], self._low[2], self._high[2])
        return {name: float(np.exp(s + r)) for (_, name), s, r in zip(members, size_l, ratio, strict=True)}


def _vector(triplet: Triplet, orientation: str) -> np.ndarray:
    return triplet.u if orientation == "u" else triplet.v


def _groups(trajectory: AlignedTrajectory, members: Sequence[Example]) -> dict[GroupKey, list[Example]]:
    groups: dict[GroupKey, list[Example]] = defaultdict(list)
    for index, name in members:
        triplet = trajectory.globals_[index][name]
        groups[GroupKey("u", len(triplet.u))].append((index, name))
        groups[GroupKey("v", len(triplet.v))].append((index, name))
    return groups


def _log_sizes(deltas: dict[int, dict[str, Triplet]], members: Sequence[Example]) -> np.ndarray:
    return np.log([deltas[index][name].sigma for index, name in members])
