"""The panels as Grafana's JSON: `next_ray.json` beside this file is what `document()` returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from next_ray.dashboard.panels import ROWS, WIDTH, Panel
from next_ray.dashboard.queries import grown, series

HEIGHTS = {"stat": 4, "timeseries": 8}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def document() -> dict[str, Any]:
    """The dashboard, to be imported or provisioned; the data source and the runs are chosen at its top."""
    return {
        "uid": "next-ray-run",
        "title": "next_ray: a run",
        "description": "Training, rollout, trajectory, jump decisions, faults and store of next_ray runs.",
        "tags": ["next_ray", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "templating": {"list": [_source_variable(), _run_variable()]},
        "annotations": {
            "list": [
                _annotation("Accepted jumps", "green", grown("jumps", "1m", where='run=~"$run", outcome="accepted"')),
                _annotation("Jumps taken back", "orange", grown("jumps", "1m", where='run=~"$run", outcome="taken back"')),
                _annotation("Losses", "red", grown("faults", "1m", where='run=~"$run", event="lost"')),
            ]
        },
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    """Rows and panels from left to right and top to bottom, as wide as they say, as high as the highest beside them."""
    number, top = 1, 0
    for row in ROWS:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
        }
        number, top, left, height = number + 1, top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            yield _panel(number, panel, left, top)
            number, left, height = number + 1, left + panel.width, max(height, HEIGHTS[panel.kind])
        top += height


def _panel(number: int, panel: Panel, left: int, top: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHTS[panel.kind], "w": panel.width, "x": left, "y": top},
        "fieldConfig": {"defaults": {"unit": panel.unit, **_style(panel)}, "overrides": []},
        "options": _options(panel),
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": query.expr, "legendFormat": query.legend, "range": True}
            for i, query in enumerate(panel.queries)
        ],
    }


def _style(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {}
    return {"custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 5, "showPoints": "auto", "spanNulls": False}}


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "none", "graphMode": "none"}
    return {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}, "tooltip": {"mode": "multi", "sort": "desc"}}


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}, "hide": 0}


def _run_variable() -> dict[str, Any]:
    """All runs that Prometheus knows, several of which can be chosen."""
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values({series('steps', where='')}, run)", "refId": "run"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _annotation(name: str, color: str, expr: str) -> dict[str, Any]:
    return {
        "name": name,
        "enable": True,
        "iconColor": color,
        "datasource": SOURCE,
        "expr": f"{expr} > 0",
        "titleFormat": name,
        "textFormat": "{{run}}",
        "step": "10s",
    }
