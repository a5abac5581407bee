"""What `python -m next_ray.dashboard` does: write what Prometheus and Grafana need into a folder, or into Ray's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from next_ray.commands.ending import ended
from next_ray.commands.parser import Parser
from next_ray.dashboard.files import DASHBOARD, placed, shipped
from next_ray.errors import ConfigError

RAY_FOLDER = "/tmp/ray"
"""Where Ray keeps its sessions unless `--temp-dir` says otherwise."""
RAY_VARIABLE = "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"
"""Where Ray writes its own Grafana dashboards when that is set."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and write; returns the exit code."""
    return ended(lambda: _run(argv), "run the same command again")


def _run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    if arguments.into_ray:
        print(f"Written: {_into_ray(arguments.ray_folder)}\nRay's Grafana shows it within seconds, in the folder Ray.")
        return
    folder = arguments.folder.expanduser().absolute()
    _write(folder, arguments.ray_folder / "prom_metrics_service_discovery.json", arguments.prometheus_url)
    listen = urlsplit(arguments.prometheus_url).netloc
    print(
        f"Written to {folder}. Start\n"
        f"  prometheus --config.file={folder}/prometheus.yml --storage.tsdb.path={folder}/data --web.listen-address={listen}\n"
        f"  grafana server --homepath /usr/share/grafana --config {folder}/grafana/grafana.ini\n"
        "and open http://127.0.0.1:3000/d/next-ray-run (user and password admin at first).\n"
        f"Grafana elsewhere: import {folder}/grafana/dashboards/{DASHBOARD}."
    )


def parser() -> Parser:
    """Of the command line."""
    parser = Parser(
        "dashboard",
        "install (--folder DIR | --into-ray)",
        "Set up Prometheus and Grafana for runs on this machine's Ray: configuration, dashboard and alert rules.",
        ["install --folder monitoring", "install --into-ray"],
    )
    parser.add_argument("action", choices=["install"], metavar="install", help="write the files")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--folder", type=Path, metavar="DIR", help="a folder for Prometheus and Grafana, with all they need")
    where.add_argument("--into-ray", action="store_true", help="only the dashboard, beside Ray's own ones")
    parser.add_argument("--ray-folder", type=Path, default=Path(RAY_FOLDER), metavar="DIR", help="Ray's --temp-dir (default %(default)s)")
    parser.add_argument(
        "--prometheus-url", default="http://127.0.0.1:9090", metavar="URL", help="where Prometheus listens (default %(default)s)"
    )
    return parser


def _write(folder: Path, discovery: Path, prometheus_url: str) -> None:
    if "@" in prometheus_url or not urlsplit(prometheus_url).netloc:
        raise ConfigError(f"--prometheus-url {prometheus_url.rpartition('@')[2]!r} is not a URL such as http://127.0.0.1:9090.")
    try:
        for name, content in placed(folder, discovery, prometheus_url).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--folder {folder} cannot be written: {error.strerror}. Name another folder.") from error


def _into_ray(ray_folder: Path) -> Path:
    """Ray writes the folder anew whenever it starts, unless `RAY_VARIABLE` names another place."""
    chosen = os.environ.get(RAY_VARIABLE)
    folder = Path(chosen) if chosen else ray_folder / "session_latest" / "metrics" / "grafana" / "dashboards"
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} does not exist: no Ray with a dashboard has run on this machine. Start it first, name its --temp-dir with "
            "--ray-folder, or install --folder DIR instead."
        )
    target = folder / DASHBOARD
    target.write_text(shipped(DASHBOARD), encoding="utf-8")
    return target
