"""Every matrix of the whole model by itself, on demand: it reads all of it."""

import streamlit as st

from wisca_app import cached, state
from wisca_app.declaring import kept
from wisca_app.figures import words
from wisca_app.heading import heading
from wisca_app.heads.drawn_heads import DrawnHeads
from wisca_app.job_progress import explain, follow, latest
from wisca_app.messages import plain
from wisca_app.open_model import normal, title
from wisca_app.parts import quiet
from wisca_app.state import get
from wisca_core import jobs
from wisca_core.circuits.matrices import MATRIX_COLUMNS


def draw(shown: DrawnHeads) -> None:
    model = shown.model
    table = cached.kept_matrices(model)
    if table is None:
        _ask(model)
        return
    moves = int(table["moves"].sum())
    heading(
        f"Every matrix: {words.count(len(table))}, a rescale moves {words.count(moves)} of them",
        "Each taken alone, largest norm first. Numbers of a matrix that moves say where the coordinates are, not only "
        "what it does; sort by any.",
        table,
        "matrices",
    )
    view = table.rename(columns={column.name: column.title for column in MATRIX_COLUMNS})
    number = st.column_config.NumberColumn
    st.dataframe(
        view,
        hide_index=True,
        height=320,
        column_config={
            name: number(format=form)
            for name, form in (
                ("Norm", "%.3g"),
                ("Spectral norm", "%.3g"),
                ("Stable rank", "%.1f"),
                ("Outliers", "%.1f"),
                ("Kurtosis", "%.2f"),
            )
        },
        alt="Norm, spectral norm, stable rank, outliers and kurtosis of every matrix",
    )
    for remark in table.attrs.get("remarks", ()):
        plain(remark)


def _ask(model) -> None:
    name = normal(get("model"))
    st.subheader("Every matrix by itself", anchor=False)
    declared = kept.arguments(model)
    job = latest("matrices", model=name, sites=declared.get("sites"))
    if job is not None and job.is_active:
        follow(job)
        return
    if job is not None and job.state != "done":
        explain(job, "Measuring the matrices did not finish")
    n_bytes = sum(t.n_bytes for t in model.checkpoint.tensors)
    quiet(
        "Norm, spectral norm, stable rank, outliers and kurtosis of embeddings, attention, feed-forward and head: "
        f"reads all {words.size(n_bytes)} a few times."
    )
    if st.button("Measure every matrix"):
        jobs.start("matrices", {"model": name} | declared, f"Matrices of {title(name)}", exclusive=f"matrices {name}")
        state.rerun()
