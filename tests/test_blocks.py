"""Several blocks in a layer, experts and feed-forward pairs: told apart in every table, and rescaled only where
proved.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from wisca_core.architecture import refusals
from wisca_core.architecture.find import find_sites, pairs_to_find
from wisca_core.architecture.site import Refusal, SiteKey
from wisca_core.checkpoint import open_checkpoint
from wisca_core.cli import main
from wisca_core.cli import rescale as rescale_command
from wisca_core.equivalence.proof import Proof, proved_only
from wisca_core.equivalence.proving import prove
from wisca_core.equivalence.verify import verify
from wisca_core.patterns.blocks import block_of, titles, unit_of
from wisca_core.patterns.measure import measure
from wisca_core.patterns.summary import furthest, layer_ratios, sentence, summaries
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options
from wisca_core.planning.plan import make_plan
from wisca_core.planning.rates import equivalent_rates, median_rates
from wisca_core.planning.rows import plan_rows

ALL = ("qk", "vo", "mlp")


def measured(folder: Path, pairs=ALL):
    checkpoint = open_checkpoint(folder)
    return measure(checkpoint, find_sites(checkpoint, pairs=pairs))


def l1(tensors: dict, name: str) -> float:
    return tensors[name].double().abs().sum().item()


@pytest.fixture(scope="session")
def moe(small_model, tmp_path_factory) -> Path:
    """qwen2_moe: experts 0 to 3 and a shared one in each of two layers, bf16; in layer 1 expert 2's up is 32 times too
    heavy, and every query 16 times."""
    folder = tmp_path_factory.mktemp("moe") / "model"
    shutil.copytree(small_model("qwen2_moe", torch.bfloat16, num_experts=4), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.2.up_proj.weight"] *= 32
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] *= 16
        tensors[f"model.layers.{layer}.self_attn.q_proj.bias"] *= 16
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, block, unit",
    [
        ("decoder.3.cross.qk", "decoder.cross", "KV group"),
        ("decoder.3.self.qk:rope", "decoder.self:rope", "KV group"),
        ("decoder.3.none.mlp", "decoder.none", "layer"),
        ("decoder.3.none.mlp.e17", "decoder.experts", "expert"),
        ("decoder.3.none.mlp:shared_expert", "decoder.none:shared_expert", "layer"),
        ("decoder.3.none.lora:self_attn.q_proj", "decoder.none", "adapted layer"),
    ],
)
def test_the_block_of_a_site_is_its_place_without_the_layer(name, block, unit):
    key = SiteKey.parse(name)
    assert block_of(key) == block and unit_of(key.pair, block) == unit


@pytest.mark.parametrize(
    "words",
    [
        {"decoder.self": ""},
        {
            "encoder.self": "encoder",
            "decoder.self": "decoder self-attention",
            "decoder.cross": "decoder cross-attention",
        },
        {"text.self": "text", "vision.self": "vision"},
        {"decoder.self": "content part", "decoder.self:rope": "rotary part"},
        {"decoder.self:0": "first attention", "decoder.self:1": "second attention"},
        {
            "decoder.self:0": "first attention, content part",
            "decoder.self:0.rope": "first attention, rotary part",
            "decoder.self:1": "second attention, content part",
            "decoder.self:1.rope": "second attention, rotary part",
        },
        {"decoder.none": "dense layers", "decoder.experts": "experts", "decoder.none:shared_expert": "shared expert"},
        {"decoder.experts": "experts", "decoder.none:0": "first dense block", "decoder.none:1": "second dense block"},
        {"encoder.none": "encoder", "decoder.none": "decoder"},
        {"decoder.self": "self-attention", "decoder.cross": "cross-attention"},
    ],
)
def test_blocks_are_named_apart_in_words(words):
    assert titles(words) == words


def test_refusals_of_one_reason_are_one_line():
    found = refusals.lines(
        [
            Refusal("decoder.0.none.mlp", "gelu stands between"),
            Refusal("decoder.1.none.mlp", "gelu stands between"),
            Refusal("decoder.0.none.mlp:shared", "layers.0.x is 3 wide"),
            Refusal("decoder.7.none.mlp:shared", "layers.7.x is 4 wide"),
            Refusal("model", "why"),
            Refusal("decoder.1.self.qk", "gelu stands between"),
        ]
    )
    assert found == [
        "decoder.0.none.mlp and 1 more like it: gelu stands between",
        "decoder.0.none.mlp:shared and 1 more like it: layers.0.x is 3 wide",
        "model: why",
        "decoder.1.self.qk: gelu stands between",
    ]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_attentions_that_share_a_layer_are_never_summed(small_model):
    folder = small_model("t5")
    tensors = load_file(folder / "model.safetensors")
    groups = decide(measured(folder), Options(ALL)).groups()
    assert not groups.duplicated(["pair", "block", "layer", "group"]).any()
    layers = layer_ratios(groups, "l1").set_index(["pair", "block", "layer"])["log2_ratio"]
    paths = {
        "encoder.self": "encoder.block.{}.layer.0.SelfAttention",
        "decoder.self": "decoder.block.{}.layer.0.SelfAttention",
        "decoder.cross": "decoder.block.{}.layer.1.EncDecAttention",
    }
    for block, path in paths.items():
        for layer in range(2):
            q, k, v, o = (l1(tensors, f"{path.format(layer)}.{m}.weight") for m in "qkvo")
            assert layers["qk", block, layer] == pytest.approx(np.log2(q / k)) and layers[
                "vo", block, layer
            ] == pytest.approx(np.log2(v / o))
    verdicts = summaries(groups, "l1")
    assert {
        "qk encoder.self",
        "qk decoder.self",
        "qk decoder.cross",
        "mlp encoder.none",
    } <= verdicts.keys() and "qk" not in verdicts
    cross = verdicts["qk decoder.cross"]
    assert cross.n_layers == 2 and cross.title == "decoder cross-attention"
    assert sentence(cross).startswith("Decoder cross-attention: ")
    heads = decide(measured(folder), Options(ALL)).heads()
    assert not heads.duplicated(["block", "role", "layer", "head"]).any()


def test_content_and_rotary_part_of_latent_attention_are_two_blocks(small_model):
    folder = small_model("deepseek_v3")
    groups = decide(measured(folder), Options()).groups()
    qk = groups[groups["pair"] == "qk"]
    assert qk.groupby("block")["group"].max().to_dict() == {"decoder.self": 3, "decoder.self:rope": 0}
    assert {s.title for s in summaries(qk, "l1").values()} == {"content part", "rotary part"}


def test_experts_take_the_place_of_the_group(moe):
    tensors = load_file(moe / "model.safetensors")
    decision = decide(measured(moe), Options(ALL, "tensor"))
    groups = decision.groups()
    experts = groups[groups["block"] == "decoder.experts"]
    assert experts["group"].tolist() == [0, 1, 2, 3] * 2 and experts["layer"].tolist() == [0] * 4 + [1] * 4
    assert set(groups.loc[groups["pair"] == "mlp", "block"]) == {"decoder.experts", "decoder.none:shared_expert"}
    path = "model.layers.1.mlp.experts.{}.{}_proj.weight"
    up, down = ([l1(tensors, path.format(e, m)) for e in range(4)] for m in ("up", "down"))
    assert experts["left"].tolist()[4:] == pytest.approx(up) and experts["right"].tolist()[4:] == pytest.approx(down)
    layers = layer_ratios(groups[groups["pair"] == "mlp"], "l1").set_index(["block", "layer"])["log2_ratio"]
    assert layers["decoder.experts", 1] == pytest.approx(np.log2(sum(up) / sum(down)))
    # a layer's sum is led by its one heavy expert; what is said first, rates and ratio, is of the median expert
    one, (rate,) = (
        summaries(experts, "l1")["mlp"],
        median_rates(equivalent_rates(decision)[lambda r: r["block"] == "decoder.experts"]),
    )
    median = float(np.median(experts["log2_ratio"]))
    assert one.unit == "expert" and one.ratio == pytest.approx(2 ** abs(median)) and one.n_layers == 2
    assert layers["decoder.experts", 1] > 2 and abs(median) < 0.5 and rate.left == pytest.approx(2 ** (median / 2))
    far = furthest(groups, 1).iloc[0]
    assert (far["name"], far["group"], far["block"]) == ("decoder.1.none.mlp.e2", 2, "decoder.experts")
    heads = decision.heads()
    assert (
        heads.loc[(heads["block"] == "decoder.experts") & (heads["role"] == "up"), "head"].tolist() == [0, 1, 2, 3] * 2
    )
    rows = plan_rows(decision)
    of_experts = rows[rows["block"] == "decoder.experts"]
    assert of_experts["group"].tolist() == [0, 1, 2, 3] * 2
    assert of_experts["factor_low"].tolist()[4:] == pytest.approx(np.sqrt(np.array(down) / up))
    for granularity in ("group", "channel"):
        finer = plan_rows(decide(measured(moe), Options(ALL, granularity)))
        assert finer.loc[finer["block"] == "decoder.experts", "group"].tolist() == [0, 1, 2, 3] * 2


def test_a_part_of_a_table_is_the_table_of_that_part(moe):
    whole = measured(moe)
    part = whole.of(whole.sites.only(lambda site: site.key.pair == "vo" or site.key.expert == 2))
    alone = measure(open_checkpoint(moe), part.sites)
    for name in alone.rows:
        assert (part.rows[name] == alone.rows[name]).all(), name
    assert make_plan(decide(part, Options(ALL))) == make_plan(decide(alone, Options(ALL)))
    assert whole.of(whole.sites).rows is whole.rows


def test_relu_squared_gives_down_the_inverse_square(small_model):
    folder = small_model("arcee")
    patterns = measured(folder)
    tensors = load_file(folder / "model.safetensors")
    up, down = (l1(tensors, f"model.layers.0.mlp.{m}_proj.weight") for m in ("up", "down"))
    decision = decide(patterns, Options(("mlp",)))
    row = plan_rows(decision).query("name == 'decoder.0.none.mlp'").iloc[0]
    s = (down / up) ** (1 / 3)
    assert row["factor_low"] == row["full_high"] == pytest.approx(s) and row["right_low"] == row[
        "right_high"
    ] == pytest.approx(s**-2)
    assert row["log2_after"] == pytest.approx(0, abs=1e-12) and up * s == pytest.approx(down * s**-2)
    assert row["changes"].startswith("52 rows of up, 52 columns of down")
    free = plan_rows(decide(patterns, Options(("mlp",), "channel"))).query("name == 'decoder.0.none.mlp'").iloc[0]
    assert free["right_low"] == pytest.approx(free["factor_high"] ** -2) and free["right_high"] == pytest.approx(
        free["factor_low"] ** -2
    )
    attention = plan_rows(decide(patterns, Options())).query("pair == 'qk'").iloc[0]
    assert attention["right_low"] == pytest.approx(1 / attention["factor_low"])


# --- rescaled and taken back ------------------------------------------------------------------------------------------


def heavier(tensors: dict) -> None:
    for name in tensors:
        if name.endswith(
            (
                ".up_proj.weight",
                ".up_proj.bias",
                "DenseReluDense.wi.weight",
                "q_proj.weight",
                "q_proj.bias",
                "q_b_proj.weight",
            )
        ):
            tensors[name] *= 64


@pytest.mark.parametrize("model_type", ["llama", "qwen2_moe", "nemotron", "deepseek_v3"])
def test_a_rescale_with_feed_forward_pairs_verifies_and_is_taken_back_to_the_bit(
    model_type, small_model, edited, tmp_path, capsys
):
    before = edited(small_model(model_type, torch.bfloat16), heavier)
    out, back = tmp_path / "out", tmp_path / "back"
    assert main(["rescale", str(before), str(out), "--pairs", "qk,vo,mlp", "--exact"]) == 0
    said = capsys.readouterr().out
    assert "up sides, the inverse on the others" in said
    assert ("(the inverse square on down, behind ReLU squared)" in said) == (model_type == "nemotron")
    old, new = (load_file(folder / "model.safetensors") for folder in (before, out))
    moved = {name.split(".", 3)[3] for name in old if not torch.equal(old[name], new[name])}
    assert any("down_proj" in name for name in moved) and not any("gate" in name for name in moved)
    report = json.loads((out / "wisca_report.json").read_text())
    assert report["full_check"]["bit_identical"] and "feed-forward" in (out / "README.md").read_text()
    assert main(["verify", str(before), str(out)]) == 0
    assert capsys.readouterr().out.startswith("bit-identical")
    assert main(["rescale", str(out), str(back), "--undo", str(out / "wisca_report.json"), "--no-check"]) == 0
    assert (back / "model.safetensors").read_bytes() == (before / "model.safetensors").read_bytes()


def test_only_feed_forward_pairs_of_a_model_with_relu_squared(small_model, edited, tmp_path, capsys):
    before = edited(small_model("nemotron", torch.float32), heavier)
    assert main(["rescale", str(before), str(tmp_path / "out"), "--pairs", "mlp", "--granularity", "channel"]) == 0
    assert "up side, the inverse square on the other" in capsys.readouterr().out
    found = verify(open_checkpoint(before), open_checkpoint(tmp_path / "out"))
    assert found.verdict == "equivalent up to rounding" and found.n_changed >= 4


def wrong_mlp(real):
    """The proof with the feed-forward rule refused."""

    def prove(*arguments, **more) -> Proof:
        from dataclasses import replace

        proof = real(*arguments, **more)
        kept = tuple(name for name in proof.proved if not name.endswith(".mlp"))
        return replace(
            proof,
            passed=False,
            proved=kept,
            refused=(("decoder.none.mlp", "the outputs differ by 3.0e-01."),),
            reason="the outputs differ by 3.0e-01.",
        )

    return prove


def test_what_is_not_proved_is_refused_by_name_and_the_rest_goes_on(small_model, edited, tmp_path, capsys, monkeypatch):
    before = edited(small_model("llama", torch.bfloat16), heavier)
    monkeypatch.setattr(rescale_command, "prove", wrong_mlp(rescale_command.prove))
    out = tmp_path / "out"
    assert main(["rescale", str(before), str(out), "--pairs", "qk,vo,mlp", "--exact"]) == 0
    assert "decoder.0.none.mlp and 1 more like it: the outputs differ by 3.0e-01." in capsys.readouterr().out
    old, new = (load_file(folder / "model.safetensors") for folder in (before, out))
    assert all("self_attn" in name for name in old if not torch.equal(old[name], new[name]))
    report = json.loads((out / "wisca_report.json").read_text())
    assert report["refused"] == [f"decoder.{i}.none.mlp: the outputs differ by 3.0e-01." for i in range(2)]
    for arguments, words in (
        (["--pairs", "mlp"], "3.0e-01"),
        (["--pairs", "qk,mlp", "--strict"], "--strict asks for none"),
    ):
        assert main(["rescale", str(before), str(tmp_path / "none"), *arguments]) == 1
        assert words in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_proved_only_turns_the_others_into_refusals(small_model):
    checkpoint = open_checkpoint(small_model("llama"))
    sites = find_sites(checkpoint, pairs=ALL)
    kept = proved_only(sites, wrong_mlp(prove)(checkpoint, sites))
    assert [site.name for site in kept.sites] == [site.name for site in find_sites(checkpoint).sites]
    assert [r.what for r in kept.refusals] == ["decoder.0.none.mlp", "decoder.1.none.mlp"]


def test_the_default_pairs_are_looked_for_together_and_feed_forward_only_where_asked():
    assert (
        pairs_to_find(("qk",)) == pairs_to_find(()) == ("qk", "vo")
        and pairs_to_find(("mlp",)) == pairs_to_find(("qk", "mlp")) == ALL
    )


def test_verify_does_not_ask_for_the_proof_of_what_did_not_change(small_model, edited, monkeypatch):
    from wisca_core.equivalence import verify as verifying

    before = small_model("llama", torch.bfloat16)

    def rescaled(tensors):
        tensors["model.layers.0.self_attn.v_proj.weight"] *= 2
        tensors["model.layers.0.self_attn.o_proj.weight"] /= 2

    after = edited(before, rescaled)
    asked = []
    real = verifying.prove
    monkeypatch.setattr(
        verifying, "prove", lambda c, sites, p: asked.append({s.key.pair for s in sites.sites}) or real(c, sites, p)
    )
    found = verify(open_checkpoint(before), open_checkpoint(after))
    assert found.exit_code == 0 and asked == [{"qk", "vo"}]

    def rescaled_mlp(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"] *= 2
        tensors["model.layers.0.mlp.down_proj.weight"] /= 2

    changed = edited(before, rescaled_mlp, name="mlp")
    assert verify(open_checkpoint(before), open_checkpoint(changed), run_models=False).exit_code == 0
    monkeypatch.setattr(verifying, "prove", wrong_mlp(real))
    found = verify(open_checkpoint(before), open_checkpoint(changed), run_models=False)
    assert found.exit_code == 1 and "decoder.none.mlp of this model: the outputs differ by 3.0e-01." in found.reasons[0]


# --- the command line -------------------------------------------------------------------------------------------------


def test_inspect_says_every_block_by_itself(moe, small_model, tmp_path, capsys):
    csv = tmp_path / "groups.csv"
    assert main(["inspect", str(moe), "--pairs", "mlp", "--csv", str(csv)]) == 0
    said = capsys.readouterr().out
    assert "decoder.experts:\n" in said and "decoder.none:shared_expert:\n" in said and "query" not in said
    assert "Experts: the up side" in said and "decoder.1.none.mlp.e2" in said
    table = pd.read_csv(csv)
    assert set(table["block"]) == {"decoder.experts", "decoder.none:shared_expert"} and len(table) == 10
    assert main(["inspect", str(moe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"].keys() == {"qk", "vo"} and found["pairs"]["qk"]["block"] == "decoder.self"
    assert main(["inspect", str(small_model("t5")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["pairs"]) == 6 and {row["block"] for row in found["layers"]} == {
        "encoder.self",
        "decoder.self",
        "decoder.cross",
    }
    assert main(["inspect", str(moe), "--pairs", "kv"]) == 2


# --- one feed-forward pair looked at closely --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_type, name",
    [("llama", "decoder.1.none.mlp"), ("qwen2_moe", "decoder.0.none.mlp.e1"), ("arcee", "decoder.0.none.mlp")],
)
def test_the_detail_of_a_feed_forward_pair_is_that_of_its_matrices(model_type, name, small_model, monkeypatch):
    from wisca_core.planning import feed_forward
    from wisca_core.planning.head import head_detail

    folder = small_model(model_type)
    checkpoint, tensors = open_checkpoint(folder), load_file(folder / "model.safetensors")
    decision = decide(measured(folder), Options(ALL, "channel"))
    detail = head_detail(checkpoint, decision, name, 0)
    assert [role.role for role in detail.roles] == ["up", "down"] and detail.turns is None and not detail.spectrum
    for role in detail.roles:
        weight = tensors[role.tensor] if role.role == "up" else tensors[role.tensor].T
        assert role.shape == tuple(weight.shape) and role.looked_at == 1 and role.n_zero == 0
        assert role.channel_l1 == pytest.approx(weight.abs().sum(1).numpy())
        assert (role.l1[0], role.max[0]) == pytest.approx((weight.abs().sum().item(), weight.abs().max().item()))
        bins = np.histogram(np.log2(weight.abs().numpy()), role.log2_edges)[0]
        below = (np.log2(weight.abs().numpy()) < role.log2_edges[0]).sum()
        bins[0] += below
        assert role.percent == pytest.approx(100 * bins / weight.numel()) and role.percent_after.sum() == pytest.approx(
            100
        )
        assert below <= 0.0005 * weight.numel()
    left, right = detail.roles
    power = 2 if model_type == "arcee" else 1
    assert left.channel_l1_after / left.channel_l1 == pytest.approx(
        (right.channel_l1_after / right.channel_l1) ** (-1 / power)
    )
    monkeypatch.setattr(feed_forward, "MOST_VALUES", 300)
    monkeypatch.setattr(feed_forward, "BLOCK", 64)
    part = head_detail(checkpoint, decision, name, 0)
    assert all(0 < role.looked_at < 0.5 for role in part.roles) and part.roles[0].l1 == left.l1


def test_a_fused_three_dimensional_expert_is_read_by_itself(tmp_path):
    """up behind gate in rows 6 to 11 of [expert, 2 x 6, 4], down [expert, 4, 6]."""
    from wisca_core.architecture.site import Grid, Leg, Site, Sites
    from wisca_core.planning.head import head_detail

    up, down = torch.randn(3, 12, 4, dtype=torch.float64), torch.randn(3, 4, 6, dtype=torch.float64)
    save_file({"up": up, "down": down}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    channel = Grid(0, (1, 1, 6), (0, 0, 1))
    legs = (
        Leg("up", 1, Grid(6, (1, 1, 6), (0, 0, 1)), channel, "left", "up", fixed=((0, 2),)),
        Leg("down", 2, channel, channel, "right", "down", fixed=((0, 2),)),
    )
    site = Site(SiteKey("decoder", 0, "none", "mlp", 2), 6, 1, legs)
    checkpoint = open_checkpoint(tmp_path)
    decision = decide(measure(checkpoint, Sites("x", "x", None, (site,))), Options(("mlp",)))
    detail = head_detail(checkpoint, decision, site.name, 0)
    for role, weight in zip(detail.roles, (up[2, 6:], down[2].T)):
        assert role.channel_l1 == pytest.approx(weight.abs().sum(1).numpy()) and role.looked_at == 1
        counts = np.histogram(np.log2(weight.abs().numpy()), role.log2_edges)[0]
        assert role.percent == pytest.approx(100 * counts / 24)


def test_a_trajectory_tells_the_blocks_apart(small_model, tmp_path, capsys):
    """The decoder's cross-attention doubles its queries from one checkpoint to the next, and nothing else moves."""
    from wisca_core.trajectories import advice, drifts, trajectory

    for step in (1, 2):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        shutil.copytree(small_model("t5"), folder)
        tensors = load_file(folder / "model.safetensors")
        for layer in range(2):
            tensors[f"decoder.block.{layer}.layer.1.EncDecAttention.q.weight"] *= step
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = trajectory(tmp_path / "run")
    assert ("qk", "decoder.cross") in found.places and found.titles("qk")["decoder.cross"] == "decoder cross-attention"
    moved = [d for d in drifts(found, "l1") if d.growing]
    assert [(d.pair, d.block, d.layers, d.growing, round(d.octaves, 6)) for d in moved] == [
        ("qk", "decoder.cross", (0, 1), "query", 1.0)
    ]
    assert any(
        "in layers 0-1 (decoder cross-attention)" in one.text and one.text.startswith("Query grows")
        for one in advice(found)
    )
    csv = tmp_path / "out.csv"
    assert main(["trajectory", str(tmp_path / "run"), "--csv", str(csv)]) == 0
    assert "Query to key, decoder cross-attention, l1:" in capsys.readouterr().out and "decoder.cross" in set(
        pd.read_csv(csv)["block"]
    )
