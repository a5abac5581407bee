"""What an actor's end looks like to the user; the exceptions are Ray's own, their causes would take the machine down."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError

from next_ray.actors.cluster import result
from next_ray.errors import NextRayError

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("fault", [OutOfMemoryError("4 worker(s) were killed: low on memory.\nTop 10 memory users: ..."), ActorDiedError()])
def test_a_dead_actor_is_one_sentence_that_says_what_to_do(fault: Exception) -> None:
    async def call() -> None:
        raise fault

    with pytest.raises(NextRayError, match=r"The actor for the learners died: .*") as caught:
        asyncio.run(result(call(), "the learners"))
    assert "\n" not in str(caught.value)
