"""Heads as circuits: values by hand, the same from plain dense matrices, and what the real classes compute."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import wisca_core as wisca
from wisca_core import cli
from wisca_core.architecture.families import families
from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import open_checkpoint
from wisca_core.circuits import numbers, store
from wisca_core.circuits.columns import COLUMNS, MOVED, NUMBERS, UNMOVED
from wisca_core.circuits.findings import findings, headline
from wisca_core.circuits.inputs import Inputs, _turn
from wisca_core.circuits.layout import heads_of
from wisca_core.circuits.matrices import MOST_EXPERTS
from wisca_core.circuits.measure import measure
from wisca_core.circuits.table import circuits_of, matrices
from wisca_core.cli import main
from wisca_core.equivalence.float64 import in_float64
from wisca_core.equivalence.miniature import load

LAYER = "model.layers.0."


@pytest.fixture
def one_head(tmp_path):
    """one_head(q, k, v, o, gain, **config) -> heads of a Llama of one head of two channels in a stream of two."""

    def one_head(q, k, v=((1, 0), (0, 1)), o=((1, 0), (0, 1)), gain=(1, 1), **config):
        tensors = {f"{LAYER}self_attn.{name}_proj.weight": m for name, m in zip("qkvo", (q, k, v, o))}
        tensors[f"{LAYER}input_layernorm.weight"] = gain
        save_file({n: torch.tensor(m, dtype=torch.float64) for n, m in tensors.items()}, tmp_path / "model.safetensors")
        sizes = {"hidden_size": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "head_dim": 2} | sizes | config))
        return wisca.heads(tmp_path)

    return one_head


def test_a_head_worked_out_by_hand(one_head):
    table = one_head(q=((3.0, 0), (0, 1)), k=((1.0, 0), (0, 1)))
    row = table.loc[0]
    assert list(table.columns) == [column.name for column in COLUMNS] and len(table) == 1
    assert row["qk_spectral_norm"] == pytest.approx(3, rel=1e-14)
    assert row["qk_norm"] == pytest.approx(math.sqrt(10), rel=1e-14)
    assert row["qk_stable_rank"] == pytest.approx(10 / 9, rel=1e-14)
    assert row["qk_effective_rank"] == pytest.approx(4 / 27**0.25, rel=1e-14)  # exp of the entropy of (3/4, 1/4)
    # both inputs (sqrt 2, 0): 3 * 2 / sqrt 2; the pair turned by any angle reaches no more
    assert row["logit_bound"] == pytest.approx(3 * math.sqrt(2), rel=1e-14)
    assert row["logit_bound_any"] == pytest.approx(3 * math.sqrt(2), rel=1e-14)
    assert row["ov_copying"] == pytest.approx(1) and row["ov_stable_rank"] == pytest.approx(2)
    assert (row["q_l1"], row["k_l1"], row["qk_ratio"]) == (4, 2, 2)
    assert (row["q_rate"], row["k_rate"]) == pytest.approx((math.sqrt(2), math.sqrt(0.5)))
    assert row["folded"] == "input_layernorm" and table.attrs == {"remarks": [], "refused": []}


def test_the_gain_of_the_norm_is_folded_into_both_sides(one_head):
    row = one_head(q=((1.0, 0), (0, 1)), k=((1.0, 0), (0, 1)), gain=(2.0, 1.0)).loc[0]
    assert row["qk_spectral_norm"] == pytest.approx(4) and row["qk_norm"] == pytest.approx(math.sqrt(17))
    assert row["ov_norm"] == pytest.approx(math.sqrt(5)) and row["q_l1"] == 2  # what is stored is not folded


def test_distance_can_only_add_where_the_pair_must_turn_to_agree(one_head):
    """q reads the first channel, k the second: at distance 0 they never meet, a quarter turn later they do."""
    row = one_head(q=((1.0, 0), (0, 0)), k=((0.0, 0), (0, 1))).loc[0]
    assert row["logit_bound"] == 0 and row["logit_bound_any"] == pytest.approx(math.sqrt(2))
    assert row["qk_norm"] == 0 and math.isnan(row["qk_stable_rank"]) and "QK: one side is all zero." in row["note"]


@pytest.mark.parametrize(
    "o, copies",
    [(((1, 0), (0, 1)), 1.0), (((-1, 0), (0, -1)), -1.0), (((0, 1), (-1, 0)), 0.0), (((2, 0), (0, -1)), 1 / 3)],
)
def test_copying_is_the_sum_of_eigenvalues_over_their_moduli(one_head, o, copies):
    row = one_head(q=((1.0, 0), (0, 1)), k=((1.0, 0), (0, 1)), o=tuple(tuple(map(float, line)) for line in o)).loc[0]
    assert row["ov_copying"] == pytest.approx(copies, abs=1e-15)


@pytest.mark.parametrize(
    "config, factor",
    [({}, 1.0), ({"attention_multiplier": 0.5}, 0.5 * math.sqrt(2)), ({"query_pre_attn_scalar": 8}, 0.5)],
)
def test_the_scale_of_the_logits_is_the_models_own(one_head, config, factor):
    row = one_head(q=((1.0, 0), (0, 1)), k=((1.0, 0), (0, 1)), **config).loc[0]
    assert row["logit_bound"] == pytest.approx(math.sqrt(2) * factor)


def test_a_soft_cap_bounds_the_bound(one_head):
    row = one_head(q=((30.0, 0), (0, 1)), k=((30.0, 0), (0, 1)), attn_logit_softcapping=50.0).loc[0]
    assert row["logit_bound"] == pytest.approx(50 * math.tanh(900 * math.sqrt(2) / 50)) and row["logit_bound"] <= 50


def test_a_head_with_nan_has_no_number_and_says_why_and_the_others_have_theirs(small_model, edited, capsys):
    def spoil(tensors):
        tensors["model.layers.0.self_attn.q_proj.weight"][0, 3] = math.nan
        tensors["model.layers.1.self_attn.o_proj.weight"][:] = 0

    folder = edited(small_model("llama", num_key_value_heads=8), spoil)
    assert main(["heads", str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "Without all numbers: layer 0, head 0. QK: 1 values are not finite." in said and "one side is all zero" in said
    )
    table = wisca.heads(folder)
    bad = table[table["qk_norm"].isna()]
    assert (
        bad[["layer", "head"]].to_numpy().tolist() == [[0, 0]] and "QK: 1 values are not finite." in bad.iloc[0]["note"]
    )
    assert table.loc[table["layer"] == 0, "ov_norm"].notna().all()
    dead = table[table["layer"] == 1]
    assert (dead["ov_norm"] == 0).all() and dead["ov_stable_rank"].isna().all() and (dead["qk_norm"] > 0).all()


def test_a_layer_that_is_all_zero_is_dead(small_model, edited):
    def spoil(tensors):
        for name in "qkvo":
            tensors[f"model.layers.1.self_attn.{name}_proj.weight"][:] = 0

    model = wisca.open(edited(small_model("llama", num_key_value_heads=8), spoil))
    dead = next(one for one in findings(measure(model.checkpoint, model.sites)) if one.name == "dead")
    assert dead.count == "6 heads" and {layer for _, layer, *_ in dead.heads} == {1}


# --- against plain dense matrices
# ---------------------------------------------------------------------------------------


def dense(folder, layer, head, n_heads, n_kv, gain_plus=0.0):
    """(A (hidden, hidden), M) of the whole circuits of one head, by the definition, from separate projections."""
    t = load_file(folder / "model.safetensors")
    w = {n: t[f"model.layers.{layer}.self_attn.{n}_proj.weight"].numpy() for n in "qkvo"}
    g = t[f"model.layers.{layer}.input_layernorm.weight"].numpy() + gain_plus
    d, j = w["q"].shape[0] // n_heads, head // (n_heads // n_kv)
    rows, of_kv = slice(head * d, head * d + d), slice(j * d, j * d + d)
    q, k, v = w["q"][rows] * g, w["k"][of_kv] * g, w["v"][of_kv] * g
    return q.T @ k, w["o"][:, rows] @ v


@pytest.mark.parametrize("model_type, plus", [("llama", 0.0), ("gemma2", 1.0)])
def test_grouped_heads_agree_with_the_whole_products(model_type, plus, small_model):
    folder = small_model(model_type, num_attention_heads=8, num_key_value_heads=2)
    table = wisca.heads(folder)
    a = find_sites(open_checkpoint(folder)).attention
    assert a.n_kv_heads < a.n_heads and (table["kv_head"] == table["head"] // (a.n_heads // a.n_kv_heads)).all()
    for row in table.itertuples():
        qk, ov = dense(folder, row.layer, row.head, a.n_heads, a.n_kv_heads, plus)
        for pair, whole in (("qk", qk), ("ov", ov)):
            s = np.linalg.svd(whole, compute_uv=False)
            p = s[s > 1e-9 * s[0]] / s.sum()
            wanted = (np.linalg.norm(whole), s[0], (s**2).sum() / s[0] ** 2, np.exp(-(p * np.log(p)).sum()))
            names = ("norm", "spectral_norm", "stable_rank", "effective_rank")
            assert [getattr(row, f"{pair}_{name}") for name in names] == pytest.approx(wanted, rel=1e-10)
        eigenvalues = np.linalg.eigvals(ov)
        assert row.ov_copying == pytest.approx(eigenvalues.sum().real / np.abs(eigenvalues).sum(), abs=1e-7)


def test_no_angle_of_the_rotary_pairs_reaches_beyond_the_bound():
    torch.manual_seed(0)
    left, right = torch.randn(1, 12, 8).double(), torch.randn(1, 12, 8).double()
    left[..., 2] *= 100
    right[..., 2] /= 100
    pairs = torch.tensor([[0, 3], [1, 4], [2, 5]])
    none = torch.zeros(1, 8).double()
    bound = float(numbers.logit_bound_any(left, right, none, none, 1.0, 1.0, pairs))
    reached = 0.0
    for _ in range(200):
        turned = left.clone()
        for (i, j), angle in zip(pairs.tolist(), torch.rand(3).double() * 2 * math.pi):
            c, s = torch.cos(angle), torch.sin(angle)
            turned[..., i], turned[..., j] = c * left[..., i] - s * left[..., j], s * left[..., i] + c * left[..., j]
        reached = max(reached, float(numbers.spectrum(turned, right)[0, 0]))
    # the bound of each pair by itself, added up, is the plain one; ours is never above it
    by_pair = sum(
        float(numbers._pair_norm(left[..., [p]]) * numbers._pair_norm(right[..., [p]])) for p in pairs.tolist()
    )
    still = float(numbers.spectrum(left[..., 6:], right[..., 6:])[0, 0])
    assert reached <= bound <= by_pair + still


def test_the_effective_rank_keeps_its_digits_where_a_gram_matrix_loses_them():
    """Two columns that are nearly one: from Gram matrices the small singular value would be half noise."""
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(64, 2).double())[0]
    small = 1e-9
    left = torch.stack([q[:, 0], q[:, 0] + small * q[:, 1]], 1)
    values = numbers.spectrum(numbers.triangle(left)[None], torch.eye(2).double()[None])[0]
    # singular values of ((1, 1), (0, e)): product e, sum of squares 2 + e^2
    assert float(values[1]) == pytest.approx(small / math.sqrt(2), rel=1e-6)
    gram = torch.linalg.eigvalsh(left.T @ left).clamp_min(0).sqrt()
    assert abs(float(gram[0]) / (small / math.sqrt(2)) - 1) > 0.1


# --- what the real classes compute
# --------------------------------------------------------------------------------------

RUN = {
    "llama": {"num_key_value_heads": 8},
    "qwen2": {"num_key_value_heads": 8},
    "gemma2": {},
    "granite": {"attention_multiplier": 0.05},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "opt": {},
    "bert": {},
    "starcoder2": {},
    "gpt_neox": {},
    "phi3": {},
    "deepseek_v3": {},
    "qwen3": {"num_key_value_heads": 8},
    "olmo2": {},
    "cohere": {"use_qk_norm": True},
}


@pytest.mark.parametrize("model_type", RUN)
def test_norm_scale_and_bound_are_those_of_the_model_that_runs(model_type, small_model, monkeypatch):
    """Hooks on the real classes: what a projection reads has unit RMS once the norm's bias and gain are taken off, and
    no logit is beyond the bound of its head at any distance.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    folder = small_model(model_type, **RUN[model_type])
    checkpoint = open_checkpoint(folder)
    sites = find_sites(checkpoint)
    table = measure(checkpoint, sites).table
    stored, inputs = load_file(folder / "model.safetensors"), Inputs(sites, checkpoint)
    model = load(folder)
    seen, logits = {}, {}

    def attend(module, query, key, value, mask, scaling=None, softcap=None, **_):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        top = scores.abs().amax((0, 2, 3))
        logits[module.layer_idx] = torch.maximum(logits.get(module.layer_idx, top), top)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("recording", attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("recording", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model.config._attn_implementation = "recording"
    by_values = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2:
            by_values[tuple(weight.shape), weight.sum().item()] = module
    reads = {
        (rows.tensor, inputs.norm(rows, role, site.rule, site.live))
        for head in heads_of(sites, checkpoint)
        for rows, role, site in [
            *((rows, role, m.site) for m in head.qk for rows, role in ((m.q, "q"), (m.k, "k"))),
            (head.v, "v", head.vo_site),
        ]
        if stored[rows.tensor].ndim == 2
    }
    for tensor, _ in reads:
        module = by_values[tuple(stored[tensor].shape), stored[tensor].sum().item()]
        module.register_forward_pre_hook(lambda _, x, name=tensor: seen.__setitem__(name, x[0].detach()))
    with in_float64(), torch.no_grad():
        ids = torch.randint(
            3, model.config.get_text_config().vocab_size, (4, 24), generator=torch.Generator().manual_seed(1)
        )
        model(ids)
    known = 0
    for tensor, norm in reads:
        if norm is None or not norm.gain:
            continue
        known += 1
        x = seen[tensor] - (stored[norm.bias] if norm.bias else 0)
        x = x / (stored[norm.gain] + norm.offset)
        eps = 1e-4  # of the norm, on activations of order one
        assert (x.square().mean(-1) - 1).abs().max() < eps, (tensor, norm)
        assert not norm.centred or x.mean(-1).abs().max() < 1e-12
    assert known or model_type == "olmo2"  # its norms come behind
    if model_type != "olmo2":
        for row in table.itertuples():
            assert 0 < float(logits[row.layer][row.head]) <= row.logit_bound_any * (1 + 1e-9), row
            assert float(logits[row.layer][row.head]) > row.logit_bound_any / 60, row


def test_a_gain_of_another_width_is_not_folded_in(small_model):
    """ELECTRA's embeddings are narrower than its stream: between their norm and the first layer stands a projection."""
    table = wisca.heads(small_model("electra", hidden_size=256, embedding_size=128))
    assert set(table.loc[table["layer"] == 0, "folded"]) == {""} and set(table.loc[table["layer"] == 1, "folded"]) != {
        ""
    }


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, "original_max_position_embeddings": 64},
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 8.0},
        {"rope_type": "default"},
    ],
)
def test_a_rotation_that_stretches_does_so_as_in_transformers(rope):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    sizes = dict(hidden_size=32, num_attention_heads=4, max_position_embeddings=512)
    rope = (
        rope
        | {"rope_theta": 10000.0}
        | ({"original_max_position_embeddings": 64} if "long" in rope["rope_type"] else {})
    )
    config = LlamaConfig(**sizes, rope_parameters=dict(rope))
    made = ROPE_INIT_FUNCTIONS.get(rope["rope_type"])
    stretch = made(config, "cpu")[1] if made else 1.0
    assert _turn(config.to_dict()) == pytest.approx(stretch**2, rel=1e-12)


