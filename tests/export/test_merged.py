"""Merged model folders, judged by safetensors, PEFT's merge and the logits of base + adapter."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from next_ray.checkpoints.export import Result, export_adapter, export_merged
from next_ray.checkpoints.tensor_writer import decode, encode, sha256_of
from next_ray.commands.verify import verify_merged
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.errors import ExtrapolationError, ModelError
from next_ray.extrapolate.plan import Dropout, ModulePlan
from tests.export.samples import LINEAGE, dense_delta, logits, lora_trajectory, save_base, two_point

Bases = Callable[..., Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    made: dict[str, Path] = {}

    def get(dtype: str = "bfloat16", tied: bool = False, shards: bool = False) -> Path:
        key = f"{dtype}-{tied}-{shards}"
        if key not in made:
            folder = save_base(tmp_path_factory.mktemp(key), getattr(torch, dtype), tied, "60KB" if shards else "5GB")
            (folder / "tokenizer_config.json").write_text("{}")
            (folder / "README.md").write_text("the base's card")
            made[key] = folder
        return made[key]

    return get


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    result = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            result |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return result


@pytest.mark.parametrize(
    ("dtype", "tied", "shards"), [("bfloat16", True, False), ("bfloat16", False, True), ("float16", False, False), ("float32", True, True)]
)
def test_merged_is_base_plus_delta_rounded_once(dtype: str, tied: bool, shards: bool, bases: Bases, tmp_path: Path) -> None:
    base = bases(dtype, tied, shards)
    trajectory = lora_trajectory(base)
    plans = two_point(trajectory, 0.5)
    written = export_merged(tmp_path / "out", Result(plans, trajectory, LINEAGE), base)
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    assert list(before) == list(after) and ("lm_head.weight" not in after) == tied
    assert len(list(base.glob("*.safetensors"))) == len(list((tmp_path / "out").glob("*.safetensors"))) and shards == (
        (tmp_path / "out" / "model.safetensors.index.json").exists()
    )
    changed = total = 0
    for name, old in before.items():
        module = name.removesuffix(".weight")
        if module in plans:
            exact = torch.from_numpy(dense_delta(plans[module], trajectory, module))
            assert torch.equal(after[name], (old.double() + exact).float().to(old.dtype))
            changed, total = changed + int((after[name] != old).sum()), total + old.numel()
        else:
            assert after[name].dtype == old.dtype and torch.equal(after[name], old)
    assert (written.facts["changed_entries"], written.facts["touched_entries"]) == (changed, total)
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == "{}"
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert "the base's card" not in (tmp_path / "out" / "README.md").read_text()
    record = json.loads((tmp_path / "out" / "next_ray_lineage.json").read_text())
    assert record["files"]["config.json"] == sha256_of(base / "config.json")
    assert all(sha256_of(tmp_path / "out" / name) == digest for name, digest in record["files"].items())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 3e-2)])
def test_logits_are_those_of_base_and_adapter(dtype: str, tolerance: float, bases: Bases, tmp_path: Path) -> None:
    base = bases(dtype)
    trajectory = lora_trajectory(base)
    plans = two_point(trajectory, 0.5)
    export_merged(tmp_path / "merged", Result(plans, trajectory, LINEAGE), base)
    export_adapter(tmp_path / "adapter", Result(plans, trajectory, LINEAGE))
    expected, found = logits(base, tmp_path / "adapter"), logits(tmp_path / "merged")
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < tolerance * scale < np.abs(expected - logits(base)).max()
    assert verify_merged(tmp_path / "merged", base, tmp_path / "adapter").logit_difference < tolerance


def test_merging_agrees_with_peft(bases: Bases, tmp_path: Path) -> None:
    base = bases("float32")
    trajectory = lora_trajectory(base)
    plans = two_point(trajectory, 1.0)
    export_merged(tmp_path / "merged", Result(plans, trajectory, LINEAGE), base)
    export_adapter(tmp_path / "adapter", Result(plans, trajectory, LINEAGE))
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter"))
    by_peft = model.merge_and_unload().state_dict()
    for name, tensor in tensors_of(tmp_path / "merged").items():
        torch.testing.assert_close(tensor, by_peft[name], atol=1e-6, rtol=1e-5)


def test_verification_notices_another_adapter_and_another_base(bases: Bases, tmp_path: Path) -> None:
    base = bases("float32")
    trajectory = lora_trajectory(base)
    export_merged(tmp_path / "merged", Result(two_point(trajectory, 1.0), trajectory, LINEAGE), base)
    export_adapter(tmp_path / "other", Result(two_point(trajectory, 1.1), trajectory, LINEAGE))
    with pytest.raises(ExtrapolationError, match=r"not base \+ delta"):
        verify_merged(tmp_path / "merged", base, tmp_path / "other")


def test_removed_entries_merge(bases: Bases, tmp_path: Path) -> None:
    base = bases("float32")
    trajectory = lora_trajectory(base)
    plans = {name: ModulePlan(plan.weights, drop=Dropout(0.5, 1)) for name, plan in two_point(trajectory, 0.5).items()}
    export_merged(tmp_path / "out", Result(plans, trajectory, LINEAGE), base)
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    name = next(iter(plans))
    moved = after[f"{name}.weight"] != before[f"{name}.weight"]
    np.testing.assert_array_equal(moved.numpy(), dense_delta(plans[name], trajectory, name) != 0)


def test_modules_saved_whole_replace_the_bases(bases: Bases, tmp_path: Path) -> None:
    base = bases("bfloat16")
    trajectory, head = lora_trajectory(base), np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    plans = two_point(trajectory, 0.5)
    export_merged(tmp_path / "out", Result(plans, trajectory, LINEAGE, saved={"lm_head.weight": head}), base)
    assert torch.equal(tensors_of(tmp_path / "out")["lm_head.weight"], torch.from_numpy(head).bfloat16())
    with pytest.raises(ModelError, match=r"no tensor 'lm_head\.weight'"):
        export_merged(tmp_path / "tied", Result(plans, trajectory, LINEAGE, saved={"lm_head.weight": head}), bases("bfloat16", tied=True))


def test_a_merge_that_changes_nothing_is_an_error(bases: Bases, tmp_path: Path) -> None:
    base = bases("bfloat16")
    trajectory = lora_trajectory(base, amplitude=1e-9)
    with pytest.raises(ExtrapolationError, match=r"identical to the base .* lost in rounding"):
        export_merged(tmp_path / "out", Result(two_point(trajectory, 0.5), trajectory, LINEAGE), base)
    nothing = {name: ModulePlan(np.zeros(3)) for name in trajectory.modules}
    with pytest.raises(ExtrapolationError, match="moves no module"):
        export_merged(tmp_path / "out", Result(nothing, trajectory, LINEAGE), base)
    assert not list(tmp_path.iterdir())


def test_the_wrong_base_is_refused(bases: Bases, tmp_path: Path) -> None:
    trajectory = lora_trajectory(bases())
    renamed = WeightTrajectory(trajectory.steps, {f"transformer.{name}": module for name, module in trajectory.modules.items()})
    with pytest.raises(ModelError, match="no tensor 'transformer"):
        export_merged(tmp_path / "out", Result(two_point(renamed, 0.5), renamed, LINEAGE), bases())
    names = list(trajectory.modules)
    swapped = WeightTrajectory(trajectory.steps, dict(zip(names, reversed(list(trajectory.modules.values())), strict=True)))
    with pytest.raises(ModelError, match="has shape"):
        export_merged(tmp_path / "out", Result(two_point(swapped, 0.5), swapped, LINEAGE), bases())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    torch.save({"x": torch.zeros(2)}, tmp_path / "empty" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="are pickles"):
        export_merged(tmp_path / "out", Result(two_point(trajectory, 0.5), trajectory, LINEAGE), tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_delta_too_large_for_the_dtype_is_refused(bases: Bases, tmp_path: Path) -> None:
    base = bases("float16")
    trajectory = lora_trajectory(base)
    with pytest.raises(ExtrapolationError, match="as F16"):
        export_merged(tmp_path / "out", Result(two_point(trajectory, 1e7), trajectory, LINEAGE), base)
    assert not list(tmp_path.iterdir())


def test_encoding_rounds_like_torch() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    halves = np.array([1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, 0.0, -0.0, 3.4e38, 65504.0, 65520.0, 1e-45], np.float32)
    values = np.concatenate([bits[np.isfinite(bits)], halves])
    for dtype, name in ((torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float32, "F32")):
        expected = torch.from_numpy(values.copy()).to(dtype)
        assert encode(values, name) == expected.view(torch.uint8).numpy().tobytes()
        np.testing.assert_array_equal(decode(encode(values, name), name, values.shape), expected.float().numpy())


MEMORY = """
import json, resource, sys
from pathlib import Path
import numpy as np
from next_ray.checkpoints.merge import write_merged
from next_ray.delta.trajectory import from_adapters
from next_ray.extrapolate.plan import ModulePlan
from next_ray.types import LoraFactors

base, out, layers, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = np.random.default_rng(0)
factors = LoraFactors(rng.normal(size=(2, size)).astype(np.float32), rng.normal(size=(size, 2)).astype(np.float32), 1.0)
trajectory = from_adapters([1], [{f"layers.{i}": factors for i in range(layers)}])
out.mkdir()
warm = np.ones((256, 256)) @ np.ones((256, 256))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_merged(out, {name: ModulePlan(np.ones(1)) for name in trajectory.modules}, trajectory, base)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """24 tensors of 8 MiB in one file: at most a few of them, and a block of the delta, are in memory."""
    layers, size = 24, 2048
    base = tmp_path / "base"
    base.mkdir()
    from safetensors.torch import save_file

    save_file({f"layers.{i}.weight": torch.zeros(size, size, dtype=torch.bfloat16) for i in range(layers)}, base / "model.safetensors")
    (base / "config.json").write_text("{}")
    command = [sys.executable, "-c", MEMORY, str(base), str(tmp_path / "out"), str(layers), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < 150  # MiB; the model has 192
