"""The dashboard as JSON: what Grafana asks of it, what ships with the package, and what the command writes."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from next_ray.commands.dashboard import RAY_VARIABLE, main
from next_ray.dashboard.catalogue import METRICS
from next_ray.dashboard.files import ALERTS, DASHBOARD, shipped
from next_ray.dashboard.panels import ROWS, WIDTH
from next_ray.dashboard.queries import series
from tests.dashboard.generate import files

UNITS = {"none", "s", "percentunit", "sci", "cps", "ops", "Bps"}
"""Ids of Grafana's units that are used here, each looked up in its list of formats."""


@pytest.fixture(scope="module")
def panels() -> list[dict[str, Any]]:
    return json.loads(shipped(DASHBOARD))["panels"]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_what_is_generated_is_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run: python -m tests.dashboard.generate"


def test_ids_are_unique_and_panels_do_not_overlap(panels: list[dict[str, Any]]) -> None:
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    for one, other in itertools.combinations(places, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= WIDTH for place in places)


def test_every_row_and_panel_says_what_it_is(panels: list[dict[str, Any]]) -> None:
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Training",
        "Rollout",
        "Trajectory",
        "Jump decisions",
        "Faults",
        "Store",
    ]
    for panel in panels:
        if panel["type"] != "row":
            assert panel["description"].endswith(".") and panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all("$run" in target["expr"] and target["legendFormat"] for target in panel["targets"])
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_variables_choose_data_source_and_runs() -> None:
    document = json.loads(shipped(DASHBOARD))
    assert [(one["name"], one["type"]) for one in document["templating"]["list"]] == [("datasource", "datasource"), ("run", "query")]
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", document["uid"])


def test_what_is_exported_is_shown_and_nothing_else_is_asked_for() -> None:
    asked = set(re.findall(r"ray_next_ray_\w+", " ".join(query.expr for row in ROWS for panel in row.panels for query in panel.queries)))
    exported = {metric.exported for metric in METRICS}
    assert asked <= exported
    aside = {"pass_at_k", "kl", "clip_fraction", "mismatch_max", "trained_tokens", "padding_fraction", "optimizer_steps", "steps"}
    aside |= {"skipped_nonfinite", "drawn_groups", "drawn_reward_mean"}
    assert {name.removeprefix("ray_next_ray_").removesuffix("_total") for name in exported - asked} == aside
    with pytest.raises(KeyError):
        series("reward_average")


def test_names_and_help_of_metrics_are_such_that_prometheus_takes_them() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name) and metric.unit and metric.help
        assert "run" not in metric.tags


def test_install_writes_what_both_servers_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "monitoring"
    assert main(["install", "--folder", str(folder), "--ray-folder", "/ray", "--prometheus-url", "http://127.0.0.1:9191"]) == 0
    said = capsys.readouterr().out
    assert "--web.listen-address=127.0.0.1:9191" in said and str(folder / "grafana" / "grafana.ini") in said
    config = json.loads((folder / "prometheus.yml").read_text())
    (whom,) = config["scrape_configs"][0]["file_sd_configs"]
    assert whom == {"files": ["/ray/prom_metrics_service_discovery.json"], "refresh_interval": "10s"}
    assert config["rule_files"] == [str(folder / ALERTS)]
    (provider,) = json.loads((folder / "grafana/provisioning/dashboards/next_ray.yml").read_text())["providers"]
    assert (Path(provider["options"]["path"]) / DASHBOARD).read_text() == shipped(DASHBOARD)
    (source,) = json.loads((folder / "grafana/provisioning/datasources/next_ray.yml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9191"
    assert "http_addr = 127.0.0.1\n" in (folder / "grafana/grafana.ini").read_text()
    if shutil.which("promtool"):
        subprocess.run(["promtool", "check", "config", folder / "prometheus.yml"], check=True, capture_output=True)


def test_into_ray_puts_the_dashboard_beside_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(RAY_VARIABLE, raising=False)
    folder = tmp_path / "session_latest" / "metrics" / "grafana" / "dashboards"
    assert main(["install", "--into-ray", "--ray-folder", str(tmp_path)]) == 2
    assert "no Ray with a dashboard has run" in capsys.readouterr().err
    folder.mkdir(parents=True)
    assert main(["install", "--into-ray", "--ray-folder", str(tmp_path)]) == 0
    assert (folder / DASHBOARD).read_text() == shipped(DASHBOARD)
    monkeypatch.setenv(RAY_VARIABLE, str(tmp_path))
    assert main(["install", "--into-ray"]) == 0
    assert (tmp_path / DASHBOARD).exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--folder", "/dev/null/x"], "cannot be written"),
        (["--folder", "x", "--prometheus-url", "http://u:secret@host:1"], "'host:1' is not a URL"),
        (["--folder", "x", "--prometheus-url", "9090"], "not a URL such as"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["install", *arguments]) == 2
    said = capsys.readouterr().err
    assert complaint in said and "secret" not in said
