"""What an evaluation found: scores between the constant answers, paired differences, heads while the model runs."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from wisca_app.figures import words
from wisca_app.figures.chart import Chart
from wisca_app.figures.compare import LEGEND
from wisca_app.figures.template import Theme, blend, figure, layer_ticks, unit

SHOWN = {
    "largest_logit": "Largest attention logit",
    "entropy": "Entropy of attention",
    "first_token": "Share on the first token",
}
HOW = {
    "largest_logit": "The largest score before softmax. Tens are common; hundreds say that softmax picks single "
    "tokens.",
    "entropy": "Nats, the mean over queries. Near 0 a head looks at one place; it cannot exceed the log of the window.",
    "first_token": "The share of attention that goes to the first token of a window, the mean over queries: a sink "
    "near 1.",
}


# The columns of its tables that people read, and what they are called.
PERPLEXITY = {
    "model": "model",
    "perplexity": "perplexity",
    "perplexity_error": "standard error",
    "bits_a_byte": "bits a byte",
    "bits_error": "± bits",
    "n_windows": "windows",
    "n_tokens": "tokens",
}
TASKS = {
    "model": "model",
    "task": "task",
    "n": "n",
    "chance": "chance",
    "majority": "most frequent answer",
    "score": "score",
    "standard_error": "standard error",
    "most_given": "same answer given",
}
PAIRED = {
    "task": "task",
    "n": "n",
    "difference": "difference",
    "low": "95 % from",
    "high": "to",
    "only_first": "only first right",
    "only_second": "only second right",
    "p_mcnemar": "McNemar p",
}
SEEDS = {
    "arm": "arm",
    "rate": "learning rate",
    "measure": "measure",
    "n_seeds": "seeds",
    "mean": "mean",
    "difference": "difference",
    "low": "95 % from",
    "high": "to",
    "words": "says",
}
DRAFTS = {
    "draft": "draft",
    "n_prompts": "prompts",
    "acceptance": "accepted",
    "acceptance_low": "95 % from",
    "acceptance_high": "to",
    "accepted_length": "tokens a run",
    "n_same_text": "same text",
}


def scores_chart(tasks: pd.DataFrame) -> Chart:
    """``tasks``: rows of wisca_core.evaluation."""
    said = score_finding(tasks)
    how = (
        "Dot: score with its standard error. Tinted: between the two constant answers, which no look at the question "
        "needs. Dotted: chance."
    )
    return Chart(said, how, tasks, "tasks", lambda theme: scores(tasks, theme), f"{said}. {how}")


def inside_chart(rows: pd.DataFrame, model: str, measure: str) -> Chart:
    """``rows``: model, layer, head and ``measure``; those of ``model`` are drawn."""
    part = rows[rows["model"] == model]
    how = words.markdown_text(f"{model}. {HOW[measure]}")
    return Chart(head_finding(part, measure), how, rows, f"heads-{measure}", lambda theme: heads(part, measure, theme))


def scores(tasks: pd.DataFrame, theme: Theme) -> go.Figure:
    """``tasks``: rows of wisca_core.evaluation. First model rings, second filled; the area between the two constant
    answers is tinted, chance is a dotted line.
    """
    names = list(dict.fromkeys(tasks["task"]))
    models = list(dict.fromkeys(tasks["model"]))
    fig = figure(theme, 90 + 46 * len(names), showlegend=len(models) > 1, legend=LEGEND)
    for at, name in enumerate(names):
        row = tasks[tasks["task"] == name].iloc[0]
        if math.isfinite(_or_nan(row["majority"])):
            box = dict(type="rect", y0=at - 0.32, y1=at + 0.32, line_width=0, layer="below", fillcolor=theme.middle)
            fig.add_shape(x0=row["rarest"], x1=row["majority"], **box)
        if math.isfinite(_or_nan(row["chance"])):
            line = dict(color=theme.quiet, width=1, dash="dot")
            fig.add_shape(type="line", x0=row["chance"], x1=row["chance"], y0=at - 0.38, y1=at + 0.38, line=line)
    for number, model in enumerate(models):
        rows = tasks[tasks["model"] == model]
        places = [names.index(task) + (0.14 if number else -0.14) * (len(models) > 1) for task in rows["task"]]
        filled = number or len(models) == 1
        fig.add_scatter(
            x=rows["score"],
            y=places,
            mode="markers",
            name=_escape(model),
            error_x=dict(array=rows["standard_error"].fillna(0), color=theme.quiet, thickness=1.2, width=0),
            marker=dict(symbol="circle" if filled else "circle-open", size=9, color=theme.ink, line=dict(width=1.6)),
            customdata=[
                f"{_escape(t)}<br>score {s:.3f}, standard error {_or_nan(e):.3f}, n {words.count(int(n))}"
                for t, s, e, n in zip(rows["task"], rows["score"], rows["standard_error"], rows["n"])
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    fig.update_xaxes(range=[-0.02, 1.02], showgrid=True, title=dict(text="score", standoff=8))
    fig.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[_escape(n) for n in names],
        range=[len(names) - 0.4, -0.6],
        showgrid=False,
    )
    fig.update_layout(margin=dict(l=150, r=12, t=44 if len(models) > 1 else 12, b=44))
    return fig


def score_finding(tasks: pd.DataFrame) -> str:
    """The chart's title."""
    between = int(tasks["between_constants"].sum())
    if between:
        return (
            f"{between} of {words.plural(len(tasks), 'score')} {'lies' if between == 1 else 'lie'} between the "
            "constant answers"
            if len(tasks) > 1
            else "The score lies between the constant answers"
        )
    return (
        "No score lies between the constant answers" if len(tasks) > 1 else "The score is beyond the constant answers"
    )


