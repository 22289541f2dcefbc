"""Small model folders as the transformers library itself makes and writes them: its config classes, its initialisation,
``save_pretrained``. Nothing of this project takes part.
"""

from pathlib import Path

import torch
import transformers as hf

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = SMALL | {"vocab_size": 120, "max_position_embeddings": 64}
GROUPED = TEXT | {"num_key_value_heads": 2, "head_dim": 8}
PICTURES = SMALL | {"image_size": 16, "patch_size": 4}
# ids that name tokens, inside the small vocabulary
NAMED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# name -> (class of the model, its config)
KINDS = {
    "vit": (
        hf.ViTForImageClassification,
        lambda: hf.ViTConfig(**PICTURES, id2label={i: f"label {i}" for i in range(10)}),
    ),
    "clip": (hf.CLIPModel, lambda: hf.CLIPConfig(text_config=TEXT | NAMED, vision_config=PICTURES, projection_dim=24)),
    "llava": (
        hf.LlavaForConditionalGeneration,
        lambda: hf.LlavaConfig(
            text_config=GROUPED | {"model_type": "llama"},
            vision_config=PICTURES | {"model_type": "clip_vision_model", "projection_dim": 24},
            image_token_index=110,
        ),
    ),
    "gemma3": (
        hf.Gemma3ForConditionalGeneration,
        lambda: hf.Gemma3Config(
            text_config=GROUPED | NAMED | {"sliding_window": 16, "query_pre_attn_scalar": 8},
            vision_config=PICTURES,
            mm_tokens_per_image=4,
            image_token_index=110,
            boi_token_index=111,
            eoi_token_index=112,
        ),
    ),
    "whisper": (
        hf.WhisperForConditionalGeneration,
        lambda: hf.WhisperConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            vocab_size=120,
            num_mel_bins=8,
            max_source_positions=30,
            max_target_positions=40,
            decoder_start_token_id=3,
            **NAMED,
        ),
    ),
    "wav2vec2": (
        hf.Wav2Vec2ForCTC,
        lambda: hf.Wav2Vec2Config(
            **SMALL | {"num_hidden_layers": 7, "vocab_size": 40},
            conv_dim=[16] * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        ),
    ),
    "bart": (
        hf.BartForConditionalGeneration,
        lambda: hf.BartConfig(
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            vocab_size=120,
            max_position_embeddings=64,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
            **NAMED,
        ),
    ),
    "bamba": (  # writes time_step_limit as {"__float__": "Infinity"}
        hf.BambaForCausalLM,
        lambda: hf.BambaConfig(
            **TEXT | {"num_key_value_heads": 2} | NAMED,
            attn_layer_indices=[1],
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_n_groups=1,
            mamba_chunk_size=8,
        ),
    ),
    "stablelm": (  # a norm a head: the more heads, the more tensors
        hf.StableLmForCausalLM,
        lambda: hf.StableLmConfig(
            **TEXT | {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2} | NAMED, qk_layernorm=True
        ),
    ),
    "cohere": (
        hf.CohereForCausalLM,
        lambda: hf.CohereConfig(
            **TEXT | {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2} | NAMED, use_qk_norm=True
        ),
    ),
    "qwen2_vl": (  # three layers, and three sections of the rotary pairs
        hf.Qwen2VLForConditionalGeneration,
        lambda: hf.Qwen2VLConfig(
            text_config=TEXT
            | NAMED
            | {
                "num_hidden_layers": 3,
                "num_key_value_heads": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            },
            vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32},
            image_token_id=110,
            video_token_id=111,
            vision_start_token_id=112,
            vision_end_token_id=113,
        ),
    ),
    "musicgen_melody": (
        hf.MusicgenMelodyForCausalLM,
        lambda: hf.MusicgenMelodyDecoderConfig(
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=40,
            num_codebooks=3,
            **{key: 39 for key in ("pad_token_id", "bos_token_id")},
        ),
    ),
    "big_bird": (  # sparse beyond 13 blocks of 4
        hf.BigBirdForMaskedLM,
        lambda: hf.BigBirdConfig(
            **TEXT | {"max_position_embeddings": 128} | NAMED, block_size=4, attention_type="block_sparse"
        ),
    ),
    "olmo": (hf.OlmoForCausalLM, lambda: hf.OlmoConfig(**TEXT | NAMED, clip_qkv=8.0)),
    "dbrx": (
        hf.DbrxForCausalLM,
        lambda: hf.DbrxConfig(
            d_model=32,
            n_heads=4,
            n_layers=2,
            max_seq_len=64,
            vocab_size=120,
            attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 2, "moe_top_k": 1},
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
    ),
    "llama": (hf.LlamaForCausalLM, lambda: hf.LlamaConfig(**GROUPED | NAMED)),
}


def real_folder(kind: str, place: Path, dtype: torch.dtype = torch.float32) -> Path:
    """``place``, with the model of KINDS written there. Biases and gains are moved off their start, as training
    does.
    """
    model_class, config = KINDS[kind]
    torch.manual_seed(0)
    model = model_class(config())
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim < 2:
                parameter += 0.1 * torch.randn_like(parameter)
            else:  # out of balance, and with scores of attention that matter beside rounding
                parameter *= (2, 8, 4)[number % 3]
    model.to(dtype).save_pretrained(place)
    return place
