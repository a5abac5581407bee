from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from next_ray.checkpoints.open import open_trajectory
from next_ray.errors import CheckpointFormatError
from tests.checkpoints.samples import adapted, copied, edit_json, llama, qwen, save_base, save_steps


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (folder,) = save_steps(adapted(qwen(), "some/base"), tmp_path_factory.mktemp("plain"), [1])
    return folder


def refusal(folder: Path, *more: Path, base: str | None = None) -> str:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(CheckpointFormatError) as caught:
        open_trajectory([str(folder), *map(str, more)], base=base)
    assert sorted(folder.parent.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_alpha": 0}, "verl's model merger writes 0"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": -1}, "positive"),
        ({"lora_alpha": 1e300}, "positive"),
        ({"r": -1}, "r is '-1'"),
        ({"r": 10**9}, "rank between"),
        ({"r": "8"}, "rank between"),
        ({"r": None}, "rank between"),
        ({"r": True}, "rank between"),
        ({"r": 8}, "has rank 4, but adapter_config.json says 8"),
        ({"rank_pattern": {"q_proj": 9}}, "has rank 4, but"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is not a table"),
        ({"rank_pattern": {"(a+)+$": 4}}, "too involved"),
        ({"rank_pattern": {"(a|a)" * 30: 4}}, "too involved"),
        ({"alpha_pattern": {"[": 4}}, "not a regular expression"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"trainable_token_indices": [1, 2]}, "single tokens"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "experts"),
        ({"layer_replication": [[0, 2]]}, "repeated"),
        ({"init_lora_weights": "pissa"}, "moves a part of the base"),
        ({"init_lora_weights": "pissa_niter_4"}, "moves a part of the base"),
        ({"init_lora_weights": "olora"}, "moves a part of the base"),
        ({"init_lora_weights": "corda"}, "moves a part of the base"),
        ({"init_lora_weights": "loftq"}, "moves a part of the base"),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is not a list"),
        ({"base_model_name_or_path": 7}, "no name or path"),
    ],
    ids=str,
)
def test_a_configuration_with_other_mathematics_or_nonsense_is_refused(
    changes: dict[str, Any], complaint: str, plain: Path, tmp_path: Path
) -> None:
    folder = copied(plain, tmp_path / "run" / "checkpoint-1")
    edit_json(folder / "adapter_config.json", **changes)
    message = refusal(folder)
    assert complaint in message and str(folder) in message


@pytest.mark.parametrize("config", [{"use_dora": True}, {"init_lora_weights": "olora"}, {"bias": "all"}], ids=str)
def test_what_peft_writes_for_other_mathematics_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    (folder,) = save_steps(adapted(qwen(), "base", **config), tmp_path, [1])
    assert str(folder) in refusal(folder)


def test_embeddings_and_tokens_are_refused(tmp_path: Path) -> None:
    (folder,) = save_steps(adapted(llama(), "base", target_modules=["embed_tokens"]), tmp_path, [1])
    assert "embedding table" in refusal(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs.weight", "a/b.weight", "a..b", "", "a\n.weight", "m" * 600, "..lora_A.weight"])
def test_names_that_could_be_paths_are_refused(name: str, plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "run" / "checkpoint-1")
    weights = folder / "adapter_model.safetensors"
    save_file({**load_file(weights), name: torch.zeros(2, 2)}, weights)
    assert str(weights) in refusal(folder)


def test_pairs_must_match(plain: Path, tmp_path: Path) -> None:
    stem = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    for number, (changes, complaint) in enumerate(
        [
            ({"A": torch.zeros(4, 3), "B": torch.zeros(24, 5)}, "no [R, I] and [O, R]"),
            ({"A": torch.zeros(0), "B": torch.zeros(24, 4)}, "ZeRO-3"),
            ({"A": torch.zeros(4, 16), "B": None}, "has only lora_A"),
            ({"A": torch.zeros(4, 16, dtype=torch.int8)}, ""),
        ]
    ):
        folder = copied(plain, tmp_path / str(number) / "checkpoint-1")
        tensors = load_file(folder / "adapter_model.safetensors")
        for factor, value in changes.items():
            tensors.pop(f"{stem}{factor}.weight")
            if value is not None:
                tensors[f"{stem}{factor}.weight"] = value
        save_file(tensors, folder / "adapter_model.safetensors")
        if complaint:
            assert complaint in refusal(folder)
        else:
            with pytest.raises(CheckpointFormatError, match="stored as I8"):
                open_trajectory([str(folder)]).trajectory.modules["model.layers.0.mlp.up_proj"].gram()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_named(value: float, plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "run" / "checkpoint-1")
    weights = folder / "adapter_model.safetensors"
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    tensors = load_file(weights)
    tensors[name][3, 1] = value
    save_file(tensors, weights)
    imported = open_trajectory([str(folder)])
    imported.trajectory.modules["model.layers.1.mlp.up_proj"].gram()
    with pytest.raises(CheckpointFormatError, match=f"{weights}.*{name}.*NaN or infinity"):
        imported.trajectory.modules["model.layers.0.mlp.up_proj"].gram()


def test_checkpoints_of_two_runs_are_refused(plain: Path, tmp_path: Path) -> None:
    fewer = save_steps(adapted(qwen(), "some/base", target_modules=["q_proj"]), tmp_path, [2])[0]
    assert "different modules" in refusal(plain, fewer)
    wider = save_steps(adapted(qwen(intermediate_size=32), "some/base"), tmp_path, [3])[0]
    assert "two models" in refusal(plain, wider)
    other = copied(plain, tmp_path / "other" / "checkpoint-2")
    edit_json(other / "adapter_config.json", base_model_name_or_path="other/base")
    assert "'some/base'" in (message := refusal(plain, other)) and "'other/base'" in message


def test_a_base_that_does_not_match_is_refused(plain: Path, tmp_path: Path) -> None:
    assert "trained from 'some/base'" in refusal(plain, base="another/base")
    wide = save_base(qwen(intermediate_size=32), tmp_path / "wide")
    assert "does not fit the base" in refusal(plain, base=str(wide))
    assert "no model folder" in refusal(plain, base=str(tmp_path))
    one, two = save_base(qwen(1), tmp_path / "one"), save_base(qwen(2), tmp_path / "two")
    folder = copied(plain, tmp_path / "run" / "checkpoint-1")
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(one))
    assert "another model" in refusal(folder, base=str(two))
    assert open_trajectory([str(folder)], base=str(save_base(qwen(1), tmp_path / "copy"))).base.path == tmp_path / "copy"


