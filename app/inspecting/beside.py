"""A second model beside the open one: before and after fine-tuning, two runs, two arms of a comparison."""

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached, state
from wisca_app.figures import findings, heatmap, words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Theme
from wisca_app.heading import show
from wisca_app.inspecting.drawn_pair import DrawnPair
from wisca_app.messages import errors_as_messages, plain
from wisca_app.open_model import ask_for_another, ask_to_download, is_here, normal, title
from wisca_app.parts import quiet
from wisca_core.patterns.blocks import block_of
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options


def control() -> None:
    """Where the other model is named."""
    with st.popover("Another model beside it", type="tertiary", key="beside_choose"):
        ask_for_another("beside", "Path on this machine, or hub:owner/name", "Show it beside")


def draw(shown: DrawnPair, theme: Theme) -> None:
    """Both maps and their difference, where a second model is chosen."""
    other = normal(state.get("beside"))
    if other:
        with errors_as_messages("The model beside it cannot be shown"):
            _draw(shown, other, theme)


def _draw(shown: DrawnPair, other: str, theme: Theme) -> None:
    if not is_here(other):
        ask_to_download(other, "beside")
        return
    opened = cached.with_pairs(cached.model(other), [shown.pair])
    if opened.refusal:
        plain(opened.refusal)
        return
    if cached.needs_job(opened):
        plain(f"{title(other)} has not been measured yet: open it once, then it can stand beside this one.")
        return
    theirs = cached.once(
        f"beside\n{opened.key}\n{shown.norm}",
        lambda: decide(cached.patterns(opened), Options(pairs=(shown.pair,))).groups(shown.norm),
    )
    theirs = theirs[(theirs["pair"] == shown.pair) & (theirs["block"] == shown.block)]
    if shown.lanes:
        parts = {site.name: site.key.part for site in opened.sites.sites if block_of(site.key) == shown.block}
        number = {part: i for i, part in enumerate(shown.lanes)}
        theirs = theirs.assign(group=theirs["name"].map(parts).map(number)).dropna(subset="group")
        theirs = theirs.astype({"group": int})
    if theirs.empty:
        plain(
            f"{title(other)} has no {words.PAIR_LABELS[shown.pair]} pair"
            + (f" at this place ({shown.title})." if shown.title else ".")
        )
        return
    places = ["layer", "group"]
    both = pd.merge(
        shown.groups[[*places, "log2_ratio"]],
        theirs[[*places, "log2_ratio"]].rename(columns={"log2_ratio": "log2_beside"}),
        on=places,
        how="outer",
    ).sort_values(places)
    both = both.replace([np.inf, -np.inf], np.nan)
    common = both.assign(change=both["log2_ratio"] - both["log2_beside"]).dropna(subset="change")
    names = (title(shown.model.checkpoint.source), title(other))
    names = names if names[0] != names[1] else (f"{names[0]} (open)", f"{names[1]} (beside)")
    said = findings.beside_title(common["change"].to_numpy())
    left, right = words.PAIR_ROLES[shown.pair]
    st.space("small")
    n_layers = int(max(both["layer"].max() + 1, shown.n_layers))
    strips = [
        (names[0], shown.groups, shown.groups["log2_ratio"].to_numpy(dtype=float)),
        (names[1], theirs, theirs["log2_ratio"].to_numpy(dtype=float)),
    ]
    if len(common):
        strips.append(("Change", common, common["change"].to_numpy(dtype=float)))
    one = Chart(
        said,
        f"The open model, the one beside it, and the change of the ratio from that one to this one: towards "
        f"{words.coloured_word(left)} or {words.coloured_word(right)}.",
        both.assign(change=both["log2_ratio"] - both["log2_beside"]),
        f"{shown.pair}-beside",
        lambda theme: heatmap.beside_maps(
            strips, pair=shown.pair, n_layers=n_layers, theme=theme, unit_name=shown.unit, lanes=shown.lanes
        ),
        alt=f"Maps of two models and their difference. {said}.",
    )
    show(one, theme, "beside chart")
    a, b = shown.model.sites.attention, opened.sites.attention
    # an adapter alone says nothing of heads
    if a and b and (a.n_layers, a.n_heads, a.n_kv_heads) != (b.n_layers, b.n_heads, b.n_kv_heads):
        quiet(
            f"They are of different shapes: {words.plural(a.n_layers, 'layer')} and {words.count(b.n_layers)}, "
            f"{words.plural(a.n_heads, 'query head')} on {words.count(a.n_kv_heads)} and {words.count(b.n_heads)} on "
            f"{words.count(b.n_kv_heads)}; "
            "layers of one number need not correspond."
        )
