"""Derived numbers against ones worked out by hand, and memory against what torch really keeps."""

from __future__ import annotations

import pytest

from next_ray.config import Config
from next_ray.estimate import (
    activation_bytes_per_token,
    adapter_slots,
    advice,
    batch_sizes,
    delta_memory,
    engine_memory,
    kv_bytes_per_token,
    learner_memory,
    lora_slot_rank,
    placement,
    run_schedule,
)
from next_ray.model_facts import facts_from_config, facts_of
from next_ray.precision import resolve_dtypes
from next_ray.settings import load_config

PAPER = [
    "model.name=Qwen/Qwen2.5-7B-Instruct",
    "run.steps=250",
    "rollout.prompts_per_step=128",
    "rollout.samples_per_prompt=8",
    "rollout.max_response_tokens=4096",
    "data.max_prompt_tokens=1024",
    "learner.mini_batch_prompts=32",
    "learner.micro_batch_tokens=10240",
    "learner.lora={rank: 64, alpha: 32}",
    "extrapolation={interval_steps: 10, checkpoints: 15, horizon: 5, methods: [next], alphas: [1.5], gate: {kind: none, fixed: next@1.5}}",
]


def test_batch_sizes_of_the_paper() -> None:
    sizes = batch_sizes(load_config(None, [*PAPER, "learner.ranks=3"]))
    assert sizes.completions_per_step == 1024
    assert sizes.max_tokens_per_step == 5_242_880
    assert (sizes.optimizer_steps_per_step, sizes.optimizer_steps_in_all) == (4, 1000)
    # 256 completions of a mini batch over 3 ranks: 86 on the fullest, two full sequences at a time
    assert (sizes.completions_per_mini_batch, sizes.sequences_per_micro_batch, sizes.max_micro_batches_per_rank) == (256, 2, 43)


def test_schedule_of_the_paper() -> None:
    times = run_schedule(load_config(None, PAPER))
    assert times.checkpoint_steps == tuple(range(10, 251, 10))
    assert times.jump_steps == (150,)
    assert (times.num_candidates, times.gate_completions) == (1, 0)


def test_schedule_repeats_and_never_jumps_at_the_last_step() -> None:
    base = ["run.steps=40", "extrapolation.interval_steps=2", "extrapolation.checkpoints=5", "extrapolation.horizon=2"]
    assert run_schedule(load_config(None, [*base, "extrapolation.repeat_every=5"])).jump_steps == (10, 20, 30)
    assert run_schedule(load_config(None, [*base, "run.steps=10"])).jump_steps == ()
    assert run_schedule(load_config(None, [*base, "extrapolation.enabled=false"])).jump_steps == ()
    # 5 = itself and 4 candidates, on 96 prompts with 4 samples
    assert run_schedule(load_config(None, base)).gate_completions == 5 * 96 * 4


def test_placement_counts_every_bundle() -> None:
    config = load_config(None, ["rollout.engines=3", "rollout.tensor_parallel_size=2", "learner.ranks=4"])
    rows = placement(config, on_gpu=True)
    assert sum(row.total("GPU") for row in rows) == 3 * 2 + 4
    assert sum(row.total("CPU") for row in rows) == 3 + 4
    assert sum(row.total("CPU") for row in placement(config, on_gpu=False)) == 3 + 4
    assert "predictor" not in {row.actor for row in placement(load_config(None, ["extrapolation.enabled=false"]), on_gpu=False)}


def test_delta_workers_reserve_a_share_of_a_gpu_where_they_want_one() -> None:
    config = load_config(None, ["extrapolation={delta_workers: 3, gpus_per_delta_worker: 0.25}"])
    (row,) = [row for row in placement(config, on_gpu=True) if row.actor == "delta worker"]
    assert (dict(row.bundle), row.total("GPU"), row.total("CPU")) == ({"GPU": 0.25}, 0.75, 0)
    (row,) = [row for row in placement(load_config(None, []), on_gpu=True) if row.actor == "delta worker"]
    assert not row.bundle


