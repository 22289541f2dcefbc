"""The miniature a rule is proved on: shrunk from the person's config, alive everywhere, compared in true float64."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wisca_core.equivalence import inputs as inputs_module
from wisca_core.equivalence.float64 import SHORT, in_float64
from wisca_core.equivalence.miniature import MAX_PARAMETERS, build_miniature, load, model_class
from wisca_core.equivalence.outputs import Difference, Outputs, case_outputs, difference, outputs
from wisca_core.equivalence.small_config import MAX_POSITIONS, VOCAB_SIZE, shrink
from wisca_core.errors import ConfigMismatch, UnknownArchitecture

# name -> (model_type, what the default config of transformers is changed by)
ARCHITECTURES = {
    "llama": ("llama", {}),
    "llama gqa": ("llama", {"num_key_value_heads": 8}),
    "llama mqa biases": ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("llama", {"head_dim": 256, "num_key_value_heads": 8}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 4096, "layer_types": None}),
    "qwen3": ("qwen3", {"num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}),
    "phi": ("phi", {}),
    "phi qk_layernorm": ("phi", {"qk_layernorm": True}),
    "phi3": ("phi3", {"num_key_value_heads": 8, "sliding_window": 2047}),
    "gptj": ("gptj", {}),
    "codegen": ("codegen", {}),
    "opt": ("opt", {}),
    "opt 350m": (
        "opt",
        {"hidden_size": 1024, "word_embed_proj_dim": 512, "do_layer_norm_before": False, "num_attention_heads": 16},
    ),
    "gemma": ("gemma", {"num_key_value_heads": 1}),
    "gemma2": ("gemma2", {}),
    "gemma3_text": ("gemma3_text", {}),
    "gpt2": ("gpt2", {}),
    "gpt2 upcast": ("gpt2", {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_neo": ("gpt_neo", {}),
    "gpt_neox": ("gpt_neox", {}),
    "bert": ("bert", {}),
    "bert classifier": ("bert", {"architectures": ["BertForSequenceClassification"]}),
    "bert bare": ("bert", {"architectures": ["BertModel"]}),
    "bert pretraining": ("bert", {"architectures": ["BertForPreTraining"]}),
    "bert decoder": ("bert", {"is_decoder": True, "architectures": ["BertLMHeadModel"]}),
    "roberta": ("roberta", {}),
    "xlm-roberta": ("xlm-roberta", {}),
    "distilbert": ("distilbert", {}),
    "electra": ("electra", {"hidden_size": 256, "embedding_size": 128}),
    "electra discriminator": ("electra", {"architectures": ["ElectraForPreTraining"]}),
    "albert": ("albert", {}),
    "mpnet": ("mpnet", {}),
    "modernbert": ("modernbert", {}),
    "deberta": ("deberta", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": ("deberta-v2", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 256}),
    "starcoder2": ("starcoder2", {}),
    "stablelm": ("stablelm", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "falcon mqa": ("falcon", {}),
    "falcon alibi": ("falcon", {"alibi": True, "multi_query": False}),
    "falcon groups": (
        "falcon",
        {"new_decoder_architecture": True, "hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8},
    ),
    "bloom": ("bloom", {}),
    "mpt": ("mpt", {}),
    "cohere": ("cohere", {"use_qk_norm": True}),
    "cohere2": ("cohere2", {}),
    "granite": ("granite", {"attention_multiplier": 0.0078125, "residual_multiplier": 0.22}),
    "smollm3": ("smollm3", {}),
}


def default(model_type: str, **changes) -> dict:
    from transformers import CONFIG_MAPPING

    return {**CONFIG_MAPPING[model_type]().to_dict(), **changes}


def built(folder: Path, config: dict, seed: int = 0) -> Path:
    build_miniature(shrink(config), folder, seed)
    return folder


def edited(folder: Path, edit) -> Path:
    """A copy of the checkpoint with its tensors changed by ``edit(tensors)``."""
    copy = folder.with_name(folder.name + "-edited")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    edit(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


class Leaks(TorchDispatchMode):
    """Names of the operations that gave a shorter floating type than float64."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        short = any(isinstance(t, torch.Tensor) and t.dtype in SHORT for t in tree_leaves(out))
        if (
            short and func is not torch.ops.aten.lift_fresh.default
        ):  # torch.tensor(8.0, dtype=float32), lengthened at once
            self.names.add(str(func))
        return out


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_miniature_of_every_family_builds_repeats_itself_and_is_alive(name, tmp_path):
    model_type, changes = ARCHITECTURES[name]
    small = shrink(default(model_type, **changes))
    assert shrink(small) == small
    build_miniature(small, tmp_path / "m", seed=0)
    model = load(tmp_path / "m")
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    with torch.no_grad():
        for key, tensor in model.state_dict().items():  # every parameter random: none is left as it was initialised
            if tensor.is_floating_point() and tensor.numel() > 4:
                assert len(tensor.unique()) > tensor.numel() // 2, key

    with Leaks() as leaks:  # outside lifted(): sees what really is computed
        first = outputs(model, seed=1)
    assert leaks.names == set()
    assert all(values.dtype == torch.float64 and torch.isfinite(values).all() for values in first.cases.values())
    assert difference(first, outputs(model, seed=1)).n_different == 0
    assert difference(first, outputs(load(tmp_path / "m"), seed=1)).n_different == 0
    assert difference(first, outputs(model, seed=2)).max_rel > 0.1
    assert ("cached step 5" in first.cases) == inputs_module.has_cache(model)

    ids = torch.randint(10, 50, (1, 5), generator=torch.Generator().manual_seed(3))
    other = ids.clone()
    other[0, 0] += 1
    with in_float64(), torch.no_grad():  # another first token moves what the last position says: attention carries
        a, b = (model(input_ids=i, output_hidden_states=True).hidden_states[-1][0, -1] for i in (ids, other))
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


