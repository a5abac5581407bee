"""How well a straight line in the training step describes single entries: out of sample as NExt measures it, in sample as RL-Extra.

- Out of sample (NExt, arXiv 2604.11446, section 3.3 and figure 3): a least-squares line through the first two thirds of the
  checkpoints (10 of 15) predicts the rest; per entry of the rank-1 delta sigma_1 u_1 v_1^T (whose entries no sign of the triplet
  changes) R^2 = 1 - SSE/SST on the checkpoints that the fit has not seen, SST about their own mean.
- In sample (RL-Extra, arXiv 2601.04537): a line through all checkpoints 1..K, per entry of the weights themselves; they call
  R^2 > 0.7 strongly linear. The base is not a point of the fit. W_t and W_t - W_0 have the same R^2.

In-sample R^2 of a random walk is far from 0, so both come with the value that random walks over the same steps have.

Shape legend: K checkpoints, N entries.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from next_ray.delta.factors import FactorPair
from next_ray.delta.history import ModuleHistory
from next_ray.types import Triplet

BOUNDS = (-0.5, 0.0, 0.5)
"""Between the paper's four ranges of R^2."""

STRONG = 0.7
"""R^2 above which RL-Extra calls an entry strongly linear."""

TRAIN_SHARE = 2 / 3
MIN_TEST = 2
ENTRIES = 65_536
"""Entries of a module that are looked at: all when it has no more, else this many drawn with a seed made from its name."""

WALKS = 20_000


@dataclass(frozen=True)
class Linearity:
    """R^2 over entries.

    Args:
        shares: of entries with R^2 in (-inf, -0.5), [-0.5, 0), [0, 0.5), [0.5, 1].
        strong: share of entries with R^2 above 0.7.
        entries: how many had an R^2.
        constant: how many had none because they never changed on the points that R^2 is over.
        sse, sst: sums over the entries.
    """

    shares: tuple[float, float, float, float]
    strong: float
    entries: int
    constant: int
    sse: float
    sst: float

    @property
    def pooled(self) -> float:
        """1 - SSE/SST of all entries as one vector: what moves far counts more than what hardly moves."""
        return 1.0 - self.sse / self.sst


@dataclass(frozen=True)
class EntryR2:
    """SSE and SST of every entry, float64 [N] each; both are 0 for entries that are constant."""

    sse: np.ndarray
    sst: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """R^2 [N]; NaN for entries that are constant."""
        moved = self.sst > 0.0
        return np.where(moved, 1.0 - self.sse / np.where(moved, self.sst, 1.0), np.nan)


@dataclass(frozen=True)
class Entries:
    """Positions in a module, int64 [N] each; `exact` when these are all of them."""

    rows: np.ndarray
    columns: np.ndarray
    exact: bool


def num_train(num_checkpoints: int) -> int | None:
    """How many checkpoints the line is fitted to; None when fewer than 2 would be left on either side."""
    train = round(num_checkpoints * TRAIN_SHARE)
    train = min(train, num_checkpoints - MIN_TEST)
    return train if train >= 2 else None


def sample_entries(name: str, shape: tuple[int, int], limit: int = ENTRIES) -> Entries:
    """All entries of a small module, a fixed random choice (with replacement) of a large one."""
    if shape[0] * shape[1] <= limit:
        rows, columns = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
        return Entries(rows, columns, True)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return Entries(rng.integers(shape[0], size=limit), rng.integers(shape[1], size=limit), False)


def rank1_values(triplets: Sequence[Triplet], entries: Entries) -> np.ndarray:
    """Entries of sigma u v^T for each triplet, float64 [K, N]."""
    return np.stack([t.sigma * t.u.astype(np.float64)[entries.rows] * t.v.astype(np.float64)[entries.columns] for t in triplets])


def weight_values(history: ModuleHistory, entries: Entries) -> np.ndarray:
    """Entries of W_t - W_0, float64 [K, N]."""
    return np.stack([_values(history, t, entries) for t in range(history.num_checkpoints)])


def _values(history: ModuleHistory, position: int, entries: Entries) -> np.ndarray:
    delta = history.combine(np.eye(history.num_checkpoints)[position])
    if not isinstance(delta, FactorPair):
        return delta[entries.rows, entries.columns]
    left, right = delta.left, np.ascontiguousarray(delta.right.T)
    parts = [slice(start, start + 8192) for start in range(0, len(entries.rows), 8192)]
    return np.concatenate([np.einsum("nq,nq->n", left[entries.rows[p]], right[entries.columns[p]]) for p in parts])


def r2_ahead(steps: Sequence[int], values: np.ndarray, train: int) -> EntryR2:
    """On checkpoints train+1..K of a line through checkpoints 1..train."""
    x = np.asarray(steps, dtype=np.float64)
    prediction = _hat(x[:train], x[train:]) @ values[:train]
    return _r2(values[train:], prediction)


def r2_within(steps: Sequence[int], values: np.ndarray) -> EntryR2:
    """Of a line through all K checkpoints on the same checkpoints."""
    x = np.asarray(steps, dtype=np.float64)
    return _r2(values, _hat(x, x) @ values)


def summary(r2: EntryR2) -> Linearity | None:
    """None when no entry has an R^2."""
    values = r2.values
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return None
    counts = np.bincount(np.digitize(known, BOUNDS), minlength=4) / len(known)
    shares = (float(counts[0]), float(counts[1]), float(counts[2]), float(counts[3]))
    strong, constant = float(np.mean(known > STRONG)), len(values) - len(known)
    return Linearity(shares, strong, len(known), constant, float(r2.sse.sum()), float(r2.sst.sum()))


def random_walks(steps: Sequence[int], train: int | None) -> tuple[Linearity | None, Linearity | None]:
    """`r2_ahead` and `r2_within` of normal random walks that start at 0 at step 0; seeded."""
    gaps = np.diff(np.asarray(steps, dtype=np.float64), prepend=0.0)
    noise = np.random.default_rng(0).normal(size=(len(steps), WALKS))
    walks = np.cumsum(noise * np.sqrt(np.maximum(gaps, 0.0))[:, None], axis=0)
    ahead = summary(r2_ahead(steps, walks, train)) if train is not None else None
    return ahead, summary(r2_within(steps, walks)) if len(steps) > 2 else None


def _hat(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The matrix that takes values at `x` to their least-squares line's values at `at`."""
    centred = x - x.mean()
    return 1.0 / len(x) + np.outer(at - x.mean(), centred) / np.sum(centred**2)


def _r2(actual: np.ndarray, predicted: np.ndarray) -> EntryR2:
    spread = np.sum((actual - actual.mean(axis=0)) ** 2, axis=0)
    error = np.sum((actual - predicted) ** 2, axis=0)
    moved = spread > 1e-24 * np.maximum(np.sum(actual**2, axis=0), np.finfo(np.float64).tiny)
    return EntryR2(np.where(moved, error, 0.0), np.where(moved, spread, 0.0))
