"""`python -m benchmarks triplets`: the triplets of a whole trajectory on disk, against reading it, multiplying it, and full SVD.

Shape legend: O/I out/in features, R rank, K checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shapes import MODELS, write_adapters
from next_ray.adapter import WEIGHTS_FILE
from next_ray.checkpoints.open import open_trajectory
from next_ray.delta.factors import from_base
from next_ray.delta.trajectory_triplets import trajectory_triplets
from next_ray.types import LoraFactors, ModuleTriplets

MIB = 2**20


def main(argv: list[str]) -> int:
    """Write a trajectory, measure the machine, the triplets, their memory and accuracy, and the published way; print ratios as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks triplets", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="Qwen2.5-7B")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--checkpoints", type=int, default=15)
    parser.add_argument("--horizon", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-triplets"))
    parser.add_argument("--runs", type=int, default=2, help="runs of the triplets; the median is reported")
    parser.add_argument("--keep", action="store_true", help="leave the written checkpoints, and take those that lie there")
    parser.add_argument("--skip-svd", action="store_true", help="leave out the published way (minutes)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.child:
        return _child(arguments)
    folders = sorted(arguments.folder.glob("checkpoint-*"))
    if len(folders) != arguments.checkpoints:
        _in_child(lambda: write_adapters(MODELS[arguments.model], arguments.rank, arguments.checkpoints, arguments.folder))
    try:
        print(json.dumps(_measure(arguments), indent=2))
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.folder)
    return 0


def _in_child(work: Callable[[], object]) -> None:
    """Run it in a fork, so that its memory is nobody else's."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the checkpoints could not be written")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    shapes = MODELS[arguments.model].shapes
    files = sorted(arguments.folder.glob(f"*/{WEIGHTS_FILE}"))
    count, horizon = arguments.checkpoints, arguments.horizon
    blocks = count + sum(count - offset for offset in {1, horizon} if offset < count)
    sets = count + (count - 1) + max(count - horizon, 0)
    flops = 2.0 * blocks * arguments.rank**2 * sum(o + i for o, i in shapes.values())
    rates, reads, runs = [matrix_rate()], [], []
    for _ in range(arguments.runs):
        evict(files)
        reads.append(timed(lambda: read_once(files, arguments.threads)))
        evict(files)
        runs.append(_run_child(arguments))
        rates.append(matrix_rate())
    rate, read_s = max(rates), float(np.median(reads))
    seconds = float(np.median([run["seconds"] for run in runs]))
    bound = max(read_s, flops / rate)
    report: dict[str, Any] = {
        "what": f"{arguments.model}, {len(shapes)} modules, rank {arguments.rank}, {count} checkpoints, {sets} deltas a module",
        "threads": arguments.threads,
        "gigabytes": round(sum(file.stat().st_size for file in files) / 1e9, 2),
        "load_average": os.getloadavg(),
        "triplets_s": seconds,
        "triplets_s_each": [run["seconds"] for run in runs],
        "triplets_cpu_s_each": [run["cpu_s"] for run in runs],
        "read_once_s_each": reads,
        "matrix_gflops_each": [round(rate / 1e9, 1) for rate in rates],
        "gram_products_s": flops / rate,
        "times_the_bound": seconds / bound,
        "interpreter_mib": [run["interpreter_mib"] for run in runs],
        "peak_over_interpreter_mib": max(run["peak_mib"] - run["interpreter_mib"] for run in runs),
        "of_it_results_mib": 4 * sets * sum(o + i for o, i in shapes.values()) / MIB,
        "accuracy": accuracy(arguments),
    }
    if not arguments.skip_svd:
        each = full_svd_seconds(arguments)
        published = sum(sets * each[f"{o}x{i}"] for o, i in shapes.values())
        report |= {"full_svd_s_each": each, "full_svd_s": published, "times_faster_than_full_svd": published / seconds}
    return report


def _run_child(arguments: argparse.Namespace) -> dict[str, float]:
    options = ["--child", "--folder", arguments.folder, "--horizon", arguments.horizon, "--threads", arguments.threads]
    command = [sys.executable, "-m", "benchmarks", "triplets", *map(str, options)]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout
    )


def _child(arguments: argparse.Namespace) -> int:
    """Triplets alone in a process. Files are read into private memory, none is mapped: the resident set's peak holds all that is used."""
    torch.set_num_threads(arguments.threads)
    torch.linalg.eigh(torch.eye(2, dtype=torch.float64))
    interpreter = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    started, cpu = time.perf_counter(), time.process_time()
    trajectory = open_trajectory([str(arguments.folder)]).trajectory
    found = trajectory_triplets(trajectory.modules, arguments.horizon, threads=arguments.threads)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert len(found) == len(trajectory.modules)
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "interpreter_mib": interpreter, "peak_mib": resident_mib("VmHWM")}))
    return 0