def heads(rows: pd.DataFrame, measure: str, theme: Theme) -> go.Figure:
    """``rows``: layer, head and ``measure`` of one model. Depth runs left to right; ink is the end that matters."""
    table = rows.pivot_table(index="head", columns="layer", values=measure)
    fig = figure(theme, max(170, 60 + 20 * len(table)))
    fig.add_heatmap(
        z=table.to_numpy(),
        x=list(table.columns),
        y=list(table.index),
        colorscale=[[0, theme.middle], [0.5, blend(theme.middle, theme.ink, 0.45)], [1, theme.ink]],
        xgap=2,
        ygap=2,
        colorbar=dict(thickness=8, len=0.9, outlinewidth=0, nticks=3, tickfont=dict(size=12, color=theme.text)),
        hovertemplate="layer %{x}, head %{y}: %{z:.3g}<extra></extra>",
    )
    fig.update_yaxes(autorange="reversed", showgrid=False, tickvals=layer_ticks([int(i) for i in table.index], 8))
    fig.update_xaxes(tickvals=layer_ticks([int(i) for i in table.columns]), title=dict(text="layer", standoff=10))
    fig.update_layout(margin=dict(l=44, r=12, t=24, b=44))
    unit(fig, "head", dx=-40, dy=4)
    return fig


def head_finding(rows: pd.DataFrame, measure: str) -> str:
    """The chart's title: where the extreme is, with its number."""
    row = rows.loc[rows[measure].idxmin() if measure == "entropy" else rows[measure].idxmax()]
    value = {"largest_logit": "{:.1f}", "entropy": "{:.2f} nats", "first_token": "{:.0%}"}[measure].format(row[measure])
    word = {
        "largest_logit": "The largest logit is",
        "entropy": "The narrowest head has",
        "first_token": "Most on the first token:",
    }
    return f"{word[measure]} {value}, in layer {int(row['layer'])}, head {int(row['head'])}"


def over_models(rows: pd.DataFrame, measure: str, theme: Theme) -> go.Figure:
    """``rows``: model, layer, head, ``measure``, models in the order of a training: the median head and the widest
    span.
    """
    models = list(dict.fromkeys(rows["model"]))
    grouped = rows.groupby("model", sort=False)[measure]
    fig = figure(theme, 260, showlegend=True, legend=LEGEND)
    for name, values, dash in (
        ("most", grouped.max(), "solid"),
        ("median", grouped.median(), "dash"),
        ("least", grouped.min(), "dot"),
    ):
        fig.add_scatter(
            x=list(range(len(models))),
            y=values.reindex(models),
            name=f"{name} of the heads",
            mode="lines+markers",
            line=dict(color=theme.ink, width=1.6, dash=dash),
            marker=dict(size=6),
            hovertemplate="%{y:.3g}<extra></extra>",
        )
    fig.update_xaxes(tickvals=list(range(len(models))), ticktext=[_escape(m.rpartition("/")[2]) for m in models])
    fig.update_layout(margin=dict(l=52, r=12, t=64, b=44))
    return fig


