"""Variants within a family, proved, and representative ones the whole way: find, plan, export, reload, float64
logits.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.miniature import load
from wisca_core.equivalence.outputs import difference, outputs
from wisca_core.equivalence.proving import prove
from wisca_core.exporting.export import export
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options
from wisca_core.planning.plan import make_plan

BOUND = 1e-11


GQA = {"num_key_value_heads": 8}
VARIANTS = {
    "llama MHA": ("llama", {}),
    "llama GQA biases": ("llama", GQA | {"attention_bias": True, "mlp_bias": True}),
    "llama MQA": ("llama", {"num_key_value_heads": 1}),
    "llama one head": ("llama", {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 64}),
    "llama wide heads": ("llama", GQA | {"head_dim": 256}),
    "llama tied": ("llama", GQA | {"tie_word_embeddings": True}),
    "llama scaled rotation": (
        "llama",
        GQA
        | {
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "llama base model": ("llama", GQA | {"architectures": ["LlamaModel"]}),
    "llama classifier": ("llama", GQA | {"architectures": ["LlamaForSequenceClassification"], "pad_token_id": 2}),
    "mistral window": ("mistral", {"sliding_window": 4096}),
    "gemma MQA": ("gemma", {"num_key_value_heads": 1}),
    "gemma2 GQA": ("gemma2", {}),
    "gemma3 both windows": ("gemma3_text", {"num_hidden_layers": 6, "layer_types": None}),
    "qwen2 window": ("qwen2", GQA | {"use_sliding_window": True, "sliding_window": 4096, "layer_types": None}),
    "qwen3 GQA biases": ("qwen3", GQA | {"attention_bias": True}),
    "qwen3 MQA": ("qwen3", {"num_key_value_heads": 1}),
    "olmo2 GQA": ("olmo2", GQA),
    "phi two fifths": ("phi", {"partial_rotary_factor": 0.4, "rope_parameters": None, "hidden_size": 2560}),
    "glm odd rotary width": ("glm", {"partial_rotary_factor": 0.336, "rope_parameters": None}),  # int(128 * 0.336) = 43
    "gpt_neox odd rotary width": ("gpt_neox", {"rotary_pct": 0.305, "rope_parameters": None}),  # int(96 * 0.305) = 29
    "phi GQA": ("phi", {"num_key_value_heads": 8}),
    "phi3 GQA": ("phi3", GQA | {"sliding_window": 2047}),
    "phi3 MQA": ("phi3", {"num_key_value_heads": 1}),
    "stablelm biases": ("stablelm", {"use_qkv_bias": True}),
    "gpt_neox no biases": ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
    "gpt2 scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2 base model": ("gpt2", {"architectures": ["GPT2Model"]}),
    "opt 350m": (
        "opt",
        {"hidden_size": 1024, "word_embed_proj_dim": 512, "do_layer_norm_before": False, "num_attention_heads": 16},
    ),
    "opt no biases": ("opt", {"enable_bias": False}),
    "opt base model": ("opt", {"architectures": ["OPTModel"]}),
    "bert base model": ("bert", {"architectures": ["BertModel"]}),
    "bert classifier": ("bert", {"architectures": ["BertForSequenceClassification"]}),
    "electra small": ("electra", {"hidden_size": 256, "embedding_size": 128}),
    "cohere norms": ("cohere", GQA | {"use_qk_norm": True}),
    "phi norms": ("phi", {"qk_layernorm": True}),
    "stablelm norms": ("stablelm", GQA | {"qk_layernorm": True}),
    "falcon new": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 8, "num_attention_heads": 64, "hidden_size": 4096},
    ),
    "falcon MHA": ("falcon", {"multi_query": False, "alibi": True}),
    "deepseek_v3 without a narrow query": ("deepseek_v3", {"q_lora_rank": None}),
    "deepseek_v3 half-split": ("deepseek_v3", {"rope_interleave": False}),
    "llama4 without norms": ("llama4_text", {"use_qk_norm": False}),
    "glm4_moe norms": ("glm4_moe", {"use_qk_norm": True}),
    "granite multipliers": ("granite", GQA | {"attention_multiplier": 0.0078125, "residual_multiplier": 0.22}),
    "starcoder2 no biases": ("starcoder2", {"use_bias": False}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_a_family_are_proved(name, small_model):
    model_type, changes = VARIANTS[name]
    checkpoint = open_checkpoint(small_model(model_type, **changes))
    sites = find_sites(checkpoint)
    assert sites.refusals == () and {(s.key.layer, s.key.pair) for s in sites.sites} == {
        (i, p) for i in range(sites.attention.n_layers) for p in ("qk", "vo")
    }
    found = prove(checkpoint, sites)
    assert found.passed and found.max_rel < BOUND, found.reason


@pytest.mark.parametrize("model_type", ["qwen3", "mixtral"])
def test_a_miniature_edited_in_memory_moves_as_one_written_and_loaded(model_type, small_model, tmp_path):
    """In memory where every parameter that changes is the stored tensor; Mixtral's experts are put together as they are
    loaded, its attention is not.
    """
    from wisca_core.equivalence.bench import Trial, _as_stored, open_bench, write_folder
    from wisca_core.equivalence.outputs import difference, outputs
    from wisca_core.rescale import changes, scalings

    checkpoint = open_checkpoint(small_model(model_type))
    sites = find_sites(checkpoint, pairs=("qk", "vo", "mlp"))
    plain = _as_stored(checkpoint, load(checkpoint.path)).keys()
    others = {leg.tensor for site in sites.sites for leg in site.legs} - plain
    assert bool(others) == (model_type == "mixtral") and all("experts" in name for name in others)
    bench, shapes = open_bench(checkpoint, sites, tmp_path), {t.name: t.shape for t in checkpoint.tensors}
    every = {s.name: np.linspace(0.5, 2.0, s.n_cells("channel")) for s in sites.sites}
    attention = {name: own for name, own in every.items() if not name.endswith(".mlp") and ".e" not in name}
    for factors, side in ((every, None), (every, "left"), (attention, None), (attention, "left")):
        here, there = (bench.moved(Trial("", factors, side, from_disk=d), "channel") for d in (False, True))
        written = tmp_path / f"written-{len(factors)}-{side}"
        write_folder(checkpoint, changes(scalings(sites, factors, "channel", shapes, side)), written)
        loaded = difference(outputs(load(checkpoint.path), seed=2), outputs(load(written), seed=2))
        assert here == there == loaded and (here.max_rel < BOUND) == (side is None)
    assert bench.moved(Trial("", {}), "channel").max_rel < BOUND  # put back


def generic(opened, granularity):
    """A plan of extreme random factors, as if they had been decided: 2^-10 to 2^10 in every tie group."""
    decision = decide(opened.patterns, Options(granularity=granularity))
    factor = np.exp2(np.random.default_rng(11).uniform(-10, 10, len(decision.factor)))
    return make_plan(replace(decision, factor=factor))


WHOLE_WAY = ("llama GQA biases", "phi3 GQA", "qwen3 GQA biases", "gemma3 both windows", "opt 350m", "bert base model")


@pytest.fixture(scope="module")
def reference(small_model):
    made = {}

    def reference(model_type, changes):
        key = json.dumps([model_type, changes])
        if key not in made:
            made[key] = outputs(load(small_model(model_type, **changes)), seed=7)
        return made[key]

    return reference


@pytest.mark.parametrize("granularity", ["tensor", "group", "channel"])
@pytest.mark.parametrize("name", [*WHOLE_WAY, "gpt2", "gptj", "gpt_neox"])
def test_exported_and_reloaded_the_function_is_the_same(name, granularity, small_model, look, reference, tmp_path):
    model_type, changes = VARIANTS.get(name, (name, {}))
    opened = look(small_model(model_type, **changes))
    plan = generic(opened, granularity)
    assert set(plan.factors.by_site) == {site.name for site in opened.sites.sites}
    report = export(opened.checkpoint, opened.sites, plan, tmp_path / "out", prove(opened.checkpoint, opened.sites))
    before, after = (
        load_file(opened.checkpoint.path / "model.safetensors"),
        load_file(report.parent / "model.safetensors"),
    )
    assert {n for n in before if not torch.equal(before[n], after[n])} == set(plan.tensors)
    moved = difference(reference(model_type, changes), outputs(load(report.parent), seed=7))
    assert 0 < moved.max_rel < BOUND, moved


def test_granularity_coarser_than_asked_is_named_in_the_plan(small_model, look):
    opened = look(small_model("qwen3", num_key_value_heads=8))
    plan = make_plan(decide(opened.patterns, Options(granularity="group")))
    assert {name[-2:]: used for name, used in plan.factors.used_granularities(opened.sites).items()} == {
        "qk": "tensor",
        "vo": "group",
    }


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert", "opt", "gpt_neox"])
def test_a_base_model_folder_has_the_same_sites_without_the_prefix(model_type, small_model, tmp_path):
    """People save the bare model under a config that still names the one with a head, and the reverse."""
    source = small_model(model_type)
    prefix = {"llama": "model.", "gpt2": "transformer.", "bert": "bert.", "opt": "model.", "gpt_neox": "gpt_neox."}[
        model_type
    ]
    shutil.copyfile(source / "config.json", tmp_path / "config.json")
    tensors = load_file(source / "model.safetensors")
    save_file(
        {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}, tmp_path / "model.safetensors"
    )
    bare, full = (find_sites(open_checkpoint(folder)) for folder in (tmp_path, source))
    assert [s.name for s in bare.sites] == [s.name for s in full.sites] and bare.refusals == ()
    assert [prefix + leg.tensor for s in bare.sites for leg in s.legs] == [
        leg.tensor for s in full.sites for leg in s.legs
    ]
