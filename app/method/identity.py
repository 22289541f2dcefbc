"""Balancing is the same training at other learning rates: two trajectories that are one, and the table of
optimisers.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached
from wisca_app.figures import method, words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Theme
from wisca_app.heading import show
from wisca_app.parts import quiet
from wisca_core import storage

FILE = Path(__file__).with_name("identity.json")  # written by tests/benchmarks/identity.py

OPTIMISERS = (
    ("Adam, AdamW, NAdam, Muon", "m", "1/m", 1.0, "its step has no scale of its own"),
    ("SGD, with or without momentum", "m²", "1/m²", 2.0, "its step follows the gradient, which grows as 1/c"),
    ("Adafactor with scale_parameter", "1", "1", 0.0, "its step follows the weight"),
)


def trajectories() -> tuple[dict, pd.DataFrame]:
    """(what was trained, columns step, baseline, wisca, rates)."""
    return cached.once("identity", _read)


def _read() -> tuple[dict, pd.DataFrame]:
    found = storage.read_json(FILE, "wisca-identity", 1)
    return found, pd.DataFrame({name: found[name] for name in ("step", "baseline", "wisca", "rates")})


def draw(theme: Theme) -> None:
    what, table = trajectories()
    away = float(np.abs(table["rates"] - table["wisca"]).max())
    left, right = st.columns(2, gap="medium")
    with left:
        one = Chart(
            "In the loss they are one line",
            "Rings: the rates. This one run says nothing about which is better.",
            table,
            "identity-loss",
            lambda theme: method.losses(table, theme=theme),
            alt="Loss of the baseline, of WISCA and of the same rates; the last two are one line.",
            tip=f"A decoder of 2 layers, width 64, 8 query heads on 1 KV head, AdamW at {what['rate']:g}, renewed "
            "every "
            f"{what['every']} steps, in float64 throughout.",
            of="wisca",
        )
        show(one, theme, "identity losses")
    with right:
        power = int(np.ceil(np.log10(max(away, 1e-16))))
        one = Chart(
            f"They differ by less than 10{words.superscript(power)} nats",
            "Log axis, float64: what separates the two is rounding.",
            table.assign(rates_away=table["rates"] - table["wisca"], baseline_away=table["baseline"] - table["wisca"]),
            "identity-distance",
            lambda theme: method.distances(table, theme=theme),
            alt=f"Distance to WISCA: the rates stay within {away:.0e} nats, the baseline does not.",
            of="wisca",
        )
        show(one, theme, "identity distances")


def optimisers(group_size: int = 8) -> None:
    st.subheader("Which rates, for which optimiser", anchor=False)
    quiet(
        "m = √(|Wq| / |Wk|), and √(|Wo| / |Wv|). Weight decay a step is unchanged, epsilon counts times c, the "
        "gradient in the clipped norm as g/c."
    )
    st.dataframe(
        optimisers_table(group_size, f"With {group_size} heads on 1"),
        hide_index=True,
        key="optimisers",
        alt="Factors on the learning rates for each optimiser",
    )


def optimisers_table(ratio: float, heading: str) -> pd.DataFrame:
    """What the rates are under each optimiser. ``ratio``: of the norms, m squared; ``heading``: of the column with
    it.
    """
    m = ratio**0.5
    return pd.DataFrame(
        {
            "Optimiser": [name for name, *_ in OPTIMISERS],
            "Wq, Wo": [fast for _, fast, *_ in OPTIMISERS],
            "Wk, Wv": [slow for _, _, slow, *_ in OPTIMISERS],
            heading: [f"{m**power:.2f}× and {m**-power:.2f}×" if power else "no effect" for *_, power, _ in OPTIMISERS],
            "Because": [why for *_, why in OPTIMISERS],
        }
    )
