"""All heads as one table, what stays and what moves under a heading each."""

import pandas as pd
import streamlit as st

from wisca_app import cached, clicks
from wisca_app.figures import circuits as figures
from wisca_app.heading import heading
from wisca_app.heads.charts import draw_check
from wisca_app.heads.drawn_heads import DrawnHeads, select_head_from_table
from wisca_core.circuits.columns import BY_NAME

# the rest is in the CSV: what stays and what moves are to be seen at once
_STAY = ("qk_stable_rank", "qk_norm", "ov_stable_rank", "ov_norm", "logit_bound")
_MOVE = ("q_l1", "qk_ratio", "q_rate", "k_rate", "vo_ratio", "v_rate", "o_rate")
_NO, _YES = "moves under a rescale: no", "moves under a rescale: yes"


def draw(shown: DrawnHeads) -> None:
    column, table = shown.column, shown.table
    ordered = table.sort_values(column.name, ascending=column.ink == "low", na_position="last")
    word = "Lowest" if column.ink == "low" else "Highest"
    heading(
        "All heads",
        f"{word} {column.title} first, {len(table):,} heads. {draw_check(shown)}",
        cached.circuits(shown.model).table,
        "heads",
    )
    has_expert = bool((table["expert"] >= 0).any())
    places = {("", "Layer"): ordered["layer"], ("", "Head"): ordered["head"]}
    if has_expert:
        places[("", "Expert")] = ordered["expert"]
    chosen = [(_NO, name) for name in _STAY] + [(_YES, name) for name in _MOVE]
    view = pd.DataFrame(places | {(mark, BY_NAME[name].title): ordered[name] for mark, name in chosen})
    view.columns = pd.MultiIndex.from_tuples(view.columns)
    shown_as = {
        (mark, BY_NAME[name].title): lambda v, name=name: figures.number(BY_NAME[name], v) for mark, name in chosen
    }
    rows = list(zip(ordered["layer"].tolist(), ordered["head"].tolist(), ordered["expert"].tolist()))
    st.dataframe(
        view.style.format(shown_as),
        hide_index=True,
        height=320,
        selection_mode="single-row",
        key=clicks.key("heads table"),
        on_select=lambda: select_head_from_table(rows, "heads table"),
        alt="Every head with the numbers that a rescale leaves and those that it moves",
    )
