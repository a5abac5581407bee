"""What Ray Serve is told, and what is made of its words when an engine did not start."""

from __future__ import annotations

import pytest

from next_ray.actors.served import DEPLOYMENT, cause_of, deployment
from next_ray.config.serve import ServeConfig
from next_ray.settings import load_as

LOADED = ["replicas={min: 0, max: 4, target_requests: 2.5, upscale_delay_s: 1, downscale_delay_s: 7}", "engine.max_num_seqs=3"]


def test_replicas_follow_the_configuration() -> None:
    made = deployment(load_as(ServeConfig, None, [*LOADED, "cluster.engine_labels={market: spot}"]), "cpu")
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (0, 1, 4)
    assert (scaling.target_ongoing_requests, scaling.upscale_delay_s, scaling.downscale_delay_s) == (2.5, 1.0, 7.0)
    assert made.name == DEPLOYMENT and made.max_ongoing_requests == 6
    assert made.ray_actor_options["num_cpus"] == 1 and made.ray_actor_options["label_selector"] == {"market": "spot"}


@pytest.mark.parametrize(("device", "expected"), [("cpu", {"num_cpus": 2}), ("gpu", {"num_cpus": 0, "num_gpus": 2})])
def test_a_replica_reserves_what_its_engine_spans(device: str, expected: dict[str, int]) -> None:
    options = deployment(load_as(ServeConfig, None, ["engine.tensor_parallel_size=2"]), device).ray_actor_options  # pyright: ignore[reportArgumentType]
    assert {name: options.get(name) for name in expected} == expected and "label_selector" not in options


def test_the_cause_is_what_was_raised() -> None:
    trace = "Traceback:\n  File x\nnext_ray.errors.ModelError: vLLM could not start on /m (too big).\nThe above exception was ...\n"
    assert cause_of(trace) == "ModelError: vLLM could not start on /m (too big)."
    assert cause_of("no room\n") == "no room." and cause_of("") == "it gives no reason."
