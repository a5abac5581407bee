"""`python -m next_ray.report`: a made-up run in a real store, on a disk and in S3, becomes a page; what is wrong is said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.stored_runs import MadeUp, write_run
from next_ray.commands.report import main
from next_ray.commands.stored_run import read_run
from next_ray.store.checkpoints import CheckpointStore
from next_ray.store.lease import Lease
from tests.s3_server import ACCESS_KEY, SECRET_KEY, s3_server

SMALL = MadeUp("small", steps=60, planned=60, interval=5, jump_at=30, layers=2, rank=4)
MIB = 2**20


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_run(f"file://{folder}", SMALL).close()
    return folder


def test_a_run_comes_back_from_its_store(stored: Path) -> None:
    run = read_run(str(stored / "small"), 64 * MIB)
    assert (run.name, run.model, run.rank, run.last_step, run.planned) == ("small", "tiny", 4, 60, 60)
    assert [row["step"] for row in run.steps] == list(range(1, 61))
    assert [row["step"] for row in run.evaluations] == [20, 40]
    assert [(row["step"], row["accepted"]) for row in run.attempts] == [(30, "two-point@1.5")]
    assert len(run.samples) == 120 and run.summary is not None and run.scores is not None
    assert [one.kind for one in run.checkpoints].count("jumped") == 1
    assert (run.extrapolates, run.setting("extrapolation.interval_steps"), run.holder) == (True, 5, None)


def test_the_weights_are_measured_as_inspect_measures_them(stored: Path) -> None:
    """Without torch, on the trajectory before the jump; energies by an independent dense SVD."""
    import numpy as np

    run = read_run(str(stored / "small"), 64 * MIB)
    found = run.weights.inspection
    assert found is not None and found.steps == (5, 10, 15, 20, 25, 30)
    with CheckpointStore(f"file://{stored}", "small") as store:
        adapter = store.load_adapter(store.manifest("00000030-trained"))
    for module in found.modules:
        factors = adapter[module.name]
        sigma = np.linalg.svd(factors.scale * factors.b.astype(np.float64) @ factors.a, compute_uv=False)
        assert module.energy[-1].nuclear == pytest.approx(sigma[0] / sigma.sum(), rel=1e-6)
    assert run.weights.plane is not None and {"00000030-jumped", "00000060-trained"} <= set(run.weights.plane.ids)
    assert [method.name for method in found.backtest.methods if method.scores] == ["persistence", "two-point", "linear-fit"]


def test_large_adapters_are_not_read_and_the_page_says_so(stored: Path) -> None:
    size = max(path.stat().st_size for path in (stored / "small" / "objects").iterdir())
    nothing = read_run(str(stored / "small"), 0).weights
    assert nothing.inspection is None and "give --measure MIB" in nothing.notes[0]
    few = read_run(str(stored / "small"), 4 * size + 1).weights
    assert few.inspection is not None and few.inspection.steps == (10, 20, 30), "evenly, back from the newest"
    assert any("3 of 6 checkpoints of that trajectory" in note for note in few.notes)


def test_a_damaged_adapter_costs_the_figures_of_the_weights_alone(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored / "small", tmp_path / "small")
    with CheckpointStore(f"file://{tmp_path}", "small") as store:
        (tmp_path / "small" / store.manifest("00000030-trained").objects["adapter"].path).write_bytes(b"x")
    run = read_run(str(tmp_path / "small"), 64 * MIB)
    assert run.weights.inspection is None and "00000030-trained" in run.notes[0] and run.summary is not None


def test_a_run_that_goes_on_is_reported_from_what_is_committed(tmp_path: Path) -> None:
    made = MadeUp("on", steps=35, planned=60, interval=5, jump_at=20, back_at=30, layers=1, rank=2)
    store = write_run(f"file://{tmp_path}", made)
    store.write_table("metrics", 36, 40, [{"kind": "step", "step": 36}])  # behind the newest checkpoint
    store.put_json("attempts/00000040", {**store.get_json("attempts/00000020"), "step": 40})
    with Lease(store.storage, "on"):
        run = read_run(str(tmp_path / "on"), 64 * MIB)
        assert run.holder is not None and run.summary is None
        assert max(row["step"] for row in run.rows) == 35 and [row["step"] for row in run.attempts] == [20, 25]
        assert run.attempts[1]["rolled_back"] == 30 and [one.kind for one in run.checkpoints].count("reverted") == 1
        page = tmp_path / "on.html"
        assert main([str(tmp_path / "on"), "--output", str(page)]) == 0
        assert "running: step 35 of 60 committed" in page.read_text()
    assert read_run(str(tmp_path / "on"), 0).holder is None
    write_run(f"file://{tmp_path}", MadeUp("ended", steps=10, planned=10, interval=5, jump_at=None, layers=1, rank=2)).close()
    ended = CheckpointStore(f"file://{tmp_path}", "ended")
    ended.put_json("config", {"config": {"run": {"steps": 20}}})
    assert read_run(str(tmp_path / "ended"), 0).summary is None, "run.steps was raised: the old end is none"


def test_one_command_writes_one_file_and_replaces_it(stored: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "next_ray.report", str(stored / "small")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the report of small (") and done.stdout.endswith(" MiB) in small-report.html\n")
    assert [path.name for path in tmp_path.iterdir()] == ["small-report.html"]
    (tmp_path / "small-report.html").write_text("old")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120).returncode == 0
    assert (tmp_path / "small-report.html").read_text().startswith("<!doctype html>")


def test_neither_torch_nor_ray_is_waited_for() -> None:
    code = (
        "import sys; from next_ray.commands.report import main; main_ = main\n"
        "import next_ray.commands.stored_run, next_ray.report.page.page\n"
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{store}/nothing"], "holds no run. Give its folder or URL"),
        (["{store}/small", "--output", "{store}"], "a file in a folder that exists is needed"),
        (["{store}/small", "--output", "{store}/none/x.html"], "a file in a folder that exists is needed"),
        (["{store}/small", "--measure", "-1"], "must be at least 0"),
        (["{store}/small"] * 7, "At most 6 runs"),
        (["s3://user:secret@bucket/run"], "credentials"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], said: str, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.format(store=stored) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and "secret" not in error


@pytest.mark.s3
def test_a_bucket_is_as_good_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.credentials.items():
            monkeypatch.setenv(name, value)
        store = CheckpointStore(server.url, "small", server.endpoint_url)
        write_run(server.url, SMALL, endpoint_url=server.endpoint_url).close()
        page = tmp_path / "s3.html"
        assert main([store.url, "--output", str(page), "--endpoint-url", server.endpoint_url]) == 0
    text = page.read_text()
    assert "Rank-1 energy by layer" in text and store.url in text
    assert SECRET_KEY not in text and ACCESS_KEY not in text
