"""The paper's own set-ups (arXiv:2508.16676), as numbers, for those who have the data and the GPU.

Config values are those of the published config.json of each model, written down here so that no download is needed:
TinyLlama/TinyLlama_v1.1, Qwen/Qwen2-1.5B and Qwen/Qwen1.5-MoE-A2.7B on the Hugging Face hub. From the paper come the
model, TinyStories as the text, and a rescale every 250 steps.

Not covered: steps, batch, context, learning rate and schedule of the paper's runs, which are not restated here: those
of the presets are this project's choice, and a table of a run with them stands beside the paper's, never for it. The
router's auxiliary loss of the MoE model is left out of training, as in transformers' default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wisca_core.comparison.spec import Spec


@dataclass(frozen=True)
class Setup:
    """``title`` in words; ``config``: values of transformers' config of that model type; ``hub_id``: where its config
    and tokenizer are published; ``paper``: (baseline, WISCA) training loss and test perplexity on TinyStories as
    reported.
    """

    title: str
    config: Mapping[str, Any]
    hub_id: str
    paper: tuple[tuple[float, float], tuple[float, float]]


SETUPS: Mapping[str, Setup] = {
    "tinyllama": Setup(
        "TinyLlama 1.1B",
        dict(
            model_type="llama",
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            initializer_range=0.02,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        "TinyLlama/TinyLlama_v1.1",
        ((1.3193, 3.78), (1.2749, 3.62)),
    ),
    "qwen2": Setup(
        "Qwen2 1.5B",
        dict(
            model_type="qwen2",
            vocab_size=151936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            max_position_embeddings=131072,
            rms_norm_eps=1e-6,
            initializer_range=0.02,
            tie_word_embeddings=True,
            use_sliding_window=False,
            bos_token_id=151643,
            eos_token_id=151643,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        "Qwen/Qwen2-1.5B",
        ((1.355, 3.96), (1.3336, 3.88)),
    ),
    "qwen15_moe": Setup(
        "Qwen1.5-MoE-A2.7B",
        dict(
            model_type="qwen2_moe",
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=5632,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
            num_experts=60,
            num_experts_per_tok=4,
            norm_topk_prob=False,
            decoder_sparse_step=1,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=16,
            max_position_embeddings=8192,
            rms_norm_eps=1e-6,
            initializer_range=0.02,
            tie_word_embeddings=False,
            use_sliding_window=False,
            bos_token_id=151643,
            eos_token_id=151643,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        "Qwen/Qwen1.5-MoE-A2.7B",
        ((1.5497, 4.76), (1.5141, 4.60)),
    ),
}


def for_scale(spec: "Spec") -> str:
    """The paper's figure that stands beside a result of this kind."""
    if spec.model.source == "lora":
        return (
            "For scale: the paper's differences with LoRA are −0.007 on Alpaca and −0.001 on MetaMath, in nats a "
            "token of another model's tokenizer."
        )
    if spec.model.source == "paper":
        (base, _), (with_it, _) = SETUPS[spec.model.setup].paper
        change = f"{with_it - base:.3f}".replace("-", "−")
        return (
            f"The paper reports {change} nats of training loss for {SETUPS[spec.model.setup].title} with settings "
            "of its own."
        )
    return (
        "For scale: the paper's difference on TinyLlama 1.1B is −0.044 nats of training loss a token, of another "
        "tokenizer: no figure to subtract from."
    )
