"""What differences allow one to say, against values worked out by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_comparison import fill, with_pilot

from wisca_core import storage
from wisca_core.comparison import folder, statistics
from wisca_core.comparison.presets import ARMS
from wisca_core.comparison.report import outward, report, stands
from wisca_core.comparison.reporting import write_report
from wisca_core.comparison.spec import Arm, OptimiserSpec, PilotSpec, Spec
from wisca_core.comparison.statistics import (
    bootstrap,
    clipped_shares,
    first_reach,
    holm,
    paired_interval,
    seeds_to_see,
    sign_flip,
)
from wisca_core.errors import SpecError, UnequalStart, UnreadableInput
from wisca_core.words import signed_number

ARM_NAMES = ("baseline", "wisca", "inverse", "placebo")


def made(
    path, final, seeds=(1, 2, 3, 4), rates=(1e-3,), arms=ARM_NAMES, start=lambda arm, seed: 5.5, missing=(), middle=None
):
    """A finished comparison whose final losses are ``final(arm, rate, seed)``."""
    spec = Spec(
        "made",
        arms=tuple(ARMS[a] for a in arms),
        seeds=tuple(seeds),
        steps=100,
        optimiser=OptimiserSpec(learning_rates=tuple(rates)),
    )
    folder.create(path, spec)
    fill(path, final, start, missing, middle)
    folder.write_status(path, "done")
    return folder.read(path)


def report_of(comparison):
    return report(comparison, folder.curves(comparison))


def plus(**shift):
    """Final losses 2 + seed / 10 for everyone, and per arm these differences by seed."""
    return lambda arm, rate, seed: 2 + seed / 10 + (shift[arm][seed - 1] if arm in shift else 0.0)


# --- one sample -------------------------------------------------------------------------------------------------------


def test_the_t_interval_is_the_one_of_the_tables():
    # mean 2.5, sd sqrt(5/3), standard error 0.645497; t(0.975, 3) = 3.182446, so half the width is 2.054260
    i = paired_interval([1.0, 2.0, 3.0, 4.0])
    assert i.mean == 2.5 and math.isclose(i.sd, math.sqrt(5 / 3))
    assert math.isclose(i.high - i.mean, 3.182446 * 0.6454972, rel_tol=1e-6)
    assert math.isclose(i.p, 0.030466, abs_tol=1e-6) and not i.spans_zero


def test_the_same_mean_with_three_times_the_spread_spans_zero():
    assert paired_interval([-1.37, 1.21, 3.79, 6.37]).spans_zero


def test_one_difference_has_no_interval_and_excludes_nothing():
    i = paired_interval([0.3])
    assert i.mean == 0.3 and math.isnan(i.low) and i.spans_zero
    assert paired_interval([]).n == 0 and paired_interval([]).spans_zero


def test_differences_without_spread():
    assert paired_interval([0.0, 0.0, 0.0]).spans_zero and paired_interval([0.0] * 3).p == 1
    assert not paired_interval([0.25, 0.25, 0.25]).spans_zero


def test_holm_steps_down_and_never_falls():
    # sorted 0.01, 0.02, 0.03: times 3, 2, 1 = 0.03, 0.04, 0.03, and the last may not fall below 0.04
    assert np.allclose(holm([0.03, 0.01, 0.02]), [0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    found = holm([0.01, math.nan])
    assert found[0] == 0.01 and math.isnan(found[1])


def test_the_bootstrap_begins_with_8_seeds_and_is_repeatable():
    assert bootstrap([1.0] * 7) is None
    low, high = bootstrap([0.0, 1.0] * 4)
    assert (low, high) == bootstrap([0.0, 1.0] * 4)
    # the mean of 8 draws of 0 or 1: P(at most 1 of 8) = 9/256 = 3.5 %, P(0) = 0.4 %: the 2.5 % quantile is 1/8
    assert (low, high) == (0.125, 0.875)


def test_seeds_that_are_needed():
    # measured before: about 20 seeds at 300 steps (spread 0.07), 6 at 900 and more (0.028), to see -0.044
    assert seeds_to_see(-0.044, 0.028) == 6
    assert 18 <= seeds_to_see(0.044, 0.07) <= 24
    assert seeds_to_see(10.0, 0.01) == 4  # never fewer than conclude anything


def test_numbers_have_a_true_minus_and_zero_no_sign():
    assert [signed_number(v) for v in (-0.0123, 0.0456, -0.0001, 0.0)] == ["−0.012", "+0.046", "0", "0"]


def test_a_level_is_reached_between_two_points():
    assert first_reach([(0, 5.0), (100, 3.0), (200, 2.0)], 2.5) == 150
    assert first_reach([(0, 5.0), (100, 3.0)], 2.5) is None
    assert first_reach([(0, 2.0), (100, 1.0)], 2.5) == 0


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_4_seeds_conclude_nothing_however_clear(tmp_path, n):
    r = report_of(made(tmp_path / "c", plus(wisca=[-0.5, -0.51, -0.52]), seeds=range(1, n + 1)))
    assert r.grade == "none"
    assert r.sentence == f"Nothing can be concluded from {n} seed{'s' if n > 1 else ''}; at least 4 are needed."
    assert dict(r.readings)["wisca"] == f"too few seeds ({n})"


def test_four_seeds_are_preliminary_and_an_interval_over_zero_is_no_detectable_difference(tmp_path):
    r = report_of(made(tmp_path / "c", plus(wisca=[-0.01, 0.02, 0.0, 0.01])))
    # mean 0.005, sd 0.0129099, t = 3.182446: half the width 0.0205426
    assert r.sentence == (
        "Preliminary. No useful gain: loss +0.005 nats per byte (95 % −0.016 to +0.026), 4 seeds, at the one rate "
        "tried (0.001)."
    )
    assert (
        r.grade == "preliminary"
        and "excludes gains larger than 0.016 and harms larger than 0.026 nats per byte." in r.reading
    )
    assert dict(r.readings)["wisca"] == "not distinguishable"
    wisca = r.effects[0]
    assert (wisca.arm, wisca.n_better, wisca.bootstrap) == ("wisca", 1, None)
    assert np.allclose(wisca.differences, [-0.01, 0.02, 0.0, 0.01])


def test_eight_seeds_with_a_clear_gain(tmp_path):
    d = [-0.05, -0.04, -0.06, -0.05, -0.045, -0.055, -0.05, -0.05]
    r = report_of(made(tmp_path / "c", plus(wisca=d), seeds=range(1, 9)))
    assert r.grade == "full" and r.sentence.startswith(
        "Not settled: −0.050 nats per byte (95 % −0.055 to −0.045), 8 seeds, at the one rate tried (0.001); whether it "
        "is"
    )
    assert r.effects[0].n_better == 8 and r.effects[0].bootstrap is not None and r.answer == "not settled"
    # all 8 have one sign: of 256 patterns two are as far from zero
    assert r.effects[0].p_flip == 2 / 256 and "Better in 8 of 8 seeds; exact sign-flip p = 0.008." in r.reading


def test_the_question_is_one_and_the_arms_beside_it_are_corrected_for_each_other(tmp_path):
    near = [-0.01, -0.02, -0.03, -0.04]  # p about 0.03
    r = report_of(
        made(tmp_path / "c", plus(wisca=near, inverse=[-d for d in near], placebo=[1e-4, -1e-4, 1e-4, -1e-4]))
    )
    asked, mirrored = r.effects[0], r.effects[1]
    assert math.isclose(asked.loss.p, 0.030466, abs_tol=1e-5) and asked.p_corrected == asked.loss.p
    assert r.answer == "not settled" and r.sentence.startswith("Preliminary. Not settled: −0.025 nats per byte")
    assert math.isclose(mirrored.p_corrected, 2 * asked.loss.p) and not stands(mirrored)
    assert "higher, but not after correction (p = 0.061)" in dict(r.readings)["inverse"]
    assert any("at least one of 3 intervals" in remark and "14%" in remark for remark in r.remarks)


def test_the_placebo_is_the_noise_floor(tmp_path):
    r = report_of(made(tmp_path / "c", plus(placebo=[0.001, -0.002, 0.0, 0.001])))
    assert np.allclose(r.noise, (-0.002, 0.001))
    assert report_of(made(tmp_path / "d", plus(), arms=("baseline", "wisca"))).noise is None


def test_a_control_that_moves_the_same_way_is_said(tmp_path):
    gain = [-0.05, -0.04, -0.06, -0.05]
    r = report_of(made(tmp_path / "c", plus(wisca=gain, inverse=gain)))
    assert any("scaled the other way moves the loss in the same direction" in remark for remark in r.remarks)
    r = report_of(made(tmp_path / "d", plus(wisca=gain, inverse=[-d for d in gain])))
    assert not any("scaled the other way" in remark for remark in r.remarks)


def test_arms_that_do_not_start_equal_are_not_reported(tmp_path):
    comparison = made(
        tmp_path / "c", plus(), start=lambda arm, seed: 5.5 + (2e-4 if (arm, seed) == ("wisca", 2) else 0)
    )
    with pytest.raises(UnequalStart, match="seed 2: .*wisca-lr0.001-seed2 begins at|seed 2: baseline"):
        report_of(comparison)
    # 2e-5 of 5.5 is 4e-6 relative: rounding
    report_of(made(tmp_path / "d", plus(), start=lambda arm, seed: 5.5 + (2e-5 if arm == "wisca" else 0)))


def test_a_failed_run_takes_its_pair_with_it_and_is_said(tmp_path):
    reason = "the training loss became nan at step 3 of 100."
    r = report_of(made(tmp_path / "c", plus(), seeds=range(1, 6), missing={"wisca-lr0.001-seed3": reason}))
    wisca = r.effects[0]
    assert wisca.seeds == (1, 2, 4, 5) and wisca.missing == (3,)
    assert r.missing == (("wisca-lr0.001-seed3", reason),)
    assert ("QK + VO", 1, 5) in r.diverged
    assert any("left out: 3. If the runs failed because of the arm, this flatters it" in remark for remark in r.remarks)
    # without the baseline of a seed no arm has a pair there
    r = report_of(made(tmp_path / "d", plus(), seeds=range(1, 6), missing={"baseline-lr0.001-seed1": reason}))
    assert all(e.seeds == (2, 3, 4, 5) for e in r.effects)


def test_seeds_added_after_looking_mark_the_result(tmp_path):
    comparison = made(tmp_path / "c", plus(wisca=[-0.01, 0.02, 0.0, 0.01, 0.0, 0.01, 0.0, 0.01]))
    assert not comparison.is_extended
    more = folder.add_seeds(comparison.path, 4)
    assert more.spec.seeds == (1, 2, 3, 4, 5, 6, 7, 8) and more.is_extended and len(more.cells) == 32
    fill(comparison.path, plus(wisca=[-0.01, 0.02, 0.0, 0.01, 0.0, 0.01, 0.0, 0.01]))
    r = report_of(folder.read(comparison.path))
    assert r.is_extended and "8 seeds" in r.sentence
    before = (
        "As it was fixed beforehand: Preliminary. No useful gain: loss +0.005 nats per byte (95 % −0.016 to +0.026), "
        "4 seeds, at the one rate tried (0.001)."
    )
    assert r.sentence.startswith(
        "Extended after looking, so only a hint: +0.005 nats per byte (95 % "
    ) and r.sentence.endswith(before)
    assert any("4 seeds were added when results could be seen" in remark for remark in r.remarks)


def test_steps_saved_are_counted_from_where_the_baseline_itself_first_gets_there(tmp_path):
    # baseline 5.5 -> 3.5 -> 2.5; the arm 5.5 -> 3.0 -> 2.0 passes 2.5 half way between 50 and 100
    shift = dict.fromkeys(("inverse", "placebo"), [0.5] * 4) | {"wisca": [-0.5] * 4}
    final = lambda arm, rate, seed: 2.5 + (shift[arm][seed - 1] if arm in shift else 0)
    r = report_of(made(tmp_path / "c", final, middle=lambda arm: 3.0 if arm == "wisca" else 3.5))
    saved = {e.arm: (e.steps_saved, e.n_reached) for e in r.effects}
    assert saved["wisca"] == (25.0, 4) and saved["inverse"] == (None, 0)


def test_perplexity_differences_are_of_exp_of_the_loss(tmp_path):
    r = report_of(made(tmp_path / "c", lambda arm, rate, seed: math.log(10) if arm == "baseline" else math.log(9)))
    assert math.isclose(r.effects[0].perplexity.mean, -1.0, abs_tol=1e-9)


def test_the_own_best_rate_is_chosen_without_the_seed_it_is_judged_on():
    rows = [
        ("a", r, s, v)
        for s, (x, y) in {1: (1.0, 9.0), 2: (5.0, 4.0), 3: (5.0, 4.0)}.items()
        for r, v in ((0.1, x), (0.2, y))
    ]
    table = pd.DataFrame(rows, columns=["arm", "rate", "seed", "final"])
    # without seed 1: rate 0.2 (4 < 5); without seed 2: 0.1 (3 < 6.5); without 3: 0.1
    assert statistics.best_rates(table, "a", (0.1, 0.2), (1, 2, 3)) == {1: 0.2, 2: 0.1, 3: 0.1}
    # a rate that lacks one of the other seeds is not chosen
    table = table[~((table["rate"] == 0.1) & (table["seed"] == 3))]
    assert statistics.best_rates(table, "a", (0.1, 0.2), (1, 2, 3)) == {1: 0.2, 2: 0.2, 3: 0.1}


def test_each_arm_at_its_own_best_rate(tmp_path):
    # baseline is best at 1e-3 (2.0), the arm at 3e-3 (1.9): it loses nothing by being compared at 1e-3 only, gains 0.1
    # at its own
    losses = {("baseline", 1e-3): 2.0, ("baseline", 3e-3): 2.3, ("wisca", 1e-3): 2.2, ("wisca", 3e-3): 1.9}
    r = report_of(
        made(
            tmp_path / "c",
            lambda a, lr, s: losses[a, lr] + s * 0.1 + (1e-3 * s if a == "wisca" else 0),
            rates=(1e-3, 3e-3),
            arms=("baseline", "wisca"),
        )
    )
    best = r.best[0]
    assert best.rate is None and best.rates == (3e-3,) * 4 and best.baseline_rates == (1e-3,) * 4
    assert np.allclose(best.differences, [-0.1 + 1e-3 * s for s in (1, 2, 3, 4)])
    # the baseline is best at the lowest rate tried, so its true best may lie below
    assert (
        r.sentence == "Preliminary. No answer yet: the baseline still improves as the rate falls to the lowest tried."
    )
    assert "At the rates tried the difference is −0.098 nats per byte" in r.reading and r.answer == "no answer yet"
    assert len(r.effects) == 2 and "one learning rate" not in " ".join(r.remarks).lower()
    assert any("Baseline and QK + VO are best at an end of the rates tried; their" in remark for remark in r.remarks)


def test_a_run_that_ends_above_its_start_is_counted_as_diverged(tmp_path):
    r = report_of(made(tmp_path / "c", lambda arm, rate, seed: 6.0 if (arm, seed) == ("inverse", 2) else 2.0))
    assert r.diverged == (("Inverse scaling", 1, 4),)


def test_curves_pair_by_seed_and_step(tmp_path):
    comparison = made(tmp_path / "c", plus(wisca=[0.1, 0.2, 0.3, 0.4]))
    curves = folder.curves(comparison)
    gaps = statistics.gaps(curves, "baseline", 1e-3)
    last = gaps[(gaps["arm"] == "wisca") & (gaps["step"] == 100)].iloc[0]
    assert (
        math.isclose(last["mean"], 0.25)
        and last["n"] == 4
        and math.isclose(last["high"] - last["low"], 2 * 0.205426, abs_tol=1e-5)
    )
    bands = statistics.bands(curves, 1e-3)
    base = bands[(bands["arm"] == "baseline") & (bands["step"] == 100)].iloc[0]
    assert np.allclose([base["low"], base["mean"], base["high"]], [2.1, 2.25, 2.4])


def test_the_report_is_kept_as_json(tmp_path):
    comparison = made(tmp_path / "c", plus(), seeds=(1,))
    write_report(comparison)
    kept = json.loads((comparison.path / "report.json").read_text())
    assert (
        kept["format"] == "wisca-comparison-report"
        and kept["version"] == 1
        and kept["effects"][0]["loss"]["low"] is None
    )


def test_a_comparison_without_a_process_reads_as_interrupted(tmp_path):
    comparison = made(tmp_path / "c", plus())
    assert folder.heading(comparison.path) == (comparison.spec.name, comparison.state)
    folder.write_status(comparison.path, "running")
    assert folder.read(comparison.path).state == folder.heading(comparison.path)[1] == "interrupted"
    with storage.hold_lock(comparison.path / "lock"):  # somebody is at it
        assert folder.heading(comparison.path)[1] == "running"
    (comparison.path / "status.json").write_text("{")
    with pytest.raises(UnreadableInput):
        folder.heading(comparison.path)
    assert replace(comparison, state="running").is_active


def test_the_bundled_comparison_says_what_its_metrics_say():
    place = Path(__file__).parents[1] / "sample_runs" / "compare-gqa64"
    comparison = folder.read(place)
    assert comparison.state == "done" and len(comparison.cells) == 16 and comparison.corpus["sha256"]
    kept = json.loads((place / "report.json").read_text())
    found = report_of(comparison)
    assert kept["sentence"] == found.sentence and kept["corpus_sha256"] == comparison.corpus["sha256"]
    by_hand = [
        row["val_loss"]
        for seed in found.effects[0].seeds
        for row in folder.rows(place / "cells" / f"wisca-lr0.001-seed{seed}")[-1:]
    ]
    base = [
        row["val_loss"]
        for seed in found.effects[0].seeds
        for row in folder.rows(place / "cells" / f"baseline-lr0.001-seed{seed}")[-1:]
    ]
    assert np.allclose(found.effects[0].loss.mean, np.mean(by_hand) - np.mean(base))
    assert sum(path.stat().st_size for path in place.rglob("*")) < 2_000_000


def test_an_interval_below_what_is_written_is_no_difference_however_clear_of_zero(tmp_path):
    """Rounding that always goes one way: four differences of about -3e-6 have a tiny p and mean nothing."""
    tiny = (-3.3e-6, -3.8e-6, -3.5e-6, -3.3e-6)
    r = report_of(
        made(
            tmp_path / "c",
            plus(wisca=(-0.011, -0.0115, -0.0117, -0.0109), placebo=tiny),
            arms=("baseline", "placebo", "wisca"),
        )
    )
    placebo = next(e for e in r.effects if e.arm == "placebo")
    assert placebo.loss.is_nothing and not placebo.loss.spans_zero and placebo.loss.p < 1e-4
    assert dict(r.readings)["placebo"] == "no difference (under 0.001 nats)" and dict(r.readings)["wisca"].startswith(
        "lower"
    )
    only = report_of(made(tmp_path / "d", plus(wisca=tiny), arms=("baseline", "wisca")))
    said = "Preliminary. No useful gain: under 0.001 nats per byte either way, 4 seeds, at the one rate tried (0.001)."
    assert only.sentence == said


def test_a_clear_arm_beside_the_one_of_the_sentence_is_named(tmp_path):
    r = report_of(
        made(
            tmp_path / "c",
            plus(wisca=(0.01, -0.01, 0.02, -0.02), inverse=(0.1, 0.11, 0.12, 0.09)),
            arms=("baseline", "wisca", "inverse"),
        )
    )
    assert len(r.beside) == 1 and r.beside[0].startswith(
        "Beside it, Inverse scaling: +0.105 nats per byte (95 % +0.084 to +0.126), higher (p "
    )


def test_a_large_effect_needs_no_more_seeds_than_the_fewest():
    # scipy's far tail is NaN here; power at 4 seeds is 1
    assert seeds_to_see(0.007, 0.00094) == seeds_to_see(0.044, 0.002) == 4
    # (1.960 + 0.842)^2 (0.028 / 0.044)^2 = 3.2 for a known spread; three more for the t distribution at so few seeds
    assert seeds_to_see(0.044, 0.028) == 6


def test_what_an_interval_excludes_is_rounded_outwards(tmp_path):
    assert (outward(-0.0014), outward(0.002), outward(0.00031, 4)) == ("0.002", "0.002", "0.0004")
    # mean 0.0005, half the width 1.17e-3 / 2 * 3.182 = 0.00189: from -0.00139 to +0.00239
    r = report_of(made(tmp_path / "c", plus(wisca=[-0.001, 0.0005, 0.002, 0.0005]), arms=("baseline", "wisca")))
    assert "gains larger than 0.002 and harms larger than 0.003" in r.reading


def test_small_effects_are_written_with_four_decimals(tmp_path):
    comparison = made(tmp_path / "c", plus(wisca=[-0.001, 0.0005, 0.002, 0.0005]), arms=("baseline", "wisca"))
    r = report_of(replace(comparison, spec=replace(comparison.spec, detect_nats=0.007)))
    assert r.digits == 4 and "+0.0005 nats per byte (95 % −0.0014 to +0.0024)" in r.sentence


def test_runs_that_are_not_finished_are_counted_and_not_taken_for_failures(tmp_path):
    comparison = made(tmp_path / "c", plus(), seeds=range(1, 6))
    for name in ("wisca-lr0.001-seed3", "inverse-lr0.001-seed3"):
        folder.write_cell_status(next(c for c in comparison.cells if c.name == name), state="waiting")
    r = report_of(folder.read(comparison.path))
    assert r.missing == () and r.n_unfinished == 2
    assert any(remark == "Seeds whose runs are not finished are left out: 3." for remark in r.remarks)
    assert not any("flatters" in remark for remark in r.remarks)


def test_a_preliminary_result_does_not_name_fewer_seeds_than_it_asks_for(tmp_path):
    r = report_of(
        made(
            tmp_path / "c", plus(wisca=[-0.011, 0.01, -0.01, 0.011, 0.0]), seeds=range(1, 6), arms=("baseline", "wisca")
        )
    )
    assert "takes about 8 seeds. Four seeds have misled before; 8 or more are needed" in r.reading


# --- the exact test, the rule, and what stands beside it
# ---------------------------------------------------------------


def test_the_sign_flip_test_counts_patterns():
    assert sign_flip([1.0] * 5) is None  # could not fall below 2 / 32
    assert sign_flip([0.3] * 6) == 2 / 64 and sign_flip([-0.1] * 10) == 2 / 1024
    # of the 64 patterns of 1, 1, 1, 1, 1, 2 the sums 7 and 5 (2 with one 1 negative: five patterns) and their mirrors
    assert sign_flip([1, 1, 1, 1, -1, 2]) == 2 * (1 + 5) / 64
    rng = np.random.default_rng(3)
    d = rng.normal(0.4, 1, 12)
    signs = np.array([[1 if bit >> i & 1 else -1 for i in range(12)] for bit in range(4096)])
    assert math.isclose(sign_flip(d), (np.abs(signs @ d) >= abs(d.sum()) - 1e-9).mean())
    assert sign_flip(rng.normal(0, 1, 20)) is not None and sign_flip([1.0] * 41) is None


@pytest.mark.parametrize(
    ("d", "answer", "lead"),
    [
        # intervals by hand: mean +- 2.364624 sd / sqrt(8)
        ([-0.05, -0.04] * 4, "helps", "It helps: −0.045"),
        ([0.05, 0.09] * 4, "no useful gain", "No useful gain: loss +0.070"),
        ([-0.01, 0.005] * 4, "no useful gain", "No useful gain: loss −0.002"),  # lower end -0.0092, above -0.02
        ([-0.06, 0.05] * 4, "not settled", "Not settled: −0.005"),  # lower end -0.054
    ],
)
def test_the_rule_in_its_order(tmp_path, d, answer, lead):
    def final(arm, rate, seed):  # both are best at the middle rate
        return plus(wisca=d)(arm, rate, seed) + (rate != 2e-3)

    rates, seeds, both = (1e-3, 2e-3, 4e-3), range(1, 9), ("baseline", "wisca")
    r = report_of(made(tmp_path / "c", final, seeds=seeds, arms=both, rates=rates))
    assert r.answer == answer and r.sentence.startswith(lead)
    # at a single rate nothing is known of the baseline's best
    one = report_of(made(tmp_path / "one", plus(wisca=d), seeds=seeds, arms=both))
    assert one.answer == (answer if answer != "helps" else "not settled")
    if answer == "not settled":
        # sd 0.0588, a gain of 0.02: (1.960 + 0.842)^2 (0.0588 / 0.02)^2 = 67.8 for a known spread, and two more for t
        assert "; about 70 seeds are needed." in r.sentence
        assert (
            "With this spread (0.059), seeing a gain of 0.02 nats per byte four times out of five takes about 70"
            in r.reading
        )


def test_the_pilot_grows_its_grid_until_the_best_is_inside_and_chooses_for_each_arm(tmp_path):
    best = {"baseline": 8e-3, "wisca": 2e-3}
    comparison = with_pilot(
        tmp_path / "c", lambda arm, rate: abs(math.log2(rate / best[arm])) + 2, lambda arm, rate, seed: 2.0 + seed / 10
    )
    # the baseline's best was 4e-3, an end; 8e-3 was better, an end again; 16e-3 was not
    assert comparison.pilot.grids == {"baseline": (1e-3, 2e-3, 4e-3, 8e-3, 16e-3), "wisca": (1e-3, 2e-3, 4e-3)}
    assert comparison.pilot.chosen == {"baseline": 8e-3, "wisca": 2e-3} and not comparison.pilot.at_end
    tested = {(c.arm, c.rate) for c in comparison.tested}
    assert tested == {("baseline", 8e-3), ("wisca", 2e-3), ("rates", 2e-3)} and len(comparison.tested) == 12
    assert sum(c.is_pilot for c in comparison.cells) == 2 * (5 + 3) and comparison.n_coming == 0
    assert set(folder.curves(comparison)["seed"]) == {1, 2, 3, 4}  # no chart and no figure sees a pilot seed
    r = report_of(comparison)
    assert r.best[0].rates == (2e-3,) * 4 and r.best[0].baseline_rates == (8e-3,) * 4
    assert dict(r.tested) == {"baseline": 8e-3, "wisca": 2e-3, "rates": 2e-3}
    # from 1e-3 to 8e-3 three octaves
    assert (
        r.decides_more == "The learning rate decides more: from 0.001 to 0.008 the baseline gains 3.000 nats per byte."
    )


def test_a_baseline_that_still_improves_at_the_end_of_the_grid_gives_no_answer(tmp_path):
    comparison = with_pilot(
        tmp_path / "c",
        lambda arm, rate: 2 - math.log2(rate) / 10,
        lambda arm, rate, seed: 2.0 + seed / 10 - (0.1 + seed / 1000 if arm == "wisca" else 0),
    )
    assert comparison.pilot.grids["baseline"] == (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)  # two were added, no more
    assert comparison.pilot.at_end == {"baseline": "high", "wisca": "high"}
    r = report_of(comparison)
    assert r.answer == "no answer yet"
    assert (
        r.sentence == "Preliminary. No answer yet: the baseline still improves with the rate, up to the highest tried."
    )
    low = with_pilot(
        tmp_path / "d", lambda arm, rate: 2 + math.log2(rate) / 10, lambda arm, rate, seed: 2.0 + seed / 10
    )
    assert low.pilot.grids["wisca"] == (0.00025, 0.0005, 1e-3, 2e-3, 4e-3)
    assert "as the rate falls to the lowest tried" in report_of(low).sentence


def test_a_pilot_run_that_failed_keeps_its_rate_from_being_chosen(tmp_path):
    spec = Spec(
        "failing",
        arms=(ARMS["baseline"], ARMS["wisca"]),
        steps=100,
        optimiser=OptimiserSpec(learning_rates=(1e-3, 2e-3, 4e-3)),
        pilot=PilotSpec((101,)),
    )
    path = folder.create(tmp_path / "c", spec)
    fill(
        path, lambda arm, rate, seed: 3 - 100 * rate, missing={"wisca-lr0.004-seed101": "the training loss became nan"}
    )
    assert folder.settle_pilot(path)
    now = folder.read(path)
    assert (
        now.pilot.grids == {"baseline": (1e-3, 2e-3, 4e-3, 8e-3), "wisca": (1e-3, 2e-3, 4e-3)} and not now.pilot.chosen
    )


def test_rates_that_train_as_wisca_does_are_said_to_be_identical(tmp_path):
    arms = (ARMS["baseline"], ARMS["wisca"], Arm("rates", kind="rates"))

    def said(off: float) -> str:
        spec = Spec("same", arms=arms, steps=100)
        path = folder.create(tmp_path / f"{off}", spec)
        fill(path, lambda arm, rate, seed: 2 + seed / 10 + {"baseline": 0.0, "wisca": 0.05, "rates": 0.05 + off}[arm])
        folder.write_status(path, "done")
        return report_of(folder.read(path)).identical

    assert said(5e-7).startswith(
        "WISCA is identical to these learning rates: no seed's loss differs by more than 5e-07"
    )
    apart = said(0.02)
    assert "equal in law" in apart and "+0.020 nats per byte on average, 0.020 at most" in apart


def test_clipping_that_binds_is_said_and_counted_by_steps(tmp_path):
    comparison = made(tmp_path / "c", plus(), arms=("baseline", "wisca"))
    for cell in comparison.cells:
        lines = [json.loads(line) for line in (cell.folder / "metrics.jsonl").read_text().splitlines()]
        more = {"step": 80, "clipped": 1.0} | {k: None for k in ("val_loss", "train_loss")}
        lines[-1]["clipped"] = 0.25
        (cell.folder / "metrics.jsonl").write_text(
            "".join(json.dumps(one) + "\n" for one in (*lines[:-1], more, lines[-1]))
        )
    # 80 steps all clipped, 20 a quarter of them: 85 %
    shares = clipped_shares(folder.curves(comparison))
    assert shares.keys() == {"baseline", "wisca"} and math.isclose(shares["wisca"], 0.85)
    said = [remark for remark in report_of(comparison).remarks if remark.startswith("Clipping at 1 touches")]
    assert said == [
        "Clipping at 1 touches 85% of the steps and is measured in the rescaled coordinates: a part of the difference "
        "is "
        "what clipping looks at."
    ]


def test_comparisons_with_seeds_and_text_in_common_are_not_independent(tmp_path):
    for name, seeds, sha in (("a", (1, 2), "x"), ("b", (2, 3), "x"), ("c", (3, 4), "x"), ("d", (1, 2), "y")):
        comparison = made(tmp_path / name, plus(), seeds=seeds) if name != "a" else made(tmp_path / name, plus(), seeds)
        (comparison.path / "corpus.json").write_text(
            json.dumps({"format": "wisca-comparison-corpus", "version": 1, "sha256": sha})
        )
    remarks = {name: report_of(folder.read(tmp_path / name)).remarks for name in "abcd"}
    assert any(r == "Not independent of made: the same text, and seeds in common." for r in remarks["a"])
    assert any(r.startswith("Not independent of made and made") for r in remarks["b"])
    assert not any("Not independent" in r for r in remarks["d"])


def test_a_comparison_after_another_takes_its_rates_and_its_runs(tmp_path):
    first = with_pilot(
        tmp_path / "first", lambda arm, rate: abs(math.log2(rate / 2e-3)), lambda arm, rate, seed: 2.0 + seed / 10
    )
    arms = (ARMS["baseline"], ARMS["wisca"], Arm("inverse", kind="rates", clip_norm="plain", strength=-1.0))
    spec = Spec("after", arms=arms, seeds=(1, 2), steps=100, pilot=PilotSpec(source=str(first.path)))
    path = folder.create(tmp_path / "after", spec)
    found = folder.read(path)
    assert found.spec.pilot.source == "../first" and found.pilot == first.pilot
    assert {(c.arm, c.rate, c.state) for c in found.cells} == {
        ("baseline", 2e-3, "done"),
        ("wisca", 2e-3, "done"),
        ("inverse", 2e-3, "waiting"),
    }
    other = replace(spec, optimiser=replace(spec.optimiser, clip=0.0))
    assert {c.state for c in folder.read(folder.create(tmp_path / "unclipped", other)).cells} == {"waiting"}
    with pytest.raises(SpecError, match="none of the seeds that chose the rates: 101"):
        folder.create(tmp_path / "overlap", replace(spec, seeds=(1, 101)))
    unready = folder.create(tmp_path / "unready", replace(first.spec, seeds=(1,)))
    with pytest.raises(SpecError, match="pilot.source: .* a comparison whose pilot has chosen its rates"):
        folder.create(tmp_path / "early", replace(spec, pilot=PilotSpec(source=str(unready))))
    assert not (tmp_path / "early").exists()
