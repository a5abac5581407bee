"""NExt's model of a trajectory: one network per (orientation, dimension) for the vectors and one for the sizes.

Shape legend: N examples, D dimension, C coordinates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from next_ray.config import PredictorSection
from next_ray.predict.coordinates import random_frame, recover, span
from next_ray.predict.fit import Examples, fit
from next_ray.predict.network import Inputs, NextNetwork
from next_ray.predict.trajectory import AlignedTrajectory, Triplets
from next_ray.threads import one_thread
from next_ray.types import Triplet

Orientation = Literal["u", "v"]
Example = tuple[int, str]

MIN_INNER = 64
"""Least width at the ReLU of a vector network: as released (the dimension) for every real layer, wider for toy ones, where a
handful of units is often dead for a whole module."""

SIGMA_HIDDEN = 32
"""Width of the network for the sizes."""


class GroupKey(NamedTuple):
    """Vectors that share a network."""

    orientation: Orientation
    dimension: int


class VectorModel:
    """Predicts u_T and v_T. `num_coordinates` None works on the entries themselves, as released (cost grows with D)."""

    def __init__(self, cfg: PredictorSection, seed: int, num_coordinates: int | None, inputs: Inputs = "both") -> None:
        self._cfg = cfg
        self._seed = seed
        self._inputs: Inputs = inputs
        self._generator = torch.Generator().manual_seed(seed)
        self._num_coordinates = num_coordinates
        self._networks: dict[GroupKey, NextNetwork] = {}
        self._frames: dict[GroupKey, np.ndarray] = {}

    @property
    def num_parameters(self) -> int:
        """Numbers in all networks so far."""
        return sum(p.numel() for network in self._networks.values() for p in network.parameters())

    def fit(self, trajectory: AlignedTrajectory, steps: int) -> float:
        """Fit all networks on every example of the trajectory, from where they are; returns the summed last losses."""
        fitted: list[tuple[NextNetwork, Examples]] = []
        with one_thread():
            for key, members in sorted(_groups(trajectory, trajectory.examples()).items()):
                self._prepare(key)
                deltas = (trajectory.globals_, trajectory.locals_, trajectory.targets)
                fitted.append((self._networks[key], Examples(*(self._rows(delta, key, members) for delta in deltas))))
            return fit(fitted, len(trajectory.targets), steps, self._cfg) if fitted else 0.0

    def predict(self, trajectory: AlignedTrajectory) -> dict[tuple[Orientation, str], np.ndarray]:
        """Unit vectors [D] for the last checkpoint's trained modules; modules of a group never fitted are left out."""
        result: dict[tuple[Orientation, str], np.ndarray] = {}
        last = trajectory.last_index
        with one_thread(), torch.no_grad():
            for key, members in _groups(trajectory, [(last, name) for name in trajectory.trained(last)]).items():
                if key not in self._networks:
                    continue
                inputs = self._rows(trajectory.globals_, key, members), self._rows(trajectory.locals_, key, members)
                found = self._networks[key](*inputs).double().numpy()
                for (_, name), row in zip(members, found, strict=True):
                    vector = self._vector_of(row, key, name, trajectory)
                    size = np.linalg.norm(vector)
                    if np.isfinite(size) and size > 0:
                        result[key.orientation, name] = (vector / size).astype(np.float32)
        return result

    def _prepare(self, key: GroupKey) -> None:
        if key in self._networks:
            return
        num_coordinates = key.dimension if self._num_coordinates is None else min(key.dimension, self._num_coordinates)
        inner = max(num_coordinates, MIN_INNER)
        self._networks[key] = NextNetwork(num_coordinates, self._cfg.hidden, self._generator, inner, self._inputs)
        self._frames[key] = random_frame(key.dimension, num_coordinates, self._seed)

    def _rows(self, deltas: Mapping[int, Triplets], key: GroupKey, members: Sequence[Example]) -> torch.Tensor:
        vectors = np.stack([_vector(deltas[index][name], key.orientation) for index, name in members])
        return torch.from_numpy((vectors @ self._frames[key]).astype(np.float32))

    def _vector_of(self, row: np.ndarray, key: GroupKey, name: str, trajectory: AlignedTrajectory) -> np.ndarray:
        if self._num_coordinates is None:
            return row
        deltas = [*trajectory.globals_.values(), *trajectory.locals_.values(), *trajectory.targets.values()]
        visited = np.stack([_vector(delta[name], key.orientation) for delta in deltas])
        return recover(row, self._frames[key], span(visited, self._num_coordinates // 2))


class SigmaModel:
    """Predicts sigma_T as sigma_L (sigma_G where no L is seen) times exp of a standardised log ratio: positive, scale-free, no dead ReLU.

    sigma_G grows along a trajectory, so the last checkpoint lies outside what was trained on. Inputs and the ratio are held to
    the range of the examples: the network interpolates and never runs away.
    """

    def __init__(self, cfg: PredictorSection, seed: int, inputs: Inputs = "both") -> None:
        self._cfg = cfg
        self._unit = 0 if inputs == "global" else 1
        self._network = NextNetwork(1, SIGMA_HIDDEN, torch.Generator().manual_seed(seed), SIGMA_HIDDEN, inputs)
        self._centre = np.zeros(3)
        self._spread = np.ones(3)
        self._low = np.zeros(3)
        self._high = np.zeros(3)

    @property
    def num_parameters(self) -> int:
        """Numbers in the network."""
        return sum(p.numel() for p in self._network.parameters())

    def fit(self, trajectory: AlignedTrajectory, steps: int) -> float:
        """Fit on every example of the trajectory, from where the network is; returns the last loss."""
        members = trajectory.examples()
        sizes = _log_sizes(trajectory.globals_, members), _log_sizes(trajectory.locals_, members)
        columns = np.stack([*sizes, _log_sizes(trajectory.targets, members) - sizes[self._unit]], axis=1)
        self._centre, spread = columns.mean(axis=0), columns.std(axis=0)
        self._spread = np.where(spread > 1e-6, spread, 1.0)
        self._low, self._high = columns.min(axis=0), columns.max(axis=0)
        table = torch.from_numpy(((columns - self._centre) / self._spread).astype(np.float32))
        with one_thread():
            examples = Examples(table[:, :1], table[:, 1:2], table[:, 2:])
            return fit([(self._network, examples)], len(trajectory.targets), steps, self._cfg)

    def predict(self, trajectory: AlignedTrajectory) -> dict[str, float]:
        """sigma_T > 0 for the last checkpoint's trained modules; its ratio stays within the range seen."""
        last = trajectory.last_index
        members = [(last, name) for name in trajectory.trained(last)]
        sizes = _log_sizes(trajectory.globals_, members), _log_sizes(trajectory.locals_, members)
        columns = np.stack(sizes, axis=1).clip(self._low[:2], self._high[:2])
        table = torch.from_numpy(((columns - self._centre[:2]) / self._spread[:2]).astype(np.float32))
        with one_thread(), torch.no_grad():
            found = self._network(table[:, :1], table[:, 1:]).double().numpy()[:, 0]
        ratio = np.clip(found * self._spread[2] + self._centre[2], self._low[2], self._high[2])
        return {name: float(np.exp(s + r)) for (_, name), s, r in zip(members, sizes[self._unit], ratio, strict=True)}


def _vector(triplet: Triplet, orientation: str) -> np.ndarray:
    return triplet.u if orientation == "u" else triplet.v


def _groups(trajectory: AlignedTrajectory, members: Sequence[Example]) -> dict[GroupKey, list[Example]]:
    groups: dict[GroupKey, list[Example]] = defaultdict(list)
    for index, name in members:
        triplet = trajectory.globals_[index][name]
        groups[GroupKey("u", len(triplet.u))].append((index, name))
        groups[GroupKey("v", len(triplet.v))].append((index, name))
    return groups


def _log_sizes(deltas: Mapping[int, Triplets], members: Sequence[Example]) -> np.ndarray:
    return np.log([deltas[index][name].sigma for index, name in members])
