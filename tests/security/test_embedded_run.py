"""A run on one machine is nobody else's business: it listens on loopback, asks for a token, and writes no secret anywhere.

One whole run in a process of its own, with canaries for secrets, looked at from outside while it goes on and searched afterwards.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.whole_jobs import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.timeout(1800)]

CANARIES = {
    "AWS_ACCESS_KEY_ID": "CANARYACCESSKEY7f3a",
    "AWS_SECRET_ACCESS_KEY": "canary-secret-access-key-91c2",
    "AWS_SESSION_TOKEN": "canary-session-token-44d0",
    "HF_TOKEN": "hf_canaryTokenOfTheHub58e1",
    "RAY_AUTH_TOKEN": "canary-ray-auth-token-0b6d" + "0" * 38,
    "WANDB_API_KEY": "canary-other-key-a2a2",
}
LOOPBACK = re.compile(r"127\..*|::1|::ffff:127\..*")
OVERRIDES = [
    "run.steps=3",
    "learner.ranks=2",
    "extrapolation.enabled=false",
    "evaluation.every_steps=null",
    "cluster.dashboard=true",
]


@dataclass
class Seen:
    """What the run showed and left."""

    code: int = -1
    output: str = ""
    listeners: dict[tuple[str, int], str] = field(default_factory=dict)
    command_lines: set[str] = field(default_factory=set)
    folder: Path = Path()
    ray_folder: Path = Path()
    sockets: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("embedded")
    ray_folder = Path(tempfile.mkdtemp(prefix="nr-", dir="/tmp"))  # paths of sockets must be short
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
    environment = {
        **kept,
        **CANARIES,
        "NEXT_RAY_CACHE": str(folder / "cache"),
        "RAY_TMPDIR": str(ray_folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    places = [f"run.output_dir={folder}/outputs", f"store.url=file://{folder}/store"]
    command = [sys.executable, "-m", "next_ray.run", *SMALL, *OVERRIDES, *places]
    found = Seen(folder=folder, ray_folder=ray_folder)
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 540
            while process.poll() is None and time.monotonic() < deadline:
                _look(psutil.Process(process.pid), found)
                time.sleep(0.2)
        finally:
            process.terminate()
            found.code = process.wait(60)
    found.output = (folder / "output.txt").read_text()
    yield found
    shutil.rmtree(ray_folder, ignore_errors=True)


def _look(root: psutil.Process, found: Seen) -> None:
    """Note what all processes of the run listen to and are called."""
    for path in found.ray_folder.glob("**/sockets/*"):
        with suppress(FileNotFoundError):
            found.sockets[path.name] = stat.S_IMODE(path.stat().st_mode)
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return
    for process in processes:
        try:
            line = " ".join(process.cmdline())
            found.command_lines.add(line)
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN or (connection.type.name == "SOCK_DGRAM" and connection.laddr):
                    found.listeners.setdefault((connection.laddr.ip, connection.laddr.port), line)
        except psutil.Error:
            continue


def test_it_ran(seen: Seen) -> None:
    assert seen.code == 0, seen.output[-3000:]
    assert len(seen.listeners) > 5, "Ray was looked at"


def test_everything_listens_on_loopback(seen: Seen) -> None:
    open_to_others = {place: who for place, who in seen.listeners.items() if not LOOPBACK.fullmatch(place[0])}
    assert not open_to_others


def test_no_secret_is_written_or_shown(seen: Seen) -> None:
    searched = 0
    for folder in (seen.folder, seen.ray_folder):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                searched += 1
                content = path.read_bytes()
                for name, canary in CANARIES.items():
                    assert canary.encode() not in content, f"{name} in {path}"
                    assert canary not in path.name
    assert searched > 50 and list(seen.ray_folder.rglob("raylet.out")), "outputs, store and Ray's own logs"
    for line in seen.command_lines:
        assert not any(canary in line for canary in CANARIES.values()), line


def test_the_runs_files_are_what_the_documents_say(seen: Seen) -> None:
    written = {path.relative_to(seen.folder).parts[0] for path in seen.folder.rglob("*") if path.is_file()}
    assert written <= {"cache", "outputs", "store", "output.txt"}
    for path in (seen.folder / "store").rglob("*"):
        assert path.is_dir() or path.suffix in {".json", ".safetensors", ".parquet"} or path.name == ".lock", path


def test_others_on_this_machine_cannot_use_its_sockets(seen: Seen) -> None:
    """To connect to a socket of the file system one needs the right to write to it."""
    assert seen.sockets, "Ray's raylet and object store have some"
    assert not {name for name, mode in seen.sockets.items() if mode & 0o022}
