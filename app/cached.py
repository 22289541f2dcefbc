"""What is kept between reruns. The only file with ``st.cache_*``.

Keys are strings and numbers only (real path, sizes, times of change, options): Streamlit hashes large arrays from a
sample and would return a stale table. What is kept is read-only and shared by all sessions.
"""

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd
import streamlit as st

from wisca_app.declaring.kept import read as declaration
from wisca_core.architecture.discovery import is_unknown
from wisca_core.architecture.discovery import kept_discovery as kept_discovery
from wisca_core.architecture.site import GRANULARITIES, PAIRS, Refusal
from wisca_core.census import kept, known
from wisca_core.census.coverage import Coverage, coverage
from wisca_core.census.entry import Entry
from wisca_core.census.table import table as census_table
from wisca_core.checkpoint import HubSize, hub_size
from wisca_core.circuits import store as heads_store
from wisca_core.circuits.check import FactorCheck, factor_check
from wisca_core.circuits.measure import Circuits
from wisca_core.comparison.prepare import Facts, prepare
from wisca_core.comparison.spec import Spec
from wisca_core.model import Model, open_model
from wisca_core.patterns.table import Patterns
from wisca_core.planning.decide import Decision, decide
from wisca_core.planning.head import HeadDetail, head_detail
from wisca_core.planning.options import Options
from wisca_core.planning.plan import Plan, make_plan
from wisca_core.planning.rows import plan_rows
from wisca_core.rescale_adapter import adapters_near as adapters_of
from wisca_core.runs import Logs, Run, drawing
from wisca_core.runs.drawing import Band, Line
from wisca_core.trajectories import Trajectory, bytes_to_read, content_key, find_checkpoints
from wisca_core.trajectories import trajectory as measure_trajectory

T = TypeVar("T")

# Reading more than this takes over two seconds on a slow disk: it becomes a job.
JOB_BYTES = 150_000_000


# Nothing of a model is hashed but its key, nothing of options but how they are written.
BY_KEY = {Model: lambda model: model.key, Options: repr}


@dataclass(frozen=True, eq=False)
class Census:
    """Entries in order and by name, their counts, and their table (columns of wisca_core.census.table)."""

    entries: tuple[Entry, ...]
    by_name: dict[str, Entry]
    coverage: Coverage
    table: pd.DataFrame


def model(model: str, sites: str = "", unproved: bool = False) -> Model:
    """Raises WiscaError. A model of the hub is taken from its cache, or downloaded: ask first. ``sites``: the name of a
    kept declaration, "" for none; ``unproved``: its pairs are taken as they are.
    """
    found = _open(model, _stamp(model), sites, unproved)
    if found.sites.discovered is None and is_unknown(found.checkpoint):
        tried = kept_discovery(found.checkpoint)
        if tried is not None and tried.words not in found.refusal:  # a search has ended since it was opened
            _open.clear()
            return _open(model, _stamp(model), sites, unproved)
    return found


@st.cache_resource(max_entries=8, show_spinner=False)
def _open(model: str, stamp: str, sites: str, unproved: bool) -> Model:
    return open_model(model, sites=declaration(sites), unproved=unproved)


def with_pairs(model: Model, pairs: list[str]) -> Model:
    """The model with what ``pairs`` need looked for: feed-forward pairs are in it only where they are among them."""
    return model.with_pairs(pairs) if "mlp" in pairs and "mlp" in model.pairs else model


def feed_forward_refusals(model: Model) -> tuple[Refusal, ...]:
    """Why its feed-forward pairs are refused, as far as they are; nothing of it was asked for yet."""
    if model.checkpoint.adapter_json or not model.sites.sites:
        return ()
    known = {refusal.what for refusal in model.sites.refusals}
    return tuple(r for r in model.with_pairs(PAIRS).sites.refusals if r.what not in known)


def may_be_discovered(model: Model) -> bool:
    """Whether no file has its model type and no rule was looked for yet."""
    return is_unknown(model.checkpoint) and kept_discovery(model.checkpoint) is None


def _stamp(model: str) -> str:
    """Name, size and time of change of the files beside or in ``model``, "" for anything that is no local path."""
    if not model or model.startswith("hub:") or "\0" in model:
        return ""
    path = os.path.expanduser(model)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    try:
        with os.scandir(folder) as entries:
            seen = sorted((e.name, s.st_size, s.st_mtime_ns) for e in entries if e.is_file() for s in (e.stat(),))
    except OSError:
        return ""
    wanted = (".json", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".distcp", ".metadata")
    return "\n".join(f"{name} {size} {mtime}" for name, size, mtime in seen if name.endswith(wanted))


