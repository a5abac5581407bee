"""`python -m next_ray.warmstart`: real Ray Train and DeepSpeed on the tiny model, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from next_ray.commands.warmstart import main
from next_ray.config import ModelSection
from next_ray.models.resolve import prepare_model
from next_ray.models.tiny import train
from next_ray.models.tiny_spec import TinySpec

SPEC = TinySpec(steps=40, batch_size=32, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    train(SPEC, folder, lambda _: None)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(12) for b in range(12)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def job(base: Path, data: Path, output: Path, **settings: Any) -> list[str]:
    words = {"model.name": base, "data.path": data, "data.max_tokens": 64, "output": output, "cluster.dashboard": "false", **settings}
    return [f"{name}={value}" for name, value in words.items()]


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    import torch
    from safetensors.torch import load_file

    return {name: tensor.to(torch.float32).numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


def independent_loss(folder: Path, pairs: list[tuple[str, str]]) -> float:
    """Mean cross-entropy of answers and end tokens, one sequence at a time, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, count = 0.0, 0
    for question, answer in pairs:
        prompt = tokenizer(question)["input_ids"]
        ids = torch.tensor([[*prompt, *tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids).logits[0], dim=-1)
        wanted = ids[0, len(prompt) :]
        total -= float(logprobs[len(prompt) - 1 : -1].gather(1, wanted[:, None]).sum())
        count += len(wanted)
    return total / count


@pytest.mark.ray
@pytest.mark.deepspeed
def test_two_ranks_lower_the_held_out_loss_and_leave_a_model(base: Path, data: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    pairs = [(f"{a}+{5 * a % 12}=", str(a + 5 * a % 12)) for a in range(12)]  # they are in `data` too, and must not be trained on
    held_out.write_text("\n".join(json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in pairs))
    output = tmp_path / "made"
    settings = {"training.ranks": 2, "training.lr": 5e-3, "training.max_steps": 12, "training.batch_size": 44, "training.epochs": 4}
    assert main(job(base, data, output, **{"data.held_out": held_out, **settings})) == 0

    record = json.loads((output / "next_ray_warmstart.json").read_text())
    losses = record["held_out_loss"]
    assert "132 to train on, 12 held out; 12 left out whose prompts are held out" in record["data"]
    assert [row["step"] for row in losses] == [0, 3, 6, 9, 12] and record["steps"] == 12
    assert losses[0]["loss"] == pytest.approx(independent_loss(base, pairs), rel=1e-3)  # bfloat16 where the machine multiplies it
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]
    # The result is in the base's bfloat16, training ended in float32.
    assert losses[-1]["loss"] == pytest.approx(independent_loss(output, pairs), rel=2e-2)

    model = prepare_model(ModelSection(name=str(output), cache_dir=str(tmp_path / "cache")), lambda *_: None)
    assert model.dtype_bytes == 2 and model.fingerprint != record["base"]["fingerprint"]
    before, after = weights_of(base), weights_of(output)
    assert set(before) == set(after) and all(np.any(before[name] != after[name]) for name in before)


@pytest.mark.ray
@pytest.mark.deepspeed
def test_an_adapter_is_merged_and_a_seed_determines_the_bytes(base: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    settings = {"training.parameters": "lora", "training.lr": 2e-2, "training.batch_size": 48, "training.lora.rank": 4}
    for name in ("once", "again"):
        assert main(job(base, data, tmp_path / name, deterministic="true", seed=3, **settings)) == 0
    assert (tmp_path / "once" / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
    before, after = weights_of(base), weights_of(tmp_path / "once")
    moved = {name for name in before if np.any(before[name] != after[name])}
    assert moved and all("proj" in name for name in moved)  # neither norms nor embeddings
    losses = json.loads((tmp_path / "once" / "next_ray_warmstart.json").read_text())["held_out_loss"]
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert main(job(base, data, tmp_path / "once")) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "settings", "complaint"),
    [
        ('{"question": "1+1="}', {}, r"line 1: expected an answer text in one of completion, solution"),
        ('{"question": "1+1=", "answer": "2"}', {}, "1 distinct prompt"),
        ('{"question": "1+1=", "answer": "two"}\n{"question": "1+2=", "answer": "3"}', {}, "has the character 'o'"),
        ('{"question": "1+1=", "answer": " "}', {}, "line 1: the answer is blank"),
        ("", {}, "holds no demonstration"),
        (None, {}, "no such file"),
        ('{"question": "1+1=", "answer": "2"}', {"data.max_tokens": 4096}, "reads at most 128 tokens"),
        ('{"question": "1+1=", "answer": "2"}', {"training.learning_rate": 1}, "unknown key training.learning_rate"),
        (
            '{"question": "1+1=", "answer": "2"}',
            {"training.micro_batch_tokens": 64, "data.max_tokens": 65},
            "cannot hold one demonstration",
        ),
    ],
)
def test_bad_input_is_refused_before_ray_starts(
    rows: str | None, settings: dict[str, Any], complaint: str, base: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "rows.jsonl"
    if rows is not None:
        path.write_text(rows)
    assert main(job(base, path, tmp_path / "made", **settings)) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
