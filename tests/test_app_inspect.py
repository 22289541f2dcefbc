"""The Inspect page: what it says of a model, every control that changes it, and the models that are odd or refused."""

import json
import re
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from dashboard_page import charts, metrics, page, proved, texts
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest

from wisca_app import clicks
from wisca_app.figures import words
from wisca_app.inspecting import selection
from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import open_checkpoint
from wisca_core.patterns.measure import measure
from wisca_core.patterns.summary import times
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options
from wisca_core.planning.rates import equivalent_rates, median_rates, rate


def look_at(folder: Path):
    checkpoint = open_checkpoint(folder)
    return measure(checkpoint, find_sites(checkpoint))


def save(folder: Path, model, change=lambda tensors: None) -> Path:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.05
    model.to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def config(**changes):
    from transformers import LlamaConfig

    return LlamaConfig(
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            **changes,
        }
    )


def heavy_query(tensors):
    """The query of layer 2, head 3 (KV group 1) sixteen times too heavy."""
    tensors["model.layers.2.self_attn.q_proj.weight"][24:] *= 16


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """Four layers, four query heads of 8 on two KV heads, bf16, group size 2."""
    from transformers import LlamaForCausalLM

    return save(tmp_path_factory.mktemp("models") / "tiny", LlamaForCausalLM(config()), heavy_query)


def bar(at: AppTest) -> dict:
    """The map's colours by cell, as numbers."""
    return next(trace for trace in charts(at)[0]["data"] if trace["type"] == "heatmap")["z"]


def most(at: AppTest):
    """The table of the most unbalanced."""
    return at.main.dataframe[0].value


def plain(heading) -> str:
    return heading.value.replace("\\", "")


def l1(tensors, name, rows=slice(None)):
    return tensors[name][rows].double().abs().sum().item()


# --- what it says -----------------------------------------------------------------------------------------------------


def test_the_verdict_is_over_all_pairs_and_names_the_worst_place(llama):
    tensors = load_file(llama / "model.safetensors")
    name = "model.layers.{}.self_attn.{}_proj.weight"
    qk, vo = (
        np.median([l1(tensors, name.format(i, a)) / l1(tensors, name.format(i, b)) for i in range(4)])
        for a, b in (("q", "k"), ("o", "v"))
    )
    worst = l1(tensors, name.format(2, "q"), slice(16, None)) / l1(tensors, name.format(2, "k"), slice(8, None))
    at = page(model=llama)
    said = at.title[0].value
    assert said.startswith(f"Queries weigh {qk:.1f}× their keys, outputs {times(vo)} their values, mostly by size")
    assert said.endswith(f"; worst pair: QK in layer 2, {worst:.1f}×.")
    shown = metrics(at)
    assert shown["Query / key"] == f"{qk:.1f}×" and shown["of that, size"] == "2.0×"
    assert shown["Output / value"] == times(vo) and shown["Largest"] == f"{worst:.1f}×"
    assert shown["Outlying"] == "1 of 16"
    assert at.segmented_control(key="pair").set_value("vo").run().title[0].value == said  # not of the chosen pair


def test_a_level_pair_is_called_level_beside_one_that_is_not(llama, edited):
    def balance(tensors):
        for name in tensors:
            if "k_proj" in name:
                q = tensors[name.replace("k_proj", "q_proj")]
                tensors[name] *= q.abs().sum() / tensors[name].abs().sum() / 1.02

    at = page(model=edited(llama, balance))
    assert (
        ", mostly by size, queries and keys are level in the median layer; worst pair: QK in layer 2"
        in at.title[0].value
    )
    assert metrics(at)["Query / key"] == "1.02×" and metrics(at)["size, query"] == "2.0×"
    assert ":blue[**Wq**]" not in texts(at) and ":violet[**Wo**] at 1.4× and :green[**Wv**]" in texts(at)


def test_the_verdict_is_followed_by_what_balancing_is_for_a_training_and_where_to_go(llama):
    decided = decide(look_at(llama), Options())
    qk, vo = median_rates(equivalent_rates(decided))
    at = page(model=proved(llama))
    line = next(m for m in at.markdown if m.value.startswith("With Adam"))
    assert f":blue[**Wq**] at {rate(qk.left)} and :orange[**Wk**] at {rate(qk.right)}" in line.value
    assert f":violet[**Wo**] at {rate(vo.right)} and :green[**Wv**] at {rate(vo.left)} the learning rate" in line.value
    assert f"Wq {rate(qk.left**2)}" in line.help and "Adafactor" in line.help and "layers: Wq" in line.help
    assert [b.label for b in at.main.button[:3]] == ["See it balanced", "What does it do to a training?", "Compare"]
    next(b for b in at.button if b.label == "See it balanced").click().run()
    assert "pairs would change" in at.title[0].value


