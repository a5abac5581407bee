"""docs/own-reward.md: its function judges in a real verifier process, by its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_ray.config import Config
from next_ray.data.prompts import user_prompt
from next_ray.reward.pool import VerifierPool
from next_ray.settings import load_as
from tests.docs.blocks import ROOT, blocks

PAGE = {block.language: block for block in blocks(ROOT / "docs" / "own-reward.md") if block.language}


def test_the_pages_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(PAGE["python"].text)
    (tmp_path / "job.yaml").write_text(PAGE["yaml"].text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    reward = load_as(Config, str(tmp_path / "job.yaml")).reward
    prompt = user_prompt("6*2=", "12", reward.deciding)
    with VerifierPool(reward) as pool:
        right, wrong, silent = pool.score([("it is 12", prompt), ("13", prompt), ("?" * 80, prompt)])
    assert (right.is_correct, wrong.is_correct, silent.is_correct) == (True, False, False)
    assert right.reward == pytest.approx(1.0 - 0.2 * 8 / 40)
    assert wrong.reward == pytest.approx(0.1 - 0.2 * 2 / 40)
    assert silent.reward == pytest.approx(-0.2)
