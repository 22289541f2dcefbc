"""All of them: counts, the table, and the reasons of what is refused."""

import pandas as pd
import streamlit as st

from wisca_app import state
from wisca_app.cached import Census
from wisca_app.figures import coverage as pictured
from wisca_app.figures import words
from wisca_app.figures.template import Theme
from wisca_app.heading import heading, show
from wisca_app.parts import KEPT, one_of, pick, quiet
from wisca_core.census.coverage import Coverage
from wisca_core.census.entry import ABSENT, LABELS, NOT_REACHED, OPEN, PARTLY, PROVED, REFUSED
from wisca_core.verdicts import versions

_VERDICTS = {
    "all": "All",
    PROVED: "Proved",
    PARTLY: "In part",
    REFUSED: "Refused",
    NOT_REACHED: "Not reached",
    OPEN: "Not proved yet",
}
_KINDS = {"causal": "Causal language models", "all": "All with a rule"}


def facts(census: Census) -> str:
    n = census.coverage.n_types
    return f"transformers {versions()['transformers']}, torch {versions()['torch']}, {words.plural(n, 'architecture')}"


def metrics(census: Census) -> None:
    coverage = census.coverage
    n = coverage.n_types - coverage.n_open
    with st.container(horizontal=True):
        if not coverage.slowest:  # nothing was run here: only the rows speak
            st.metric("With a rule", int((census.table["row"] != "").sum()), width=140)
            st.metric("Refused by it", n, width=140)
        else:
            for pair, label in LABELS.items():
                st.metric(f"{label} exact", f"{coverage.n(pair)} of {n}", width=140)
            st.metric("Attention in part", int((census.table["attention"] == PARTLY).sum()), width=140)
            st.metric("Not reached", coverage.n("qk", NOT_REACHED), width=140)
        if coverage.n_open:
            st.metric("Not proved yet", coverage.n_open, width=140)


def draw_map(census: Census, chosen: str, theme: Theme) -> None:
    """The picture; a click in it looks the architecture up."""
    key = f"census map {chosen}"  # another choice is a fresh chart, which has nothing selected
    clicks = {"selection_mode": "points", "on_select": lambda: _select_from_chart(key)}
    show(pictured.chart(census.table, chosen), theme, key, **clicks)


def _select_from_chart(key: str) -> None:
    selection = state.get(key)["selection"]
    for point in selection["points"]:
        if point.get("customdata"):
            state.put("architecture", str(point["customdata"]))


def draw_table(census: Census) -> None:
    heading(
        "Every architecture",
        "Behind a verdict: the finest granularity at which the pair was proved, and how many places (cross-attention, "
        "a tower) no input tried here runs. Difference: relative to the largest output, in float64. "
        "All of it is the census's, on default configs; what Rescale proves of a model of yours is not counted here.",
        census.table,
        "every architecture",
        of="wisca",
    )
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        st.text_input("Search", key="search", placeholder="name, rule or reason", width=260, **KEPT)
        pick(
            "Attention",
            [v for v in _VERDICTS if v == "all" or (census.table["attention"] == v).any() or v == state.get("verdict")],
            "verdict",
            said=_VERDICTS,
            width=170,
        )
        one_of("Of", _KINDS, "kinds")
    found = _matching_rows(census.table)
    if not len(found):
        st.markdown(":gray[No architecture fits. Clear the search or choose another verdict.]")
        return
    if len(found) < len(census.table):
        quiet(f"{words.count(len(found))} of {words.count(len(census.table))} shown")
    shown = found.rename(
        columns={
            "architecture": "Architecture",
            "rule": "Rule",
            **LABELS,
            "reasons": "Why not",
            "max_rel": "Difference",
            "seconds": "Seconds",
        }
    )
    st.dataframe(
        shown[["Architecture", *LABELS.values(), "Rule", "Why not", "Difference", "Seconds"]],
        hide_index=True,
        key="census",
        height=560,
        alt="One row an architecture: the verdict on each pair, the rule, and why what is refused is refused",
        column_config={
            "Architecture": st.column_config.TextColumn(pinned=True),
            "Rule": st.column_config.TextColumn(width="medium"),
            "Why not": st.column_config.TextColumn(width="large"),
            "Difference": st.column_config.NumberColumn(format="%.1e"),
            "Seconds": st.column_config.NumberColumn(format="%.1f"),
        },
    )


def _matching_rows(table: pd.DataFrame) -> pd.DataFrame:
    keep = pd.Series(True, index=table.index)
    if state.get("verdict") != "all":
        keep &= table["attention"] == state.get("verdict")
    for word in str(state.get("search")).lower().split():
        keep &= (
            table[["architecture", "row", "rule", "reasons"]]
            .apply(lambda column: column.str.lower().str.contains(word, regex=False))
            .any(axis=1)
        )
    return table[keep]


def draw_reasons(coverage: Coverage) -> None:
    """Why pairs are refused and types not reached, each reason once."""
    reasons = [(LABELS[pair], r) for pair, r in coverage.reasons] + [("all", r) for r in coverage.not_reached]
    if not reasons:
        return
    rows = pd.DataFrame(
        {
            "Pair": [pair for pair, _ in reasons],
            "Architectures": [len(r.model_types) for _, r in reasons],
            "Why": [r.text for _, r in reasons],
            "Which": [", ".join(r.model_types) for _, r in reasons],
        }
    )
    absent = coverage.n("mlp", ABSENT)
    heading(
        "What is refused, and why",
        "A refused pair is left as it is; the others of the same model are still rescaled."
        + (f" No up and down pair was found in {words.plural(absent, 'architecture')}." if absent else ""),
        rows,
        "refusals",
        of="wisca",
    )
    st.dataframe(
        rows,
        hide_index=True,
        key="reasons",
        alt="Each reason with the pair and the architectures it is true of",
        column_config={"Why": st.column_config.TextColumn(width="large")},
    )