def test_a_model_that_is_level_everywhere_is_hardly_another_training(llama, edited):
    def balance(tensors):
        for name in tensors:
            for one, other in (("k_proj", "q_proj"), ("o_proj", "v_proj")):
                if one in name:
                    tensors[name] *= tensors[name.replace(one, other)].abs().sum() / tensors[name].abs().sum()

    said = texts(page(model=edited(llama, balance)))
    assert "moves each learning rate by less than 5 %" in said and "are each level" in said


def test_level_in_the_median_layer_is_not_said_of_the_others(llama, edited):
    def balance_all_but_the_last(tensors):
        for name in tensors:
            for one, other in (("k_proj", "q_proj"), ("o_proj", "v_proj")):
                if one in name:
                    share = 64 if "layers.3" in name and one == "o_proj" else 1
                    tensors[name] *= share * tensors[name.replace(one, other)].abs().sum() / tensors[name].abs().sum()

    at = page(model=edited(llama, balance_all_but_the_last))
    assert "are each level in the median layer; worst pair: VO in layer 3, " in at.title[0].value
    said = texts(at)
    assert "no learning rate of the median layer by 5 %" in said and "hardly another" not in said
    assert ":green[**Wv**]'s by 0.12 to 1.0× and :violet[**Wo**]'s by 1.0 to 8." in said  # sqrt(64), in bf16


def test_facts_charts_and_downloads_are_all_there(llama):
    at = page(model=llama)
    assert "bf16, 4 layers, 4 query heads on 2 KV heads. 8 pairs, none refused." in texts(at)
    assert len(charts(at)) == 6
    assert [b.proto.label for b in at.main.get("download_button")] == [
        "Report",
        *["CSV", "HTML"] * 2,
        "CSV",  # the table of the most unbalanced is no chart
        *["CSV", "HTML"] * 3,
    ]
    assert all(len(c.proto.alt) > 20 for c in at.main.get("plotly_chart"))
    assert "feed-forward pairs are looked at when MLP is chosen above" in texts(at)


def test_a_model_is_named_by_its_own_type_and_the_rule_it_goes_by(small_model):
    assert ", mixtral, rule llama, " in texts(page(model=small_model("mixtral")))


def test_the_first_selection_and_the_table_begin_with_the_most_unbalanced(llama):
    at = page(model=llama)
    assert (at.selectbox(key="layer").value, at.selectbox(key="group").value) == (2, 1)
    assert most(at).iloc[0][["Layer", "Group"]].tolist() == [2, 1]
    heavier = most(at)["Heavier side"].str.extract(r"([\d.]+)")[0].astype(float)
    assert heavier.is_monotonic_decreasing
    assert at.header[0].value == "Layer 2, KV group 1" and "Layer 2, KV group 1" in plain(at.subheader[1])
    assert "Query heads 2 and 3 are" in texts(at)
    assert "layer" not in at.query_params and "group" not in at.query_params  # nobody chose it


