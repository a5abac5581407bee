"""Every file that is shipped to be run is valid, and says what its name promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_ray.config import Config, FileSource
from next_ray.config.algorithms import RECIPES
from next_ray.estimate import batch_sizes, engine_memory, learner_memory, run_schedule
from next_ray.model_facts import facts_of
from next_ray.precision import resolve_dtypes
from next_ray.run import main
from next_ray.settings import load_config

ROOT = Path(__file__).resolve().parent.parent
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
SIZES = ("1.5b", "14b", "3b", "7b")
FULL = ("fp", "fp-400", "next-fp")
COMPARED = ("alpharl", "grpo", "grpo-400", "next-reinforce-pp", "next-rloo", "reinforce-pp", "rl-extra", "rloo")
PAPER = [path for path in JOBS if path.name.endswith("-next.yaml")]


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_the_promised_jobs_are_there() -> None:
    assert {"tiny.yaml", "smollm2-135m.yaml"} <= set(names(JOBS))
    assert names(PAPER) == [f"qwen2.5-{size}-next.yaml" for size in SIZES]
    assert {f"qwen2.5-{size}-{kind}.yaml" for size in SIZES for kind in (*COMPARED, *FULL)} == set(names(JOBS)) - set(names(PAPER)) - {
        "tiny.yaml",
        "smollm2-135m.yaml",
    }


@pytest.mark.parametrize("path", JOBS, ids=names(JOBS))
def test_a_job_loads_is_named_after_its_file_and_has_its_jump(path: Path) -> None:
    config = load_config(str(path))
    assert config.run.name == path.stem
    assert facts_of(config.model) is not None
    assert bool(run_schedule(config).jump_steps) is config.extrapolation.enabled


@pytest.mark.parametrize("path", JOBS, ids=names(JOBS))
def test_a_job_passes_its_dry_run(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([str(path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert path.stem in printed and "step" in printed


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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", COMPARED)
def test_a_comparison_differs_from_next_in_what_it_is_named_after_only(size: str, kind: str) -> None:
    """Data, batches, sampling, learner and evaluation are those of the NExt run it is compared with."""
    compared, reference = (load_config(str(ROOT / "jobs" / f"qwen2.5-{size}-{name}.yaml")) for name in (kind, "next"))
    changed = {name for name in type(reference).model_fields if getattr(compared, name) != getattr(reference, name)}
    algorithm, plan = compared.algorithm, compared.extrapolation
    assert changed == {"run"} | ({"algorithm"} if "rloo" in kind or "pp" in kind else set()) | (
        set() if kind.startswith("next") else {"extrapolation"}
    )
    assert compared.run.steps == (400 if kind == "grpo-400" else 250)
    assert algorithm.name == {"rloo": "rloo", "pp": "reinforce++"}.get(kind.rpartition("-")[2], "grpo")
    if "algorithm" in changed:
        assert algorithm.recipe == RECIPES[algorithm.name]
    assert plan.enabled is (kind.startswith("next") or kind in ("rl-extra", "alpharl"))
    if kind == "rl-extra":
        assert (plan.proposals, plan.gate.kind, plan.gate.fixed) == ((("two-point", 1.5),), "none", "two-point@1.5")
    if kind == "alpharl":
        assert (plan.proposals, plan.gate.kind, plan.gate.fixed) == ((("alpharl", 1.5),), "none", "alpharl@1.5")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", FULL)
def test_jobs_of_full_weights_differ_in_the_learner_only(size: str, kind: str) -> None:
    """arXiv 2604.11446, section 5.1: learning rate 5e-7; tables 3 ("w/ FP") and 5 ("w/o LoRA")."""
    compared, reference = (load_config(str(ROOT / "jobs" / f"qwen2.5-{size}-{name}.yaml")) for name in (kind, "next"))
    changed = {name for name in type(reference).model_fields if getattr(compared, name) != getattr(reference, name)}
    assert changed == {"run", "learner"} | (set() if kind.startswith("next") else {"extrapolation"})
    learner = compared.learner
    assert (learner.mode, learner.lr) == ("full", 5e-7)
    kept = {"ranks": reference.learner.ranks, "zero_stage": reference.learner.zero_stage, "mode": "lora", "lr": reference.learner.lr}
    assert learner.model_copy(update=kept) == reference.learner
    assert compared.run.steps == (400 if kind == "fp-400" else 250)


@pytest.mark.parametrize("path", [*PAPER, *(path for path in JOBS if path.stem.endswith(("-fp", "-fp-400")))], ids=lambda path: path.name)
def test_the_papers_jobs_are_estimated_to_fit_80_gb_devices(path: Path) -> None:
    config = resolve_dtypes(load_config(str(path)), "gpu")
    facts = facts_of(config.model)
    assert facts is not None
    usable = 0.9 * 80e9
    assert sum(part.num_bytes for part in engine_memory(config, facts, on_gpu=True)) < config.rollout.gpu_memory_utilization * usable
    assert sum(part.num_bytes for part in learner_memory(config, facts)) < usable
    if config.learner.mode == "lora":
        assert config.rollout.engines * config.rollout.tensor_parallel_size + config.learner.ranks == 4
