"""The callback inside real GRPO runs of TRL (CPU, a random model of two layers)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState

from next_ray.checkpoints.adapters import read_peft_folder
from next_ray.checkpoints.open import open_trajectory
from next_ray.commands.extrapolate import main
from next_ray.errors import ConfigError
from next_ray.integrations.trl import ExtrapolationCallback, steps_in
from tests.delta.trajectories import dense
from tests.integrations.trl_models import save_random_model

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and datasets' own, at import and while they train

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"))


def reward(completions: Any, **kwargs: Any) -> Any:
    return [float(sum(character in "02468" for character in text)) for text in completions]


def trainer_for(model: Path, output: Path, callback: ExtrapolationCallback, steps: int, lora: dict[str, Any] | None = LORA) -> Any:
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    args = GRPOConfig(
        output_dir=str(output),
        max_steps=steps,
        save_steps=2,
        save_total_limit=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=1,
    )
    data = Dataset.from_list([{"prompt": f"{a}+{b}="} for a in range(4) for b in range(4)])
    peft_config = LoraConfig(**lora) if lora is not None else None
    judge: Any = reward
    return GRPOTrainer(str(model), reward_funcs=judge, args=args, train_dataset=data, peft_config=peft_config, callbacks=[callback])


def test_a_run_leaves_trajectory_candidates_and_verdict(model: Path, tmp_path: Path) -> None:
    callback = ExtrapolationCallback(every_steps=1, methods=("two-point", "wsm-uniform"), alphas=(1.0,), horizon=2)
    trainer = trainer_for(model, tmp_path / "grpo", callback, 5)
    trainer.train()
    root = tmp_path / "grpo" / "extrapolation"
    assert list(steps_in(root / "trajectory")) == [1, 2, 3, 4, 5]

    # What was collected is what TRL itself saved, and the candidate is two-point of that.
    theirs, ours = read_peft_folder(tmp_path / "grpo" / "checkpoint-4"), read_peft_folder(root / "trajectory" / "checkpoint-4")
    for name, factors in theirs.items():
        np.testing.assert_array_equal(ours[name].b, factors.b)
        assert ours[name].scale == factors.scale == 2.0
    last, before = (read_peft_folder(root / "trajectory" / f"checkpoint-{step}") for step in (5, 3))
    candidate = read_peft_folder(root / "candidates" / "two-point@1")
    for name, factors in candidate.items():
        expected = 2 * dense(last[name]) - dense(before[name])
        np.testing.assert_allclose(dense(factors), expected, atol=1e-5 * np.abs(expected).max())
    assert (root / "candidates" / "wsm-uniform@1" / "README.md").exists()
    record = json.loads((root / "candidates" / "two-point@1" / "next_ray_lineage.json").read_text())
    assert [p["step"] for p in record["parents"]] == [1, 2, 3, 4, 5] and record["base"]["name"] == str(model)
    assert json.loads((root / "inspection.json").read_text())["verdict"]["sentence"]

    # The candidate loads into PEFT, and both commands read TRL's own folder too.
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(root / "candidates" / "two-point@1"))
    assert torch.isfinite(loaded(input_ids=torch.tensor([[1, 5, 6, 7]])).logits).all()
    assert main([str(tmp_path / "grpo"), "--method", "expo", "--alpha", "0.5", "--output", str(tmp_path / "expo")]) == 0


def test_a_resumed_run_goes_on_from_the_folder(model: Path, tmp_path: Path) -> None:
    def callback() -> ExtrapolationCallback:
        return ExtrapolationCallback(every_steps=1, methods=("expo",), inspect=False)

    trainer_for(model, tmp_path / "grpo", callback(), 3).train()
    root = tmp_path / "grpo" / "extrapolation"
    before = {step: (folder / "adapter_model.safetensors").read_bytes() for step, folder in steps_in(root / "trajectory").items()}
    assert list(before) == [1, 2, 3]
    (root / "trajectory" / ".checkpoint-3.torn").mkdir()  # as after kill -9
    with pytest.raises(ConfigError, match="holds the trajectory of another run"):
        trainer_for(model, tmp_path / "grpo", callback(), 3).train()
    trainer_for(model, tmp_path / "grpo", callback(), 4).train(resume_from_checkpoint=str(tmp_path / "grpo" / "checkpoint-2"))
    after = {step: (folder / "adapter_model.safetensors").read_bytes() for step, folder in steps_in(root / "trajectory").items()}
    assert list(after) == [1, 2, 3, 4] and after[1] == before[1] and after[2] == before[2]
    assert open_trajectory([str(root / "trajectory")]).trajectory.steps == (1, 2, 3, 4)
    record = json.loads((root / "candidates" / "expo@0.3" / "next_ray_lineage.json").read_text())
    assert [p["step"] for p in record["parents"]] == [1, 2, 3, 4]


def test_a_method_that_cannot_work_does_not_end_the_run(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = ExtrapolationCallback(every_steps=1, methods=("alpharl", "expo"), inspect=False, output_dir=tmp_path / "own")
    with caplog.at_level(logging.WARNING):
        trainer_for(model, tmp_path / "grpo", callback, 2).train()
    assert "no candidate from alpharl" in caplog.text and "accuracy" in caplog.text
    assert sorted(path.name for path in (tmp_path / "own" / "candidates").iterdir()) == ["expo@0.1", "expo@0.3", "expo@0.5"]


@pytest.mark.parametrize(("lora", "complaint"), [(None, "needs a model with a PEFT LoRA adapter"), ({**LORA, "use_dora": True}, "DoRA")])
def test_what_cannot_be_extrapolated_is_refused_before_the_first_step(
    lora: dict[str, Any] | None, complaint: str, model: Path, tmp_path: Path
) -> None:
    from next_ray.errors import NextRayError

    trainer = trainer_for(model, tmp_path / "grpo", ExtrapolationCallback(every_steps=1), 2, lora)
    with pytest.raises(NextRayError, match=complaint):
        trainer.train()
    assert trainer.state.global_step == 0


def test_sharded_parameters_are_refused(tmp_path: Path) -> None:
    layer: Any = torch.nn.Linear(2, 2)
    layer.weight.ds_id = 0  # what DeepSpeed puts on parameters of ZeRO 3
    args: Any = SimpleNamespace(output_dir=str(tmp_path), fsdp=[], seed=0)
    with pytest.raises(ConfigError, match="ZeRO 3"):
        ExtrapolationCallback().on_train_begin(args, TrainerState(), TrainerControl(), model=layer)
    args.fsdp = ["full_shard"]
    with pytest.raises(ConfigError, match="FSDP"):
        ExtrapolationCallback().on_train_begin(args, TrainerState(), TrainerControl(), model=torch.nn.Linear(2, 2))


def test_settings_are_checked_where_they_are_written() -> None:
    with pytest.raises(ConfigError, match="every_steps"):
        ExtrapolationCallback(every_steps=0)
    with pytest.raises(ConfigError, match="did you mean"):
        ExtrapolationCallback(methods=("two-pont",))
