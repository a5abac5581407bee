"""JSON lines: flushed, torn lines, truncation."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_ray.report.metrics import JsonLines


def test_records_can_be_followed_as_they_are_written(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "deep" / "metrics.jsonl")
    log.append({"step": 1, "text": "ä\nb"})
    assert JsonLines(tmp_path / "deep" / "metrics.jsonl").read() == [{"step": 1, "text": "ä\nb"}]
    assert (tmp_path / "deep" / "metrics.jsonl").read_bytes().count(b"\n") == 1
    log.close()


def test_truncation_keeps_the_steps_up_to_and_appending_goes_on(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "m.jsonl")
    for step in (1, 2, 2, 3):
        log.append({"step": step})
    log.truncate(2)
    log.append({"step": 9})
    assert [r["step"] for r in log.read()] == [1, 2, 2, 9]
    log.close()
    log.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.jsonl"]


@pytest.mark.parametrize(
    "torn", [b'{"step": 3, "rew', b'{"step": 3}', b'{"step": 3, "rew{"step": 3}\n', b"\xff\xfe\n", b"[1]\n", b'{"no": 1}\n']
)
def test_what_a_kill_left_torn_is_not_read(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + torn)
    assert [r["step"] for r in JsonLines(path).read()] == [1, 2]


def test_numbers_that_json_lacks_are_a_defect_of_the_caller(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "m.jsonl")
    with pytest.raises(ValueError):
        log.append({"step": 1, "x": float("nan")})
    log.close()
    assert log.read() == []
    assert JsonLines(tmp_path / "none.jsonl").read() == []
