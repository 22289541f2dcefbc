"""Distributions out of the logs: histograms of weights and gradients, and the ratios that our callbacks log, per layer
over the steps.
"""

import pandas as pd
import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.figures.chart import Chart
from wisca_app.figures.runs import CONFIG
from wisca_app.figures.runs_distributions import fans, over_layers
from wisca_app.figures.runs_trajectory import trajectory as trajectory_figure
from wisca_app.figures.template import Theme
from wisca_app.heading import show
from wisca_app.parts import one_of, pick
from wisca_app.reading.drawn_runs import DrawnRuns
from wisca_core.runs import Run
from wisca_core.runs.distributions import FIGURES, families

MOST_PANELS = 12
_RATIO = "wisca/log2_ratio/"
_VIEWS = {"values": "Values", "rms": "RMS", "l2": "L2 norm", "l1": "L1 norm"}


def draw(shown: DrawnRuns, theme: Theme) -> list[Chart]:
    """The section, nothing where no run that is shown has any; returns its charts."""
    having = {run.name: run for run in shown.runs if run.distributions or _ratios(run)}
    if not having:
        return []
    st.header("Distributions in the logs", anchor=False)
    if state.get("histograms_of") not in having:
        state.put("histograms_of", next(iter(having)))
    if len(having) > 1:
        pick("Run", list(having), "histograms_of", width=320)
    run = having[state.get("histograms_of")]
    return [*_histograms(run, theme, shown.short), *_of_ratios(run, theme, shown.short)]


def _histograms(run: Run, theme: Theme, of: str) -> list[Chart]:
    found = families(run.distributions)
    if not found:
        return []
    if state.get("histogram_family") not in found:
        state.put("histogram_family", max(found, key=lambda name: (len(found[name]), "grad" not in name)))
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        pick(
            "Histograms of",
            list(found),
            "histogram_family",
            format_func=lambda name: f"{name} ({words.plural(len(found[name]), 'layer')})" if "*" in name else name,
            width=380,
        )
        one_of("Show", _VIEWS, "histogram_view")
    family, view = state.get("histogram_family"), state.get("histogram_view")
    members = {layer: run.distributions[name] for layer, name in found[family].items()}
    data = pd.concat(
        [
            pd.DataFrame({"layer": layer, "step": one.step, **{n: one.column(n) for n in FIGURES}})
            for layer, one in members.items()
        ],
        ignore_index=True,
    )
    n = len(members)
    what = words.markdown_text(family)
    if view == "values":
        layers = list(members)
        # the first, the last and even steps between them, where there are more than panels
        chosen = (
            layers if n <= MOST_PANELS else [layers[round(i * (n - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]
        )
        finding = f"{family}: values over the steps" + (f", {words.plural(n, 'layer')}" if n > 1 else "")
        left_out = f" {MOST_PANELS} of {n} layers; the norms show all." if n > MOST_PANELS else ""
        how = f"Line: median; bands: half, nine tenths and all of the values.{left_out}"
        panels = [(f"layer {k}" if k >= 0 else family, members[k]) for k in chosen]

        def draw(theme: Theme):
            return fans(panels, theme)
    else:
        column = data["l2"] / data["count"] ** 0.5 if view == "rms" else data[view]
        wide = data.assign(y=column).pivot_table(index="step", columns="layer", values="y", aggfunc="last").sort_index()
        first, last = (float(wide.iloc[k].median()) for k in (0, -1))
        finding = (
            f"{family}: {_VIEWS[view]} of the median layer goes from {words.digits(first)} to {words.digits(last)}"
        )
        how = "Quiet: every layer; bold: the median layer. Of a histogram's bins, so as exact as those are narrow."

        def draw(theme: Theme):
            return over_layers(wide, _VIEWS[view], theme)

    alt = f"{finding}. {what}"
    one = Chart(words.markdown_text(finding), how, data, "histograms", draw, alt, of=of, config=CONFIG)
    show(one, theme, f"histogram chart {view}")
    return [one]


def _ratios(run: Run) -> dict[str, dict[int, str]]:
    return families(name for name in run.series if name.startswith(_RATIO))


def _of_ratios(run: Run, theme: Theme, of: str) -> list[Chart]:
    """What WiscaCallback and Scaler log: the ratio of every pair, over the layers."""
    out = []
    for family, members in _ratios(run).items():
        pair = family.rsplit(".", 1)[-1].split(":")[0]
        if pair not in words.PAIR_LABELS:
            continue
        parts = [
            pd.DataFrame({"step": run.series[name].step, "layer": layer, "log2_ratio": run.series[name].value})
            for layer, name in members.items()
        ]
        layers = pd.concat(parts, ignore_index=True).assign(log2_size=float("nan"))
        where = family.removeprefix(_RATIO)
        last = layers.groupby("layer")["log2_ratio"].last().median()
        finding = f"{words.PAIR_LABELS[pair]} as it was logged ends at {words.side(pair, last)} in the median layer"
        how = (
            f"{words.markdown_text(where)}. Bold: the median layer; quiet: every layer. Ratio of the logged norm, "
            "log axis."
        )
        one = Chart(
            finding,
            how,
            layers.drop(columns="log2_size"),
            f"logged ratios {where}",
            lambda theme, layers=layers, pair=pair: trajectory_figure(
                layers, layers.assign(group=0), pair=pair, theme=theme
            ),
            of=of,
            config=CONFIG,
        )
        show(one, theme, f"logged ratios {where}")
        out.append(one)
    return out
