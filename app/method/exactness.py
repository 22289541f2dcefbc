"""What is free and what is tied: a small head whose factors can be chosen, and the rules with their reasons."""

import pandas as pd
import streamlit as st

from wisca_app.figures import words
from wisca_app.parts import one_of, part
from wisca_core.exactness import POSITIONS, SCALED, score_change

RULES = (
    ("Grouped queries", "K channel and the Q channels of all g heads", "they meet in one product"),
    ("Rotary positions", "the two channels of a rotary pair", "the rotation mixes them"),
    ("Learned, absolute, ALiBi positions", "nothing more", "they do not touch q·k by channel"),
    ("Norms on q and k", "their gains are the live pair", "the norm absorbs the scale of Wq and Wk"),
    ("Norm between attention and Wo", "its gain and Wo's columns", "the norm absorbs the scale of Wv"),
    ("Gated feed-forward", "up's row and down's column are free", "act(gate) only multiplies"),
    ("ReLU feed-forward", "up's row and down's column (its square behind ReLU²)", "ReLU(cx) = c ReLU(x) for c > 0"),
    ("GELU or SiLU without a gate", "refused", "they are not linear in a scale"),
    ("Powers of two", "free in bf16 and float32", "only the exponent changes: every bit of the output stays"),
)


@part
def head() -> None:
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        position = one_of("Positions", POSITIONS, "toy_position")
        scaled = one_of("Scaled by 4 and ¼", SCALED, "toy_scaled")
    change = score_change(position, scaled)
    st.markdown(
        f"The scores of a head of 8 channels move by **{words.digits(change, 2)}** of the largest: "
        + ("the same function, to rounding." if change < 1e-12 else "another function, so this is never done.")
    )


def rules() -> None:
    st.dataframe(
        pd.DataFrame(RULES, columns=["Where", "What shares a factor", "Because"]),
        hide_index=True,
        key="exactness rules",
        alt="Which channels must share a factor, and why",
    )
