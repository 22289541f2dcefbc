"""The map, the panel of the selected head, two columns against each other, and the patterns in words."""

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached, clicks, state
from wisca_app.figures import circuits as figures
from wisca_app.figures import words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Theme
from wisca_app.heading import bare, heading, show
from wisca_app.heads.drawn_heads import NAMES, DrawnHeads, boxes, mark, select_head_from_chart
from wisca_app.inspecting.facts import heads
from wisca_app.parts import pick, quiet
from wisca_core.circuits.columns import BY_NAME, Column
from wisca_core.circuits.findings import headline
from wisca_core.patterns.summary import times


def facts(shown: DrawnHeads) -> str:
    """The small line above the title."""
    model, a = shown.model, shown.model.sites.attention
    dtypes = sorted({t.dtype for t in model.checkpoint.stored or model.checkpoint.tensors if t.dtype in words.DTYPES})
    parts = [words.DTYPES[d] for d in dtypes]
    if a is not None:
        parts += [words.plural(a.n_layers, "layer"), f"{heads(a.n_heads, a.n_kv_heads)} of {a.head_dim} channels"]
    return f"{', '.join(parts)}. {words.plural(len(shown.circuits.table), 'head')}, from the weights alone."


def draw_title(shown: DrawnHeads) -> None:
    st.title(headline(shown.circuits), anchor=False)
    st.markdown("That is what the heads compute: no rescale moves it. What one does move stands beside it, marked.")


def controls(shown: DrawnHeads) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if len(shown.blocks) > 1:
            pick(
                "Where",
                list(shown.blocks),
                "heads_block",
                format_func=lambda block: words.title(shown.blocks[block]) or block,
                label_visibility="collapsed",
                width=220,
            )
        pick(
            "Column",
            NAMES,
            "column",
            format_func=lambda name: BY_NAME[name].title,
            label_visibility="collapsed",
            width=230,
        )
        mark(shown.column)


def chart(one: Chart, theme: Theme, name: str, source: str = "") -> None:
    if source:
        show(one, theme, clicks.key(source), **_selects(source))
    else:
        show(one, theme, name)


def _selects(source: str) -> dict:
    return {"on_select": lambda: select_head_from_chart(source), "selection_mode": "points"}


def map_of(table: pd.DataFrame, column: Column, selected: tuple[int, int, int] | None = None) -> Chart:
    """One number of every head as a map. ``table``: of one block."""
    said = figures.map_title(table, column)
    return Chart(
        said,
        f"{words.title(column.meaning).replace('|', chr(92) + '|')}. Ink: the "
        f"{'low' if column.ink == 'low' else 'high'} end.",
        table[["layer", "head", "kv_head", "expert", column.name]],
        f"heads-{column.name}",
        lambda theme: figures.head_map(table, column, theme=theme, selected=selected),
        alt=f"{column.title} of every head, layers across, heads down. {said}.",
    )


def draw_map(shown: DrawnHeads, theme: Theme) -> None:
    chart(map_of(shown.table, shown.column, shown.selected), theme, "heads map", "heads map")


def draw_panel(shown: DrawnHeads, theme: Theme) -> None:
    row, table = shown.row, shown.table
    layer, head, expert = shown.selected
    title = f"Layer {layer}{f', expert {expert}' if expert >= 0 else ''}, head {head}"
    with st.container(gap="xsmall"):
        st.subheader(f":material/crop_square: {title}", anchor=False)
        boxes(shown)
    st.markdown(_sentence(row))
    names = ["qk_stable_rank", "logit_bound", "ov_stable_rank", "ov_copying"]
    if shown.column.name not in names and shown.column.moves is False:
        names = [shown.column.name, *names[:3]]
    lines = [(BY_NAME[n].title, _with_most(row, n), "stays") for n in names]
    for name, title in (("qk_ratio", "Query / key"), ("vo_ratio", "Value / output")):
        lines.append((title, figures.number(BY_NAME[name], row[name]), "**moves**"))
    if np.isfinite(row["q_rate"]):
        rates = f":blue[Wq] {times(row['q_rate'])}, :orange[Wk] {times(row['k_rate'])}"
        lines.append(("Adam rates", rates, "**moves**"))
    with st.container(gap=None):
        for label, value, moves in lines:
            with st.container(horizontal=True, wrap=False, gap="xsmall"):
                st.markdown(f":small[:gray[{label}]]", width=96)
                st.markdown(f":small[{value}]", width="stretch")
                st.markdown(f":small[:gray[{moves}]]" if moves == "stays" else f":small[{moves}]", width="content")
    if row["note"]:
        quiet(words.markdown_text(row["note"]))
    for pair, name in (("qk", "QK"), ("ov", "OV")):
        spectra = shown.circuits.spectra[pair]
        own = spectra[row.name]  # in the order of the whole table
        if np.isfinite(own).any():
            middle = _median(spectra[table.index.to_numpy()])
            one = Chart(
                title,
                "",
                pd.DataFrame({"singular_value": own}),
                f"L{layer}H{head}-{name}-spectrum",
                lambda theme, own=own, middle=middle, name=name: figures.spectrum(own, middle, pair=name, theme=theme),
                alt=f"Singular values of the {name} circuit of this head; dotted: the median head.",
            )
            bare(one, theme, f"spectrum {pair}")
    quiet("Singular values: dots this head, dotted the median head.")


