"""The Heads page: what it draws of a model, what is marked as moving, and the models that are odd or refused."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from dashboard_page import charts, page, texts

from wisca_app.figures import circuits as figures
from wisca_app.figures.template import DARK, LIGHT
from wisca_core.architecture.discovery import sites_of
from wisca_core.checkpoint import open_checkpoint
from wisca_core.circuits.check import factor_check
from wisca_core.circuits.columns import BY_NAME


def of_kind(at, kind):
    """The charts with a trace of that kind."""
    return [chart for chart in charts(at) if any(trace["type"] == kind for trace in chart["data"])]


def test_the_sample_is_drawn_at_once_with_what_stands_out_and_what_moves():
    at = page("heads")
    said = texts(at.main)
    assert at.title[0].value == "Layer 0 stands apart: stable rank 1.3 to 1.8 in QK, 6.0 to 7.4 in OV."
    assert "QK stable rank is lowest in layer 0, head 0: 1.27" in said and "stays under a rescale" in said
    assert "Nearly rank one in QK" in said and "3 heads" in said and "1.27 of 24" in said
    assert "query 4.4×" in said and "**moves**" in said
    # the check of this very page: what stays does, to float64's rounding
    assert "a random rescale of 8 heads leaves the left columns equal to" in said
    (drawn,) = of_kind(at, "heatmap")
    cells = next(trace for trace in drawn["data"] if trace["type"] == "scatter")
    assert len(cells["customdata"]) == 64 and cells["text"][0] == "1.27"
    assert "over the training: the median head went from" in said
    frame = at.main.dataframe[0].value
    assert ("moves under a rescale: no", "QK stable rank") in frame.columns
    assert ("moves under a rescale: yes", "|Wq|") in frame.columns and len(frame) == 64


def test_another_column_another_head_and_another_model_are_in_the_address(sample_step):
    at = page("heads", column="q_l1", layer="3", head="5", expert="-1", heads_beside=sample_step(600))
    said = texts(at.main)
    assert "moves under a rescale" in said and "Layer 3, head 5" in said
    assert "|Wq| differs" in said
    assert len(of_kind(at, "heatmap")) == 2
    at.selectbox(key="up").select("logit_bound").run()
    assert "Logit bound against QK stable rank" in texts(at.main) and not at.exception


def test_boxes_choose_the_head_and_follow_what_else_chooses_it(small_model):
    at = page("heads")
    layer, head = (at.selectbox(key=f"heads {name} box") for name in ("layer", "head"))
    assert (layer.value, head.value) == (0, 0) and "layer" not in at.query_params  # nobody's choice
    layer.select(3).run()
    assert "Layer 3, head 0" in texts(at.main) and dict(at.query_params)["layer"] == "3"
    at.selectbox(key="heads head box").select(6).run()
    assert "Layer 3, head 6" in texts(at.main) and dict(at.query_params)["head"] == "6"
    at.session_state["layer"], at.session_state["head"] = 5, 2  # as a click on the map does
    at.run()
    assert [at.selectbox(key=f"heads {name} box").value for name in ("layer", "head")] == [5, 2]
    assert "heads expert box" not in [box.key for box in at.selectbox]


@pytest.fixture
def sample_step():
    from wisca_app.state import SAMPLE

    return lambda step: SAMPLE / f"checkpoint-{step}"


def test_under_a_qk_norm_the_page_says_that_the_circuit_is_of_gains(small_model):
    at = page("heads", model=small_model("qwen3", num_key_value_heads=8))
    said = texts(at.main)
    assert "of the norm's gains" in said and "Under a QK-norm Wq^T Wk is not what a head computes" in said


def test_refused_pairs_and_models_without_heads_are_named(small_model):
    said = texts(page("heads", model=small_model("nanochat")).main)
    assert "QK: q and k pass a norm without weights" in said and "It has no QK circuit" not in said
    said = texts(page("heads", model=small_model("mamba")).main)
    assert "No head of this model is known" in said and "no attention" in said


def test_a_large_model_is_measured_by_a_job_first(small_model, own_home, monkeypatch):
    from wisca_app import cached

    monkeypatch.setattr(cached, "heads_wait", lambda model: True)
    at = page("heads", model=small_model("llama", num_hidden_layers=2, seed=9))
    assert at.header[0].value == "Measuring the heads"
    (folder,) = (own_home / "jobs").glob("*/spec.json")
    assert json.loads(folder.read_text())["kind"] == "heads"


def test_the_check_of_a_page_sees_a_wrong_mark(small_model):
    """What a rescale does is tried on the weights, so a column with the wrong mark would show."""
    checkpoint = open_checkpoint(small_model("llama"))
    check = factor_check(checkpoint, sites_of(checkpoint), "decoder.self", 1)
    assert check.stays < 1e-12 and check.moves > 1e-3
    assert factor_check(checkpoint, sites_of(checkpoint), "decoder.self", 99) is None


# --- the figures by themselves
# -----------------------------------------------------------------------------------------


def table(n_layers=3, n_heads=4, n_kv=2, **columns):
    places = [(i, h) for i in range(n_layers) for h in range(n_heads)]
    frame = pd.DataFrame(places, columns=["layer", "head"])
    frame["kv_head"], frame["expert"], frame["block"] = frame["head"] // (n_heads // n_kv), -1, "decoder.self"
    for name, values in columns.items():
        frame[name] = values
    return frame


def test_the_heads_of_two_key_heads_lie_apart_and_those_of_one_a_head_do_not():
    assert figures.lanes(table())["y"].tolist() == [0, 1, 2 + figures.BETWEEN, 3 + figures.BETWEEN]
    assert figures.lanes(table(n_kv=4))["y"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_ink_is_the_end_that_matters_and_a_missing_value_is_a_cross(theme):
    values = np.linspace(1, 3, 12)
    values[5] = np.nan
    fig = figures.head_map(table(qk_stable_rank=values), BY_NAME["qk_stable_rank"], theme=theme, selected=(0, 0, -1))
    heat = next(trace for trace in fig.data if trace.type == "heatmap")
    assert heat.colorscale[0][1] != theme.middle and heat.colorscale[1][1] == theme.middle
    text = next(trace for trace in fig.data if trace.type == "scatter").text
    assert text[5] == "×" and text[0] == "1.00" and heat.colorbar.ticktext == ("1.00", "3.00")


def test_a_large_map_has_no_numbers_and_all_values_missing_is_no_error():
    column = BY_NAME["ov_norm"]
    fig = figures.head_map(table(40, 32, 8, ov_norm=1.0), column, theme=LIGHT)
    assert next(trace for trace in fig.data if trace.type == "scatter").mode == "markers"
    none = table(ov_norm=math.nan)
    figures.head_map(none, column, theme=LIGHT)
    assert figures.map_title(none, column) == "OV norm: no head has one"
    figures.scatter(none.assign(qk_norm=math.nan), column, BY_NAME["qk_norm"], theme=LIGHT, marked=set(), selected=None)


def test_the_change_between_two_models_is_ink_either_way():
    octaves = np.zeros(12)
    octaves[3], octaves[7] = 1.0, -1.0
    fig = figures.head_map(table(qk_norm=octaves), BY_NAME["qk_norm"], theme=LIGHT, changes=True)
    heat = next(trace for trace in fig.data if trace.type == "heatmap")
    z = np.array(heat.z, float)
    assert np.nanmax(z) == 1 and (z == 1).sum() == 2 and heat.colorbar.ticktext == ("no change", "2.00×")
    text = next(trace for trace in fig.data if trace.type == "scatter").text
    assert (text[3], text[7]) == ("2.00×", "0.50×")