def activations(rows: pd.DataFrame, theme: Theme) -> go.Figure:
    """``rows``: model, layer, largest_activation. The first model dotted, the last one solid."""
    models = list(dict.fromkeys(rows["model"]))
    fig = figure(theme, 260, showlegend=len(models) > 1, legend=LEGEND)
    for number, model in enumerate(models):
        part = rows[rows["model"] == model]
        dash = "solid" if number == len(models) - 1 else "dot"
        fig.add_scatter(
            x=part["layer"],
            y=part["largest_activation"],
            name=_escape(model),
            mode="lines+markers",
            line=dict(color=theme.ink, width=1.6, dash=dash),
            marker=dict(size=6),
            hovertemplate="layer %{x}: %{y:.3g}<extra></extra>",
        )
    fig.update_yaxes(rangemode="tozero")
    fig.update_xaxes(
        tickvals=layer_ticks(sorted(rows["layer"].unique().tolist())), title=dict(text="layer", standoff=10)
    )
    fig.update_layout(margin=dict(l=52, r=12, t=64 if len(models) > 1 else 24, b=48))
    unit(fig, "largest |hidden state|", dx=-48)
    return fig


def headline(result: Mapping[str, Any]) -> tuple[str, str]:
    """(title, sentence) of the page: what was asked, answered with its number."""
    rows, same, windows, paired = result["perplexity"], result["same"], result["windows"], result["paired"]
    if (
        same
        and same["verdict"] in ("identical", "same answers", "within rounding")
        and (same["is_export"] or same["verdict"] == "identical")
    ):
        title = {
            "identical": "The two models are the same to the last bit, in every number compared.",
            "same answers": "The two models give the same answers.",
            "within rounding": "The two models differ by rounding.",
        }[same["verdict"]]
        return title, same["words"]
    if result["seeds"]:
        told = [row for row in result["seeds"] if row.get("words")]
        return (
            f"{words.plural(len(told), 'difference')} of arms, by training seed.",
            "The training seed is the unit: documents and windows are nested in it.",
        )
    if windows and windows["low"] is not None:
        name, other = rows[1]["model"], rows[0]["model"]
        if windows["low"] <= 0 <= windows["high"]:
            return "No detectable difference on this text.", _difference(windows)
        word = "better" if windows["difference_nats"] < 0 else "worse"
        return f"{name} predicts this text {word} than {other}.", _difference(windows)
    if rows:
        return (
            f"{rows[-1]['bits_a_byte']:.3f} bits a byte, perplexity {words.digits(rows[-1]['perplexity'], 4)}.",
            _error(rows[-1]),
        )
    if paired or result["tasks"]:
        return score_finding(pd.DataFrame(result["tasks"])) + ".", ""
    return "Nothing of the text was scored.", ""


def _difference(windows: Mapping[str, Any]) -> str:
    return (
        f"{_signed_value(windows['difference_nats'])} nats a token (95 % {_signed_value(windows['low'])} to "
        f"{_signed_value(windows['high'])} over "
        f"{words.plural(windows['n'], 'window')}), perplexity times {windows['perplexity_ratio']:.3f}."
    )


def _error(row: Mapping[str, Any]) -> str:
    error = row["perplexity_error"]
    tail = f"Standard error {words.digits(error, 2)} of the perplexity, " if error is not None else ""
    return f"{tail}{words.plural(row['n_windows'], 'window')}: {row['windows']}."


def _signed_value(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _escape(name: str) -> str:
    """A foreign name in a figure, where plotly reads tags."""
    return html.escape(name if len(name) <= 40 else f"...{name[-37:]}", quote=False)


def _or_nan(value: Any) -> float:
    return math.nan if value is None else float(value)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Chosen columns under the names people read."""
    return pd.DataFrame([{title: row.get(name) for name, title in columns.items()} for row in rows])
