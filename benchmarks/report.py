"""`python -m benchmarks report`: how long the page of a run takes to write, how large it is, and how soon a browser shows it.

The run is made up (`stored_runs.py`) and lies in a real store. `write_s` is a process of its own, Python's start and imports counted, the
best of several (`cpu_s` is what a busy machine hardly changes); `first_paint_ms` is Chromium's first contentful paint, the median (without
a browser it is left out).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.stored_runs import MadeUp, write_run

CHROMIUM = "/usr/bin/chromium"


def main(argv: list[str]) -> int:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--interval", type=int, default=10)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench-report"))
    arguments = parser.parse_args(argv)
    steps, interval, layers = arguments.steps, arguments.interval, arguments.layers
    made = MadeUp(f"run-{steps}-{interval}-{layers}", steps, steps, interval, layers=layers)
    place, page = arguments.folder.absolute() / made.name, arguments.folder / f"{made.name}.html"
    if not (place / "records" / "summary.json").exists():
        shutil.rmtree(place, ignore_errors=True)
        write_run(f"file://{arguments.folder.absolute()}", made).close()
    load, seconds, cpu = os.getloadavg()[0], [], []
    for _ in range(arguments.runs):
        started, used = time.monotonic(), _children_cpu_s()
        subprocess.run([sys.executable, "-m", "next_ray.report", str(place), "--output", str(page)], check=True, capture_output=True)
        seconds.append(time.monotonic() - started)
        cpu.append(_children_cpu_s() - used)
    found = {"steps": arguments.steps, "checkpoints": arguments.steps // arguments.interval + 1, "load": round(load, 1)}
    found |= {"write_s": round(min(seconds), 2), "write_s_median": round(statistics.median(seconds), 2), "cpu_s": round(min(cpu), 2)}
    found |= {"page_mib": round(page.stat().st_size / 2**20, 2)}
    if Path(CHROMIUM).exists():
        found["first_paint_ms"] = round(statistics.median(_painted(page, arguments.runs)))
    print(json.dumps(found))
    return 0


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def first_paint_ms(browser: Any, page: Path) -> float:
    """Milliseconds from navigation to the first contentful paint, in a context of its own of a Playwright browser."""
    script = """() => new Promise(done => new PerformanceObserver(found => {
        for (const one of found.getEntries()) if (one.name === 'first-contentful-paint') done(one.startTime)
    }).observe({type: 'paint', buffered: true}))"""
    tab = browser.new_context().new_page()
    tab.goto(page.absolute().as_uri())
    found = tab.evaluate(script)
    tab.context.close()
    return found


def _painted(page: Path, times: int) -> list[float]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            return [first_paint_ms(browser, page) for _ in range(times)]
        finally:
            browser.close()
