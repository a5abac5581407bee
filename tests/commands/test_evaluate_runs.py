"""Runs of a store and models on several bases, evaluated by the whole command on real vLLM and a real S3 server; and its tables."""

from __future__ import annotations

import io
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import s3fs
from rich.console import Console

from next_ray.adapter import write_peft_folder
from next_ray.commands.contestants import Contestant, open_contestants, short_labels
from next_ray.commands.evaluate import main
from next_ray.commands.scores import with_references
from next_ray.commands.tables import show
from next_ray.config import ModelSection
from next_ray.errors import NextRayError
from next_ray.models.resolve import PreparedModel, prepare_model
from next_ray.rollout.probe import probe_adapter
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import Adapter, CheckpointKind, LearnerState
from tests.rollout.tiny_model import linear_shapes, save_tiny_model
from tests.s3_server import S3Server, s3_server

READABLE = string.ascii_letters + string.digits + "+-= ()?,.\n"
CATEGORIES = ("law", "computer science", "biology")


def cannot_be_trained(*_: object) -> None:
    raise AssertionError


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.credentials.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedModel, PreparedModel]:
    """Two models of other weights."""
    root = tmp_path_factory.mktemp("bases")
    for seed, name in enumerate(("one", "two")):
        save_tiny_model(root / name, READABLE, seed)
    one, two = (prepare_model(ModelSection(name=str(root / name)), cannot_be_trained) for name in ("one", "two"))
    return one, two


def adapter(base: PreparedModel, seed: int) -> Adapter:
    return probe_adapter(linear_shapes(Path(base.path)), rank=4, scale=0.5, seed=seed, amplitude=0.5)


def save_run(store: CheckpointStore, base: PreparedModel) -> str:
    """A run that was at step 12, jumped at 24 and went on to 36; returns its URL."""
    store.claim_identity({"base_fingerprint": base.fingerprint, "model": base.name, "lora_rank": 4})
    for seed, (step, kind) in enumerate(((12, CheckpointKind.TRAINED), (24, CheckpointKind.TRAINED), (24, CheckpointKind.JUMPED))):
        store.commit(step, kind, LearnerState(adapter(base, seed), {}, {}), [], base.fingerprint, {})
    store.commit(36, CheckpointKind.TRAINED, LearnerState(adapter(base, 9), {}, {}), [], base.fingerprint, {})
    return store.url


@pytest.fixture(scope="module")
def run(bases: tuple[PreparedModel, PreparedModel], tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("store")
    return save_run(CheckpointStore(f"file://{root}", "first"), bases[0]).removeprefix("file://")


def choices(path: Path) -> Path:
    rows = [
        {"question": f"Is {n} odd?", "options": ["yes", "no"], "answer_index": 1 - n % 2, "category": CATEGORIES[n % 3]} for n in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(models: list[str], data: list[str], output: Path, *more: str) -> list[str]:
    words = [*models, "--data", *data, "--template", "{prompt}", "--output", str(output), "--samples", "4", "--max-tokens", "6"]
    return [*words, "--max-prompt-tokens", "48", "--kv-cache-gib", "0.0625", *more]


@pytest.mark.vllm
@pytest.mark.s3
def test_a_jumped_checkpoint_on_s3_against_its_base_by_category(bases, s3: S3Server, tmp_path: Path, capsys):
    base = bases[0]
    url = save_run(CheckpointStore(f"{s3.url}/runs", "first", s3.endpoint_url), base)
    s3fs.S3FileSystem(endpoint_url=s3.endpoint_url, skip_instance_cache=True).put_file(
        str(choices(tmp_path / "p.jsonl")), f"{s3.bucket}/p.jsonl"
    )
    words = command(
        [base.name, f"{url}@24-jumped"], [f"mmlu-pro={s3.url}/p.jsonl"], tmp_path / "out", "--verifier", "mmlu-pro=regex:.*[a-z]"
    )
    assert main([*words, "--label", "base", "NExt", "--parquet", "--endpoint-url", s3.endpoint_url]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    first, second = result["models"]
    assert [(m["label"], m["steps"]) for m in (first, second)] == [("base", None), ("NExt", 24)]
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert not (tmp_path / "out" / "samples.jsonl").exists()
    means = [
        sum(row["correct"] for row in rows if row["model"] == name) / sum(row["model"] == name for row in rows)
        for name in (base.name, f"{url}@24-jumped")
    ]
    assert [model["macro_avg"] for model in result["models"]] == pytest.approx(means)
    assert len({row["completion"] for row in rows}) > 10 and len(rows) == 2 * 12 * 4
    texts = [[row["completion"] for row in rows if row["model"] == name] for name in (base.name, f"{url}@24-jumped")]
    assert texts[0] != texts[1], "the adapter was served"
    found = result["comparison"]["mmlu-pro"]
    assert found["difference"] == pytest.approx(means[1] - means[0]) and found["low"] <= found["difference"] <= found["high"]
    assert second["gain"] == pytest.approx(means[1] - means[0])
    assert second["icer"] == (pytest.approx(24 / (100 * second["gain"])) if second["gain"] > 0 else None)
    groups = second["sets"]["mmlu-pro"]["groups"]
    assert {name: group["prompts"] for name, group in groups.items()} == dict.fromkeys(sorted(CATEGORIES), 4)
    shown = capsys.readouterr().out
    assert all(text in shown for text in (*CATEGORIES, "pass@4", "maj@4", "ICER", "NExt minus base", "p ="))


@pytest.mark.vllm
def test_models_on_two_bases_are_measured_against_their_own(bases, run: str, tmp_path: Path, capsys):
    one, two = bases
    write_peft_folder(adapter(two, 5), tmp_path / "checkpoint-10", two.name)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"question": f"{n}+1=", "answer": str(n + 1)}) + "\n" for n in range(5)))
    models = [one.name, f"{run}@12", f"{one.name}+{run}", two.name, str(tmp_path / "checkpoint-10")]
    assert main(command(models, [f"sums={tmp_path / 'p.jsonl'}"], tmp_path / "out", "--verifier", "sums=regex:.*[0-4]")) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(m["label"], m["steps"], m.get("against")) for m in result["models"]] == [
        ("one", None, None),
        ("first@12", 12, "one"),
        ("first", 36, "one"),
        ("two", None, None),
        ("checkpoint-10", 10, "two"),
    ]
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len({tuple(row["completion"] for row in samples if row["model"] == name) for name in models}) == 5
    assert "first@12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("{run}@13", "no checkpoint '00000013-trained'; it holds 00000012-trained, 00000024-trained"),
        ("{run}@last", "no checkpoint 'last'"),
        ("{two}+{run}", "has other weights. Say where the right one is: BASE[+]"),
        ("{run}/manifests", "no config.json. Name a model folder"),
        ("/no/such/model", "the model /no/such/model: there is no such folder"),
    ],
)
def test_what_is_not_there_is_a_paragraph(bases, run: str, model: str, complaint: str):
    with pytest.raises(NextRayError, match=complaint) as caught:
        open_contestants([model.format(run=run, two=bases[1].name)])
    assert "model.name" not in str(caught.value)


