"""A node that does not have the driver's folder gets the same model, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_ray.actors.shipping import ModelPlace, localize
from next_ray.config import ModelSection
from next_ray.errors import ModelError
from next_ray.models.folder import read_files
from next_ray.models.tiny import build_model, build_tokenizer
from next_ray.models.tiny_spec import TinySpec

pytestmark = pytest.mark.ray


@pytest.fixture
def model(tmp_path: Path) -> Path:
    build_model(TinySpec(hidden_size=64, num_heads=2, intermediate_size=64, num_layers=1)).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_drivers_folder_is_used_where_it_exists(model: Path) -> None:
    assert localize(ModelPlace(ModelSection(), str(model), "f"), None) == str(model)


def test_shipped_files_become_a_folder_of_this_node(model: Path, tmp_path: Path) -> None:
    place = ModelPlace(ModelSection(cache_dir=str(tmp_path / "cache")), "/nowhere/tiny", "abcdef0123456789abcd")
    folder = localize(place, read_files(model))
    assert folder.startswith(str(tmp_path / "cache"))
    assert read_files(Path(folder)) == read_files(model)
    assert localize(place, read_files(model)) == folder


def test_another_model_under_the_same_name_is_refused(model: Path, tmp_path: Path) -> None:
    section = ModelSection(name=str(model), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="is not the driver's"):
        localize(ModelPlace(section, "/nowhere/model", "0" * 64), None)


def test_a_missing_model_is_a_clear_error(tmp_path: Path) -> None:
    section = ModelSection(name="/nowhere/model", cache_dir=str(tmp_path))
    with pytest.raises(ModelError, match="no such folder"):
        localize(ModelPlace(section, "/nowhere/model", "0" * 64), None)
