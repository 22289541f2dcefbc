"""Seconds from the click on Start of the default comparison to the first line that can be seen in a browser.

    python tests/benchmarks/first_curve.py [--rounds N] [--port N]

The dashboard, its worker processes and a headless Chromium share this machine, each round with a WISCA_HOME of its own.
Two numbers: when the first points stand there, and when two arms have a line of two points. Rendering without a GPU
counts.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
# Whether n arms of the first chart have at least two points; the chart's own data are asked, not its picture.
LINES = """n => { const p = document.querySelector('.js-plotly-plot');
return p && p.data && p.data.filter(d => d.name && d.showlegend !== false && (d.x?.length ?? d.x?._inputArray?.length ?? 0) > 1).length >= n }"""  # noqa: E501


def one(port: int, browser) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as home:
        app = [
            sys.executable,
            "-m",
            "streamlit",
            "run",
            "app/main.py",
            "--server.port",
            str(port),
            "--server.headless",
            "true",
        ]
        server = subprocess.Popen(
            app, cwd=ROOT, env=os.environ | {"WISCA_HOME": home}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health").status == 200)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(f"http://127.0.0.1:{port}/compare?comparison=new")
            start = page.get_by_role("button", name="Start the comparison")
            start.wait_for(timeout=90_000)
            time.sleep(3)  # the page has timed its steps and stands still
            began = time.perf_counter()
            start.click()
            page.locator(".js-plotly-plot").first.wait_for(timeout=60_000)
            points = time.perf_counter() - began
            page.wait_for_function(LINES, arg=2, timeout=60_000)
            return points, time.perf_counter() - began
        finally:
            for place in Path(home).glob("comparisons/*"):
                (place / "cancel").touch()
            time.sleep(4)
            server.terminate()
            server.wait()


def _until(holds) -> None:
    for _ in range(240):
        try:
            if holds():
                return
        except OSError:
            pass
        time.sleep(0.25)
    raise SystemExit("the dashboard did not start")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--port", type=int, default=8611)
    given = options.parse_args()
    path = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("Chromium or Chrome is needed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        for _ in range(given.rounds):
            points, lines = one(given.port, browser)
            print(
                f"first points after {points:.1f} s, two lines after {lines:.1f} s; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        browser.close()


if __name__ == "__main__":
    main()
