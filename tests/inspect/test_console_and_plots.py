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
from next_ray.inspect.console import make_console, show
from next_ray.inspect.document import SCHEMA, document, plain
from next_ray.inspect.linearity import Linearity
from next_ray.inspect.plots import draw
from next_ray.inspect.summaries import combined, summaries
from tests.inspect.trajectories import as_dense, line, matrices, random_walk, still

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


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("kind", KINDS)
def test_the_console_keeps_to_its_width_cuts_nothing_and_says_the_verdict(kind, width):
    out = io.StringIO()
    show(inspected(kind), Console(file=out, width=width, highlight=False))
    text = out.getvalue()
    assert max(len(row) for row in text.splitlines()) <= min(width, 100) and "…" not in text
    assert "\x1b" not in text and "nan" not in text.lower()
    said = " ".join(text.replace("│", " ").split())
    assert inspected(kind).verdict.sentence in said


@pytest.mark.parametrize("kind", ["walk", "dense"])
def test_at_80_columns_no_caption_or_number_is_wrapped(kind):
    narrow, wide = io.StringIO(), io.StringIO()
    for out, width in ((narrow, 80), (wide, 160)):
        show(inspected(kind), Console(file=out, width=width, highlight=False))

    def rows(out: io.StringIO) -> list[str]:
        body, _, _ = out.getvalue().partition("╭")
        return [row.rstrip() for row in body.splitlines()]

    # the captions and tables are the same rows but for the first column, whose names may be folded
    assert [row for row in rows(wide) if row not in rows(narrow)] == []


@pytest.mark.parametrize(("columns", "width"), [(None, 100), ("72", 72)])
def test_in_a_pipe_the_width_is_100_or_what_columns_says(columns, width, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert make_console().width == width


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
        "Back test: checkpoints 5, 6, 7, 8, 9, 10 foretell 5 ahead",
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


def test_the_pooled_r2_of_a_group_is_that_of_all_its_entries_together():
    inspection = inspected("walk")
    group = next(group for group in summaries(inspection) if group.name == "q")
    values = np.concatenate([matrices(random_walk(), m.name).reshape(15, -1) for m in inspection.modules if m.group == "q"], axis=1)
    slopes, starts = np.polyfit(inspection.steps, values, 1)
    error = np.sum((values - np.outer(inspection.steps, slopes) - starts) ** 2)
    assert group.within is not None
    assert group.within.pooled == pytest.approx(1 - error / np.sum((values - values.mean(axis=0)) ** 2))


def test_a_sampled_module_counts_by_its_size_and_not_by_its_sample():
    small = Linearity((0.0, 0.0, 0.0, 1.0), 0.9, entries=10, constant=0, sse=1.0, sst=10.0)
    large = Linearity((1.0, 0.0, 0.0, 0.0), 0.1, entries=5, constant=5, sse=8.0, sst=10.0)
    found = combined([(small, 10), (large, 40)])
    assert found is not None
    # large: four times its sample, of which half never changed
    assert found.shares == pytest.approx((20 / 30, 0, 0, 10 / 30))
    assert found.pooled == pytest.approx(1 - (1 + 4 * 8) / (10 + 4 * 10))


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
