from itertools import product

import numpy as np
import pytest

from next_ray.evaluate.comparing import compare


def test_two_sided_p_is_that_of_all_sign_flips():
    first = [[0, 0], [1, 0], [0, 1], [0, 0], [1, 1], [0, 0]]
    second = [[1, 1], [1, 0], [1, 1], [1, 0], [1, 0], [1, 1]]
    differences = np.mean(second, axis=1) - np.mean(first, axis=1)
    observed = abs(differences.sum())
    expected = np.mean([abs(np.dot(signs, differences)) >= observed - 1e-9 for signs in product((-1, 1), repeat=6)])
    found = compare(first, second, seed=0)
    assert found.difference == pytest.approx(differences.mean())
    assert found.p_value == pytest.approx(expected)
    assert found.low <= found.difference <= found.high
    back = compare(second, first, seed=0)
    assert (back.difference, back.p_value) == (pytest.approx(-found.difference), pytest.approx(found.p_value))


def test_equal_models_do_not_differ():
    found = compare([[1, 0], [0, 0]], [[0, 1], [0, 0]], seed=0)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_other_prompts_are_refused():
    with pytest.raises(ValueError, match="2 prompts"):
        compare([[1], [0]], [[1]], seed=0)
