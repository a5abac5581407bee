"""NExt's predictor on a growing trajectory: fit, refine, predict, and an honest back test beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from next_ray.config import PredictorSection
from next_ray.errors import ExtrapolationError
from next_ray.predict.baselines import linear, persistence, relative_error
from next_ray.predict.facts import MIN_TARGETS, Inputs
from next_ray.predict.models import SigmaModel, VectorModel
from next_ray.predict.trajectory import AlignedTrajectory
from next_ray.types import BacktestScore, CheckpointTriplets, Triplet

NUM_COORDINATES = 128
"""Coordinates of a vector; shorter ones keep their entries, longer ones are seen through a random frame (see `coordinates`)."""


@dataclass(frozen=True)
class _Forecast:
    """What each method said at a checkpoint, kept until the target is known."""

    next_: dict[str, Triplet]
    persistence: dict[str, Triplet]
    linear: dict[str, Triplet]


class TrajectoryPredictor:
    """Learns (G_i, L_i) -> T_i from the trajectory so far and predicts T_c (NExt, arXiv 2604.11446, section 4.2).

    The back test is prequential at the full horizon: at checkpoint j every method forecasts T_j from checkpoints 1..j alone,
    and is scored when checkpoint j + k arrives. That is the situation of a jump, it leaks nothing, and it costs no extra fit.
    The first fit is at checkpoint k + 2, so the first score is at 2k + 2 and checkpoint c has max(0, c - 2k - 1) scores.

    The result depends on the trajectory, `cfg` and `seed` alone: not on the sign of any triplet, the order of modules, the
    number of threads or the global random state.

    Args:
        cfg: sizes and steps of the fit.
        horizon: k in checkpoints.
        seed: seed of the networks' initialisation.
        abstain: withdraw when the back test says so (see `abstention`).
        num_coordinates: coordinates of a vector; None fits on all entries and predicts freely, as the release does.
        inputs: which deltas the networks see; one alone is an ablation.
    """

    def __init__(
        self,
        cfg: PredictorSection,
        horizon: int,
        seed: int,
        abstain: bool,
        num_coordinates: int | None = NUM_COORDINATES,
        inputs: Inputs = "both",
    ) -> None:
        self._cfg = cfg
        self._abstain = abstain
        self._trajectory = AlignedTrajectory(horizon)
        self._vectors = VectorModel(cfg, 2 * seed, num_coordinates, inputs)
        self._sigma = SigmaModel(cfg, 2 * seed + 1, inputs)
        self._fitted = False
        self._forecasts: dict[int, _Forecast] = {}
        self._scores: dict[int, BacktestScore] = {}
        self._stats: dict[str, float] = {}

    @property
    def last_index(self) -> int:
        """Index c of the newest checkpoint, 0 before the first."""
        return self._trajectory.last_index

    @property
    def backtest(self) -> tuple[BacktestScore, ...]:
        """Scores of all held-out transitions, oldest first; `index` is the checkpoint i the transition T_i starts from."""
        return tuple(self._scores.values())

    @property
    def stats(self) -> Mapping[str, float]:
        """Numbers to log: targets, fit_seconds and fit losses of the last fit, parameters of all networks, num_modules predicted."""
        return dict(self._stats)

    @property
    def abstention(self) -> str | None:
        """Why NExt is withdrawn, or None.

        It is withdrawn when its median error over the held-out transitions is above persistence's and above the linear fit's.
        Without a held-out transition it is not withdrawn: the gate still stands behind it (see `evidence`).
        """
        if not self._abstain or not self._scores:
            return None
        next_, persisting, line = self._medians()
        if next_ > persisting and next_ > line:
            return f"it lost to persistence and to the linear fit: {self.evidence}"
        return None

    @property
    def evidence(self) -> str:
        """The back test in one phrase, also when there is none yet."""
        if not self._scores:
            first = 2 * self._trajectory.horizon + 2
            return f"no held-out transition yet; the first is known at checkpoint {first}"
        next_, persisting, line = self._medians()
        return (
            f"median relative error next {next_:.3f}, persistence {persisting:.3f}, linear {line:.3f} "
            f"on {len(self._scores)} held-out transition{'s' if len(self._scores) > 1 else ''}"
        )

    def observe(self, triplets: CheckpointTriplets) -> BacktestScore | None:
        """Take the next checkpoint: score the forecast it settles, fit with the new target, forecast from here.

        Returns the new score, if a forecast was settled. A checkpoint already seen changes nothing and returns its score again.

        Raises:
            ExtrapolationError: a gap in the indices, other modules than before, or a target that is missing.
        """
        origin = triplets.index - self._trajectory.horizon
        if triplets.index <= self.last_index:
            return self._scores.get(origin)
        self._trajectory.append(triplets)
        score = self._settle(origin)
        if len(self._trajectory.targets) >= MIN_TARGETS and self._trajectory.examples():
            self._fit()
            self._forecasts[triplets.index] = self._forecast()
        return score

    def predict(self) -> dict[str, Triplet]:
        """T_c for the last checkpoint c: unit `u`, `v` and sigma > 0, for the modules that training has moved.

        Raises:
            ExtrapolationError: fewer than two targets are known, or no module has moved.
        """
        forecast = self._forecasts.get(self.last_index)
        if forecast is None or not forecast.next_:
            need = self._trajectory.horizon + MIN_TARGETS
            raise ExtrapolationError(
                f"No prediction at checkpoint {self.last_index}: the first fit needs checkpoint {need} (horizon + {MIN_TARGETS}) and "
                "deltas that are not zero. Wait for more checkpoints or lower extrapolation.horizon."
            )
        return dict(forecast.next_)

    def _settle(self, origin: int) -> BacktestScore | None:
        forecast = self._forecasts.pop(origin, None)
        if forecast is None:
            return None
        actual = self._trajectory.targets[origin]
        errors = (relative_error(method, actual) for method in (forecast.next_, forecast.persistence, forecast.linear))
        self._scores[origin] = BacktestScore(origin, *errors)
        return self._scores[origin]

    def _fit(self) -> None:
        began = time.perf_counter()
        steps = self._cfg.refine_steps if self._fitted else self._cfg.fit_steps
        vector_loss = self._vectors.fit(self._trajectory, steps)
        sigma_loss = self._sigma.fit(self._trajectory, steps)
        self._fitted = True
        self._stats = {
            "targets": float(len(self._trajectory.targets)),
            "fit_seconds": time.perf_counter() - began,
            "vector_loss": vector_loss,
            "sigma_loss": sigma_loss,
            "parameters": float(self._vectors.num_parameters + self._sigma.num_parameters),
        }

    def _forecast(self) -> _Forecast:
        vectors, sizes = self._vectors.predict(self._trajectory), self._sigma.predict(self._trajectory)
        next_ = {
            name: Triplet(sigma, vectors["u", name], vectors["v", name])
            for name, sigma in sizes.items()
            if ("u", name) in vectors and ("v", name) in vectors
        }
        self._stats["num_modules"] = float(len(next_))
        return _Forecast(next_, persistence(self._trajectory), linear(self._trajectory))

    def _medians(self) -> tuple[float, float, float]:
        scores = self.backtest
        return (
            statistics.median(s.next_ for s in scores),
            statistics.median(s.persistence for s in scores),
            statistics.median(s.linear for s in scores),
        )
