"""The Method page: its sliders, the head that can be tried, the two trainings that are one; and the arithmetic
behind.
"""

import numpy as np
import pandas as pd
import pytest
from dashboard_page import charts, metrics, page, texts

from wisca_app.figures import words
from wisca_app.method import identity, toy
from wisca_core.exactness import score_change
from wisca_core.landscape import ARRIVED, descend, largest_rate, start


def test_the_first_step_of_a_descent_by_hand():
    """L = (qk - 1)^2: at (1, 1/4) the error is -3/4, so dL/dq = 2 (-3/4) 1/4 and dL/dk = 2 (-3/4) 1."""
    path = descend(1.0, 0.25, rate=0.1)
    assert (path.q[1], path.k[1]) == pytest.approx((1 + 0.1 * 0.375, 0.25 + 0.1 * 1.5))
    assert path.steps is not None and (path.q[-1] * path.k[-1] - 1) ** 2 < ARRIVED


def test_a_start_of_any_ratio_has_the_same_product():
    for ratio in (1.0, 4.0, 12.0):
        q, k = start(ratio)
        assert q / k == pytest.approx(ratio) and q * k == pytest.approx(0.3)


def test_balance_bears_the_larger_rate_and_steepness_helps_at_a_small_one():
    assert largest_rate(1, 1) == 0.5 and largest_rate(2, 0.5) == pytest.approx(1 / 4.25)
    assert (descend(*start(1.0), 0.23).steps, descend(*start(12.0), 0.23).steps) == (4, 8)
    assert descend(*start(12.0), 0.03).steps < descend(*start(1.0), 0.03).steps


def test_which_channels_may_be_scaled_apart():
    assert score_change("none", "one") < 1e-14 and score_change("none", "pair") < 1e-14
    assert score_change("rotary", "pair") < 1e-14 < 0.01 < score_change("rotary", "one")
    assert score_change("none", "left") == pytest.approx(3) == score_change("rotary", "left")  # four times every score


def test_the_trajectories_are_one_to_rounding_and_the_baseline_is_another():
    what, table = identity.trajectories()
    assert len(table) == what["steps"] // 5 + 1 and np.isfinite(table.to_numpy()).all()
    assert (table["rates"] - table["wisca"]).abs().max() < 1e-8
    assert (table["baseline"] - table["wisca"]).abs().max() > 1e-3
    assert table.iloc[0][["baseline", "rates", "wisca"]].nunique() == 1  # one start


def test_the_page_answers_its_controls():
    at = page("method")
    assert not at.exception and len(charts(at)) == 4
    assert all(term in texts(at).replace("\\", "") for term in words.TERMS.values())
    assert at.subheader[0].value == "At this rate the balanced start is faster"
    before = metrics(at)
    at.slider(key="toy_rate").set_value(0.03).run()
    assert at.subheader[0].value == "At this rate steepness helps: the unbalanced start is faster"
    assert metrics(at) != before and at.query_params["toy_rate"] in ("0.03", ["0.03"])
    at.slider(key="toy_ratio").set_value(4.0).run()
    assert "Steps to the valley, 4×" in metrics(at)
    assert "the same function" in texts(at)
    at.segmented_control(key="toy_scaled").set_value("one").run()
    assert "another function, so this is never done" in texts(at)
    at.segmented_control(key="toy_position").set_value("none").run()
    assert "the same function" in texts(at)
    optimisers = next(d.value for d in at.main.dataframe if "Optimiser" in d.value)
    assert optimisers["With 8 heads on 1"].tolist() == ["2.83× and 0.35×", "8.00× and 0.12×", "no effect"]


@pytest.mark.parametrize(
    ("balanced", "unbalanced", "said"),
    [
        ((4, False), (8, False), "the balanced start is faster"),
        ((8, False), (4, False), "steepness helps"),
        ((4, False), (None, False), "bounces between the walls"),
        ((4, False), (None, True), "flies away"),
        ((None, True), (None, True), "both starts fly away"),
        ((None, False), (None, False), "neither start settles"),
        ((4, False), (4, False), "equally fast"),
    ],
)
def test_the_title_follows_what_the_paths_did(balanced, unbalanced, said):
    def path(steps, diverged):
        return toy.Descent(np.zeros(1), np.zeros(1), steps, diverged)

    assert said in toy.finding(path(*balanced), path(*unbalanced))


def test_the_tables_of_the_charts_are_there_to_take_away():
    at = page("method")
    names = [b.proto.label for b in at.main.get("download_button")]
    assert names == ["CSV", "HTML"] * 4 and isinstance(identity.trajectories()[1], pd.DataFrame)
