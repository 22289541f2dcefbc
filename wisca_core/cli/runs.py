"""``wisca runs``: what is in the logs of training runs, whatever tool wrote them."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wisca_core.cli.terminal import bar, document, note, say, say_lines, table
from wisca_core.errors import BadOption
from wisca_core.runs import Logs, Run, read
from wisca_core.runs.groups import (
    by_configuration,
    differences,
    ends,
    ends_table,
    group_statistics,
    loss_metric,
    lower_is_better,
    seed_of,
)
from wisca_core.runs.recognise import KINDS
from wisca_core.runs.table import metrics
from wisca_core.runs.writing import HEAD, write_csv
from wisca_core.spreadsheet import check_replaceable
from wisca_core.words import plural

FOLLOW_SECONDS = 2.0
MOST_RUNS = 40
MOST_SETTINGS = 12


def run(paths: Sequence[str], csv: Path | None, metric: str, step_column: str, follow: bool, json: bool) -> int:
    """Always 0: logs that cannot be read raise."""
    if csv:
        check_replaceable(csv, HEAD)
    if follow and (json or csv):
        raise BadOption("--follow prints lines until it is stopped; leave out --json and --csv.")
    if follow:
        return _follow(paths, metric, step_column)
    with bar() as progress:
        logs = read(paths, step_column, progress)
    chosen = _metric(logs.runs, metric)
    if csv:
        with bar() as progress:
            n_rows = write_csv(csv, logs.runs, progress)
    if json:
        document("wisca-runs", _document(logs, chosen))
        return 0
    _say(logs, chosen)
    if csv:
        say(f"{n_rows:,} rows written to {csv}")
    return 0


def _metric(runs: Sequence[Run], asked: str) -> str:
    """The metric that is summed up: the one asked for, or the loss that most runs have."""
    found = metrics(runs)
    if asked:
        if asked not in found:
            raise BadOption(
                f"metric: {asked!r} is in none of the runs; they have "
                f"{', '.join(found[:12])}{' and others' if len(found) > 12 else ''}."
            )
        return asked
    losses = [loss_metric(run) for run in runs]
    return max(losses, key=losses.count) or found[0]


def _say(logs: Logs, metric: str) -> None:
    runs = logs.runs
    lower = lower_is_better(metric)
    say(
        f"{plural(len(runs), 'run')}, {plural(sum(len(run) for run in runs), 'value')}, "
        f"{plural(len(metrics(runs)), 'metric')}",
        style="bold",
    )
    say(f"{metric}: final is the last value logged, best the {'lowest' if lower else 'highest'}.\n")
    rows = []
    for one in runs[:MOST_RUNS]:
        cells = ["", "", "", ""]
        if metric in one.series:
            e = ends(one.series[metric], lower)
            cells = [f"{e.final_step:,.6g}", _number(e.final), _number(e.best), f"{e.best_step:,.6g}"]
        rows.append([one.name, one.kind, seed_of(one) or "", f"{len(one):,}", str(len(one.series)), *cells])
    table(
        ["Run", "Log", "Seed", "Values", "Metrics", "Last step", "Final", "Best", "at step"], rows, numbers=range(3, 9)
    )
    if len(runs) > MOST_RUNS:
        say(f"and {len(runs) - MOST_RUNS:,} more (--json lists all)\n")
    _say_groups(runs, metric, lower)
    _say_settings(runs)
    remarks = [f"{one.name}: {remark}" for one in runs for remark in one.remarks]
    say_lines("Read and not read:", [*remarks, *(f"{path}: {why}" for path, why in logs.problems)])


def _say_groups(runs: Sequence[Run], metric: str, lower: bool) -> None:
    groups = by_configuration(runs)
    if len(runs) < 2 or max(map(len, groups.values())) < 2:
        return
    stats = group_statistics(ends_table(groups, metric, lower))
    rows = [
        [row.group, str(row.runs), str(row.not_finite), *map(_number, (row.mean, row.sd, row.low, row.high))]
        for row in stats.itertuples()
    ]
    say(f"Final {metric} by configuration, runs that differ in their seed only together; 95 % t interval of the mean:")
    table(["Group", "Runs", "Not finite", "Mean", "SD", "Low", "High"], rows, numbers=range(1, 7))


def _say_settings(runs: Sequence[Run]) -> None:
    settings = differences(runs)
    if settings.empty or len(runs) < 2:
        return
    shown = list(settings.columns[:MOST_SETTINGS])
    more = f", {len(settings.columns) - len(shown)} more with --json" if len(settings.columns) > len(shown) else ""
    say(f"Settings that differ{more}:")
    table(["Run", *shown], [[name, *settings.loc[name, shown]] for name in settings.index[:MOST_RUNS]])


def _document(logs: Logs, metric: str) -> dict:
    lower = lower_is_better(metric)
    groups = by_configuration(logs.runs)
    stats = group_statistics(ends_table(groups, metric, lower))
    return {
        "paths": logs.paths,
        "metric": metric,
        "lower_is_better": lower,
        "runs": [_run(one) for one in logs.runs],
        "groups": [
            {"runs": [r.name for r in groups[row["group"]]]} | {"n" if k == "runs" else k: v for k, v in row.items()}
            for row in stats.to_dict("records")
        ],
        "not_read": [{"path": path, "reason": why} for path, why in logs.problems],
    }


def _run(one: Run) -> dict:
    found = {}
    for metric, series in one.series.items():
        e = ends(series, lower_is_better(metric))
        found[metric] = {
            "points": len(series),
            "first_step": series.chunks[0][0][0],
            "last_step": e.final_step,
            "final": e.final,
            "best": e.best,
            "best_step": e.best_step,
            "nan": series.n_nan,
            "infinite": series.n_infinite,
            "repeated_steps": series.n_repeated,
            "steps_back": series.n_back,
        }
    return {
        "run": one.name,
        "log": KINDS[one.kind][0],
        "source": one.source,
        "seed": seed_of(one),
        "counts": one.counts,
        "remarks": one.remarks,
        "step_column": one.step_column,
        "columns": one.columns,
        "config": one.config,
        "metrics": found,
    }


def _follow(paths: Sequence[str], metric: str, step_column: str) -> int:
    logs = Logs(paths, step_column)
    seen: dict[str, int] = {}
    note("following; Ctrl-C ends it")
    while True:
        if logs.poll():
            for one in logs.runs:
                if seen.get(one.name) != len(one):
                    name = metric or loss_metric(one) or next(iter(one.series))
                    if name in one.series:
                        e = ends(one.series[name], lower_is_better(name))
                        say(
                            f"{one.name}: step {e.final_step:,.6g}, {name} {_number(e.final)}, best "
                            f"{_number(e.best)}, {len(one):,} values"
                        )
                    seen[one.name] = len(one)
        time.sleep(FOLLOW_SECONDS)


def _number(value: float) -> str:
    return f"{value:,.5g}" if np.isfinite(value) else "NaN" if np.isnan(value) else f"{value}"
