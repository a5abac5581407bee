import math
from dataclasses import replace

import numpy as np
import pytest

from next_ray.delta.gauge import flipped
from next_ray.inspect.directions import angles, directions
from next_ray.types import ModuleTriplets, Triplet


def unit(*entries: float) -> np.ndarray:
    x = np.array(entries)
    return (x / np.linalg.norm(x)).astype(np.float32)


def turned(degrees_u: float, degrees_v: float) -> Triplet:
    u, v = math.radians(degrees_u), math.radians(degrees_v)
    return Triplet(2.0, unit(math.cos(u), math.sin(u), 0.0), unit(math.cos(v), 0.0, math.sin(v), 0.0))


def along(*triplets: Triplet) -> list[ModuleTriplets]:
    return [ModuleTriplets(t, t, None, 0.5, 0.5) for t in triplets]


@pytest.mark.parametrize(("u", "v"), [(30.0, 60.0), (0.01, 0.0), (100.0, 20.0), (90.0, 0.0)])
def test_angles_of_known_turns(u, v):
    found = angles(turned(u, v), turned(0, 0))
    assert found is not None
    assert found.u == pytest.approx(min(u, 180 - u), abs=1e-4)
    assert found.v == pytest.approx(min(v, 180 - v), abs=1e-4)
    inner = math.cos(math.radians(u)) * math.cos(math.radians(v))
    assert found.matrix == pytest.approx(math.degrees(math.acos(inner)), abs=1e-3)


def test_the_angle_of_matrices_is_that_of_the_dense_outer_products():
    rng = np.random.default_rng(0)
    first, second = (Triplet(1.0, unit(*rng.normal(size=5)), unit(*rng.normal(size=4))) for _ in range(2))
    x, y = (np.outer(t.u.astype(float), t.v.astype(float)).ravel() for t in (first, second))
    found = angles(first, second)
    assert found is not None
    assert found.matrix == pytest.approx(math.degrees(math.acos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))), abs=1e-4)


def test_signs_of_triplets_change_no_angle():
    first, second = turned(10, 20), turned(35, 70)
    assert angles(flipped(first), second) == angles(first, second) == angles(first, flipped(second))


def test_flips_are_counted_where_a_neighbourless_rule_jumps():
    # the largest entry of u moves from a positive to a negative one: the direction hardly turns, its rule-made sign does
    before = Triplet(1.0, unit(1.0, -0.95, 0.0), unit(1.0, 0.0))
    after = Triplet(1.0, unit(0.95, -1.0, 0.0), unit(1.0, 0.0))
    found = directions(along(before, after, after))
    assert (found.flips, found.pairs) == (1, 2)
    assert directions(along(flipped(before), after, flipped(after))) == found
    assert found.global_[0] is not None and found.global_[0].u < 4


def test_zero_deltas_have_no_direction():
    zero = Triplet(0.0, np.zeros(3, np.float32), np.zeros(4, np.float32))
    found = directions(along(zero, turned(0, 0), turned(1, 1)))
    assert found.global_[0] is None and found.global_[1] is not None
    assert (found.flips, found.pairs) == (0, 1)


def test_local_and_global_are_kept_apart():
    first, second = along(turned(0, 0), turned(10, 0))
    found = directions([first, replace(second, local=turned(40, 0))])
    assert found.global_[0] is not None and found.global_[0].u == pytest.approx(10, abs=1e-4)
    assert found.local[0] is not None and found.local[0].u == pytest.approx(40, abs=1e-4)
