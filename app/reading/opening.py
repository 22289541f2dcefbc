"""Naming the logs, following them, and saying what was read of them and what was not."""

import streamlit as st

from wisca_app import cached, state, uploads
from wisca_app.figures import words
from wisca_app.heading import telling_name
from wisca_app.messages import errors_as_messages, plain
from wisca_app.parts import KEPT, pick, quiet, take_away
from wisca_app.reading.drawn_runs import DrawnRuns, forget_choices, paths
from wisca_core.runs.recognise import KINDS
from wisca_core.runs.writing import csv_pieces

FOLLOW_SECONDS = 3.0
# More than this is no download of a page: it would lie in memory several times.
MOST_DOWNLOADED = 1_000_000
_MOST_REMARKS = 200
_ASKED = "logs to open"


def ask(is_open: bool = False) -> None:
    """The form with the paths. ``is_open``: while there is nothing to show."""
    with st.expander("Open logs", expanded=is_open, key="open_logs"):
        _ask_paths()
        _ask_files()


def _ask_paths() -> None:
    with st.form("logs_form", border=False):
        st.text_area(
            "Files or folders on this machine, one a line",
            key="logs",
            **KEPT,
            height=96,
            help="TensorBoard folders, trainer_state.json, Lightning's metrics.csv, CSV, JSONL, parquet, mlflow.db and "
            "mlruns, "
            "DVCLive folders, trackio .db, W&B and SwanLab run files, W&B exports, console logs of nanoGPT, nanochat, "
            "torchtune, "
            "torchtitan and Megatron-LM, and runs of this project.",
        )
        st.form_submit_button("Open", on_click=forget_choices)


def _ask_files() -> None:
    with errors_as_messages("These files cannot be opened"), st.form("logs_upload", border=False, clear_on_submit=True):
        # event files have no ending of their own, so any plain name is taken; what a file is, is seen when it is read
        files = st.file_uploader("Or small files from this browser", accept_multiple_files=True)
        if st.form_submit_button("Open the files") and files:
            ask_for(str(uploads.keep([(file.name, file.getvalue()) for file in files], endings=("",))))
            state.rerun()


def ask_for(path: str) -> None:
    """Logs that the page opens when it is next drawn: uploaded ones, or those of a comparison."""
    state.note(_ASKED, path)


def take_asked() -> None:
    """Open what was asked for; before any widget of the page is drawn."""
    path = state.note(_ASKED)
    if path:
        state.forget(_ASKED)
        state.put("logs", path)
        forget_choices()
        state.share()  # a reload right afterwards must find them


def facts(shown: DrawnRuns) -> str:
    """The small line above the title."""
    kinds = dict.fromkeys(KINDS[kind][0] for run in shown.runs for kind in (run.kind, *run.also))
    n = sum(len(run) for run in shown.runs)
    counts = ((len(shown.runs), "run"), (len(shown.everything), "metric"), (n, "value"))
    return f"{', '.join(words.plural(*one) for one in counts)}. Read from: {', '.join(kinds)}."


def follow(shown: DrawnRuns) -> None:
    """Look for new points every few seconds while the switch is on; the page is drawn again when there are any."""
    with st.container(horizontal=True, gap="medium", vertical_alignment="center"):
        st.toggle("Follow files that grow", key="follow", **KEPT)
        tables = [run for run in shown.logs.runs if run.columns and run.kind not in ("own", "trainer_state")]
        columns = list(dict.fromkeys(name for run in tables for name in run.columns))
        if tables:
            with st.popover("Step column", type="tertiary"):
                taken = tables[0].step_column
                options = ["", *columns]
                if state.get("step_column") not in options:
                    state.put("step_column", "")
                pick(
                    "Column that counts the steps",
                    options,
                    "step_column",
                    format_func=lambda name: (
                        name or (f"guessed: {taken}" if taken else "guessed: none, rows are counted")
                    ),
                )
    if state.get("follow"):
        st.fragment(_watch, run_every=FOLLOW_SECONDS)(shown.logs.version)


def _watch(version: int) -> None:
    with errors_as_messages("The logs cannot be read any more"):
        logs = cached.logs(paths(), state.get("step_column"))
        logs.poll()
        if logs.version != version:
            state.rerun()


def remarks(shown: DrawnRuns) -> list[str]:
    """Everything that is to be known about the reading, a sentence each, with the run or file in front."""
    out = [f"{run.name}: {remark}" for run in shown.runs for remark in run.remarks]
    return out + [f"{path}: {why}" for path, why in shown.logs.problems]


def say_remarks(lines: list[str]) -> None:
    if not lines:
        quiet("Everything in these logs was read; no step repeats or goes back.")
        return
    with st.expander(f"Read and not read: {words.plural(len(lines), 'remark')}"):
        for line in lines[:_MOST_REMARKS]:
            plain(line)
        if len(lines) > _MOST_REMARKS:
            st.markdown(f":gray[and {words.count(len(lines) - _MOST_REMARKS)} more; `wisca runs --json` lists all.]")


def download(shown: DrawnRuns) -> None:
    """All values as one long table, or the command that writes it."""
    n = sum(len(run) for run in shown.runs)
    if n <= MOST_DOWNLOADED:
        name = f"{telling_name('values', shown.short)}.csv"
        take_away("All values as CSV", lambda: b"".join(csv_pieces(shown.runs)), name, "runs csv", type="secondary")
    else:
        with st.popover("All values as CSV"):
            st.markdown(f"{words.count(n)} rows are too many for a page. This writes them:")
            st.code(f"wisca runs {' '.join(map(_quote, paths()))} --csv runs.csv", language=None)


def _quote(text: str) -> str:
    import shlex

    return shlex.quote(text)
