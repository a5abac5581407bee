import io
import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from next_ray.extrapolate.methods.registry import make
from next_ray.inspect.analysis import Inspection, inspect_trajectory
from next_ray.inspect.console import show
from next_ray.inspect.document import SCHEMA, document, plain
from next_ray.inspect.plots import draw
from next_ray.inspect.summaries import combined, summaries
from tests.inspect.trajectories import as_dense, line, random_walk, still

METHODS = ["no-op", "persistence", "linear-fit", "expo", "alpharl", "dare", "key-neurons"]


@cache
def inspected(kind: str) -> Inspection:
    weights = {
        "walk": random_walk,
        "dense": lambda: as_dense(random_walk()),
        "still": still,
        "one": lambda: line(1),
        "two": lambda: line(2),
        "line": line,
    }[kind]()
    return inspect_trajectory(weights, [make(name) for name in METHODS], notes=["a gap between steps 10 and 30\x1b[2J"])


KINDS = ["walk", "dense", "still", "one", "two", "line"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_console_keeps_to_100_columns_and_says_the_verdict(kind):
    out = io.StringIO()
    show(inspected(kind), Console(file=out, width=100, highlight=False))
    text = out.getvalue()
    assert max(len(row) for row in text.splitlines()) <= 100
    assert "\x1b" not in text and "nan" not in text.lower()
    said = " ".join(text.replace("│", " ").split())
    assert inspected(kind).verdict.sentence in said


def test_a_long_name_of_a_kind_of_matrix_stays_whole():
    weights = random_walk(count=6)
    renamed = {name.replace("q_proj", "query_key_value_dense"): module for name, module in weights.modules.items()}
    out = io.StringIO()
    show(inspect_trajectory(replace(weights, modules=renamed), [make("persistence")]), Console(file=out, width=100, highlight=False))
    assert out.getvalue().count("query_key_value_dense") == 4 and max(map(len, out.getvalue().splitlines())) <= 100


def test_the_console_shows_every_table():
    out = io.StringIO()
    show(inspected("walk"), Console(file=out, width=100))
    text = out.getvalue()
    for title in (
        "Movement of all weights",
        "Rank-1 energy",
        "Angles between",
        "R^2 of a straight line",
        "Back test: the last 5",
        "by kind of",
    ):
        assert title in text
    assert "alpharl: needs a held-out accuracy" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_document_is_json_without_nan_and_holds_all_modules(kind):
    found = json.loads(json.dumps(document(inspected(kind), {"base": {"name": "b"}}), allow_nan=False))
    assert found["schema"] == SCHEMA
    assert set(found["modules"]) == {module.name for module in inspected(kind).modules}
    assert set(found["groups"]) == {"q", "down", "all"}
    assert found["verdict"]["sentence"] == inspected(kind).verdict.sentence
    assert found["trajectory"]["base"] == {"name": "b"}
    assert found["backtest"]["methods"]["alpharl"]["skipped"]


def test_numbers_of_the_document_are_those_of_the_inspection():
    inspection = inspected("walk")
    found = document(inspection)
    module = inspection.modules[0]
    assert found["modules"][module.name]["energy"][3]["nuclear"] == module.energy[3].nuclear
    method = next(m for m in inspection.backtest.methods if m.name == "persistence")
    assert found["backtest"]["methods"]["persistence"]["forecast_error"] == method.forecast_error
    assert len(found["backtest"]["methods"]["persistence"]["scores"]) == len(method.scores)


def test_what_is_not_finite_becomes_null():
    assert plain({"a": math.nan, "b": [np.float32(1.5), math.inf], 3: (True, None, "x", np.int64(2))}) == {
        "a": None,
        "b": [1.5, None],
        "3": [True, None, "x", 2],
    }


def test_groups_are_means_of_their_modules():
    inspection = inspected("walk")
    groups = {group.name: group for group in summaries(inspection)}
    q = [module for module in inspection.modules if module.group == "q"]
    assert groups["q"].energy["stable_rank"][2] == pytest.approx(np.mean([m.energy[2].stable_rank or np.nan for m in q]))
    assert groups["all"].pairs == sum(module.directions.pairs for module in inspection.modules)
    assert groups["all"].floor[0] == pytest.approx(1 / 3)


def test_shares_are_weighted_by_the_number_of_entries():
    modules = inspected("walk").modules
    found = combined((m.ahead, m.shape[0] * m.shape[1]) for m in modules)
    assert found is not None
    sizes = [m.shape[0] * m.shape[1] for m in modules]
    expected = np.average([m.ahead.shares for m in modules if m.ahead], axis=0, weights=sizes)
    assert found.shares == pytest.approx(tuple(expected))
    assert combined([(None, 3)]) is None


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("walk", {"energy", "heatmap", "linearity", "angles", "backtest"}),
        ("dense", {"energy", "heatmap", "linearity", "angles", "backtest"}),
        ("still", {"energy", "angles"}),
        ("one", {"energy", "heatmap"}),
    ],
)
def test_figures_are_drawn_where_there_is_something_to_draw(kind, files, tmp_path):
    (tmp_path / "backtest.png").write_bytes(b"of an earlier inspection")
    written = draw(inspected(kind), tmp_path)
    assert {path.stem for path in written} == files == {path.stem for path in tmp_path.iterdir()}
    for path in written:
        image = imread(path)
        assert image.shape[1] >= 700 and image[..., :3].std() > 0.02