def test_every_family_of_the_norms_is_one():
    import tomllib
    from importlib import resources

    data = tomllib.loads(resources.files("wisca_core.circuits").joinpath("inputs.toml").read_text())
    named = {part.name for family in families().values() for part in (family, *family.each)}
    for key in (*data["norms"], *data["scale"], *data["when"]):
        family, _, model_type = key.partition(" ")
        assert family in named and (not model_type or model_type in families()), key


# --- heads of other kinds
# -----------------------------------------------------------------------------------------------


def test_under_a_qk_norm_the_circuit_is_of_the_gains(small_model):
    folder = small_model("qwen3", num_key_value_heads=8)
    table, tensors = wisca.heads(folder), load_file(folder / "model.safetensors")
    assert set(table["qk_of"]) == {"gains"} and any("QK-norm" in remark for remark in table.attrs["remarks"])
    q, k = (tensors[f"model.layers.0.self_attn.{n}_norm.weight"] for n in "qk")
    both = (q * k).abs()
    row = table.loc[0]
    assert row["qk_spectral_norm"] == pytest.approx(float(both.max()), rel=1e-14)
    assert row["qk_stable_rank"] == pytest.approx(float(both.square().sum() / both.max() ** 2), rel=1e-14)
    # |q| and |k| have length sqrt(d) before the gains: d * max / sqrt(d)
    assert row["logit_bound"] == pytest.approx(math.sqrt(len(q)) * float(both.max()), rel=1e-14)
    half = len(q) // 2
    top = max(float(q[[i, i + half]].abs().max() * k[[i, i + half]].abs().max()) for i in range(half))
    assert row["logit_bound_any"] == pytest.approx(math.sqrt(len(q)) * top, rel=1e-14)


def test_without_a_live_qk_pair_the_columns_are_empty_with_the_reason(small_model):
    table = wisca.heads(small_model("nanochat"))
    assert table["qk_norm"].isna().all() and table["ov_norm"].notna().all()
    assert table["note"].str.contains("QK: q and k pass a norm without weights").all()


def test_latent_heads_meet_in_content_and_rotary_part(small_model):
    folder = small_model("deepseek_v3")
    table, t = wisca.heads(folder), load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    nope, rope, value = (config[f"{name}_head_dim"] for name in ("qk_nope", "qk_rope", "v"))
    at = "model.layers.1.self_attn."
    q_b, kv_b, kv_a = (t[f"{at}{n}.weight"] for n in ("q_b_proj", "kv_b_proj", "kv_a_proj_with_mqa"))
    q = q_b[(nope + rope) * 2 : (nope + rope) * 3] * t[f"{at}q_a_layernorm.weight"]
    k_c = kv_b[(nope + value) * 2 : (nope + value) * 2 + nope] * t[f"{at}kv_a_layernorm.weight"]
    k_r = kv_a[-rope:] * t["model.layers.1.input_layernorm.weight"]
    whole = torch.cat([q[:nope].T @ k_c, q[nope:].T @ k_r], 1)
    row = table[(table["layer"] == 1) & (table["head"] == 2)].iloc[0]
    assert row["qk_norm"] == pytest.approx(float(whole.norm()), rel=1e-12) and row["width"] == nope + rope
    assert row["qk_spectral_norm"] == pytest.approx(float(torch.linalg.svdvals(whole)[0]), rel=1e-12)
    assert math.isnan(row["ov_copying"]) and "not those it writes to" in row["note"]


