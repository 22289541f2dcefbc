"""The Compare page: watch, reattach, and read what may be said; never more than that."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from compare_page import SAMPLE, fresh, kept, started
from dashboard_page import metrics, page, texts
from small_comparison import fill, with_pilot

from wisca_app.comparing import advice, values
from wisca_app.comparing.choosing import SAMPLES
from wisca_app.figures import compare, dose
from wisca_app.figures.template import DARK, LIGHT
from wisca_core import storage
from wisca_core.comparison import folder, statistics
from wisca_core.comparison.presets import ARMS, LORA_ARMS
from wisca_core.comparison.report import report
from wisca_core.comparison.spec import Arm, OptimiserSpec, PilotSpec, Spec
from wisca_core.errors import OutputRefused, UnreadableInput

pytestmark = pytest.mark.usefixtures("known_speed", "proved_before")


# --- results ----------------------------------------------------------------------------------------------------------


def test_the_bundled_comparison_is_shown_first_with_the_sentence_that_may_be_quoted():
    at = page("compare", comparison="sample-compare-gqa64")
    comparison = folder.read(SAMPLE)
    found = report(comparison, folder.curves(comparison))
    assert at.title[0].value.replace("\\", "") == found.sentence and found.sentence.startswith("Preliminary. ")
    assert "One learning rate was tried" in texts(at) and "at least one of 3 intervals" in texts(at)
    assert len(at.get("plotly_chart")) == 4
    assert metrics(at)["Seeds better"] == f"{found.effects[0].n_better} of 4" and metrics(at)["Windows"] == "64"
    table = at.dataframe[0].value
    assert table["Arm"].tolist() == ["Baseline", "QK + VO, every 25", "QK only", "Inverse scaling"]
    assert table["Better"].tolist()[1] == f"{found.effects[0].n_better} of 4"
    assert not [b for b in at.button if b.key in ("compare add", "compare resume")]  # a sample stays as it is


def test_seeds_added_to_a_finished_comparison_mark_it_as_extended(monkeypatch):
    asked = started(monkeypatch)
    place = kept()
    at = page("compare", comparison=place.name)
    at.number_input(key="compare more").set_value(2).run()
    at.button(key="compare add").click().run()
    assert not at.exception and asked == [("compare", {"comparison": str(place), "workers": None, "executor": "auto"})]
    assert folder.read(place).spec.seeds == (1, 2, 3, 4, 5, 6)
    at = page("compare", comparison=place.name)
    assert "extended after looking" in texts(at) and "Extended after looking: 2 seeds were added" in texts(at)
    assert "Extended after looking, so only a hint" in texts(
        at
    ) and "As it was fixed beforehand: Preliminary. Not settled: −0.045" in texts(at)


def test_arms_that_do_not_start_equal_are_not_shown_as_a_result():
    place = kept()
    metrics = next((place / "cells").glob("wisca*seed2")) / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"val_loss": 5.0})
    metrics.write_text("\n".join(lines))
    at = page("compare", comparison=place.name)
    assert "They are not the same function" in texts(at) and not at.get("plotly_chart")


def test_a_failed_run_is_named_with_its_reason():
    place = kept()
    cell = next(c for c in folder.read(place).cells if c.name == "wisca-lr0.001-seed2")
    folder.write_cell_status(cell, state="failed", reason="the training loss became nan at step 7 of 600.")
    at = page("compare", comparison=place.name)
    assert at.title[0].value.replace("\\", "") == "Nothing can be concluded from 3 seeds; at least 4 are needed."
    assert "No result from wisca-lr0.001-seed2: the training loss became nan at step 7 of 600." in texts(at)


def test_how_a_comparison_came_about_stands_with_its_result():
    at = page("compare", comparison="sample-compare-gqa64-8-seeds")
    assert "was chosen after the one of 4 seeds" in texts(at)
    assert "How this comparison came about" not in texts(page("compare", comparison="sample-compare-gqa64"))


def with_weights(place: Path, *names: str) -> None:
    """Final weights in these runs: another checkpoint of the bundled sample each."""
    for name, step in zip(names, (3600, 600)):
        shutil.copytree(SAMPLES / "gqa-docs" / f"checkpoint-{step}", place / "cells" / name / "model")


def test_final_weights_of_two_arms_are_shown_side_by_side_on_inspect():
    place = kept()
    assert "Final weights: 0 runs" in [e.label for e in page("compare", comparison=place.name).expander]
    one, other = "wisca-lr0.001-seed1", "baseline-lr0.001-seed1"
    with_weights(place, one, other)
    at = page("compare", comparison=place.name)
    assert "QK + VO, every 25, seed 1" in at.selectbox(key="compare weights").options
    at.selectbox(key="compare weights").set_value(next(c for c in folder.read(place).cells if c.name == one)).run()
    at.button(key="compare both").click().run()
    assert not at.exception
    assert at.session_state["model"] == str(place / "cells" / one / "model") and at.session_state["beside"] == str(
        place / "cells" / other / "model"
    )
    at.switch_page("views/inspect.py").run()
    assert not at.exception
    assert any(re.match("No cell differs by more than 1\\.", s.value) for s in at.subheader)
    at.button(key="beside away").click().run()
    assert not at.exception and at.session_state["beside"] == "" and not any("differ" in s.value for s in at.subheader)


def test_a_model_beside_that_cannot_be_opened_is_a_message_and_the_page_lives(tmp_path):
    at = page(beside=tmp_path / "nowhere")
    assert "The model beside it cannot be shown" in texts(at) and len(at.get("plotly_chart")) >= 4


def test_the_spec_to_run_again_finds_what_is_here_and_the_rest_is_named(tmp_path, capsys):
    from wisca_core.cli import main

    document, missing = folder.spec_to_go(SAMPLES / "compare-lora-gqa-docs")
    assert missing == ("the text torch-nn.txt",) and document["model"]["path"] == str(
        SAMPLES / "gqa-docs" / "checkpoint-3600"
    )
    (tmp_path / "spec.json").write_text(json.dumps(document))
    assert main(["compare", str(tmp_path / "spec.json"), "--out", str(tmp_path / "c")]) == 2
    assert f"data.path: '{tmp_path / 'torch-nn.txt'}' does not exist" in capsys.readouterr().err
    (tmp_path / "torch-nn.txt").write_bytes(b"import torch\n" * 1000)  # put beside it, as the page says
    assert main(["compare", str(tmp_path / "spec.json"), "--estimate", "--json"]) == 0
    assert "Not on this machine: the text torch-nn.txt. Put it beside the spec" in texts(
        page("compare", comparison="sample-compare-lora-gqa-docs")
    )
    assert folder.spec_to_go(SAMPLE)[1] == () and "Not on this machine" not in texts(
        page("compare", comparison="sample-compare-gqa64")
    )


def test_weights_that_are_not_there_are_told_from_weights_that_were_not_to_be_kept():
    assert folder.read(SAMPLES / "compare-lora-gqa-docs").spec.save_weights
    assert "They are not in this folder, although its spec keeps them" in texts(
        page("compare", comparison="sample-compare-lora-gqa-docs")
    )
    place = kept()
    spec = json.loads((place / "spec.json").read_text())
    (place / "spec.json").write_text(json.dumps(spec | {"save_weights": False}))
    assert "None were kept: this comparison was set up to keep the curves alone." in texts(
        page("compare", comparison=place.name)
    )


def test_keeping_the_final_weights_is_a_choice_with_its_size_on_disk(monkeypatch):
    started(monkeypatch)
    at = page("compare", comparison="new")
    at.toggle(key="compare keep").set_value(True).run()
    # 42 runs of 201,344 parameters of 4 bytes are 33.8 MB; beside them curves, and the checkpoints of two runs that go
    with_weights = re.search(
        r"Disk: about ([\d.]+) MB with the final weights of every run; .* are free there", texts(at)
    )
    at.toggle(key="compare keep").set_value(False).run()
    without = re.search(r"Disk: about ([\d.]+) MB without the final weights", texts(at))
    assert float(with_weights[1]) - float(without[1]) == pytest.approx(33.8, abs=0.6)
    at.button(key="compare start").click().run()
    assert folder.read(folder.every()[0]).spec.save_weights is False


def test_final_weights_are_a_download_under_a_token_of_their_own():
    from wisca_app import downloads

    place = kept()
    with_weights(place, "wisca-lr0.001-seed1")
    at = page("compare", comparison=place.name)
    model = place / "cells" / "wisca-lr0.001-seed1" / "model"
    token = downloads.link(model, "config.json")
    assert [k for k, (path, _) in downloads._folders.items() if path == model] == [token]
    with pytest.raises(UnreadableInput, match="no finished export"):
        downloads.link(model.parent, "config.json")
    assert str(model) in texts(at)


@pytest.mark.parametrize("name", ["nothere", "../../etc", "sample-../gqa-docs", "x" * 300, "[a](http://evil.example)"])
def test_an_address_of_an_unknown_comparison_says_so_and_shows_no_other(name):
    kept()
    at = page("compare", comparison=name)
    assert at.title[0].value == "This comparison is not on this machine." and f"Asked for: {name[:100]}" in texts(at)
    assert not at.get("plotly_chart") and at.query_params["comparison"] in (name, [name])
    chooser = at.selectbox(key="comparison")
    n_bundled = len(list(SAMPLES.glob("compare-*/spec.json")))
    # beside the bundled ones: what was asked for, the one that is kept, and a new one
    assert (
        chooser.value == name
        and len(chooser.options) == n_bundled + 3
        and "[a](" not in "".join(e.value for e in at.markdown)
    )
    chooser.set_value("sample-compare-gqa64").run()
    assert (
        not at.exception
        and len(at.get("plotly_chart")) == 4
        and len(at.selectbox(key="comparison").options) == n_bundled + 2
    )


def test_a_damaged_folder_is_a_message():
    place = kept()
    (place / "status.json").write_text("{")
    at = page("compare", comparison=place.name)
    assert "is not a wisca-comparison-status file" in texts(at)


STRENGTHS = {"minus_1": -1.0, "half": 0.5, "full": 1.0, "more": 1.5}
DOSE = (
    ARMS["baseline"],
    ARMS["wisca"],
    *(Arm(name, kind="rates", clip_norm="plain", strength=strength) for name, strength in STRENGTHS.items()),
)


def piloted(name: str = "20260101-000000-dose", **more) -> Path:
    """Finished, best at 2e-3 for all; harm grows with the strength and is smaller the other way."""
    shift = {"baseline": 0.0, "wisca": 0.1, "minus_1": 0.04, "half": 0.03, "full": 0.1, "more": 0.2}
    looks = {1e-3: -0.02, 2e-3: 0.05, 4e-3: 0.1}
    place = storage.folder("comparisons") / name
    with_pilot(
        place,
        lambda arm, rate: 2.0 + abs(math.log2(rate / 2e-3)) / 10 + (looks[rate] if arm == "wisca" else 0),
        lambda arm, rate, seed: 2.0 + seed / 10 + shift[arm] + seed / 1000 * (arm != "baseline"),
        arms=DOSE,
        seeds=range(1, 9),
        **more,
    )
    return place


def test_the_answer_what_decides_more_the_dose_the_rates_and_what_to_do():
    at = page("compare", comparison=piloted().name)
    assert not at.exception
    assert at.title[0].value.replace("\\", "").startswith("No useful gain: loss +0.1")
    said, headings = texts(at), [s.value for s in at.subheader]
    # the baseline at 1e-3 is one octave from its best: 0.1; the arm's own difference is larger
    assert "each arm at its own best rate" in said and "exact sign-flip p = 0.008" in said
    assert headings[:2] == ["What to do with this", "Loss rises both ways, most with balance"]
    assert "Only at too low a rate does it look better" in headings
    assert metrics(at)["p, sign flip"] == "0.0078" and metrics(at)["Best rate"] == "0.002"
    assert "Tune the rate first" in said and "Rescale where the rate is not yours" in said
    assert "The rule, fixed beforehand" in said and "AdamW([" in "".join(c.value for c in at.code)
    at.segmented_control(key="compare groups").set_value("Megatron-Core").run()
    assert "get_standard_config_overrides" in "".join(c.value for c in at.code)
    at.button(key="compare new").click().run()
    assert not at.exception and at.session_state["comparison"] == "new"
    assert at.title[0].value == "Would rescaling help a training like yours?"


def test_a_baseline_that_still_improves_is_no_answer_on_the_page_either():
    place = storage.folder("comparisons") / "20260101-000000-end"
    with_pilot(place, lambda arm, rate: 2 - math.log2(rate) / 10, lambda arm, rate, seed: 2.0 + seed / 10)
    at = page("compare", comparison=place.name)
    assert "No answer yet: the baseline still improves with the rate" in at.title[0].value.replace("\\", "")
    assert "The baseline is best at the highest rate tried: no bracket, no answer" in texts(at)


def test_the_groups_to_copy_are_the_rates_that_a_balance_comes_to():
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from wisca_app.comparing import advice

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=1,
    )
    model = Qwen2ForCausalLM(config)  # with biases on q, k and v
    given = {"model": model, "lr": 1e-3, "wd": 0.1}
    exec(advice.pytorch({"qk": 6**0.5, "vo": 6**-0.5}), given)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in given["optimizer"].param_groups for p in g["params"]}
    attention = model.model.layers[0].self_attn
    heavy, light = 6**0.5 * 1e-3, 6**-0.5 * 1e-3
    wanted = {"q_proj": heavy, "k_proj": light, "v_proj": light, "o_proj": heavy}
    for name, rate in wanted.items():
        assert rates[id(getattr(attention, name).weight)][0] == pytest.approx(rate, rel=5e-3)
        # the decay of a step, rate times decay, stays what it was
        assert math.prod(rates[id(getattr(attention, name).weight)]) == pytest.approx(1e-4)
        if getattr(attention, name).bias is not None:
            assert rates[id(getattr(attention, name).bias)] == (pytest.approx(rate, rel=5e-3), 0.0)
    assert rates[id(model.lm_head.weight)][0] == 1e-3 and len(rates) == len(list(model.parameters()))
    compile(advice.megatron({"vo": 6**-0.5}), "megatron", "exec")
    compile(advice.LORA_CODE, "lora", "exec")


def test_one_that_was_cancelled_before_its_first_step_is_not_landed_on():
    place = fresh("20990101-000000-empty")
    folder.write_status(place, "cancelled", seconds=1.0)
    kept()
    at = page("compare")
    assert at.selectbox(key="comparison").value == "20260101-000000-kept"
    assert page("compare", comparison=place.name).title[0].value.startswith("Cancelled. 0 of 8 runs")


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_dose_and_the_rates_show_the_numbers_of_the_report(theme):
    comparison = folder.read(piloted())
    found = report(comparison, folder.curves(comparison))
    points = dose.doses(found, comparison.spec.arms)
    assert [s for s, _ in points] == [-1.0, 0.5, 1.0, 1.5]
    fig = dose.dose(points, found, 0.02, theme)
    diamonds = {t.x[0]: t.y[0] for t in fig.data if t.marker.symbol == "diamond"}
    assert diamonds == {s: pytest.approx(e.loss.mean) for s, e in points}
    low, high = fig.layout.yaxis.range
    assert all(low < v < high for _, e in points for v in (*e.differences, e.loss.low, e.loss.high, -0.02))
    assert list(fig.layout.xaxis.tickvals) == [-1.0, 0.0, 0.5, 1.0, 1.5]
    table = statistics.finals(comparison, folder.curves(comparison, of_pilot=True))
    fig = dose.sweep(table, dict(found.tested), comparison.spec.arms, theme, "nats per byte")
    rings = [t for t in fig.data if t.marker.symbol == "circle" and t.yaxis == "y"]
    assert [t.x[0] for t in rings] == [2e-3, comparison.pilot.chosen["wisca"]]
    brackets = [list(t.x) for t in fig.data if t.yaxis == "y2" and t.mode == "lines+markers"]
    assert brackets[0] == [1e-3, 4e-3]


def test_while_the_pilot_runs_the_page_says_that_rates_are_chosen():
    spec = Spec(
        "piloting",
        arms=(ARMS["baseline"], ARMS["wisca"]),
        steps=100,
        optimiser=OptimiserSpec(learning_rates=(1e-3, 2e-3)),
        pilot=PilotSpec((101,)),
    )
    place = folder.create(storage.folder("comparisons") / "20260101-000000-piloting", spec)
    fill(place, lambda arm, rate, seed: 2.0, missing={"wisca-lr0.002-seed101": "the training loss became nan"})
    folder.write_status(place, "running", seconds=5.0)
    held = storage.take_lock(place / "lock")
    try:
        at = page("compare", comparison=place.name)
        assert at.title[0].value.startswith("Choosing rates: 3 of 12 runs") and len(at.get("plotly_chart")) == 1
        assert "The first curves come once the rates are chosen." in texts(at)
    finally:
        os.close(held)


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_running_comparison_is_attached_to_again_with_the_ways_to_stop_it():
    place = kept()
    running = next(c for c in folder.read(place).cells if c.name == "wisca-lr0.001-seed4")
    folder.write_cell_status(running, state="running")
    metrics = running.folder / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(keepends=True)[:32]))
    folder.write_status(place, "running", seconds=90.0, workers=2)
    held = storage.take_lock(place / "lock")
    try:
        for _ in range(2):  # a reload is another session
            at = page("compare")
            assert at.title[0].value.startswith("Training: 15 of 16 runs, about")
            assert len(at.get("plotly_chart")) == 3
        at.button(key="compare pause").click().run()
        assert folder.stop_request(place) == "pause" and "Stopping at the next step" in texts(at)
        at.button(key="compare cancel").click().run()
        assert folder.stop_request(place) == "cancel"
    finally:
        os.close(held)
    at = page("compare")
    assert at.title[0].value.startswith(
        "Interrupted: its process ended without a word."
    ) and "not to be quoted" in texts(at)
    assert at.button(key="compare resume").label == "Resume"


def test_a_comparison_without_a_single_row_waits_for_its_first_curves():
    place = fresh()
    folder.write_status(place, "running", seconds=0.5)
    held = storage.take_lock(place / "lock")
    try:
        at = page("compare")
        assert at.title[0].value == "Training: 0 of 8 runs." and "first curves come in a few seconds" in texts(at)
        cell = folder.read(place).cells[0]
        rows = [
            {"format": "wisca-metrics", "version": 1},
            {"step": 0, "val_loss": 5.5, "qk": 3.0, "vo": -3.0, "seconds": 0.1, "tokens": 0},
        ]
        (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        at = page("compare")
        assert len(at.get("plotly_chart")) == 2  # the baseline alone, without any pair and any gradient yet
    finally:
        os.close(held)


def test_a_cancelled_comparison_shows_what_there_is_and_nothing_to_quote():
    place = kept()
    for cell in folder.read(place).cells[1:]:
        folder.write_cell_status(cell, state="waiting")
        (cell.folder / "metrics.jsonl").unlink()
    folder.write_status(place, "cancelled", seconds=9.0)
    at = page("compare", comparison=place.name)
    said = texts(at)
    assert (
        at.title[0].value == "Cancelled. 1 of 16 runs finished." and "No result from" not in said and "nan" not in said
    )
    assert len(at.get("plotly_chart")) == 1 and "to be quoted" not in said and "flatters" not in said
    # with pairs to speak of, what is missing is one line
    place = kept("20260101-000000-more")
    for cell in folder.read(place).cells:
        if cell.seed == 4:
            folder.write_cell_status(cell, state="waiting")
    folder.write_status(place, "cancelled", seconds=9.0)
    said = texts(page("compare", comparison=place.name))
    assert (
        "So far, not to be quoted" in said
        and "4 runs are not finished." in said
        and "Seeds whose runs are not finished are left out: 4." in said
    )


def test_a_rate_without_a_run_yet_has_no_broken_chart():
    place = kept()
    spec = json.loads((place / "spec.json").read_text())
    spec["optimiser"]["learning_rates"] = [1e-3, 3e-3]
    (place / "spec.json").write_text(json.dumps(spec))
    folder.write_status(place, "paused", seconds=9.0)
    at = page("compare", comparison=place.name)
    assert at.segmented_control(key="compare_rate").value == 1e-3
    at.segmented_control(key="compare_rate").set_value(3e-3).run()
    assert not at.exception and "No run at 0.003 has a row yet." in texts(at)


def test_after_a_pause_the_page_says_that_it_ends_not_that_it_starts(monkeypatch):
    place = kept()
    folder.write_status(place, "paused", seconds=9.0, finished=200.0)
    going = lambda created: (
        lambda kind, **kw: type("Job", (), {"is_active": True, "created": created, "state": "running"})()
    )
    monkeypatch.setattr("wisca_app.comparing.live.latest", going(100.0))
    assert page("compare", comparison=place.name).title[0].value == "Ending: what was done is being kept."
    monkeypatch.setattr("wisca_app.comparing.live.latest", going(300.0))
    assert page("compare", comparison=place.name).title[0].value.startswith("Starting")


def test_the_time_left_does_not_count_starting_up_again():
    place = fresh()
    folder.write_status(place, "running", seconds=20.0)  # of which 18 passed before the first step
    held = storage.take_lock(place / "lock")
    try:
        for cell in folder.read(place).cells[:2]:
            folder.write_cell_status(cell, state="running")
            rows = [
                {"format": "wisca-metrics", "version": 1},
                {"step": 0, "seconds": 0.0},
                {"step": 10, "seconds": 2.0},
            ]
            (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        now = folder.read(place)
        # two at a time, 10 steps in 2 seconds each: 780 of 800 steps are left at 10 a second
        assert now.steps_per_second == 10 and now.seconds_left == 78
        assert now.tokens_per_second == 10 * now.spec.batch_size * now.spec.data.context
    finally:
        os.close(held)
    folder.write_status(place, "paused", seconds=20.0)
    assert folder.read(place).steps_per_second == 1


def test_a_comparison_that_was_never_started_can_be(monkeypatch):
    asked = started(monkeypatch)
    place = fresh()
    at = page("compare", comparison=place.name)
    assert at.title[0].value == "Not started yet. 0 of 8 runs finished."
    at.button(key="compare resume").click().run()
    assert asked == [("compare", {"comparison": str(place), "workers": None, "executor": "auto"})]


def test_both_the_folder_and_the_title_find_a_comparison_in_the_list():
    kept("20260101-000000-decoder-of-width-64-600-steps-ab12")
    kept("mine-in-june")
    at = page("compare", comparison="mine-in-june")
    options = at.selectbox(key="comparison").options
    assert "20260101-000000: GQA decoder of width 64, 600 steps, finished" in options
    assert "mine-in-june: GQA decoder of width 64, 600 steps, finished" in options
    assert "compare-gqa64-8-seeds: The same with 8 fresh seeds, 600 steps, bundled" in options
    assert "mine-in-june: GQA decoder of width 64, 600 steps. Decoder of width 64, 4 layers" in texts(at)


def test_a_comparison_opens_on_runs():
    at = page("compare", comparison="sample-compare-gqa64")
    at.button(key="compare runs").click().run()
    assert not at.exception
    at.switch_page("views/runs.py").run()
    assert at.query_params["logs"] in (str(SAMPLE), [str(SAMPLE)])
    assert at.session_state["logs"] == str(SAMPLE) and "16 runs" in texts(at) and "Final val_loss by group" in texts(at)


def test_a_comparison_is_deleted_after_a_second_click_and_a_sample_or_a_running_one_is_not():
    gone, stays = kept("20260101-000000-gone"), kept("20260102-000000-stays")
    at = page("compare", comparison=gone.name)
    assert str(gone) in texts(at) and gone.is_dir()
    at.button(key="compare delete yes").click().run()
    assert not at.exception and not gone.exists() and stays.is_dir() and at.session_state["comparison"] == stays.name
    assert [path.name for path in storage.folder("comparisons").iterdir()] == [stays.name]
    folder.write_status(stays, "running", seconds=1.0)
    held = storage.take_lock(stays / "lock")
    try:
        at = page("compare", comparison=stays.name)
        assert at.button(key="compare delete off").disabled and not [
            b for b in at.button if b.key == "compare delete yes"
        ]
        with pytest.raises(OutputRefused, match="is running"):
            folder.remove(stays)
    finally:
        os.close(held)
    assert not [
        b
        for b in page("compare", comparison="sample-compare-gqa64").button
        if (b.key or "").startswith("compare delete")
    ]
    for wrong in (
        SAMPLE,
        stays / "cells",
        storage.folder("comparisons") / ".." / "comparisons" / stays.name,
        storage.folder("comparisons"),
    ):
        with pytest.raises(OutputRefused, match="only those are deleted here"):
            folder.remove(wrong)
    assert stays.is_dir() and SAMPLE.is_dir()


def test_a_damaged_comparison_can_be_deleted():
    place = kept()
    (place / "status.json").write_text("{")
    at = page("compare", comparison=place.name)
    at.button(key="compare delete yes").click().run()
    assert not at.exception and not place.exists()


def test_one_that_stopped_before_its_first_step_says_what_can_be_done():
    place = fresh()
    assert "stopped before its first step" not in texts(page("compare", comparison=place.name))
    folder.write_status(place, "failed", message="UnreadableInput: data.path: '/x' does not exist")
    at = page("compare", comparison=place.name)
    assert (
        "stopped before its first step" in texts(at)
        and "delete it here" in texts(at)
        and [b for b in at.button if b.key == "compare delete yes"]
    )


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_figures_show_the_numbers_of_the_report(theme):
    comparison = folder.read(SAMPLE)
    curves = folder.curves(comparison)
    found = report(comparison, curves)
    fig = compare.forest(found, comparison.spec.arms, theme)
    diamonds = [t for t in fig.data if t.marker.symbol == "diamond"]
    assert sorted(t.x[0] for t in diamonds) == pytest.approx(sorted(e.loss.mean for e in found.effects))
    low, high = fig.layout.xaxis.range
    assert all(low < v < high for e in found.effects for v in (e.loss.low, e.loss.high, *e.differences))
    assert fig.layout.xaxis.title.text.startswith("nats per byte against the baseline")
    gaps = statistics.gaps(curves, "baseline", 1e-3)
    fig = compare.curves(statistics.bands(curves, 1e-3), gaps, comparison.spec.arms, theme, 600, "nats per byte")
    last = [t.y[-1] for t in fig.data if t.yaxis == "y2" and t.mode == "lines"]
    assert last[-3:] == pytest.approx([e.loss.mean for e in found.effects], abs=1e-9)


def sample(name: str):
    comparison = folder.read(SAMPLES / name)
    curves = folder.curves(comparison)
    return comparison, curves, report(comparison, curves)


def test_titles_are_about_the_rate_that_is_shown_and_name_the_direction():
    comparison, curves, found = sample("compare-w128-rates")
    arms = comparison.spec.arms
    assert compare.curves_finding(found, arms, 3e-3) == "At rate 0.003 QK + VO ends higher, before any correction"
    assert compare.curves_finding(found, arms, 1e-3) == "At rate 0.001 QK only ends lower, before any correction"
    assert (
        found.sentence
        == "Preliminary. No answer yet: the baseline still improves with the rate, up to the highest tried."
    )
    assert compare.forest_finding(found, arms) == "Every interval spans zero"
    assert (
        dose.sweep_finding(statistics.finals(comparison, curves), arms)
        == "The baseline is best at the highest rate tried: no bracket, no answer"
    )
    comparison, curves, found = sample("compare-gqa64-8-seeds")
    alone = statistics.finals(comparison, curves)
    assert dose.sweep_finding(alone, comparison.spec.arms) == "At every rate it looks better"
    comparison, _, answer = sample("compare-answer-g8-w128")
    pilot = statistics.finals(comparison, folder.curves(comparison, of_pilot=True))
    at_4e3 = pilot[pilot["rate"] == 4e-3].groupby("arm")["final"].mean()
    assert at_4e3["wisca"] < at_4e3["baseline"]  # by less than the seeds' spread
    assert dose.sweep_finding(pilot, comparison.spec.arms) == "At no rate does it look better, beyond the seeds' spread"
    assert "On these runs that cost 0.036 nats per byte" in advice.steps(answer, False)[1][1]
    comparison, curves, found = sample("compare-gqa64-8-seeds")
    assert compare.curves_finding(found, comparison.spec.arms, 1e-3) == "QK + VO ends lower, Inverse scaling higher"
    assert (
        compare.forest_finding(found, comparison.spec.arms)
        == "QK + VO ends lower, Inverse scaling higher than the baseline"
    )
    comparison, _, found = sample("compare-default")
    assert compare.curves_finding(found, comparison.spec.arms, 1e-3) == "QK + VO ends lower"


def test_the_ratio_between_two_rescales_is_said_not_the_last_one_alone():
    comparison, curves, _ = sample("compare-default")
    bands = statistics.bands(curves, 1e-3, "qk")
    said = compare.ratio_finding(bands, comparison.spec.arms, "qk")
    mine = bands[(bands["arm"] == "wisca") & (bands["step"] > 0)]["mean"].abs()
    assert 1.1 < 2 ** mine.max() < 1.5 and f"rescaling keeps it within {2 ** mine.max():.2f}× of balance" in said


def test_the_table_holds_the_baseline_at_its_own_best_rate():
    at = page("compare", comparison="sample-compare-w128-rates")
    table = at.dataframe[0].value
    rows = table[table["Rate"].str.startswith("own best")]
    assert rows["Arm"].tolist()[0] == "Baseline" and rows["Rate"].tolist() == [
        "own best, 0.003",
        "own best, 0.001",
        "own best, 0.001",
    ]
    base, wisca = (float(rows[rows["Arm"] == arm]["Loss"].iloc[0]) for arm in ("Baseline", "QK + VO, every 25"))
    assert round(wisca - base, 3) == pytest.approx(0.004, abs=0.0011)
    assert "QK and VO balanced every 25 steps" in table["What it does"].tolist()
    assert at.segmented_control(key="compare_rate").value == 3e-3  # the baseline's best


def test_rate_and_pair_stand_in_the_address_where_they_were_chosen():
    name = "sample-compare-w128-rates"
    at = page("compare", comparison=name, compare_rate="0.001", compare_pair="vo")
    assert at.segmented_control(key="compare_rate").value == 1e-3
    assert "At rate 0.001 QK only ends lower" in texts(at) and "Left alone the output side" in texts(at)
    assert dict(at.query_params) == {"comparison": name, "compare_rate": "0.001", "compare_pair": "vo"}
    at.segmented_control(key="compare_rate").set_value(3e-3).run()  # the verdict's own
    assert dict(at.query_params) == {"comparison": name, "compare_pair": "vo"}
    assert page("compare", comparison=name, compare_rate="-1").segmented_control(key="compare_rate").value == 3e-3


def test_the_title_of_a_comparison_that_goes_on_says_so_far():
    place = kept()
    comparison = folder.read(place)
    frame = folder.curves(comparison)
    assert not values.ratios(comparison, frame, 1e-3, "qk").finding.startswith("So far")
    cells = (replace(comparison.cells[0], state="running"), *comparison.cells[1:])
    going = replace(comparison, cells=cells)
    assert values.ratios(going, frame, 1e-3, "qk").finding.replace("\\", "").startswith("So far: left alone")
    assert "late in the run" in values.gradients(comparison, frame, 1e-3).finding.lower()
    assert values.gradients(going, frame, 1e-3).finding.startswith("So far")  # one seed may be at its end already


def test_titles_of_a_training_that_has_just_begun_claim_nothing_of_its_end():
    place = kept()
    for cell in folder.read(place).cells:
        metrics = cell.folder / "metrics.jsonl"
        first, *rows = metrics.read_text().splitlines(keepends=True)
        early = [row for row in rows if json.loads(row)["step"] <= 40]  # of 200
        metrics.write_text("".join([first, *early]))
        folder.write_cell_status(cell, state="running", step=40)
    folder.write_status(place, "running", seconds=9.0, workers=2)
    held = storage.take_lock(place / "lock")
    try:
        at = page("compare", comparison=place.name)
        titles = [one.value.replace("\\", "").lower() for one in at.main.subheader]
    finally:
        os.close(held)
    assert len(titles) == 3 and all("so far" in title for title in titles)
    assert not any(word in title for title in titles for word in ("late in the run", "ends"))
    for cell in folder.read(place).cells:  # and those of the whole run do
        shutil.copy(SAMPLE / "cells" / cell.name / "metrics.jsonl", cell.folder)
        folder.write_cell_status(cell, state="done")
    folder.write_status(place, "done", seconds=9.0)
    said = texts(page("compare", comparison=place.name)).lower()
    assert "late in the run" in said and "rescaling keeps it within" in said and "so far" not in said


def test_arms_look_different_from_each_other():
    for known in (ARMS, LORA_ARMS):
        looks = compare.styles(tuple(known.values()), LIGHT)
        assert len(set(looks.values())) == len(looks)
    looks = compare.styles(tuple(ARMS.values()), LIGHT)
    assert (
        looks["baseline"][0] == LIGHT.quiet
        and looks["qk_only"][0] == LIGHT.role["q"]
        and looks["vo_only"][0] == LIGHT.role["v"]
    )


def test_ticks_are_round_and_hold_zero():
    assert compare.signed_ticks(0.13) == [-0.1, -0.05, 0.0, 0.05, 0.1]
    assert compare.signed_ticks(0.0021) == [-0.002, -0.001, 0.0, 0.001, 0.002]