def test_the_first_selection_is_the_place_that_the_verdict_names(llama, edited, small_model):
    def heavy_output(tensors):
        tensors["model.layers.1.self_attn.o_proj.weight"] *= 40

    at = page(model=edited(llama, heavy_output))
    assert "worst pair: VO in layer 1, " in at.title[0].value
    assert at.segmented_control(key="pair").value == "vo" and at.selectbox(key="layer").value == 1
    assert not at.query_params.keys() - {"model"}  # nobody chose it
    layout = charts(at)[0]["layout"]  # in the verdict's direction: outputs so many times their values, not a quarter
    assert "whole layer: value heavier above, output below" in [one.get("text") for one in layout["annotations"]]
    ticks = [text for name in layout if name.startswith("yaxis") for text in layout[name].get("ticktext", [])]
    assert "1×" in ticks and not {"½×", "¼×"} & set(ticks)
    at.segmented_control(key="pair").set_value("qk").run()
    assert dict(at.query_params)["pair"] == "qk" and at.selectbox(key="layer").value == 2
    at.switch_page("views/heads.py").run()  # which has a first head of its own
    assert set(dict(at.query_params)) == {"model", "pair"}
    at.switch_page("views/inspect.py").run()
    assert at.segmented_control(key="pair").value == "qk" and at.selectbox(key="layer").value == 2

    def heavy_cross(tensors):
        tensors["decoder.block.1.layer.1.EncDecAttention.k.weight"] *= 40

    at = page(model=edited(small_model("t5"), heavy_cross, name="t5"))
    assert "worst pair: QK in layer 1, decoder cross-attention, " in at.title[0].value
    assert at.segmented_control(key="pair").value == "qk" and at.selectbox(key="block").value == "decoder.cross"
    assert at.selectbox(key="layer").value == 1 and not at.query_params.keys() - {"model"}


def test_the_first_screen_is_short(llama):
    """Above the second row of charts stand fewer than 150 words; the rest is behind the question marks."""
    at = page(model=llama)
    first = [at.title[0].value, *(m.value for m in at.main.markdown[:12]), at.subheader[0].value, at.subheader[1].value]
    assert len(" ".join(first).split()) < 150
    for term in ("pair", "KV group", "size", "exact", "channel", "query side"):
        assert len(words.TERMS[term]) < 150


# --- every control ----------------------------------------------------------------------------------------------------


def test_pair(llama):
    at = page(model=llama)
    at.segmented_control(key="pair").set_value("vo").run()
    assert not at.exception
    assert "value" in at.main.markdown[-1].value or "output" in most(at)["Heavier side"].iloc[0]
    assert at.query_params["pair"] in ("vo", ["vo"])
    assert "Output columns of heads" in texts(at)


def test_the_view_of_the_map_divides_size_out_where_it_is_most_and_can_be_changed(llama):
    at = page(model=llama)
    groups = decide(look_at(llama), Options()).groups("l1").query("pair == 'qk'").reset_index()
    cell = groups[(groups["layer"] == 2) & (groups["group"] == 1)].iloc[0]
    views = {"size": cell["log2_ratio"] - cell["log2_size"], "stored": cell["log2_ratio"], "after": cell["log2_after"]}
    assert at.segmented_control(key="shown_view").value == "size" and "shown_view" not in at.query_params
    assert "Apart from size" in at.subheader[0].value
    for view, octaves in views.items():
        at.segmented_control(key="shown_view").set_value(view).run()
        assert bar(at)[1][2] == pytest.approx(min(octaves, 4.5), abs=1e-3), view
    assert at.query_params["shown_view"] in ("after", ["after"]) and "After balancing" in at.subheader[0].value
    at = page(model=llama, shown_view="stored")
    assert at.segmented_control(key="shown_view").value == "stored" and "lean" in at.subheader[0].value


def test_norm(llama):
    at = page(model=llama)
    at.segmented_control(key="shown_norm").set_value("mean").run()
    assert at.segmented_control(key="shown_view").options == ["As stored", "After"]  # of a mean nothing is size
    verdict = at.title[0].value
    at.segmented_control(key="shown_norm").set_value("max").run()
    assert at.title[0].value == verdict  # the verdict stays in the norm of Rescale
    at.segmented_control(key="shown_norm").set_value("l2").run()
    assert at.segmented_control(key="shown_view").options == ["Size divided out", "As stored", "After"]
    assert "size alone, 1.41×" in [a["text"] for a in charts(at)[0]["layout"]["annotations"]]


def test_layer_and_group_boxes_move_the_frame_the_arrow_and_the_head_panel(llama):
    at = page(model=llama)
    at.selectbox(key="layer").set_value(1).run()
    at.selectbox(key="group").set_value(0).run()
    assert at.header[0].value == "Layer 1, KV group 0" and "Query heads 0 and 1" in texts(at)
    frames = [s for s in charts(at)[0]["layout"]["shapes"] if s["line"].get("width") == 2.5]
    assert {(s["x0"], s["y0"]) for s in frames} == {(0.5, -0.5)}
    assert "Layer 1, KV group 0" in plain(at.subheader[1])
    assert "layer 1, KV group 0" in [a["text"] for a in charts(at)[2]["layout"]["annotations"]]
    assert at.query_params["layer"] in ("1", ["1"]) and at.query_params["group"] in ("0", ["0"])


