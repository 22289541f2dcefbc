"""Charts and tables in which a click selects something; each has a name, its source.

A chart keeps its own clicked point in the browser. When the selection comes from elsewhere that point is stale, and a
click on it would unselect instead of select; the chart then gets a new key, which is a fresh chart.
"""

from collections.abc import Iterable
from typing import Any

from wisca_app import state


def key(source: str) -> str:
    """The widget key of the chart or table."""
    return f"{source} {state.note(f'turn {source}') or 0}"


def point(source: str) -> list | None:
    """In a callback of a chart: what the point that was clicked carries, None where none is."""
    for one in _selection(source, "points"):
        data = _part(one, "customdata")
        if data is not None:
            return list(data.values()) if isinstance(data, dict) else list(data)
    return None


def row(source: str, rows: list) -> Any:
    """In a callback of a table whose lines are ``rows``: the one that was clicked, None where none is."""
    lines = _selection(source, "rows")
    return rows[lines[0]] if lines and lines[0] < len(rows) else None


def renew(sources: Iterable[str], by: str = "") -> None:
    """Every chart and table but ``by``, where the selection came from, starts afresh."""
    for source in sources:
        if source != by:
            state.note(f"turn {source}", (state.note(f"turn {source}") or 0) + 1)


def _selection(source: str, what: str) -> list:
    return _part(_part(state.get(key(source)), "selection"), what) or []


def _part(value: Any, name: str) -> Any:
    """Streamlit gives selections as dicts with attributes, plotly's typed arrays as dicts."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)
