from dataclasses import replace

import numpy as np
import pytest

from next_ray.config import PredictorSection
from next_ray.predict.models import SigmaModel
from next_ray.predict.trajectory import AlignedTrajectory
from tests.predict.trajectories import rank_one_trajectory

SHAPES = {f"m{i}": (6, 5) for i in range(5)}
CFG = PredictorSection(hidden=16, fit_steps=200)


def grown(growth: float, count: int = 7) -> AlignedTrajectory:
    trajectory = AlignedTrajectory(3)
    for checkpoint in rank_one_trajectory(SHAPES, count, 3, seed=0, growth=growth):
        trajectory.append(checkpoint)
    return trajectory


@pytest.mark.parametrize("seed", range(10))
def test_no_seed_is_dead(seed):
    """Sizes t^2: sigma_T / sigma_L = ((t+3)^2 - t^2) / (2t - 1) falls from 15 to 4.7; a dead ReLU could only say one number."""
    trajectory = grown(2.0)
    model = SigmaModel(CFG, seed)
    model.fit(trajectory, 200)
    ratios = []
    for index in (1, 2, 4):
        shorter = AlignedTrajectory(3)
        shorter.globals_ = {i: trajectory.globals_[i] for i in range(1, index + 1)}
        shorter.locals_ = {i: trajectory.locals_[i] for i in range(1, index + 1)}
        found = model.predict(shorter)
        ratios.append(np.mean([found[name] / trajectory.locals_[index][name].sigma for name in SHAPES]))
    np.testing.assert_allclose(ratios, [15.0, 7.0, 33 / 7], rtol=0.2)


def test_outside_the_range_of_the_examples_it_holds_still():
    """sigma_G beyond any example's says no more than the largest example's; the ratio stays among those seen."""
    trajectory = grown(1.3)
    model = SigmaModel(CFG, 0)
    model.fit(trajectory, 20)
    last = trajectory.last_index
    largest = max(trajectory.globals_[i][n].sigma for i, n in trajectory.examples())
    answers = []
    for factor in (1.0, 100.0):
        trajectory.globals_[last] = {n: replace(t, sigma=factor * largest) for n, t in trajectory.globals_[last].items()}
        answers.append(model.predict(trajectory))
    assert answers[0] == answers[1]
    seen = [trajectory.targets[i][n].sigma / trajectory.locals_[i][n].sigma for i, n in trajectory.examples()]
    ratios = [answers[0][n] / trajectory.locals_[last][n].sigma for n in SHAPES]
    assert min(seen) * 0.999 <= min(ratios)
    assert max(ratios) <= max(seen) * 1.001