def test_memory_of_a_7b_delta_worker_by_hand() -> None:
    facts = facts_of(load_config(None, PAPER).model)
    assert facts is not None
    four = [*PAPER, "extrapolation.delta_workers=4"]
    # k = 5: six checkpoints of 161,480,704 float32 factors over 4 workers; a batch is 256 MiB, and its copies
    remembered, work = delta_memory(load_config(None, four), facts)
    assert (remembered.num_bytes, work.num_bytes) == (6 * 4 * 161_480_704 / 4, 2 * 256 * 2**20)
    # rank 64 and gate_proj, 3584 to 18944, three times in float64
    (on_gpu,) = delta_memory(load_config(None, [*four, "extrapolation.gpus_per_delta_worker=0.25"]), facts)
    assert on_gpu.num_bytes == 3 * 64 * (3584 + 18944) * 8


def test_memory_of_a_7b_learner_by_hand() -> None:
    def config(*more: str) -> Config:
        return resolve_dtypes(load_config(None, [*PAPER, *more]), "gpu")

    facts = facts_of(load_config(None, PAPER).model)
    assert facts is not None
    adapter = 161_480_704
    alone = {part.part: part.num_bytes for part in learner_memory(config(), facts)}
    shared = {part.part: part.num_bytes for part in learner_memory(config("learner.ranks=4", "learner.zero_stage=3"), facts)}
    assert alone["base weights, frozen"] == 2 * 7_615_616_512
    assert alone["adapter masters and Adam moments, float32"] == 12 * adapter
    for part in ("base weights, frozen", "adapter gradients, float32", "adapter masters and Adam moments, float32"):
        assert shared[part] == alone[part] / 4
    only_optimizer = {p.part: p.num_bytes for p in learner_memory(config("learner.ranks=4", "learner.zero_stage=1"), facts)}
    assert only_optimizer["base weights, frozen"] == alone["base weights, frozen"]
    # 28 layers, 4 heads of 128, keys and values, bf16
    assert kv_bytes_per_token(facts, 2) == 57_344
    assert engine_memory(config("rollout.tensor_parallel_size=2"), facts, on_gpu=True)[0].num_bytes == 7_615_616_512


def test_the_widest_candidate_decides_the_slot() -> None:
    assert lora_slot_rank(load_config(None, PAPER)) == 128
    assert lora_slot_rank(load_config(None, [*PAPER, "extrapolation.enabled=false"])) == 64
    assert lora_slot_rank(load_config(None, ["learner.lora.rank=20"])) == 64


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activations_are_an_upper_bound_of_what_torch_keeps_and_not_a_loose_one(dtype: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = Qwen2Config(
        hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=16
    )
    model = Qwen2ForCausalLM(shape)
    facts = facts_from_config("x", shape.to_dict())
    assert facts is not None
    tuned = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear")).to(getattr(torch, dtype))
    parameters = {p.untyped_storage().data_ptr() for p in tuned.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(torch.randint(0, 16, (4, 64))).last_hidden_state
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / (4 * 64)
    assert hidden.requires_grad
    estimated = activation_bytes_per_token(load_config(None, [f"learner.dtype={dtype}"]), facts)
    assert measured <= estimated <= 1.5 * measured


def test_engines_have_a_slot_for_every_adapter_that_requests_in_flight_can_need() -> None:
    def slots(**rollout: object) -> int:
        return adapter_slots(Config.model_validate({"rollout": rollout}))

    alone = slots()
    assert slots(max_staleness=3) == alone + 3
    assert slots(max_staleness=3, in_flight="restart") == alone + 1
    assert slots(in_flight="restart") == alone


def test_training_on_older_completions_without_a_correction_is_remarked_on() -> None:
    def advised(staleness: int, correction: str) -> tuple[str, ...]:
        return advice(Config.model_validate({"rollout": {"max_staleness": staleness}, "algorithm": {"correction": correction}}))

    (remark,) = advised(2, "none")
    assert "2 updates old" in remark and "algorithm.correction=token-tis" in remark
    assert not advised(0, "none") and not advised(2, "token-tis") and not advised(2, "sequence-mask")
