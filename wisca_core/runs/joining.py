"""One training that several tools logged is one run: its trainer_state.json, TensorBoard events and tracker files say
the same values at the same steps.

Joined is what the values prove: at least two of them, of a metric that only this training can have (a loss, a gradient
norm), agree to single precision wherever both logs have the step, and none differs. Two trainings with one seed may
repeat each other to the last digit: a log joins the nearest folder, and no run has two logs of one kind.

By its folders alone one thing is known: what SummaryWriter.add_hparams and add_scalars write in folders below their
run.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from wisca_core.runs.table import Run, Series

# Of logs of one training the first has the names and, where both have a metric, its points: the most exact first.
_ORDER = (
    "own",
    "trainer_state",
    "csv",
    "jsonl",
    "json",
    "parquet",
    "mlflow",
    "mlflow_folder",
    "dvclive",
    "wandb",
    "swanlab",
    "trackio",
    "tensorboard",
    "console",
)
_TELLING = ("loss", "grad_norm", "gradient_norm", "perplexity", "reward", "accuracy")
_MOST_POINTS = 2000


def join_runs(runs: Sequence[Run]) -> tuple[Run, ...]:
    """``runs`` with those of one training as one run, in their order."""
    runs = _below(runs)
    signs: dict[tuple, list[int]] = {}
    for k, run in enumerate(runs):
        for sign in _signs(run):
            signs.setdefault(sign, []).append(k)
    candidates = {
        (a, b)
        for members in signs.values()
        for i, a in enumerate(members[:50])
        for b in members[i + 1 : 50]
        if runs[a].kind != runs[b].kind
    }
    whole: list[list[int]] = [[k] for k in range(len(runs))]
    for a, b in sorted(candidates, key=lambda pair: -_nearness(runs[pair[0]], runs[pair[1]])):
        here, there = (next(group for group in whole if k in group) for k in (a, b))
        kinds = [runs[k].kind for k in (*here, *there)]
        if here is there or len(set(kinds)) < len(kinds) or not _same_training(runs[a], runs[b]):
            continue
        whole.remove(there)
        here += there
    whole.sort(key=min)
    return tuple(_as_one([runs[k] for k in group]) if len(group) > 1 else runs[group[0]] for group in whole)


def plain_metric(name: str) -> str:
    """The name of a metric as all loggers of one trainer would write it: "train/loss" and "loss" are one, as are
    "eval/loss" and "eval_loss".
    """
    for prefix in ("train/", "train_"):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            # the summary at the end of a training ("train_loss", beside "loss") is another number
            return name if prefix == "train_" else rest
    return name.replace("eval/", "eval_", 1).replace("test/", "test_", 1)


def _signs(run: Run) -> list[tuple]:
    """What another log of the same training has too: the first values of its telling metrics."""
    out = []
    for metric, series in run.series.items():
        if _is_telling(metric):
            step, value = series.chunks[0][:2]
            value = np.clip(value[:3], -1e38, 1e38)
            out += [
                (plain_metric(metric), float(s), float(np.float32(v)))
                for s, v in zip(step[:3], value)
                if math.isfinite(v)
            ]
    return out


def _is_telling(metric: str) -> bool:
    return any(word in metric.lower() for word in _TELLING)


def _nearness(a: Run, b: Run) -> int:
    """How many folders two logs share."""
    parts = [Path(os.path.abspath(run.source)).parts for run in (a, b)]
    return next((i for i, pair in enumerate(zip(*parts)) if pair[0] != pair[1]), min(map(len, parts)))


def _same_training(a: Run, b: Run) -> bool:
    of_b = {plain_metric(metric): series for metric, series in b.series.items()}
    agreeing = 0
    for metric, series in a.series.items():
        other = of_b.get(plain_metric(metric))
        if other is None or not _is_telling(metric):
            continue
        found = _agreeing(series, other)
        if found is None:
            return False
        agreeing += found
    return agreeing >= 2


def _agreeing(a: Series, b: Series) -> int | None:
    """At how many steps both have the same value; None where at some step no value of one is one of the other's."""
    values: dict[float, list[float]] = {}
    for step, value in zip(b.step[:_MOST_POINTS], b.value[:_MOST_POINTS]):
        values.setdefault(float(step), []).append(float(value))
    same = 0
    for step, value in zip(a.step[:_MOST_POINTS], a.value[:_MOST_POINTS]):
        others = values.get(float(step))
        if others is None:
            continue
        if not any(_equal(float(value), other) for other in others):
            return None
        same += bool(np.isfinite(value))
    return same


