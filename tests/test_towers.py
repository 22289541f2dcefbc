"""Models that hold other models, as their config.json really looks: numbers at the top, types left out."""

from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.miniature import build_miniature
from wisca_core.equivalence.proving import prove
from wisca_core.equivalence.small_config import shrink

# Qwen2-VL's first files have no text_config and a vision_config without a type.
QWEN2_VL = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}


def test_numbers_at_the_top_are_the_language_parts(tmp_path):
    build_miniature(shrink(QWEN2_VL), tmp_path, seed=1)
    checkpoint = open_checkpoint(tmp_path)
    sites = find_sites(checkpoint)
    assert {(site.key.stack, site.key.pair) for site in sites.sites} == {
        ("decoder", "qk"),
        ("decoder", "vo"),
        ("vision", "qk"),
        ("vision", "vo"),
    }
    q = next(leg for leg in sites["decoder.0.self.qk"].legs if leg.role == "q")
    assert q.tensor == "model.layers.0.self_attn.q_proj.weight"
    found = prove(checkpoint, sites)
    assert found.passed and found.max_rel < 1e-11, found.reason


def test_a_layer_count_beyond_reason_builds_no_config(tmp_path):
    """The class makes lists as long as the layers; a hostile file must not get that far."""
    from wisca_core.architecture.find import _inner

    assert _inner({**QWEN2_VL, "num_hidden_layers": 10**12}, "text_config") is None
