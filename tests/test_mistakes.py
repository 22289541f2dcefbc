"""The proof by miniature catches every known wrong rule; each is made here on purpose, beside the right one.

The figures are relative differences in true float64; a right rule stays below 1e-12.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.models.llama import modeling_llama

from wisca_core import verdicts
from wisca_core.architecture import find
from wisca_core.architecture.families import families
from wisca_core.architecture.find import find_sites
from wisca_core.architecture.layer import Layer
from wisca_core.architecture.site import Grid
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence import bench, proof, proving
from wisca_core.progress import silent
from wisca_core.rescale import Scaling

GQA_BIASES = ("llama", {"num_key_value_heads": 8, "attention_bias": True})


def proved(folder):
    checkpoint = open_checkpoint(folder)
    return proving._prove(checkpoint, proving.find_sites(checkpoint), silent)


def test_the_right_rules_pass_far_below_the_bound(small_model):
    for model_type, changes in (GQA_BIASES, ("gpt2", {}), ("qwen3", {"num_key_value_heads": 8})):
        found = proved(small_model(model_type, **changes))
        assert found.passed and found.max_rel < 1e-12 and found.liveness > 1e-3 and found.reason == ""
        assert found.n_cases == 4 * len(found.cases) and "padded on the left" in found.cases


def each_leg(change):
    """Sites whose every leg went through ``change(leg) -> Leg | None`` (None: forgotten)."""

    def mutate(sites):
        return replace(
            sites,
            sites=tuple(
                replace(site, legs=tuple(leg for leg in map(change, site.legs) if leg is not None))
                for site in sites.sites
            ),
        )

    return mutate


def only(role, change, measured=True):
    return each_leg(lambda leg: change(leg) if (leg.role, leg.measured) == (role, measured) else leg)


def heads_taken_across(leg):
    """Query heads j + r K instead of j g + r."""
    groups, _, width = leg.index.sizes
    return replace(leg, index=Grid(leg.index.start, leg.index.sizes, (width, groups * width, 1)))


def last_head_forgotten(leg):
    groups, repeats, width = leg.index.sizes
    sizes = (groups, repeats - 1, width)
    return replace(leg, index=replace(leg.index, sizes=sizes), channel=replace(leg.channel, sizes=sizes))


def scaled_output_bias(sites):
    out = []
    for site in sites.sites:
        if site.key.pair == "vo":
            o = next(leg for leg in site.legs if leg.role == "o")
            grid = Grid(0, (1, 1, 8), (0, 0, 1))
            bias = replace(
                o, tensor=o.tensor.replace("weight", "bias"), axis=0, index=grid, channel=grid, measured=False
            )
            site = replace(site, legs=(*site.legs, bias))
        out.append(site)
    return replace(sites, sites=tuple(out))


def without(sites, forgotten):
    return replace(
        sites,
        sites=tuple(replace(site, legs=tuple(leg for leg in site.legs if not forgotten(leg))) for site in sites.sites),
    )


def is_reader(leg):
    """Gains of layers 4 and 5 of the miniature, which have no keys of their own."""
    return leg.role == "q" and leg.tensor.startswith(("model.layers.4.", "model.layers.5."))


def untied_over_heads(sites):
    """The rotary queries of every head with factors of their own, against the one key they share."""
    out = []
    for site in sites.sites:
        if site.key.part == "rope":
            q, k = site.legs[0], next(leg for leg in site.legs if leg.role == "k")
            _, n_heads, width = q.index.sizes
            channel = replace(q.channel, sizes=q.index.sizes, strides=(0, width, 1))
            site = replace(
                site, n_channels=n_heads * width, legs=(replace(q, channel=channel), k), exact_ties=(), group_ties=()
            )
        out.append(site)
    return replace(sites, sites=tuple(out))


MISTAKES = {
    "query bias forgotten": (GQA_BIASES, only("q", lambda leg: None, measured=False), 1e-3),
    "key bias forgotten": (GQA_BIASES, only("k", lambda leg: None, measured=False), 1e-3),
    "value bias forgotten": (GQA_BIASES, only("v", lambda leg: None, measured=False), 1e-3),
    "output bias scaled": (GQA_BIASES, scaled_output_bias, 1e-2),
    "query heads of the wrong KV head": (GQA_BIASES, only("q", heads_taken_across), 1e-2),
    "output columns of the wrong KV head": (GQA_BIASES, only("o", heads_taken_across), 1e-2),
    "one query head a group forgotten": (GQA_BIASES, only("q", last_head_forgotten), 1e-2),
    "one output head a group forgotten": (GQA_BIASES, only("o", last_head_forgotten), 1e-2),
    "both sides multiplied": (GQA_BIASES, only("k", lambda leg: replace(leg, side="left")), 1e-2),
    "rotary pairs untied": (
        GQA_BIASES,
        lambda s: replace(s, sites=tuple(replace(x, exact_ties=()) for x in s.sites)),
        1e-2,
    ),
    "Conv1D output columns for input rows": (("gpt2", {}), only("o", lambda leg: replace(leg, axis=1)), 1e-2),
    "fused query bias forgotten": (("gpt2", {}), only("q", lambda leg: None, measured=False), 1e-3),
    "a LayerNorm's biases forgotten": (
        ("persimmon", {}),
        lambda s: without(s, lambda leg: leg.tensor.endswith("layernorm.bias")),
        1e-3,
    ),
    "the query gains of a reading layer forgotten": (("gemma3n_text", {}), lambda s: without(s, is_reader), 1e-3),
    "the mask that is made of the values forgotten": (
        ("doge", {}),
        lambda s: without(s, lambda leg: "dt_proj" in leg.tensor),
        1e-3,
    ),
    "one head a part of the shared rotary key": (("deepseek_v3", {}), untied_over_heads, 1e-2),
    "one expert's query forgotten": (
        ("jetmoe", {}),
        lambda s: without(s, lambda leg: leg.role == "q" and leg.fixed == ((0, 0),)),
        1e-3,
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_site_fails_the_proof(name, small_model, monkeypatch):
    (model_type, changes), mutate, at_least = MISTAKES[name]
    folder = small_model(model_type, **changes)
    right = find_sites(open_checkpoint(folder))
    assert mutate(right) != right
    monkeypatch.setattr(proving, "find_sites", lambda *a, **more: mutate(find_sites(*a, **more)))
    found = proved(folder)
    assert not found.passed and found.max_rel > at_least
    assert "relative" in found.reason and "1e-11 is the bound" in found.reason


def row(**changes):
    return lambda family: replace(family, **changes)


def layout(**roles):
    return lambda family: replace(family, layout=tuple((dict(family.layout) | roles).items()))


WRONG_ROWS = {
    # family, config, the wrong row, and how far off the outputs are at least
    "half-split for interleaved": ("gptj", {}, row(rope="half"), 1e-2),
    "interleaved for half-split": ("llama", {}, row(rope="interleaved"), 1e-2),
    "rotary width two short, interleaved": ("gptj", {}, row(rope_width="rotary_dim - 2"), 1e-2),
    "rotary width two short, half-split": ("phi", {}, row(rope_width="head_dim * 0.5 - 2"), 1e-2),
    "rotary width two long, half-split": ("phi", {}, row(rope_width="head_dim * 0.5 + 2"), 1e-2),
    "no rotation": ("llama", {}, row(rope="none"), 1e-2),
    "gain taken as w instead of 1 + w": (
        "gemma3_text",
        {},
        lambda f: replace(f, norm=replace(f.norm, offset=0.0)),
        1e-3,
    ),
    "gain taken as 1 + w instead of w": ("qwen3", {}, lambda f: replace(f, norm=replace(f.norm, offset=1.0)), 1e-3),
    "norm taken for after the rotation": (
        "qwen3",
        {},
        lambda f: replace(f, norm=replace(f.norm, before_rope=False)),
        1e-2,
    ),
    "Wq and Wk scaled under a norm that absorbs it": (
        "qwen3",
        {},
        row(norm=None, inert=("q_norm.weight", "k_norm.weight")),
        1e-9,
    ),
    "Wq and Wk scaled under full-width norms": (
        "olmo2",
        {},
        row(norm=None, inert=("q_norm.weight", "k_norm.weight")),
        1e-9,
    ),
    "fused thirds for fused heads": (
        "gpt_neox",
        {},
        layout(q=("0", "g*d", "d"), k=("H*d", "d", "0"), v=("(H+K)*d", "d", "0")),
        1e-2,
    ),
    "fused heads for fused thirds": (
        "phi3",
        {},
        layout(q=("0", "3*d", "0"), k=("d", "3*d", "0"), v=("2*d", "3*d", "0")),
        1e-2,
    ),
    "half-split for interleaved in a shared rotary key": ("deepseek_v3", {}, row(rope="half"), 1e-2),
    "clamped queries and values scaled": ("dbrx", {}, row(refuse_qk=(), refuse_vo=()), 1e-3),
    "gains of a norm between heads and Wo left out": (
        "bitnet",
        {},
        row(sub_norm="", inert=("attn_sub_norm.weight",)),
        1e-9,
    ),
    "an output gate taken for a query": (
        "qwen3_next",
        {},
        row(
            norm=None,
            layouts=(),
            layout=families()["llama"].layout,
            inert=("q_norm.weight", "k_norm.weight"),
            n_heads="2 * num_attention_heads",
            out_hidden="hidden_size",
        ),
        1e-3,
    ),
    "keys and values swapped": ("phi3", {}, layout(k=("(H+K)*d", "d", "0"), v=("H*d", "d", "0")), 1e-2),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_a_wrong_row_of_families_fails_the_proof(name, small_model, monkeypatch):
    model_type, changes, mutate, at_least = WRONG_ROWS[name]
    folder = small_model(model_type, **changes)
    monkeypatch.setattr(find, "families", lambda: {**families(), model_type: mutate(families()[model_type])})
    found = proved(folder)
    assert not found.passed and found.max_rel > at_least


def test_one_channel_off_by_one_percent_fails_the_proof(small_model, monkeypatch):
    right = bench.scalings

    def off(*arguments):
        out = right(*arguments)
        name = "model.layers.1.self_attn.k_proj.weight"
        vector = out[name].along[0].copy() if name in out else None
        if vector is not None:
            vector[3] *= 1.01
            out[name] = Scaling({0: vector})
        return out

    monkeypatch.setattr(bench, "scalings", off)
    found = proved(small_model(*GQA_BIASES[:1], **GQA_BIASES[1]))
    assert not found.passed and 1e-6 < found.max_rel < 0.5


def test_a_pair_that_is_never_run_is_refused(small_model, monkeypatch):
    """Without the liveness control any factors at all would pass there."""
    run = modeling_llama.LlamaDecoderLayer.forward

    def skips_the_last(self, hidden_states, *arguments, **more):
        if self.self_attn.layer_idx == 1:
            return hidden_states
        return run(self, hidden_states, *arguments, **more)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", skips_the_last)
    folder = small_model("llama")
    found = proved(folder)
    assert not found.passed and found.proved == ()
    assert "decoder.1.self.qk: scaling one side alone" in found.reason and "not run" in found.reason
    left = proof.proved_only(find_sites(open_checkpoint(folder)), found)
    assert left.sites == () and {r.what for r in left.refusals} == {
        f"decoder.{i}.self.{pair}" for i in (0, 1) for pair in ("qk", "vo")
    }


def add_query_bias(tensors):
    for layer in (0, 1):
        weight = tensors[f"model.layers.{layer}.self_attn.q_proj.weight"]
        tensors[f"model.layers.{layer}.self_attn.q_proj.bias"] = torch.full((weight.shape[0],), 0.1, dtype=weight.dtype)


def test_a_bias_in_the_weights_that_the_class_does_not_have_is_refused(small_model, edited):
    folder = edited(small_model("llama"), add_query_bias)
    checkpoint = open_checkpoint(folder)
    sites = find_sites(checkpoint)
    assert [leg.tensor[-11:] for leg in sites["decoder.0.self.qk"].legs if not leg.measured] == ["q_proj.bias"]
    found = proving.prove(checkpoint, sites)
    assert not found.passed and "disagree about the structure" in found.reason and found.max_rel == float("inf")
    assert proving.cached_proof(checkpoint, sites) == found


def test_a_bias_of_the_class_that_one_layer_lacks_is_refused(small_model, edited):
    folder = edited(
        small_model(*GQA_BIASES[:1], **GQA_BIASES[1]), lambda t: t.pop("model.layers.1.self_attn.q_proj.bias")
    )
    checkpoint = open_checkpoint(folder)
    found = proving.prove(checkpoint, find_sites(checkpoint))
    assert not found.passed and "disagree about the structure" in found.reason


def test_a_proof_is_kept_and_read_back_equal_and_another_rule_asks_for_another(small_model, monkeypatch):
    checkpoint = open_checkpoint(small_model("opt"))
    sites = find_sites(checkpoint)
    first = proving.prove(checkpoint, sites)
    monkeypatch.setattr(proving, "_prove", lambda *_: pytest.fail("proved twice"))
    assert proving.prove(checkpoint, sites) == first == proving.cached_proof(checkpoint, sites)
    changed = families() | {"opt": replace(families()["opt"], rope="half")}
    monkeypatch.setattr(proving, "families", lambda: changed)
    assert proving.cached_proof(checkpoint, sites) is None


def test_a_kept_proof_is_of_no_use_once_the_code_maps_query_heads_otherwise(small_model, monkeypatch):
    """Each query head gets the factors of the other KV head: the kept proof says passed, and the rule is wrong."""
    folder = small_model("llama", num_key_value_heads=8)
    checkpoint = open_checkpoint(folder)
    right = find_sites(checkpoint)
    assert proving.prove(checkpoint, right).passed and proving.cached_proof(checkpoint, right).passed
    grids = Layer.grids

    def swapped(layer, role):
        index, channel = grids(layer, role)
        groups, _, width = index.sizes
        return index, replace(channel, start=(groups - 1) * width, strides=(-width, 0, 1)) if role == "q" else channel

    monkeypatch.setattr(Layer, "grids", swapped)
    wrong = find_sites(checkpoint)
    assert proof.structure(wrong) == proof.structure(right) and wrong != right
    assert proving.cached_proof(checkpoint, wrong) is None
    found = proving.prove(checkpoint, wrong)
    assert not found.passed and found.max_rel > 0.1
    monkeypatch.undo()
    assert proving.cached_proof(checkpoint, right).passed


def test_a_changed_line_of_the_code_that_decides_makes_every_kept_verdict_unusable(tmp_path, monkeypatch):
    copy = tmp_path / "wisca_core"
    shutil.copytree(Path(verdicts.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert verdicts.deciding_code(package=copy) == verdicts.deciding_code()
    layer = copy / "architecture" / "layer.py"
    text = layer.read_text(encoding="utf-8")
    swapped = text.replace("sizes = (self.n_kv_heads, repeats, width)", "sizes = (repeats, self.n_kv_heads, width)", 1)
    assert swapped != text
    for changed, is_same in ((f"# a remark\n\n{text}", True), (swapped, False)):
        layer.write_text(changed, encoding="utf-8")
        verdicts.deciding_code.cache_clear()
        assert (verdicts.deciding_code(package=copy) == verdicts.deciding_code()) == is_same
    verdicts.deciding_code.cache_clear()
    for kind in ("proof", "adapter-proof", "pair-proof", "discovery", "census"):
        verdicts.keep(kind, ["of this code"], {"is": "kept"})
        assert verdicts.kept_verdict(kind, ["of this code"]) == {"is": "kept"}
    of_copy = verdicts.deciding_code(package=copy)
    monkeypatch.setattr(verdicts, "deciding_code", lambda rows=True: of_copy)
    for kind in ("proof", "adapter-proof", "pair-proof", "discovery", "census"):
        assert verdicts.kept_verdict(kind, ["of this code"]) is None


def wrong_half(leg):
    """The gate's rows instead of up's."""
    return replace(leg, index=replace(leg.index, start=0)) if leg.role == "up" and leg.index.start else leg


MLP_MISTAKES = {
    "the gate's half of a fused matrix": ("phi3", {}, each_leg(wrong_half), 1e-3),
    "the second power of ReLU squared forgotten": (
        "nemotron",
        {},
        each_leg(lambda leg: replace(leg, exponent=1)),
        1e-3,
    ),
    "a second power for a gate": (
        "llama",
        {},
        each_leg(lambda leg: replace(leg, exponent=2) if leg.role == "down" else leg),
        1e-3,
    ),
    "up's bias forgotten": ("opt", {}, each_leg(lambda leg: None if leg.tensor.endswith("fc1.bias") else leg), 1e-3),
    "another expert's down": (
        "granitemoe",
        {},
        each_leg(lambda leg: replace(leg, fixed=((0, (leg.fixed[0][1] + 1) % 4),)) if leg.role == "down" else leg),
        1e-3,
    ),
}


@pytest.mark.parametrize("name", MLP_MISTAKES)
def test_a_wrong_feed_forward_pair_fails_the_proof(name, small_model, monkeypatch):
    model_type, changes, mutate, at_least = MLP_MISTAKES[name]
    checkpoint = open_checkpoint(small_model(model_type, **changes))
    right = find_sites(checkpoint, pairs=("mlp",))
    assert right.sites and proving._prove(checkpoint, right, silent).passed
    assert mutate(right) != right
    monkeypatch.setattr(proving, "find_sites", lambda *a, **more: mutate(find_sites(*a, **more)))
    found = proving._prove(checkpoint, mutate(right), silent)
    assert not found.passed and found.max_rel > at_least and found.proved == ()


def test_activations_without_a_gate_are_refused_unless_a_factor_passes(small_model):
    for model_type, words in (
        ("gpt2", "gelu_new stands between"),
        ("bert", "gelu stands between"),
        ("gpt_oss", "clamped"),
        ("bitnet", "ffn_sub_norm"),
    ):
        sites = find_sites(open_checkpoint(small_model(model_type)), pairs=("mlp",))
        assert sites.sites == () and sites.refusals and all(words in r.reason for r in sites.refusals), (
            model_type,
            sites.refusals,
        )