def _equal(a: float, b: float) -> bool:
    return a == b or abs(a - b) <= 2e-6 * max(abs(a), abs(b)) or (not math.isfinite(a) and not math.isfinite(b))


def _as_one(parts: Sequence[Run]) -> Run:
    parts = sorted(parts, key=lambda run: _ORDER.index(run.kind) if run.kind in _ORDER else len(_ORDER))
    first = max(
        parts, key=lambda run: max((len(one) for name, one in run.series.items() if _is_telling(name)), default=0)
    )
    parts = [first, *(run for run in parts if run is not first)]
    series, settings, distributions, remarks = {}, {}, {}, []
    have: set[str] = set()
    for run in parts:
        names = {metric: plain_metric(metric) for metric in run.series}
        series |= {metric: one for metric, one in run.series.items() if names[metric] not in have}
        have |= set(names.values())
        distributions |= {name: one for name, one in run.distributions.items() if name not in distributions}
        remarks += [remark for remark in run.remarks if remark not in remarks]
    for run in sorted(parts, key=lambda run: -len(run.config)):  # the log that says most says it best
        settings |= {name: value for name, value in run.config.items() if name not in settings}
    also = tuple(dict.fromkeys(kind for run in parts for kind in (run.kind, *run.also)))[1:]
    counts = {key: sum(run.counts.get(key, 0) for run in parts) for key in first.counts}
    kinds = ", ".join(dict.fromkeys(run.kind.replace("_", " ") for run in parts))
    said = f"one training in {len(parts)} logs, which have the same values at the same steps: {kinds}."
    return replace(
        first,
        series=MappingProxyType({metric: replace(one, run=first.name) for metric, one in series.items()}),
        config=MappingProxyType(settings),
        counts=MappingProxyType(counts),
        remarks=(said, *remarks),
        distributions=MappingProxyType(distributions),
        also=also,
    )


def _below(runs: Sequence[Run]) -> list[Run]:
    """Folders that SummaryWriter made below a run joined to it: the settings of add_hparams, whose folder has nothing
    but values that are set against them, and add_scalars, whose folders are called by the tag and the line.
    """
    places = {Path(run.source): k for k, run in enumerate(runs) if run.kind == "tensorboard"}
    out: list[Run | None] = list(runs)
    for place, k in places.items():
        parent = places.get(place.parent)
        run = runs[k]
        if parent is None or out[parent] is None:
            continue
        steps = {float(step) for one in run.series.values() for step in one.step[:2]}
        if run.config and steps <= {0.0} and all(len(one) == 1 for one in run.series.values()):
            new = {metric: one for metric, one in run.series.items() if metric not in out[parent].series}
            out[parent], out[k] = _with(out[parent], new, run.config), None
        elif not run.config and len(run.series) == 1:
            tag, one = next(iter(run.series.items()))
            if place.name.startswith(tag.replace("/", "_") + "_"):
                line = f"{tag}/{place.name[len(tag) + 1 :]}"
                out[parent], out[k] = _with(out[parent], {line: replace(one, metric=line)}, {}), None
    return [run for run in out if run is not None]


def _with(run: Run, series: Mapping[str, Series], config: Mapping[str, object]) -> Run:
    more = {metric: replace(one, run=run.name, metric=metric) for metric, one in series.items()}
    return replace(
        run, series=MappingProxyType({**run.series, **more}), config=MappingProxyType({**run.config, **config})
    )
