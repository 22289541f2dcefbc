"""Thinning, smoothing, axes, bands, groups and paired differences, against values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wisca_core.errors import BadOption
from wisca_core.runs import drawing, groups
from wisca_core.runs.table import Run, Series


def run(name: str, *, config: dict | None = None, **metrics) -> Run:
    """Metrics as (steps, values) or (steps, values, wall times)."""
    series = {}
    for metric, (steps, values, *wall) in metrics.items():
        chunk = (np.array(steps, float), np.array(values, float), np.array(wall[0], float) if wall else None)
        series[metric] = Series(name, metric, (chunk,))
    return Run(name, "csv", f"{name}.csv", series, config or {}, {})


# --- thinning ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 5000), most=st.integers(4, 300), seed=st.integers(0, 99))
def test_thinning_keeps_the_ends_the_extremes_and_the_gaps(n, most, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=n)
    values[rng.random(n) < 0.01] = np.nan
    kept = drawing.thin(values, most)
    assert (np.diff(kept) > 0).all() and kept[0] == 0 and kept[-1] == n - 1
    assert len(kept) <= max(most, 1.5 * most + 4)
    if np.isfinite(values).any():
        assert np.nanargmin(values) in kept and np.nanargmax(values) in kept
    assert np.isnan(values[kept]).any() == np.isnan(values).any()


def test_a_spike_of_one_point_in_a_million_survives_and_small_series_are_whole():
    values = np.zeros(1_000_000)
    values[654_321] = 7.0
    values[123] = -7.0
    kept = drawing.thin(values, 1000)
    assert len(kept) <= 1002 and {654_321, 123} <= set(kept.tolist())
    assert drawing.thin(np.arange(10.0), 10).tolist() == list(range(10))


def test_zooming_brings_the_detail_back():
    steps = np.arange(100_000)
    one = run("a", loss=(steps, np.sin(steps / 7.0)))
    whole = drawing.line(one, "loss", most=500)
    part = drawing.line(one, "loss", window=(50_000, 50_100), most=500)
    assert len(whole.x) <= 502 and whole.n == 100_000
    assert part.x.tolist() == list(
        range(49_999, 50_102)
    )  # every point, and one on each side so that the line leaves the window
    assert drawing.line(one, "loss", window=(2e6, 3e6)).n_window == 0


# --- smoothing --------------------------------------------------------------------------------------------------------


def test_smoothing_is_the_weighted_mean_of_the_past():
    out = drawing.smooth(np.array([4.0, 0.0, 2.0]), 0.5)
    assert out == pytest.approx([4.0, (4 * 0.5 + 0) / 1.5, (4 * 0.25 + 0 * 0.5 + 2) / 1.75], rel=1e-15)
    assert drawing.smooth(np.array([4.0, 1.0]), 0.0).tolist() == [4.0, 1.0]


@settings(max_examples=30, deadline=None)
@given(at=st.integers(1, 99), strength=st.floats(0.01, 0.999))
def test_smoothing_never_looks_ahead(at, strength):
    values = np.random.default_rng(at).normal(size=100)
    changed = values.copy()
    changed[at:] += 1000.0
    assert (drawing.smooth(values, strength)[:at] == drawing.smooth(changed, strength)[:at]).all()


def test_nan_stays_where_it_is_and_spoils_nothing_behind_it():
    out = drawing.smooth(np.array([1.0, math.nan, math.inf, 1.0]), 0.9)
    assert out[0] == 1 and math.isnan(out[1]) and out[2] == math.inf and out[3] == pytest.approx(1.0)


def test_strength_is_checked_and_has_a_meaning():
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(BadOption, match="smoothing"):
            drawing.smooth(np.ones(3), bad)
    assert drawing.half_life(0.5) == pytest.approx(1.0) and drawing.half_life(0.9) == pytest.approx(6.5788, abs=1e-4)


# --- axes -------------------------------------------------------------------------------------------------------------


def test_the_x_axis_is_step_time_tokens_or_another_metric_never_from_ahead():
    one = run(
        "a",
        loss=([0, 10, 20, 30], [3, 2, 1, 0], [100, 101, 105, 109]),
        tokens=([0, 20], [0, 2000]),
        lr=([10, 30], [0.5, 0.1]),
    )
    assert drawing.line(one, "loss", x="time").x.tolist() == [0, 1, 5, 9]
    assert drawing.line(one, "loss", x="tokens").x.tolist() == [0, 0, 2000, 2000]
    at = drawing.line(one, "loss", x="lr").x
    assert math.isnan(at[0]) and at[1:].tolist() == [0.5, 0.5, 0.1]
    assert drawing.line(one, "lr", x="time") is None and drawing.line(one, "none") is None
    assert drawing.token_metric(one) == "tokens" and drawing.token_metric(run("b", loss=([0], [1]))) is None


# --- bands ------------------------------------------------------------------------------------------------------------


def test_a_band_on_shared_steps_is_mean_lowest_and_highest():
    x = np.array([0.0, 10.0, 20.0, 30.0])
    out = drawing.band([(x, np.array([1.0, 2, 3, 4])), (x[:3], np.array([3.0, 2, 7]))])
    assert (out.x.tolist(), out.mean.tolist(), out.low.tolist(), out.high.tolist()) == (
        [0, 10, 20],
        [2, 2, 5],
        [1, 2, 3],
        [3, 2, 7],
    )
    assert (out.n_runs, out.grid) == (2, "steps")


def test_runs_that_log_elsewhere_are_averaged_in_bins_of_the_span_they_share():
    a = (np.arange(0.0, 100.0), np.full(100, 1.0))
    b = (np.arange(20.5, 200.0), np.full(180, 3.0))
    out = drawing.band([a, b], n_bins=10)
    assert out.grid == "bins" and out.x.min() > 20.5 and out.x.max() < 99 and set(out.mean) == {2.0}
    assert drawing.band([a, (a[0] + 1000.5, a[1])]) is None


def test_a_step_logged_twice_counts_with_its_last_value():
    out = drawing.band([(np.array([0.0, 1, 0, 1]), np.array([9.0, 9, 1, 2])), (np.array([0.0, 1]), np.array([3.0, 4]))])
    assert out.mean.tolist() == [2, 3]


# --- groups -----------------------------------------------------------------------------------------------------------


def seeded(arm: str, seed: int, final: float, **config) -> Run:
    return run(
        f"{arm}-seed-{seed}",
        config={"lr": config.pop("lr", 0.1), "arm": arm, "seed": seed, "output_dir": f"/x/{arm}{seed}", **config},
        loss=([0, 1, 2], [5.0, final - 0.5, final]),
    )


def test_only_settings_that_differ_are_listed():
    table = groups.differences([seeded("a", 1, 1.0), seeded("b", 2, 1.0), run("c", loss=([0], [1]))])
    assert list(table.columns) == [
        "arm",
        "seed",
    ]  # lr is the same, output_dir is incidental, a run without any settings decides nothing
    assert table.loc["b-seed-2"].tolist() == ["b", "2"] and table.loc["c"].tolist() == ["", ""]
    told = [run("a", config={"lr": 0}, loss=([0], [1])), run("b", config={"only_b": 1, "lr": 1}, loss=([0], [1]))]
    assert list(groups.differences(told).columns) == ["lr", "only_b"]  # what differs comes before what one alone says
    assert "output_dir" in groups.differences([seeded("a", 1, 1.0), seeded("b", 2, 1.0)], incidental=True).columns


def test_a_group_is_called_what_the_names_of_its_runs_share_beside_the_seed():
    told = [run(f"trial-{k}", config={"seed": k}, loss=([0], [1.0])) for k in (1, 2)]
    assert list(groups.by_configuration(told)) == ["trial"]
    assert list(groups.by_configuration(told[:1])) == ["trial-1"]


def test_runs_that_differ_in_their_seed_only_belong_together():
    found = groups.by_configuration([seeded(arm, seed, 1.0) for arm in ("a", "b") for seed in (1, 2)])
    assert {title: [r.name for r in members] for title, members in found.items()} == {
        "arm a": ["a-seed-1", "a-seed-2"],
        "arm b": ["b-seed-1", "b-seed-2"],
    }
    by_name = groups.by_configuration(
        [run(name, loss=([0], [1])) for name in ("big/seed_1", "big/seed_2", "small/seed_1")]
    )
    assert {title: len(members) for title, members in by_name.items()} == {"big": 2, "small": 1}


@pytest.mark.parametrize(
    ("name", "config", "seed"),
    [
        ("x", {"seed": 3}, "3"),
        ("x", {"training.random_seed": 4.0}, "4"),
        ("runs/lr1-s12", {}, "12"),
        ("seed7", {}, "7"),
        ("class3", {}, None),
        ("x", {"data.seed": 5, "seed": 6}, "6"),
        ("seeds-1", {}, None),
    ],
)
def test_a_seed_is_found_in_the_settings_or_the_name(name, config, seed):
    assert groups.seed_of(run(name, config=config)) == seed


def test_final_is_the_last_value_and_best_the_lowest_finite_one():
    s = run("a", loss=([0, 10, 20, 30], [3.0, 1.0, math.nan, 2.0])).series["loss"]
    assert groups.ends(s, lower=True) == groups.Ends(2.0, 30, 1.0, 10, 4)
    assert groups.ends(s, lower=False).best == 3.0
    ended_badly = groups.ends(run("a", loss=([0, 1], [3.0, math.nan])).series["loss"], lower=True)
    assert math.isnan(ended_badly.final) and ended_badly.best == 3.0  # a NaN at the end is the end


def test_group_statistics_say_the_t_interval_and_who_is_not_finite():
    members = {"a": [seeded("a", k, v) for k, v in enumerate((1.0, 2.0, 3.0))] + [seeded("a", 9, math.nan)]}
    row = groups.group_statistics(groups.ends_table(members, "loss", lower=True)).iloc[0]
    assert (row["runs"], row["not_finite"], row["mean"], row["sd"]) == (3, 1, 2.0, 1.0)
    half = 4.302652729911275 / math.sqrt(3)  # t at 97.5 %, 2 degrees of freedom
    assert row["low"] == pytest.approx(2 - half) and row["high"] == pytest.approx(2 + half)


def test_a_paired_difference_uses_shared_seeds_only_and_says_who_is_left_out():
    a = [seeded("a", seed, 1.0 + seed) for seed in (1, 2, 3, 4, 5, 5)]
    b = [seeded("b", seed, 1.5 + seed + 0.1 * seed) for seed in (1, 2, 3, 4, 6)] + [run("b-other", loss=([0], [1.0]))]
    p = groups.paired_difference({"A": a, "B": b}, "A", "B", "loss", lower=True)
    assert p.seeds == ("1", "2", "3", "4") and p.differences == pytest.approx((0.6, 0.7, 0.8, 0.9))
    sd = math.sqrt(5 / 3) / 10
    half = 3.182446305284263 * sd / 2  # t at 97.5 %, 3 degrees of freedom
    assert (p.mean, p.low, p.high) == pytest.approx((0.75, 0.75 - half, 0.75 + half))
    assert dict(p.left_out) == {"b-other": "has no seed", "seed 5": "only in A", "seed 6": "only in B"}
    assert groups.paired_sentence(p) == (
        f"B minus A: +0.750 in final loss (95 % +{0.75 - half:.3f} to +{0.75 + half:.3f}), 4 shared seeds. "
        "Preliminary: fewer than 8 seeds."
    )


def test_a_paired_sentence_never_claims_more_than_was_measured():
    def sentence(diffs):
        members = {
            "A": [seeded("a", k, 1.0) for k in range(len(diffs))],
            "B": [seeded("b", k, 1.0 + d) for k, d in enumerate(diffs)],
        }
        return groups.paired_sentence(groups.paired_difference(members, "A", "B", "loss", lower=True))

    assert sentence([0.1, -0.1, 0.1, -0.12]).startswith("Not distinguishable: B minus A is −0.005")
    assert "too few to conclude" in sentence([0.5, 0.5, 0.5])
    members = {name: [seeded(name, k, v + k * k / 1000) for k in range(4)] for name, v in (("A", 1.0), ("B", 2.0))}
    one = groups.paired_difference(members, "A", "B", "loss", lower=True)
    assert groups.paired_sentence(one, n_pairs=3).endswith(
        "The interval is uncorrected: this is one of 3 pairs with A."
    )
    assert "uncorrected" not in groups.paired_sentence(one, n_pairs=1)
    assert sentence([]) == "No seed is in both groups, so loss cannot be compared in pairs."


def cell(arm, rate, seed, val):
    from dataclasses import replace

    config = {"arm": arm, "learning_rate": rate, "seed": seed}
    one = run(
        f"{arm}-lr{rate:g}-seed{seed}", config=config, train_loss=([0, 1], [5.0, 4.0]), val_loss=([0, 1], [5.0, val])
    )
    return replace(one, kind="own")


def test_cells_of_a_comparison_are_judged_by_their_validation_loss_and_against_the_baseline():
    runs = [
        cell(arm, rate, seed, 2.0 + seed)
        for seed in (1, 2)
        for rate in (1e-3, 3e-3)
        for arm in ("aaa", "plain", "wisca")
    ]
    assert (
        groups.loss_metric(runs[0]) == "val_loss"
        and groups.loss_metric(run("a", val_loss=([0], [1]), train_loss=([0], [1]))) == "train_loss"
    )
    found = groups.by_configuration(runs)
    titles = list(found)
    # the arm that the spec calls the baseline, whatever its name, and another arm at the same rate
    assert groups.first_pair(found, titles, ["plain", "wisca", "aaa"]) == (
        "arm plain, learning_rate 0.001",
        "arm wisca, learning_rate 0.001",
    )
    assert groups.first_pair(found, titles) == ("arm aaa, learning_rate 0.001", "arm plain, learning_rate 0.001")


def test_final_values_at_different_steps_are_no_pair():
    short = run("b-seed-1", config={"seed": 1}, loss=([0, 1], [5.0, 4.0]))
    p = groups.paired_difference({"A": [seeded("a", 1, 1.0)], "B": [short]}, "A", "B", "loss", lower=True)
    assert p.n == 0 and p.left_out == (("seed 1", "the runs end at different steps, 2 and 1"),)


def test_losses_fall_and_accuracies_rise():
    assert [
        groups.lower_is_better(m)
        for m in ("loss", "eval/loss", "perplexity", "eval_accuracy", "val/acc", "f1", "macro_f1", "mae")
    ] == [True, True, True, False, False, False, False, True]
    assert groups.loss_metric(run("a", lr=([0], [1]), eval_loss=([0], [1]), loss=([0], [1]))) == "loss"


def test_a_group_is_named_by_the_fewest_settings_that_tell_it_apart():
    runs = [
        run(
            "a",
            config={"model.width": w, "lr": lr, "depth": w // 8, "rule": "x" * 90 + str(w), "seed": seed},
            loss=([0], [1]),
        )
        for w in (64, 128)
        for lr in (0.1, 0.2)
        for seed in (1, 2)
    ]
    assert [(title, len(members)) for title, members in groups.by_configuration(runs).items()] == [
        ("width 64, lr 0.1", 2),
        ("width 64, lr 0.2", 2),
        ("width 128, lr 0.1", 2),
        ("width 128, lr 0.2", 2),
    ]
    other = run("other/seed-3", config={"steps": 9}, loss=([0], [1]))
    assert all(len(title) < 60 for title in groups.by_configuration([*runs, other]))
    assert sum(map(len, groups.by_configuration([*runs, other]).values())) == 9


def ending(name: str, finals: list[float], steps: list[int] | None = None) -> list[Run]:
    return [
        run(f"{name}-seed-{k}", config={"arm": name, "seed": k}, loss=([0, (steps or [10] * 9)[k]], [5.0, final]))
        for k, final in enumerate(finals)
    ]


def test_a_group_is_first_only_beyond_noise_at_one_step_and_for_what_is_judged():
    far = {"a": ending("a", [2.0, 2.1, 2.2, 2.3]), "b": ending("b", [1.0, 1.1, 1.2, 1.31])}
    assert groups.standing(far, "loss").first == "b"
    near = {"a": ending("a", [2.0, 2.1, 2.2, 2.3]), "b": ending("b", [2.3, 1.9, 2.2, 2.0])}
    assert groups.standing(near, "loss") == groups.Standing("", "b ends lowest on average, but not apart from a.")
    few = {"a": ending("a", [2.0]), "b": ending("b", [1.0])}
    assert groups.standing(few, "loss").first == "" and "too few runs" in groups.standing(few, "loss").why
    tie = {"a": ending("a", [2.0]), "b": ending("b", [2.0])}
    assert groups.standing(tie, "loss").why == "a and b end equal."
    longer = {"a": ending("a", [2.0]), "b": ending("b", [1.0], [20])}
    assert groups.standing(longer, "loss").why == "Not ranked: the runs end at different steps, from 10 to 20."
    rate = {"a": [run("a", learning_rate=([0], [1.0]))], "b": [run("b", learning_rate=([0], [2.0]))]}
    assert "Nothing says" in groups.standing(rate, "learning_rate").why


def test_two_runs_of_one_seed_are_not_said_to_share_none():
    both = {"a": ending("a", [2.0]), "b": ending("b", [1.0], [20])}
    said = groups.paired_sentence(groups.paired_difference(both, "a", "b", "loss", True))
    assert said == "loss cannot be compared in pairs: seed 0, the runs end at different steps, 10 and 20."
