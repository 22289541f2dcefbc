"""Inspect and Rescale on models with several blocks a layer, experts and feed-forward pairs."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dashboard_page import charts, page, proved, texts
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest

from wisca_app import cached
from wisca_core import jobs, storage, verdicts
from wisca_core import model as models
from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.proof import Proof
from wisca_core.equivalence.proving import prove
from wisca_core.planning import feed_forward


@pytest.fixture(scope="module")
def moe(small_model, tmp_path_factory) -> Path:
    """qwen2_moe, bf16: four experts and a shared one; in layer 1 expert 2's up is 32 times too heavy."""
    folder = tmp_path_factory.mktemp("moe") / "model"
    shutil.copytree(small_model("qwen2_moe", torch.bfloat16, num_experts=4), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.2.up_proj.weight"] *= 32
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --- Inspect ----------------------------------------------------------------------------------------------------------


def test_each_attention_of_an_encoder_decoder_is_shown_by_itself(small_model):
    folder = small_model("t5")
    tensors = load_file(folder / "model.safetensors")
    at = page(model=folder, pair="qk")
    assert at.selectbox(key="block").options == ["Encoder", "Decoder self-attention", "Decoder cross-attention"]
    at.selectbox(key="block").set_value("decoder.cross").run()
    assert not at.exception and at.query_params["block"] in ("decoder.cross", ["decoder.cross"])
    name = "decoder.block.{}.layer.1.EncDecAttention.{}.weight"
    q, k = ([tensors[name.format(i, m)].abs().sum().item() for i in range(2)] for m in "qk")
    ratio = np.median(np.log2(np.array(q) / k))
    assert "up to" in at.title[0].value  # of several places the one furthest from balance speaks
    line = next(t for t in charts(at)[0]["data"] if t.get("name") == "before")
    assert np.median(line["y"]) == pytest.approx(ratio, abs=1e-3)
    assert ", decoder cross-attention" in at.header[0].value.replace("\\", "")
    assert {row["Tensor"].split(".")[5] for _, row in at.main.dataframe[1].value.iterrows()} == {"EncDecAttention"}
    drawn = [p for trace in charts(at)[2]["data"] for p in trace.get("x", []) if isinstance(p, int)]
    assert set(drawn) <= {0, 1}
    at.segmented_control(key="pair").set_value("vo").run()
    assert at.selectbox(key="block").value == "decoder.cross" and "output" in texts(at)


def test_the_rotary_part_of_latent_attention_has_no_heads(small_model):
    at = page(model=small_model("deepseek_v3"), block="decoder.self:rope")
    assert at.selectbox(key="block").options == ["Content part", "Rotary part"]
    assert at.header[0].value.replace("\\", "").endswith(", rotary part") and not [
        s for s in at.selectbox if s.key == "group"
    ]
    at.segmented_control(key="pair").set_value("vo").run()  # one block: no choice, and the old one is kept
    assert not at.exception and not [s for s in at.selectbox if s.key == "block"]
    at.segmented_control(key="pair").set_value("qk").run()
    assert at.selectbox(key="block").value == "decoder.self:rope"


def test_a_histogram_of_a_part_of_the_values_says_of_how_much(small_model, monkeypatch):
    folder = small_model("llama")
    assert "of the values" not in texts(page(model=folder, pair="mlp"))
    monkeypatch.setattr(feed_forward, "MOST_VALUES", 300)
    monkeypatch.setattr(feed_forward, "BLOCK", 64)
    cached.head.clear()
    assert re.search(r"of [1-4]\d % of the values", texts(page(model=folder, pair="mlp")))
    cached.head.clear()


def test_feed_forward_pairs_are_measured_only_when_they_are_chosen(moe, monkeypatch):
    measured = []
    real = models.measured_patterns
    monkeypatch.setattr(
        models,
        "measured_patterns",
        lambda c, sites, *more: measured.append({s.key.pair for s in sites.sites}) or real(c, sites),
    )
    cached._open.clear()
    cached.patterns.clear()
    at = page(model=moe)
    assert at.segmented_control(key="pair").options == ["QK", "VO", "MLP"] and measured == [{"qk", "vo"}]
    at.segmented_control(key="pair").set_value("mlp").run()
    assert not at.exception and measured == [{"qk", "vo"}, {"qk", "vo", "mlp"}]
    assert at.selectbox(key="block").options == ["Experts", "Shared expert"] or at.selectbox(key="block").options == [
        "Shared expert",
        "Experts",
    ]


def test_a_map_of_experts_and_one_of_them_looked_at(moe):
    at = page(model=moe, pair="mlp", block="decoder.experts")
    said = texts(at)
    assert at.header[0].value.replace("\\", "") == "Layer 1, expert 2"
    assert "Up projection of expert 2 is" in said and "expert" in at.subheader[0].value and "KV group" not in said
    assert "no product with a spectrum" in said and "rotary" not in said.lower()
    heat = charts(at)[0]
    z = next(trace for trace in heat["data"] if trace["type"] == "heatmap")["z"]
    assert z["shape"] == "4, 2" if isinstance(z, dict) else len(z) == 4  # plotly packs arrays of numbers
    assert len(at.main.dataframe[1].value) == 2  # one expert's up and down
    assert at.selectbox(key="group").options == [f"expert {i}" for i in range(4)]
    at.selectbox(key="block").set_value("decoder.none:shared_expert").run()
    assert (
        not at.exception
        and at.header[0].value.replace("\\", "").startswith("Layer 1, shared expert")
        or "Layer 0" in at.header[0].value
    )


def test_a_long_measuring_pass_says_its_bytes_and_can_be_left(moe, monkeypatch):
    monkeypatch.setattr(cached, "JOB_BYTES", 30_000)  # the attention is less, the feed-forward blocks are more
    monkeypatch.setattr(models, "cached_patterns", lambda *a: None)
    cached._open.clear()
    started = []
    monkeypatch.setattr(jobs, "start", lambda kind, arguments, *a, **k: started.append((kind, arguments)))
    monkeypatch.setattr("wisca_app.open_model.follow", lambda job: None)
    at = page(model=moe, pair="mlp")
    assert at.header[0].value == "Measuring the feed-forward weights" and "kB to read" in texts(at)
    assert started == [("measure", {"model": str(moe), "pairs": ["mlp"]})]
    at.button(key="without_mlp").click().run()
    assert not at.exception and at.segmented_control(key="pair").value == "qk" and at.title


def test_a_model_without_feed_forward_rule_does_not_offer_it(small_model):
    at = page(model=small_model("gpt2"))
    assert at.segmented_control(key="pair").options == ["QK", "VO"] and "norms outside attention, the MLP" in texts(at)
    assert "decoder.0.none.mlp and 1 more like it: gelu_new stands between up and down without a gate" in texts(at)


# --- Rescale ----------------------------------------------------------------------------------------------------------


def plan_table(at: AppTest):
    return next(d.value for d in at.main.dataframe if "What it changes" in d.value)


def test_feed_forward_pairs_in_the_plan_the_proof_and_the_export(moe, jobs_here, tmp_path):
    prove(open_checkpoint(moe), find_sites(open_checkpoint(moe), pairs=("qk", "vo", "mlp")))
    at = page("rescale", model=moe, pairs="qk,vo,mlp", exact="yes")
    table = plan_table(at)
    assert set(table["Block"]) == {"", "Experts", "Shared expert"} and "Expert" in table and len(table) == 4 + 10
    heavy = table[(table["Layer"] == 1) & (table["Expert"] == "2")].iloc[0]
    assert (
        heavy["On Wk or Wo or W down"] == 1 / heavy["On Wq or Wv or W up"] and "rows of up" in heavy["What it changes"]
    )
    assert "--pairs qk,vo,mlp" in "".join(c.value for c in at.code) and "pairs=('qk', 'vo', 'mlp')" in "".join(
        c.value for c in at.code
    )
    titles = [a["text"] for a in charts(at)[0]["layout"]["annotations"]]
    assert "factor on W up, experts" in titles and "factor on W up, shared expert" in titles
    at.text_input(key=next(t.key for t in at.text_input if t.label == "Folder")).set_value(str(tmp_path / "out")).run()
    at.button(key="export").click().run()
    job = next(job for job in jobs.every() if job.kind == "export" and job.arguments["out"] == str(tmp_path / "out"))
    assert jobs.wait(job.id, 300).state == "done"
    report = json.loads((tmp_path / "out" / "wisca_report.json").read_text())
    assert report["plan"]["options"]["pairs"] == ["qk", "vo", "mlp"] and any(
        ".e2" in s["site"] for s in report["plan"]["sites"]
    )


def test_a_rule_that_is_refused_is_named_and_the_others_go_on(small_model, tmp_path, monkeypatch):
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "home"))
    folder = small_model("llama", torch.bfloat16)
    checkpoint = open_checkpoint(folder)
    proof = prove(checkpoint, find_sites(checkpoint, pairs=("qk", "vo", "mlp")))
    (kept,) = storage.folder("proofs").iterdir()
    reason = "the outputs differ by 3.0e-01."
    refused = replace(
        proof,
        passed=False,
        proved=("decoder.self.qk", "decoder.self.vo"),
        refused=(("decoder.none.mlp", reason),),
        reason=reason,
    )
    assert Proof.from_json(refused.to_json()) == refused
    storage.write_json(kept, "wisca-proof", verdicts.VERSION, refused.to_json())
    at = page("rescale", model=folder, pairs="qk,vo,mlp")
    said = texts(at)
    assert "2 of 3 rules passed" in said and f"decoder.none.mlp is refused and left as it is: {reason}" in said
    assert f"decoder.0.none.mlp and 1 more like it: {reason}" in said
    assert set(plan_table(at)["Pair"]) == {"QK", "VO"} and not at.button(key="export").disabled


def test_relu_squared_is_said_in_the_plan(small_model):
    at = page("rescale", model=proved(small_model("nemotron"), ("qk", "vo", "mlp")), pairs="mlp")
    table = plan_table(at)
    assert np.allclose(table["On W down"], table["On W up"] ** -2) and "behind ReLU squared its square" in texts(at)