@pytest.mark.parametrize(
    "name", ["llama gqa", "qwen3", "phi", "gemma3_text", "gpt2", "gpt_neox", "bert", "opt", "granite", "mpt"]
)
def test_attention_is_neither_uniform_nor_saturated(name, tmp_path):
    model_type, changes = ARCHITECTURES[name]
    model = load(built(tmp_path / "m", default(model_type, **changes)))
    ids = torch.randint(10, 50, (4, 24), generator=torch.Generator().manual_seed(3))
    with in_float64(), torch.no_grad():
        last_rows = [a[:, :, -1, :] for a in model(input_ids=ids, output_attentions=True).attentions]
    for row in last_rows:
        entropy = -(row * row.clamp_min(1e-300).log()).sum(-1) / torch.tensor((row > 0).sum(-1).max().item()).log()
        assert 0.1 < entropy.mean() < 0.99


def scale_qk(tensors: dict, *, reach: float, k_too: bool = True) -> None:
    """Rows of Wq by s per KV group (2 groups), rows of Wk by 1 / s; s about ``reach`` and ``1 / reach``."""
    generator = torch.Generator().manual_seed(5)
    for layer in range(2):
        s = torch.tensor([reach, 1 / reach], dtype=torch.float64) * (
            1 + torch.rand(2, generator=generator, dtype=torch.float64)
        )
        q, k = (tensors[f"model.layers.{layer}.self_attn.{role}_proj.weight"] for role in "qk")
        q.mul_(s.repeat_interleave(len(q) // 2)[:, None])
        if k_too:
            k.div_(s.repeat_interleave(len(k) // 2)[:, None])


def scale_gains(tensors: dict, *, reach: float, offset: float = 0.0) -> None:
    """Gains of q's norm by s per rotary pair (4, half-split), of k's norm by 1 / s; stored as gain - ``offset``."""
    generator = torch.Generator().manual_seed(5)
    for layer in range(2):
        spread = 1 + torch.rand(4, generator=generator, dtype=torch.float64)
        s = (torch.tensor([reach, 1 / reach] * 2, dtype=torch.float64) * spread).repeat(2)
        for role, factor in (("q", s), ("k", 1 / s)):
            gain = tensors[f"model.layers.{layer}.self_attn.{role}_norm.weight"]
            gain.copy_((gain + offset) * factor - offset)


def scale_gptj(tensors: dict) -> None:
    """Rows of Wq by s per pair of neighbours (64 rows), rows of Wk by 1 / s."""
    generator = torch.Generator().manual_seed(5)
    for layer in range(2):
        s = (1 + torch.rand(32, generator=generator, dtype=torch.float64)).repeat_interleave(2)[:, None]
        tensors[f"transformer.h.{layer}.attn.q_proj.weight"].mul_(s)
        tensors[f"transformer.h.{layer}.attn.k_proj.weight"].div_(s)


def apart(before: Path, after: Path) -> float:
    return difference(outputs(load(before), seed=1), outputs(load(after), seed=1)).max_rel


def apart_without_lifting(before: Path, after: Path, dtype: torch.dtype) -> float:
    """The same with transformers' own casts, over unpadded lengths."""
    ids = torch.randint(10, 50, (8, 33), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        a, b = (load(folder, dtype=dtype)(input_ids=ids).logits for folder in (before, after))
    return ((a - b).abs().max() / a.abs().max()).item()


def test_llama_scaled_by_kv_group_is_the_same_function_and_half_a_scaling_is_not(tmp_path):
    folder = built(tmp_path / "m", default("llama", num_key_value_heads=8))
    assert apart(folder, edited(folder, lambda t: scale_qk(t, reach=2.0**8))) < 1e-13
    assert apart(folder, edited(folder, lambda t: scale_qk(t, reach=1.0, k_too=False))) > 1e-2


def test_scaling_under_qwen3s_norms_is_caught_while_scaling_their_gains_is_exact(tmp_path):
    folder = built(tmp_path / "m", default("qwen3", num_key_value_heads=8))
    assert apart(folder, edited(folder, lambda t: scale_gains(t, reach=2.0**8))) < 1e-13
    assert (
        1e-9 < apart(folder, edited(folder, lambda t: scale_qk(t, reach=1.3))) < 1e-4
    )  # absorbed, but for the norm's eps
    assert apart(folder, edited(folder, lambda t: scale_qk(t, reach=2.0**8))) > 1e-3


def test_in_float32_a_right_rule_looks_like_an_absorbed_one_and_in_true_float64_it_does_not(tmp_path):
    llama = built(tmp_path / "l", default("llama", num_key_value_heads=8))
    qwen3 = built(tmp_path / "q", default("qwen3", num_key_value_heads=8))
    # measured: right rules 6e-7 and 5e-7 in float32, 1e-15 in true float64; the absorbed scaling 9e-7 in both
    for folder, edit in ((llama, lambda t: scale_qk(t, reach=1.0)), (qwen3, lambda t: scale_gains(t, reach=1.0))):
        right = edited(folder, edit)
        assert 1e-7 < apart_without_lifting(folder, right, torch.float32) < 5e-6
        assert apart(folder, right) < 1e-13
    absorbed = edited(qwen3, lambda t: scale_qk(t, reach=1.0))
    assert 1e-7 < apart_without_lifting(qwen3, absorbed, torch.float32) < 5e-6
    assert 1e-7 < apart(qwen3, absorbed) < 5e-6


@pytest.mark.parametrize("model_type", ["gemma3_text", "gptj"])
def test_double_parameters_alone_are_not_float64(model_type, tmp_path):
    # measured: 2e-7 (gemma3, whose norms cast) and 6e-8 (gptj, which casts q and k) against 3e-16 and 1e-15
    folder = built(tmp_path / "m", default(model_type))
    right = edited(folder, scale_gptj if model_type == "gptj" else lambda t: scale_gains(t, reach=1.0, offset=1.0))
    assert apart_without_lifting(folder, right, torch.float64) > 1e-9
    assert apart(folder, right) < 1e-13


def test_lifted_covers_casts_factories_softmax_and_autocast_and_leaves_other_types_alone():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    with in_float64():
        assert x.float().dtype == x.half().dtype == x.to(torch.bfloat16).dtype == torch.float64
        assert torch.tensor([1, 2]).float().dtype == torch.float64
        assert x.softmax(-1, dtype=torch.float32).dtype == x.sum(dtype=torch.float32).dtype == torch.float64
        assert (
            torch.zeros(2, dtype=torch.float32).dtype
            == torch.ones(2).dtype
            == torch.full((2,), 0.5).dtype
            == torch.float64
        )
        assert torch.tensor(0.1, dtype=torch.float64) == torch.full(
            (), 0.1, dtype=torch.float32
        )  # not rounded on the way
        assert x.to(torch.int64).dtype == torch.int64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (x @ x).dtype == torch.float64
        scripted = torch.jit.script(as_float32)
        assert scripted(x).dtype == torch.float64
    assert x.float().dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def as_float32(x: torch.Tensor):
    return x.to(torch.float32)


def test_what_was_compiled_runs_as_written_in_true_float64():
    def refuse(*_):
        raise AssertionError("it was compiled")

    compiled = torch.compile(lambda x: torch.softmax(x, -1, dtype=torch.float32), backend=refuse)
    with in_float64():
        assert compiled(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64


def test_the_default_dtype_comes_back_after_an_error_inside():
    with pytest.raises(RuntimeError), in_float64():
        raise RuntimeError
    assert torch.get_default_dtype() == torch.float32


def heads(config: dict) -> tuple[int, int]:
    return config["num_attention_heads"], config["num_key_value_heads"]


def test_head_ratios_keep_their_class():
    assert heads(shrink(default("llama"))) == (4, 4)
    assert heads(shrink(default("llama", num_key_value_heads=1))) == (4, 1)
    assert heads(shrink(default("llama", num_key_value_heads=8))) == (6, 2)
    assert heads(shrink(default("qwen2", num_attention_heads=14, num_key_value_heads=2, hidden_size=896))) == (6, 2)
    one = shrink(default("gpt2", n_head=1))
    assert (one["n_head"], one["n_embd"]) == (1, 8)


def test_head_counts_that_differ_by_layer_stay_different():
    counts = [48, 64, 48, 64] + [8] * 4
    small = shrink(
        default(
            "laguna",
            num_hidden_layers=8,
            num_attention_heads_per_layer=counts,
            num_attention_heads=48,
            num_key_value_heads=8,
            head_dim=128,
            layer_types=["full_attention"] * 8,
            mlp_layer_types=["dense"] * 8,
        )
    )
    # ratios 6, 8, 1 -> 2, 3, 1 on 2 KV heads
    assert small["num_attention_heads_per_layer"] == [4, 6, 2]
    assert (small["num_attention_heads"], small["num_key_value_heads"], small["num_hidden_layers"]) == (4, 2, 3)


def test_hidden_size_beside_heads_times_head_dim_stays_smaller_or_larger():
    def sizes(**changes):
        small = shrink(default("qwen3", **changes))
        return small["num_attention_heads"] * small["head_dim"], small["hidden_size"]

    assert sizes(num_attention_heads=16, num_key_value_heads=8, head_dim=128, hidden_size=1024) == (48, 36)
    assert sizes(num_attention_heads=64, head_dim=64, num_key_value_heads=64, hidden_size=5120) == (32, 40)
    # equal by chance: the two are told apart, for a rule that takes one axis for the other must fail
    assert sizes(num_attention_heads=32, head_dim=128, num_key_value_heads=32, hidden_size=4096) == (32, 40)
    implicit = {"model_type": "llama", "num_attention_heads": 32, "hidden_size": 4096}
    assert shrink(implicit)["hidden_size"] == 32  # here it cannot differ


@pytest.mark.parametrize(
    "model_type, changes, head_dim, width",
    [
        # (head_dim of the miniature, rotated channels): at least two rotary pairs and some channels free
        ("phi", {}, 8, 4),  # a half of 64
        (
            "phi",
            {
                "hidden_size": 2560,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4},
            },
            10,
            4,
        ),  # 32 of 80
        ("gpt_neox", {}, 16, 4),  # a quarter of 96
        ("gptj", {}, 16, 4),  # 64 of 256
        ("llama", {}, 8, 8),
    ],
)
def test_partial_rotary_stays_partial(model_type, changes, head_dim, width, tmp_path):
    model = load(built(tmp_path / "m", default(model_type, **changes)))
    attention = next(m for name, m in model.named_modules() if name.endswith(("self_attn", "attn", "attention")))
    assert (getattr(attention, "head_dim", None) or attention.head_size) == head_dim
    if model_type == "gptj":
        assert attention.rotary_dim == width
    else:
        rotary = next(m for m in model.modules() if hasattr(m, "inv_freq"))
        assert 2 * len(rotary.inv_freq) == width


def test_every_kind_of_layer_remains_in_its_order():
    gemma = shrink(default("gemma3_text"))
    assert gemma["layer_types"] == ["sliding_attention", "full_attention"]
    assert gemma["num_hidden_layers"] == 2
    smollm = shrink(default("smollm3"))
    assert smollm["no_rope_layers"] == [1, 0]
    assert shrink(default("gpt_neo"))["attention_types"] == [[["global", "local"], 1]]
    assert shrink(default("llama", num_hidden_layers=1))["num_hidden_layers"] == 1


def test_pattern_given_as_an_interval_is_kept_through_the_list_transformers_makes_of_it():
    config = {"model_type": "gemma3_text", "num_hidden_layers": 12, "sliding_window_pattern": 6}
    small = shrink(config)
    assert small["layer_types"] == ["sliding_attention", "full_attention"]


def test_sizes_the_file_leaves_to_the_defaults_are_made_small_too():
    small = shrink({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    assert (small["hidden_size"], small["num_hidden_layers"], small["vocab_size"]) == (32, 2, VOCAB_SIZE)


PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
LLAMA_3_1 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}
PHI_3_128K = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.0 + i for i in range(48)],
        "short_factor": [1.0 + i / 8 for i in range(48)],
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "attention_bias": False,
    "vocab_size": 32064,
    "_attn_implementation": "flash_attention_2",
}
GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_type": "cls_index",
    "do_sample": True,
    "max_length": 50,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
MINILM = {
    "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
    "architectures": ["BertModel"],
    "gradient_checkpointing": False,
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}


@pytest.mark.parametrize("config", [PYTHIA, LLAMA_3_1, PHI_3_128K, GPT2, MINILM], ids=lambda c: c["model_type"])
def test_config_files_as_they_are_found_keep_their_spelling_and_run(config, tmp_path):
    small = shrink(config)
    assert set(small) <= set(config) | {"head_dim"}  # nothing respelled
    result = outputs(load(built(tmp_path / "m", config)), seed=1)
    assert all(torch.isfinite(values).all() for values in result.cases.values())
    assert set(small) <= set(json.loads((tmp_path / "m" / "config.json").read_text()))


def test_rope_scalings_change_inside_the_lengths_tried():
    llama = shrink(LLAMA_3_1)
    assert 7 < llama["rope_scaling"]["original_max_position_embeddings"] < 33
    assert llama["rope_scaling"]["factor"] == 8.0
    phi3 = shrink(PHI_3_128K)
    assert phi3["rope_scaling"]["long_factor"] == [1.0, 2.0, 3.0, 4.0]  # four rotary pairs of a head of 8
    assert 7 < phi3["original_max_position_embeddings"] < 33 < phi3["max_position_embeddings"]


def test_special_tokens_fit_the_small_vocabulary_and_stay_different():
    small = shrink(LLAMA_3_1)
    ids = [small["bos_token_id"], *small["eos_token_id"]]
    assert len(set(ids)) == 4 and all(0 <= i < VOCAB_SIZE for i in ids)
    assert shrink(default("roberta"))["pad_token_id"] == 1  # position tables start behind it
    gpt2 = shrink(GPT2)
    assert gpt2["bos_token_id"] == gpt2["eos_token_id"] < VOCAB_SIZE


def test_nothing_that_picks_code_kernels_or_precision_reaches_the_model(tmp_path):
    config = default(
        "llama",
        auto_map={"AutoConfig": "x.Y"},
        quantization_config={"quant_method": "gptq"},
        _attn_implementation="flash_attention_2",
        attn_implementation="sdpa",
        torch_dtype="float16",
        attention_dropout=0.5,
    )
    small = shrink(config)
    assert not {"auto_map", "quantization_config", "_attn_implementation", "attn_implementation", "torch_dtype"} & set(
        small
    )
    assert small["attention_dropout"] == 0.0
    model = load(built(tmp_path / "m", config))
    assert model.config._attn_implementation == "eager"


def test_the_class_is_the_one_the_config_names_else_the_one_of_its_type():
    assert model_class(MINILM).__name__ == "BertModel"
    assert model_class(PHI_3_128K).__name__ == "Phi3ForCausalLM"  # native, so its auto_map is not needed
    assert model_class({"model_type": "llama"}).__name__ == "LlamaForCausalLM"
    assert model_class({"model_type": "bert"}).__name__ == "BertForMaskedLM"
    assert model_class({"model_type": "bert", "is_decoder": True}).__name__ == "BertLMHeadModel"
    assert model_class({"model_type": "llama", "architectures": ["LLaMAForCausalLM"]}).__name__ == "LlamaForCausalLM"
    assert model_class({"model_type": "llama", "architectures": ["BertModel"]}).__name__ == "LlamaForCausalLM"
    assert model_class({"model_type": "llama", "architectures": ["AutoModel"]}).__name__ == "LlamaForCausalLM"
    assert model_class({"model_type": "llama", "architectures": "LlamaModel"}).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "config, words",
    [
        ({"model_type": "llama9"}, "llama9"),
        ({}, "no model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"model_type": "llama", "architectures": ["MyLlama"], "auto_map": {"AutoModel": "x.MyLlama"}}, "MyLlama"),
    ],
)
def test_models_without_a_class_of_transformers_are_refused_with_the_reason(config, words):
    with pytest.raises(UnknownArchitecture, match=words):
        model_class(config)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0"),
        ({"num_key_value_heads": 7}, "do not divide"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"hidden_size": -4096}, "hidden_size"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"hidden_size": 4100, "head_dim": None}, "multiple"),
        ({"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1.0}}, "nonsense"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": -1.0}}, "rotates"),
        ({"to_dict": 1, "hidden_act": "no_such_activation"}, "no_such_activation"),
    ],
)
def test_impossible_numbers_are_named(changes, words, tmp_path):
    with pytest.raises(ConfigMismatch, match=words):
        built(tmp_path / "m", default("llama", **changes))


