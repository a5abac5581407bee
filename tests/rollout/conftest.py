"""What the tests of engines share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollout.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder
