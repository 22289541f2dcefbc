"""The open model with its heads measured, by a job where that takes long; and what has no circuit, named."""

import streamlit as st

from wisca_app import cached, state
from wisca_app.declaring import kept
from wisca_app.figures import words
from wisca_app.heads.drawn_heads import DrawnHeads
from wisca_app.job_progress import follow, latest, measuring
from wisca_app.messages import plain
from wisca_app.open_model import normal, ready, title
from wisca_core import jobs
from wisca_core.model import Model


def ready_heads() -> Model:
    """Where the heads are not measured, or there are none, the page says so and ends. Raises WiscaError."""
    model = ready(["qk"])
    if model.checkpoint.adapter_json:
        st.header("An adapter has no heads of its own")
        plain("It changes those of its base. Open the base, or the two merged, to see what they compute.")
        state.stop()
    if model.refusal:
        st.header("No head of this model is known")
        plain(model.refusal)
        state.stop()
    if cached.heads_wait(model):
        _measure(model)
    if cached.circuits(model).table.empty:
        st.header("No head of this model is known")
        _draw_refusals(model)
        state.stop()
    return model


def _measure(model: Model) -> None:
    name = normal(state.get("model"))
    declared = kept.arguments(model)
    job = latest("heads", model=name, sites=declared.get("sites"))
    if job is not None and job.state == "done":
        return  # it could not be kept: measure here, with patience
    job = measuring(job, "Measuring the heads")
    st.markdown(f":gray[One more pass over the attention weights: {words.size(cached.heads_bytes(model))} to read.]")
    follow(job or jobs.start("heads", {"model": name} | declared, f"Heads of {title(name)}", exclusive=f"heads {name}"))
    state.stop()


def draw_left(shown: DrawnHeads) -> None:
    """What is left out of the numbers, and which pairs have no circuit."""
    remarks = shown.circuits.remarks
    if not remarks and not shown.model.sites.refusals:
        return
    st.space("small")
    with st.expander(f"What is not covered: {words.plural(len(remarks) + len(shown.model.sites.refusals), 'remark')}"):
        for remark in remarks:
            plain(remark)
        _draw_refusals(shown.model)


def _draw_refusals(model: Model) -> None:
    for refusal in model.sites.refusals[:50]:
        plain(f"{refusal.what}: {refusal.reason}")
    if len(model.sites.refusals) > 50:
        plain(f"and {len(model.sites.refusals) - 50:,} more; `wisca heads --json` lists all.")
