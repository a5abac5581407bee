"""Exported adapters, judged by PEFT and by dense numpy."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from next_ray.checkpoints import export, tensor_writer
from next_ray.checkpoints.adapters import read_peft_folder
from next_ray.checkpoints.card import clean
from next_ray.checkpoints.export import Result, export_adapter, vllm_rank
from next_ray.delta.trajectory import WeightTrajectory, from_adapters
from next_ray.errors import ExtrapolationError, StoreError
from next_ray.extrapolate.plan import Dropout, ModulePlan
from next_ray.types import LoraFactors, Triplet
from tests.export.samples import LINEAGE, dense_delta, lora_trajectory, save_base, two_point


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), torch.float32)


@pytest.fixture(scope="module")
def trajectory(base: Path) -> WeightTrajectory:
    return lora_trajectory(base)


def peft_deltas(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    layers = {name: m for name, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer)}
    return {name: layer.get_delta_weight("default").detach().numpy() for name, layer in layers.items()}  # pyright: ignore


def with_triplets(trajectory: WeightTrajectory) -> dict[str, ModulePlan]:
    last = np.eye(trajectory.num_checkpoints)[-1]
    rng = np.random.default_rng(1)
    plans = {}
    for name, module in trajectory.modules.items():
        u, v = (rng.normal(size=size) for size in module.shape)
        unit = Triplet(0.3, (u / np.linalg.norm(u)).astype(np.float32), (v / np.linalg.norm(v)).astype(np.float32))
        plans[name] = ModulePlan(last, (unit,), row_scale=1.0 + 0.1 * rng.random(module.shape[0]))
    return plans


@pytest.mark.parametrize(("kind", "rank"), [("triplet", 5), ("two-point", 8)])
def test_exact_adapters_have_the_stacked_rank_and_the_plans_deltas(
    kind: str, rank: int, base: Path, trajectory: WeightTrajectory, tmp_path: Path
) -> None:
    plans = with_triplets(trajectory) if kind == "triplet" else two_point(trajectory, 1.5)
    written = export_adapter(tmp_path / "out", Result(plans, trajectory, LINEAGE))
    assert written.facts["rank"] == rank and written.facts["truncation_error"] == 0.0
    for name, delta in peft_deltas(base, tmp_path / "out").items():
        expected = dense_delta(plans[name], trajectory, name)
        np.testing.assert_allclose(delta, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


def test_recompressed_is_the_best_approximation_and_says_what_it_lost(base: Path, trajectory: WeightTrajectory, tmp_path: Path) -> None:
    plans = with_triplets(trajectory)
    written = export_adapter(tmp_path / "out", Result(plans, trajectory, LINEAGE), rank=4)
    lost = energy = 0.0
    for name, delta in peft_deltas(base, tmp_path / "out").items():
        expected = dense_delta(plans[name], trajectory, name)
        u, sigma, v = np.linalg.svd(expected)
        np.testing.assert_allclose(delta, (u[:, :4] * sigma[:4]) @ v[:4], atol=2e-6 * sigma[0])
        lost, energy = lost + float(np.sum(sigma[4:] ** 2)), energy + float(np.sum(sigma**2))
    assert written.facts["rank"] == 4
    assert written.facts["truncation_error"] == pytest.approx(np.sqrt(lost / energy), rel=1e-6) and lost > 0


def test_a_plan_that_is_a_checkpoint_gives_its_factors_bit_for_bit(trajectory: WeightTrajectory, tmp_path: Path) -> None:
    plans = {name: ModulePlan(np.array([0.0, 1.0, 0.0])) for name in trajectory.modules}
    export_adapter(tmp_path / "out", Result(plans, trajectory, LINEAGE))
    for name, factors in read_peft_folder(tmp_path / "out").items():
        original = trajectory.modules[name].factors[1]  # type: ignore[attr-defined]
        assert factors.a.tobytes() == original.a.tobytes() and factors.b.tobytes() == original.b.tobytes()
        assert factors.scale == original.scale


def test_sources_of_mixed_rank_and_scale_become_one(base: Path, trajectory: WeightTrajectory, tmp_path: Path) -> None:
    """Rank and alpha patterns, rsLoRA: all is folded into one rank and one scale."""
    adapters = []
    for index in range(3):
        adapter = {}
        for number, (name, module) in enumerate(trajectory.modules.items()):
            f = module.factors[index]  # type: ignore[attr-defined]
            rank = 2 + number % 3
            adapter[name] = LoraFactors(f.a[:rank], f.b[:, :rank], 8.0 / np.sqrt(rank))
        adapters.append(adapter)
    mixed = from_adapters([1, 2, 3], adapters)
    plans = two_point(mixed, 0.5)
    export_adapter(tmp_path / "out", Result(plans, mixed, LINEAGE))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 8 and config["rank_pattern"] == config["alpha_pattern"] == {} and not config["use_rslora"]
    for name, delta in peft_deltas(base, tmp_path / "out").items():
        expected = dense_delta(plans[name], mixed, name)
        np.testing.assert_allclose(delta, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


def test_modules_that_training_saved_whole_go_with_the_adapter(base: Path, trajectory: WeightTrajectory, tmp_path: Path) -> None:
    head = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    export_adapter(tmp_path / "out", Result(two_point(trajectory, 1.0), trajectory, LINEAGE, saved={"lm_head.weight": head}))
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(tmp_path / "out"))
    np.testing.assert_array_equal(model.base_model.model.lm_head.modules_to_save["default"].weight.detach().numpy(), head)
    assert "vLLM does not serve" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_round_like_torch(dtype: str, trajectory: WeightTrajectory, tmp_path: Path) -> None:
    plans = two_point(trajectory, 1.0)
    export_adapter(tmp_path / "wide", Result(plans, trajectory, LINEAGE))
    export_adapter(tmp_path / "narrow", Result(plans, trajectory, LINEAGE), dtype=dtype)
    wide, narrow = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("wide", "narrow"))
    for name, tensor in wide.items():
        assert torch.equal(narrow[name], tensor.to(getattr(torch, dtype)))


def test_removed_entries_need_a_rank(base: Path, trajectory: WeightTrajectory, tmp_path: Path) -> None:
    plans = {name: ModulePlan(plan.weights, drop=Dropout(0.5, 1)) for name, plan in two_point(trajectory, 0.5).items()}
    with pytest.raises(ExtrapolationError, match="--rank R"):
        export_adapter(tmp_path / "out", Result(plans, trajectory, LINEAGE))
    assert not list(tmp_path.iterdir())
    written = export_adapter(tmp_path / "out", Result(plans, trajectory, LINEAGE), rank=16)
    assert 0 < written.facts["truncation_error"] < 1
    name = next(iter(plans))
    sigma = np.linalg.svd(dense_delta(plans[name], trajectory, name), compute_uv=False)
    got = np.linalg.svd(peft_deltas(base, tmp_path / "out")[name], compute_uv=False)
    np.testing.assert_allclose(got[:16], sigma[:16], rtol=1e-4)


def test_the_lineage_and_the_card(trajectory: WeightTrajectory, tmp_path: Path) -> None:
    export_adapter(tmp_path / "out", Result(two_point(trajectory, 0.5), trajectory, LINEAGE))
    record = json.loads((tmp_path / "out" / "next_ray_lineage.json").read_text())
    assert [p["step"] for p in record["parents"]] == [10, 20] and record["alpha"] == 0.5 and record["seed"] == 3
    assert record["evidence"] == {"back test": "beats persistence by 3 %"}
    assert {"next_ray", "torch", "peft", "numpy"} <= set(record["versions"])
    for file, digest in record["files"].items():
        assert tensor_writer.sha256_of(tmp_path / "out" / file) == digest
    assert set(record["files"]) == {"adapter_model.safetensors", "adapter_config.json"}
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["base_model"] == "tiny/base" and matter["library_name"] == "peft" and "lora" in matter["tags"]
    assert "max_lora_rank=8" in text and "run/checkpoint-10" in text


def test_the_same_export_gives_the_same_bytes(trajectory: WeightTrajectory, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_adapter(tmp_path / name, Result(two_point(trajectory, 0.5), trajectory, LINEAGE), rank=4)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_no_secret_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert clean("s3://key:secret@host/bucket/run?X-Amz-Signature=abc#x") == "s3://host/bucket/run"
    assert clean("/home/someone/run/checkpoint-1") == "~/run/checkpoint-1"
    assert clean("/home/someone-else/run") == "/home/someone-else/run"
    assert clean("Qwen/Qwen2.5-7B-Instruct") == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize(("rank", "needed"), [(1, 8), (8, 8), (9, 16), (65, 128), (128, 128), (129, 256), (513, None)])
def test_vllms_rank(rank: int, needed: int | None) -> None:
    assert vllm_rank(rank) == needed


def test_an_existing_folder_is_refused_and_only_exports_are_overwritten(trajectory: WeightTrajectory, tmp_path: Path) -> None:
    out, plans = tmp_path / "out", two_point(trajectory, 0.5)
    out.mkdir()
    (out / "thesis.txt").write_text("two years of work")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="exists already" if not overwrite else "not an earlier export"):
            export_adapter(out, Result(plans, trajectory, LINEAGE), overwrite=overwrite)
    assert (out / "thesis.txt").read_text() == "two years of work"
    export_adapter(tmp_path / "new", Result(plans, trajectory, LINEAGE))
    export_adapter(tmp_path / "new", Result(plans, trajectory, LINEAGE), rank=2, overwrite=True)
    assert json.loads((tmp_path / "new" / "adapter_config.json").read_text())["r"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_what_was_there(
    failure: BaseException, existing: bool, trajectory: WeightTrajectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is the last thing written: everything else lies in the draft by then."""
    plans = two_point(trajectory, 0.5)
    if existing:
        export_adapter(tmp_path / "out", Result(plans, trajectory, LINEAGE), rank=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(record: Any) -> str:
        raise failure

    monkeypatch.setattr(export, "model_card", fail)
    with pytest.raises(StoreError if isinstance(failure, OSError) else KeyboardInterrupt):
        export_adapter(tmp_path / "out", Result(plans, trajectory, LINEAGE), overwrite=existing)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_a_paragraph(trajectory: WeightTrajectory) -> None:
    with pytest.raises(StoreError, match="could not be written"):
        export_adapter(Path("/proc/nowhere/out"), Result(two_point(trajectory, 0.5), trajectory, LINEAGE))


@pytest.mark.parametrize("alpha", [1e60, 1e300])
def test_what_is_not_finite_is_refused(alpha: float, trajectory: WeightTrajectory, tmp_path: Path) -> None:
    with pytest.raises(ExtrapolationError, match="Lower alpha"):
        export_adapter(tmp_path / "out", Result(two_point(trajectory, alpha), trajectory, LINEAGE))
    assert not list(tmp_path.iterdir())
