"""Reports and single charts as files: whole without a network, in both themes, and harmless whatever is written in
them.
"""

import json
import re
from pathlib import Path

import numpy as np
import pages
import pandas as pd
import pytest
from dashboard_page import page, texts
from sight import contrast

from wisca_app.figures.chart import Chart
from wisca_app.figures.runs import Curve, curves
from wisca_app.figures.template import DARK, LIGHT
from wisca_app.figures.words import markdown_text
from wisca_app.report import comparison as comparisons
from wisca_app.report import document
from wisca_app.report.document import BEGINS, figure_document, inline
from wisca_app.report.runs import document_of
from wisca_core.cli import main
from wisca_core.comparison import folder

SAMPLES = Path(__file__).parents[1] / "sample_runs"
MODEL = SAMPLES / "gqa-docs" / "checkpoint-3600"
HOSTILE = "<script>alert(1)</script> **b** [x](http://evil) </script><!-- \"'& \\ :blue[z]"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of the sample with a comparison in it."""
    out = tmp_path_factory.mktemp("report") / "r.html"
    extra = ["--comparison", str(SAMPLES / "compare-w128-rates")]
    assert main(["report", str(MODEL), "--out", str(out), *extra]) == 0
    return out


def chart(name: str = "loss") -> Chart:
    table = pd.DataFrame({name: [3.0, 2.0, 1.5]})
    line = Curve(name, np.arange(3.0), table[name].to_numpy())
    return Chart(
        markdown_text(name),
        "how",
        table,
        "curve",
        lambda theme: curves([line], x_title="step", y_title=name, theme=theme),
    )


def figures_of(html: str) -> list[dict]:
    return json.loads(re.search(r'id="figures">(.*?)</script>', html, re.S)[1])


def test_the_markdown_of_captions_is_read_and_foreign_names_are_not():
    assert inline(":blue[**Wq**] at 2×, *c*W `x`") == (
        '<span class="blue"><b>Wq</b></span> at 2×, <i>c</i>W <code>x</code>'
    )
    assert inline(":small[:gray[a]]") == '<span class="small"><span class="gray">a</span></span>'
    said = inline(f"**{markdown_text(HOSTILE)}**")
    assert "<script" not in said and said.count("<b>") == 1 and "<a" not in said and "class=" not in said
    assert "[x](http://evil)" in said and "&lt;script&gt;" in said and "**b**" in said


def test_no_name_in_it_becomes_an_element():
    charts = [chart(HOSTILE)]
    tables = [(HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE]}))]
    html = document_of(HOSTILE, HOSTILE, [HOSTILE], charts, tables, [HOSTILE]).decode()
    assert html.count("</script>") == 3  # figures, plotly, the program
    assert "<script>alert" not in html and "http://evil" not in re.sub(r"\[x\]\(http://evil\)", "", html)
    assert "default-src 'none'" in html and "https://" not in html.split("<body>")[0]


def test_a_table_keeps_whole_numbers_whole_and_cuts_only_very_long_text():
    frame = pd.DataFrame([[1.0, 0.5, "x" * 500], [None, 2.0, "short"]], columns=["Step", "Step", "Setting"])
    html = document._rows(frame)
    assert '<td class="n">1</td><td class="n">0.5000</td>' in html and '<td class="n"></td>' in html
    assert "x" * 239 + "…" in html and "x" * 240 not in html


def test_a_figure_holds_both_themes_once():
    html = figure_document(chart(), "model").decode()
    (figure,) = figures_of(html)
    assert figure["name"] == "curve" and figure["subject"] == "model" and figure["title"] == "loss"
    assert figure["layout"]["template"]["layout"]["font"]["color"] == LIGHT.ink
    patched = {"data": figure["data"], "layout": figure["layout"]}
    for path, value in figure["dark"]:
        inside = patched
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value
    text = json.dumps(patched)
    assert DARK.ink in text and LIGHT.ink not in text and LIGHT.text not in text
    assert len(html) < 2_600_000 and html.count("<h1>loss</h1>") == 1 and "<h3>" not in html.split("<body>")[1]


def test_the_report_of_a_model_says_what_is_known_of_it(written):
    html = written.read_text()
    assert html.startswith(BEGINS) and written.stat().st_size < 5_000_000
    body = html.split("<body>")[1].split('id="figures"')[0]
    titles = re.findall("<h2>(.*?)</h2>", body)
    assert titles == [
        "Where the weight lies",
        "What the heads compute",
        "What balancing would do",
        "Proof",
        "The same as learning rates",
        "What it does to a training",
        "How this was made",
    ]
    assert "Queries weigh 4.3× their keys, outputs 4.1× their values" in body
    assert '<span class="blue"><b>Wq</b></span> at 2.1×' in body and "16 of 16 pairs would change" in body
    assert "decoder.7.self.vo" in body and "random biases and gains" in body
    assert "SGD, with or without momentum" in body and "No answer yet" in body
    assert len(figures_of(html)) == body.count('class="chart"') > 10
    for names in re.findall("<thead><tr>(.*?)</tr>", body):
        assert len(set(found := re.findall("<th [^>]*>(.*?)</th>", names))) == len(found)


def test_an_evaluation_stands_in_the_report_with_its_figures(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, again and again. " * 12)
    kept, out = tmp_path / "kept", tmp_path / "r.html"
    assert main(["evaluate", str(MODEL), "--text", str(text), "--limit", "2", "--out", str(kept)]) == 0
    assert main(["report", str(MODEL), "--out", str(out), "--no-heads", "--evaluation", str(kept)]) == 0
    (one,) = json.loads((kept / "result.json").read_text())["perplexity"]
    body = out.read_text().split("<body>")[1].split('id="figures"')[0]
    section = body.split("<h2>What it scores</h2>")[1].split("<h2>")[0]
    assert f"{one['perplexity']:.2f}" in section and "2" in section and "perplexity" in section
    # what is no evaluation is refused by name, and the report that is there stays
    before = out.read_bytes()
    capsys.readouterr()
    assert main(["report", str(MODEL), "--out", str(out), "--evaluation", str(SAMPLES / "compare-gqa64")]) == 2
    assert "result.json" in capsys.readouterr().err and out.read_bytes() == before


def test_every_word_in_its_charts_can_be_read_in_both_themes(written):
    for figure in figures_of(written.read_text()):
        light = {"data": figure["data"], "layout": figure["layout"]}
        for theme, colours in (
            (LIGHT, _font_colours(light)),
            (DARK, {v for p, v in figure["dark"] if "font" in str(p[-2:])}),
        ):
            for colour in colours:
                assert contrast(colour, theme.page) >= 4.5, (figure["title"], theme.name, colour)


def _font_colours(value, inside=False) -> set[str]:
    """Every single colour of a font; those of a map's cells are chosen by their cell."""
    if isinstance(value, dict):
        return {
            one
            for name, inner in value.items()
            for one in (
                {inner}
                if inside and name == "color" and isinstance(inner, str)
                else _font_colours(inner, name.endswith("font"))
            )
        }
    return {one for inner in value for one in _font_colours(inner)} if isinstance(value, list) else set()


