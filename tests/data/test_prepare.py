"""What stands between the problems and a run: unreadable characters and prompts that are too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_ray.data.prepare import AUTO_CORES, chosen_reader, filter_by_length, load_splits
from next_ray.data.splits import Splits
from next_ray.errors import DataError
from next_ray.models.tiny import build_tokenizer
from next_ray.settings import load_config
from next_ray.types import Prompt


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text, ({"role": "user", "content": text},), "1", "exact") for text in texts]


def test_a_character_model_refuses_what_it_cannot_read() -> None:
    splits = Splits(prompts("1+1=", "What is 1+1?"), prompts("2+2="), prompts("3+3="))
    with pytest.raises(DataError, match=r"'What is 1\+1\?' has the character ' '.*model\.name"):
        filter_by_length(splits, build_tokenizer(), load_config(None))


def test_long_prompts_are_left_out_and_counted() -> None:
    splits = Splits(prompts("1+1=", "11111+11111="), prompts("2+2="), prompts("3+3="))
    kept, report = filter_by_length(splits, build_tokenizer(), load_config(None, ["data.max_prompt_tokens=6"]))
    assert [p.id for p in kept.train] == ["1+1="]
    assert report == "1 prompts longer than 6 tokens left out: train 1"


def test_the_embedded_run_has_three_disjoint_sets() -> None:
    splits, report = load_splits(load_config(None))
    sets = [{p.id for p in part} for part in (splits.train, splits.gate, splits.test)]
    assert (len(sets[1]), len(sets[2])) == (96, 256)
    assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]
    assert "10000 prompts" in report


def test_auto_takes_the_cluster_for_large_files_and_many_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 10)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    job = load_config(None, [f"data.train={{kind: file, path: {tmp_path}}}"])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    chosen = {}
    for cores in (AUTO_CORES - 1, AUTO_CORES):
        for num_bytes in (total, total + 1):
            monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
            monkeypatch.setattr("next_ray.data.prepare.AUTO_BYTES", num_bytes)
            chosen[cores - AUTO_CORES, num_bytes - total] = chosen_reader(job)
    assert chosen == {(-1, 0): "local", (-1, 1): "local", (0, 0): "ray", (0, 1): "local"}
    monkeypatch.setattr("next_ray.data.prepare.AUTO_BYTES", total)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    assert chosen_reader(job) == "ray" and chosen_reader(load_config(None)) == "local"
    assert chosen_reader(load_config(None, [f"data.train={{kind: file, path: {tmp_path}}}", "data.reader=local"])) == "local"
    with pytest.raises(DataError, match=r"Check data\.train\.path"):
        chosen_reader(load_config(None, ["data.train={kind: file, path: none.jsonl}", "data.reader=ray"]))