def test_layers_that_read_the_keys_of_another_have_heads_of_their_own(small_model):
    folder = small_model("gemma3n_text")
    checkpoint = open_checkpoint(folder)
    sites = find_sites(checkpoint)
    table = measure(checkpoint, sites).table
    assert set(table["layer"]) == set(range(sites.attention.n_layers))
    assert table.groupby("layer")["head"].apply(list).map(lambda heads: heads == list(range(len(heads)))).all()


def test_experts_that_bring_queries_are_heads_of_their_own(small_model):
    table = wisca.heads(small_model("jetmoe"))
    assert table["expert"].min() == 0 and table.groupby(["layer", "expert"]).size().nunique() == 1


def test_transposed_and_fused_matrices_give_the_heads_of_the_separate_ones(small_model, tmp_path):
    """GPT-2 keeps [in, 3 out]; the same numbers as separate projections of a BART-like layout give the same
    circuits.
    """
    folder = small_model("gpt2")
    table, t = wisca.heads(folder), load_file(folder / "model.safetensors")
    fused, gain = t["transformer.h.0.attn.c_attn.weight"], t["transformer.h.0.ln_1.weight"]
    n, d = fused.shape[0], table["width"][0]
    q, k = ((fused[:, i * n + d : i * n + 2 * d] * gain[:, None]) for i in (0, 1))
    q, k = q - q.mean(0), k - k.mean(0)  # a LayerNorm takes the mean away
    row = table[(table["layer"] == 0) & (table["head"] == 1)].iloc[0]
    assert row["qk_norm"] == pytest.approx(float((q @ k.T).norm()), rel=1e-12)


