"""The entry point as users misuse it: one paragraph with cause, place and remedy, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from next_ray.run import as_baseline, main, protect_embedded_ray
from next_ray.settings import load_config


def start(tmp_path: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the job in a process of its own, with everything it writes below `tmp_path`."""
    defaults = [] if any(w.startswith("store.url") for w in words) else [f"store.url=file://{tmp_path / 'store'}"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_ADDRESS"))}
    env |= {"NEXT_RAY_CACHE": str(tmp_path / "cache"), "AWS_EC2_METADATA_DISABLED": "true", **environment}
    command = [sys.executable, "-m", "next_ray.run", *words, *defaults, f"run.output_dir={tmp_path / 'out'}", "cluster.dashboard=false"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


def assert_user_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert "error: " in result.stderr
    paragraph = result.stderr.split("error: ", 1)[1].strip()
    assert "\n\n" not in paragraph
    for part in parts:
        assert part in paragraph, paragraph


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["rollout.promts_per_step=3"], ["rollout.promts_per_step", "prompts_per_step"]),
        (["run.steps=many"], ["run.steps", "many"]),
        (["nowhere.yaml"], ["nowhere.yaml"]),
        (["a.yaml", "b.yaml"], ["One job file", "a.yaml, b.yaml"]),
        (["rollout.top_p=0.9"], ["rollout.top_p", "importance ratio"]),
        (["learner.mini_batch_prompts=7"], ["learner.mini_batch_prompts", "64 = 9 x 7 + 1"]),
        (["extrapolation.checkpoints=4"], ["extrapolation.checkpoints", "5 or more"]),
    ],
    ids=["unknown key", "wrong type", "missing file", "two files", "top_p", "batch arithmetic", "too few checkpoints"],
)
def test_a_wrong_configuration_is_one_paragraph(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    for part in parts:
        assert part in shown.err
    assert "Traceback" not in shown.err


def test_dry_run_prints_and_starts_nothing(tmp_path: Path) -> None:
    result = start(tmp_path, "jobs/smollm2-135m.yaml", "--dry-run")
    assert result.returncode == 0, result.stderr
    for part in ("prompts_per_step: 16", "128 = 16 prompts x 8 samples", "Placement", "Memory per device", "Nothing was started"):
        assert part in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_store_names_the_endpoint(tmp_path: Path) -> None:
    credentials = {"AWS_ACCESS_KEY_ID": "AKIANOBODY", "AWS_SECRET_ACCESS_KEY": "secret-that-must-not-show"}
    result = start(tmp_path, "store.url=s3://bucket/x", "store.endpoint_url=http://127.0.0.1:9", **credentials)
    assert_user_error(result, "127.0.0.1:9")
    assert "secret-that-must-not-show" not in result.stdout + result.stderr


def test_a_read_only_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert_user_error(start(tmp_path, f"store.url=file://{tmp_path}/file/store"), "file")


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    data = tmp_path / "problems.jsonl"
    data.write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n{oops\n")
    assert_user_error(start(tmp_path, "data.train.kind=file", f"data.train.path={data}"), "problems.jsonl", "line 2")
    assert not list((tmp_path / "store").glob("*/manifests/*"))


def test_too_few_problems_do_the_arithmetic(tmp_path: Path) -> None:
    result = start(tmp_path, "data.train.size=100")
    assert_user_error(result, "data.gate_prompts=96", "data.test_prompts=256")


def test_a_missing_model_is_found_out_before_anything_starts(tmp_path: Path) -> None:
    result = start(tmp_path, "model.name=/no/such/model")
    assert_user_error(result, "/no/such/model", "no such folder")
    assert "opening Ray" not in result.stdout


@pytest.mark.ray
def test_an_impossible_placement_says_what_is_asked_and_what_there_is(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from next_ray.models.tiny import build_tokenizer

    model = Qwen2Config(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )
    Qwen2ForCausalLM(model).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    words = [f"model.name={tmp_path / 'model'}", "cluster.engine_labels={market: spot}", "cluster.wait_s=8"]
    assert_user_error(start(tmp_path, *words), "rollout engine 0", "market=spot", "2 CPU", "market=(none) (1)", "cluster.wait_s")


def test_the_baseline_is_a_run_of_its_own_without_extrapolation() -> None:
    config = as_baseline(load_config(None, ["run.name=x"]))
    assert (config.run.name, config.extrapolation.enabled) == ("x-baseline", False)


def test_an_embedded_ray_asks_for_a_private_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    protect_embedded_ray(tmp_path)
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))  # undone at the end
    assert token.stat().st_mode & 0o777 == 0o600
    before = token.read_text()
    assert len(before) == 64
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    protect_embedded_ray(tmp_path)
    assert token.read_text() == before
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))


def test_a_token_of_the_user_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    protect_embedded_ray(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["--help", "run.stepz=3"])
def test_help_and_mistakes_do_not_wait_for_torch(word: str) -> None:
    script = (
        f"import sys\nfrom next_ray.run import main\ntry:\n    main([{word!r}])\nexcept SystemExit:\n    pass\n"
        "print('heavy:', {'torch', 'transformers', 'ray', 'vllm'} & set(sys.modules) or 'none')"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert found.stdout.endswith("heavy: none\n"), found.stdout + found.stderr
