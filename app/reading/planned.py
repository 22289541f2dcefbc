"""The comparison that the open logs are the runs of: its page says what may be concluded, corrected for several
arms.
"""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from wisca_app import state
from wisca_app.comparing import choosing
from wisca_core.comparison import folder
from wisca_core.comparison.folder import Comparison
from wisca_core.errors import WiscaError
from wisca_core.runs import Run
from wisca_core.runs.groups import is_cell


def comparison(runs: Sequence[Run]) -> Comparison | None:
    """The one comparison all of ``runs`` are of, None where there is none or it cannot be read."""
    if not runs or not all(map(is_cell, runs)):
        return None
    places = {Path(run.source).absolute().parent.parent for run in runs}  # COMPARISON/cells/NAME
    try:
        return folder.read(places.pop()) if len(places) == 1 else None
    except WiscaError:
        return None


def arms(found: Comparison | None) -> list[str]:
    """Names of its arms: the baseline, those that balance, the controls."""
    return (
        [
            arm.name
            for kinds in (("none",), ("balance",), ("inverse", "placebo"))
            for arm in found.spec.arms
            if arm.kind in kinds
        ]
        if found
        else []
    )


def where(found: Comparison) -> str:
    """Where the conclusion is to be read."""
    place = (
        "on the Compare page"
        if choosing.name_of(found.path)
        else "in report.json of its folder, written when it has ended"
    )
    return f"What may be concluded from the comparison as a whole, corrected for its several arms, is {place}."


def link(found: Comparison) -> None:
    """A button to the comparison's page, where there is one."""
    name = choosing.name_of(found.path)
    if name and st.button("Open on Compare", key="planned compare", type="tertiary", icon=":material/arrow_forward:"):
        state.note("comparison to show", name)
        state.go("compare")
