"""Reading configurations: what is accepted, and what each refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from next_ray.config import ArithmeticSource, Config, ReasoningGymSource
from next_ray.errors import ConfigError
from next_ray.settings import load_config, to_yaml


def refusal(path: Path | None = None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None if path is None else str(path), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def test_no_file_and_no_overrides_is_the_default() -> None:
    assert load_config(None, ()) == Config()


def test_overrides_win_over_the_file_and_the_last_one_wins(write) -> None:
    path = write("run: {steps: 5, name: from-file}\nlearner:\n  lr: 5e-6\n")
    config = load_config(str(path), ["run.steps=7", "run.steps=9", "learner.betas=[0.8, 0.9]", "model.revision=null"])
    assert (config.run.steps, config.run.name, config.learner.lr) == (9, "from-file", 5e-6)
    assert config.learner.betas == (0.8, 0.9)
    assert config.model.revision is None


def test_to_yaml_reads_back_equal(write) -> None:
    config = load_config(None, ["data.train={kind: reasoning-gym, task: chain_sum, options: {min_terms: 2}}", "learner.lr=5e-6"])
    assert isinstance(config.data.train, ReasoningGymSource)
    assert load_config(str(write(to_yaml(config))), ()) == config


@settings(deadline=None)  # it writes files
@given(steps=st.integers(1, 10**9), lr=st.floats(1e-12, 1e3), name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
@example(steps=1, lr=1.0, name="6e1")
@example(steps=1, lr=1.0, name="no")
@example(steps=1, lr=1.0, name="0123")
def test_any_number_and_name_survives_the_round_trip(tmp_path_factory, steps: int, lr: float, name: str) -> None:
    config = Config().model_copy(update={"run": Config().run.model_copy(update={"steps": steps, "name": name})})
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"lr": lr})})
    path = tmp_path_factory.mktemp("trip") / "job.yaml"
    path.write_text(to_yaml(config))
    assert load_config(str(path), ()) == config


def test_source_kind_may_be_left_out_where_it_is_the_defaults() -> None:
    train = load_config(None, ["data.train.digits=2"]).data.train
    assert isinstance(train, ArithmeticSource) and train.digits == 2
    message = refusal(None, "data.train.task=chain_sum")
    assert "data.train.kind is required" in message and "'arithmetic', 'reasoning-gym', 'file'" in message


@pytest.mark.parametrize(
    ("text", "line", "nearest"),
    [
        ("run:\n  stepz: 3\n", 2, "run.steps"),
        ("learner:\n  lr: 1e-3\n  rank: 4\n", 3, "learner.lora.rank"),
        ("lr: 3\n", 1, "learner.lr"),
        ("extrapolaton:\n  interval_steps: 1\n", 1, "extrapolation"),
        ("data:\n  train:\n    kind: file\n    path: x.jsonl\n    promt_field: q\n", 5, "data.train.prompt_field"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_valid_one(write, text: str, line: int, nearest: str) -> None:
    message = refusal(write(text))
    assert f"job.yaml, line {line})" in message
    assert "unknown key" in message and nearest in message.split("did you mean")[1]


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("run.steps=many", ['run.steps="many"', "integer"]),
        ("run.steps=true", ["run.steps=true", "integer"]),
        ("run.steps='3'", ['run.steps="3"', "integer"]),
        ("run.steps=2.5", ["run.steps=2.5", "integer"]),
        ("run.steps=0", ["run.steps=0", "greater than or equal to 1"]),
        ("run.name=12", ["run.name=12", "quotes"]),
        ("run.seed=0123", ['run.seed="0123"', "integer"]),
        ("learner.zero_stage=4", ["learner.zero_stage=4", "0, 1, 2 or 3"]),
        ("learner.lr=.inf", ["learner.lr", "finite"]),
        ("learner.betas=[0.9]", ["learner.betas=[0.9]", "2 values"]),
        ("learner.lora.target_modules=5", ["'all-linear' or a valid array"]),
        ("run.deterministic=yes", ['run.deterministic="yes"', "boolean"]),
        ("rollout.top_p=0.5", ["importance ratio"]),
        ("learner.mini_batch_prompts=7", ["64 = 9 x 7 + 1"]),
        ("extrapolation.gpus_per_delta_worker=1.5", ["less than or equal to 1"]),
        ("extrapolation.gpus_per_delta_worker=1e-5", ["too small a share"]),
        ("data.train.kind=csv", ["data.train.kind='csv'", "'reasoning-gym'"]),
        ("steps", ["section.key=value"]),
        ("run..steps=3", ["section.key=value"]),
        ("learner.lr={a: 1, a: 2}", ["twice"]),
        ("learner.lr=[1", ["not valid YAML"]),
    ],
)
def test_a_wrong_value_names_key_value_and_what_was_expected(override: str, fragments: list[str]) -> None:
    message = refusal(None, override)
    for fragment in fragments:
        assert fragment in message
    assert override.partition("=")[0].split(".")[-1] in message


@pytest.mark.parametrize(
    "override",
    [
        "store.url=s3://KEY:hunter2@bucket/runs",
        "store.endpoint_url=https://user:hunter2@s3.example.org",
        "data.train={kind: file, path: 's3://KEY:hunter2@bucket/x.jsonl'}",
        "data.train={kind: file, path: 'https://example.org/x.jsonl?X-Amz-Signature=hunter2'}",
        "data.held_out={path: 'https://hunter2@example.org/x.jsonl'}",
    ],
)
def test_addresses_with_secrets_are_refused_without_repeating_them(write, override: str) -> None:
    key, _, value = override.partition("=")
    section, _, field = key.partition(".")
    for message in (refusal(None, override), refusal(write(f"{section}:\n  {field}: {value}\n"))):
        assert "carries credentials" in message and key in message and "HF_TOKEN" in message
        assert "hunter2" not in message
    load_config(None, ["data.train={kind: file, path: 'hf://datasets/owner/name@main/x.parquet'}", "store.url=s3://bucket/a@b"])


def test_delta_workers_cannot_have_gpus_in_a_run_that_is_kept_off_them() -> None:
    overrides = ["cluster.device=cpu", "extrapolation.gpus_per_delta_worker=0.25"]
    message = refusal(None, *overrides)
    assert "extrapolation.gpus_per_delta_worker=0.25 asks for GPUs" in message and "cluster.device=cpu" in message
    load_config(None, [*overrides, "extrapolation.enabled=false"])


def test_all_problems_come_at_once(write) -> None:
    path = write("run:\n  stepz: 3\n  steps: x\nlearner:\n  lr: -1\nlearner: {}\n")
    message = refusal(path, "evaluation.samplez=1", "nonsense")
    for fragment in ("(1)", "run.stepz", 'run.steps="x"', "learner is there twice", "evaluation.samplez", "override 'nonsense'"):
        assert fragment in message
    assert "5 problems" in message


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- 1\n", "sequence at its top"),
        ("word\n", "scalar at its top"),
        ("run: {steps: 3\n", "line 2: not valid YAML"),
        ("run:\n  steps: 3\n  steps: 4\n", "run.steps is there twice"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("run: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("1: 2\n", "not text"),
    ],
)
def test_what_is_not_a_mapping_of_sections_is_refused(write, text: str, fragment: str) -> None:
    assert fragment in refusal(write(text))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.yaml")
    assert str(tmp_path) in refusal(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xe9}")
    assert "UTF-8" in refusal(tmp_path / "latin.yaml")


def test_an_override_inside_a_value_is_refused(write) -> None:
    assert "learner.lr" in refusal(write("learner: {lr: 3}\n"), "learner.lr.peak=4")


def test_methods_of_a_job_may_name_an_alpha_of_their_own() -> None:
    config = load_config(None, ["extrapolation.methods=[two-point, wsm-cosine@1, two-point@2]", "extrapolation.alphas=[1, 2]"])
    assert config.extrapolation.proposals == (("two-point", 1.0), ("two-point", 2.0), ("wsm-cosine", 1.0))


@pytest.mark.parametrize(
    ("method", "complaint"),
    [("two-pont", "did you mean 'two-point'"), ("dare", "has no method 'dare'"), ("next@", "method@alpha"), ("next@nan", "method@alpha")],
)
def test_a_method_a_running_job_lacks_is_refused(method: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(None, [f"extrapolation.methods=[{method}]"])


def test_a_file_says_only_how_it_differs_from_the_one_it_extends(write, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "base.yaml").write_text(
        "run: {name: base, steps: 7}\nlearner: {lora: {rank: 4}, lr: 1e-3}\ndata: {train: {kind: file, path: a.jsonl}}\n"
        "extrapolation: {methods: [next], alphas: [1.5]}\n"
    )
    (tmp_path / "middle.yaml").write_text("extends: deep/base.yaml\nrun: {name: middle}\nlearner: {lora: {alpha: 2}}\n")
    path = write(
        "extends: middle.yaml\nrun:\n  name: top\nextrapolation: {alphas: [1, 2, 3]}\ndata: {train: {kind: arithmetic, digits: 1}}\n"
    )
    config = load_config(str(path), ["run.seed=3"])
    assert (config.run.name, config.run.steps, config.run.seed) == ("top", 7, 3)
    assert (config.learner.lora.rank, config.learner.lora.alpha, config.learner.lr) == (4, 2.0, 1e-3)
    assert (config.extrapolation.methods, config.extrapolation.alphas) == (("next",), (1.0, 2.0, 3.0))
    assert config.data.train == ArithmeticSource(digits=1)
    assert load_config(str(tmp_path / "middle.yaml")).run.name == "middle"


def test_what_is_wrong_in_an_extended_file_is_found_there(write, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("run:\n  stpes: 7\nlearner:\n  lr: fast\n")
    message = refusal(write("extends: base.yaml\nrun: {name: top, seeed: 1}\n"))
    assert f"unknown key run.stpes ({tmp_path / 'base.yaml'}, line 2)" in message
    assert f"unknown key run.seeed ({tmp_path / 'job.yaml'}, line 2)" in message
    assert f'learner.lr="fast" ({tmp_path / "base.yaml"}, line 4)' in message
    (tmp_path / "base.yaml").write_text("extends: none.yaml\n")
    message = refusal(write("extends: base.yaml\n"))
    assert "none.yaml, which " in message and "base.yaml extends, does not exist" in message


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("extends: job.yaml\n", "circle"),
        ("extends: other.yaml\n", "circle"),
        ("extends: [a.yaml, b.yaml]\n", "path of one YAML file"),
        ("extends:\nrun: {steps: 3}\n", "path of one YAML file"),
        ("extends: ''\n", "path of one YAML file"),
        ("extends: other.yaml\nextends: other.yaml\n", "there twice"),
        ("run: {extends: other.yaml}\n", "unknown key run.extends"),
    ],
)
def test_extending_what_cannot_be_extended_is_refused(write, tmp_path: Path, text: str, fragment: str) -> None:
    other = "run: {steps: 3}\n" if "twice" in fragment else "extends: ./job.yaml\n"
    (tmp_path / "other.yaml").write_text(other)
    assert fragment in refusal(write(text))
