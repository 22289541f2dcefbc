"""Which comparison is shown: the one in the address, else a running one, else the newest, else a bundled sample."""

from pathlib import Path

import streamlit as st

from app import state
from app.messages import errors_as_messages
from wisca_core import home, jobs
from wisca_core.comparison import folder
from wisca_core.errors import WiscaError

SAMPLES = Path(__file__).resolve().parents[2] / "sample_runs"
_SAMPLE = "sample-"  # in front of a bundled comparison's folder name
_STATES = {"running": "running", "done": "finished", "paused": "paused", "cancelled": "cancelled", "failed": "failed",
           "interrupted": "interrupted", "new": "not started"}  # fmt: skip


def place(name: str) -> Path:
    """The folder of a name that ``known`` gave or that stood in the address."""
    return SAMPLES / name.removeprefix(_SAMPLE) if is_sample(name) else home.folder("comparisons") / name


def name_of(path: Path) -> str:
    """The name under which the comparison in ``path`` is listed here, "" where it is not."""
    return next((name for name in known() if place(name) == path), "")


def is_sample(name: str) -> bool:
    return name.startswith(_SAMPLE)


def known() -> list[str]:
    """Names of the comparisons there are, newest first, the bundled ones last."""
    bundled = sorted((path.parent.name for path in SAMPLES.glob("compare-*/spec.json")), reverse=True)
    return [*(path.name for path in folder.every()), *(_SAMPLE + name for name in bundled)]


def draw() -> str:
    """The selector; returns the chosen name, "new" for a comparison that is still to be started."""
    names = known()
    chosen = state.get("comparison")
    if chosen != "new" and chosen not in names:
        if chosen:
            st.markdown(f":small[:gray[The comparison in the address, {chosen}, is not on this machine.]]")
        chosen = names[0] if names else "new"
    state.put("comparison", chosen)
    return st.selectbox("Comparison", [*names, "new"], key="comparison", format_func=_label, width=520, persist_state="session")


def _label(name: str) -> str:
    if name == "new":
        return "A new comparison"
    try:
        comparison = folder.read(place(name))
    except WiscaError:
        return f"{name}, cannot be read"
    if comparison.state != "running" and any(j.is_active and j.arguments.get("comparison") == str(comparison.path) for j in jobs.every()):
        state_word = "running"
    else:
        state_word = _STATES.get(comparison.state, comparison.state)
    where = "Bundled sample" if is_sample(name) else f"{name[:8]} {name[9:13]}"
    return f"{where}: {comparison.spec.name}, {state_word}"


def opened(name: str) -> folder.Comparison | None:
    """The comparison, None where it cannot be read: the page has then said why."""
    with errors_as_messages("This comparison cannot be shown"):
        return folder.read(place(name))
    return None
