"""`python -m tests.dashboard.generate`: what ships with the package and is made from its descriptions, and the table in the docs, anew."""

from __future__ import annotations

from pathlib import Path

import yaml

from next_ray.dashboard import alerts, catalogue, grafana
from next_ray.dashboard.files import ALERTS, DASHBOARD, as_json

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "dashboard.md"
BEGIN, END = "<!-- metrics -->\n", "<!-- end of metrics -->\n"
"""Around the generated table in the docs."""


def files() -> dict[Path, str]:
    """Every generated file as it should be."""
    folder = ROOT / "next_ray" / "dashboard"
    rules = "# Made from next_ray/dashboard/alerts.py.\n" + yaml.safe_dump(alerts.document(), sort_keys=False, width=140)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    page = before + BEGIN + catalogue.table() + END + rest.partition(END)[2]
    return {folder / DASHBOARD: as_json(grafana.document()), folder / ALERTS: rules, PAGE: page}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
