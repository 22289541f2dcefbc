"""Beside the map: the cell that is framed in it, in a sentence, three facts and the sizes of its weights."""

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached, state
from wisca_app.figures import head, words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Theme
from wisca_app.heading import bare
from wisca_app.inspecting import selection
from wisca_app.inspecting.drawn_pair import DrawnPair
from wisca_core.patterns.summary import times
from wisca_core.planning.head import HeadDetail
from wisca_core.planning.rates import rate, span


def draw(shown: DrawnPair, theme: Theme, selected: tuple[int, int]) -> None:
    layer, group = selected
    row = shown.group(layer, group)
    detail = cached.head(shown.model, shown.options, row["name"], shown.inside(group))
    with st.container(gap="xxsmall"):
        title = words.markdown_text(words.title(shown.place(layer, group)))
        st.subheader(f":material/crop_16_9: {title}", anchor=False, help=words.tip("KV group", "pair"))
        selection.boxes(shown)
        st.markdown(sentence(shown, row))
    with st.container(gap="xxsmall"):
        for label, value in facts(shown, row, detail):
            with st.container(horizontal=True, gap="small", wrap=False):
                st.markdown(f":small[:gray[{label}]]", width=96)
                st.markdown(f":small[{value}]")
    key = f"sizes\n{shown.model.key}\n{shown.options!r}\n{row['name']} {shown.inside(group)} {theme.name}"
    one = Chart(
        title,
        "",
        head.histogram_table(detail),
        f"{row['name']}-sizes",
        lambda theme: head.histogram(detail, theme=theme, gains=shown.gains, height=216),
        alt="Histogram of the sizes of the weights of this cell: outline before, filled after.",
    )
    bare(one, theme, "sizes", cached.once(key, lambda: one.draw(theme)))
    _open_head(shown, row)


def _open_head(shown: DrawnPair, row: pd.Series) -> None:
    """The way to what the heads of this cell compute, where it is of an attention layer with heads."""
    site = shown.model.sites[row["name"]]
    if shown.pair not in ("qk", "vo") or shown.unit not in ("KV group", "head") or shown.model.checkpoint.adapter_json:
        return
    if st.button("Open this head", key="open head"):
        state.put("head", int(row["group"]) * shown.group_size(site))
        state.put("expert", -1)
        state.put("heads_block", site.block)
        state.forget("first place")  # the layer is a choice now, so that it stands in the address
        state.go("heads")


def sentence(shown: DrawnPair, row: pd.Series) -> str:
    """ "Query 29.8× heavier than its key."""
    octaves = row["log2_ratio"]
    said = words.side(shown.pair, octaves)
    left, right = (words.ROLES[role] for role in words.PAIR_ROLES[shown.pair])
    if shown.gains:
        left, right = f"{left} gains", f"{right} gains"
    if said == "×":
        return f"{words.title(left)} against {right}: no ratio, a norm is zero or not finite."
    if said == "equal":
        return f"{words.title(left)} and {right} weigh the same."
    heavy, light = (left, right) if octaves > 0 else (right, left)
    whose = "" if shown.pair == "lora" or shown.gains else "its "
    return f"{words.title(heavy)} {times(2 ** abs(octaves))} heavier than {whose}{light}."


def facts(shown: DrawnPair, row: pd.Series, detail: HeadDetail) -> list[tuple[str, str]]:
    """(label, value as Markdown): how much is size, what balancing is under Adam, what is left afterwards."""
    out = []
    size, rest = row["log2_size"], row["log2_ratio"] - row["log2_size"]
    if np.isfinite(rest) and abs(size) > 1e-9:
        one_way = size * row["log2_ratio"] > 0 and rest * row["log2_ratio"] >= 0  # then the sentence has named the side
        say = (lambda octaves: words.ratio(octaves)) if one_way else (lambda octaves: words.side(shown.pair, octaves))
        out.append(("Of that, size", f"{say(size)}; the rest {say(rest)}"))
    moved = bool(shown.after) and any(role.factor != (1.0, 1.0) for role in detail.roles)
    by = ", by layer" if moved and shown.options.granularity == "tensor" and shown.unit != "layer" else ""
    if moved:  # the rates that leave what stands below them
        rates = [span(1 / high, 1 / low) for low, high in (role.factor for role in detail.roles)]
    else:
        rates = [rate(row[name]) for name in ("left_rate", "right_rate") if np.isfinite(row[name])]
    if rates:
        sides = zip(words.PAIR_ROLES[shown.pair], shown.matrices, rates)
        out.append((f"Adam{by}", ", ".join(f"{words.coloured_word(role, name)} {said}" for role, name, said in sides)))
    if shown.after:
        after = words.side(shown.pair, row["log2_after"])
        out.append(
            (f"After{by}", ("level" if after == "equal" else after) if moved else "as it is, with Rescale's options")
        )
    if (share := min(role.looked_at for role in detail.roles)) < 1:
        out.append(("Histogram", f"of {100 * share:.0f} % of the values"))
    return out
