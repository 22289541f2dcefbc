"""The plan as a table of words over sortable numbers."""

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.heading import heading
from wisca_core.architecture.site import SiteKey
from wisca_core.patterns.blocks import titles, unit_of
from wisca_core.planning.rates import MATRICES
from wisca_core.planning.rows import has_square

MOST_STYLED_ROWS = 4000
_CSV = [
    "name",
    "layer",
    "pair",
    "block",
    "group",
    "n_cells",
    "left",
    "right",
    "log2_ratio",
    "full_low",
    "full_high",
    "factor_low",
    "factor_high",
    "right_low",
    "right_high",
    "log2_after",
    "changes",
    "status",
]


def draw(rows: pd.DataFrame) -> None:
    """``rows``: the pairs asked for, columns of ``plan_rows``."""
    left, right = sides(rows)
    single, of = rows["n_cells"].gt(1).any(), "part" if (rows["pair"] == "lora").all() else "KV group or block"
    heading(
        "Plan",
        f"{left} is multiplied by its factor, {right} by the inverse"
        + (" (behind ReLU squared its square). " if has_square(rows) else ". ")
        + (f"Single channels are gathered by {of}, with their smallest and largest factor. " if single else "")
        + "Select rows to leave their pairs out.",
        rows[_CSV],
        "plan",
    )
    shown = _words(rows)
    event = st.dataframe(
        _style(shown, rows) if len(rows) <= MOST_STYLED_ROWS else shown,
        hide_index=True,
        height=min(36 * (len(rows) + 1) + 2, 360),
        on_select="rerun",
        selection_mode="multi-row",
        # a new set of left out pairs is a new table, so that no row stays selected
        key=f"plan_rows {'-'.join(state.get('exclude'))}",
        column_config={"What it changes": st.column_config.TextColumn(width="large")},
        alt="The plan, one row a factor",
    )
    selected = [int(i) for i in event.selection.rows if i < len(rows)]
    names = list(dict.fromkeys(rows["name"].iloc[selected]))
    if names:
        out = list(dict.fromkeys([*state.get("exclude"), *names]))
        st.button(
            f"Leave out {words.plural(len(names), 'pair')}", on_click=state.put, args=("exclude", out), key="leave_out"
        )


def sides(rows: pd.DataFrame) -> tuple[str, str]:
    """What is multiplied on either side: "Wq or Wv" and "Wk or Wo"."""
    of = [MATRICES[pair] for pair in dict.fromkeys(rows["pair"])]
    return " or ".join(left for left, _ in of), " or ".join(right for _, right in of)


def _words(rows: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame({"Layer": rows["layer"].to_numpy()})
    names = {pair: titles(part["block"]) for pair, part in rows.groupby("pair", sort=False)}
    blocks = [words.title(names[pair][block]) for pair, block in zip(rows["pair"], rows["block"])]
    if any(blocks):
        out.insert(0, "Block", blocks)
    units = [unit_of(pair, block) for pair, block in zip(rows["pair"], rows["block"])]
    for unit, column in (("KV group", "Group"), ("expert", "Expert")):
        if any(u == unit and g >= 0 for u, g in zip(units, rows["group"])):
            out[column] = ["" if u != unit else "all" if g < 0 else str(g) for u, g in zip(units, rows["group"])]
    if "lora" in names:
        out["Part"] = [SiteKey.parse(name).part for name in rows["name"]]
    out["Pair"] = [words.PAIR_LABELS[pair] for pair in rows["pair"]]
    out["Heavier side"] = rows["log2_ratio"].to_numpy()
    left, right = sides(rows)
    if rows["n_cells"].gt(1).any():
        out[f"On {left}"] = [words.factors(a, b) for a, b in zip(rows["factor_low"], rows["factor_high"])]
        out[f"On {right}"] = [words.factors(a, b) for a, b in zip(rows["right_low"], rows["right_high"])]
    else:
        out[f"On {left}"] = rows["factor_low"].to_numpy()
        out[f"On {right}"] = rows["right_low"].to_numpy()
    out["After"] = rows["log2_after"].to_numpy()
    # in exact mode a pair can be out of balance by less than a power of two mends
    coarse = (rows["status"] == "balanced already") & rows["log2_ratio"].abs().gt(1e-3)
    reasons = rows["status"].mask(coarse, "no power of two brings it nearer")
    out["What it changes"] = [
        changes if status == "planned" else f"nothing: {reason}"
        for changes, status, reason in zip(rows["changes"], rows["status"], reasons)
    ]
    return out


def _style(shown: pd.DataFrame, rows: pd.DataFrame):
    style = shown.style
    for pair in dict.fromkeys(rows["pair"]):
        lines = np.flatnonzero(rows["pair"].to_numpy() == pair)
        style = style.format(
            lambda value, pair=pair: words.side(pair, value), subset=pd.IndexSlice[lines, ["Heavier side", "After"]]
        )
    factors = [f"On {name}" for name in sides(rows)]
    if not rows["n_cells"].gt(1).any():
        style = style.format(words.factor, subset=factors)
    return style
