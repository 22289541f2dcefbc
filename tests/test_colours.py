"""Our own colours: words can be read (AA) in both themes, and roles told apart with any kind of sight."""

import tomllib
from itertools import combinations
from pathlib import Path

import pytest
from sight import SIGHTS, contrast, distance

from wisca_app.figures.runs import PALETTE
from wisca_app.figures.template import DARK, LIGHT, legible
from wisca_app.figures.words import MARKDOWN_COLOURS

CONFIG = Path(__file__).parents[1] / "app" / ".streamlit" / "config.toml"
AA_TEXT, AA_GRAPHICS = 4.5, 3.0
THEMES = pytest.mark.parametrize("theme", (LIGHT, DARK), ids=("light", "dark"))


def test_contrast_and_sight_are_computed_as_their_sources_have_them():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21) and contrast("#777777", "#FFFFFF") == pytest.approx(
        4.48, abs=0.01
    )
    red, green = "#B03A2E", "#4E6B1F"
    assert distance(red, green, "deutan") < 0.6 * distance(red, green)


@THEMES
def test_words_of_the_charts_have_the_contrast_of_text(theme):
    for ground in (theme.page, theme.sidebar):
        for colour in (theme.ink, theme.text, *theme.word.values()):
            assert contrast(colour, ground) >= AA_TEXT, (colour, ground)
    assert contrast(theme.text, theme.middle) >= AA_TEXT  # on the bands
    assert legible(theme.quiet, theme) == theme.text and legible(theme.role["k"], theme) == theme.word["k"]


@THEMES
def test_marks_of_the_charts_have_the_contrast_of_graphics(theme):
    for colour in (theme.quiet, *theme.role.values(), *PALETTE[theme.name]):
        assert contrast(colour, theme.page) >= AA_GRAPHICS, colour


@THEMES
def test_words_of_the_pages_have_the_contrast_of_text_and_are_those_of_the_charts(theme):
    colours = tomllib.loads(CONFIG.read_text())["theme"][theme.name]
    assert (colours["backgroundColor"], colours["textColor"]) == (theme.page, theme.ink)
    for ground in (colours["backgroundColor"], colours["secondaryBackgroundColor"]):
        for name in ("textColor", "linkColor", "codeTextColor", "grayTextColor"):
            assert contrast(colours[name], ground) >= AA_TEXT, name
        for role, name in MARKDOWN_COLOURS.items():
            assert colours[f"{name}TextColor"] == theme.word[role]
            assert contrast(theme.word[role], ground) >= AA_TEXT, role
    assert contrast(colours["primaryColor"], theme.page) >= AA_GRAPHICS  # the frame of what is focused or chosen


@THEMES
@pytest.mark.parametrize("sight", SIGHTS)
def test_roles_stay_apart_with_any_sight(theme, sight):
    for a, b in combinations("qkvo", 2):
        assert distance(theme.role[a], theme.role[b], sight) > 0.085, (a, b)
    for left, right in (("q", "k"), ("v", "o"), ("up", "down"), ("a", "b")):
        assert distance(theme.end[left], theme.end[right], sight) > 0.09  # the two ends of a scale
        for role in (left, right):
            assert distance(theme.role[role], theme.middle, sight) > 0.15  # an imbalance is no balance


@THEMES
@pytest.mark.parametrize("sight", SIGHTS)
def test_runs_stay_apart_with_any_sight(theme, sight):
    for a, b in combinations((theme.quiet, *PALETTE[theme.name]), 2):
        assert distance(a, b, sight) > 0.09, (a, b)