# --- tables, patterns, matrices, the command
# ----------------------------------------------------------------------------


def sample():
    from pathlib import Path

    return Path(__file__).parents[1] / "sample_runs" / "gqa-docs"


def test_the_bundled_decoder_and_what_stands_out_in_it():
    circuits, refused = circuits_of(sample() / "checkpoint-3600")
    table = circuits.table
    assert len(table) == 64 and refused == () and not table[list(NUMBERS)].isna().any().any()
    first = table.loc[0]
    assert (round(first["qk_stable_rank"], 2), round(first["logit_bound"]), round(first["q_l1"])) == (1.27, 81, 179)
    by_name = {one.name: one for one in findings(circuits)}
    assert by_name["rank_one"].count == "3 heads" and by_name["rank_one"].heads == tuple(
        ("decoder.self", 0, head, -1) for head in range(3)
    )
    assert by_name["apart"].count == "layer 0" and by_name["dead"].count == by_name["far_out"].count == "none"
    assert all(one.known and one.source for one in by_name.values())
    assert headline(circuits) == "Layer 0 stands apart: stable rank 1.3 to 1.8 in QK, 6.0 to 7.4 in OV."
    assert circuits.spectra["qk"].shape == (64, 24)
    assert circuits.spectra["qk"][0, 0] == pytest.approx(first["qk_spectral_norm"], rel=1e-6)