def test_twenty_thousand_layers_are_no_trouble():
    assert shrink(default("qwen2", num_hidden_layers=20_000, layer_types=None))["num_hidden_layers"] == 2


def test_a_size_that_stays_large_is_refused_before_memory_is_taken(tmp_path):
    small = shrink(default("llama"))
    with pytest.raises(UnknownArchitecture, match=f"{MAX_PARAMETERS:,}"):
        build_miniature({**small, "intermediate_size": 10**9}, tmp_path / "m", 0)
    assert not (tmp_path / "m").exists()


def test_two_seeds_give_two_models_and_one_seed_the_same_bytes(tmp_path):
    a, b, c = (built(tmp_path / name, default("gpt2"), seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    weights = [(folder / "model.safetensors").read_bytes() for folder in (a, b, c)]
    assert weights[0] == weights[1] != weights[2]


def test_building_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load(built(tmp_path / "m", default("llama")))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda t: t.pop("model.layers.1.self_attn.q_proj.weight"), "1 missing: .*layers.1.self_attn.q_proj"),
        (lambda t: t.update(extra=torch.ones(2)), "1 without a place in the model: extra"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(9)}),
            r"model.norm.weight is \(9,\), the model needs \(40,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(edit, words, tmp_path):
    folder = edited(built(tmp_path / "m", default("llama")), edit)
    with pytest.raises(ConfigMismatch, match=words):
        load(folder)


