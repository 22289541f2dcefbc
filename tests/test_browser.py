"""A person in a real browser: open the app, click a cell, change the options, export, download, and verify what came
down.

Needs Chromium or Chrome. Without one the tests are skipped, unless WISCA_BROWSER=required: then they fail.
"""

import re
import urllib.request
import zipfile
from pathlib import Path

import pages
import pytest
from sight import contrast

from wisca_app.figures.template import DARK, LIGHT
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.verify import BIT_IDENTICAL, verify

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "sample_runs" / "gqa-docs" / "checkpoint-3600"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pages.serving(tmp_path_factory.mktemp("browser-home")) as (address, _):
        yield address, int(address.rpartition(":")[2])


@pytest.fixture(scope="module")
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright):
    browser = playwright.chromium.launch(executable_path=pages.browser_path(), args=pages.FLAGS)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def tab(browser):
    """(page, what its console said) of one tab for all tests: a new one compiles charts and frame anew, twice the work
    of opening a page.
    """
    page = browser.new_page()
    yield page, pages.listened(page)


@pytest.fixture
def page(server, tab):
    """The tab as if it were new: empty, wide, light, and without what a page has stored."""
    page, errors = tab
    page.set_viewport_size({"width": 1280, "height": 1000})
    page.emulate_media(color_scheme="light")
    yield page
    found = [text for text in errors if "404" not in text]
    n_exceptions = page.locator(".stException").count()
    page.context.clear_cookies()
    if page.url.startswith("http"):
        page.evaluate("localStorage.clear(), sessionStorage.clear()")
    page.goto("about:blank")
    errors.clear()
    assert not found and not n_exceptions, found


def test_from_the_first_screen_to_a_verified_download(page, server, tmp_path):
    address, _ = server
    page.goto(address)
    page.get_by_text("Queries weigh 4.3× their keys").first.wait_for()
    page.locator(".js-plotly-plot").first.wait_for()

    # a click on layer 2, KV group 1 of the strip "before" opens that cell
    pages.settled(page)
    strip = page.locator(".js-plotly-plot .nsewdrag").first
    strip.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    box = strip.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 2.5 / 8, box["y"] + box["height"] * 0.75)
    page.get_by_role("heading", name="Layer 2, KV group 1").first.wait_for()
    page.wait_for_url(re.compile("layer=2.*group=1|group=1.*layer=2"))
    page.reload()  # the link alone brings the same view back
    page.get_by_role("heading", name="Layer 2, KV group 1").first.wait_for()

    page.get_by_role("link", name="Rescale").click()
    page.get_by_text("16 of 16 pairs would change").wait_for()
    assert page.get_by_text("every output stays bit-identical").count() == 0
    page.get_by_text("KV group", exact=True).first.click()
    page.wait_for_url(re.compile("granularity=group"))
    page.get_by_text("Exact: powers of two only").click()
    page.get_by_text(re.compile("every output\\s+stays bit-identical")).first.wait_for()

    export = page.get_by_role("button", name="Export", exact=True)
    page.wait_for_function(
        "() => [...document.querySelectorAll('button')].some(b => b.innerText.trim() === 'Export' && !b.disabled)"
    )
    export.click()
    page.get_by_text("Exported", exact=True).wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("link", name=re.compile("Download")).first.click()
    archive = tmp_path / "down.zip"
    waiting.value.save_as(archive)
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(tmp_path / "down")
    (folder,) = (tmp_path / "down").iterdir()
    result = verify(open_checkpoint(SAMPLE), open_checkpoint(folder))
    assert result.verdict == BIT_IDENTICAL, result.reasons
    assert result.n_changed > 0


def test_a_phone_in_the_dark_sees_both_pages_without_sideways_scrolling(page, server):
    address, _ = server
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 844})
    for path, text in (("", "Queries weigh"), ("/rescale", "pairs would change")):
        page.goto(address + path)
        page.get_by_text(re.compile(text)).first.wait_for()
        page.locator(".js-plotly-plot").first.wait_for()
        page.wait_for_timeout(1000)
        assert page.evaluate("document.documentElement.scrollWidth") <= 391
        if not path:  # three quarters of an inch of the map are on the first screen
            assert page.locator(".js-plotly-plot").first.bounding_box()["y"] < 844 - 72


def test_every_page_opens_without_a_fault(page, server, tab):
    """At 1280 px; ``python tests/pages.py`` does all widths and themes."""
    address, _ = server
    found = {where: faults for where, faults in pages.opened(*tab, address, 1280, "light") if faults}
    assert not found and len(pages.paths()) >= 7


def test_the_guided_path_is_walked_stop_by_stop_and_left(page, server):
    address, _ = server
    page.goto(address)
    page.get_by_role("button", name="Guided path").click()
    stops = (
        ("A small model, measured", "Queries weigh 4.3× their keys", "/"),
        ("A head out of balance", "Layer 1, KV group 1", "/"),
        ("Balanced, and proved", "would change, by powers of two", "/rescale"),
        ("What it does to a training", "No useful gain", "/compare"),
        ("Your own model", "Open a folder, a file", "/open"),
    )
    for number, (title, said, where) in enumerate(stops, 1):
        page.get_by_text(f"Guided path, stop {number} of 5").wait_for()
        pages.settled(page)
        page.get_by_text(title).first.wait_for()
        page.get_by_role("heading", name=re.compile(re.escape(said).replace("\\ ", "\\s+"))).first.wait_for()
        page.wait_for_url(re.compile(rf"{where}\?.*tour={number}\b"))
        if number == 3:  # the proof is a click away, and the address alone leads to the stop
            page.get_by_role("link", name="Proof", exact=True).first.click()
            page.wait_for_function("document.getElementById('proof').getBoundingClientRect().top < innerHeight / 2")
            page.reload()
            page.get_by_text("Guided path, stop 3 of 5").wait_for()
            pages.settled(page)
        if number == 4:  # one step back is one stop
            page.go_back()
            page.get_by_text("Guided path, stop 3 of 5").wait_for()
            pages.settled(page)
            assert page.url == f"{address}/rescale?tour=3&exact=yes"
            page.go_forward()
            page.get_by_text("Guided path, stop 4 of 5").wait_for()
            pages.settled(page)
        if number < len(stops):
            page.get_by_role("button", name="Next stop").click()
    page.get_by_role("button", name="Done").click()
    page.get_by_text("Guided path, stop").wait_for(state="detached")
    page.wait_for_url(f"{address}/")
    page.get_by_role("heading", name=re.compile("Queries\\s+weigh")).first.wait_for()


