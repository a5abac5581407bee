from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from next_ray.checkpoints.hashes import with_hashes
from next_ray.checkpoints.imported import Imported
from next_ray.checkpoints.open import open_trajectory
from next_ray.delta.history import FactorHistory
from next_ray.errors import CheckpointFormatError
from next_ray.models.folder import fingerprint, weight_files
from tests.checkpoints.samples import SIZES, adapted, edit_json, llama, peft_delta, qwen, save_base, save_steps, shake


def delta(imported: Imported, module: str, index: int) -> np.ndarray:
    weights = np.zeros(imported.trajectory.num_checkpoints)
    weights[index - 1] = 1.0
    pair = imported.trajectory.modules[module].combine(weights)
    return pair if isinstance(pair, np.ndarray) else pair.left @ pair.right


def linear_modules(model: PeftModel) -> set[str]:
    return {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"^model\.layers\.1\.mlp\.(up|down)_proj": 6}},
        {"alpha_pattern": {r"layers\.0\..*": 3, "q_proj": 5}, "rank_pattern": {"o_proj": 1}},
        {"alpha_pattern": {"self_attn.k_proj": 1}, "rank_pattern": {"k_proj": 3}, "use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
    ],
    ids=lambda config: "+".join(config) or "plain",
)
def test_every_delta_is_what_peft_would_add(config: dict, tmp_path: Path) -> None:
    base = save_base(qwen(), tmp_path / "base")
    model = adapted(qwen(), base, **config)
    save_steps(model, tmp_path / "run", [10, 20])
    imported = open_trajectory([str(tmp_path / "run")])
    assert imported.trajectory.steps == (10, 20) and imported.kind == "adapter" and imported.base.path == base
    assert set(imported.trajectory.modules) == linear_modules(model)
    for index, step in enumerate((10, 20), start=1):
        shake(model, step)
        for module in imported.trajectory.modules:
            np.testing.assert_allclose(delta(imported, module, index), peft_delta(model, module), rtol=0, atol=1e-6)


def test_base_plus_delta_is_pefts_merged_model(tmp_path: Path) -> None:
    base = save_base(llama(), tmp_path / "base")
    model = adapted(llama(), base, rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 7})
    save_steps(model, tmp_path / "run", [5])
    imported = open_trajectory([str(tmp_path / "run")])
    merged = model.merge_and_unload().state_dict()
    for module in imported.trajectory.modules:
        plain = load_file(base / "model.safetensors")[imported.base_tensor(module)].numpy()
        np.testing.assert_allclose(plain + delta(imported, module, 1), merged[f"{module}.weight"].numpy(), rtol=0, atol=1e-6)


def test_ranks_and_scales_may_change_between_checkpoints(tmp_path: Path) -> None:
    folders = []
    for step, rank in ((1, 2), (2, 5)):
        folders += save_steps(adapted(qwen(), "base", r=rank, lora_alpha=4), tmp_path, [step])
    imported = open_trajectory([str(folder) for folder in folders])
    history = imported.trajectory.modules["model.layers.0.mlp.up_proj"]
    assert isinstance(history, FactorHistory) and [f.rank for f in history.factors] == [2, 5]
    assert [f.scale for f in history.factors] == [2.0, 0.8]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_factors_come_back_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    (folder,) = save_steps(adapted(qwen(), "base"), tmp_path, [1])
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(weights).items()}, weights)
    history = open_trajectory([str(folder)]).trajectory.modules["model.layers.1.self_attn.q_proj"]
    assert isinstance(history, FactorHistory)
    factors = history.factors[0]
    stored = load_file(weights)["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"]
    assert factors.a.dtype == np.float32 and torch.equal(torch.from_numpy(factors.a), stored.float())


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: "_fsdp_wrapped_module." + name.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    ],
    ids=["default", "bare", "fsdp", "compiled"],
)
def test_names_of_other_writers_mean_the_same_modules(rename, tmp_path: Path) -> None:
    (folder,) = save_steps(adapted(qwen(), "base"), tmp_path, [1])
    module = "model.layers.0.self_attn.k_proj"
    expected = open_trajectory([str(folder)])
    expected_delta = delta(expected, module, 1)
    weights = folder / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(weights).items()}, weights)
    renamed = open_trajectory([str(folder)])
    assert list(renamed.trajectory.modules) == list(expected.trajectory.modules)
    np.testing.assert_array_equal(delta(renamed, module, 1), expected_delta)
    with pytest.raises(CheckpointFormatError, match="changed while it was in use"):
        delta(expected, module, 1)


def test_a_text_towers_other_name_in_the_base_is_found(tmp_path: Path) -> None:
    base = save_base(qwen(), tmp_path / "base")
    (folder,) = save_steps(adapted(qwen(), base), tmp_path, [1])
    weights = folder / "adapter_model.safetensors"
    save_file({name.replace(".model.layers", ".model.language_model.layers"): t for name, t in load_file(weights).items()}, weights)
    imported = open_trajectory([str(folder)])
    module = "model.language_model.layers.0.mlp.up_proj"
    assert imported.base_tensor(module) == "model.layers.0.mlp.up_proj.weight"
    assert any("name" in note and module.rpartition("layers")[0] in note for note in imported.notes)


