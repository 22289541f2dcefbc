"""``python tests/load [--sessions 25] [--minutes 10] [--seed 0]``

So many people on one dashboard, each with a model of their own, in a real browser: they open addresses, follow the
navigation, reload, go back, change the norm, and now and then export. Found wrong: a page that is not, word for word,
what one person alone was shown under the same address; an exception; an export whose weights differ from one made
alone; a process of the server that is gone. Reported with it: the server's memory by the minute. Exit code 1 where
anything is wrong.
"""

import argparse
import asyncio
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode, urlsplit

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from pages import FLAGS, browser_path, serving  # noqa: E402

import wisca_core as wisca  # noqa: E402

PATHS = ("", "/heads", "/rescale")
LINKS = "Inspect", "Heads", "Rescale"
OPTIONS: tuple[dict[str, str], ...] = ({}, {"norm": "l2"}, {"pair": "vo"}, {"layer": "1", "group": "0"})
# (layers, width, query heads, KV heads): no two pages of theirs are alike
SHAPES = ((2, 64, 4, 4), (3, 64, 4, 1), (4, 96, 6, 2), (5, 64, 8, 1), (3, 96, 6, 6))
SETTLED = """() => !document.querySelector('[data-testid=stStatusWidget], [data-testid=stSkeleton]')
&& document.querySelector('[data-testid=stMain] h1, [data-testid=stMain] h2')"""
TIMEOUT_MS = 180_000
FREE = re.compile(r"[\d.]+ [MG]B free")
JOBS = ("Miniature", "Exported", "Full check")  # how lines about them begin


def models(folder: Path) -> list[Path]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    out = []
    for number, (layers, width, heads, kv_heads) in enumerate(SHAPES):
        torch.manual_seed(number)
        sizes = dict(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, vocab_size=300)
        config = LlamaConfig(num_attention_heads=heads, num_key_value_heads=kv_heads, dtype=torch.bfloat16, **sizes)
        out.append(folder / f"model-{number}")
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out[-1])
    return out


