"""What to evaluate, beside what, and the job that does it."""

import streamlit as st

from wisca_app import state
from wisca_app.comparing import choosing
from wisca_app.figures import words
from wisca_app.job_progress import explain, follow, latest
from wisca_app.messages import errors_as_messages, plain
from wisca_app.open_model import normal, title
from wisca_app.parts import KEPT, pick, primary
from wisca_core import jobs
from wisca_core.evaluation.bundled_tasks import N_ITEMS
from wisca_core.evaluation.tasks import harness_is_here
from wisca_core.jobs import Job


def subject() -> tuple[str, str]:
    """(what is evaluated, its title): the open model, or the folder of the comparison that was chosen in its place."""
    name = state.get("evaluated")
    if name and name in with_weights():
        return str(choosing.place(name)), name.removeprefix("sample-")
    model = normal(state.get("model"))
    return model, title(model) if model else ""


def with_weights() -> list[str]:
    """Names of the comparisons whose runs kept their weights."""
    return [name for name in choosing.comparison_names() if any(choosing.place(name).glob("cells/*/model/config.json"))]


def newest(model: str) -> Job | None:
    """The newest evaluation of this model."""
    return latest("evaluate", model=model)


def draw(model: str) -> None:
    """The form; a press on its button starts the job."""
    with st.container(border=True):
        st.subheader("Evaluate", anchor=False)
        comparisons = with_weights()
        if comparisons:
            pick(
                "What",
                ["", *comparisons],
                "evaluated",
                format_func=lambda name: f"All arms of {name.removeprefix('sample-')}" if name else "The open model",
                help="The arms of a comparison are evaluated together: a seed is one observation.",
            )
        left, right = st.columns(2, gap="medium")
        with left:
            st.text_input("Beside it", key="other", placeholder="a second model, or an export of this one", **KEPT)
            st.text_input("Text", key="text", placeholder="held-out bundled text", **KEPT)
            st.text_input(
                "Drafts", key="draft", placeholder="small models of the same tokens, a comma between them", **KEPT
            )
        with right:
            options = list(N_ITEMS)
            st.multiselect(
                "Tasks",
                options,
                key="tasks",
                accept_new_options=True,
                disabled=not harness_is_here(),
                **KEPT,
                help="Bundled ones, a task of lm-evaluation-harness by name (boolq, piqa; needs the network), or the "
                "path of a .jsonl file with question, choices and answer.",
            )
            if not harness_is_here():
                plain("Tasks need lm-evaluation-harness: pip install 'wisca[eval]'.")
            st.number_input("Windows and documents at most", key="limit", step=50, **KEPT, help="0 for all of them.")
            st.checkbox("Look inside while it runs", key="inside", **KEPT)
        with errors_as_messages("The evaluation cannot be started"):
            if st.button("Evaluate", type=primary(), key="evaluate"):
                _start(model)
                state.rerun()


def _start(model: str) -> None:
    from wisca_core.evaluation.whole import EvaluationOptions

    other, text = (state.get(name).strip() for name in ("other", "text"))
    drafts = [one.strip() for one in state.get("draft").split(",") if one.strip()]
    tasks = tuple(state.get("tasks")) if harness_is_here() else ()
    asked = EvaluationOptions(normal(text), tasks, limit=int(state.get("limit")), inside=bool(state.get("inside")))
    arguments = {
        "model": model,
        "other": normal(other) if other else "",
        "text": asked.text,
        "tasks": list(asked.tasks),
        "drafts": [normal(one) for one in drafts],
        "inside": asked.inside,
        "limit": asked.limit,
    }
    jobs.start("evaluate", arguments, f"Evaluate {subject()[1]}", exclusive=f"evaluate {model}")


def watch(job: Job) -> None:
    """A job that is not done: how far it is, or why it ended."""
    if job.is_active:
        st.markdown(":gray[It goes on when this page is closed. Every row is kept as soon as it is there.]")
        follow(job)
    elif job.state == "cancelled":
        st.markdown(
            ":gray[Cancelled. What was scored until then is in "
            f"{words.markdown_text(str(job.folder / 'metrics.jsonl'))}.]"
        )
    else:
        explain(job, "The evaluation did not finish")
