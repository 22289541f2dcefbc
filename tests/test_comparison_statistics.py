"""What differences allow one to say, against values worked out by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wisca_core.comparison import folder, statistics
from wisca_core.comparison.presets import ARMS
from wisca_core.comparison.report import outward, report, signed
from wisca_core.comparison.reporting import write_report
from wisca_core.comparison.spec import OptimiserSpec, Spec
from wisca_core.comparison.statistics import bootstrap, first_reach, holm, paired, seeds_to_narrow, seeds_to_see
from wisca_core.errors import UnequalStart

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


def fill(path, final, start=lambda arm, seed: 5.5, missing=(), middle=None):
    for cell in folder.read(path).cells:
        if cell.name in missing:
            folder.write_cell_status(cell, state="failed", reason=missing[cell.name])
            continue
        points = (
            [(0, start(cell.arm, cell.seed))]
            + ([(50, middle(cell.arm))] if middle else [])
            + [(100, final(cell.arm, cell.rate, cell.seed))]
        )
        rows = [{"format": "wisca-metrics", "version": 1}] + [
            {
                "step": s,
                "train_loss": None,
                "val_loss": v,
                "lr": 0.0,
                "grad_norm": None,
                "tokens": s,
                "seconds": 1.0,
                "qk": 3.0,
                "vo": -3.0,
            }
            for s, v in points
        ]
        (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder.write_cell_status(cell, state="done")


def report_of(comparison):
    return report(comparison, folder.curves(comparison))


def plus(**shift):
    """Final losses 2 + seed / 10 for everyone, and per arm these differences by seed."""
    return lambda arm, rate, seed: 2 + seed / 10 + (shift[arm][seed - 1] if arm in shift else 0.0)


# --- one sample -------------------------------------------------------------------------------------------------------


def test_the_t_interval_is_the_one_of_the_tables():
    # mean 2.5, sd sqrt(5/3), standard error 0.645497; t(0.975, 3) = 3.182446, so half the width is 2.054260
    i = paired([1.0, 2.0, 3.0, 4.0])
    assert i.mean == 2.5 and math.isclose(i.sd, math.sqrt(5 / 3))
    assert math.isclose(i.high - i.mean, 3.182446 * 0.6454972, rel_tol=1e-6)
    assert math.isclose(i.p, 0.030466, abs_tol=1e-6) and not i.spans_zero


def test_the_same_mean_with_three_times_the_spread_spans_zero():
    assert paired([-1.37, 1.21, 3.79, 6.37]).spans_zero


def test_one_difference_has_no_interval_and_excludes_nothing():
    i = paired([0.3])
    assert i.mean == 0.3 and math.isnan(i.low) and i.spans_zero
    assert paired([]).n == 0 and paired([]).spans_zero


def test_differences_without_spread():
    assert paired([0.0, 0.0, 0.0]).spans_zero and paired([0.0] * 3).p == 1
    assert not paired([0.25, 0.25, 0.25]).spans_zero


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
    # t(0.975, 3) / 2 = 1.591 of the spread with 4 seeds, t(0.975, 4) / sqrt(5) = 1.242 with 5
    assert seeds_to_narrow(1.0, 1.6) == 4 and seeds_to_narrow(1.0, 1.5) == 5
    # measured before: about 20 seeds at 300 steps (spread 0.07), 6 at 900 and more (0.028), to see -0.044
    assert seeds_to_see(-0.044, 0.028) == 6
    assert 18 <= seeds_to_see(0.044, 0.07) <= 24
    assert seeds_to_see(10.0, 0.01) == 4  # never fewer than conclude anything


def test_numbers_have_a_true_minus_and_zero_no_sign():
    assert [signed(v) for v in (-0.0123, 0.0456, -0.0001, 0.0)] == ["−0.012", "+0.046", "0", "0"]


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
    assert r.sentence == "Preliminary. No detectable difference: +0.005 nats per byte (95 % −0.016 to +0.026), 4 seeds."
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
        "Lower loss than the baseline: −0.050 nats per byte (95 % −0.055 to −0.045), 8 seeds; p < 0.001"
    )
    assert r.effects[0].n_better == 8 and r.effects[0].bootstrap is not None


def test_an_interval_clear_of_zero_that_does_not_survive_the_correction(tmp_path):
    # one arm with p about 0.03; with 3 arms it is about 0.09
    r = report_of(
        made(
            tmp_path / "c",
            plus(wisca=[0.01, 0.02, 0.03, 0.04], inverse=[0.1, -0.1, 0.1, -0.1], placebo=[1e-4, -1e-4, 1e-4, -1e-4]),
        )
    )
    assert math.isclose(r.effects[0].loss.p, 0.030466, abs_tol=1e-5) and math.isclose(
        r.effects[0].p_corrected, 0.091399, abs_tol=1e-5
    )
    assert (
        r.sentence.startswith("Preliminary. Not distinguishable after correction: +0.025 nats per byte")
        and "p = 0.091 after correcting for 3" in r.sentence
    )
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
    before = "As it was fixed beforehand: Preliminary. No detectable difference: +0.005 nats per byte (95 % −0.016 to +0.026), 4 seeds."
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
    # baseline is best at 1e-3 (2.0), the arm at 3e-3 (1.9): it loses nothing by being compared at 1e-3 only, gains 0.1 at its own
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
    assert "4 seeds, each arm at its own best rate; p" in r.sentence
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
    folder.write_status(comparison.path, "running")
    assert folder.read(comparison.path).state == "interrupted"
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
    assert only.sentence == "Preliminary. No difference: under 0.001 nats per byte either way, 4 seeds."


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
    # one of three comparisons that Holm corrects for has to pass 0.05 / 3: a t of 3.13 instead of 2.36 at 8 seeds
    assert seeds_to_see(0.044, 0.028, n_tests=3) == 8 and seeds_to_see(0.044, 0.028, n_tests=6) == 9
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
        made(tmp_path / "c", plus(wisca=[-0.01, 0.02, 0.0, 0.01, 0.0]), seeds=range(1, 6), arms=("baseline", "wisca"))
    )
    assert "takes about 8 seeds. Four seeds have misled before; 8 or more are needed" in r.reading