def _median(spectra: np.ndarray) -> np.ndarray:
    kept = spectra[:, np.isfinite(spectra).any(0)]
    return np.nanmedian(kept, axis=0) if kept.size else np.zeros(0)


def _with_most(row: pd.Series, name: str) -> str:
    """A rank says of how many."""
    text = figures.number(BY_NAME[name], row[name])
    most = row["width"] if name.startswith("qk") else row["value_width"]
    return f"{text} of {most}" if name.endswith("_rank") and text != "none" and most else text


def _sentence(row: pd.Series) -> str:
    of = " of the norm's gains" if row["qk_of"] == "gains" else ""
    rank = row["qk_stable_rank"]
    if not np.isfinite(rank):
        return "Its QK circuit has no number." if row["qk_of"] or row["note"] else "It has no QK circuit."
    share = 100 / rank
    if rank < 1.5:
        return f"Its scores rest on nearly a single direction{of}: {share:.0f} % of the QK circuit's square."
    return f"The first direction{of} holds {share:.0f} % of the QK circuit's square."


def draw_scatter(shown: DrawnHeads, theme: Theme) -> None:
    across, up = BY_NAME[state.get("across")], BY_NAME[state.get("up")]
    marked = {
        (layer, head, expert) for one in shown.found for block, layer, head, expert in one.heads if block == shown.block
    }
    n = len(marked)
    one = Chart(
        f"{up.title} against {across.title}",
        f"One point a head{f'; ink: {n:,} of a pattern' if n else ''}. Square: the one selected.",
        shown.table[["layer", "head", "expert", across.name, up.name]],
        f"heads-{up.name}-against-{across.name}",
        lambda theme: figures.scatter(shown.table, across, up, theme=theme, marked=marked, selected=shown.selected),
        alt=f"{up.title} against {across.title}, one point a head.",
    )
    heading(one.finding, one.how, one.table, one.name, chart=one)
    with st.container(horizontal=True):
        for label, name in (("across", "across"), ("up", "up")):
            pick(
                label,
                NAMES,
                name,
                format_func=lambda one, label=label: f"{label}: {BY_NAME[one].title}",
                label_visibility="collapsed",
                width=200,
            )
    bare(one, theme, clicks.key("heads scatter"), **_selects("heads scatter"))


def draw_patterns(shown: DrawnHeads) -> None:
    st.subheader("Patterns", anchor=False)
    quiet("Each with its number and its mark; none is a fault by itself.")
    for one in shown.found:
        with st.container(gap=None):
            with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
                st.markdown(f"**{one.title}**", help=f"{one.known} {words.markdown_text(one.source)}", width="content")
                st.markdown(one.count, width="content")
            quiet(words.markdown_text(one.sentence))


def draw_check(shown: DrawnHeads) -> str:
    """The line that says what a random rescale did to one of these layers."""
    check = cached.rescale_check(shown.model, shown.block, shown.selected[0])
    if check is None:
        return ""
    return (
        f"Checked here on layer {shown.selected[0]}: a random rescale of {words.plural(check.n_heads, 'head')} leaves "
        "the left columns "
        f"equal to {check.stays:.0e} and moves every number on the right."
    )
