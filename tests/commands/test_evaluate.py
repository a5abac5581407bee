"""The whole command on real vLLM: a base and two adapters side by side, an interruption, and going on from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from next_ray.adapter import write_peft_folder
from next_ray.commands.evaluate import _decoding, main, parser
from next_ray.commands.kept import KeptResults
from next_ray.commands.sampling import BLOCK, vote
from next_ray.errors import ConfigError
from next_ray.precision import native_dtype
from next_ray.rollout.probe import probe_adapter
from next_ray.types import Prompt
from tests.rollout.tiny_model import linear_shapes, save_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base, an adapter folder that names it, and BASE+FOLDER."""
    root = tmp_path_factory.mktemp("models")
    base = root / "base"
    save_tiny_model(base)
    shapes = linear_shapes(base)
    for step, seed, rank in ((10, 1, 4), (20, 2, 8)):
        adapter = probe_adapter(shapes, rank, scale=0.5, seed=seed, amplitude=0.5)
        write_peft_folder(adapter, root / f"checkpoint-{step}", str(base))
    return [str(base), str(root / "checkpoint-10"), f"{base}+{root / 'checkpoint-20'}"]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"prompt": f"{a}+1=", "answer": str(a % 10)} for a in range(BLOCK + 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(models: list[str], problems: Path, output: Path, *more: str) -> list[str]:
    words = [*models, "--data", f"sums={problems}", "--verifier", "sums=regex:.*[0-4]", "--template", "{prompt}", "--output", str(output)]
    words += ["--samples", "4", "--k", "1", "4", "--max-tokens", "4", "--max-prompt-tokens", "16", "--kv-cache-gib", "0.0625"]
    return [*words, *more]


@pytest.mark.vllm
def test_interrupted_resumed_and_shown(models: list[str], problems: Path, tmp_path: Path, monkeypatch, capsys):
    output, keep, kept = tmp_path / "out", KeptResults.keep, []

    def stop(self: KeptResults, identity: str, name: str, block: int, rows: list) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append((identity, block))
        keep(self, identity, name, block, rows)

    with monkeypatch.context() as patch:
        patch.setattr(KeptResults, "keep", stop)
        assert main(command(models, problems, output)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    before = {path.name: path.stat().st_mtime_ns for path in (output / "parts").iterdir()}
    assert len(before) == 2 and not (output / "results.json").exists()

    assert main(command(models, problems, output)) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (output / "parts").iterdir()}
    assert len(after) == 6 and before.items() <= after.items()
    result = json.loads((output / "results.json").read_text())
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert result["data"] == {"sums": {"address": str(problems), "revision": None, "prompts": BLOCK + 4}}
    assert [model["steps"] for model in result["models"]] == [None, 10, 20]
    assert len(samples) == 3 * (BLOCK + 4) * 4
    for model in result["models"]:
        own = [sample for sample in samples if sample["model"] == model["model"]]
        assert model["sets"]["sums"]["avg"]["mean"] == pytest.approx(np.mean([sample["correct"] for sample in own]))
        assert model["sets"]["sums"]["pass"]["1"]["mean"] == pytest.approx(model["macro_avg"])
        assert model["sets"]["sums"]["pass"]["4"]["mean"] >= model["macro_avg"]
    assert 0 < sum(sample["correct"] for sample in samples) < len(samples)
    texts = [[s["completion"] for s in samples if s["model"] == model] for model in models]
    assert texts[0] != texts[1] != texts[2] != texts[0]
    assert "avg@4" in capsys.readouterr().out

    assert main(command(models, problems, output, "--seed", "1")) == 2
    assert "other settings (seed was 0, now 1" in capsys.readouterr().err

    def never(*_: object) -> None:
        raise AssertionError("everything was kept")

    monkeypatch.setattr("next_ray.commands.sampling.VllmEngine", never)
    assert main(command(models, problems, output, "--k", "2")) == 0
    assert list(json.loads((output / "results.json").read_text())["models"][0]["sets"]["sums"]["maj"]) == ["2"]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--k", "9"], "--k 9"),
        (["--temperature", "0"], "same completion"),
        (["--steps", "1"], "3 models"),
        (["--samples", "0"], "--samples"),
        (["--max-tokens", "500"], "takes 256 tokens"),
        (["--verifier", "sums=nothing"], "no verifier"),
    ],
)
def test_mistakes_are_paragraphs(models: list[str], problems: Path, tmp_path: Path, more: list[str], complaint: str, capsys):
    assert main(command(models, problems, tmp_path / "out", *more)) == 2
    assert complaint in capsys.readouterr().err


def test_the_same_answer_gets_one_vote():
    def given(kind: str, text: str) -> str | None:
        return vote(Prompt("", (), "", kind), text)

    assert given("math", "so \\boxed{1,234}.") == given("math", "Answer: 1234") == "1234"
    assert given("gsm8k", "thus\n#### 72") == given("gsm8k", "\\boxed{72}") == "72"
    assert given("choice", "The answer is (b).") == given("choice", "\\boxed{B}") == "B"
    assert given("math", "perhaps 7") is None


def test_kept_blocks_belong_to_their_settings(tmp_path: Path):
    KeptResults(tmp_path, {"samples": 8}).keep("m", "set", 0, [{"correct": 1.0}])
    again = KeptResults(tmp_path, {"samples": 8})
    assert again.read("m", "set", 0) == [{"correct": 1.0}] and again.read("m", "set", 1) is None and again.read("n", "set", 0) is None
    with pytest.raises(ConfigError, match="samples was 8, now 4"):
        KeptResults(tmp_path, {"samples": 4})


@pytest.mark.parametrize(("asked", "expected"), [([], native_dtype("cpu")), (["--dtype", "bfloat16"], "bfloat16")])
def test_auto_is_the_number_format_that_training_takes(asked: list[str], expected: str) -> None:
    """The engine would take the model's own, which a CPU may have to emulate, and kept blocks would not say which it was."""
    arguments = parser().parse_args(["model", "--data", "gsm8k", "--output", "out", *asked])
    assert _decoding(arguments).rollout.dtype == expected
