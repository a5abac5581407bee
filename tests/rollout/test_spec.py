from __future__ import annotations

import pytest

from next_ray.config import RolloutSection
from next_ray.errors import ConfigError
from next_ray.rollout.spec import round_up_rank, thread_binding


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (16, 16), (17, 32), (129, 256), (257, 320), (321, 512)])
def test_rank_is_rounded_up_to_what_vllm_knows(rank: int, allowed: int) -> None:
    assert round_up_rank(rank) == allowed


def test_a_rank_beyond_vllms_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="rank 640"):
        round_up_rank(640)


def test_each_worker_gets_its_own_cores() -> None:
    rollout = RolloutSection.model_validate({"tensor_parallel_size": 2, "threads": 2})
    assert thread_binding(rollout, [0, 2, 5, 6, 7]) == "0,2|5,6"
    with pytest.raises(ConfigError, match="needs 4 cores, this process may use 3"):
        thread_binding(rollout, [0, 1, 2])
