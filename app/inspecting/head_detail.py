"""The head panel: one KV group of one layer, its weights read again."""

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached
from wisca_app.figures import findings, head, words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Theme
from wisca_app.heading import show
from wisca_app.inspecting.drawn_pair import DrawnPair
from wisca_app.parts import quiet
from wisca_core.planning.head import HeadDetail
from wisca_core.words import times


def draw(shown: DrawnPair, theme: Theme, selected: tuple[int, int]) -> None:
    layer, group = selected
    title = f", {words.markdown_text(shown.title)}" if shown.title and shown.unit != "expert" else ""
    st.header("L" + shown.place(layer, group)[1:] + title, anchor=False)
    row = shown.group(layer, group)
    detail = cached.head(shown.model, shown.options, row["name"], shown.inside(group))
    st.markdown(sentence(shown, row, detail))
    for column, draw_one in zip(st.columns(2, gap="medium"), (_channels, _spectrum)):
        with column:
            draw_one(detail, theme)
    _matrices(shown, layer, group)


def sentence(shown: DrawnPair, row: pd.Series, detail: HeadDetail) -> str:
    """ "Query heads 12 to 17 are 29.8× heavier than key head 2. Factor 2⁻² on Wq and 2² on Wk leaves query 1.86×."""
    names = [_who(shown, role, row) for role in words.PAIR_ROLES[shown.pair]]
    octaves, after = row["log2_ratio"], row["log2_after"]
    said = words.side(shown.pair, octaves)
    if said == "×":
        first = f"{names[0][0]} against {_lower(names[1][0])}: no ratio, a norm is zero or not finite."
    elif said == "equal":
        first = f"{names[0][0]} and {_lower(names[1][0])} weigh the same."
    else:
        heavy, light = names if octaves > 0 else names[::-1]
        first = f"{heavy[0]} {heavy[1]} {times(2 ** abs(octaves))} heavier than {_lower(light[0])}."
    changes = [(on, role.factor) for on, role in zip(shown.matrices, detail.roles)]
    if not shown.after:
        return first
    if all(factor == (1.0, 1.0) for _, factor in changes):
        return f"{first} With the options of Rescale it stays as it is."
    on = " and ".join(f"{words.factors(*factor)} on {name}" for name, factor in changes)
    left = words.side(shown.pair, after)
    return f"{first} Factor {on} {'makes it level' if left == 'equal' else f'leaves {left}'}."


def _lower(text: str) -> str:
    """Inside a sentence; A and B keep their capital."""
    return text if text[1:2] == " " else text[:1].lower() + text[1:]


def _who(shown: DrawnPair, role: str, row: pd.Series) -> tuple[str, str]:
    """Words for one side of this group, and its verb."""
    group, site = int(row["group"]), shown.model.sites[row["name"]]
    if shown.lanes:
        return f"{words.ROLES[role]} of {shown.lanes[group]}", "is"
    if shown.pair == "mlp":
        return f"{words.ROLES[role].capitalize()} projection" + (
            f" of expert {group}" if shown.unit == "expert" else ""
        ), "is"
    if shown.gains:
        return f"{words.ROLES[role].capitalize()} gains" + (" of all heads" if shown.unit == "layer" else ""), "are"
    size = shown.group_size(site)
    heads = words.ranges(range(group * size, (group + 1) * size))
    several = size > 1
    if role == "q":
        return (f"Query heads {heads}", "are") if several else (f"Query head {heads}", "is")
    if role == "o":
        return f"Output columns of {'heads' if several else 'head'} {heads}", "are"
    return f"{words.ROLES[role].capitalize()} head {group}", "is"


def _channels(detail: HeadDetail, theme: Theme) -> None:
    kind = {"a": "Rank channels", "up": "Channels of the block"}.get(detail.roles[0].role, "Channels of the head")
    finding = findings.channel_title(detail.roles[0].channel_l1, detail.turns, kind)
    rotary = detail.turns is not None
    fast = "Fast pairs (position) left, slow ones (content) right. " if rotary else "In the order of the matrix. "
    if detail.roles[0].role == "up":  # their order means nothing, and there may be tens of thousands
        fast = f"All {words.count(len(detail.roles[0].channel_l1))}, the heaviest first, each side by itself. "
    one = Chart(
        finding,
        f"{fast}Dotted before, solid after.",
        head.channel_table(detail),
        "channels",
        lambda theme: head.channels(detail, theme=theme),
        alt=f"Norm of the channels along the head. {finding}.",
        tip=words.tip("channel"),
    )
    show(one, theme, "channels")
    if rotary and not np.isfinite(detail.turns).all():
        still = words.plural(int((~np.isfinite(detail.turns)).sum()), "channel")
        quiet(f"{still} without rotation: in the CSV only.")


def _spectrum(detail: HeadDetail, theme: Theme) -> None:
    finding = findings.spectrum_title(detail.spectrum)
    if not detail.spectrum:
        st.subheader(finding, anchor=False)
        quiet(words.markdown_text(detail.spectrum_note))
        return
    left, right = (words.coloured_word(role.role) for role in detail.roles)
    one = Chart(
        finding,
        f"{left} and {right}: dotted before, solid after; their product is the third curve.",
        head.spectrum_table(detail),
        "singular values",
        lambda theme: head.spectrum(detail, theme=theme),
        alt=f"Singular values of both matrices and their product. {finding}.",
    )
    show(one, theme, "spectrum")
    quiet(words.markdown_text(detail.spectrum_note))


def _matrices(shown: DrawnPair, layer: int, group: int) -> None:
    """One line a matrix of the layer, of both attention pairs; an expert's two by themselves."""
    lines = []
    near = shown.beside(shown.everything)
    of_layer = near[(near["layer"] == layer) & ((near["group"] == group) | (shown.unit != "expert"))]
    for name in dict.fromkeys(of_layer["name"]):
        one = min(group, shown.model.sites[name].n_groups - 1)
        gains = shown.model.sites[name].live == "gains"
        columns = {leg.tensor for leg in shown.model.sites[name].legs if leg.axis == 1}
        for role in cached.head(shown.model, shown.options, name, one).roles:
            before, after = getattr(role, shown.norm)
            label = words.NORM_LABELS[shown.norm]
            lines.append(
                {
                    "Matrix": f"{words.ROLES[role.role]} gains" if gains else words.MATRICES[role.role],
                    "Shape": " × ".join(map(str, role.shape[:: -1 if role.tensor in columns else 1])),
                    f"{label} before": words.digits(before, 5),
                    f"{label} after": words.digits(after, 5),
                    "Mean |w| before": words.digits(role.mean[0]),
                    "Zeros": words.count(role.n_zero),
                    "Not finite": words.count(role.n_nonfinite),
                    "Factor": words.factors(*role.factor),
                    "Tensor": role.tensor,
                }
            )
    st.dataframe(
        pd.DataFrame(lines), hide_index=True, key="matrices", alt="The matrices of this group, their norms and factors"
    )
