"""A kept secret is made once, is its owner's alone, and is refused when it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_ray.errors import ConfigError
from next_ray.secret_file import kept_secret


def test_it_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    made = kept_secret(path)
    assert len(made) == 64 and kept_secret(path) == made and path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["key"]
    assert kept_secret(tmp_path / "other") != made


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by others.*chmod 600"):
        kept_secret(path)
    path.chmod(0o600)
    assert kept_secret(path) == "0123456789abcdef"
    with pytest.raises(ConfigError, match="cannot be read or made"):
        kept_secret(path / "below")
