"""What models of every kind are run on, and that their outputs repeat and can be compared."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from census_here import is_proved_here
from installed import TRANSFORMERS

from wisca_core.census.released import released_entry
from wisca_core.equivalence.example import example_config
from wisca_core.equivalence.float64 import in_float64
from wisca_core.equivalence.inputs import PADDED_LENGTHS, cases, has_cache, row_cases, takes
from wisca_core.equivalence.miniature import build_miniature, load, model_class
from wisca_core.equivalence.outputs import case_outputs, difference, outputs
from wisca_core.equivalence.small_config import VOCAB_SIZE, shrink


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    @lru_cache
    def built(model_type: str, architecture: str | None = None) -> Path:
        folder = tmp_path_factory.mktemp(model_type)
        config = example_config(model_type) | {"architectures": [architecture]}
        config["architectures"] = [architecture or model_class(config | {"architectures": None}).__name__]
        build_miniature(shrink(config), folder, seed=0)
        return folder

    return built


# type -> (class, what it is run on)
TAKES = {
    "mamba2": (None, ("text",)),
    "t5": (None, ("text", "decoder text")),
    "bart": ("BartForCausalLM", ("text",)),
    "whisper": (None, ("decoder text", "sound")),
    "vit": ("ViTForImageClassification", ("pixels",)),
    "swin": (None, ("pixels",)),
    "wav2vec2": (None, ("sound",)),
    "clip": (None, ("text", "pixels")),
    "clap": (None, ("text", "sound")),
    "qwen2_5_vl": (None, ("text", "pixels")),
    "vision-encoder-decoder": (None, ("decoder text", "pixels")),
}


@pytest.mark.parametrize("model_type", TAKES)
def test_a_model_is_run_on_what_it_takes(model_type, built):
    architecture, kinds = TAKES[model_type]
    assert takes(load(built(model_type, architecture))) == kinds


# What needs a rule, a row or inputs of its own; plain decoders and encoders are built and run by the tests of families.
SPECIAL = (
    "gemma3n_text gemma4_text mimo_v2_flash zamba zamba2 jamba nemotron_h granitemoehybrid falcon_h1 longcat_flash "
    "qwen4_exp_text blt cpmant "
    "xlnet xlm reformer hrm_text dbrx xmod roc_bert moonshine musicgen led nllb-moe switch_transformers t5gemma "
    "speech_to_text whisper big_bird "
    "longformer funnel canine layoutlmv3 luke mobilebert perceiver deit beit dinov2 dinov3_vit swinv2 hiera pvt "
    "segformer vit_mae yolos videomae "
    "wavlm wav2vec2-bert audio-spectrogram-transformer siglip2 clap blip-2 gemma4 llama4 idefics3 llava_next "
    "qwen2_5_vl mllama"
).split()


@pytest.mark.parametrize("model_type", SPECIAL)
def test_architectures_with_rules_of_their_own_build_reload_repeat_themselves_and_are_alive(model_type, built):
    entry = released_entry(model_type)
    if entry is not None:  # a proof begins with all of this, and says what did not run
        assert 1 <= entry.n_cases <= 14 and not any("does not run" in remark for remark in entry.remarks)
    if not is_proved_here(model_type):
        return
    folder = built(model_type)
    model = load(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert sum(p.numel() for p in model.parameters()) < 250_000
    first = outputs(model, seed=1)
    assert all(values.dtype == torch.float64 and torch.isfinite(values).all() for values in first.cases.values())
    # llama4 of transformers before 5.18 lacks an argument there, and says so
    late = ["on pictures alone"] if model_type == "llama4" and TRANSFORMERS < (5, 18) else []
    assert [case for case in first.not_run if not any(words in case for words in late)] == []
    assert difference(first, outputs(load(folder), seed=1)).n_different == 0
    assert difference(first, outputs(model, seed=2)).max_rel > 1e-3
    assert 1 <= len(first.cases) <= 14


def test_every_tower_moves_what_is_compared(built):
    """Else its rules could not be proved: a changed weight of any tower changes a case."""
    for model_type, inside in (
        ("clip", ("text_model", "vision_model")),
        ("qwen2_5_vl", ("visual", "language_model")),
        ("whisper", ("encoder", "decoder")),
        ("mllama", ("vision_model", "cross_attn")),
    ):
        for part in inside:
            model = load(built(model_type))
            before = outputs(model, seed=1)
            name = next(
                n
                for n, _ in model.named_parameters()
                if f"{part}." in n and n.endswith(("v_proj.weight", "qkv.weight"))
            )
            with torch.no_grad():
                model.get_parameter(name).mul_(1.5)
            assert difference(before, outputs(model, seed=1)).max_rel > 1e-6, (model_type, part)


def test_encoder_decoders_are_compared_at_the_decoders_positions_with_padding_on_both_halves(built):
    result = outputs(load(built("t5")), seed=1)
    n_padded = sum(PADDED_LENGTHS)
    assert (result.kind, result.causal) == ("logits", False)
    assert {name: tuple(values.shape) for name, values in result.cases.items()} == {
        "length 1": (4, VOCAB_SIZE),
        "length 7": (9, VOCAB_SIZE),
        "length 33": (12, VOCAB_SIZE),
        "padded on the left": (3 * 4, VOCAB_SIZE),
        "padded on the right": (n_padded, VOCAB_SIZE),
        "cached prefill": (7, VOCAB_SIZE),
        **{f"cached step {i}": (1, VOCAB_SIZE) for i in range(1, 6)},
    }


@pytest.mark.parametrize("model_type", ["t5", "nllb-moe", "llama"])
def test_steps_on_a_cache_agree_with_the_whole_text_at_once(model_type, built):
    """So they are the steps of generation, and not those of some other text."""
    model = load(built(model_type))
    assert has_cache(model)
    found, seen = outputs(model, seed=1), {}

    def record(module, args, kwargs, output):
        if kwargs.get("use_cache"):
            seen.setdefault("ids", []).append(kwargs.get("decoder_input_ids", kwargs.get("input_ids")))
            seen["encoder"] = kwargs.get("encoder_outputs")

    handle = model.register_forward_hook(record, with_kwargs=True)
    outputs(model, seed=1)
    handle.remove()
    ids = torch.cat(seen["ids"], 1)
    key, more = (
        ("input_ids", {}) if model_type == "llama" else ("decoder_input_ids", {"encoder_outputs": seen["encoder"]})
    )
    with in_float64(), torch.no_grad():
        whole = model(**{key: ids}, **more).logits[0]
    steps = torch.cat([values for name, values in found.cases.items() if name.startswith("cached")])
    assert steps.shape == (12, VOCAB_SIZE)
    assert (steps - whole).abs().max() < 1e-11 * whole.abs().max()


def test_models_that_draw_numbers_at_inference_repeat_themselves_and_leave_the_global_state_alone(built):
    model = load(built("reformer"))
    assert model.config.hash_seed is None  # every call hashes anew
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert difference(outputs(model, 1), outputs(model, 1)).n_different == 0
    assert torch.equal(torch.get_rng_state(), before)
    ids = next(iter(case for case in cases(model, 1) if case.name == "length 33")).inputs["input_ids"]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(4)
        a, b = (model(input_ids=ids).logits for _ in range(2))
    assert not torch.equal(a, b)


def test_a_tower_that_cannot_be_fed_is_named_and_the_language_part_still_compared(built):
    result = outputs(load(built("paddleocr_vl")), seed=1)
    assert len(result.not_run) == 1 and "a picture alone" in result.not_run[0]
    assert "length 33" in result.cases and result.kind == "logits"


def test_given_ids_of_an_encoder_decoder_are_read_by_both_halves(built):
    model = load(built("t5"))
    ids = torch.randint(10, 50, (2, 9), generator=torch.Generator().manual_seed(3))
    result = case_outputs(model, row_cases(model, ids))
    assert (result.kind, result.causal) == ("logits", False)
    with torch.no_grad(), in_float64():
        assert torch.equal(result.cases["row 1"], model(input_ids=ids[1:], decoder_input_ids=ids[1:]).logits[0])


def test_sparse_blocks_are_reached_within_the_lengths_tried(built):
    """BigBird attends to everything below (5 + 2 random blocks) blocks: a proof there would say nothing of the sparse
    form.
    """
    model = load(built("big_bird"))
    outputs(model, seed=1)
    assert model.bert.attention_type == "block_sparse"
    assert (
        min(case.shape[1] for case in cases(model, 1))
        > (5 + 2 * model.config.num_random_blocks) * model.config.block_size
    )