def test_a_base_that_moved_is_found_where_the_user_says(bases, tmp_path: Path):
    one = bases[0]
    store = CheckpointStore(f"file://{tmp_path}", "moved")
    store.claim_identity({"base_fingerprint": one.fingerprint, "model": "/gone", "lora_rank": 4})
    store.commit(1, CheckpointKind.TRAINED, LearnerState(adapter(one, 0), {}, {}), [], one.fingerprint, {})
    with pytest.raises(NextRayError, match="the model /gone"):
        open_contestants([f"{tmp_path}/moved"])
    (found,) = open_contestants([f"{one.name}+{tmp_path}/moved@1"])
    assert (found.base.fingerprint, found.step) == (one.fingerprint, 1)


def test_labels_are_the_shortest_ends_that_differ():
    assert short_labels(["Qwen/Qwen2.5-7B", "/a/run@12", "s3://b/run/"]) == ["Qwen2.5-7B", "run@12", "run"]
    assert short_labels(["/a/x/checkpoint-10", "/a/y/checkpoint-10"]) == ["x/checkpoint-10", "y/checkpoint-10"]
    assert short_labels(["/m", "m"]) == ["/m", "m"]


def test_an_adapter_without_its_base_has_no_gain_over_another(bases):
    one, two = bases
    weights = adapter(two, 0)

    def contestant(base: PreparedModel, trained: Adapter | None) -> Contestant:
        return Contestant(base.name, base.name, base, trained, "", None)

    def references(*contestants: Contestant) -> list[int | None]:
        return [judged.reference for judged in with_references(contestants, [None] * len(contestants))]

    assert references(contestant(one, None), contestant(two, weights)) == [None, None]
    assert references(contestant(one, None), contestant(two, None)) == [None, 0], "merged models are measured against the first"
    assert references(contestant(two, weights), contestant(two, None), contestant(two, weights)) == [1, None, 1]


def table_of(width: int, labels: list[str], sets: list[str], categories: list[str]) -> str:
    score = {"mean": 1.0, "low": 0.95, "high": 1.0}
    found = {"prompts": 40, "avg": score, "pass": {"1": score, "8": score}, "maj": {"1": score, "8": score}}
    by_set = {**found, "truncated": 0.0, "unjudged": 0, "groups": dict.fromkeys(categories, found), "macro_over_groups": 1.0}
    models: list[dict[str, Any]] = [
        {"label": label, "steps": 250, "sets": dict.fromkeys(sets, by_set), "macro_avg": 1.0} for label in labels
    ]
    models[-1] |= {"against": labels[0], "gain": 0.1, "icer": 25.0}
    decoding = {"samples": 8, "temperature": 1.0, "top_p": 1.0, "max_tokens": 4096}
    console = Console(file=io.StringIO(), width=width)
    show({"decoding": decoding, "models": models, "comparison": {}}, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_no_number_is_cut_however_many_sets_and_categories(width: int):
    categories = ["biology", "computer science", "engineering", *(f"category {n}" for n in range(11))]
    sets = ["aime24", "aime25", "amc23", "minerva", "olymmath-easy", "gpqa", "mmlu-pro", "math-500", "gsm8k"]
    labels = ["Qwen2.5-7B-Instruct", "a label that is far too long for any of the tables that there are"]
    shown = table_of(width, labels, sets, categories)
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    assert shown.count("100.0 (95.0-100.0)") == len(sets) * len(labels) * 3, "avg, pass@8 and maj@8; those of k = 1 are avg"
    assert all(f" {name} " in shown for name in (*categories, *sets)) and "(part 2 of" in shown


def test_a_table_that_fits_is_one(capsys):
    shown = table_of(80, ["Backbone", "NExt"], ["aime24", "amc23"], [])
    assert "(part" not in shown
    (line,) = [line for line in shown.splitlines() if "25.0" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["NExt", "250", "100.0", "100.0", "100.0", "25.0"]
