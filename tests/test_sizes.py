"""How a config is made small: by roles, by rows of sizes.toml, tower by tower."""

import pytest
import torch
from installed import IS_OLDER
from transformers import CONFIG_MAPPING

from wisca_core.equivalence.example import example_config
from wisca_core.equivalence.miniature import build_miniature, load
from wisca_core.equivalence.model_config import config_object
from wisca_core.equivalence.outputs import outputs
from wisca_core.equivalence.sizes import ROLES, TABLE, is_by_layer, kept_layers
from wisca_core.equivalence.small_config import MAX_POSITIONS, VOCAB_SIZE, shrink
from wisca_core.errors import ConfigMismatch, UnknownArchitecture


def small(model_type: str, **changes) -> dict:
    return shrink(example_config(model_type, **changes))


def test_every_row_is_of_a_type_that_transformers_knows_and_every_role_has_a_new_value():
    assert IS_OLDER or [t for t in (*TABLE.rows, *TABLE.examples, *TABLE.variants) if t not in CONFIG_MAPPING] == []
    assert set(TABLE.small) | set(TABLE.at_most) <= set(ROLES.values())


def test_a_list_has_an_entry_a_layer_where_its_key_says_so_and_never_by_its_length():
    three = ["full_attention", "sliding_attention", "full_attention"]
    assert is_by_layer("layer_types", three, 3) and not is_by_layer("layer_types", three, 4)
    assert is_by_layer("num_key_value_heads", [8, 4, 8], 3)
    for key in ("mrope_section", "conv_kernel", "tdnn_kernel", "upsample_rates", "architectures", "eos_token_id"):
        assert not is_by_layer(key, [1, 2, 3], 3), key


def test_sizes_of_one_axis_are_not_those_of_another():
    one = small("mistral_large4_text")
    widths = {
        key: one[key]
        for key in (
            "hidden_size",
            "intermediate_size",
            "moe_intermediate_size",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "index_head_dim",
            "vocab_size",
        )
    }
    assert len(set(widths.values())) == len(widths), widths


def test_layers_that_share_keys_and_values_keep_a_layer_of_every_kind_on_both_sides():
    gemma = small("gemma3n_text")
    made = config_object(gemma)
    first_shared = made.num_hidden_layers - made.num_kv_shared_layers
    own, shared = made.layer_types[:first_shared], made.layer_types[first_shared:]
    assert set(own) == set(shared) == {"sliding_attention", "full_attention"}
    assert small("gemma3n_text", num_kv_shared_layers=0)["num_kv_shared_layers"] == 0


def test_layers_that_name_their_source_of_keys_and_values_still_do():
    sources = [0, 1, 2, 2, 2, 5, 5, 5]
    one = small(
        "mistral_large4_text",
        num_hidden_layers=8,
        kv_source_layers=sources,
        no_rope_layers=[1] * 8,
        mlp_layer_types=["dense"] * 8,
        layer_types=["indexed_attention"] * 8,
        indexer_types=["full"] * 8,
    )
    kept = one["kv_source_layers"]
    # the dense first layer, an owner, the owner that another layer reads, that reader
    assert kept == [0, 1, 2, 2] and one["num_hidden_layers"] == 4


def test_a_prefix_of_other_layers_stays_a_prefix():
    assert kept_layers({"first_k_dense_replace": 3}, 61) == (0, 3)
    one = small("deepseek_v3", first_k_dense_replace=3)
    assert (one["first_k_dense_replace"], one["num_hidden_layers"]) == (1, 2)
    assert small("deepseek_v3", first_k_dense_replace=0)["first_k_dense_replace"] == 0


def test_what_single_layers_have_of_their_own_stays_unlike_the_common_value():
    one = small("gemma4_text")
    assert one["layer_types"] == ["sliding_attention", "full_attention"]
    assert one["per_layer_config"] == {"1": {"head_dim": 2 * one["head_dim"]}}
    both = small(
        "gemma4_text",
        num_attention_heads=16,
        num_key_value_heads=8,
        attention_k_eq_v=True,
        per_layer_config={"5": {"head_dim": 512, "num_key_value_heads": 2}},
    )
    # 8 query heads on 4 and on 2
    assert (both["num_attention_heads"], both["num_key_value_heads"]) == (8, 4)
    assert both["per_layer_config"]["1"]["num_key_value_heads"] == 2


def test_older_spellings_of_what_single_layers_have_become_those_of_the_kept_layers():
    """Published files say it for all layers of a kind."""
    file = {
        "model_type": "gemma4_text",
        "num_hidden_layers": 12,
        "hidden_size": 2304,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
    }
    one = shrink(file)
    assert one["num_hidden_layers"] == 2 and one["per_layer_config"] == {"1": {"head_dim": 2 * one["head_dim"]}}
    assert config_object(one).layer_types == ["sliding_attention", "full_attention"]


def test_window_layers_with_heads_of_their_own_keep_their_ratio():
    one = small("inkling_text")  # 64 on 8, and 64 on 16 with a window
    assert one["num_attention_heads"] == one["swa_num_attention_heads"]
    assert one["num_key_value_heads"] < one["swa_num_key_value_heads"] < one["num_attention_heads"]


