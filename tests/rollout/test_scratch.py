from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from next_ray.rollout.scratch import LOCK_FILE, PREFIX, SHARED_MEMORY, ScratchFolder, sweep
from tests.processes import is_removed_within


def test_private_unique_and_removed(tmp_path: Path) -> None:
    first, second = ScratchFolder(str(tmp_path)), ScratchFolder(str(tmp_path))
    assert first.path != second.path
    assert first.path.stat().st_mode & 0o777 == 0o700
    (first.path / "v1").mkdir()
    (first.path / "v1" / "weights").write_bytes(b"x")
    first.close()
    first.close()
    assert [p.name for p in tmp_path.iterdir()] == [second.path.name]
    second.close()


def test_a_killed_holders_folder_is_gone_and_a_living_ones_stays(tmp_path: Path) -> None:
    living = ScratchFolder(str(tmp_path))
    code = f"""if True:
        import time
        from next_ray.rollout.scratch import ScratchFolder
        folder = ScratchFolder({str(tmp_path)!r})
        (folder.path / "weights").write_bytes(b"x")
        print(folder.path, flush=True)
        time.sleep(60)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        orphan = Path(child.stdout.readline().strip())
        assert sweep(tmp_path) == []
        child.send_signal(signal.SIGKILL)
    assert is_removed_within(10, orphan)
    assert living.path.exists()
    living.close()


def test_what_nobody_removed_is_swept(tmp_path: Path) -> None:
    orphan = tmp_path / f"{PREFIX}orphan"
    orphan.mkdir()
    (orphan / LOCK_FILE).touch()
    living = ScratchFolder(str(tmp_path))
    assert not orphan.exists()
    assert sweep(tmp_path) == []
    living.close()


def test_shared_memory_of_a_killed_process_is_removed_and_nobody_elses() -> None:
    code = """if True:
        import multiprocessing.shared_memory, time
        from next_ray.rollout.scratch import remove_segments_after_us
        segment = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
        multiprocessing.resource_tracker.unregister(segment._name, "shared_memory")  # as one that was killed, too
        aftermath = remove_segments_after_us()
        print(segment.name, flush=True)
        time.sleep(60)
    """
    others = SharedMemory(create=True, size=4096)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        segment = SHARED_MEMORY / child.stdout.readline().strip()
        assert segment.exists()
        child.send_signal(signal.SIGKILL)
    assert is_removed_within(10, segment)
    assert (SHARED_MEMORY / others.name).exists()
    others.close()
    others.unlink()


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / f"{PREFIX}being-made").mkdir()
    assert sweep(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2
