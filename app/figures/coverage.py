"""Every architecture as a tile, in blocks: exact, in part, refused, not reached, not proved yet."""

import math

import pandas as pd

from wisca_app.figures import words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Drawing, Theme, blend, drawing
from wisca_core.census.entry import ABSENT, NOT_REACHED, OPEN, PARTLY, PROVED, REFUSED
from wisca_core.words import join_names

ACROSS = 30  # tiles a row
TILE, LABEL, MARGIN = 17, 26, 8  # px: height of a row, of a block's name
# Filled: proved. The tile of what is not is hollow, so that the blocks can be told apart without their names.
BLOCKS = {
    PROVED: "exact",
    PARTLY: "in part",
    REFUSED: "refused, with the reason",
    ABSENT: "no attention pair found",
    NOT_REACHED: "not reached: no proof could be made",
    OPEN: "not proved yet with these versions",
}


def chart(table: pd.DataFrame, chosen: str) -> Chart:
    """``table``: the census's, columns of wisca_core.census.table. ``chosen``: the architecture that is framed, "" for
    none.
    """
    shown = _positions(table)
    said = finding(table)
    return Chart(
        said,
        "A tile is an architecture, neighbours have the same rule. Filled: QK and VO proved; half: in part; hollow: "
        "not. "
        "Click one to look it up.",
        table,
        "architectures",
        lambda theme: _draw(shown, chosen, theme),
        alt=f"Every architecture by its verdict. {said}.",
        of="wisca",
    )


def finding(table: pd.DataFrame) -> str:
    """ "Attention is exact on 150 of 189 architectures, in part on 20"."""
    n, counts = len(table), table["attention"].value_counts()
    if counts.get(OPEN, 0) == n - counts.get(REFUSED, 0):
        return (
            f"A rule for {words.count(int((table['row'] != '').sum()))} of {words.count(n)}; none was proved here yet"
        )
    parts = [f"exact on {words.count(counts.get(PROVED, 0))} of {words.count(n)}"]
    names = {PARTLY: "in part on", REFUSED: "refused on", NOT_REACHED: "not reached on", OPEN: "not proved yet on"}
    parts += [f"{name} {words.count(counts[verdict])}" for verdict, name in names.items() if counts.get(verdict, 0)]
    return f"Attention is {join_names(parts)}"


def _positions(table: pd.DataFrame) -> pd.DataFrame:
    """In blocks, neighbours by their rule; ``x``, ``y`` in px from the top, ``block``."""
    parts, top = [], 0.0
    for verdict in BLOCKS:
        part = table[table["attention"] == verdict].sort_values(["rule", "architecture"], kind="stable")
        if part.empty:
            continue
        number = pd.Series(range(len(part)), index=part.index)
        row = number // ACROSS
        parts.append(part.assign(x=number % ACROSS, y=top + LABEL + row * TILE + TILE / 2, block=verdict, top=top))
        top += LABEL + math.ceil(len(part) / ACROSS) * TILE + MARGIN
    return pd.concat(parts) if parts else table.assign(x=0, y=0.0, block="", top=0.0)


def _draw(shown: pd.DataFrame, chosen: str, theme: Theme) -> Drawing:
    height = float(shown["y"].max()) + TILE / 2 + MARGIN if len(shown) else LABEL
    fig = drawing(theme, int(height))
    looks = {
        PROVED: dict(symbol="square", color=theme.ink),
        PARTLY: dict(symbol="square", color=blend(theme.page, theme.ink, 0.4)),
    }
    for verdict, part in shown.groupby("block", sort=False):
        look = looks.get(verdict, dict(symbol="square-open", color=theme.quiet))
        fig.add_scatter(
            x=part["x"],
            y=part["y"],
            text=[_hover(row) for row in part.itertuples()],
            customdata=part["architecture"].tolist(),
            mode="markers",
            marker=dict(size=9, line=dict(width=1.2), **look),
            unselected=dict(marker=dict(opacity=1)),
            hovertemplate="%{text}<extra></extra>",
            name=str(verdict),
        )
        fig.add_annotation(
            text=f"<b>{len(part):,}</b> {BLOCKS[verdict]}",
            xref="paper",
            x=0,
            xanchor="left",
            y=float(part["top"].iloc[0]) + LABEL,
            yanchor="bottom",
            yshift=2,
        )
    for row in shown[shown["architecture"] == chosen].itertuples():
        fig.add_scatter(
            x=[row.x],
            y=[row.y],
            mode="markers",
            marker=dict(symbol="square-open", size=15, color=theme.ink, line=dict(width=2)),
            hoverinfo="skip",
            name="chosen",
        )
    fig.update_layout(
        margin=dict(l=0, r=0, t=0, b=0),
        xaxis=dict(range=[-0.6, ACROSS - 0.4], visible=False),
        yaxis=dict(range=[height, 0], visible=False),
    )
    return fig


def _hover(row) -> str:
    """The architecture with its pairs, its rule and why not."""
    lines = [f"<b>{words.plain_text(row.architecture)}</b>"]
    if row.attention not in (OPEN, NOT_REACHED):
        lines.append(f"QK {row.qk}, VO {row.vo}, MLP {row.mlp}")
    lines += [words.plain_text(text) for text in (row.rule, row.reasons[:90]) if text]
    return "<br>".join(lines)
