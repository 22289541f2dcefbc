"""What is not covered or was refused, named with its reason; and a model that is refused whole, as plain tensors."""

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached
from wisca_app.declaring import notices as declaration
from wisca_app.figures import words
from wisca_app.heading import heading
from wisca_app.inspecting import searching
from wisca_app.inspecting.drawn_pair import DrawnPair
from wisca_app.inspecting.facts import facts
from wisca_app.messages import plain
from wisca_app.parts import quiet
from wisca_core.architecture.refusals import lines
from wisca_core.model import Model
from wisca_core.pairs import SIDES
from wisca_core.patterns.blocks import unit_of
from wisca_core.planning.decide import ZERO

MOST = (
    50  # reasons written out: a pruned model has thousands of zero channels, and each reason costs a look at the table
)


def draw(shown: DrawnPair) -> None:
    model = shown.model
    for remark in (*model.sites.remarks, *model.checkpoint.remarks):
        plain(remark)
    quiet(_never(shown))
    refusals = lines((*model.sites.refusals, *cached.feed_forward_refusals(model)))
    left_alone = int((shown.decision.fate >= ZERO).sum())
    if left_alone <= MOST:
        refusals += [f"{r.what}: {r.reason}" for r in shown.decision.refusals]
    elsewhere = 0 if left_alone <= MOST else left_alone
    refusals += _without_ratio(shown)
    if refusals or elsewhere:
        n = len(refusals) + elsewhere
        with st.expander(
            f"Refused or left alone, with the reason: {words.plural(n, 'place')}", expanded=len(refusals) <= 4
        ):
            plain("\n".join(refusals[:MOST]))
            if n > MOST:
                plain(f"and {n - min(len(refusals), MOST):,} more, in the plan's CSV on Rescale")


def _never(shown: DrawnPair) -> str:
    if shown.lanes:
        return (
            "Not covered: the base model, which stays as it is. Scaling, biases, magnitudes and saved modules of "
            "the adapter are copied."
        )
    biases = any(not leg.measured for site in shown.model.sites.sites if site.key.pair != "mlp" for leg in site.legs)
    first = (
        "Biases enter no norm; those of q, k and v follow the factors."
        if biases
        else "No bias of q, k or v follows a factor here."
    )
    if shown.pair == "mlp":
        return "Not covered: gates, routers, embeddings and norms. Biases of up enter no norm and follow its factors."
    mlp = "; feed-forward pairs are looked at when MLP is chosen above" if "mlp" in shown.model.pairs else ", the MLP"
    return f"Not covered: embeddings and norms outside attention{mlp}. {first}"


def _without_ratio(shown: DrawnPair) -> list[str]:
    """Groups drawn as a cross."""
    bad = shown.everything[~np.isfinite(shown.everything["log2_ratio"])]
    said = []
    for row in bad.head(MOST).itertuples():
        sides = [
            f"{side} norm is {'zero' if value == 0 else 'not finite'}"
            for side, value in zip(SIDES[row.pair], (row.left, row.right))
            if value == 0 or not np.isfinite(value)
        ]
        group = f" KV group {row.group}" if unit_of(row.pair, row.block) == "KV group" else ""
        said.append(f"{row.name}{group}: its {' and its '.join(sides)}, so it has no ratio")
    return said


def draw_refused(model: Model) -> None:
    """The reason, and what the files hold."""
    quiet(words.markdown_text(facts(model)))
    st.title("This model is not covered; its tensors can still be looked at.", anchor=False)
    plain(model.refusal or "No pair was found in it whose scale can be moved.")
    searching.draw(model)
    declaration.offer(model)
    for line in lines(r for r in model.sites.refusals if r.what != "model"):
        plain(line)
    for remark in (*model.sites.remarks, *model.checkpoint.remarks):
        plain(remark)
    tensors = model.checkpoint.stored or model.checkpoint.tensors
    table = pd.DataFrame(
        {
            "Name": [t.name for t in tensors],
            "dtype": [t.dtype for t in tensors],
            "Shape": [" × ".join(map(str, t.shape)) or "a single number" for t in tensors],
            "Values": [t.n_elements for t in tensors],
            "Bytes": [t.n_bytes for t in tensors],
            "File": [t.file for t in tensors],
        }
    )
    st.space("small")
    heading(
        f"{words.plural(len(tensors), 'tensor')}, {words.parameters(model.checkpoint.n_parameters)}",
        "As stored; nothing was read but the headers.",
        table,
        "tensors",
    )
    st.dataframe(
        table,
        hide_index=True,
        key="tensors",
        alt="Every stored tensor with its dtype and shape",
        column_config={
            "Values": st.column_config.NumberColumn(format="localized"),
            "Bytes": st.column_config.NumberColumn(format="localized"),
        },
    )
