"""What was found: perplexities, scores, paired differences, heads, drafts, and what was refused."""

from typing import Any

import pandas as pd
import streamlit as st

from wisca_app.figures import evaluation, words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Theme
from wisca_app.heading import heading, show
from wisca_app.messages import plain


def draw(result: dict[str, Any], theme: Theme) -> None:
    if result["perplexity"]:
        read = result["text"] or {}
        how = (
            f"{words.markdown_text(read.get('name', ''))}: {words.size(read.get('n_bytes', 0))} read. Perplexities "
            "of different tokenizers do not compare; bits a byte do. Errors are over windows, taken as independent."
        )
        _table("Text", how, evaluation.table(result["perplexity"], evaluation.PERPLEXITY), "perplexity")
    if result["seeds"]:
        _table(
            "Arms by training seed",
            "Each arm minus the baseline of the same seed; documents are nested in seeds.",
            evaluation.table(result["seeds"], evaluation.SEEDS),
            "seeds",
        )
    if result["tasks"]:
        _tasks(result, theme)
    if result["heads"]:
        _inside(result, theme)
    if result["drafts"]:
        _table(
            "Drafts",
            "Share of drafted tokens that the target keeps, over prompts; the text is always the target's own.",
            evaluation.table(result["drafts"], evaluation.DRAFTS),
            "drafts",
        )
    if result["refused"]:
        with st.expander(
            f"Not evaluated, with the reason: {words.plural(len(result['refused']), 'thing')}", expanded=True
        ):
            plain("\n".join(f"{one['what']}: {one['reason']}" for one in result["refused"]))


def _tasks(result: dict[str, Any], theme: Theme) -> None:
    show(evaluation.scores_chart(pd.DataFrame(result["tasks"])), theme, "scores")
    with st.expander("Scores as a table" + (", with the mean" if result["means"] else "")):
        _frame(evaluation.table(result["tasks"], evaluation.TASKS), "task table")
        for row in result["means"]:
            plain(f"{row['model']}: mean of {row['n_tasks']} tasks {row['score']:.3f}")
    if result["paired"]:
        how = "Second minus first over the same documents; interval by bootstrap over documents."
        _table(
            "The two models, document by document", how, evaluation.table(result["paired"], evaluation.PAIRED), "paired"
        )
    same = result["same"]
    if same and same["flipped"]:
        with st.expander(f"Answers that flipped: {words.plural(len(same['flipped']), 'document')}"):
            _frame(pd.DataFrame(same["flipped"]), "flipped")


def _inside(result: dict[str, Any], theme: Theme) -> None:
    heads, layers = pd.DataFrame(result["heads"]), pd.DataFrame(result["layers"])
    models = list(dict.fromkeys(heads["model"]))
    measure = st.segmented_control(
        "Inside",
        list(evaluation.SHOWN),
        format_func=evaluation.SHOWN.get,
        default="largest_logit",
        key="inside_measure",
        label_visibility="collapsed",
        required=True,
    )
    show(evaluation.inside_chart(heads, models[-1], measure), theme, "heads")
    change = result["inside_change"]
    if change:
        largest = max(value for value in change.values() if value is not None)
        plain(f"Largest relative difference of any head's figures between the two models: {words.digits(largest, 2)}.")
    if len(models) > 2:
        what = evaluation.SHOWN[measure]
        show(
            Chart(
                f"{what} over the models",
                "",
                heads,
                f"{measure}-over-models",
                lambda theme: evaluation.over_models(heads, measure, theme),
                alt=what,
            ),
            theme,
            "over models",
        )
    if not layers.empty:
        said = "Largest activation behind each layer"
        draw_activations = Chart(said, "", layers, "activations", lambda theme: evaluation.activations(layers, theme))
        show(draw_activations, theme, "activations")


def _table(finding: str, how: str, rows: pd.DataFrame, name: str) -> None:
    heading(finding, how, rows, name)
    _frame(rows, f"{name} rows")


def _frame(rows: pd.DataFrame, key: str) -> None:
    numbers = {
        name: st.column_config.NumberColumn(format="%.4g")
        for name in rows.columns
        if pd.api.types.is_float_dtype(rows[name])
    }
    st.dataframe(rows, hide_index=True, column_config=numbers, key=key)
