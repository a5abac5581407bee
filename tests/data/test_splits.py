"""Held-out sets: disjoint by text, independent of row order, and arithmetic in the errors."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_ray.data.prompts import prompt_text, user_prompt
from next_ray.data.splits import split
from next_ray.errors import DataError
from next_ray.types import Prompt


def prompts(*numbers: int) -> list[Prompt]:
    return [user_prompt(f"problem {number}", "1", "exact") for number in numbers]


def texts(some: list[Prompt]) -> list[str]:
    return [prompt_text(prompt.messages) for prompt in some]


@settings(deadline=None)
@given(total=st.integers(3, 60), data=st.data(), seed=st.integers(0, 10))
def test_split_off_the_training_set(total: int, data: st.DataObject, seed: int) -> None:
    gate = data.draw(st.integers(1, total - 2))
    test = data.draw(st.integers(1, total - gate - 1))
    everything = prompts(*range(total))
    splits = split(everything, None, gate, test, seed)
    assert (len(splits.gate), len(splits.test), len(splits.train)) == (gate, test, total - gate - test)
    assert sorted(texts(splits.train) + texts(splits.gate) + texts(splits.test)) == sorted(texts(everything))
    assert texts(splits.train) == [text for text in texts(everything) if text in set(texts(splits.train))]
    shuffled = random.Random(1).sample(everything, total)
    again = split(shuffled, None, gate, test, seed)
    assert (again.gate, again.test) == (splits.gate, splits.test)


def test_the_choice_is_the_order_of_sha256_and_depends_on_the_seed() -> None:
    everything = prompts(*range(100))
    for seed in (0, 1):
        ranked = sorted(texts(everything), key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())
        splits = split(everything, None, 3, 2, seed)
        assert (texts(splits.test), texts(splits.gate)) == (ranked[:2], ranked[2:5])


def test_no_text_is_in_two_sets_even_with_white_space() -> None:
    doubled = prompts(*range(20)) + [user_prompt(f"  problem {n}\n", "1", "exact") for n in range(20)]
    splits = split(doubled, None, 4, 4, 0)
    assert not set(texts(splits.train)) & set(texts(splits.gate) + texts(splits.test))
    assert len(set(texts(splits.gate)) | set(texts(splits.test))) == 8
    assert len(splits.train) == 24


def test_held_out_file_takes_its_texts_from_the_training_set() -> None:
    splits = split(prompts(*range(10)), prompts(*range(8, 20)), 4, 4, 0)
    assert splits.overlaps == 2 and texts(splits.train) == texts(prompts(*range(8)))
    held_out = texts(splits.gate) + texts(splits.test)
    assert len(set(held_out)) == 8 and set(held_out) <= set(texts(prompts(*range(8, 20))))


def test_too_few_says_how_many() -> None:
    with pytest.raises(DataError, match=r"has 9 distinct prompts.*=4 .*=5 \+ at least 1 to train on = 10\. Provide 1 more"):
        split(prompts(*range(9)), None, 4, 5, 0)
    with pytest.raises(DataError, match=r"held_out has 3 distinct.*= 9\. Provide 6 more"):
        split(prompts(*range(9)), prompts(1, 2, 3, 3), 4, 5, 0)
    with pytest.raises(DataError, match="nothing is left"):
        split(prompts(1, 2), prompts(1, 2, 3), 1, 1, 0)