def test_modules_trained_whole_are_kept(tmp_path: Path) -> None:
    base = save_base(llama(), tmp_path / "base")
    model = adapted(llama(), base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    save_steps(model, tmp_path / "run", [10, 20])
    imported = open_trajectory([str(tmp_path / "run")])
    assert imported.saved.names == ("lm_head.weight",)
    shake(model, 20)
    head: Any = model.get_base_model().get_submodule("lm_head.modules_to_save.default")
    np.testing.assert_array_equal(imported.saved.load(2, "lm_head.weight"), head.weight.detach().numpy())
    with pytest.raises(CheckpointFormatError, match=r"lm_head\.weight.*not asked for"):
        open_trajectory([str(tmp_path / "run")], keep_saved=False)


def test_a_classifiers_head_is_kept_under_the_name_it_has(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = adapted(LlamaForSequenceClassification(LlamaConfig(**{**SIZES, "num_labels": 1})), "/nowhere/base", task_type="SEQ_CLS")
    save_steps(model, tmp_path, [1])
    imported = open_trajectory([str(tmp_path)])
    assert set(imported.adapter_config["modules_to_save"]) == {"classifier", "score"}  # type: ignore[arg-type]
    assert imported.saved.names == ("score.weight",)


def test_a_head_trained_apart_from_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    base = save_base(qwen(), tmp_path / "base")
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model = adapted(qwen(), base, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    save_steps(model, tmp_path / "run", [10])
    with pytest.raises(CheckpointFormatError, match="one tensor"):
        open_trajectory([str(tmp_path / "run")])


def test_a_saved_module_that_is_missing_is_refused(tmp_path: Path) -> None:
    (folder,) = save_steps(adapted(qwen(), "base"), tmp_path, [1])
    edit_json(folder / "adapter_config.json", modules_to_save=["lm_head"])
    with pytest.raises(CheckpointFormatError, match="lm_head was trained whole"):
        open_trajectory([str(folder)])


def test_a_weights_only_pickle_is_read(tmp_path: Path) -> None:
    model = adapted(qwen(), "base")
    (folder,) = save_steps(model, tmp_path, [3])
    expected = open_trajectory([str(folder)])
    expected_delta = delta(expected, "model.layers.0.mlp.down_proj", 1)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    imported = open_trajectory([str(folder)])
    np.testing.assert_array_equal(delta(imported, "model.layers.0.mlp.down_proj", 1), expected_delta)


def test_files_are_read_only_when_factors_are_asked_for(tmp_path: Path) -> None:
    (folder,) = save_steps(adapted(qwen(), "base"), tmp_path, [1])
    imported = open_trajectory([str(folder)])
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointFormatError, match=r"adapter_model\.safetensors cannot be read"):
        delta(imported, "model.layers.0.mlp.down_proj", 1)


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    base = save_base(qwen(), tmp_path / "base")
    (folder,) = save_steps(adapted(qwen(), base), tmp_path, [1])
    imported = with_hashes(open_trajectory([str(folder)]))
    digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert imported.sources[0].sha256 == {"adapter_model.safetensors": digest}
    assert imported.base.fingerprint == fingerprint(base, weight_files(base), tmp_path / "notes")


def test_another_process_opens_the_same_paths(tmp_path: Path) -> None:
    save_steps(adapted(qwen(), "base"), tmp_path, [10, 20])
    module = "model.layers.0.mlp.down_proj"
    script = (
        "import sys; from next_ray.checkpoints.open import open_trajectory; "
        f"factors = open_trajectory([sys.argv[1]]).trajectory.modules[{module!r}].factors[1]; "
        "sys.stdout.buffer.write(factors.b.tobytes())"
    )
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True, cwd=Path(__file__).parents[2])
    history = open_trajectory([str(tmp_path)]).trajectory.modules[module]
    assert isinstance(history, FactorHistory) and found.stdout == history.factors[1].b.tobytes()


def test_no_file_stays_open_and_no_tensor_stays_in_memory(tmp_path: Path) -> None:
    save_steps(adapted(qwen(hidden_size=256, intermediate_size=2048), "base", r=64), tmp_path, range(1, 9))
    largest = 4 * 64 * (2048 + 256)
    before = len(os.listdir("/proc/self/fd"))
    imported = open_trajectory([str(tmp_path)])
    tracemalloc.start()
    for history in imported.trajectory.modules.values():
        assert isinstance(history, FactorHistory)
        for factors in history.factors:
            assert factors.rank == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(os.listdir("/proc/self/fd")) == before
    assert peak < 2.5 * largest  # the module at hand and the one before it


def test_accuracies_belong_to_steps(tmp_path: Path) -> None:
    save_steps(adapted(qwen(), "base"), tmp_path, [10, 20])
    imported = open_trajectory([str(tmp_path)])
    known = imported.with_accuracies({0: 0.1, 10: 0.25, 20: 0.5}).trajectory
    assert known.accuracies == (0.25, 0.5) and known.base_accuracy == 0.1
    for wrong, complaint in (({10: 0.2}, "step 20"), ({10: 0.2, 20: 0.3, 30: 0.4}, "step 30"), ({10: 0.2, 20: float("nan")}, "share")):
        with pytest.raises(CheckpointFormatError, match=complaint):
            imported.with_accuracies(wrong)
