"""The files that Prometheus and Grafana read: those that ship with the package, and those that name places on a machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

DASHBOARD, ALERTS = "next_ray.json", "alerts.yml"


def shipped(name: str) -> str:
    """The content of `DASHBOARD` or `ALERTS`."""
    return (resources.files("next_ray.dashboard") / name).read_text(encoding="utf-8")


def as_json(document: Mapping[str, Any]) -> str:
    """A document as it is shipped."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def placed(folder: Path, discovery: Path, prometheus_url: str) -> dict[str, str]:
    """All files of a folder for Prometheus and Grafana, by path in it. JSON is YAML too, which Prometheus and Grafana read."""
    grafana = folder / "grafana"
    whom = {"files": [str(discovery)], "refresh_interval": "10s"}  # a link to a session's file, whose changes Prometheus does not notice
    prometheus = {
        "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
        "rule_files": [str(folder / ALERTS)],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [whom]}],
    }
    source = {"name": "Prometheus", "type": "prometheus", "url": prometheus_url, "access": "proxy", "isDefault": True}
    provider = {"name": "next_ray", "folder": "next_ray", "type": "file", "options": {"path": str(grafana / "dashboards")}}
    return {
        "prometheus.yml": as_json(prometheus),
        ALERTS: shipped(ALERTS),
        "grafana/grafana.ini": _ini(grafana),
        "grafana/provisioning/datasources/next_ray.yml": as_json({"apiVersion": 1, "datasources": [source]}),
        "grafana/provisioning/dashboards/next_ray.yml": as_json({"apiVersion": 1, "providers": [provider]}),
        f"grafana/dashboards/{DASHBOARD}": shipped(DASHBOARD),
    }


def _ini(grafana: Path) -> str:
    """Grafana on loopback, with all that it writes below the folder."""
    paths = "".join(f"{name} = {grafana / name}\n" for name in ("provisioning", "data", "logs", "plugins"))
    return f"[server]\nhttp_addr = 127.0.0.1\nhttp_port = 3000\n\n[paths]\n{paths}\n[analytics]\nreporting_enabled = false\n"
