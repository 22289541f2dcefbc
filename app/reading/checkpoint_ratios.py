"""What happened in the weights meanwhile: the ratios over the checkpoints of the same training."""

import streamlit as st

from wisca_app import cached, state
from wisca_app.figures import words
from wisca_app.figures.chart import Chart
from wisca_app.figures.runs_trajectory import trajectory as trajectory_figure
from wisca_app.figures.template import Theme
from wisca_app.heading import show
from wisca_app.job_progress import explain, follow, latest
from wisca_app.messages import errors_as_messages, plain
from wisca_app.parts import KEPT, one_of, pick, primary
from wisca_app.reading.drawn_runs import DrawnRuns, checkpoint_folder
from wisca_core import jobs
from wisca_core.runs import Run
from wisca_core.runs.drawing import thin
from wisca_core.runs.groups import loss_metric
from wisca_core.trajectories import Trajectory, advice, drifts
from wisca_core.untrusted import printable as fit_for_a_line

_MOST_POINTS = 2000
EVERY = 250


def draw(shown: DrawnRuns | None, theme: Theme) -> list[Chart]:
    """The section; returns its chart."""
    st.header("In the weights", anchor=False)
    folder = checkpoint_folder()
    with st.expander("Folder of checkpoints", expanded=not folder):
        st.text_input(
            "A folder with checkpoint-500, step_1000, ...",
            key="checkpoints",
            placeholder=folder or "/runs/my-run",
            **KEPT,
        )
    if not folder:
        st.markdown(":gray[No checkpoints lie beside these logs. Name their folder to see how the pairs moved.]")
        return []
    with errors_as_messages("The checkpoints cannot be shown"):
        if not _is_measured(folder):
            return []
        return _draw(cached.trajectory(folder), shown, theme)
    return []


def _is_measured(folder: str) -> bool:
    """Whether everything is there to be drawn; else starts or follows the job that measures it."""
    if not cached.trajectory_waits(folder):
        return True
    job = latest("trajectory", folder=folder)
    if job is not None and job.is_active:
        follow(job)
        return False
    if job is not None and job.state != "done":
        explain(job, "Measuring did not finish")
    elif job is not None:
        return True  # what it measured could not be kept: measure here, with patience
    st.markdown(":gray[One pass over the attention weights of every checkpoint; each is read once.]")
    if st.button("Measure the checkpoints", type=primary(), key="measure_checkpoints"):
        jobs.start(
            "trajectory",
            {"folder": folder},
            f"Measure checkpoints in {fit_for_a_line(folder, 60)}",
            exclusive=f"trajectory {folder}",
        )
        state.rerun()
    return False


def _draw(found: Trajectory, shown: DrawnRuns | None, theme: Theme) -> list[Chart]:
    if state.get("moved_pair") not in found.pairs:
        state.put("moved_pair", found.pairs[0])
    pair = state.get("moved_pair")
    names = found.titles(pair)
    block = state.settle("moved_block", list(names))
    table = found.layers("l1")
    layers = table[(table["pair"] == pair) & (table["block"] == block)]
    numbers = sorted(int(n) for n in layers["layer"].unique())
    if state.get("moved_layer") not in numbers:
        state.put("moved_layer", None)
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        one_of("Pair", found.pairs, "moved_pair", said=words.PAIR_LABELS)
        if len(names) > 1:
            pick("Block", list(names), "moved_block", format_func=lambda one: words.title(names[one]), width=230)
        pick("Layer and its KV groups", numbers, "moved_layer", placeholder="all, with the median", width=230)
    st.space("small")
    layer = state.get("moved_layer")
    groups = found.tables["l1"]
    groups = groups[(groups["pair"] == pair) & (groups["block"] == block)]
    loss = _loss(shown)
    finding = _finding(found, pair, block)
    left, right = words.PAIR_ROLES[pair]
    lines = (
        "The layer is bold, its KV groups are dots"
        if layer is not None
        else "Bold: the median layer; quiet: every layer"
    )
    how = (
        f"{lines}. Ratio of L1 norms, log axis: above 1× {words.coloured_word(left)} is heavier, below "
        f"{words.coloured_word(right)}." + (f" Below, {words.markdown_text(loss[0])} on the same axis." if loss else "")
    )
    chart = Chart(
        finding,
        how,
        groups,
        f"{pair}-trajectory",
        lambda theme: trajectory_figure(layers, groups, pair=pair, theme=theme, layer=layer, loss=loss),
        alt=f"Ratio of {words.PAIR_LABELS[pair]} over the checkpoints. {finding}.",
        of=found.folder.name if shown is None else shown.short,
    )
    show(chart, theme, "trajectory chart")
    for one in advice(found, "l1", EVERY, loss):
        st.markdown(words.markdown_text(one.text))
    _say_labels(found)
    return [chart]


def _finding(found: Trajectory, pair: str, block: str) -> str:
    """The chart's title: how far the median layer moved."""
    moved = [d for d in drifts(found, "l1") if (d.pair, d.block) == (pair, block) and d.growing]
    steps = sorted(set(found.steps))
    if len(steps) < 2:
        return f"One checkpoint, at step {words.count(steps[0])}"
    if not moved:
        span = f"step {words.count(steps[0])} to {words.count(steps[-1])}"
        return f"{words.PAIR_LABELS[pair]} stays where it was from {span}"
    most = max(moved, key=lambda d: len(d.layers))
    where = words.plural(len(most.layers), "layer")
    return f"{most.growing.capitalize()} grows against {most.against} in {where}, by {words.ratio(most.octaves)}"


def _loss(shown: DrawnRuns | None):
    """(name, steps, values) of the loss, thinned, of the run that the checkpoints are most likely of: the only one
    there is.
    """
    if shown is None or len(shown.runs) != 1:
        return None
    run: Run = shown.runs[0]
    metric = loss_metric(run)
    if metric is None:
        return None
    series = run.series[metric]
    step, value = series.step, series.value
    kept = thin(value, _MOST_POINTS)
    return metric, step[kept], value[kept]


def _say_labels(found: Trajectory) -> None:
    lines = [*found.remarks, *(f"{r.what}: {r.reason}" for r in found.refusals)]
    if lines:
        st.markdown(f"**{words.plural(len(lines), 'remark')} on labels and what is not covered**")
        for line in lines[:20]:
            plain(line)
        if len(lines) > 20:
            st.markdown(f":gray[and {words.count(len(lines) - 20)} more.]")