def test_the_rates_of_a_cell_are_of_the_factor_that_leaves_its_after(llama):
    at = page(model=llama, layer="2", group="1")
    tensors = load_file(llama / "model.safetensors")
    q, k = (l1(tensors, f"model.layers.2.self_attn.{side}_proj.weight") for side in "qk")
    m = (q / k) ** 0.5  # of the whole layer, where that of the cell alone is larger
    by_layer = f":blue[Wq] {rate(m)}, :orange[Wk] {rate(1 / m)}"
    assert "Adam, by layer" in texts(at) and "After, by layer" in texts(at) and by_layer in texts(at)
    assert most(at).iloc[0]["Adam: Wq, Wk"] == f"{rate(m)}, {rate(1 / m)}"
    at = page("rescale", model=llama, layer="2", group="1", exclude="decoder.2.self.qk")
    at.switch_page("views/inspect.py").run()
    assert "as it is, with Rescale's options" in texts(at) and "Adam, by layer" not in texts(at)


def test_the_line_above_the_verdict_counts_what_is_refused_below_it(small_model):
    at = page(model=small_model("gpt2"))
    assert "4 pairs, 2 refused." in texts(at) and "and 1 more like it" in texts(at)


def test_the_buttons_lead_to_what_was_measured_and_to_the_same_question_of_this_model(llama):
    at = page(model=llama)
    at.button(key="go answer").click().run()
    at.switch_page("views/compare.py").run()
    assert "No useful gain" in at.title[0].value
    at.switch_page("views/inspect.py").run()
    at.button(key="go compare").click().run()
    at.switch_page("views/compare.py").run()
    assert at.title[0].value == "Would rescaling help a training like yours?"


def test_the_selection_survives_another_pair_and_another_page(llama):
    at = page(model=llama, layer="3", group="0")
    assert at.header[0].value == "Layer 3, KV group 0"
    at.segmented_control(key="pair").set_value("vo").run()
    at.switch_page("views/rescale.py").run()
    at.switch_page("views/inspect.py").run()
    assert at.header[0].value == "Layer 3, KV group 0" and at.segmented_control(key="pair").value == "vo"


@pytest.mark.parametrize(
    "address",
    [
        {"layer": "99"},
        {"layer": "-1"},
        {"group": "7", "layer": "1"},
        {"pair": "lora"},
        {"block": "decoder.cross"},
        {"block": "<b>"},
        {"shown_norm": "rms"},
    ],
)
def test_an_address_that_means_nothing_here_falls_back(llama, address):
    at = page(model=llama, **address)
    assert at.selectbox(key="layer").value in range(4) and at.selectbox(key="group").value in range(2)
    assert at.segmented_control(key="shown_norm").value == "l1"


def test_the_options_of_rescale_make_the_after(llama):
    def balance(at):
        return at.subheader[2].value

    at = page(model=llama)
    assert "After: QK and VO, one factor a matrix, L1 norm, full strength." in texts(at)
    assert balance(at) == "Rescaling brings 7 of 8 pairs nearer the diagonal"
    at = page(model=llama, granularity="group")
    assert balance(at) == "Rescaling puts every pair on the diagonal" and set(most(at)["After"]) == {"equal"}
    at = page(model=llama, granularity="group", exact="yes", layers="0-1")
    assert "one factor a KV group, L1 norm, full strength, layers 0-1, powers of two only" in texts(at)
    untouched = most(at).query("Layer > 1")
    assert len(untouched) and (untouched["After"] == untouched["Heavier side"]).all()
    assert "as it is, with Rescale's options" in texts(at)
    at = page(model=llama, granularity="channel")
    assert re.search(r"Factor [\d.]+ to [\d.]+ on Wq", texts(at))


def test_options_moved_on_rescale_are_seen_on_inspect(llama):
    at = page(model=llama)
    at.switch_page("views/rescale.py").run()
    at.segmented_control(key="granularity").set_value("group").run()
    at.switch_page("views/inspect.py").run()
    assert at.subheader[2].value == "Rescaling puts every pair on the diagonal"


class Session(dict):
    """Stands in for app.state: what a callback reads and sets."""

    def put(self, name, value):
        self[name] = value

    def note(self, name, value=None):
        if value is not None:
            self[f"note:{name}"] = value
        return self.get(f"note:{name}")


