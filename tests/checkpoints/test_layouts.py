from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from next_ray.checkpoints.open import open_trajectory
from next_ray.errors import CheckpointFormatError
from tests.checkpoints.samples import adapted, copied, qwen, save_base, save_steps, shake


def verl_actor(model, folder: Path) -> Path:
    """`global_step_N/actor` as verl's FSDP worker leaves it: configuration by asdict, factors by name, shards and tokenizer beside."""
    adapter = folder / "actor" / "lora_adapter"
    adapter.mkdir(parents=True)
    config = asdict(model.peft_config["default"])
    config |= {name: getattr(config[name], "value", config[name]) for name in ("task_type", "peft_type")}
    config["target_modules"] = sorted(config["target_modules"])
    (adapter / "adapter_config.json").write_text(json.dumps(config, indent=4))
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    torch.save({}, folder / "actor" / "model_world_size_2_rank_0.pt")
    (folder / "actor" / "huggingface").mkdir()
    (folder / "actor" / "huggingface" / "config.json").write_text("{}")
    torch.save({}, folder / "data.pt")
    return folder


def sources(*paths: Path, base: str | None = None) -> list[tuple[int, str, str]]:
    root = paths[0].parent
    return [(s.step, s.format, str(Path(s.path).relative_to(root))) for s in open_trajectory([str(p) for p in paths], base=base).sources]


def test_verls_run_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = adapted(qwen(), "/nowhere/base")
    for step in (100, 20, 60):
        shake(model, step)
        verl_actor(model, run / f"global_step_{step}")
    (run / "latest_checkpointed_iteration.txt").write_text("100")
    expected = [(step, "verl", f"run/global_step_{step}/actor/lora_adapter") for step in (20, 60, 100)]
    assert sources(run) == expected
    assert sources(run / "global_step_60") == [(60, "verl", "global_step_60/actor/lora_adapter")]
    assert open_trajectory([str(run / "global_step_60" / "actor" / "lora_adapter")]).trajectory.steps == (60,)
    assert not any("evenly" in note for note in open_trajectory([str(run)]).notes)


def test_verls_sft_and_merger_folders(tmp_path: Path) -> None:
    save_steps(adapted(qwen(), "/nowhere/base"), tmp_path / "run", [10, 20], "global_step_{step}/lora_adapter")
    assert [source[:2] for source in sources(tmp_path / "run")] == [(10, "verl"), (20, "verl")]


def test_verls_shards_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "global_step_5" / "actor").mkdir(parents=True)
    torch.save({}, tmp_path / "global_step_5" / "actor" / "model_world_size_2_rank_0.pt")
    for path in (tmp_path, tmp_path / "global_step_5"):
        with pytest.raises(CheckpointFormatError, match="FSDP shards"):
            open_trajectory([str(path)])


def test_trls_output_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = adapted(qwen(), "/nowhere/base")
    for folder, step in zip(save_steps(model, run, [5, 10, 20]), (5, 10, 20), strict=True):
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
        torch.save({}, folder / "optimizer.pt")
    (run / "runs").mkdir()
    save_steps(model, tmp_path, [20], "run")
    assert sources(run) == [(step, "trl", f"run/checkpoint-{step}") for step in (5, 10, 20)]
    notes = open_trajectory([str(run)]).notes
    assert any("holds weights itself" in note for note in notes)
    assert any("between 10 and 20" in note for note in notes)
    (run / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 11}')
    with pytest.raises(CheckpointFormatError, match=r"checkpoint-10 is named after step 10.*says 11"):
        open_trajectory([str(run)])


def test_openrlhfs_checkpoint_path(tmp_path: Path) -> None:
    """`{ckpt_path}/global_stepN_hf` beside DeepSpeed's `_actor`; under ZeRO-3 the adapter is a weights-only pickle."""
    ckpt = tmp_path / "ckpt"
    model = adapted(qwen(), "/nowhere/base")
    for folder in save_steps(model, ckpt, [8, 16], "global_step{step}_hf"):
        (folder / "config.json").write_text("{}")
    torch.save(get_peft_model_state_dict(model, save_embedding_layers=False), ckpt / "global_step16_hf" / "adapter_model.bin")
    (ckpt / "global_step16_hf" / "adapter_model.safetensors").unlink()
    (ckpt / "_actor" / "global_step16").mkdir(parents=True)
    torch.save({}, ckpt / "_actor" / "global_step16" / "mp_rank_00_model_states.pt")
    imported = open_trajectory([str(ckpt)])
    assert [(s.step, s.format) for s in imported.sources] == [(8, "openrlhf"), (16, "openrlhf")]
    factors = imported.trajectory.modules["model.layers.0.mlp.up_proj"].factors[1]  # type: ignore[attr-defined]
    layer: Any = model.get_base_model().get_submodule("model.layers.0.mlp.up_proj")
    np.testing.assert_array_equal(factors.a, layer.lora_A["default"].weight.detach().numpy())
    with pytest.raises(CheckpointFormatError, match="save_hf_ckpt"):
        open_trajectory([str(ckpt / "_actor")])


def test_full_models_of_the_trainers(tmp_path: Path) -> None:
    base = save_base(qwen(0), tmp_path / "base")
    for run, name, format_ in (
        ("trl", "checkpoint-{}", "trl"),
        ("verl", "global_step_{}/actor/huggingface", "verl"),
        ("orlhf", "global_step{}_hf", "openrlhf"),
        ("own", "{}", "hf"),
    ):
        for step in (1, 2):
            save_base(qwen(step), tmp_path / run / name.format(step))
        assert [source[:2] for source in sources(tmp_path / run, base=str(base))] == [(1, format_), (2, format_)]


