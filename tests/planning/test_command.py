"""`python -m next_ray.plan` as its user starts it: what it prints, how fast, and what it refuses; and the document's tables."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.planned_scaling import MODELS, scaling_table
from next_ray.commands.plan import main
from next_ray.planning.devices import DEVICES, GIGA, TERA
from next_ray.planning.rates import CPU, GPU

ROOT = Path(__file__).resolve().parents[2]
JOB = str(ROOT / "jobs" / "qwen2.5-7b-next.yaml")
DOCUMENT = ROOT / "docs" / "planning.md"
HEAVY = ("ray", "vllm", "torch", "deepspeed", "peft", "transformers", "numpy", "pandas", "fsspec")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_it_says_what_was_asked_for_and_whose_numbers_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = [JOB, "--gpus", "8xH100", "--price", "H100=3", "--response-tokens", "900", "--jump-saves", "0.2"]
    assert main([*words, "extrapolation.gate={kind: paired, fixed: null}", "data.gate_prompts=64"]) == 0
    text = capsys.readouterr().out
    for phase in ("rollout", "update", "hand-over", "checkpoint", "delta", "gate"):
        assert re.search(rf"^\s+{phase}\s+\d", text, re.MULTILINE), phase
    for fragment in (
        "Bottleneck: ",
        "rollout.engines=",
        "together, of",
        "for 100 steps",
        "$3.00 an hour, your price",
        "your assumption and not a forecast",
        "900 a completion (yours)",
        "512 tokens a prompt (assumed)",
        "nothing was measured on a GPU",
        "NVIDIA H100 data sheet",
    ):
        assert fragment in text, fragment


def test_without_a_price_it_says_that_the_price_is_a_placeholder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([JOB, "--gpus", "4xA100"]) == 0
    text = capsys.readouterr().out
    assert "a placeholder: give yours with --price" in text and "not a forecast" not in text


@pytest.mark.parametrize("job", sorted(path.name for path in (ROOT / "jobs").glob("qwen2.5-*.yaml")))
def test_every_job_for_gpus_can_be_planned(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(ROOT / "jobs" / job), "--gpus", "16xH200"]) == 0
    assert "Bottleneck" in capsys.readouterr().out


def test_a_job_for_the_cpu_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--gpus", "2xCPU"]) == 0
    assert "measured on tiny alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--gpus", "1xH100"], "at least two"),
        (["--gpus", "2xH100,2xCPU"], "not on both"),
        (["--gpus", "2xL4", "model.name=Qwen/Qwen2.5-72B-Instruct"], "Give more or larger devices"),
        (["--gpus", "2xH100", "model.name=nobody/knows"], "are not known here"),
        (["--gpus", "2xH100", "--jump-saves", "1"], "a share of the steps"),
    ],
)
def test_what_it_cannot_plan_is_a_paragraph(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([JOB, *words]) == 2
    said = capsys.readouterr()
    assert complaint in said.err and said.err.startswith("\nerror: ") and not said.out


def test_it_answers_in_less_than_a_second_and_imports_nothing_heavy() -> None:
    """Processor seconds: others' work on the machine does not count."""
    code = (
        f"import sys; from next_ray.commands.plan import main; code = main([{JOB!r}, '--gpus', '1024xH100', "
        f"'model.name=Qwen/Qwen2.5-72B-Instruct']); print([m for m in {HEAVY!r} if m in sys.modules]); sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "[]"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_the_documents_scaling_table_is_what_the_planner_says_now() -> None:
    table = "\n".join(scaling_table())
    assert table in DOCUMENT.read_text(), "python -m benchmarks planned_scaling prints the table that belongs into docs/planning.md"
    assert "1,024" in table and MODELS[-1].partition("/")[2].startswith("Qwen2.5-72B")


def test_the_documents_devices_and_rates_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text()
    for device in DEVICES.values():
        figures = (device.flops_per_s / TERA, device.memory_bytes / GIGA, device.bytes_per_s / GIGA, device.link_bytes_per_s / GIGA)
        row = " | ".join(f"{value:,.4g}" for value in (*figures, device.price_per_hour))
        assert f"| {device.name} | {row} |" in text, f"| {device.name} | {row} |"
    for name in CPU.__dataclass_fields__:
        row = f"| `{name}` | {getattr(CPU, name):.3g} | {getattr(GPU, name):.3g} |"
        assert row in text, row
