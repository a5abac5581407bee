"""The analytical model against figures worked out by hand, and against what must hold whatever the rates are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from next_ray.config import Config
from next_ray.errors import ConfigError
from next_ray.model_facts import ModelFacts, facts_of
from next_ray.planning.devices import DEVICES, Device, Pool, parse_pools, parse_prices
from next_ray.planning.rates import GPU, Rates
from next_ray.planning.sampling import EngineModel, can_span
from next_ray.planning.splits import find_splits
from next_ray.planning.steps import Layout, Plan, plan
from next_ray.planning.updating import update_s
from next_ray.planning.workload import Workload, workload_of
from next_ray.precision import resolve_dtypes
from next_ray.settings import load_config

IDEAL = Rates(
    decode=1,
    bandwidth=1,
    prefill=1,
    update=1,
    token_s=0,
    layer_token_s=0,
    sequence_token_s=0,
    update_s=0,
    layer_s=0,
    copy_bytes_per_s=1e30,
    load_s=0,
    snapshot_s=0,
)
"""A machine that loses nothing: what is left is arithmetic and memory traffic."""
H100 = DEVICES["h100"]
PERFECT = replace(H100, rates=IDEAL)


def job(*overrides: str) -> tuple[Config, ModelFacts]:
    config = resolve_dtypes(load_config("jobs/qwen2.5-7b-next.yaml", list(overrides)), "gpu")
    facts = facts_of(config.model)
    assert facts is not None
    return config, facts


def layout(device: Device = H100, engines: int = 2, spans: int = 1, ranks: int = 2, zero: int = 0) -> Layout:
    return Layout(engines, spans, device, ranks, zero, device)


def test_one_token_of_one_sequence_is_a_pass_over_the_weights() -> None:
    config, facts = job("extrapolation.enabled=false", "learner.mode=full")
    read = 2 * (facts.linear_parameters + facts.head_parameters)  # bfloat16; the embedding of a 7B model is a table apart
    seconds = EngineModel(config, facts, PERFECT, 1, 1).token_s(1, 0)
    assert seconds["memory bandwidth"] == pytest.approx(read / 3350e9)
    many = EngineModel(config, facts, PERFECT, 1, 4096).token_s(4096, 0)
    assert many["arithmetic"] == pytest.approx(4096 * read / 989e12), "a large batch is bound by arithmetic instead: 2 a weight and token"


def test_a_batch_that_runs_to_its_end_together_takes_a_step_a_token() -> None:
    config, facts = job()
    engine = EngineModel(config, facts, replace(H100, rates=replace(IDEAL, bandwidth=1e12, decode=1e12, prefill=1e12, token_s=1.0)), 1, 64)
    work = Workload(prompt_tokens=100, response_tokens=256, longest_response=256, signal=1)
    assert engine.sample_s(8, 8, work).seconds == pytest.approx(256, rel=0.001)
    assert engine.sample_s(16, 8, work).seconds == pytest.approx(512, rel=0.001), "128 sequences in 64 slots: twice"
    half = replace(work, response_tokens=128)
    assert engine.sample_s(8, 8, half).seconds == pytest.approx(256, rel=0.02), "the longest decides"
    assert engine.sample_s(8, 8, half).bound == "the engine's own bookkeeping"


@pytest.mark.parametrize("mean", [40.0, 128.0, 200.0, 256.0])
def test_completions_have_the_mean_length_that_was_said(mean: float) -> None:
    work = Workload(10, mean, 256, 1)
    assert sum(work.surviving(token + 0.5) for token in range(256)) == pytest.approx(mean, rel=0.01)


def test_full_prompt_blocks_are_read_once_for_all_samples() -> None:
    config, facts = job("extrapolation.enabled=false")
    engine = EngineModel(config, facts, PERFECT, 1, 64)
    assert engine.prefill_s(1, 8, 1025) == pytest.approx(engine.prefill_s(1, 1, 1025) * (1024 + 8) / 1025)


@pytest.mark.parametrize(("mode", "operations"), [("lora", 4), ("full", 6)])
def test_an_update_is_so_many_operations_a_parameter_and_token(mode: str, operations: int) -> None:
    config, facts = job(f"learner.mode={mode}", "learner.ranks=1", "learner.lora.rank=1", "learner.gradient_checkpointing=false")
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"mini_batch_prompts": None})})
    work = Workload(prompt_tokens=1, response_tokens=500, longest_response=4096, signal=1)
    tokens = 1024 * 500
    exact = operations * tokens * (facts.linear_parameters + facts.head_parameters) / 989e12
    assert update_s(config, facts, PERFECT, work).seconds == pytest.approx(exact, rel=0.05)  # attention and the adapter are the rest


def test_checkpointing_and_a_reference_are_a_forward_pass_each() -> None:
    work = Workload(512, 1024, 4096, 1)
    base, facts = job("learner.gradient_checkpointing=false")
    twice, _ = job("learner.gradient_checkpointing=true", "algorithm.kl_coef=0.1")
    ratio = update_s(twice, facts, PERFECT, work).seconds / update_s(base, facts, PERFECT, work).seconds
    assert 1.6 < ratio < 2.0  # 4 and 4 of a forward pass of 2, log-probabilities before all but the first optimizer step in both


def test_half_the_groups_with_something_to_learn_are_half_the_update() -> None:
    config, facts = job()
    all_of_them, half = (update_s(config, facts, PERFECT, Workload(512, 1024, 4096, share)).seconds for share in (1.0, 0.5))
    assert half == pytest.approx(all_of_them / 2, rel=0.05)


def planned(*overrides: str, device: Device = H100, **numbers: int) -> Plan:
    config, facts = job(*overrides)
    return plan(config, facts, layout(device, **numbers), workload_of(config))


def test_more_devices_are_never_slower_where_they_have_something_to_do() -> None:
    engines = [planned(engines=n).seconds("rollout") for n in (1, 2, 4, 8)]
    ranks = [planned(ranks=n).seconds("update") for n in (1, 2, 4, 8)]
    assert engines == sorted(engines, reverse=True) and ranks == sorted(ranks, reverse=True)
    assert engines[0] < 8 * engines[3], "memory traffic for weights is not divided: engines do not scale for ever"


def test_ahead_the_longer_of_sampling_and_update_counts() -> None:
    in_turn, ahead = planned(), planned("rollout.max_staleness=1")
    saved = min(in_turn.seconds("rollout") + in_turn.seconds("reward"), in_turn.seconds("update"))
    assert in_turn.step_s - ahead.step_s == pytest.approx(saved, rel=0.01)


def test_what_goes_on_beside_training_counts_once_it_is_slower() -> None:
    fast, slow = (
        planned(),
        planned(
            "extrapolation.interval_steps=1", "model.name=Qwen/Qwen2.5-72B-Instruct", "learner.lora.rank=256", ranks=8, zero=3, spans=8
        ),
    )
    assert fast.step_s > fast.seconds("store") / 10
    assert slow.fits and slow.step_s >= slow.seconds("store"), "a checkpoint a step of 7 GB at 150 MB/s"


def test_memory_is_the_dry_runs_and_decides_what_fits() -> None:
    assert planned().fits
    large = planned("model.name=Qwen/Qwen2.5-72B-Instruct")
    assert not large.fits and large.phases == () and large.step_s == float("inf")
    assert {need.who for need in large.needs if not need.fits} == {"rollout engine", "learner rank"}
    assert not planned(device=DEVICES["l4"]).fits


def test_the_best_split_is_no_slower_than_any_that_is_tried_by_hand() -> None:
    config, facts = job("rollout.max_staleness=1")
    work = workload_of(config)
    best = find_splits(config, facts, [Pool(8, H100)], work).best
    assert [one.step_s for one in best] == sorted(one.step_s for one in best)
    by_hand = [
        plan(config, facts, layout(engines=engines, spans=spans, ranks=8 - engines * spans), work).step_s
        for spans in (1, 2, 4)
        for engines in range(1, 8)
        if engines * spans < 8
    ]
    assert best[0].step_s == pytest.approx(min(by_hand))
    assert best[0].layout.num_devices <= 8


def test_kinds_of_devices_may_share_the_work_and_the_jobs_own_layout_is_shown() -> None:
    config, facts = job()
    splits = find_splits(config, facts, parse_pools("4xH100,32xL4"), workload_of(config), keep=100)
    kinds = {(one.layout.engine_device.name, one.layout.learner_device.name) for one in splits.best}
    assert {("H100", "H100"), ("L4", "H100")} <= kinds
    assert splits.own is not None and splits.own.layout.engines == 2
    assert find_splits(config, facts, parse_pools("3xH100"), workload_of(config)).own is None


def test_a_large_model_gets_a_zero_stage_that_holds_it() -> None:
    config, facts = job("model.name=Qwen/Qwen2.5-72B-Instruct")
    (best, *_) = find_splits(config, facts, [Pool(16, H100)], workload_of(config)).best
    assert best.layout.zero_stage == 3 and best.layout.spans >= 4


def test_heads_must_divide() -> None:
    _, facts = job()
    assert [spans for spans in (1, 2, 4, 8, 16) if can_span(facts, H100, spans)] == [1, 2, 4]  # 28 heads


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("8xH1000", "did you mean H100"),
        ("8 of H100", "Write it like 8xH100"),
        ("0xH100", "at least one"),
        ("2xH100,h100", "twice"),
        ("", "not a number of devices"),
    ],
)
def test_devices_that_make_no_sense_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_pools(text)


def test_prices_are_the_users() -> None:
    (pool,) = parse_pools("2xh100", parse_prices(["H100=2.5"]))
    assert (pool.count, pool.device.price_per_hour, pool.device.is_own_price) == (2, 2.5, True)
    assert not parse_pools("H100")[0].device.is_own_price
    with pytest.raises(ConfigError, match="does not have"):
        parse_pools("2xH100", parse_prices(["L4=1"]))
    with pytest.raises(ConfigError, match="is no price"):
        parse_prices(["H100=cheap"])


def test_every_device_has_a_source_and_gpus_have_assumed_rates() -> None:
    assert {"a100", "h100", "h200", "l4", "l40s", "b200", "cpu"} <= set(DEVICES)
    assert all(device.source for device in DEVICES.values())
    assert all(device.rates is GPU for device in DEVICES.values() if device.is_gpu)
    assert not DEVICES["cpu"].is_gpu


@pytest.mark.parametrize("work", [{"prompt_tokens": 9999.0}, {"response_tokens": 0.5}, {"signal": 1.5}])
def test_lengths_that_the_job_does_not_allow_are_refused(work: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"--(prompt-tokens|response-tokens|signal)"):
        workload_of(job()[0], **work)