@st.cache_data(ttl=30, max_entries=16, show_spinner=False, hash_funcs=BY_KEY)
def adapters_near(model: Model) -> tuple[str, ...]:
    """Folders of LoRA adapters that belong to this model, as far as can be seen beside it."""
    return () if model.checkpoint.adapter_json else tuple(map(str, adapters_of(model.checkpoint)))


def needs_job(model: Model) -> bool:
    """Whether measuring it is more than two seconds of work that nobody has done yet."""
    return model.n_bytes_to_read > JOB_BYTES and not model.is_measured


@st.cache_resource(max_entries=4, show_spinner="Measuring the weights", hash_funcs=BY_KEY)
def patterns(model: Model) -> Patterns:
    """The measured table; measures now where nobody has. Raises WiscaError."""
    table = model.patterns
    for granularity in GRANULARITIES:  # so that the first change of an option is as quick as the next
        table.cells(granularity)
    return table


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=BY_KEY)
def decision(model: Model, options: Options) -> Decision:
    """The factors of ``options`` and every "after" that follows from them; arithmetic on the table."""
    return decide(patterns(model), options)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=BY_KEY)
def head(model: Model, options: Options, site: str, group: int) -> HeadDetail:
    """One KV group looked at closely; a few MB are read. Raises WiscaError."""
    return head_detail(model.checkpoint, decision(model, options), site, group)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=BY_KEY)
def rows(model: Model, options: Options) -> pd.DataFrame:
    """The plan for people, columns ROW_COLUMNS; not to be changed."""
    return plan_rows(decision(model, options))


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=BY_KEY)
def plan(model: Model, options: Options) -> Plan:
    """The decision as a value that can be saved and exported."""
    return make_plan(decision(model, options))


@st.cache_resource(max_entries=96, show_spinner=False)
def once(key: str, _make: Callable[[], T]) -> T:
    """What ``make()`` gave for this key (a figure, a table of a page), which names everything that it depends on; not
    to be changed.
    """
    return _make()


def set_aside_modules() -> None:
    """Last of a run. Streamlit collects garbage after every redraw of a fragment, and walks through everything that the
    modules hold for it: 0.1 s of processor time with torch and pandas, half of a redraw. They are taken out of its
    reach, once more where a page has loaded others.
    """
    _set_aside(len(sys.modules))


@st.cache_resource(max_entries=1, show_spinner=False)
def _set_aside(n_modules: int) -> None:
    gc.collect()
    gc.freeze()


@st.cache_resource(max_entries=3, show_spinner="Reading the logs")
def logs(paths: tuple[str, ...], step_column: str) -> Logs:
    """The logs at ``paths``, read; whoever follows them polls. Raises WiscaError."""
    found = Logs(paths, step_column)
    found.poll()
    return found


def line(
    logs: Logs, run: Run, metric: str, x: str, smoothing: float, window: tuple[float, float] | None, most: int
) -> Line | None:
    """What is drawn of a metric of a run, see ``wisca_core.runs.drawing.line``; not to be changed."""
    series = run.series.get(metric)
    if series is None:
        return None
    return _line(logs.paths, logs.ask.step_column, run.name, len(series), metric, x, smoothing, window, most, run)


@st.cache_resource(max_entries=3000, show_spinner=False)
def _line(paths, step_column, name, n, metric, x, smoothing, window, most, _run) -> Line | None:
    return drawing.line(_run, metric, x=x, smoothing=smoothing, window=window, most=most)


def band(
    logs: Logs,
    runs: tuple[Run, ...],
    metric: str,
    x: str,
    smoothing: float,
    window: tuple[float, float] | None,
    most: int,
) -> Band | None:
    """A group of runs as one line, see ``wisca_core.runs.drawing.band``; not to be changed."""
    key = tuple((run.name, len(run.series[metric])) for run in runs if metric in run.series)
    return _band(logs.paths, logs.ask.step_column, key, metric, x, smoothing, window, most, runs)


@st.cache_resource(max_entries=200, show_spinner=False)
def _band(paths, step_column, key, metric, x, smoothing, window, most, _runs) -> Band | None:
    every = 1 << 62  # runs are compared at what they logged, not at what thinning left of it
    lines = [drawing.line(run, metric, x=x, smoothing=smoothing, window=window, most=every) for run in _runs]
    return drawing.band([(one.x, one.y) for one in lines if one is not None], most)