def test_a_quantised_copy_of_the_base_does_not_stand_in_the_way(plain: Path, tmp_path: Path) -> None:
    base, quantised = save_base(qwen(1), tmp_path / "base"), save_base(qwen(2), tmp_path / "base-4bit")
    edit_json(quantised / "config.json", quantization_config={"load_in_4bit": True})
    folder = copied(plain, tmp_path / "run" / "checkpoint-1")
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(quantised))
    assert "quantised" in refusal(folder)
    imported = open_trajectory(str(folder), base=str(base))
    assert imported.base.path == base and any("your word" in note for note in imported.notes)


def test_copies_of_one_base_are_one_base(plain: Path, tmp_path: Path) -> None:
    folders = []
    for step, seed in ((1, 5), (2, 5), (3, 6)):
        folders.append(copied(plain, tmp_path / "run" / f"checkpoint-{step}"))
        base = save_base(qwen(seed), tmp_path / f"base-{step}")
        edit_json(folders[-1] / "adapter_config.json", base_model_name_or_path=str(base))
    assert open_trajectory([str(folder) for folder in folders[:2]]).trajectory.steps == (1, 2)
    assert "different base models" in refusal(folders[0], folders[2])


@pytest.mark.parametrize("path", ["a" * 5000, "\0", "~nobody-of-that-name/x", ""], ids=["long", "null", "home", "empty"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(CheckpointFormatError):
        open_trajectory([path])


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(old: bool, plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "run" / "checkpoint-1")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"x": _Payload(tmp_path / "ran")}, folder / "adapter_model.bin", _use_new_zipfile_serialization=not old)
    assert "pickle" in refusal(folder)
    assert not (tmp_path / "ran").exists()
    torch.save({"x": _Payload(tmp_path / "ran")}, tmp_path / "check.bin")
    torch.load(tmp_path / "check.bin", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"a": 1}, [torch.zeros(2)], {"x": torch.zeros(2, dtype=torch.int64)}, {3: torch.zeros(2)}], ids=str)
def test_a_harmless_pickle_of_something_else_is_refused(content: Any, plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "run" / "checkpoint-1")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(content, folder / "adapter_model.bin")
    assert "adapter_model.bin" in refusal(folder)


def test_a_pickle_cannot_claim_more_than_its_file_holds(plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "run" / "checkpoint-1")
    (folder / "adapter_model.safetensors").unlink()
    path = folder / "adapter_model.bin"
    torch.save({"model.q_proj.lora_A.weight": torch.zeros(1).expand(2**20, 2**20)}, path)
    assert "no larger than their file" in refusal(folder)
    torch.save({"model.q_proj.lora_A.weight": torch.zeros(2**20)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert "compressed archive" in refusal(folder)
    path.write_bytes(path.read_bytes()[:-30])
    assert str(path) in refusal(folder)
