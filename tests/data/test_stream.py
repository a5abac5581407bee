"""The order of training prompts: complete epochs, exact resumption, the same on every machine."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_ray.data.prompts import user_prompt
from next_ray.data.stream import Cursor, PromptStream, permutation
from next_ray.errors import DataError


def stream(size: int, seed: int = 0) -> PromptStream:
    return PromptStream([user_prompt(str(number), "", "exact") for number in range(size)], seed)


def numbers(source: PromptStream, count: int) -> list[int]:
    return [int(prompt.messages[0]["content"]) for prompt in source.next(count)]


@settings(deadline=None)
@given(size=st.integers(1, 30), batches=st.lists(st.integers(0, 100), max_size=8), seed=st.integers(0, 5))
def test_every_epoch_holds_every_prompt_once(size: int, batches: list[int], seed: int) -> None:
    source = stream(size, seed)
    drawn = [number for count in batches for number in numbers(source, count)]
    assert len(drawn) == sum(batches)
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))
    assert max(Counter(drawn[len(drawn) // size * size :]).values(), default=0) <= 1
    assert source.cursor == Cursor(*divmod(len(drawn), size))


@settings(deadline=None)
@given(size=st.integers(1, 30), before=st.integers(0, 100), after=st.integers(1, 100))
def test_a_cursor_goes_through_json_and_resumes_exactly(size: int, before: int, after: int) -> None:
    source, resumed = stream(size), stream(size)
    source.next(before)
    resumed.restore(Cursor(**json.loads(json.dumps(asdict(source.cursor)))))
    assert numbers(resumed, after) == numbers(source, after)


@settings(deadline=None)
@given(
    size=st.integers(1, 12), start=st.integers(0, 40), used=st.sets(st.integers(0, 80)), batches=st.lists(st.integers(0, 20), max_size=6)
)
def test_positions_that_were_used_already_are_left_out(size: int, start: int, used: set[int], batches: list[int]) -> None:
    order = numbers(stream(size), 400)
    source = stream(size)
    source.restore(Cursor(**json.loads(json.dumps(asdict(source.cursor_at(start, used))))))
    expected = [number for place, number in enumerate(order) if place >= start and place not in used]
    drawn = [number for count in batches for number in numbers(source, count)]
    assert drawn == expected[: sum(batches)]
    assert {place for place in used if place >= source.position} == source.used(source.cursor)


def test_batch_size_does_not_change_the_order() -> None:
    one, other = stream(7), stream(7)
    assert [n for _ in range(30) for n in numbers(one, 1)] == numbers(other, 30)


def test_orders_differ_by_epoch_and_seed_and_are_pinned() -> None:
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert permutation(8, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_cursors_of_other_data_are_refused() -> None:
    for cursor in (Cursor(0, 5), Cursor(-1, 0), Cursor(0, -1), Cursor(0, 0, (-1,))):
        with pytest.raises(DataError, match="does not fit 5 prompts"):
            stream(5).restore(cursor)
    with pytest.raises(DataError, match="no prompts"):
        PromptStream([], 0)