def test_hybrids_keep_every_kind_of_layer():
    jamba = config_object(small("jamba"))
    kinds = set(zip(jamba.layers_block_type, jamba.layers_num_experts, strict=True))
    assert kinds == {("mamba", 1), ("attention", 4), ("attention", 1)}
    assert small("zamba")["layers_block_type"].count("hybrid") == 2  # one block that both share
    assert set(small("nemotron_h")["layers_block_type"]) == {"linear_attention", "moe", "full_attention", "mlp"}
    assert small("qwen3_5_text")["layer_types"] == ["linear_attention", "full_attention"]


def test_a_pattern_that_is_repeated_over_the_layers_is_no_list_by_layer():
    one = small("recurrent_gemma")
    assert one["block_types"] == ["recurrent", "recurrent", "attention"] and one["num_hidden_layers"] == 3


def test_sections_of_a_rotation_add_up_to_its_pairs():
    one = small("qwen2_vl")["text_config"]
    assert one["rope_parameters"]["mrope_section"] == [2, 1, 1]
    assert one["hidden_size"] // one["num_attention_heads"] == 8


def test_a_width_of_heads_that_the_type_works_out_itself_is_not_set_apart_from_the_hidden_size():
    assert small("xlnet") == small("xlnet") | {"d_head": 8, "d_model": 32}
    vision = small("mistral3")["vision_config"]
    assert vision["hidden_size"] == vision["num_attention_heads"] * vision["head_dim"]


def test_towers_are_made_small_by_the_same_rules_and_still_fit_each_other():
    one = small("qwen2_5_vl")
    text, vision = one["text_config"], one["vision_config"]
    assert text["num_hidden_layers"] == vision["depth"] == 2
    assert vision["out_hidden_size"] == text["hidden_size"] != vision["hidden_size"]
    assert vision["window_size"] == vision["patch_size"] * vision["spatial_merge_size"] * 2
    assert vision["fullatt_block_indexes"] and len(vision["fullatt_block_indexes"]) < vision["depth"]  # both kinds
    assert text["vocab_size"] == VOCAB_SIZE and text["max_position_embeddings"] == MAX_POSITIONS


def test_a_token_has_one_number_in_all_towers():
    one = shrink(
        {
            **example_config("llava"),
            "image_token_index": 32000,
            "text_config": {"model_type": "llama", "pad_token_id": 32000},
        }
    )
    assert one["image_token_index"] == one["text_config"]["pad_token_id"] < VOCAB_SIZE


def test_towers_a_file_leaves_to_the_defaults_are_made_small_and_named():
    one = shrink({"model_type": "llava"})
    assert (one["text_config"]["model_type"], one["vision_config"]["model_type"]) == ("llama", "clip_vision_model")
    assert one["text_config"]["num_hidden_layers"] == 2


def test_a_config_of_stages_is_cut_to_three_of_them():
    one = small("swin")
    made = config_object(one)
    assert (made.depths, made.num_heads, made.embed_dim, made.hidden_size) == ([2, 2, 2], [2, 4, 8], 16, 64)


@pytest.mark.parametrize("key", ["text_config", "vision_config"])
@pytest.mark.parametrize("value", [{"to_dict": 1}, {"hidden_size": "wide"}, {"num_attention_heads": 0}, 5, [1]])
def test_towers_that_hold_nonsense_are_a_named_error_or_left_out(key, value, tmp_path):
    config = {**example_config("llava"), key: value}
    try:
        build_miniature(shrink(config), tmp_path / "m", 0)
    except (ConfigMismatch, UnknownArchitecture) as error:
        assert "llava" in str(error)
    else:
        assert value == {"to_dict": 1}  # a name of the class, never set


def test_a_vocabulary_of_picture_tokens_is_cut_to_one_that_fits():
    one = small("chameleon")["vocabulary_map"]
    assert "<image>" in one and all(0 < i < VOCAB_SIZE for i in one.values()) and len(set(one.values())) == len(one)


def test_the_example_of_a_type_is_as_large_as_its_default_and_runs(tmp_path):
    config = example_config("deepseek_v2")
    assert (config["hidden_size"], config["num_experts_per_tok"]) == (4096, 2)  # the default leaves the last one open
    build_miniature(shrink(config), tmp_path / "m", 0)
    assert all(torch.isfinite(v).all() for v in outputs(load(tmp_path / "m"), 1).cases.values())


SHRUNK_TWICE = (
    "gemma4_text",
    "dots3_note_text",
    "blt",
    "hrm_text",
    "zamba2",
    "reformer",
    "xlstm",
    "qwen2_5_vl",
    "clap",
    "hiera",
    "musicgen",
    "mimo_v2_flash",
    "jamba",
    "moonshine",
    "funnel",
)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "num_attention_heads": 32, "hidden_size": 4096},
        {"model_type": "gemma4_vision"},
        {"model_type": "llava", "text_config": {"model_type": "mistral", "num_hidden_layers": 4}},
    ],
    ids=lambda config: config["model_type"],
)
def test_files_that_leave_most_to_the_defaults_shrink_twice_to_the_same(config):
    once = shrink(config)
    assert shrink(once) == once


@pytest.mark.parametrize("model_type", SHRUNK_TWICE)
def test_shrinking_twice_changes_nothing_more(model_type):
    once = small(model_type)
    assert shrink(once) == once