def test_an_untrained_checkpoint_has_nothing_that_stands_out():
    circuits, _ = circuits_of(sample() / "checkpoint-0")
    assert {one.count for one in findings(circuits) if one.name != "loud"} == {"none"}
    assert headline(circuits).startswith("No head stands out")


def test_a_loud_channel_and_a_dead_head_are_named(small_model, edited):
    def change(tensors):
        for name, tensor in tensors.items():
            if "q_proj" in name or "k_proj" in name:
                tensor[:, 5] *= 40
        d = 8
        tensors["model.layers.0.self_attn.q_proj.weight"][d : 2 * d] *= 1e-3
        tensors["model.layers.0.self_attn.o_proj.weight"][:, d : 2 * d] *= 1e-3

    circuits, _ = circuits_of(edited(small_model("llama"), change))
    by_name = {one.name: one for one in findings(circuits)}
    assert by_name["dead"].heads == (("decoder.self", 0, 1, -1),)
    assert by_name["loud"].count == "1 channel" and " 5 (up to " in by_name["loud"].sentence


def test_measured_heads_are_kept_and_measured_again_when_the_files_change(small_model, edited, own_home, monkeypatch):
    folder = edited(small_model("llama"))
    checkpoint = open_checkpoint(folder)
    sites = find_sites(checkpoint)
    first = store.measured_circuits(checkpoint, sites)
    monkeypatch.setattr(store, "measure", None)
    again = store.measured_circuits(checkpoint, sites)
    assert again.table.equals(first.table) and again.remarks == first.remarks and again.channels.equals(first.channels)
    assert np.array_equal(again.spectra["ov"], first.spectra["ov"], equal_nan=True)
    kept = next((own_home / "measurements").glob("*.npz"))
    kept.write_bytes(kept.read_bytes()[:100])
    assert store.cached_circuits(checkpoint, sites) is None
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"a": "longer header"})
    assert store.cached_circuits(open_checkpoint(folder), sites) is None


