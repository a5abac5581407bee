import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from next_ray.commands.inspect import main
from next_ray.delta.trajectory import WeightTrajectory
from next_ray.inspect import analysis, plots
from tests.inspect.trajectories import RANK, line, random_walk

FAST = ["--methods", "persistence", "linear-fit", "no-op"]
ROOT = Path(__file__).resolve().parents[2]


def saved(weights: WeightTrajectory, folder: Path) -> list[str]:
    """The trajectory as PEFT folders."""
    paths = []
    for index, step in enumerate(weights.steps):
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        tensors: dict[str, np.ndarray] = {}
        for name, history in weights.modules.items():
            factors = history.factors[index]  # pyright: ignore[reportAttributeAccessIssue]
            tensors[f"base_model.model.{name}.lora_A.weight"] = factors.a
            tensors[f"base_model.model.{name}.lora_B.weight"] = factors.b
        save_file(tensors, path / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": "some/base",
            "r": RANK,
            "lora_alpha": RANK / 2,
            "target_modules": ["q_proj", "down_proj"],
            "bias": "none",
            "task_type": "CAUSAL_LM",
        }
        (path / "adapter_config.json").write_text(json.dumps(config))
        paths.append(str(path))
    return paths


def test_a_line_on_disk_is_worth_jumping(tmp_path, capsys):
    saved(line(), tmp_path / "run")
    target, plots = tmp_path / "report.json", tmp_path / "plots"
    assert main([str(tmp_path / "run"), *FAST, "--json", str(target), "--plots", str(plots)]) == 0
    out = capsys.readouterr().out
    assert "Worth jumping: persistence" in out
    found = json.loads(target.read_text())
    assert found["verdict"]["worth_it"] and found["verdict"]["steps"] == 50
    assert [source["step"] for source in found["trajectory"]["sources"]] == list(range(10, 160, 10))
    assert found["trajectory"]["base"]["name"] == "some/base"
    assert len(list(plots.glob("*.png"))) == 5


def test_a_random_walk_on_disk_is_not(tmp_path, capsys):
    paths = saved(random_walk(count=9), tmp_path)
    assert main([*paths[::-1], *FAST, "--horizon", "2"]) == 0
    assert "Not worth jumping" in capsys.readouterr().out


def test_accuracies_let_alpharl_take_part(tmp_path, capsys):
    saved(line(6), tmp_path / "run")
    table = tmp_path / "accuracies.json"
    table.write_text(json.dumps({"0": 0.1} | {str(10 * t): 0.1 + 0.05 * t for t in range(1, 7)}))
    target = tmp_path / "out.json"
    assert main([str(tmp_path / "run"), "--methods", "alpharl", "--accuracies", str(table), "--json", str(target)]) == 0
    assert json.loads(target.read_text())["backtest"]["methods"]["alpharl"]["skipped"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{run}", "--methods", "persistance"], "did you mean 'persistence'"),
        (["{run}", "--horizon", "0"], "at least 1"),
        (["{run}", "--workers", "-1"], "--workers"),
        (["{run}", "--json", "{missing}/out.json"], "--json"),
        (["{run}", "--plots", "{file}"], "--plots"),
        (["{run}", "--accuracies", "{missing}"], "cannot be read"),
        (["{run}", "--accuracies", "{file}"], "not JSON"),
        (["{run}", "--accuracies", "{table}"], "No accuracy is given"),
        (["{missing}"], "missing"),
    ],
)
def test_user_errors_are_one_paragraph_and_exit_2(arguments, complaint, tmp_path, capsys):
    saved(line(4), tmp_path / "run")
    (tmp_path / "file").write_text("no json")
    (tmp_path / "table").write_text('{"10": 0.5}')
    names = {name: tmp_path / name for name in ("run", "missing", "file", "table")}
    assert main([word.format(**names) for word in arguments]) == 2
    captured = capsys.readouterr()
    paragraph = captured.err[captured.err.index("error: ") :].strip()
    assert complaint in paragraph and "\n" not in paragraph and captured.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"run", "file", "table"}


@pytest.mark.parametrize("text", ["[]", "{}", '{"ten": 0.5}', '{"10": "0.5"}', '{"10": true}'])
def test_odd_accuracies_are_refused(text, tmp_path, capsys):
    saved(line(4), tmp_path / "run")
    (tmp_path / "table").write_text(text)
    assert main([str(tmp_path / "run"), "--accuracies", str(tmp_path / "table")]) == 2
    assert "An object is needed" in capsys.readouterr().err


def test_an_interruption_ends_with_130_and_writes_nothing(tmp_path, capsys, monkeypatch):
    saved(line(4), tmp_path / "run")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(analysis, "inspect_trajectory", interrupted)
    target = tmp_path / "out.json"
    assert main([str(tmp_path / "run"), "--json", str(target)]) == 130
    assert "interrupted" in capsys.readouterr().err and not target.exists()


def test_a_full_disk_leaves_neither_numbers_nor_figures_half_written(tmp_path, capsys, monkeypatch):
    """The disk fills while the last figure or the numbers are written."""
    saved(line(4), tmp_path / "run")
    words = [str(tmp_path / "run"), "--methods", "no-op"]

    def full(self: Path, *_: object, **__: object) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        assert main([*words, "--json", str(tmp_path / "out.json")]) == 2
    assert "No space left" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["run"]

    def some(inspection: object, folder: Path) -> list[Path]:
        full(folder / "energy.png")
        return []

    monkeypatch.setattr(plots, "draw", some)
    assert main([*words, "--plots", str(tmp_path / "plots" / "deep")]) == 2
    assert "No space left" in capsys.readouterr().err and not (tmp_path / "plots" / "deep").exists()
    (tmp_path / "kept").mkdir()
    assert main([*words, "--plots", str(tmp_path / "kept")]) == 2
    assert not list((tmp_path / "kept").iterdir())


def run(arguments: list[str], **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "next_ray.inspect", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **kwargs,
    )


def test_as_a_command_it_prints_no_colour_into_pipes_and_keeps_progress_on_stderr(tmp_path):
    saved(line(6), tmp_path / "run")
    process = run([str(tmp_path / "run"), *FAST])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Worth jumping" in out and "\x1b" not in out and max(map(len, out.splitlines())) <= 100
    assert "measuring modules" in err and "measuring modules" not in out


def test_ctrl_c_stops_the_command_with_130(tmp_path):
    saved(line(15), tmp_path / "run")
    process = run([str(tmp_path / "run"), "--methods", "next-released"])
    assert process.stderr is not None
    for row in process.stderr:
        if row.startswith("back test"):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err and "Traceback" not in err


@pytest.mark.ray
def test_triplets_from_ray_workers_give_the_same_numbers(tmp_path):
    saved(random_walk(count=6), tmp_path / "run")
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    assert main([str(tmp_path / "run"), *FAST, "--json", str(here)]) == 0
    assert main([str(tmp_path / "run"), *FAST, "--json", str(there), "--workers", "2"]) == 0
    assert json.loads(here.read_text()) == json.loads(there.read_text())