def test_an_extra_tensor_may_be_allowed_for_real_checkpoints(tmp_path):
    folder = built(tmp_path / "m", default("llama"))
    more = edited(folder, lambda t: t.update(extra=torch.ones(2)))
    assert difference(outputs(load(folder), 1), outputs(load(more, allow_extra=True), 1)).n_different == 0


def test_outputs_are_logits_or_the_last_hidden_state_and_leave_padding_out(tmp_path):
    bert = outputs(load(built(tmp_path / "b", MINILM)), seed=1)
    assert bert.kind == "last hidden state"
    assert {name: tuple(values.shape) for name, values in bert.cases.items()} == {
        "length 1": (1, 32),
        "length 7": (7, 32),
        "length 33": (33, 32),
        "padded on the left": (12 + 5 + 9, 32),
        "padded on the right": (12 + 5 + 9, 32),
    }
    gpt2 = outputs(load(built(tmp_path / "g", GPT2)), seed=1)
    assert gpt2.kind == "logits"
    assert gpt2.cases["cached prefill"].shape == (7, VOCAB_SIZE)
    assert gpt2.cases["cached step 5"].shape == (1, VOCAB_SIZE)
    head = outputs(
        load(built(tmp_path / "c", default("bert", architectures=["BertForSequenceClassification"]))), seed=1
    )
    assert head.kind == "last hidden state"


