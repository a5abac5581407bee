"""Numbers of the command line: what is no number, what makes no sense, and what the table says was lost."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from next_ray.adapter import write_peft_folder
from next_ray.checkpoints.adapters import read_peft_folder
from next_ray.commands.extrapolate import main
from tests.commands.trajectories import write_run
from tests.delta.trajectories import dense
from tests.export.samples import lora_trajectory, save_base

TWO_POINT = ["--method", "two-point", "--horizon", "1"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "1e400", "much"])
def test_an_alpha_is_a_finite_number(word: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(run), *TWO_POINT, f"--alpha={word}", "--output", str(tmp_path / "out")])
    assert f"argument --alpha: {word!r} is not a finite number" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "nan", "inf"])
def test_a_setting_is_a_finite_number(value: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "next", "--set", f"lr={value}"]
    assert main([str(run), *words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "lr" in error and "number" in error and not (tmp_path / "out").exists()


def test_alphas_that_share_a_name_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *TWO_POINT, "--alpha", "1", "1.00000001", "--output", str(tmp_path / "out")]) == 2
    assert "two-point@1" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_alpha_far_beyond_the_trajectory_is_remarked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for last in (["--dry-run"], ["--output", str(tmp_path / "out")]):
        assert main([str(run), *TWO_POINT, "--alpha", "1", "-500", *last]) == 0
        shown = capsys.readouterr()
        said = " ".join((shown.err + shown.out).split())
        assert "alpha -500" in said and "100 horizons" in said and "alpha 1 " not in said.partition("100 horizons")[0][-80:]


def test_a_model_that_overflows_is_blamed_on_alpha(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base(tmp_path / "base", torch.float32)
    trajectory = lora_trajectory(base)
    for index, step in enumerate(trajectory.steps):
        adapter = {name: module.factors[index] for name, module in trajectory.modules.items()}  # type: ignore[attr-defined]
        write_peft_folder(adapter, tmp_path / "run" / f"checkpoint-{step}", str(base))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main([str(tmp_path / "run"), *TWO_POINT, "--alpha", "1e30", "--merge", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "Lower alpha" in error and "trained from" not in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "least", "most"), [("float16", 1e-4, 1e-3), ("bfloat16", 1e-3, 1e-2)])
def test_rounding_to_a_narrow_dtype_is_measured(
    dtype: str, least: float, most: float, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), *TWO_POINT, "--alpha", "1", "--output", str(tmp_path / "wide")]) == 0
    result = json.loads((tmp_path / "wide" / "next_ray_lineage.json").read_text())["result"]
    assert result["exact"] is True and result["rounding_error"] == 0.0 and "exact" in capsys.readouterr().out
    assert main([str(run), *TWO_POINT, "--alpha", "1", "--dtype", dtype, "--output", str(tmp_path / "narrow")]) == 0
    shown = capsys.readouterr().out
    wide, narrow = (read_peft_folder(tmp_path / name) for name in ("wide", "narrow"))
    lost = sum(np.sum((dense(narrow[name]) - dense(wide[name])) ** 2) for name in wide)
    expected = float(np.sqrt(lost / sum(np.sum(dense(f) ** 2) for f in wide.values())))
    result = json.loads((tmp_path / "narrow" / "next_ray_lineage.json").read_text())["result"]
    assert result["rounding_error"] == pytest.approx(expected, rel=1e-3) and least < expected < most
    assert result["exact"] is False and f"{expected:.1e}" in shown and "exact" not in shown
    assert f"{expected:.1e}" in (tmp_path / "narrow" / "README.md").read_text()


def test_a_rank_that_no_module_can_have_is_capped(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for last in (["--dry-run"], ["--output", str(tmp_path / "out")]):
        assert main([str(run), *TWO_POINT, "--alpha", "1", "--rank", "500", *last]) == 0
        shown = capsys.readouterr()
        assert "rank 32" in shown.err + shown.out and "500" in shown.err + shown.out
    assert {f.rank for f in read_peft_folder(tmp_path / "out").values()} == {32}


def test_a_merged_models_dtype_is_the_bases(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *TWO_POINT, "--merge", "--dtype", "float16", "--output", str(tmp_path / "out")]) == 2
    assert "--dtype" in capsys.readouterr().err


def test_a_missing_base_names_the_option_of_this_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", base="/no/such/base")
    assert main([str(run), *TWO_POINT, "--merge", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "/no/such/base" in error and "--base FOLDER" in error and "model.name" not in error


def test_full_models_ask_for_their_base_by_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (10, 20):
        save_base(tmp_path / f"checkpoint-{step}", torch.float32)
    paths = [str(tmp_path / f"checkpoint-{step}") for step in (10, 20)]
    assert main([*paths, *TWO_POINT, "--merge", "--output", str(tmp_path / "out")]) == 2
    assert "--base FOLDER" in capsys.readouterr().err


def test_modules_that_were_trained_whole_are_spoken_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.checkpoints.samples import adapted, llama, save_steps
    from tests.checkpoints.samples import save_base as save

    base = save(llama(), tmp_path / "base")
    save_steps(adapted(llama(), base, target_modules=["q_proj"], modules_to_save=["lm_head"]), tmp_path / "run", [1, 2, 3])
    for last in (["--dry-run"], ["--output", str(tmp_path / "out")]):
        assert main([str(tmp_path / "run"), *TWO_POINT, "--alpha", "1", *last]) == 0
        shown = capsys.readouterr()
        said = " ".join((shown.err + shown.out).split())
        assert "lm_head" in said and "last checkpoint" in said