def megabytes(pid: int) -> float:
    """What the server holds for itself."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def address_of(url: str) -> str:
    """Path and query, options sorted: what says what is shown."""
    parts = urlsplit(url)
    options = sorted(parse_qs(parts.query, keep_blank_values=True).items())
    return f"{parts.path.rstrip('/')}?{urlencode(options, doseq=True)}"


class Crowd:
    def __init__(self, address: str, pid: int, folders: list[Path], seed: int):
        self.address, self.pid, self.folders, self.seed = address, pid, folders, seed
        self.alone: dict[str, str] = {}
        self.faults: list[str] = []
        self.done: Counter[str] = Counter()
        self.waits: list[float] = []

    async def shown(self, page) -> str:
        """What the page says once it is drawn, less what became of jobs, which one alone had not started yet."""
        started = time.monotonic()
        await page.wait_for_function(SETTLED, timeout=TIMEOUT_MS)
        last, quiet = "", 0
        while quiet < 3:  # as long as parts of it still arrive
            await page.wait_for_timeout(400)
            text = await page.locator("[data-testid=stMain]").inner_text()
            busy = await page.locator("[data-testid=stStatusWidget]").count()
            quiet, last = (quiet + 1 if text == last and not busy else 0), text
            if time.monotonic() - started > TIMEOUT_MS / 1000:
                self.faults.append(f"{page.url}: not drawn within {TIMEOUT_MS / 1000:.0f} s")
                break
        self.waits.append(time.monotonic() - started)
        if await page.locator(".stException").count():
            self.faults.append(f"{page.url}: an exception is shown")
        lines = (line for line in FREE.sub("memory free", last).splitlines() if not line.startswith(JOBS))
        return "\n".join(lines)

    async def compare(self, page, folder: Path, what: str, *, first: bool = False) -> None:
        text, where = await self.shown(page), address_of(page.url)
        for _ in range(0 if first else 5):  # a page that had stood still half drawn
            if self.alone.get(where, text) == text:
                break
            await asyncio.sleep(10)
            text, where = await self.shown(page), address_of(page.url)
        self.done[what] += 1
        if folder.name not in where:
            self.faults.append(f"{what}: the address of {folder.name} became {where}")
        elif folder.name not in await page.locator("body").inner_text():
            self.faults.append(f"{what}: {where} does not name {folder.name}")
        others = [other.name for other in self.folders if other != folder and other.name in text]
        if others:
            self.faults.append(f"{what}: {where} speaks of {', '.join(others)}")
        if first:
            self.alone[where] = text
        elif where in self.alone and self.alone[where] != text:
            was, now = self.alone[where].splitlines(), text.splitlines()
            at = next((i for i, (a, b) in enumerate(zip(was, now)) if a != b), min(len(was), len(now)))
            self.faults.append(f"{what}: {where}, line {at}: {now[at : at + 1]} where one alone saw {was[at : at + 1]}")
        else:
            self.done["pages compared with those of one alone"] += where in self.alone

    def url(self, folder: Path, path: str, options: dict[str, str]) -> str:
        return f"{self.address}{path}?{urlencode({'model': str(folder)} | options, quote_via=quote)}"

    async def by_one(self, browser) -> None:
        """Every address seen by one person alone: what the crowd has to be shown as well."""
        page = await (await browser.new_context()).new_page()
        for folder in self.folders:
            for path in PATHS:
                for options in OPTIONS:
                    await page.goto(self.url(folder, path, options), timeout=TIMEOUT_MS)
                    await self.compare(page, folder, "alone", first=True)
        await page.context.close()

    async def person(self, browser, number: int, until: float) -> None:
        choose = random.Random(f"{self.seed} {number}")
        page = await (await browser.new_context(viewport={"width": 1280, "height": 900})).new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: self.faults.append(f"person {number}: {error}"))
        at = number % len(self.folders)
        folder = self.folders[at]
        await page.goto(self.url(folder, choose.choice(PATHS), choose.choice(OPTIONS)))
        await self.compare(page, folder, "goto")
        while time.monotonic() < until:
            await asyncio.sleep(choose.uniform(1, 8))
            act = choose.choices(
                ("goto", "link", "reload", "back", "another model", "export"), (6, 6, 2, 2, 1, 1 if number < 5 else 0)
            )[0]
            if act == "another model":
                at = choose.randrange(len(self.folders))
                folder = self.folders[at]
            if act in ("goto", "another model"):
                await page.goto(self.url(folder, choose.choice(PATHS), choose.choice(OPTIONS)))
            elif act == "link":
                await page.get_by_role("link", name=choose.choice(LINKS), exact=True).first.click()
            elif act == "reload":
                await page.reload()
            elif act == "back":
                await page.go_back()
                if page.url == "about:blank":
                    await page.go_forward()
                where = parse_qs(urlsplit(page.url).query).get("model", [""])[0]
                at = next((i for i, one in enumerate(self.folders) if str(one) == where), at)
                folder = self.folders[at]
            elif act == "export":
                await self.export(page, at)
                continue
            await self.compare(page, folder, act)
        await page.context.close()

    async def export(self, page, at: int) -> None:
        folder = self.folders[at]
        await page.goto(self.url(folder, "/rescale", {"granularity": "group"}))
        await self.shown(page)
        button = page.get_by_role("button", name="Export", exact=True)
        if not await button.count() or not await button.first.is_enabled():
            self.done["export not offered (one is under way or done)"] += 1
            return
        await button.first.click()
        await page.get_by_text("Exported", exact=True).first.wait_for()
        self.done["export"] += 1

    async def run(self, n: int, minutes: float) -> list[float]:
        from playwright.async_api import async_playwright

        by_minute: list[float] = []
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=browser_path(), args=FLAGS)
            await self.by_one(browser)
            print(f"{len(self.alone)} pages seen by one person alone, median {self._median():.1f} s", flush=True)
            self.waits.clear()
            until = time.monotonic() + 60 * minutes
            people = [asyncio.create_task(self.person(browser, number, until)) for number in range(n)]
            while not all(one.done() for one in people):
                await asyncio.wait(people, timeout=60)
                by_minute.append(megabytes(self.pid))
                actions = sum(n for what, n in self.done.items() if "compared" not in what)
                print(f"minute {len(by_minute)}: {by_minute[-1]:.0f} MB, {actions} pages shown", flush=True)
            for number, one in enumerate(people):
                if one.exception():
                    self.faults.append(f"person {number}: {str(one.exception())[:300]}")
            await browser.close()
        return by_minute

    def _median(self) -> float:
        return sorted(self.waits)[len(self.waits) // 2]


def weights(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sessions", type=int, default=25)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["WISCA_HOME"] = str(folder / "home")  # the server's: one alone sees the models proved too
        folders, exports = models(folder), []
        for one in folders:
            plan = wisca.plan(wisca.open(one), granularity="group")
            wisca.export(wisca.open(one), plan, folder / f"alone-{one.name}", check=False)
            exports.append(weights(folder / f"alone-{one.name}"))
        with serving(folder) as (address, server):
            crowd = Crowd(address, server.pid, folders, given.seed)
            by_minute = asyncio.run(crowd.run(given.sessions, given.minutes))
            if server.poll() is not None:
                crowd.faults.append("the server ended by itself")
        found = list((folder / "home" / "exports").glob("**/*.safetensors"))
        made = Counter(exports.index(b) if (b := path.read_bytes()) in exports else -1 for path in found)
        if made.pop(-1, 0):
            crowd.faults.append("an export under load differs from every one made alone")
        said = [line for line in (folder / "server.log").read_text().splitlines() if re.search("Traceback|Error", line)]
    print(*(f"{n:6,} {what}" for what, n in sorted(crowd.done.items())), sep="\n")
    print(f"{sum(made.values()):6,} exports on disk, equal to the last byte to those made alone")
    print(f"wait for a page: median {crowd._median():.1f} s, longest {max(crowd.waits):.1f} s")
    print(f"memory by the minute, MB: {' '.join(f'{one:.0f}' for one in by_minute)}")
    print("\n".join([*crowd.faults, *said, f"{len(crowd.faults) + len(said)} faults"]))
    return 1 if crowd.faults or said else 0


if __name__ == "__main__":
    raise SystemExit(main())