def test_given_token_ids_are_a_case_a_row_and_agree_with_a_plain_call(tmp_path):
    def text_outputs(model, ids):
        return case_outputs(model, inputs_module.row_cases(model, ids))

    ids = torch.randint(10, 50, (2, 9), generator=torch.Generator().manual_seed(3))
    model = load(built(tmp_path / "g", GPT2), dtype=torch.float32)
    result = text_outputs(model, ids)
    assert (result.kind, result.causal, list(result.cases)) == ("logits", True, ["row 0", "row 1"])
    with torch.no_grad():
        assert torch.equal(result.cases["row 1"], model(input_ids=ids[1:]).logits[0])
    bert = text_outputs(load(built(tmp_path / "b", MINILM)), ids)
    assert (bert.kind, bert.causal, bert.cases["row 0"].shape) == ("last hidden state", False, (9, 32))
    assert not text_outputs(load(built(tmp_path / "m", default("bert"))), ids).causal


def test_a_lower_precision_is_compared_as_it_is(tmp_path):
    folder = built(tmp_path / "m", default("llama", num_key_value_heads=8))
    powers = edited(
        folder,
        lambda t: [
            t[f"model.layers.{i}.self_attn.{r}_proj.weight"].mul_(f)
            for i in range(2)
            for r, f in (("q", 4.0), ("k", 0.25))
        ],
    )
    a, b = (outputs(load(f, dtype=torch.bfloat16), seed=1) for f in (folder, powers))
    assert a.cases["length 7"].dtype == torch.bfloat16
    assert difference(a, b).n_different == 0


def test_difference_is_relative_to_the_reference_and_names_the_worst_case():
    a = Outputs("logits", {"one": torch.tensor([[1.0, -4.0]]), "two": torch.tensor([[10.0, 5.0]])})
    b = Outputs("logits", {"one": torch.tensor([[1.0, -3.0]]), "two": torch.tensor([[12.0, 5.0]])})
    assert difference(a, b) == Difference(max_abs=2.0, max_rel=0.25, n_values=4, n_different=2, worst_case="one")
    assert difference(a, a) == Difference(max_abs=0.0, max_rel=0.0, n_values=4, n_different=0, worst_case="one")
    assert a.scale == 10.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_an_infinite_difference(bad):
    a = Outputs("logits", {"one": torch.tensor([[1.0, bad]])})
    assert difference(a, a).max_rel == float("inf")
    b = Outputs("logits", {"one": torch.tensor([[1.0, 2.0]])})
    assert difference(b, a).max_rel == difference(b, a).max_abs == float("inf")


def test_lengths_fit_the_small_position_table():
    assert max(inputs_module.LENGTHS) + 2 < MAX_POSITIONS
