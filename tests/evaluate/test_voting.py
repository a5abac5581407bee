from itertools import combinations

import pytest

from next_ray.evaluate.voting import MAX_SUBSETS, maj_per_prompt, majority


def test_the_most_frequent_answer_wins_and_the_first_seen_of_equals():
    assert majority(["3", "5", "5"]) == 1
    assert majority(["3", "5", "5", "3"]) == 0
    assert majority([None, None, "7"]) == 2
    assert majority([None, None]) is None


def test_expectation_over_all_choices():
    """Of a, b, b all three vote b; of two voters a wins both ties with a later b, and b wins alone."""
    assert maj_per_prompt([["a", "b", "b"]], [[1, 0, 0]], 3, seed=0) == [0.0]
    assert maj_per_prompt([["a", "b", "b"]], [[1, 0, 0]], 2, seed=0) == pytest.approx([2 / 3])
    assert maj_per_prompt([["a", "b", "b"], [None, None, None]], [[1, 0, 0], [0, 0, 0]], 1, seed=0) == pytest.approx([1 / 3, 0])


def test_drawn_choices_are_seeded_and_near_the_expectation():
    answers, correct = [["a", "b", None, "a"] * 5], [[1.0, 0.0, 0.0, 1.0] * 5]
    choices = list(combinations(range(20), 4))
    assert len(choices) > MAX_SUBSETS
    exact = 0
    for chosen in choices:
        index = majority([answers[0][i] for i in chosen])
        exact += index is not None and correct[0][chosen[index]]
    found = maj_per_prompt(answers, correct, 4, seed=1)
    assert found == maj_per_prompt(answers, correct, 4, seed=1)
    assert found[0] == pytest.approx(exact / len(choices), abs=0.04)


def test_impossible_votes_are_refused():
    with pytest.raises(ValueError, match="maj@3"):
        maj_per_prompt([["a", "b"]], [[1, 0]], 3, seed=0)
    with pytest.raises(ValueError, match="shapes"):
        maj_per_prompt([["a", "b"]], [[1]], 1, seed=0)