def test_several_paths_in_any_order(tmp_path: Path) -> None:
    folders = save_steps(adapted(qwen(), "/nowhere/base"), tmp_path, [30, 10, 20], "step_{step}")
    assert open_trajectory([str(folder) for folder in folders]).trajectory.steps == (10, 20, 30)


def test_paths_without_steps_keep_their_order_and_a_folder_of_them_is_refused(tmp_path: Path) -> None:
    save_steps(adapted(qwen(), "/nowhere/base"), tmp_path / "run", [1], "early")
    save_steps(adapted(qwen(), "/nowhere/base"), tmp_path / "run", [2], "late")
    imported = open_trajectory([str(tmp_path / "run" / "late"), str(tmp_path / "run" / "early")])
    assert imported.trajectory.steps == (1, 2) and imported.sources[0].path.endswith("late")
    assert any("given order" in note for note in imported.notes)
    with pytest.raises(CheckpointFormatError, match="does not say its training step"):
        open_trajectory([str(tmp_path / "run")])
    save_steps(adapted(qwen(), "/nowhere/base"), tmp_path / "run", [3], "checkpoint-3")
    with pytest.raises(CheckpointFormatError, match="early does not say"):
        open_trajectory([str(tmp_path / "run" / "early"), str(tmp_path / "run" / "checkpoint-3")])


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-40", 40),
        ("qwen-grpo-step-40", 40),
        ("global_step_40", 40),
        ("ckpt_00040", 40),
        ("iter40", 40),
        ("epoch-2", 2),
        ("0040", 40),
    ],
)
def test_steps_in_names(name: str, step: int, tmp_path: Path) -> None:
    (folder,) = save_steps(adapted(qwen(), "/nowhere/base"), tmp_path / "7", [1], name)
    assert open_trajectory([str(folder)]).trajectory.steps == (step,)
    assert open_trajectory([str(tmp_path / "7")]).trajectory.steps == (step,)


@pytest.mark.parametrize("name", ["Qwen2.5-7B", "final", "v2.1", "best_model"])
def test_numbers_that_are_no_steps(name: str, tmp_path: Path) -> None:
    (folder,) = save_steps(adapted(qwen(), "/nowhere/base"), tmp_path / "7", [1], name)
    imported = open_trajectory([str(folder)])
    assert imported.trajectory.steps == (1,) and any("given order" in note for note in imported.notes)


def test_weights_beside_checkpoints_are_mentioned(tmp_path: Path) -> None:
    model = adapted(qwen(), "/nowhere/base")
    save_steps(model, tmp_path, [10, 20])
    save_steps(model, tmp_path, [20], "final")
    imported = open_trajectory([str(tmp_path)])
    assert imported.trajectory.steps == (10, 20) and any("final" in note and "left aside" in note for note in imported.notes)


def test_two_checkpoints_of_one_step_are_refused(tmp_path: Path) -> None:
    (folder,) = save_steps(adapted(qwen(), "/nowhere/base"), tmp_path / "a", [10])
    copied(folder, tmp_path / "b" / "checkpoint-10")
    with pytest.raises(CheckpointFormatError, match="both of step 10"):
        open_trajectory([str(tmp_path / "a"), str(tmp_path / "b")])


def test_adapters_beside_full_models_are_refused(tmp_path: Path) -> None:
    save_steps(adapted(qwen(), "/nowhere/base"), tmp_path, [10])
    save_base(qwen(1), tmp_path / "checkpoint-20")
    with pytest.raises(CheckpointFormatError, match=r"checkpoint-10 is an adapter and .*checkpoint-20 a full model"):
        open_trajectory([str(tmp_path)])


def test_checkpoints_of_two_trainers_are_refused(tmp_path: Path) -> None:
    model = adapted(qwen(), "/nowhere/base")
    (trl,) = save_steps(model, tmp_path / "a", [10])
    (openrlhf,) = save_steps(model, tmp_path / "b", [20], "global_step{step}_hf")
    with pytest.raises(CheckpointFormatError, match=r"checkpoint-10 is laid out as trl's and .*global_step20_hf as openrlhf's"):
        open_trajectory([str(trl), str(openrlhf)])


def test_a_half_deleted_checkpoint_is_not_passed_over(tmp_path: Path) -> None:
    save_steps(adapted(qwen(), "/nowhere/base"), tmp_path, [10, 30])
    (tmp_path / "checkpoint-20").mkdir()
    with pytest.raises(CheckpointFormatError, match="checkpoint-20 looks like a checkpoint"):
        open_trajectory([str(tmp_path)])
    (tmp_path / "checkpoint-20").rmdir()
    (tmp_path / "checkpoint-30" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointFormatError, match=r"checkpoint-30 has an adapter_config\.json but no"):
        open_trajectory([str(tmp_path)])


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, complaint in ((tmp_path / "gone", "does not exist"), (tmp_path / "file", "is a file"), (tmp_path, "is no checkpoint")):
        with pytest.raises(CheckpointFormatError, match=complaint):
            open_trajectory([str(path)])
    with pytest.raises(CheckpointFormatError, match="No checkpoint was given"):
        open_trajectory([])


def test_links_that_the_user_gave_are_followed(tmp_path: Path) -> None:
    (folder,) = save_steps(adapted(qwen(), "/nowhere/base"), tmp_path / "real", [10])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint-10").symlink_to(folder)
    assert open_trajectory([str(tmp_path / "run")]).trajectory.steps == (10,)
