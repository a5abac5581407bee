"""The audit of the pins fails on what the database knows, not on what it cannot reach, and asks about every pin."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
pytestmark = pytest.mark.skipif(not UV.exists(), reason="uv is not in this environment")


@contextmanager
def advisory_database(vulnerable: str) -> Iterator[tuple[str, list[str]]]:
    """A server that knows one advisory, about the package `vulnerable`; yields its address and what it was asked about."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            names = [query["package"]["name"] for query in queries]
            asked.extend(f"{query['package']['name']}=={query['version']}" for query in queries)
            known = {"vulns": [{"id": "TEST-1", "modified": "2026-01-01T00:00:00Z"}]}
            self._answer({"results": [known if name == vulnerable else {} for name in names]})

        def do_GET(self) -> None:
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}]
            affected = [{"package": {"ecosystem": "PyPI", "name": vulnerable}, "ranges": ranges}]
            self._answer({"id": "TEST-1", "summary": "runs anything", "modified": "2026-01-01T00:00:00Z", "affected": affected})

        def _answer(self, content: object) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def audit(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "requirements/audit.py", "--uv", str(UV), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_pin_is_asked_about_and_a_known_vulnerability_fails() -> None:
    with advisory_database("torch") as (url, asked):
        done = audit("--service-url", url)
    assert done.returncode == 1, done.stderr
    assert "VULNERABLE torch" in done.stdout and "TEST-1 runs anything" in done.stdout
    pinned = set()
    for file in ("cpu", "dev", "bench", "gpu"):
        lines = (ROOT / f"requirements/{file}.txt").read_text().splitlines()
        pinned |= {line.partition("#")[0].partition(";")[0].strip().lower() for line in lines if line and not line.startswith("#")}
    assert set(asked) == pinned and len(pinned) > 200


def test_an_excuse_needs_a_reason_and_a_use(tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("torch==2.13.0\nnumpy==2.3.0\n")
    excuses = tmp_path / "ignored.txt"
    with advisory_database("torch") as (url, _):
        words = (str(pins), "--service-url", url, "--ignored", str(excuses))
        excuses.write_text("# none\nTEST-1 only matters to servers\n")
        done = audit(*words)
        assert done.returncode == 0 and "ignored   torch 2.13.0: TEST-1, because only matters to servers" in done.stdout
        excuses.write_text("TEST-1\n")
        assert "ignored without a reason" in audit(*words).stderr
        excuses.write_text("TEST-1 a reason\nTEST-2 a reason\n")
        done = audit(*words)
        assert done.returncode == 1 and "NEEDLESS  TEST-2" in done.stdout


def test_what_is_no_pin_cannot_hide(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("torch>=2\n")
    done = audit(str(tmp_path / "pins.txt"))
    assert done.returncode == 1 and "no exact pin" in done.stderr


def test_a_database_out_of_reach_is_a_visible_skip(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("torch==2.13.0\n")
    done = audit(str(tmp_path / "pins.txt"), "--service-url", "http://127.0.0.1:9")
    assert done.returncode == 0 and "AUDIT SKIPPED" in done.stdout and "1 pins were NOT audited" in done.stdout
