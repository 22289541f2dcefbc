"""The Runs page: what it draws, what changes when a choice changes, hostile names, and the page as a file."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from dashboard_page import page, texts
from streamlit.testing.v1 import AppTest

from wisca_app.figures.runs import MOST_NAMED, Curve, curves, styles, whole_ticks
from wisca_app.figures.runs_trajectory import trajectory as trajectory_figure
from wisca_app.figures.template import DARK, LIGHT

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "sample_runs" / "gqa-docs"
HOSTILE = "![x](http://evil.example/x.png)<script>alert(1)</script>"
pytestmark = pytest.mark.usefixtures("own_home")


def chart(at: AppTest, number: int = 0) -> dict:
    return json.loads(at.get("plotly_chart")[number].proto.spec)


@pytest.fixture
def seeds(tmp_path) -> Path:
    """Two arms of four seeds; the second arm is 0.1 lower in every seed, and one run ends in NaN."""
    for arm, shift in (("baseline", 0.0), ("other", -0.1)):
        for seed in range(1, 5):
            folder = tmp_path / "logs" / f"{arm}-seed-{seed}"
            folder.mkdir(parents=True)
            (folder / "hparams.yaml").write_text(f"arm: {arm}\nseed: {seed}\n")
            rows = [
                f"{s},{2 + seed / 100 + shift - s / 100 + 0.001 * seed * (shift < 0)},{s * 100}\n"
                for s in range(0, 100, 10)
            ]
            (folder / "metrics.csv").write_text("step,loss,tokens\n" + "".join(rows))
    bad = tmp_path / "logs" / "baseline-seed-9"
    bad.mkdir()
    (bad / "hparams.yaml").write_text("arm: baseline\nseed: 9\n")
    (bad / "metrics.csv").write_text("step,loss,tokens\n0,3,0\n10,nan,1000\n")
    return tmp_path / "logs"


def test_the_first_screen_is_the_bundled_run_with_its_weights():
    at = page("runs")
    said = texts(at)
    rows = [json.loads(line) for line in (SAMPLE / "metrics.jsonl").read_text().splitlines()[1:]]
    assert f"gqa-docs: train_loss {rows[-1]['train_loss']:.3f} at step 3,600" in said
    assert len(at.get("plotly_chart")) == 2
    assert "Everything in these logs was read" in said and "In the weights" in said
    assert "does not say that balancing helps" in said and "Meanwhile train_loss falls from 5.182" in said


def test_groups_of_seeds_are_bands_and_two_are_compared_in_pairs(seeds):
    at = page("runs", logs=str(seeds))
    said = texts(at)
    assert "arm other ends lowest: loss" in said and "1 run ends in NaN or infinity and is in no mean" in said
    spec = chart(at)
    names = [trace["name"] for trace in spec["data"] if trace.get("name")]
    assert names == ["arm baseline", "arm other"] and sum(trace.get("fill") == "toself" for trace in spec["data"]) == 2
    # seed by seed: -0.1 + 0.001 x seed
    assert "arm other minus arm baseline: −0.098 in final loss" in said and "4 shared seeds. Preliminary" in said
    assert "Settings that differ" in said
    at.segmented_control(key="together").set_value("none").run()
    assert len([t for t in chart(at)["data"] if t.get("name")]) == 9 and at.query_params["together"] == "none"
    at.segmented_control(key="together").set_value("seed").run()
    assert [t["name"] for t in chart(at)["data"] if t.get("name")] == ["seed 1", "seed 2", "seed 3", "seed 4", "seed 9"]


def test_runs_of_a_comparison_open_on_what_it_is_judged_by_and_lead_to_its_conclusion():
    at = page("runs", logs=str(ROOT / "sample_runs" / "compare-default"))
    said = texts(at)
    # one arm of three others is no more than 0.056 lower, and not beyond noise once corrected: no order is claimed
    assert at.title[0].value.replace("\\", "") == "val_loss of 4 groups ends between 1.891 and 2.000"
    assert "ends lowest on average, but not apart from" in said
    assert (at.session_state["from_group"], at.session_state["to_group"]) == ("arm baseline", "arm wisca")
    assert "arm wisca minus arm baseline: −0.056 in final val_loss (95 % −0.108 to −0.005)" in said
    assert (
        "The interval is uncorrected: this is one of 3 pairs with arm baseline." in said
        and "corrected for its several arms, is on the Compare page" in said
    )
    at.button(key="planned compare").click().run()
    assert not at.exception
    at.switch_page("views/compare.py").run()
    assert at.session_state["comparison"] == "sample-compare-default" and "Not settled: −0.056" in texts(at)


def test_smoothing_axis_and_window_change_what_is_drawn_and_stand_in_the_address(seeds):
    at = page("runs", logs=str(seeds / "other-seed-1"))
    raw = chart(at)["data"][0]
    at.slider(key="smoothing").set_value(0.5).run()
    smoothed = [t for t in chart(at)["data"] if t.get("name")][0]
    assert "weighs half after 1.0 points; later points never enter" in texts(at)
    assert (
        _numbers(smoothed["y"])[0] == pytest.approx(_numbers(raw["y"])[0])
        and _numbers(smoothed["y"])[1] > _numbers(raw["y"])[1]
    )
    at.selectbox(key="x").set_value("tokens").run()
    assert _numbers([t for t in chart(at)["data"] if t.get("name")][0]["x"])[-1] == 9000
    at.slider(key="window").set_value((2000, 4000)).run()
    assert _numbers([t for t in chart(at)["data"] if t.get("name")][0]["x"]) == [1000, 2000, 3000, 4000, 5000]
    assert {"window": "2000..4000", "x": "tokens", "smoothing": "0.5"}.items() <= dict(at.query_params).items()
    again = page("runs", **dict(at.query_params))
    assert chart(again)["data"] == chart(at)["data"]


def _numbers(values) -> list[float]:
    if isinstance(values, dict):  # plotly's packed arrays
        import base64

        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()
    return list(values)


def test_bad_paths_are_a_message_and_the_form_stays(tmp_path):
    at = page("runs", logs=str(tmp_path / "nowhere"))
    assert (
        "cannot be opened" in texts(at)
        and at.title[0].value == "Open the logs of a training."
        and not at.get("plotly_chart")
    )
    at.text_area(key="logs").set_value(str(SAMPLE))
    next(button for button in at.button if button.label == "Open" and button.form_id == "logs_form").click().run()
    assert "gqa-docs: train_loss" in texts(at)
    assert "no log is open" in texts(page("runs", logs=" "))


def test_a_wrong_address_is_ignored(seeds):
    at = page(
        "runs",
        logs=str(seeds),
        smoothing="7",
        window="nan..3",
        x="nope",
        curves="nope",
        moved_layer="x",
        together="evil",
        step_column="loss",
    )
    texts(at)
    assert len(at.get("plotly_chart")) == 1


def test_the_step_column_can_be_corrected_on_the_page(tmp_path):
    (tmp_path / "log.csv").write_text("n,loss\n5,3\n10,2\n40,1\n")
    at = page("runs", logs=str(tmp_path / "log.csv"))
    assert "'n' is taken as the step" in texts(at)
    at.selectbox(key="step_column").set_value("loss").run()
    assert not at.exception and _numbers(chart(at)["data"][0]["x"]) == [3, 2, 1]


def test_hostile_names_are_shown_letter_by_letter(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps({"step": s, "loss " + HOSTILE: s, "other": HOSTILE}) + "\n" for s in range(3))
    )
    at = page("runs", logs=str(tmp_path / "log.jsonl"))
    for element in at.get("markdown") + at.get("title") + at.get("subheader"):
        unescaped = re.sub(r"\\.", "", element.value)
        assert "](" not in unescaped and "<script" not in unescaped
    spec = json.dumps(chart(at))
    assert "<script" not in spec and "&lt;script" in spec


def test_the_page_follows_a_log_that_grows(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n')
    at = page("runs", logs=str(path))
    with path.open("a") as file:
        file.write('{"step": 2, "loss": 2}\n')
    at.run()  # the fragment looks, and asks for the page to be drawn again
    at.run()
    assert _numbers(chart(at)["data"][0]["y"]) == [3, 2]


def test_a_layer_shows_its_groups(tmp_path):
    at = page("runs")
    at.selectbox(key="moved_layer").set_value(3).run()
    names = [trace["name"] for trace in chart(at, 1)["data"]]
    assert "KV groups" in names and "median" not in names and at.query_params["moved_layer"] == "3"
    at.segmented_control(key="moved_pair").set_value("vo").run()
    assert "Output grows against value in" in texts(at)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_lines_can_be_told_apart_without_colour_and_a_baseline_is_quiet():
    drawn = styles(LIGHT, ["a", "my baseline", "c", "d", "e", "f", "g", "h"])
    assert len({(s["color"], s["dash"]) for s in drawn}) == MOST_NAMED
    assert drawn[1]["color"] == LIGHT.quiet and drawn[1]["dash"] == "solid"
    many = styles(LIGHT, [str(k) for k in range(24)])
    assert len({(s["color"], s["dash"]) for s in many}) == 24


def test_a_log_axis_leaves_out_what_has_no_place_on_it():
    fig = curves(
        [Curve("a", np.array([0.0, 1, 10]), np.array([1.0, -1, 100]))],
        x_title="step",
        y_title="loss",
        theme=DARK,
        log_y=True,
    )
    y = fig.data[0].y
    assert y[0] == 1 and math.isnan(y[1]) and fig.layout.yaxis.type == "log"


def test_ticks_are_round_and_inside():
    assert (
        whole_ticks(0, 3600) == [0, 1000, 2000, 3000]
        and whole_ticks(0.0, 0.37)[:3] == [0, 0.1, 0.2]
        and whole_ticks(5, 5) == [5]
    )


def test_the_trajectory_has_the_loss_on_the_same_axis():
    import pandas as pd

    layers = pd.DataFrame(
        {"step": [0, 100] * 2, "layer": [0, 0, 1, 1], "log2_ratio": [2.0, 2.5, 2.0, 1.5], "log2_size": 2.0}
    )
    groups = layers.assign(group=0)
    loss = ("loss", np.array([0.0, 50, 100]), np.array([3.0, 2, 1]))
    fig = trajectory_figure(layers, groups, pair="qk", theme=LIGHT, loss=loss)
    assert {trace.xaxis for trace in fig.data} == {"x"} and fig.layout.xaxis.anchor == "y2"
    median = next(trace for trace in fig.data if trace.name == "median")
    assert list(median.y) == [2.0, 2.0]


def test_runs_are_searched_and_hidden_and_keep_their_colours(seeds):
    at = page("runs", logs=str(seeds), together="none")
    colours = {t["name"]: t["line"]["color"] for t in chart(at)["data"] if t.get("name")}
    at.text_input(key="runs_search").set_value("arm other").run()
    shown = {t["name"]: t["line"]["color"] for t in chart(at)["data"] if t.get("name")}
    assert sorted(shown) == [f"other-seed-{k}" for k in range(1, 5)]
    assert all(colours[name] == colour for name, colour in shown.items())
    at.button(key="show_all_runs").click().run()
    assert len([t for t in chart(at)["data"] if t.get("name")]) == 9 and not at.exception
    at.text_input(key="runs_search").set_value("zzz").run()
    assert "No run matches zzz; all are listed." in texts(at)
    at.text_input(key="runs_search").set_value("ther").run()  # inside a word of a setting nothing is looked for
    assert len([t for t in chart(at)["data"] if t.get("name")]) == 4


def test_other_logs_begin_with_their_own_metric_and_groups(seeds, tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,score\n0,2.5,1\n1,2.0,2\n")
    (tmp_path / "more.csv").write_text("step,score,loss\n0,1,2.5\n1,2,2.0\n")
    at = page("runs", logs=str(tmp_path / "log.csv"), curves="score", smoothing="0.5")
    assert "score ends at" in texts(at)
    at.text_area(key="logs").set_value(str(tmp_path / "more.csv"))
    at.button(key="FormSubmitter:logs_form-Open").click().run()
    assert "loss ends at 2.000" in texts(at) and not at.exception
    assert at.slider(key="smoothing").value == 0.5


def test_a_table_with_a_column_called_run_is_shown(tmp_path):
    (tmp_path / "log.csv").write_text("run,Run,step,loss\na,1,0,2.5\na,1,1,2.0\nb,2,0,3.5\nb,2,1,3.0\n")
    at = page("runs", logs=str(tmp_path / "log.csv"))
    assert not at.exception and "loss ends at 2.000" in texts(at)


def test_histograms_and_logged_ratios_open_as_distributions_per_layer(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    rng = np.random.default_rng(0)
    with SummaryWriter(tmp_path / "run") as writer:
        for step in (0, 100):
            for layer in (0, 1):
                writer.add_histogram(f"model.layers.{layer}.q_proj.weight", rng.normal(size=500), step)
                writer.add_scalar(f"wisca/log2_ratio/decoder.{layer}.self.qk", 3 - step / 100, step)
    at = page("runs", logs=str(tmp_path))
    said = texts(at)
    assert not at.exception and "Distributions in the logs" in said
    assert "values over the steps, 2 layers" in said.replace("\\", "")
    assert "QK as it was logged ends at query 4.0× in the median layer" in said
    at.segmented_control(key="histogram_view").set_value("l2").run()
    assert not at.exception and "L2 norm of the median layer goes from" in texts(at).replace("\\", "")
