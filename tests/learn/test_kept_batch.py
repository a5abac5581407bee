"""The rows of a batch that is kept, and back from parquet."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from next_ray.learn.kept_batch import TABLE, batch_rows
from next_ray.store.tables import decode_rows, encode_rows
from next_ray.types import TrainedBatch
from tests.learn.harness import make_groups, shard_of

GROUPS = make_groups(num_prompts=4, num_samples=2)


def batch() -> TrainedBatch:
    """Two shards; of the second one's three groups only the first and the last were chosen."""
    second = replace(shard_of([GROUPS[1], GROUPS[3]]), chosen=(0, 2))
    rewards = ((1.0, 0.0), (math.nan, 0.5), (1.0, math.inf))
    advantages = ((1.0, -1.0), (math.nan, math.nan), (None, 0.0))
    return TrainedBatch((shard_of(GROUPS[:1]), second), rewards, advantages)


def test_every_completion_is_a_row_with_all_that_was_made_of_it() -> None:
    rows = decode_rows(encode_rows(TABLE, batch_rows(7, batch(), [GROUPS[:1], GROUPS[1:]])), "here")
    assert [(row["step"], row["prompt_id"], row["sample"]) for row in rows] == [(7, p, s) for p in ("0", "1", "3") for s in (0, 1)]
    for row in rows:
        group = GROUPS[int(row["prompt_id"])]
        completion = group.completions[row["sample"]]
        np.testing.assert_array_equal(row["prompt_token_ids"], group.prompt_token_ids)
        np.testing.assert_array_equal(row["token_ids"], completion.token_ids)
        np.testing.assert_array_equal(np.float32(row["logprobs"]), completion.logprobs)
        assert (row["version"], row["finish_reason"], row["messages"]) == (3, "stop", '[{"role": "user", "content": "?"}]')
    assert [repr(row["reward"]) for row in rows] == ["1.0", "0.0", "nan", "0.5", "1.0", "inf"]
    assert [repr(row["advantage"]) for row in rows] == ["1.0", "-1.0", "nan", "nan", "None", "0.0"]
