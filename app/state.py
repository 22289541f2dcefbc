"""What the person has chosen: the open model, the options of Rescale, what is selected on Inspect.

The only file that touches ``st.session_state`` and ``st.query_params``. Every choice is declared once in CHOICES, is
kept for the session under its name (a widget uses that name as its key, with ``persist_state="session"``), and stands
in the address of the page wherever it is not the default, so that a reload or a shared address brings back the same
view.

Streamlit's own ``bind="query-params"`` drops from the address what belongs to a widget of another page; the options of
Rescale also decide what Inspect draws as "after", so the address is written here.
"""

import math
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from wisca_core.architecture.site import DEFAULT_PAIRS, GRANULARITIES, PAIRS, Sites
from wisca_core.census.entry import VERDICTS
from wisca_core.circuits.columns import NUMBERS
from wisca_core.exactness import POSITIONS, SCALED
from wisca_core.patterns.table import NORMS
from wisca_core.planning.options import PLAN_NORMS, LayerRange, Options, default_pairs, parse_pairs

SAMPLE = Path(__file__).resolve().parents[1] / "sample_runs" / "gqa-docs"

# An address is no place for megabytes; browsers and servers stop well before.
MAX_ADDRESS_VALUE = 4096


def sample_checkpoints() -> list[Path]:
    """The bundled run's checkpoint folders, by step; empty where the project was installed without them."""
    found = [path for path in SAMPLE.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def default_model() -> str:
    """The bundled sample's last checkpoint, or "" where there is none."""
    return str(sample_checkpoints()[-1]) if sample_checkpoints() else ""


@dataclass(frozen=True)
class Choice:
    """``read``: text of the address -> value, ValueError for anything else; ``write``: value -> text."""

    default: Callable[[], Any]
    read: Callable[[str], Any] = str
    write: Callable[[Any], str] = str


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return read


def _matching(pattern: str, kind: Callable[[str], Any] = str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return kind(text)

    return read


_whole = _matching(r"\d{1,6}", int)
_read_block = _matching(r"\w+\.\w+(:[\w.-]+)?")


def _read_pairs(text: str) -> list[str]:
    pairs = [pair for pair in PAIRS if pair in parse_pairs(text)]
    if not pairs:
        raise ValueError(text)
    return pairs


def _read_span(text: str) -> tuple[int, int]:
    first, last = map(_whole, text.split("-"))
    if first > last:
        raise ValueError(text)
    return first, last


def _read_names(text: str) -> list[str]:
    names = list(filter(None, text.split(",")))
    if not all(re.fullmatch(r"\w+\.\d+\.\w+\.\w+(\.e\d+)?(:[\w.-]+)?", name) for name in names):
        raise ValueError(text)
    return names


def _between(low: float, high: float, digits: int = 3) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = round(float(text), digits)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return read


def _read_window(text: str) -> tuple[float, float]:
    first, last = map(float, text.split(".."))
    if not (math.isfinite(first) and math.isfinite(last) and first <= last):
        raise ValueError(text)
    return first, last


def _read_rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


CHOICES: dict[str, Choice] = {
    "model": Choice(default_model),
    # the declaration it was opened with, by its name under WISCA_HOME/sites; "" for none
    "sites": Choice(_constant(""), _matching(r"[0-9a-f]{32}")),
    # Open a model: the file whose pairs are being declared, "" for none
    "declaring": Choice(_constant("")),
    # the stop of the guided path
    "tour": Choice(_constant(None), _matching("[1-5]", int)),
    # Open a model: the folder that is looked into, "" for the one the open model lies in
    "folder": Choice(_constant("")),
    # Inspect: a second model that is drawn beside it, "" for none
    "beside": Choice(_constant("")),
    # Rescale, and the "after" of Inspect
    "pairs": Choice(lambda: list(DEFAULT_PAIRS), _read_pairs, ",".join),
    "granularity": Choice(_constant("tensor"), _one_of(*GRANULARITIES)),
    "norm": Choice(_constant("l1"), _one_of(*PLAN_NORMS)),
    "strength": Choice(_constant(1.0), _between(0, 1, digits=2), "{:g}".format),
    "layers": Choice(lambda: note("layer span"), _read_span, lambda span: f"{span[0]}-{span[1]}"),
    "exact": Choice(_constant(False), lambda text: _one_of("yes")(text) == "yes", lambda on: "yes"),
    "exclude": Choice(list, _read_names, ",".join),
    # Inspect
    # what was not chosen follows the verdict to the place that is furthest from balance
    "pair": Choice(lambda: note("own pair"), _one_of(*PAIRS)),
    # where in the model the pair sits, where it has several blocks: decoder.cross, decoder.experts ...
    "block": Choice(lambda: note("own block"), _read_block),
    "shown_norm": Choice(_constant("l1"), _one_of(*NORMS)),
    # of the map; where none was chosen yet it follows the model: divided out where size is most of the ratio
    "shown_view": Choice(lambda: note("own shown_view"), _one_of("size", "stored", "after")),
    # the cell looked at; the most unbalanced one stands in no address
    "layer": Choice(lambda: _first_place(0), _whole),
    "group": Choice(lambda: _first_place(1), _whole),
    # Heads: the selected head of ``layer``, and the columns that are drawn
    "head": Choice(_constant(None), _whole),
    "expert": Choice(_constant(None), _matching(r"-1|\d{1,6}", int)),
    "heads_block": Choice(_constant(""), _read_block),
    "column": Choice(_constant("qk_stable_rank"), _one_of(*NUMBERS)),
    "across": Choice(_constant("qk_stable_rank"), _one_of(*NUMBERS)),
    "up": Choice(_constant("ov_stable_rank"), _one_of(*NUMBERS)),
    "heads_beside": Choice(_constant("")),
    # Compare: the folder's name under WISCA_HOME/comparisons, "sample-" and a bundled one, or "new"; any text, because
    # the page says of one that is not here that it is not. Only names that are listed are ever looked up on disk.
    "comparison": Choice(_constant("")),
    # its curves: what was not chosen follows the comparison
    "compare_rate": Choice(lambda: note("own compare_rate"), _read_rate, "{:g}".format),
    "compare_pair": Choice(lambda: note("own compare_pair"), _one_of(*PAIRS)),
    # Evaluate
    "evaluated": Choice(_constant("")),
    "other": Choice(_constant("")),
    "text": Choice(_constant("")),
    "draft": Choice(_constant("")),
    "tasks": Choice(lambda: ["docs-continuation", "docs-order"], lambda text: text.split("\n"), "\n".join),
    "limit": Choice(_constant(200), _whole),
    "inside": Choice(_constant(True), lambda text: _one_of("no")(text) != "no", lambda on: "no"),
    # Architectures
    "architecture": Choice(lambda: note("own architecture") or None, _matching(r"[\w.-]{1,100}")),
    "search": Choice(_constant("")),
    "verdict": Choice(_constant("all"), _one_of("all", *VERDICTS)),
    "kinds": Choice(_constant("causal"), _one_of("causal", "all")),
    # Method
    "toy_ratio": Choice(_constant(12.0), _between(1, 16), "{:g}".format),
    "toy_rate": Choice(_constant(0.23), _between(0.02, 0.5), "{:g}".format),
    "toy_position": Choice(_constant("rotary"), _one_of(*POSITIONS)),
    "toy_scaled": Choice(_constant("pair"), _one_of(*SCALED)),
    # Runs
    "logs": Choice(lambda: str(SAMPLE) if sample_checkpoints() else ""),
    "step_column": Choice(_constant("")),
    "follow": Choice(_constant(True), lambda text: _one_of("no")(text) != "no", lambda on: "no"),
    "curves": Choice(list, lambda text: text.split("\n"), "\n".join),
    "runs_search": Choice(_constant("")),
    "runs_chosen": Choice(list, lambda text: text.split("\n"), "\n".join),
    "x": Choice(_constant("step")),
    "smoothing": Choice(_constant(0.0), _between(0, 0.999), "{:g}".format),
    "together": Choice(_constant("configuration"), _one_of("configuration", "seed", "none")),
    "shape": Choice(_constant("band"), _one_of("band", "lines")),
    "log_axes": Choice(list, lambda text: [_one_of("x", "y")(axis) for axis in text.split(",")], ",".join),
    "window": Choice(lambda: note("window span"), _read_window, lambda span: f"{span[0]:.9g}..{span[1]:.9g}"),
    "highlight": Choice(_constant(None)),
    "from_group": Choice(_constant(None)),
    "to_group": Choice(_constant(None)),
    "histograms_of": Choice(_constant(None)),
    "histogram_family": Choice(_constant(None)),
    "histogram_view": Choice(_constant("values"), _one_of("values", "rms", "l2", "l1")),
    "checkpoints": Choice(_constant("")),
    "moved_pair": Choice(_constant("qk"), _one_of(*PAIRS)),
    "moved_block": Choice(_constant(""), _read_block),
    "moved_layer": Choice(_constant(None), _whole),
}


def _first_place(part: int) -> int | None:
    """Layer (0) or group (1) that is looked at while none is chosen; both or neither."""
    first = note("first place")
    chosen = st.session_state.get("layer"), st.session_state.get("group")
    return first[part] if first is not None and chosen == first else None


def carry() -> None:
    """Before Streamlit writes the address of a page: one that a link leads to comes without choices. They go along, in
    the same step for the Back button; written afterwards, they would be a second one.
    """
    run = get_script_run_ctx()
    is_led = run is not None and not run.is_history_navigation and run.page_script_hash != note("page key")
    if is_led and note("address") and not st.query_params.to_dict():
        st.query_params.from_dict(note("address"))


def begin(page: str) -> None:
    """First call of every run on ``page``: a fresh session takes its choices from the address, and so does one whose
    browser went back or forward.
    """
    moved = _went_back() and not note("own rerun")
    forget("own rerun")
    note("page", page)
    note("page key", getattr(get_script_run_ctx(), "page_script_hash", ""))
    for name, choice in CHOICES.items():
        if moved or name not in st.session_state:
            st.session_state[name] = _from_address(name, choice)


def is_history() -> bool:
    """Whether the browser's Back or Forward led here."""
    run = get_script_run_ctx()
    return run is not None and run.is_history_navigation


def _went_back() -> bool:
    """Whether the address is another one than was written, and nothing that was chosen since explains it.

    Within a second of writing, the browser may still tell the address from before.
    """
    written = note("address")
    if written is None or st.query_params.to_dict() == written or time.monotonic() - note("written at") < 1:
        return False
    return _address_values() == written


def _address_values() -> dict[str, str]:
    """The choices that are not the default, as the address says them."""
    wanted = {}
    for name, choice in CHOICES.items():
        value = st.session_state[name]
        if value is not None and value != choice.default():
            wanted[name] = choice.write(value)
    return wanted


def share() -> None:
    """Last call of every run: write the choices into the address. One change of it is one step for the Back button."""
    wanted = _address_values()
    if st.query_params.to_dict() != wanted:
        st.query_params.from_dict(wanted)
    if wanted != note("address"):
        note("address", wanted)
        note("written at", time.monotonic())


def go(view: str) -> NoReturn:
    """To another page, with all that is chosen: what was chosen just now stands in the address of this one first, so
    that Back leads here.
    """
    share()
    st.switch_page(f"views/{view}.py", query_params=st.query_params.to_dict())


def rerun() -> None:
    """Draw the page anew with what was chosen in it. The browser knows nothing of that yet: the address that it tells
    is the one from before, however long the page takes.
    """
    note("own rerun", True)
    st.rerun()


def stop() -> None:
    """End the page here. Streamlit lets nothing follow its own stop, so the address is written before."""
    share()
    st.stop()


def _from_address(name: str, choice: Choice) -> Any:
    text = st.query_params.get(name)
    if text is None or len(text) > MAX_ADDRESS_VALUE:
        return choice.default()
    try:
        return choice.read(text)
    except ValueError:
        return choice.default()


def get(name: str) -> Any:
    """The value of a choice (a name of CHOICES)."""
    return st.session_state[name] if name in st.session_state else CHOICES[name].default()


def put(name: str, value: Any) -> None:
    """Set a choice, in a callback or before its widget is drawn: Streamlit refuses it afterwards."""
    if name not in CHOICES:
        raise KeyError(name)
    st.session_state[name] = value


def reset(name: str) -> None:
    """As if nothing had been chosen; where ``put`` may be called."""
    put(name, CHOICES[name].default())


def fill(key: str, value: Any) -> None:
    """Set a widget that is no choice itself, before it is drawn."""
    st.session_state[key] = value


def follow(name: str, own: Any, allowed: Collection[Any]) -> Any:
    """The value of a choice among what there is. What was not chosen, or is not there, is ``own``; its default is the
    note "own NAME".
    """
    of = f"own {name}"
    if get(name) not in allowed or get(name) == (note(of) if note(of) is not None else own):
        put(name, own)
    note(of, own)
    return get(name)


def is_default(name: str) -> bool:
    """Whether nothing else was chosen."""
    return get(name) == CHOICES[name].default()


def settle(name: str, allowed: list[str]) -> str:
    """The value of a choice among what there is; another one gives way to the first. Where there is one only nothing is
    chosen, and what was chosen before is kept for later.
    """
    if len(allowed) == 1:
        return allowed[0]
    if get(name) not in allowed:
        put(name, allowed[0])
    return get(name)


def open_model(model: str, sites: str = "") -> None:
    """Another model, or the same with another declaration (``sites``: its name): what was selected in the old one means
    nothing there. The guided path is over: what it walks is the sample, and this one stays open.

    To be called before the page is drawn, without a rerun behind it: widgets that were not drawn in between would bring
    their old values back.
    """
    for name in ("layer span", "first place", "own pair", "own block", "own shown_view", "model before tour"):
        forget(name)
    for name in (
        "tour",
        "layers",
        "exclude",
        "pair",
        "block",
        "shown_view",
        "layer",
        "group",
        "head",
        "expert",
        "heads_block",
        "heads_beside",
    ):
        st.session_state[name] = CHOICES[name].default()
    st.session_state["model"], st.session_state["sites"], st.session_state["declaring"] = model, sites, ""


def leave_out_mlp() -> None:
    """A callback: back to the paper's pairs, where measuring the feed-forward weights takes too long."""
    put("pair", None)
    put("pairs", [pair for pair in get("pairs") if pair != "mlp"] or list(DEFAULT_PAIRS))


def options(sites: Sites, has: tuple[str, ...] = ()) -> Options:
    """The options of Rescale as a value, layers brought into what this model has. ``has``: its pairs, where ``sites``
    are not all of them.
    """
    span = layer_span(sites)
    chosen = clamped_layers(sites)
    layers = () if chosen == span else (LayerRange(*chosen),)
    known, has = {site.name for site in sites.sites}, has or {site.key.pair for site in sites.sites}
    return Options(
        pairs=tuple(pair for pair in get("pairs") if pair in has) or default_pairs(sites),
        granularity=get("granularity"),
        norm=get("norm"),
        strength=float(get("strength")),
        layers=layers,
        exact=bool(get("exact")),
        exclude=tuple(name for name in get("exclude") if name in known),
    )


def layer_span(sites: Sites) -> tuple[int, int]:
    """First and last layer that has a site; (0, 0) where there is none."""
    layers = [site.key.layer for site in sites.sites] or [0]
    return min(layers), max(layers)


def clamped_layers(sites: Sites) -> tuple[int, int]:
    """The chosen layers, inside this model's."""
    low, high = layer_span(sites)
    first, last = get("layers") or (low, high)
    first, last = min(max(first, low), high), min(max(last, low), high)
    return first, last


def note(name: str, value: Any = None) -> Any:
    """A remark for this session only, outside the address: read it, or set it with ``value``."""
    if value is not None:
        st.session_state[f"note:{name}"] = value
    return st.session_state.get(f"note:{name}")


def forget(name: str) -> None:
    """Drop a note."""
    st.session_state.pop(f"note:{name}", None)