@pytest.mark.parametrize("data", [{"0": 3.0, "1": 1.0, "2": 7.8}, [3, 1], (3.0, 1.0, 2.0)])
def test_a_click_selects_the_cell_its_point_names(monkeypatch, data):
    session = Session({"map 0": {"selection": {"points": [{"x": 0.2, "y": 5}, {"customdata": data}]}}})
    monkeypatch.setattr(selection, "state", session)
    monkeypatch.setattr(clicks, "state", session)
    selection.select_group_from_chart("map")
    assert (session["layer"], session["group"]) == (3, 1)
    assert clicks.key("map") == "map 0" and clicks.key("balance") == "balance 1"  # the other charts start afresh


def test_a_click_that_unselects_or_hits_a_line_changes_nothing(monkeypatch):
    for points in ([], [{"x": 1, "y": 2}]):
        session = Session({"map 0": {"selection": {"points": points}}})
        monkeypatch.setattr(selection, "state", session)
        monkeypatch.setattr(clicks, "state", session)
        selection.select_group_from_chart("map")
        assert "layer" not in session


def test_a_row_of_the_table_selects_its_pair(monkeypatch):
    session = Session({"most_unbalanced 0": {"selection": {"rows": [1]}}})
    monkeypatch.setattr(selection, "state", session)
    monkeypatch.setattr(clicks, "state", session)
    selection.select_group_from_table([(0, 0), (5, 2)], "most_unbalanced")
    assert (session["layer"], session["group"]) == (5, 2)
    session["most_unbalanced 0"] = {"selection": {"rows": []}}
    selection.select_group_from_table([(0, 0), (5, 2)], "most_unbalanced")
    assert (session["layer"], session["group"]) == (5, 2)


# --- odd models -------------------------------------------------------------------------------------------------------


def test_zero_and_non_finite_heads_are_crossed_and_named(tmp_path):
    from transformers import LlamaForCausalLM

    def damage(tensors):
        tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("nan")
        tensors["model.layers.2.self_attn.k_proj.weight"][8:] = 0

    model = save(tmp_path / "damaged", LlamaForCausalLM(config()), damage)
    at = page(model=model, pair="qk", layer="1", group="0")
    crosses = [t for t in charts(at)[0]["data"] if t.get("name") == "no ratio, mark"]
    assert len(crosses) == 1 and len(crosses[0]["x"]) == 2
    assert "; 2 without a ratio" in at.subheader[0].value
    said = texts(at)
    assert "model.layers.1.self_attn.q_proj.weight) has 1 non-finite values" in said
    assert "decoder.2.self.qk KV group 1: its key norm is zero" in said
    assert "no ratio, a norm is zero or not finite" in said and "A value is not finite" in said
    assert not at.selectbox(key="layer").set_value(2).run().exception
    assert not at.selectbox(key="group").set_value(1).run().exception


def test_one_layer_with_one_kv_head(tmp_path):
    from transformers import LlamaForCausalLM

    at = page(model=save(tmp_path / "one", LlamaForCausalLM(config(num_hidden_layers=1, num_key_value_heads=1))))
    assert at.header[0].value == "Layer 0" and "Apart from size, the only layer is within 2×" in at.subheader[0].value
    assert not [s for s in at.selectbox if s.key == "group"]


def test_without_groups_the_sentence_and_the_map_have_no_size_part(tmp_path):
    from transformers import LlamaForCausalLM

    at = page(model=save(tmp_path / "mha", LlamaForCausalLM(config(num_key_value_heads=4)), heavy_query))
    assert "size" not in at.title[0].value and at.segmented_control(key="shown_view").options == ["As stored", "After"]
    assert at.header[0].value.startswith("Layer 2, head 3") and "heads" in at.subheader[0].value


