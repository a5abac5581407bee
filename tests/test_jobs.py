"""Every file that is shipped to be run is valid, and says what its name promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_ray.config import Config, FileSource
from next_ray.estimate import batch_sizes, engine_memory, learner_memory, run_schedule
from next_ray.model_facts import facts_of
from next_ray.precision import resolve_dtypes
from next_ray.settings import load_config

ROOT = Path(__file__).resolve().parent.parent
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
PAPER = [path for path in JOBS if path.name.endswith("-next.yaml")]


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_the_promised_jobs_are_there() -> None:
    assert {"tiny.yaml", "smollm2-135m.yaml"} <= set(names(JOBS))
    assert names(PAPER) == [f"qwen2.5-{size}-next.yaml" for size in ("1.5b", "14b", "3b", "7b")]


@pytest.mark.parametrize("path", JOBS, ids=names(JOBS))
def test_a_job_loads_is_named_after_its_file_and_has_its_jump(path: Path) -> None:
    config = load_config(str(path))
    assert config.run.name == path.stem
    assert facts_of(config.model) is not None
    assert run_schedule(config).jump_steps


def test_tiny_is_the_default_spelled_out() -> None:
    path = ROOT / "jobs" / "tiny.yaml"
    assert load_config(str(path)) == Config(), "the defaults have changed: make defaults"


@pytest.mark.parametrize("path", PAPER, ids=names(PAPER))
def test_the_papers_settings_are_the_papers(path: Path) -> None:
    """arXiv 2604.11446, table 2 and section 5.1."""
    config = load_config(str(path), ["data.train.path=elsewhere.parquet"])
    assert isinstance(config.data.train, FileSource) and config.data.train.path == "elsewhere.parquet"
    assert (config.rollout.prompts_per_step, config.learner.mini_batch_prompts, config.rollout.samples_per_prompt) == (128, 32, 8)
    assert (config.rollout.temperature, config.rollout.top_p) == (1.0, 1.0)
    assert (config.data.max_prompt_tokens, config.rollout.max_response_tokens) == (1024, 4096)
    assert (config.learner.lr, config.learner.lora.rank, config.learner.lora.alpha) == (5e-6, 64, 32.0)
    assert config.learner.lora.target_modules == "all-linear"
    assert (config.evaluation.samples, config.evaluation.temperature) == (8, 1.0)
    times, plan = run_schedule(config), config.extrapolation
    assert times.jump_steps == (150,) and config.run.steps == 250
    assert times.checkpoint_steps[:15] == tuple(range(10, 151, 10))
    assert (plan.horizon, plan.gate.kind, plan.gate.fixed) == (5, "none", "next@1.5")
    assert (plan.methods, plan.alphas) == (("next",), (1.5,))
    assert batch_sizes(config).optimizer_steps_per_step == 4
    size = path.name.removeprefix("qwen2.5-").removesuffix("-next.yaml").upper()
    assert config.model.name == f"Qwen/Qwen2.5-{size}-Instruct"


@pytest.mark.parametrize("path", PAPER, ids=names(PAPER))
def test_the_papers_jobs_are_estimated_to_fit_80_gb_devices(path: Path) -> None:
    config = resolve_dtypes(load_config(str(path)), "gpu")
    facts = facts_of(config.model)
    assert facts is not None
    usable = 0.9 * 80e9
    assert sum(part.num_bytes for part in engine_memory(config, facts, on_gpu=True)) < config.rollout.gpu_memory_utilization * usable
    assert sum(part.num_bytes for part in learner_memory(config, facts)) < usable
    assert config.rollout.engines * config.rollout.tensor_parallel_size + config.learner.ranks == 4
