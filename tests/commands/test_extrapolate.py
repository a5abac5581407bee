"""`python -m next_ray.extrapolate` on PEFT folders, as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from next_ray.adapter import write_peft_folder
from next_ray.checkpoints.adapters import read_peft_folder
from next_ray.commands.extrapolate import main
from tests.delta.trajectories import dense
from tests.export.samples import logits, lora_trajectory, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("run") / "base", torch.float32)


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    """checkpoint-10 ... checkpoint-60 of one run."""
    folder = base.parent / "grpo"
    trajectory = lora_trajectory(base, count=6)
    for index, step in enumerate(trajectory.steps):
        adapter = {name: module.factors[index] for name, module in trajectory.modules.items()}  # type: ignore[attr-defined]
        write_peft_folder(adapter, folder / f"checkpoint-{step}", str(base))
    return folder


def test_one_candidate_is_the_folder_itself(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "jumped"
    assert main([str(run), "--method", "two-point", "--alpha", "1.5", "--horizon", "2", "--output", str(out)]) == 0
    got, c, b = (read_peft_folder(folder) for folder in (out, run / "checkpoint-60", run / "checkpoint-40"))
    for name in got:
        expected = dense(c[name]) + 1.5 * (dense(c[name]) - dense(b[name]))
        np.testing.assert_allclose(dense(got[name]), expected, atol=1e-6 * np.abs(expected).max())
    shown = capsys.readouterr().out
    assert "two-point@1.5" in shown and "exact" in shown and str(out) in shown.replace("\n", "")
    record = json.loads((out / "next_ray_lineage.json").read_text())
    assert [p["step"] for p in record["parents"]] == [10, 20, 30, 40, 50, 60]
    assert all(len(p["sha256"]["adapter_model.safetensors"]) == 64 for p in record["parents"])
    assert record["method"] == {"name": "two-point", "settings": {"start": None}} and record["horizon"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jumped"]


def test_several_candidates_have_a_folder_each(run: Path, tmp_path: Path) -> None:
    words = ["--method", "two-point", "linear-fit", "--alpha", "0.5", "1", "--set", "linear-fit.window=4", "--rank", "4"]
    assert main([str(run), *words, "--output", str(tmp_path / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["linear-fit@0.5", "linear-fit@1", "two-point@0.5", "two-point@1"]
    for name in names:
        assert {f.rank for f in read_peft_folder(tmp_path / "out" / name).values()} == {4}
    record = json.loads((tmp_path / "out" / "linear-fit@1" / "next_ray_lineage.json").read_text())
    assert record["method"]["settings"]["window"] == 4 and 0 < record["result"]["truncation_error"] < 1


def test_next_is_the_default(run: Path, tmp_path: Path) -> None:
    words = ["--alpha", "1.5", "--horizon", "1", "--set", "fit_steps=5", "refine_steps=2", "--seed", "4"]
    for name in ("one", "two"):
        assert main([str(run), *words, "--output", str(tmp_path / name)]) == 0
    assert {f.rank for f in read_peft_folder(tmp_path / "one").values()} == {5}
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1], "a seed reproduces"


def test_merged_models_are_verified(run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run), "--method", "expo", "--alpha", "0.3", "--output"]
    assert main([*words, str(tmp_path / "merged"), "--merge"]) == 0
    record = json.loads((tmp_path / "merged" / "next_ray_lineage.json").read_text())
    assert record["result"]["verified"] < 1e-4 and "not checked" not in capsys.readouterr().out
    assert main([*words, str(tmp_path / "adapter")]) == 0
    np.testing.assert_allclose(logits(tmp_path / "merged"), logits(base, tmp_path / "adapter"), atol=1e-4)


def accuracy_by_size(folder: Path) -> float:
    """A stand-in for an evaluation: it reads the adapter as an evaluation would, and likes small ones."""
    return 1.0 / (1.0 + sum(float(np.abs(dense(f)).sum()) for f in read_peft_folder(folder).values()))


def test_greedy_soup_asks_the_users_evaluator(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "accuracies.json").write_text(json.dumps({str(step): 0.1 for step in range(0, 70, 10)}))
    words = ["--method", "soup-greedy", "--alpha", "1", "--accuracies", str(tmp_path / "accuracies.json")]
    words += ["--evaluator", f"{__name__}:accuracy_by_size", "--output", str(tmp_path / "soup")]
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    assert main([str(run), *words]) == 0
    assert (tmp_path / "soup" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--method", "two-pont"], "did you mean 'two-point'"),
        (["--method", "two-point", "--set", "stat=0"], "did you mean 'start'"),
        (["--method", "two-point", "--set", "start"], "KEY=VALUE"),
        (["--method", "two-point", "expo", "--set", "start=0"], "several methods run"),
        (["--method", "two-point", "--set", "expo.start=0"], "none of the methods"),
        (["--method", "two-point", "--horizon", "9"], "needs at least 9 checkpoints"),
        (["--method", "two-point", "--horizon", "0"], "at least 1"),
        (["--method", "alpharl"], "accuracy per checkpoint"),
        (["--method", "soup-greedy", "--accuracies", "{accuracies}"], "needs an evaluator"),
        (["--method", "two-point", "--evaluator", "nowhere.at:all"], "importable"),
        (["--method", "two-point", "--accuracies", "{missing}"], "cannot be read"),
        (["--method", "two-point", "--merge", "--rank", "3"], "merged model"),
        (["--method", "two-point", "--rank", "0"], "at least 1"),
        (["--method", "dare"], "--rank R"),
        (["--method", "two-point", "--alpha", "1e300"], "beyond float32"),
    ],
)
def test_user_errors_are_a_paragraph_and_leave_nothing(
    words: list[str], complaint: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies = tmp_path / "accuracies.json"
    accuracies.write_text(json.dumps({str(step): 0.1 for step in range(0, 70, 10)}))
    words = [word.format(accuracies=accuracies, missing=tmp_path / "missing.json") for word in words]
    assert main([str(run), *words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert complaint in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["accuracies.json"]


def test_the_output_never_replaces_its_sources(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (run, run.parent):
        assert main([str(run), "--method", "expo", "--output", str(place), "--overwrite"]) == 2
    assert "error" in capsys.readouterr().err and (run / "checkpoint-60").exists()
    assert main([str(run), "--method", "expo", "--alpha", "0.1", "--output", str(tmp_path / "a")]) == 0
    assert main([str(run), "--method", "expo", "--alpha", "0.1", "--output", str(tmp_path / "a")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([str(run), "--method", "expo", "--alpha", "0.2", "--output", str(tmp_path / "a"), "--overwrite"]) == 0
    assert json.loads((tmp_path / "a" / "next_ray_lineage.json").read_text())["alpha"] == 0.2


def test_a_failing_evaluator_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "accuracies.json").write_text(json.dumps({str(step): 0.1 for step in range(0, 70, 10)}))
    words = ["--method", "soup-greedy", "--accuracies", str(tmp_path / "accuracies.json"), "--evaluator", "os:listdir"]
    assert main([str(run), *words, "--output", str(tmp_path / "out")]) == 2
    assert "The evaluator os:listdir failed" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_dry_run_and_list_write_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--method", "two-point", "--dry-run", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "two-point@0.5" in shown and "steps 10 to 60" in shown and not list(tmp_path.iterdir())
    assert main(["--list"]) == 0
    assert "two-point: " in capsys.readouterr().out


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24 and "examples:" in text


def test_ctrl_c_leaves_nothing(run: Path, tmp_path: Path) -> None:
    """While NExt fits for long."""
    words = [str(run), "--horizon", "1", "--set", "fit_steps=1000000", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "next_ray.extrapolate", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("fitting"):
            break
    time.sleep(0.5)
    assert any(path.name.startswith(".out.") for path in tmp_path.iterdir())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "nothing was written" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_workers_give_the_same_candidate(run: Path, tmp_path: Path) -> None:
    accuracies = tmp_path / "accuracies.json"
    accuracies.write_text(json.dumps({"0": 0.1, **{str(step): 0.1 + step / 100 for step in range(10, 70, 10)}}))
    words = ["--method", "alpharl", "--alpha", "1", "--horizon", "2", "--accuracies", str(accuracies)]
    for name, workers in (("alone", "0"), ("workers", "2")):
        assert main([str(run), *words, "--workers", workers, "--output", str(tmp_path / name)]) == 0
    alone, shared = (read_peft_folder(tmp_path / name) for name in ("alone", "workers"))
    for name, factors in alone.items():
        np.testing.assert_allclose(dense(shared[name]), dense(factors), atol=1e-5 * np.abs(dense(factors)).max())
