"""A comparison as a folder: its logs on Runs, and deleting it."""

import streamlit as st

from wisca_app import state
from wisca_app.comparing import choosing, live
from wisca_app.figures import words
from wisca_app.job_progress import latest
from wisca_app.messages import errors_as_messages, plain
from wisca_app.parts import quiet
from wisca_app.reading import opening
from wisca_core.comparison import folder
from wisca_core.comparison.folder import Comparison


def draw(name: str, comparison: Comparison | None) -> None:
    """Beside the selector; ``comparison`` is None where its folder is damaged. A bundled sample stays as it is."""
    path = choosing.place(name)
    what = "Every value of its runs: other metrics, single seeds, smoothing."
    if comparison is not None and st.button("Open on Runs", key="compare runs", help=what):
        opening.ask_for(str(path))
        state.go("runs")
    if choosing.is_sample(name):
        return
    if comparison is not None and live.is_going(comparison):
        st.button("Delete", key="compare delete off", disabled=True, help="It is running: pause or cancel it first.")
        return
    with st.popover("Delete", key="compare delete"):
        st.markdown(
            "**Delete this comparison with everything in it?** Its curves, final weights and result are gone then."
        )
        plain(str(path))
        if comparison is not None:
            n = sum(cell.state == "done" for cell in comparison.cells)
            quiet(f"{n} of {words.plural(len(comparison.cells), 'run')} finished.")
        if st.button("Delete it for good", key="compare delete yes"):
            with errors_as_messages("It cannot be deleted"):
                freed = folder.remove(path)
                state.note("comparison to show", (choosing.comparison_names() or ["new"])[0])
                st.toast(f"The comparison is deleted, {words.size(freed)} freed.")
                state.rerun()


def say_never_began(comparison: Comparison) -> None:
    """What can be done where a start was tried and no run took a step: what stopped it is named further down."""
    if any(cell.step or cell.state != "waiting" for cell in comparison.cells):
        return
    job = latest("compare", comparison=str(comparison.path))
    if comparison.state == "failed" or (comparison.state == "new" and job is not None and job.state == "failed"):
        st.markdown(
            "It stopped before its first step, so nothing is lost. Put right what is named below and start it again, "
            "set up a new one, or "
            "delete it here."
        )