def test_a_model_whose_norms_absorb_the_scale_speaks_of_gains(tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = config().to_dict() | {"head_dim": 8}
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "head_dim",
    )
    at = page(model=save(tmp_path / "qwen3", Qwen3ForCausalLM(Qwen3Config(**{n: shape[n] for n in names}))), pair="qk")
    said = texts(at)
    assert at.title[0].value.startswith("Query gains weigh 1.16× the key gains, outputs")
    assert (
        "the norm absorbs the scale of Wq and Wk" in said
        and "gains of all heads" in said
        and "have no spectrum" in said
    )
    assert most(at).columns.tolist() == ["Layer", "Heavier side", "Adam: query gains, key gains", "After"]
    matrices = at.main.dataframe[1].value
    assert matrices["Matrix"].tolist() == ["query gains", "key gains", "Wv", "Wo"] and matrices["Shape"].tolist()[
        2:
    ] == ["8 × 32", "32 × 16"]
    at.segmented_control(key="pair").set_value("vo").run()
    assert not at.exception and "gains" not in plain(at.subheader[1])
    at.selectbox(key="group").set_value(1).run()
    at.segmented_control(key="pair").set_value("qk").run()
    assert not at.exception


def test_a_refused_model_shows_the_reason_and_its_tensors_as_text(tmp_path):
    folder = tmp_path / "strange"
    folder.mkdir()
    hostile = "![x](http://evil.example/x.png)<b>:red[hi]"
    save_file(
        {"=cmd|' /C calc'!A0": torch.zeros(2, 3), "blocks.0.weight": torch.zeros(4)}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"model_type": hostile}))
    at = page(model=folder)
    assert at.title[0].value == "This model is not covered; its tensors can still be looked at."
    assert any("has no site rule" in t.value for t in at.main.text)
    assert not any("](http" in m.value for m in at.markdown)
    table = at.main.dataframe[0].value
    assert sorted(table["Name"]) == ["=cmd|' /C calc'!A0", "blocks.0.weight"] and sorted(table["Shape"]) == [
        "2 × 3",
        "4",
    ]
    assert not charts(at) and not at.metric


def test_one_refused_layer_is_named_and_left_blank(llama, tmp_path):
    import shutil

    folder = tmp_path / "hole"
    shutil.copytree(llama, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(24, 32, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    at = page(model=folder, layer="1")
    assert "Blank: 1 layer not covered, named below." in texts(at)
    assert "decoder.1.self.qk: model.layers.1.self_attn.q_proj.weight is 24 x 32" in texts(at)
    assert (
        at.selectbox(key="layer").options == ["layer 0", "layer 2", "layer 3"] and at.selectbox(key="layer").value != 1
    )
    assert "1 refused" in texts(at)


def test_opening_another_model_forgets_the_old_selection(llama, tmp_path):
    from transformers import LlamaForCausalLM

    other = save(tmp_path / "other", LlamaForCausalLM(config(num_hidden_layers=2)))
    at = page(model=llama, layer="3", group="1", pair="vo", shown_view="after")
    at.switch_page("views/open.py").run()
    at.text_input(key="written").set_value(str(other))
    next(b for b in at.button if b.label == "Open").click().run()
    assert not at.exception and at.selectbox(key="layer").value in (0, 1)
    assert not {"pair", "layer", "group", "shown_view"} & set(
        at.query_params.to_dict() if hasattr(at.query_params, "to_dict") else at.query_params
    )
    assert quote(other.name) in str(at.query_params["model"])


def test_the_head_of_the_cell_is_opened_on_heads_and_stands_in_the_address():
    at = page(layer="2", group="1")
    at.button(key="open head").click().run()
    at.switch_page("views/heads.py").run()
    assert not at.exception and "Layer 2, head 4" in texts(at)  # four query heads read a KV head
    chosen = dict(at.query_params)
    assert (chosen["layer"], chosen["head"]) == ("2", "4")
    assert "Layer 2, head 4" in texts(page("heads", **chosen))
    first = page()  # the cell that nobody chose
    first.button(key="open head").click().run()
    assert first.session_state["layer"] == 1 and dict(first.query_params)["layer"] == "1"


def test_question_marks_lead_to_method():
    at = page()
    tips = [metric.help for metric in at.metric]
    assert len(tips) == 6 and all(tip.endswith("(method#terms)") for tip in tips)


def test_what_is_said_of_trainings_is_what_the_bundled_comparison_says():
    from wisca_app import tour

    samples = Path(__file__).parents[1] / "sample_runs"
    kept = json.loads((samples / tour.COMPARISON.removeprefix("sample-") / "report.json").read_text())
    assert kept["answer"] == "no useful gain"
    assert f"[small models tried here gained nothing](compare?comparison={tour.COMPARISON})" in texts(page())