def test_a_quantised_checkpoint_is_labelled(small_model, edited):
    def quantise(tensors):
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = tensors[name].float().to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)

    def config(written):
        written["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}

    folder = edited(small_model("llama", dtype=torch.bfloat16), quantise, config)
    checkpoint = open_checkpoint(folder)
    table = wisca.heads(folder)
    assert checkpoint.look_only and len(table) and any("looked at" in remark for remark in table.attrs["remarks"])


def test_a_model_without_known_heads_gives_an_empty_table_with_the_reason(small_model, capsys):
    table = wisca.heads(small_model("mamba"))
    assert len(table) == 0 and "no attention" in table.attrs["refused"][0]
    assert cli.main(["heads", str(small_model("mamba"))]) == 1
    assert "No head of this model is known." in capsys.readouterr().out


def test_the_matrices_agree_with_dense_numbers(small_model):
    folder = small_model("llama")
    table, tensors = matrices(folder), load_file(folder / "model.safetensors")
    assert set(table["name"]) == {name for name, t in tensors.items() if t.ndim == 2}
    assert table["norm"].is_monotonic_decreasing
    for row in table.itertuples():
        w = tensors[row.name].double()
        assert row.norm == pytest.approx(float(w.norm()), rel=1e-6)
        assert row.spectral_norm == pytest.approx(float(torch.linalg.svdvals(w)[0]), rel=1e-3)
        z = (w - w.mean()) / w.std(correction=0)
        assert row.kurtosis == pytest.approx(float((z**4).mean()), rel=1e-4)
    parts = table.set_index("name")[["part", "moves"]]
    assert parts.loc["model.embed_tokens.weight"].tolist() == ["embedding", False]
    assert parts.loc["model.layers.0.mlp.down_proj.weight"].tolist() == ["feed-forward", True]
    assert parts.loc["model.layers.0.self_attn.q_proj.weight"].tolist() == ["attention", True]


def test_of_many_experts_a_few_are_looked_at_and_it_is_said(tmp_path):
    experts = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": torch.randn(6, 5) for i in range(40)}
    save_file(experts | {"stacked.experts.weight": torch.randn(30, 6, 5)}, tmp_path / "model.safetensors")
    table = matrices(tmp_path)
    assert len(table) == 2 * MOST_EXPERTS and "8 are looked at" in table.attrs["remarks"][0]


def test_the_command_prints_writes_and_gives_json(capsys, tmp_path):
    model = str(sample() / "checkpoint-3600")
    assert cli.main(["heads", model, "--csv", str(tmp_path / "heads.csv")]) == 0
    out = capsys.readouterr().out
    assert "Layer 0 stands apart" in out and "no rescale moves it" in out and "Nearly rank one in QK: 3 heads." in out
    assert (tmp_path / "heads.csv").read_text().count("\n") == 65
    assert cli.main(["heads", model, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "wisca-heads" and len(document["heads"]) == 64
    assert {c["name"]: c["moves"] for c in document["columns"]}["qk_norm"] is False
    assert cli.main(["heads", model, "--matrices"]) == 0
    assert "model.embed_tokens.weight" in capsys.readouterr().out


def test_every_column_is_declared_with_its_unit_and_its_mark():
    assert all(column.moves is False for column in UNMOVED) and all(column.moves is True for column in MOVED)
    assert all(column.unit and column.meaning for column in (*UNMOVED, *MOVED))
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
