"""The landscape with its two sliders, and what grouped queries do to the ratio."""

import pandas as pd
import streamlit as st

from wisca_app.figures import method, words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Theme
from wisca_app.heading import number, show
from wisca_app.open_model import glance
from wisca_app.parts import KEPT, part, quiet
from wisca_core.landscape import Descent, descend, largest_rate, start


@part
def landscape(theme: Theme) -> None:
    left, right = st.columns([1, 2.4], gap="medium")
    with left:
        ratio = st.slider("Start: |Q| / |K|", 1.0, 16.0, step=0.5, key="toy_ratio", **KEPT)
        rate = st.slider("Learning rate", 0.02, 0.5, step=0.01, key="toy_rate", **KEPT)
        balanced, unbalanced = descend(*start(1.0), rate), descend(*start(ratio), rate)
        number("Steps to the valley, balanced", _steps(balanced), width=240)
        number(f"Steps to the valley, {ratio:g}×", _steps(unbalanced), width=240)
        q, k = ratio**0.5, ratio**-0.5
        quiet(
            "Both starts have the same product, so the same loss. Arrived means (QK − C)² below 0.001. At "
            f"the valley the curvature is 2 (Q² + K²): the balanced start bears a rate of {largest_rate(1, 1):.2f}, "
            "this "
            f"one {largest_rate(q, k):.2f}."
        )
    with right:
        said = finding(balanced, unbalanced)
        table = pd.concat(
            [
                pd.DataFrame({"start": name, "step": range(len(path.q)), "q": path.q, "k": path.k})
                for name, path in (("balanced", balanced), ("unbalanced", unbalanced))
            ]
        )
        one = Chart(
            said,
            "Lines join equal loss, a factor 4 apart. Bold: the valley, where every point is the same model. Each dot "
            "is "
            "one gradient step.",
            table,
            "landscape",
            lambda theme: method.landscape(balanced, unbalanced, theme=theme),
            alt=f"Two gradient paths in the landscape of (QK - C) squared. {said}.",
            of="wisca",
        )
        show(one, theme, "landscape")


def finding(balanced: Descent, unbalanced: Descent) -> str:
    """What the two paths did, whichever was faster."""
    if unbalanced.diverged and not balanced.diverged:
        return "At this rate the unbalanced start flies away"
    if balanced.diverged:
        return (
            "At this rate both starts fly away" if unbalanced.diverged else "At this rate the balanced start flies away"
        )
    if unbalanced.steps is None:
        if balanced.steps is None:
            return "At this rate neither start settles"
        return "At this rate the unbalanced start bounces between the walls"
    if balanced.steps is None:
        return "At this rate only the unbalanced start settles"
    if unbalanced.steps < balanced.steps:
        return "At this rate steepness helps: the unbalanced start is faster"
    if unbalanced.steps > balanced.steps:
        return "At this rate the balanced start is faster"
    return "At this rate both starts are equally fast"


def _steps(path: Descent) -> str:
    return "flies away" if path.diverged else "never" if path.steps is None else words.count(path.steps)


def draw_group_sizes(theme: Theme) -> None:
    opened = glance()
    a = opened.sites.attention if opened is not None else None
    size = a.n_heads / a.n_kv_heads if a is not None and a.n_kv_heads else None
    g = [1, 2, 4, 8, 16, 32]
    one = Chart(
        "What grouped queries do",
        "g query heads share one key head, so Wq has g times the entries and is g times heavier in the L1 sum before "
        "any "
        "training; Adam's rate on it is then √g.",
        pd.DataFrame({"g": g, "ratio": g, "adam_rate": [n**0.5 for n in g]}),
        "grouped-queries",
        lambda theme: method.ratio_by_group_size(size, theme=theme),
        alt="Query over key at initialisation, against the query heads per key head: the ratio is g.",
        of="wisca",
    )
    show(one, theme, "grouped")
