"""docs/extrapolate-your-checkpoints.md, command by command, on a run that TRL makes here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.trl_models import save_random_model

PAGE = Path(__file__).parents[2] / "docs" / "extrapolate-your-checkpoints.md"
MODEL, STEPS = "Qwen/Qwen2.5-0.5B-Instruct", "120"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_command_of_the_page(tmp_path: Path) -> None:
    model = save_random_model(tmp_path / "model")
    work = tmp_path / "work"
    work.mkdir()
    for script in blocks("python"):
        name = script.partition("\n")[0].removeprefix("# ")
        (work / name).write_text(script)
    environment = {
        **os.environ,
        "PYTHONPATH": str(PAGE.parents[1]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 5
    shown = ""
    for command in commands:
        words = command.replace(MODEL, str(model)).replace(f" {STEPS}", " 12").split()
        assert words[0] == "python"
        done = subprocess.run([sys.executable, *words[1:]], cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        shown += done.stdout
    trajectory = work / "grpo" / "extrapolation" / "trajectory"
    assert sorted(int(path.name.rpartition("-")[2]) for path in trajectory.iterdir()) == list(range(1, 13))
    assert json.loads((work / "inspection.json").read_text())["verdict"]["sentence"]
    assert len(list((work / "candidates").iterdir())) == 6 and "two-point@0.5" in shown
    record = json.loads((work / "merged" / "next_ray_lineage.json").read_text())
    assert record["result"]["verified"] < 1e-4 and len(record["parents"]) == 12
    assert "3+4=" in shown
