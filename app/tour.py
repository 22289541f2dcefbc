"""A guided path of five stops over the bundled sample: what each page answers, in the order of the question.

The stop stands in the address (?tour=2). It can be left at any time, and what was open before is open again then;
opening a model ends it.
"""

from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from wisca_app import state
from wisca_app.parts import primary, quiet

COMPARISON = "sample-compare-answer-g8-w64"


@dataclass(frozen=True)
class Stop:
    """``page``: the name of its view. ``choices``: what is chosen there, names of state.CHOICES."""

    title: str
    said: str
    page: str
    choices: dict[str, Any] = field(default_factory=dict)


STOPS = (
    Stop(
        "A small model, measured",
        "The title is the verdict: which matrix of each pair is heavier, and how much of that is mere size. The line "
        "below "
        "it says what balancing would be for a training. The map shows every pair, layers across.",
        "inspect",
        {"pair": None, "shown_view": "size", "layer": None, "group": None},
    ),
    Stop(
        "A head out of balance",
        "Now as stored, size and all. The framed cell is the one furthest from balance; the panel beside the map "
        "(below "
        "it on a phone) gives its ratio and how large its weights are, before and after. Click another one.",
        "inspect",
        {"pair": None, "shown_view": "stored", "layer": None, "group": None},
    ),
    Stop(
        "Balanced, and proved",
        "Each pair takes a factor on one side and its inverse on the other; here powers of two, so that no bit of any "
        "output moves. [Proof](#proof), near the foot of this page, runs a miniature of this very architecture with "
        "random "
        "weights, both ways, in float64.",
        "rescale",
        {"exact": True},
    ),
    Stop(
        "What it does to a training",
        "The function is the same, the training is not: it is one at other learning rates. Here it was tried against "
        "the "
        "baseline, seed by seed, on a smaller model with 8 query heads on one KV head. The title is what these runs "
        "allow one to say; below stands what to do with it.",
        "compare",
        {"comparison": COMPARISON},
    ),
    Stop(
        "Your own model",
        "Name a folder or hub:owner/name. Weights are read where they lie and never changed; nothing of it is run to "
        "look at it. "
        "Inspect then gives the same verdict on yours.",
        "open",
    ),
)
_TO_GO = "tour to go"
_LEFT = 0


def take() -> None:
    """First of every run, before any widget is drawn: go where a button led, or where a fresh address says."""
    number = state.note(_TO_GO)
    is_fresh = number is None and state.note("tour seen") is None and state.get("tour") is not None
    state.note("tour seen", True)
    if number is not None:
        state.forget(_TO_GO)
        _arrive(number)
    elif state.is_history() and (passed := _stop_on_the_way_back()):
        _arrive(passed)
    elif is_fresh:
        stop = STOPS[state.get("tour") - 1]
        for name, value in stop.choices.items():
            if state.is_default(name):
                state.put(name, value)
        if state.note("page") != _path(stop.page):
            state.go(stop.page)


def _stop_on_the_way_back() -> int | None:
    """The stop that the Back button leads to. Streamlit takes two steps to another page with other choices; the one in
    between has the page of the stop that was left, and the choices of the next.
    """
    number = state.get("tour") or _LEFT
    if number == _LEFT or state.note("page") == _path(STOPS[number - 1].page):
        return None
    near = (one for one in (number - 1, number + 1) if 1 <= one <= len(STOPS))
    return next((one for one in near if state.note("page") == _path(STOPS[one - 1].page)), None)


def _arrive(number: int) -> None:
    """``number``: of the stop, _LEFT for none. What another stop has chosen goes with it; who comes back to a stop
    finds what they chose themselves where the stop leaves it open.
    """
    own = STOPS[number - 1].choices if number != _LEFT and number == state.get("tour") else {}
    for name in {name for stop in STOPS for name in stop.choices}:
        if own.get(name, "") is not None:
            state.reset(name)
    before = state.note("model before tour")
    if number == _LEFT:
        state.put("tour", None)
        if before:
            state.open_model(before)
        return
    if state.get("model") != state.default_model():
        before = before or state.get("model")
        state.open_model(state.default_model())
        state.note("model before tour", before)
    state.put("tour", number)
    for name, value in STOPS[number - 1].choices.items():
        if name not in own or value is not None:
            state.put(name, value)


def start() -> None:
    """The way in, where there is a sample to walk."""
    if state.default_model() and state.get("tour") is None:
        if st.button(
            "Guided path", key="tour start", type="tertiary", help="Five stops over a bundled model, in three minutes."
        ):
            _go(1)


def draw() -> None:
    """The stop one is at, above the page; on another page the way back to it."""
    number = state.get("tour")
    if number is None:
        return
    stop = STOPS[number - 1]
    is_here = state.note("page") == _path(stop.page)
    is_last = is_here and number == len(STOPS)
    with st.container(border=True, gap="xsmall", key="tour"):
        quiet(f"Guided path, stop {number} of {len(STOPS)}")
        st.markdown(f"**{stop.title}.** {stop.said}" if is_here else f"The path waits at **{stop.title.lower()}**.")
        with st.container(horizontal=True, gap="xsmall"):
            if not is_here and st.button("Back to the path", key="tour return", type=primary()):
                _go(number)
            if is_here and number < len(STOPS) and st.button("Next stop", key="tour next", type=primary()):
                _go(number + 1)
            if is_last and st.button("Done", key="tour done", type=primary()):
                _go(_LEFT, "inspect")
            if is_here and number > 1 and st.button("Back", key="tour back"):
                _go(number - 1)
            if not is_last and st.button("Leave the path", key="tour leave", type="tertiary"):
                _go(_LEFT)


def _go(number: int, page: str = "") -> None:
    """``number``: of the stop, _LEFT for none. ``page``: of its view, where it is not that of the stop; of none this
    one.
    """
    state.note(_TO_GO, number)
    page = page or (STOPS[number - 1].page if number != _LEFT else "")
    if not page or state.note("page") == _path(page):
        state.rerun()
    _arrive(number)  # so that the step between the two pages is one that ``_stop_on_the_way_back`` knows
    state.go(page)


def _path(view: str) -> str:
    """What Streamlit calls the page of a view: the first one lives at "/"."""
    return "" if view == "inspect" else view
