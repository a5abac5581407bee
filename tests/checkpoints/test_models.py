from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from next_ray.checkpoints.models import open_model_folder
from next_ray.checkpoints.open import open_trajectory
from next_ray.errors import CheckpointFormatError, NextRayError
from tests.checkpoints.samples import adapted, edit_json, llama, qwen, save_base, save_steps

INDEX = "model.safetensors.index.json"


def expected(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    return state


@pytest.mark.parametrize("shards", ["1GB", "8KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [qwen, llama], ids=["tied", "untied"])
def test_every_tensor_is_what_transformers_saved(build, dtype: torch.dtype, shards: str, tmp_path: Path) -> None:
    model = build().to(dtype)
    folder = save_base(model, tmp_path / "model", max_shard_size=shards)
    assert (folder / INDEX).exists() == (shards == "8KB")
    stored = open_model_folder(folder)
    state = expected(model)
    assert set(stored.places) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(stored.read(name), tensor.float().numpy())


def test_a_tied_head_that_was_written_all_the_same_counts_once(tmp_path: Path) -> None:
    folder = save_base(qwen(), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    assert "lm_head.weight" not in open_model_folder(folder).places


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_only_pickles_are_read(sharded: bool, tmp_path: Path) -> None:
    folder = save_base(llama(), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    if sharded:
        parts = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
        for file, part in parts.items():
            torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map = {name: file for file, part in parts.items() for name in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    stored = open_model_folder(folder)
    for name in names:
        np.testing.assert_array_equal(stored.read(name), tensors[name].numpy())


def test_full_checkpoints_are_a_trajectory_from_their_base(tmp_path: Path) -> None:
    base = save_base(qwen(0), tmp_path / "base", max_shard_size="8KB")
    models: dict[int, Any] = {step: qwen(step).bfloat16() for step in (10, 20, 30)}
    for step, model in models.items():
        save_base(model, tmp_path / "run" / f"checkpoint-{step}")
    imported = open_trajectory([str(tmp_path / "run")], base=str(base))
    assert imported.kind == "dense" and imported.trajectory.steps == (10, 20, 30)
    start = expected(qwen(0))
    matrices = {name.removesuffix(".weight") for name, tensor in start.items() if tensor.ndim == 2}
    assert set(imported.trajectory.modules) == matrices
    assert set(imported.saved.names) == {name for name, tensor in start.items() if tensor.ndim != 2}
    for index, step in enumerate((10, 20, 30), start=1):
        state = expected(models[step])
        weights = np.eye(3)[index - 1]
        for module in matrices:
            delta = imported.trajectory.modules[module].combine(weights)
            assert isinstance(delta, np.ndarray)
            difference = state[f"{module}.weight"].double() - start[f"{module}.weight"].double()
            np.testing.assert_allclose(delta, difference.numpy(), rtol=0, atol=1e-7)
        for name in imported.saved.names:
            np.testing.assert_array_equal(imported.saved.load(index, name), state[name].float().numpy())
    assert any("no matrices" in note for note in imported.notes)


def test_full_checkpoints_need_a_base_of_their_shape(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_base(qwen(1), run / "checkpoint-1")
    for base, complaint in (
        (None, "give the folder of the base"),
        ("org/name", "is not a folder here"),
        (str(save_base(qwen(0, intermediate_size=32), tmp_path / "wide")), r"is \[24, 16\] there|is \[16, 24\] there"),
        (str(save_base(llama(0), tmp_path / "llama")), "does not match its base"),
    ):
        with pytest.raises(CheckpointFormatError, match=complaint):
            open_trajectory([str(run)], base=base)


@pytest.mark.parametrize(
    ("shard", "complaint"),
    [
        ("../model-00001.safetensors", "no file beside it"),
        ("/etc/passwd", "no file beside it"),
        ("gone.safetensors", "cannot be read"),
        (7, "no table"),
    ],
)
def test_an_index_cannot_point_elsewhere(shard: object, complaint: str, tmp_path: Path) -> None:
    folder = save_base(qwen(), tmp_path / "model", max_shard_size="8KB")
    table = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map={**table, "model.norm.weight": shard})
    with pytest.raises(CheckpointFormatError, match=complaint):
        open_model_folder(folder)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    folder = save_base(qwen(), tmp_path / "model", max_shard_size="8KB")
    table = json.loads((folder / INDEX).read_text())["weight_map"]
    table.pop("model.norm.weight")
    edit_json(folder / INDEX, weight_map=table)
    with pytest.raises(CheckpointFormatError, match=r"disagree about 'model\.norm\.weight'"):
        open_model_folder(folder)
    (folder / INDEX).unlink()
    with pytest.raises(CheckpointFormatError, match="says what belongs together"):
        open_model_folder(folder)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder = save_base(qwen(), tmp_path / "model")
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointFormatError, match="quantised"):
        open_model_folder(folder)


def test_an_adapter_names_a_base_with_numbers_that_are_none(tmp_path: Path) -> None:
    base = save_base(llama(), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, base / "model.safetensors")
    (folder,) = save_steps(adapted(llama(), base), tmp_path / "run", [1])
    open_trajectory([str(folder)])
    with pytest.raises(CheckpointFormatError, match=r"model\.norm\.weight.*NaN"):
        open_model_folder(base).read("model.norm.weight")


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(
    st.sampled_from(["config.json", INDEX]),
    NESTED | st.dictionaries(st.sampled_from(["weight_map", "text_config", "tie_word_embeddings"]), NESTED),
)
def test_any_value_in_a_models_documents(tmp_path: Path, name: str, content: object) -> None:
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    (folder / "config.json").write_text("{}")
    save_file({"a.weight": torch.zeros(2, 3), "b": torch.zeros(2)}, folder / "model.safetensors")
    (folder / name).write_text(json.dumps(content))
    try:
        open_model_folder(folder).read("a.weight")
    except NextRayError as error:
        assert str(folder) in str(error)
