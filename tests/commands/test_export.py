"""Checkpoints of a run as folders: transformers and PEFT load them, and our own commands read runs that trained all weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from next_ray.checkpoints.open import open_trajectory
from next_ray.commands.contestants import open_contestants
from next_ray.commands.export import main
from next_ray.config import ModelSection
from next_ray.models.resolve import prepare_model
from next_ray.rollout.probe import probe_adapter
from next_ray.store import CheckpointStore
from next_ray.types import CheckpointKind, FullPart, LearnerState
from next_ray.weights import plan_parts, to_array
from tests.rollout.tiny_model import linear_shapes, save_tiny_model

IDS = torch.tensor([[3, 4, 12, 5, 14]])


def moved(base: Path, step: int) -> Any:
    torch.manual_seed(step)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * step * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_tiny_model(folder)
    return folder


@pytest.fixture
def store(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointStore:
    monkeypatch.setenv("NEXT_RAY_CACHE", str(tmp_path / "cache"))
    store = CheckpointStore(f"file://{tmp_path / 'store'}", "run")
    model = prepare_model(ModelSection(name=str(base)), lambda *_: None)
    store.claim_identity({"base_fingerprint": model.fingerprint, "model": model.name, "lora_rank": 0})
    return store


def commit(store: CheckpointStore, step: int, state: LearnerState) -> None:
    store.commit(step, CheckpointKind.TRAINED, state, [], str(store.identity()["base_fingerprint"]), {})


def commit_whole(store: CheckpointStore, base: Path, step: int) -> None:
    parameters = dict(moved(base, step).named_parameters())
    plan = plan_parts({name: tuple(p.shape) for name, p in parameters.items()}, 20_000)
    parts = [FullPart({name: to_array(parameters[name], "float32") for name in names}, {}) for names in plan]
    assert len(parts) > 2
    commit(store, step, LearnerState({}, {}, {}, parts))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_full_weights_become_a_model_folder(store: CheckpointStore, base: Path, tmp_path: Path, dtype: str | None) -> None:
    for step in (2, 4):
        commit_whole(store, base, step)
    folder = tmp_path / "exported"
    assert main([f"{tmp_path / 'store' / 'run'}@2", str(folder), *(["--dtype", dtype] if dtype else [])]) == 0
    expected = moved(base, 2)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.copy_(parameter if dtype else parameter.bfloat16().float())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(logits(model), logits(expected))
    assert AutoModelForCausalLM.from_pretrained(folder).dtype is getattr(torch, dtype or "bfloat16")
    assert (folder / "tokenizer.json").is_file()
    record = json.loads((folder / "next_ray_export.json").read_text())
    assert (record["checkpoint"], record["step"], record["kind"]) == ("00000002-trained", 2, "full model")


def test_an_adapter_becomes_a_peft_folder(store: CheckpointStore, base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = probe_adapter(linear_shapes(base), 4, 0.5, seed=1)
    commit(store, 3, LearnerState(adapter, {}, {}))
    assert main([store.url, str(tmp_path / "exported")]) == 0
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for name, factors in adapter.items():
            model.get_parameter(f"{name}.weight").data += torch.from_numpy(factors.scale * factors.b @ factors.a)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "exported")
    torch.testing.assert_close(logits(peft), logits(model), rtol=0, atol=1e-4)


def test_what_cannot_be_exported_is_said_and_nothing_is_written(
    store: CheckpointStore, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "exported")
    assert main([store.url, target]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    commit(store, 3, LearnerState(probe_adapter(linear_shapes(base), 4, 0.5, seed=1), {}, {}))
    assert main([store.url, target, "--dtype", "bfloat16"]) == 2
    assert "--dtype is for full weights" in capsys.readouterr().err
    assert main([f"{store.url}@9", target]) == 2
    assert "00000003-trained" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()
    (tmp_path / "exported").mkdir()
    assert main([store.url, target]) == 2
    assert "exists" in capsys.readouterr().err


def test_another_base_is_refused(store: CheckpointStore, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit_whole(store, base, 2)
    save_tiny_model(tmp_path / "other")
    moved(base, 9).save_pretrained(tmp_path / "other")
    assert main([store.url, str(tmp_path / "exported"), "--base", str(tmp_path / "other")]) == 2
    assert "--base FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_a_damaged_part_leaves_no_folder(store: CheckpointStore, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit_whole(store, base, 2)
    entry = store.manifests()[0].objects["weights_00001"]
    path = tmp_path / "store" / "run" / entry.path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main([store.url, str(tmp_path / "exported")]) == 2
    assert "weights_00001" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_a_run_of_full_weights_opens_as_a_dense_trajectory(store: CheckpointStore, base: Path) -> None:
    for step in (2, 4):
        commit_whole(store, base, step)
    imported = open_trajectory(store.url)
    assert (imported.kind, imported.trajectory.steps) == ("dense", (2, 4))
    history: Any = imported.trajectory.modules["model.layers.0.self_attn.q_proj"]
    expected = dict(moved(base, 4).named_parameters())["model.layers.0.self_attn.q_proj.weight"]
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).get_parameter("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_allclose(history.combine(np.array([0.0, 1.0])), (expected - start).detach().numpy(), atol=1e-6)


def test_a_checkpoint_of_full_weights_can_be_evaluated(store: CheckpointStore, base: Path, tmp_path: Path) -> None:
    commit_whole(store, base, 2)
    (contestant,) = open_contestants([f"{tmp_path / 'store' / 'run'}@2"])
    assert contestant.adapter is None and contestant.step == 2
    model = AutoModelForCausalLM.from_pretrained(contestant.base.path, dtype=torch.float32)
    assert torch.equal(logits(model), logits(moved(base, 2)))


def test_an_interrupted_export_leaves_nothing(
    store: CheckpointStore, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(store, 3, LearnerState(probe_adapter(linear_shapes(base), 4, 0.5, seed=1), {}, {}))
    before = sorted(path.name for path in tmp_path.iterdir())

    def interrupted(adapter: Any, folder: Path, base_name: str) -> None:
        (folder / "half").write_text("of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("next_ray.adapter.write_peft_folder", interrupted)
    assert main([store.url, str(tmp_path / "exported")]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
