"""The Inspect page: what it says of a model, every control that changes it, and the models that are odd or refused."""

import json
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from dashboard_page import charts, metrics, page, texts
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest

from wisca_app.inspecting import selection


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


def headings(figure: dict) -> list[str]:
    return [a["text"] for a in figure["layout"]["annotations"] if a.get("font", {}).get("size") == 13]


def furthest(at: AppTest):
    return at.main.dataframe[0].value


def l1(tensors, name, rows=slice(None)):
    return tensors[name][rows].double().abs().sum().item()


# --- what it says -----------------------------------------------------------------------------------------------------


def test_the_sentence_carries_the_median_layers_ratio_and_its_size(llama):
    tensors = load_file(llama / "model.safetensors")
    name = "model.layers.{}.self_attn.{}_proj.weight"
    median = np.median([l1(tensors, name.format(i, "q")) / l1(tensors, name.format(i, "k")) for i in range(4)])
    at = page(model=llama)
    assert at.title[0].value.startswith(
        f"The query side is {median:.1f}× heavier in the median layer; 2.0× of that is size"
    )
    shown = metrics(at)
    assert shown["Query over key"] == f"{median:.1f}×" and shown["of that, size"] == "2.0×"
    assert "training" not in at.title[0].value


def test_a_model_that_is_level_is_not_promised_to_become_level(llama, edited):
    def balance(tensors):
        for name in tensors:
            if "k_proj" in name:
                tensors[name] *= (
                    tensors[name.replace("k_proj", "q_proj")].abs().sum() / tensors[name].abs().sum() / 1.02
                )

    at = page(model=edited(llama, balance))
    assert at.title[0].value.startswith(
        "Query and key are level in the median layer (query 1.02×): size alone would make the query side 2.0× heavier"
    )
    said = texts(at)
    assert (
        "The median layer is level already. Balancing would still move 4 of 4 pairs, and leave the outputs the same up to rounding."
        in said
    )
    shown = metrics(at)
    assert (
        shown["Size alone, query"] == "2.0×"
        and shown["Query over key"] == "1.02×"
        and "of that, size" not in shown
        and "bring the median" not in said
    )


def test_the_page_says_what_balancing_would_give_and_that_training_is_another_question(llama):
    said = texts(page(model=llama))
    assert "bring the median layer level, and leave the outputs the same up to rounding." in said
    assert "Whether it then trains better is not known from here." in said
    exact = texts(page(model=llama, exact="yes"))
    assert "with powers of two" in exact and "leave every output bit-identical" in exact
    assert "QK is not among the pairs chosen on Rescale" in texts(page(model=llama, pairs="vo"))
    assert "nothing of it would change" in texts(page(model=llama, strength="0"))


def test_facts_charts_and_downloads_are_all_there(llama):
    at = page(model=llama)
    assert "4 layers, 4 query heads on 2 KV heads (group size 2), bf16. 8 pairs found, none refused" in texts(at)
    assert len(charts(at)) == 6
    assert [b.proto.label for b in at.main.get("download_button")] == ["CSV"] * 7
    assert all(len(c.proto.alt) > 20 for c in at.main.get("plotly_chart"))
    assert "feed-forward pairs are looked at when MLP is chosen above" in texts(at)


def test_the_first_selection_is_the_pair_furthest_from_the_rest(llama):
    at = page(model=llama)
    assert (at.selectbox(key="layer").value, at.selectbox(key="group").value) == (2, 1)
    assert furthest(at).iloc[0][["Layer", "Group"]].tolist() == [2, 1]
    assert at.header[0].value == "Layer 2, KV group 1"
    assert "Query heads 2 and 3 are" in texts(at)


# --- every control ----------------------------------------------------------------------------------------------------


def test_pair(llama):
    at = page(model=llama)
    at.segmented_control(key="pair").set_value("vo").run()
    assert not at.exception
    assert "output side" in at.title[0].value and at.query_params["pair"] in ("vo", ["vo"])
    assert "output" in furthest(at)["Heavier side"].iloc[0]
    assert "Output columns of heads" in texts(at)


def test_norm(llama):
    at = page(model=llama)
    assert headings(charts(at)[0]) == ["Before", "Before, size divided out", "After"]
    before = metrics(at)
    at.segmented_control(key="shown_norm").set_value("mean").run()
    assert headings(charts(at)[0]) == ["Before", "After"] and "nothing is divided out" in texts(at)
    assert metrics(at)["of that, size"] == "1.00×" and metrics(at)["Query over key"] != before["Query over key"]
    at.segmented_control(key="shown_norm").set_value("max").run()
    assert "of that, size" not in metrics(at) and "no law of size" in texts(at)
    at.segmented_control(key="shown_norm").set_value("l2").run()
    assert metrics(at)["of that, size"] == "1.41×"


