"""`python -m next_ray.extrapolate` on full-parameter checkpoints: merged folders out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from next_ray.commands.extrapolate import main
from tests.export.samples import save_base


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    result = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            result |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return result


@pytest.fixture(scope="module", params=["bfloat16-tied", "float32-sharded"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base and checkpoint-10, -20, -30 of a model of which everything is trained."""
    dtype, _, form = request.param.partition("-")
    root = tmp_path_factory.mktemp(request.param)
    base = save_base(root / "base", getattr(torch, dtype), tied=form == "tied")
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    for step in (10, 20, 30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape).to(parameter.dtype) * parameter.abs().mean()
        model.save_pretrained(root / f"checkpoint-{step}", max_shard_size="60KB" if form == "sharded" else "5GB")
    return root


def checkpoints(run: Path) -> list[str]:
    return [str(run / f"checkpoint-{step}") for step in (10, 20, 30)]


def test_matrices_are_extrapolated_and_the_rest_is_the_last_checkpoints(run: Path, tmp_path: Path) -> None:
    words = ["--method", "persistence", "--alpha", "0.5", "--horizon", "1", "--merge", "--base", str(run / "base")]
    assert main([*checkpoints(run), *words, "--output", str(tmp_path / "out")]) == 0
    base, before, last, out = (
        tensors_of(folder) for folder in (run / "base", run / "checkpoint-20", run / "checkpoint-30", tmp_path / "out")
    )
    assert list(out) == list(base)
    for name, tensor in out.items():
        assert tensor.dtype == base[name].dtype and tensor.shape == base[name].shape
        if tensor.ndim == 1:
            assert torch.equal(tensor, last[name])
        else:
            expected = last[name].double() + 0.5 * (last[name].double() - before[name].double())
            step = 2.0**-8 if tensor.dtype == torch.bfloat16 else 2.0**-22
            assert ((tensor.double() - expected).abs() <= step * expected.abs() + 1e-7).all()
    record = json.loads((tmp_path / "out" / "next_ray_lineage.json").read_text())
    assert [p["format"] for p in record["parents"]] == ["trl"] * 3 or all(p["sha256"] for p in record["parents"])
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.isfinite(model(input_ids=torch.arange(8)[None]).logits).all()


def test_alpha_0_is_the_last_checkpoint_bit_for_bit(run: Path, tmp_path: Path) -> None:
    words = ["--method", "two-point", "--alpha", "0", "--horizon", "1", "--merge", "--base", str(run / "base")]
    assert main([*checkpoints(run), *words, "--output", str(tmp_path / "out")]) == 0
    last, out = tensors_of(run / "checkpoint-30"), tensors_of(tmp_path / "out")
    assert all(torch.equal(out[name], last[name]) for name in out)


def test_they_need_merge_and_a_base(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, complaint in ((["--base", str(run / "base")], "Add --merge"), (["--merge"], "base")):
        assert main([*checkpoints(run), "--method", "expo", *words, "--output", str(tmp_path / "out")]) == 2
        assert complaint in capsys.readouterr().err and not list(tmp_path.iterdir())
