"""A real Prometheus for tests: Debian's, on a free loopback port, with the configuration that this project installs."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def api(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of `/api/v1/`; fails with the server's own words."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def samples(self, query: str, start: float, end: float) -> dict[str, list[float]]:
        """Values of each series of a query over a time, by its labels."""
        found = self.api("query_range", query=query, start=start, end=end, step=1)["result"]
        return {json.dumps(one["metric"], sort_keys=True): [float(value) for _, value in one["values"]] for one in found}


def missing_programs() -> str | None:
    """Why a test of Prometheus is skipped, if it is."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    return f"{', '.join(missing)} not installed (apt-get install prometheus)" if missing else None


@contextmanager
def prometheus(folder: Path, ray_folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus on what `python -m next_ray.dashboard install` writes for a Ray, scraping every second instead of every ten."""
    url = f"http://127.0.0.1:{_free_port()}"
    install = [sys.executable, "-m", "next_ray.dashboard", "install", "--folder", folder, "--ray-folder", ray_folder]
    said = subprocess.run([*install, "--prometheus-url", url], capture_output=True, text=True, check=True).stdout
    config = folder / "prometheus.yml"
    config.write_text(config.read_text().replace('"10s"', '"1s"'))
    command = next(line.split() for line in said.splitlines() if line.startswith("  prometheus "))
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen([*command, "--log.level=warn"], stdout=log, stderr=log)
    try:
        _until_ready(url, server, folder / "prometheus.log")
        yield Prometheus(url)
    finally:
        server.terminate()
        server.wait(20)


def _until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        with suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=2):
            return
        time.sleep(0.1)
    raise AssertionError(f"Prometheus does not answer: {log.read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
