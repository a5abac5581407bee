"""What `--dry-run` prints, and that it starts and imports nothing heavy."""

from __future__ import annotations

import io
import subprocess
import sys

from rich.console import Console

from next_ray.model_facts import facts_of
from next_ray.report.dry_run import dry_run
from next_ray.settings import load_config


def printed(*overrides: str) -> str:
    config = load_config(None, overrides)
    console = Console(file=io.StringIO(), width=160)
    console.print(dry_run(config, facts_of(config.model)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_shows_config_sizes_placement_and_memory() -> None:
    text = printed("run.steps=30", "learner.lr=2e-4", "cluster.learner_labels={market: on-demand}")
    for fragment in (
        "512 = 64 prompts x 8 samples",
        "lr: 0.0002",
        "jumps tried after",
        "market=on-demand",
        "890,112 parameters",
        "Nothing was started",
    ):
        assert fragment in text


def test_delta_workers_with_gpus_are_placed_on_them() -> None:
    text = printed("extrapolation={delta_workers: 2, gpus_per_delta_worker: 0.25}")
    assert "Placement on GPUs" in text
    (row,) = [line.split() for line in text.splitlines() if line.strip().startswith("delta worker") and "GPU" in line]
    assert row == ["delta", "worker", "2", "0.25", "GPU", "any", "0", "0.5"]
    assert "three checkpoints of the largest module" in text
    assert "three checkpoints" not in printed("extrapolation={enabled: false, gpus_per_delta_worker: 0.25}")


def test_it_remarks_on_what_its_user_may_not_have_meant() -> None:
    assert "Worth a look: Completions may be 1 update old" in printed("rollout.max_staleness=1")
    assert "Worth a look" not in printed("rollout.max_staleness=1", "algorithm.correction=token-tis")


def test_it_says_why_there_is_no_jump_and_no_memory_estimate() -> None:
    text = printed("run.steps=24", "model.name=some/unknown-model")
    assert "the first would be at step 24 = 3 x 8" in text
    assert "Not estimated" in text


def test_it_imports_neither_ray_nor_vllm_nor_torch() -> None:
    code = (
        "import sys; from next_ray.settings import load_config; from next_ray.model_facts import facts_of; "
        "from next_ray.report.dry_run import dry_run; c = load_config(None); dry_run(c, facts_of(c.model)); "
        "print([m for m in ('ray', 'vllm', 'torch', 'deepspeed', 'peft', 'fsspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