def test_on_a_phone_every_choice_of_the_sidebar_closes_it_and_no_button_stands_over_a_chart(
    server, playwright, browser
):
    address, _ = server
    phone = {name: value for name, value in playwright.devices["Pixel 5"].items() if name != "default_browser_type"}
    with browser.new_context(**phone) as context:
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.goto(address)
        pages.settled(page)
        assert page.locator(".js-plotly-plot").count() and not page.locator(".modebar-btn").count()
        for link, heading in (("Heads", "Layer 0 stands apart"), ("Open a model", "Open a folder")):
            page.get_by_test_id("stExpandSidebarButton").click()
            page.get_by_role("link", name=link).click()
            page.get_by_role("heading", name=re.compile(heading.replace(" ", "\\s+"))).first.wait_for()
            page.get_by_test_id("stExpandSidebarButton").wait_for()  # there while the sidebar is closed


# colour of the outline round what has the keyboard's focus, or round the field or label that stands for it
FOCUS = """() => { for (let e = document.activeElement, i = 0; e && i < 4; e = e.parentElement, i++) {
    const s = getComputedStyle(e), r = e.getBoundingClientRect();
    if (s.outlineStyle == 'solid' && parseFloat(s.outlineWidth) >= 2 && r.width > 8 && r.height > 8) return s.outlineColor;
} return document.activeElement.outerHTML.slice(0, 200) }"""  # noqa: E501


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_an_outline_is_round_whatever_has_the_keyboards_focus(page, server, theme):
    address, _ = server
    page.emulate_media(color_scheme=theme.name)
    rings = set()
    for path, turns in (("/runs", 30), ("/compare?comparison=new", 34)):  # links, buttons, fields, sliders, switches
        page.goto(address + path)
        pages.settled(page)
        for _ in range(turns):
            page.keyboard.press("Tab")
            rings.add(page.evaluate(FOCUS))
    (ring,) = rings
    colour = "#" + "".join(f"{int(number):02X}" for number in re.findall(r"\d+", ring))
    assert all(contrast(colour, behind) >= 4.5 for behind in (theme.page, theme.sidebar))


def test_back_leads_from_a_page_to_the_one_before_with_its_choices_in_one_step(page, server):
    address, _ = server

    def goes(act, where, heading):
        act()
        page.wait_for_url(address + where)
        page.get_by_role("heading", name=re.compile(heading.replace(" ", "\\s+"))).first.wait_for()
        pages.settled(page)

    page.goto(f"{address}/?pair=qk")
    pages.settled(page)
    goes(page.get_by_role("link", name="Method").click, "/method?pair=qk", "Same function, different slope")
    goes(page.get_by_role("link", name="Inspect").click, "/?pair=qk", "Queries weigh")
    goes(page.get_by_role("button", name="See it balanced").click, "/rescale?pair=qk", "pairs would change")
    goes(page.go_back, "/?pair=qk", "Queries weigh")
    goes(page.go_back, "/method?pair=qk", "Same function, different slope")
    goes(page.go_back, "/?pair=qk", "Queries weigh")


# of the first tile of the picture: its architecture, and where it stands in its chart
TILE = """g => { const t = g.data.find(t => t.customdata && t.name != 'chosen'), f = g._fullLayout, first = v => (v._inputArray ?? v)[0];
return [first(t.customdata), f.xaxis._offset + f.xaxis.d2p(first(t.x)), f.yaxis._offset + f.yaxis.d2p(first(t.y))] }"""  # noqa: E501


def test_a_click_on_a_tile_of_the_picture_looks_its_architecture_up(page, server):
    address, _ = server
    page.goto(f"{address}/architectures")
    pages.settled(page)
    chart = page.locator(".js-plotly-plot").first
    chart.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    name, x, y = chart.evaluate(TILE)
    assert name != "llama"
    box = chart.bounding_box()
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.wait_for_timeout(200)
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.wait_for_url(re.compile(f"architecture={name}\\b"))
    page.get_by_role("heading", name=re.compile(name)).first.wait_for()


def test_a_path_that_is_no_model_is_a_message_and_the_app_lives(page, server):
    address, _ = server
    page.goto(f"{address}/?model=/no/such/model")
    page.get_by_text("/no/such/model").first.wait_for()
    page.goto(address)
    page.get_by_text("Queries weigh").first.wait_for()


def test_the_server_answers_on_the_loopback_address_only(server):
    _, port = server
    listening = Path("/proc/net/tcp")
    if not listening.exists():
        pytest.skip("reads Linux' table of sockets")
    hexadecimal = f":{port:04X}"
    tables = [listening, Path("/proc/net/tcp6")]
    local = [
        line.split()[1] for table in tables for line in table.read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    ours = [address for address in local if address.endswith(hexadecimal)]
    assert ours and all(address.startswith("0100007F:") for address in ours), ours


def test_another_host_name_is_refused(server):
    address, _ = server
    request = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 400
