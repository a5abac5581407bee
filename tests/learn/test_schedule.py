import math

import pytest

from next_ray.config import LearnerSection
from next_ray.learn.schedule import Rewarm, learning_rate

NEVER = Rewarm()


def rates(total, cfg, rewarm=NEVER, upto=None):
    return [learning_rate(p, total, cfg, rewarm) for p in range(upto or total)]


def test_constant_with_warm_up():
    cfg = LearnerSection(lr=1.0, schedule="constant", warmup_steps=3)
    assert rates(6, cfg) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_linear_falls_to_zero():
    cfg = LearnerSection(lr=2.0, schedule="linear", warmup_steps=2)
    assert rates(6, cfg, upto=8) == pytest.approx([2 / 3, 4 / 3, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0])


def test_cosine():
    cfg = LearnerSection(lr=1.0, schedule="cosine")
    assert rates(4, cfg) == pytest.approx([0.5 * (1 + math.cos(math.pi * p / 4)) for p in range(4)])


def test_rewarm_multiplies_from_its_start():
    cfg = LearnerSection(lr=1.0, schedule="linear")
    assert rates(10, cfg, Rewarm(start=4, steps=1))[3:7] == pytest.approx([0.7 * 0.0, 0.6 * 0.5, 0.5, 0.4], abs=1e-12)