def resident_mib(field: str) -> float:
    """This process's resident memory (VmRSS) or its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def matrix_rate(size: int = 2048, runs: int = 8) -> float:
    """Float64 operations a second of large square products, the best of some runs, on all of torch's threads."""
    matrix = torch.randn((size, size), dtype=torch.float64)
    return 2.0 * size**3 / min(timed(lambda: matrix @ matrix) for _ in range(runs))


def evict(files: Sequence[Path]) -> None:
    """Ask the system to drop the files from its cache, so that reading means the disk."""
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(files: Sequence[Path], threads: int) -> None:
    """Read all bytes, one file a thread at a time."""
    local = threading.local()

    def read(file: Path) -> None:
        buffer = local.__dict__.setdefault("buffer", bytearray(8 * MIB))
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, files))


def dense(factors: LoraFactors) -> np.ndarray:
    """The delta, float64 [O, I]."""
    pair = from_base(factors)
    return pair.left @ pair.right


def accuracy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Largest error of sigma (relative), u and v (norm of the difference, up to sign) against float64 SVD of dense deltas.

    All deltas of one k_proj; one local delta (the last) of one q_proj.
    """
    modules = open_trajectory([str(arguments.folder)]).trajectory.modules
    report: dict[str, Any] = {}
    for name, every in (("model.layers.0.self_attn.k_proj", True), ("model.layers.0.self_attn.q_proj", False)):
        history: Any = modules[name]
        found = history.triplets(arguments.horizon)
        chosen = range(len(found)) if every else [len(found) - 1]
        products = {i: dense(history.factors[i]) for i in {j for c in chosen for j in (c, c - 1, c - arguments.horizon)} if i >= 0}
        errors = [_errors(found[i], products, i, arguments.horizon, every) for i in chosen]
        rows, columns = history.shape
        report[f"{rows}x{columns}"] = {
            "deltas": sum(len(error) for error in errors),
            "largest_error": max(value for error in errors for value in error),
        }
    return report


def _errors(own: ModuleTriplets, products: Mapping[int, np.ndarray], i: int, horizon: int, every: bool) -> list[float]:
    deltas = [(own.local, products[i] - products[i - 1] if i else products[i])]
    if every:
        deltas.append((own.global_, products[i]))
        if own.target is not None:
            deltas.append((own.target, products[i] - products[i - horizon]))
    errors = []
    for triplet, delta in deltas:
        u, sigma, v_t = (part.numpy() for part in torch.linalg.svd(torch.from_numpy(delta), full_matrices=False))
        sign = np.sign(u[:, 0] @ triplet.u)
        vectors = np.linalg.norm(sign * u[:, 0] - triplet.u), np.linalg.norm(sign * v_t[0] - triplet.v)
        errors.append(float(max(abs(triplet.sigma / sigma[0] - 1.0), *vectors)))
    return errors


def full_svd_seconds(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of `torch.linalg.svd` of one dense float32 delta of each shape; a transposed shape counts as measured."""
    modules = open_trajectory([str(arguments.folder)]).trajectory.modules
    found: dict[str, float] = {}
    for history in modules.values():
        rows, columns = history.shape
        if f"{rows}x{columns}" in found:
            continue
        if f"{columns}x{rows}" not in found:
            delta = torch.from_numpy(dense(history.factors[-1]).astype(np.float32))  # pyright: ignore[reportAttributeAccessIssue]
            found[f"{columns}x{rows}"] = timed(lambda delta=delta: torch.linalg.svd(delta, full_matrices=False))
        found[f"{rows}x{columns}"] = found[f"{columns}x{rows}"]
    return found
