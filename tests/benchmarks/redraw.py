"""Processor time of the server for one control of Inspect, the bundled sample open in a headless Chromium.

    python tests/benchmarks/redraw.py

The server's own time from /proc (user and system; the browser's is not in it), less what it takes while nothing
happens. The goals: 90 ms a control, 150 ms a click on a cell. The reference is the first load of the page.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from pages import FLAGS, browser_path, serving, settled  # noqa: E402

TURNS = 4
MAP = 8, 2  # layers and KV groups of the sample


def milliseconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def one(page, pid: int, act: Callable[[], None], idle: float) -> float:
    before, start = milliseconds(pid), time.monotonic()
    act()
    page.wait_for_timeout(300)
    page.wait_for_function("!document.querySelector('[data-testid=stStatusWidget]')")
    page.wait_for_timeout(1200)
    return milliseconds(pid) - before - idle * (time.monotonic() - start)


def cell(page, layer: int, group: int) -> None:
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    at = box["x"] + (layer + 0.5) / MAP[0] * box["width"], box["y"] + (group + 0.5) / MAP[1] * box["height"]
    page.mouse.move(*at)
    page.wait_for_timeout(150)
    page.mouse.click(*at)


def measure(page, pid: int, address: str) -> None:
    before = milliseconds(pid)
    page.goto(address)
    settled(page)
    page.wait_for_timeout(1500)
    print(f"first load of the page: {milliseconds(pid) - before:.0f} ms")
    before = milliseconds(pid)
    page.wait_for_timeout(5000)
    idle = (milliseconds(pid) - before) / 5
    print(f"nothing: {idle:.0f} ms a second")

    def press(label: str) -> Callable[[], None]:
        return lambda: page.get_by_role("radio", name=label, exact=True).first.click()

    controls = {
        "another view of the map": [press(label) for label in ("As stored", "After", "Size divided out")] * TURNS,
        "another pair": [press(label) for label in ("QK", "VO")] * TURNS,
        "a click on a cell": [
            lambda place=place: cell(page, *place) for place in ((0, 0), (1, 1), (2, 0), (6, 1)) * TURNS
        ],
    }
    for name, acts in controls.items():
        times = [one(page, pid, act, idle) for act in acts]
        print(f"{name}: median {statistics.median(times):.0f} ms, most {max(times):.0f} ms of {len(times)}")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as home,
        serving(Path(home)) as (address, server),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=browser_path(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        measure(page, server.pid, address)
        browser.close()


if __name__ == "__main__":
    main()
