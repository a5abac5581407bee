"""`python -m benchmarks dense`: the top triplet of a full matrix's delta against full SVD: time, accuracy, memory, flags."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.triplets import resident_mib, timed
from next_ray.delta.dense import DenseHistory

MIB = 2**20
SPECTRA = ("decaying", "flat", "noise")
"""sigma_j = j^-0.7 and zero beyond half of them; all equal; a matrix of normal noise."""


@dataclass(frozen=True)
class Saved:
    """Weights in `.npy` files of a folder: `0.npy` is the base."""

    folder: Path
    shape: tuple[int, int]

    def load(self, index: int) -> np.ndarray:
        """One of them."""
        return np.load(self.folder / f"{index}.npy")


def main(argv: list[str]) -> int:
    """Measure each spectrum and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks dense", description=__doc__)
    parser.add_argument("--size", type=int, default=3584)
    parser.add_argument("--threads", type=int, default=1, help="for both ways")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--spectra", nargs="+", choices=SPECTRA, default=list(SPECTRA))
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-dense"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(json.dumps(_child(arguments)))
        return 0
    report = {"size": arguments.size, "threads": arguments.threads, "tolerance": 1e-6}
    print(json.dumps(report | {spectrum: _measure(arguments, spectrum) for spectrum in arguments.spectra}, indent=2))
    return 0


def _measure(arguments: argparse.Namespace, spectrum: str) -> dict[str, Any]:
    arguments.folder.mkdir(parents=True, exist_ok=True)
    try:
        _write(arguments.folder, arguments.size, spectrum)
        load = os.getloadavg()[0]
        options = ["--child", "--size", arguments.size, "--threads", arguments.threads, "--runs", arguments.runs]
        command = [sys.executable, "-m", "benchmarks", "dense", *map(str, options), "--folder", str(arguments.folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        own = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
        delta = torch.from_numpy(np.load(arguments.folder / "1.npy") - np.load(arguments.folder / "0.npy"))
    finally:
        shutil.rmtree(arguments.folder)
    started, cpu = time.perf_counter(), time.process_time()
    u, sigma, v_t = torch.linalg.svd(delta, full_matrices=False)
    full_s, full_cpu_s = time.perf_counter() - started, time.process_time() - cpu
    del u, v_t
    return own | {
        "load_average": load,
        "full_svd_float32_s": full_s,
        "full_svd_float32_cpu_s": full_cpu_s,
        "times_faster_with_reading": full_s / float(np.median(own["with_reading_s"])),
        "times_faster_by_cpu_time": full_cpu_s / float(np.median(own["with_reading_cpu_s"])),
        "sigma_against_full_svd": own["sigma"] / float(sigma[0]) - 1.0,
    }


def _write(folder: Path, size: int, spectrum: str) -> None:
    """A base of normal weights and two checkpoints; the second delta is the first and a tenth of normal noise of its size."""
    rng = np.random.default_rng(0)
    base = 0.02 * rng.standard_normal((size, size), dtype=np.float32)
    if spectrum == "noise":
        delta = rng.standard_normal((size, size), dtype=np.float32)
    else:
        index = np.arange(1, size + 1)
        values = np.where(index <= size // 2, index**-0.7, 0.0) if spectrum == "decaying" else np.ones(size)
        delta = _reflected(_reflected(np.diag(values), rng).T, rng).astype(np.float32)
    delta *= np.float32(1e-2 * np.linalg.norm(base) / np.linalg.norm(delta))
    noise = rng.standard_normal((size, size), dtype=np.float32) * np.float32(0.1 * np.linalg.norm(delta) / size)
    for index, weights in enumerate((base, base + delta, base + delta + noise)):
        np.save(folder / f"{index}.npy", weights)


def _reflected(matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Q matrix with an orthogonal Q: two block reflections, so that no large factorization is needed."""
    for _ in range(2):
        basis = np.linalg.qr(rng.normal(size=(len(matrix), 32)))[0]
        matrix = matrix - 2.0 * basis @ (basis.T @ matrix)
    return matrix


def _child(arguments: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: the first delta cold, the second from the first's v; the resident set's peak."""
    history = DenseHistory(Saved(arguments.folder, (arguments.size, arguments.size)), 2)
    torch.linalg.eigh(torch.eye(2, dtype=torch.float64))
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    seconds, cpu_seconds = [], []
    for _ in range(arguments.runs):
        started, cpu = time.perf_counter(), time.process_time()
        cold = history.leading(1)
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu)
    warm_s = [timed(lambda: history.leading(2, start=cold.triplet.v)) for _ in range(arguments.runs)]
    warm, second = history.leading(2, start=cold.triplet.v), history.leading(2)
    peak = (resident_mib("VmHWM") - before) * MIB
    return {
        "with_reading_s": seconds,
        "with_reading_cpu_s": cpu_seconds,
        "warm_s": warm_s,
        "steps": cold.steps,
        "steps_second_delta_warm": warm.steps,
        "steps_second_delta_cold": second.steps,
        "sigma": cold.triplet.sigma,
        "residual": cold.residual,
        "gap": cold.gap,
        "flagged": cold.degenerate,
        "peak_float32_matrices": peak / (4 * arguments.size**2),
    }
