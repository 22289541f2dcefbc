"""The paper's figures, every term of the pages, and where it comes from."""

import pandas as pd
import streamlit as st

from wisca_app.figures import words
from wisca_app.parts import quiet

# arXiv:2508.16676 (ACL 2026 Findings): as reported there, never ours
REPORTED = (
    ("TinyLlama, TinyStories", "train loss", "1.319 → 1.275", "8"),
    ("Qwen2-1.5B, TinyStories", "train loss", "1.355 → 1.334", "6"),
    ("Qwen1.5-MoE, TinyStories", "train loss", "1.550 → 1.514", "1"),
    ("LoRA, Alpaca", "train loss", "0.860 → 0.853", "–"),
    ("Llama-1.1B, four zero-shot tasks", "mean accuracy", "0.397 → 0.437, of it 0.034 BoolQ", "–"),
)
SOURCES = (
    "The method: arXiv:2508.16676.",
    "Rates a matrix under muP for grouped queries: arXiv:2605.15290. Weight decay that keeps sub-layer gains: "
    "arXiv:2510.15262. LoRA+: arXiv:2402.12354. Balanced LoRA: arXiv:2605.31484.",
    "By the identity, balancing A against B of an adapter is LoRA+'s knob, turned the other way while B is small.",
)
NAMES = {
    "ratio": "Ratio",
    "query side": "Query side",
    "size": "Size",
    "rest": "The rest",
    "pair": "Pair",
    "KV group": "KV group",
    "channel": "Channel",
    "exact": "Exact",
    "largest": "Largest",
    "outlying": "Outlying",
    "rates": "Rates",
}


def paper() -> None:
    st.subheader("The paper's figures", anchor=False)
    quiet(
        "Baseline → balanced, as reported. At g = 1 WISCA starts as nothing, yet that model improves too. What "
        "this installation measured is on Compare."
    )
    st.dataframe(
        pd.DataFrame(REPORTED, columns=["Experiment", "Figure", "Reported", "g"]),
        hide_index=True,
        key="paper",
        alt="Figures as the paper reports them",
    )
    st.page_link("views/compare.py", label="What was measured here")


def terms() -> None:
    st.subheader("Every term", anchor="terms")
    for term, sentence in words.TERMS.items():
        st.markdown(f"**{NAMES[term]}** :gray[{words.markdown_text(sentence)}]")


def sources() -> None:
    st.subheader("Sources", anchor=False)
    for one in SOURCES:
        quiet(words.markdown_text(one))