def trajectory_waits(folder: str) -> bool:
    """Whether measuring its checkpoints is more than two seconds of work that nobody has done yet. Raises
    WiscaError.
    """
    return _trajectory_bytes(folder, content_key(folder)) > JOB_BYTES


@st.cache_data(max_entries=16, ttl=5, show_spinner=False)
def _trajectory_bytes(folder: str, key: str) -> int:
    return bytes_to_read(find_checkpoints(folder))


def trajectory(folder: str) -> Trajectory:
    """The ratios over the checkpoints in ``folder``; measures now those that nobody has. Raises WiscaError."""
    return _trajectory(folder, content_key(folder))


@st.cache_resource(max_entries=4, show_spinner="Measuring the checkpoints")
def _trajectory(folder: str, key: str) -> Trajectory:
    return measure_trajectory(folder)


@st.cache_data(ttl=300, max_entries=32, show_spinner="Asking the hub")
def size_on_hub(model: str) -> HubSize:
    """What a download would fetch. Raises HubError."""
    return hub_size(model)


def comparison_facts(spec: Spec) -> Facts:
    """The model of a comparison in numbers, its rules proved. Raises WiscaError."""
    parts = (
        spec.model,
        spec.lora,
        spec.data.tokens,
        spec.data.tokenizer,
        spec.data.context,
        spec.arms,
        spec.steps,
        spec.optimiser,
    )
    return _comparison_facts(repr(parts), _stamp(spec.model.path), _stamp(spec.data.tokenizer), spec)


@st.cache_resource(max_entries=16, show_spinner="Looking the model through")
def _comparison_facts(key: str, stamp: str, tokenizer_stamp: str, _spec: Spec) -> Facts:
    return prepare(_spec)


def seconds_per_step(spec: Spec, device: str) -> float:
    """Of one training step of a comparison, on one thread or on a GPU; measured now where this model and batch were not
    yet.
    """
    model = (spec.model, spec.lora, _stamp(spec.model.path))
    parts = (model, spec.data.tokens, spec.data.context, spec.batch_size, spec.optimiser.name, spec.precision, device)
    return _seconds_per_step(repr(parts), spec, device)


@st.cache_data(max_entries=32, show_spinner="Timing a few training steps")
def _seconds_per_step(key: str, _spec: Spec, _device: str) -> float:
    from wisca_core.comparison.estimate import measure_step

    return measure_step(_spec, _device)


def census(which: str) -> Census:
    """What is known of every causal language model ("causal"), or of every type that has a rule ("all")."""
    return _census(which, kept.stamp())


@st.cache_resource(max_entries=4, show_spinner="Reading the rules")
def _census(which: str, stamp: str) -> Census:
    found = kept.entries(known.all_types() if which == "all" else known.causal_types())
    return Census(found, {entry.model_type: entry for entry in found}, coverage(found), census_table(found))


@st.cache_data(show_spinner=False)
def has_gpu() -> bool:
    """Whether there is a CUDA GPU to train on."""
    import torch

    return torch.cuda.is_available()


@st.cache_data(show_spinner=False)
def device() -> str:
    """What this machine computes on, in words."""
    import torch

    cores = os.cpu_count() or 1
    cpu = f"CPU, {cores} {'core' if cores == 1 else 'cores'}"
    return f"{torch.cuda.get_device_name(0)}; {cpu}" if torch.cuda.is_available() else cpu


@st.cache_resource(max_entries=16, show_spinner="Measuring the heads", hash_funcs=BY_KEY)
def circuits(model: Model) -> Circuits:
    """The circuits of every head, not to be changed; measures now where nobody has. Raises WiscaError."""
    return heads_store.measured_circuits(model.checkpoint, model.sites)


def heads_bytes(model: Model) -> int:
    """What the pass over the heads reads."""
    return heads_store.n_bytes_to_read(model.checkpoint, model.sites)


def heads_wait(model: Model) -> bool:
    """Whether measuring the heads is more than two seconds of work that nobody has done yet."""
    return heads_bytes(model) > JOB_BYTES // 5 and heads_store.cached_circuits(model.checkpoint, model.sites) is None


@st.cache_data(max_entries=256, show_spinner=False, hash_funcs=BY_KEY)
def rescale_check(model: Model, block: str, layer: int) -> FactorCheck | None:
    """What a random rescale does to the heads of one layer; reads its weights again."""
    return factor_check(model.checkpoint, model.sites, block, layer)


def kept_matrices(model: Model) -> pd.DataFrame | None:
    """The measured matrices, None where nobody has measured them."""
    return heads_store.cached_matrices(model.checkpoint, model.with_pairs(PAIRS).sites)
