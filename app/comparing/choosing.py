"""Which comparison is shown: the one in the address, else a running one, else the newest, else a bundled sample."""

import re
from collections.abc import Set
from pathlib import Path

import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.messages import errors_as_messages, plain
from wisca_app.parts import pick
from wisca_core import jobs, storage
from wisca_core.comparison import folder
from wisca_core.errors import WiscaError
from wisca_core.untrusted import printable

SAMPLES = Path(__file__).resolve().parents[2] / "sample_runs"
_SAMPLE = "sample-"  # in front of a bundled comparison's folder name
_STATES = {
    "running": "running",
    "done": "finished",
    "paused": "paused",
    "cancelled": "cancelled",
    "failed": "failed",
    "interrupted": "interrupted",
    "new": "not started",
}


def place(name: str) -> Path:
    """The folder of a name that ``comparison_names`` gave or that stood in the address."""
    return SAMPLES / name.removeprefix(_SAMPLE) if is_sample(name) else storage.folder("comparisons") / name


def name_of(path: Path) -> str:
    """The name under which the comparison in ``path`` is listed here, "" where it is not."""
    return next((name for name in comparison_names() if place(name) == path), "")


def is_sample(name: str) -> bool:
    return name.startswith(_SAMPLE)


def comparison_names() -> list[str]:
    """Names of the comparisons there are, newest first; the bundled ones last, of most runs first."""
    bundled = sorted(SAMPLES.glob("compare-*/cells"), key=lambda cells: (-sum(1 for _ in cells.iterdir()), cells))
    return [*(path.name for path in folder.every()), *(_SAMPLE + cells.parent.name for cells in bundled)]


def draw() -> str:
    """The selector; returns the chosen name, "new" for a comparison that is still to be started. The name may be one
    that is not ``is_here``: it then stands in the list as what was asked for, and nothing else is shown in its place.
    """
    names = comparison_names()
    chosen = state.get("comparison") or next((name for name in names if not _is_empty(name)), "new")
    if chosen not in names and _SAMPLE + chosen in names:  # an address that names the bundled folder itself
        chosen = _SAMPLE + chosen
    state.put("comparison", chosen)
    asked = [] if chosen == "new" or chosen in names else [chosen]
    at_work = {str(job.arguments.get("comparison")) for job in jobs.every() if job.is_active}
    labels = {name: _label(name, at_work) for name in names} | {"new": "A new comparison"}
    labels |= {name: f"{printable(name, 60)}, not on this machine" for name in asked}
    return pick("Comparison", [*asked, *names, "new"], "comparison", said=labels, width=520)


def draw_new(kind: str = "secondary") -> None:
    """The way to set one up."""
    if st.button("New comparison", type=kind, key="compare new"):
        state.note("comparison to show", "new")
        state.rerun()


def is_here(name: str) -> bool:
    """Whether ``name`` is that of a comparison on this machine; what stands in an address need not be."""
    return name in comparison_names()


def say_missing(name: str) -> None:
    """In place of a comparison that is not here: what was asked for, and what there is."""
    st.title("This comparison is not on this machine.", anchor=False)
    plain(f"Asked for: {printable(name, 200)}")
    n = len(comparison_names())
    there = f"{words.plural(n, 'comparison is', 'comparisons are')} in the list above" if n else "There is none yet"
    st.markdown(
        f"{there}. A comparison is looked for by its folder's name under "
        f"{words.markdown_text(str(storage.folder('comparisons')))}; it may have "
        "been deleted, or the address may come from another machine."
    )


def _is_empty(name: str) -> bool:
    """Cancelled before a run took a step: nothing to land on."""
    try:
        comparison = folder.read(place(name))
    except WiscaError:
        return False
    return comparison.state == "cancelled" and not any(cell.step for cell in comparison.cells)


def _label(name: str, at_work: Set[str]) -> str:
    """``at_work``: folders that an active job trains or will."""
    where = place(name)
    try:
        title, state_now = folder.heading(where)
    except WiscaError:
        return f"{name}, cannot be read"
    state_word = "running" if str(where) in at_work else _STATES.get(state_now, state_now)
    # notes and commands name folders, people know titles: both can be typed to find it. Of a name that the page gave,
    # the rest behind the time repeats the title.
    given = re.match(r"\d{8}-\d{6}(?=-)", name)
    return (
        f"{given[0] if given else name.removeprefix(_SAMPLE)}: {title}, {'bundled' if is_sample(name) else state_word}"
    )


def open_comparison(name: str) -> folder.Comparison | None:
    """The comparison, None where it cannot be read: the page has then said why."""
    with errors_as_messages("This comparison cannot be shown"):
        return folder.read(place(name))
    return None
