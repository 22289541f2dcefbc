"""Every page of the dashboard in a real browser: what is wrong with it, at one width and theme or at all of them.

    python tests/pages.py http://127.0.0.1:8501 FOLDER

opens each page of a running dashboard at 1280 and 390 px, light and dark, writes a picture of each into FOLDER and
prints what it found; the suite opens each once at 1280 px.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIZES = {1280: 900, 390: 844}
# no graphics processor is there to be looked for, and its stand-in costs more than drawing without
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
# Deep links of Streamlit ask for these twice; nothing is missing.
HARMLESS = ("_stcore/health", "host-config", "404")


def browser_path() -> str:
    """Of Chromium or Chrome; the test is skipped without one, unless WISCA_BROWSER=required: then it fails."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    found = next((path for name in (*names, mac) if (path := shutil.which(name))), None)
    if found is None:
        message = (
            "no Chromium or Chrome on this machine; install one (Debian: apt install chromium) for the browser tests"
        )
        pytest.fail(message) if os.environ.get("WISCA_BROWSER") == "required" else pytest.skip(message)
    return found


@contextmanager
def serving(home: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """(address, process) of a dashboard started as the README says; its WISCA_HOME and its server.log lie in
    ``home``.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port)],
            cwd=ROOT,
            env=os.environ | {"WISCA_HOME": str(home / "home"), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            for _ in range(480):
                try:
                    if urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).status == 200:
                        break
                except OSError:
                    time.sleep(0.25)
            else:
                pytest.fail((home / "server.log").read_text()[-2000:])
            yield address, process
        finally:
            process.terminate()
            process.wait(30)


def paths() -> list[str]:
    """Where each page of the navigation lives, and the one that the sidebar leads to."""
    views = ROOT / "app" / "views"
    return [
        "" if path.stem == "inspect" else f"/{path.stem}"
        for path in sorted(views.glob("*.py"))
        if path.stem != "__init__"
    ]


def settled(page) -> None:
    """Wait until the page has been drawn to its end."""
    page.locator("[data-testid=stMain] h1, [data-testid=stMain] h2").first.wait_for()
    page.wait_for_function("!document.querySelector('[data-testid=stStatusWidget]')")
    if page.locator("[data-testid=stPlotlyChart]").count():
        page.locator(".js-plotly-plot .main-svg").first.wait_for()
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
    page.wait_for_timeout(500)


def faults(page, errors: list[str]) -> list[str]:
    """What is wrong with the page that is shown; ``errors``: what its console said."""
    out = [text for text in errors if not any(part in text for part in HARMLESS)]
    out += [f"exception: {text[:200]}" for text in page.locator(".stException").all_inner_texts()]
    wide, room = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    if wide > room + 1:
        out.append(f"scrolls sideways: {wide} px in {room}")
    # data-unformatted and aria say nothing of content, so a chart is empty where plotly drew neither trace nor picture
    empty = page.evaluate(
        """[...document.querySelectorAll('.js-plotly-plot')].filter(chart => {
            const data = chart.data || [];
            return !data.length && !chart.querySelector('.annotation-text');
        }).length"""
    )
    if empty:
        out.append(f"empty charts: {empty}")
    cannot = page.get_by_text("This page cannot be shown").count()
    return out + (["the page says that it cannot be shown"] if cannot else [])


def listened(page) -> list[str]:
    """What the console of a new page says from now on; its time limit is that of a busy machine."""
    errors: list[str] = []
    page.set_default_timeout(90_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    return errors


def opened(page, errors: list[str], address: str, width: int, scheme: str) -> Iterator[tuple[str, list[str]]]:
    """(path, faults) of every page at one width and theme, as ``page`` shows it; ``errors``: what its console says."""
    page.set_viewport_size({"width": width, "height": SIZES[width]})
    page.emulate_media(color_scheme=scheme)
    for path in paths():
        errors.clear()
        page.goto(address + path)
        settled(page)
        yield path or "/inspect", faults(page, errors)


def main(address: str, folder: Path) -> int:
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=FLAGS)
        page = browser.new_page()
        errors = listened(page)
        for scheme in ("light", "dark"):
            for width in SIZES:
                for path, found in opened(page, errors, address.rstrip("/"), width, scheme):
                    page.screenshot(path=str(folder / f"{path.strip('/')}-{scheme}-{width}.png"), timeout=90_000)
                    wrong += bool(found)
                    print(f"{path} {scheme} {width}: {'; '.join(found) or 'in order'}", flush=True)
        browser.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