def test_layer_and_group_boxes_move_the_frame_the_arrow_and_the_head_panel(llama):
    at = page(model=llama)
    at.selectbox(key="layer").set_value(1).run()
    at.selectbox(key="group").set_value(0).run()
    assert at.header[0].value == "Layer 1, KV group 0" and "Query heads 0 and 1" in texts(at)
    frames = [s for s in charts(at)[0]["layout"]["shapes"] if s["line"].get("width") == 2.5]
    assert {(s["x0"], s["y0"]) for s in frames} == {(0.5, -0.5)}
    assert "layer 1, KV group 0" in [a["text"] for a in charts(at)[1]["layout"]["annotations"]]
    assert at.query_params["layer"] in ("1", ["1"]) and at.query_params["group"] in ("0", ["0"])


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
    at = page(model=llama)
    assert "After: QK and VO, one factor a matrix, L1 norm, full strength." in texts(at)
    assert at.subheader[1].value == "Rescaling brings 7 of 8 pairs nearer the diagonal"
    at = page(model=llama, granularity="group")
    assert at.subheader[1].value == "Rescaling puts every pair on the diagonal" and set(furthest(at)["After"]) == {
        "equal"
    }
    at = page(model=llama, granularity="group", exact="yes", layers="0-1")
    assert headings(charts(at)[0])[-1] == "After, with powers of two"
    assert "one factor a KV group, L1 norm, full strength, layers 0-1, powers of two only" in texts(at)
    untouched = furthest(at).query("Layer > 1")
    assert (
        len(untouched) and set(untouched["Factor"]) == {"1"} and (untouched["After"] == untouched["Heavier side"]).all()
    )
    at = page(model=llama, granularity="channel")
    assert all(" to " in f for f in furthest(at)["Factor"]) and "Each channel is shifted by its own factor" in texts(at)


def test_options_moved_on_rescale_are_seen_on_inspect(llama):
    at = page(model=llama)
    at.switch_page("views/rescale.py").run()
    at.segmented_control(key="granularity").set_value("group").run()
    at.switch_page("views/inspect.py").run()
    assert at.subheader[1].value == "Rescaling puts every pair on the diagonal"


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
    selection.clicked("map")
    assert (session["layer"], session["group"]) == (3, 1)
    assert selection.key("map") == "map 0" and selection.key("balance") == "balance 1"  # the other charts start afresh


def test_a_click_that_unselects_or_hits_a_line_changes_nothing(monkeypatch):
    for points in ([], [{"x": 1, "y": 2}]):
        session = Session({"map 0": {"selection": {"points": points}}})
        monkeypatch.setattr(selection, "state", session)
        selection.clicked("map")
        assert "layer" not in session


def test_a_row_of_the_table_selects_its_pair(monkeypatch):
    session = Session({"furthest 0": {"selection": {"rows": [1]}}})
    monkeypatch.setattr(selection, "state", session)
    selection.picked([(0, 0), (5, 2)], "furthest")
    assert (session["layer"], session["group"]) == (5, 2)
    session["furthest 0"] = {"selection": {"rows": []}}
    selection.picked([(0, 0), (5, 2)], "furthest")
    assert (session["layer"], session["group"]) == (5, 2)


# --- odd models -------------------------------------------------------------------------------------------------------


def test_zero_and_non_finite_heads_are_crossed_and_named(tmp_path):
    from transformers import LlamaForCausalLM

    def damage(tensors):
        tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("nan")
        tensors["model.layers.2.self_attn.k_proj.weight"][8:] = 0

    model = save(tmp_path / "damaged", LlamaForCausalLM(config()), damage)
    at = page(model=model, layer="1", group="0")
    crosses = [t for t in charts(at)[0]["data"] if t.get("name") == "no ratio, mark"]
    assert len(crosses) == 3
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
    assert at.header[0].value == "Layer 0" and "The only layer leans to the query" in at.subheader[0].value
    assert not [s for s in at.selectbox if s.key == "group"]


def test_without_groups_the_sentence_and_the_map_have_no_size_part(tmp_path):
    from transformers import LlamaForCausalLM

    at = page(model=save(tmp_path / "mha", LlamaForCausalLM(config(num_key_value_heads=4)), heavy_query))
    assert "size" not in at.title[0].value and headings(charts(at)[0]) == ["Before", "After"]
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
    at = page(model=save(tmp_path / "qwen3", Qwen3ForCausalLM(Qwen3Config(**{n: shape[n] for n in names}))))
    said = texts(at)
    assert at.title[0].value.startswith("In the norms' gains, ")
    assert (
        "the norm absorbs the scale of Wq and Wk" in said
        and "gains of all heads" in said
        and "have no spectrum" in said
    )
    assert furthest(at).columns.tolist() == ["Layer", "Heavier side", "Factor", "After"]
    matrices = at.main.dataframe[1].value
    assert matrices["Matrix"].tolist() == ["query gains", "key gains", "Wv", "Wo"] and matrices["Shape"].tolist()[
        2:
    ] == ["8 × 32", "32 × 16"]
    at.segmented_control(key="pair").set_value("vo").run()
    assert not at.exception and "gains" not in at.title[0].value
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
    assert at.selectbox(key="layer").options == ["0", "2", "3"] and at.selectbox(key="layer").value != 1
    assert "1 refused" in texts(at)


def test_opening_another_model_forgets_the_old_selection(llama, tmp_path):
    from transformers import LlamaForCausalLM

    other = save(tmp_path / "other", LlamaForCausalLM(config(num_hidden_layers=2)))
    at = page(model=llama, layer="3", group="1")
    at.text_input(key="written").set_value(str(other))
    next(b for b in at.button if b.label == "Open").click().run()
    assert not at.exception and at.selectbox(key="layer").value in (0, 1)
    assert quote(other.name) in str(at.query_params["model"])