def test_an_existing_file_is_replaced_only_where_it_is_a_report(written, tmp_path, capsys):
    mine = tmp_path / "notes.html"
    mine.write_text("<html>mine</html>")
    assert main(["report", str(MODEL), "--out", str(mine)]) == 2
    assert mine.read_text() == "<html>mine</html>" and "left alone" in capsys.readouterr().err
    again = tmp_path / "again.html"
    again.write_bytes(written.read_bytes()[:100])
    assert main(["report", str(SAMPLES / "compare-default"), "--out", str(again)]) == 0
    assert "−0.056 nats per byte (95 % −0.108 to −0.005)" in again.read_text()


def test_a_comparison_by_itself_has_its_arms_and_its_settings():
    html = comparisons.document_of(folder.read(SAMPLES / "compare-w128-rates")).decode()
    body = html.split("<body>")[1].split('id="figures"')[0]
    assert re.findall("<h2>(.*?)</h2>", body) == ["Differences", "Arms", "How it was trained"]
    assert "optimiser.learning_rates" in body and "QK only" in body


def test_it_opens_offline_in_a_real_browser(written, tmp_path):
    from playwright.sync_api import sync_playwright

    path, said, asked = pages.browser_path(), [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=pages.FLAGS)
        for scheme, width in (("light", 1280), ("dark", 390)):
            context = browser.new_context(
                viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True, accept_downloads=True
            )
            page = context.new_page()
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("console", lambda message: said.append(message.text))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(written.as_uri())
            page.wait_for_function(f"document.body.dataset.drawn === '{scheme}'")
            assert page.locator(".js-plotly-plot .main-svg").count() >= page.locator(".chart").count()
            assert page.evaluate("document.documentElement.scrollWidth") <= width + 1
            theme = {"light": LIGHT, "dark": DARK}[scheme]
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert ground == "rgb({}, {}, {})".format(*(int(theme.page[i : i + 2], 16) for i in (1, 3, 5)))
            if scheme == "light":
                page.locator(".js-plotly-plot").first.hover()
                with page.expect_download() as waiting:
                    page.locator(".js-plotly-plot").first.get_by_label("Save as SVG").click()
                saved = tmp_path / waiting.value.suggested_filename
                waiting.value.save_as(saved)
                text = saved.read_text()
                assert saved.name == "qk-ratios-decoder.self.svg" and "gqa-docs/checkpoint-3600" in text
                assert "apart from size" in text and "@font-face" in text
            context.close()
        browser.close()
    assert not said and not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def test_pages_offer_the_report_and_every_chart_to_take_away():
    at = page()
    labels = [button.label for button in at.get("download_button")]
    assert "Report" in labels and labels.count("HTML") >= 5 and labels.count("CSV") >= labels.count("HTML")
    config = json.loads(at.main.get("plotly_chart")[0].proto.config)
    assert config["toImageButtonOptions"]["filename"] == "gqa-docs-checkpoint-3600-vo-ratios"
    compare = page("compare", comparison="sample-compare-w128-rates")
    assert "Report as HTML" in [button.label for button in compare.get("download_button")]
    config = json.loads(compare.main.get("plotly_chart")[0].proto.config)
    assert config["toImageButtonOptions"]["filename"] == "compare-w128-rates-differences"
    assert "No answer yet" in texts(compare)
