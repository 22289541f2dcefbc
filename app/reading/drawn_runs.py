"""What Runs draws: the logs that are open, brought together with what the person has chosen."""

import re
from dataclasses import dataclass
from pathlib import Path

from wisca_app import cached, state
from wisca_app.open_model import normal
from wisca_core.errors import UnreadableInput
from wisca_core.runs import Logs, Run
from wisca_core.runs.drawing import token_metric
from wisca_core.runs.groups import by_configuration, by_seed, loss_metric
from wisca_core.runs.table import metrics
from wisca_core.trajectories import find_checkpoints

MOST_CURVES = 6
X_LABELS = {"step": "Step", "tokens": "Tokens", "time": "Time"}
# Points in all lines of a chart together, and the least and most of one: what a browser draws without a pause.
_POINTS, _LEAST, _MOST = 120_000, 200, 4000

# choices that say something of the logs they were made on
OF_THESE_LOGS = (
    "step_column curves runs_search runs_chosen x window highlight from_group to_group histograms_of histogram_family "
    "checkpoints moved_block moved_layer"
).split()


@dataclass(frozen=True, eq=False)
class DrawnRuns:
    """``found``: all that were read and meet the search, ``runs``: those of them that are shown. ``groups``: title ->
    runs, single runs each under their name where nothing is put together; ``all_groups``: the same of all that were
    read. ``metrics``: those drawn; empty where the logs hold none.
    """

    logs: Logs
    found: tuple[Run, ...]
    runs: tuple[Run, ...]
    groups: dict[str, tuple[Run, ...]]
    all_groups: dict[str, tuple[Run, ...]]
    everything: tuple[str, ...]
    metrics: tuple[str, ...]
    x: str
    smoothing: float
    as_band: bool

    @property
    def n_lines(self) -> int:
        return len(self.groups) if self.as_band else len(self.runs)

    @property
    def short(self) -> str:
        """What the files are called that are saved of it: the run, or the first path's name."""
        return self.runs[0].name if len(self.runs) == 1 else Path(self.logs.paths[0]).name or "runs"

    @property
    def most(self) -> int:
        """Points a line."""
        return max(_LEAST, min(_MOST, _POINTS // max(1, self.n_lines)))


def paths() -> tuple[str, ...]:
    """The paths that are open, one a line of what was written."""
    return tuple(line.strip() for line in state.get("logs").splitlines() if line.strip())


def drawn_runs() -> DrawnRuns:
    """Raises UnreadableInput, BadOption. Choices that these logs do not have give way to ones they have."""
    if not paths():
        raise UnreadableInput("no log is open. Name files or folders above, one a line.")
    logs = cached.logs(paths(), state.get("step_column"))
    state.note("logs drawn", state.get("logs"))
    found = matching_runs(logs.runs, state.get("runs_search")) or logs.runs
    chosen_runs = set(state.get("runs_chosen"))
    runs = tuple(run for run in found if run.name in chosen_runs) or found
    everything = tuple(metrics(runs))
    chosen = [metric for metric in state.get("curves") if metric in everything][:MOST_CURVES]
    if not chosen and everything:
        chosen = [_first(runs, everything)]
    if chosen != state.get("curves"):
        state.put("curves", chosen)
    if state.get("x") not in axes(runs, everything):
        state.put("x", "step")
    together = state.get("together")
    group = {"configuration": by_configuration, "seed": by_seed}.get(
        together, lambda runs: {run.name: (run,) for run in runs}
    )
    return DrawnRuns(
        logs,
        found,
        runs,
        group(runs),
        group(logs.runs),
        everything,
        tuple(chosen),
        state.get("x"),
        float(state.get("smoothing")),
        as_band=together != "none" and state.get("shape") == "band",
    )


def forget_choices() -> None:
    """Other logs begin with their own metric, runs and groups. To be called where other ones were asked for, before the
    widgets of the page are drawn.
    """
    if state.note("logs drawn") not in (None, state.get("logs")):
        for name in OF_THESE_LOGS:
            state.reset(name)


def matching_runs(runs: tuple[Run, ...], text: str) -> tuple[Run, ...]:
    """Runs in whose name every word of the search stands, or begins one of a setting ("rate 0.01", "lr=0.01")."""
    words = [(word, re.compile(rf"(?<![a-z0-9]){re.escape(word)}")) for word in text.lower().replace("=", " ").split()]

    def meets(run: Run) -> bool:
        settings = "\n".join(f"{name} {value}" for name, value in run.config.items()).lower() if words else ""
        return all(word in run.name.lower() or begins.search(settings) for word, begins in words)

    return tuple(run for run in runs if meets(run))


def _first(runs: tuple[Run, ...], everything: tuple[str, ...]) -> str:
    losses = [loss for run in runs if (loss := loss_metric(run))]
    return max(losses, key=losses.count) if losses else everything[0]


def axes(runs: tuple[Run, ...], everything: tuple[str, ...]) -> list[str]:
    """What x can be: step, tokens and time where some run has them, then every metric."""
    out = ["step"]
    if any(token_metric(run) for run in runs):
        out.append("tokens")
    if any(chunk[2] is not None for run in runs for series in run.series.values() for chunk in series.chunks[:1]):
        out.append("time")
    return [*out, *everything]


def checkpoint_folder() -> str:
    """The folder of checkpoints: the one that was named, else the first among the open logs that holds some; "" where
    there is none.
    """
    if state.get("checkpoints").strip():
        return normal(state.get("checkpoints"))
    for path in paths():
        folder = Path(normal(path))
        for one in (folder, folder.parent):
            try:
                find_checkpoints(one)
                return str(one)
            except UnreadableInput:
                continue
    return ""
