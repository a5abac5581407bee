"""Where results may go, and what a later call makes of results that lie among checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_ray.commands.extrapolate import main
from next_ray.commands.inspect import main as inspect
from tests.commands.trajectories import write_run

TWO_POINT = ["--method", "two-point", "--alpha", "1"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_earlier_result_among_the_checkpoints_is_left_aside(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *TWO_POINT, "--output", str(tmp_path / "before")]) == 0
    assert main([str(run), *TWO_POINT, "--output", str(run / "checkpoint-100")]) == 0
    capsys.readouterr()
    assert main([str(run), *TWO_POINT, "--output", str(tmp_path / "after")]) == 0
    assert "checkpoint-100 was extrapolated" in capsys.readouterr().err.replace("\n", "")
    assert files_of(tmp_path / "after") == files_of(tmp_path / "before")
    assert inspect([str(run), "--methods", "two-point"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "steps 10 to 40" in shown and "checkpoint-100 was extrapolated" in shown


def test_an_earlier_result_is_no_checkpoint_when_it_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *TWO_POINT, "--output", str(run / "checkpoint-100")]) == 0
    named = [str(run / name) for name in ("checkpoint-10", "checkpoint-40", "checkpoint-100")]
    assert main([*named, *TWO_POINT, "--output", str(tmp_path / "out")]) == 2
    assert "checkpoint-100 was extrapolated" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_of_results_alone_holds_no_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--method", "two-point", "--alpha", "1", "2", "--output", str(tmp_path / "candidates")]) == 0
    assert main([str(tmp_path / "candidates"), *TWO_POINT, "--output", str(tmp_path / "out")]) == 2
    assert "only results of extrapolation" in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["checkpoint-10/inside", "checkpoint-10/a/b"])
def test_nothing_is_written_into_a_checkpoint(inside: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(run)
    for paths in ([str(run)], [str(run / "checkpoint-10"), str(run / "checkpoint-40")]):
        assert main([*paths, *TWO_POINT, "--output", str(run / inside)]) == 2
        assert "lies inside the checkpoint" in capsys.readouterr().err
    assert files_of(run) == before and not (run / "checkpoint-10" / "a").exists()


def test_nothing_is_written_beside_the_weights_of_a_verl_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "flat")
    for step in (10, 20, 30, 40):
        target = tmp_path / "verl" / f"global_step_{step}" / "actor" / "lora_adapter"
        target.parent.mkdir(parents=True)
        (run / f"checkpoint-{step}").rename(target)
    assert main([str(tmp_path / "verl"), *TWO_POINT, "--output", str(tmp_path / "verl" / "global_step_10" / "out")]) == 2
    assert "lies inside the checkpoint" in capsys.readouterr().err


def test_a_link_to_an_earlier_result_is_called_a_link(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *TWO_POINT, "--output", str(tmp_path / "real")]) == 0
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert main([str(run), *TWO_POINT, "--output", str(tmp_path / "link"), "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert "symbolic link" in error and str(tmp_path / "real") in error and "is not in it" not in error
