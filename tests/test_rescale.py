"""Factors onto tensors, by hand: which entry is multiplied by what, how it is rounded, and what is left as it was."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import Grid, Leg, Site, SiteKey, Sites
from wisca_core.checkpoint import TORCH_DTYPES, open_checkpoint
from wisca_core.rescale import Scaling, changes, rescaled_rows, rescaled_stored_rows, scalings

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def test_gqa_by_hand(tmp_path):
    """Two query heads of 2 on each of 2 KV heads; one factor a KV head: 2 for the first, 10 for the second."""
    layer = "model.layers.0.self_attn."
    shapes = {
        "q_proj.weight": (8, 3),
        "q_proj.bias": (8,),
        "k_proj.weight": (4, 3),
        "v_proj.weight": (4, 3),
        "o_proj.weight": (3, 8),
        "o_proj.bias": (3,),
    }
    save_file({layer + n: torch.ones(s) for n, s in shapes.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 2,
                "hidden_size": 3,
            }
        )
    )
    sites = find_sites(open_checkpoint(tmp_path))
    full = {layer + n: s for n, s in shapes.items()}
    out = scalings(sites, {"decoder.0.self.qk": (2, 10)}, "group", full)
    by_hand = {
        "q_proj.weight": [2] * 4 + [10] * 4,
        "q_proj.bias": [2] * 4 + [10] * 4,
        "k_proj.weight": [0.5] * 2 + [0.1] * 2,
    }
    assert {n: s.along[0].tolist() for n, s in out.items()} == {layer + n: v for n, v in by_hand.items()}
    out = scalings(sites, {"decoder.0.self.vo": [1, 4]}, "group", full)
    assert {n: {axis: v.tolist() for axis, v in s.along.items()} for n, s in out.items()} == {
        layer + "v_proj.weight": {0: [1, 1, 4, 4]},
        layer + "o_proj.weight": {1: [1] * 4 + [0.25] * 4},
    }
    assert scalings(sites, {"decoder.0.self.qk": [1, 1]}, "group", full) == {}
    assert scalings(sites, {}, "tensor", full) == {}
    left = scalings(sites, {"decoder.0.self.qk": [3.0]}, "tensor", full, only_side="left")
    assert {n[len(layer) :] for n in left} == {"q_proj.weight", "q_proj.bias"}


def test_legs_of_several_sites_on_one_tensor_multiply_and_exponents_count():
    grid = Grid(0, (1, 1, 2), (0, 0, 1))

    def site(pair, axis, side, exponent=1):
        return Site(SiteKey("d", 0, "none", pair), 2, 1, (Leg("t", axis, grid, grid, side, "a", exponent=exponent),))

    sites = Sites("", "", None, (site("lora", 0, "left"), site("mlp", 1, "right", 2)))
    out = scalings(sites, {"d.0.none.lora": [3.0, 5.0], "d.0.none.mlp": [2.0, 1.0]}, "channel", {"t": (2, 2)})
    assert rescaled_rows(torch.ones(2, 2), out["t"]).tolist() == [[0.75, 3.0], [1.25, 5.0]]


def test_an_offset_is_added_before_and_taken_off_after():
    gains = torch.tensor([0.5, -0.25, 0.0, -1.0])  # 1.5, 0.75, 1, 0
    out = rescaled_rows(gains, Scaling({0: np.array([2.0, 4.0, 0.5, 3.0])}, 1.0))
    assert out.tolist() == [2.0, 2.0, -0.5, -1.0]


def test_a_gain_whose_offset_nearly_cancels_is_right_to_half_a_step_of_bf16():
    """(1 + 0.25) * 0.8000008 - 1 = 1e-6: in float32 that would be off by six hundredths of itself, fifteen steps."""
    out = rescaled_rows(torch.tensor([0.25], dtype=torch.bfloat16), Scaling({0: np.array([0.8 * (1 + 1e-6)])}, 1.0))
    assert out.item() == torch.tensor(1e-6, dtype=torch.bfloat16).item()


def test_16_bit_values_are_rounded_once_and_those_of_factor_1_keep_their_bits():
    """In bf16 1.0078125 * 1.5 = 1.51171875 lies halfway between 1.5078125 and 1.515625: to even."""
    x = torch.tensor([1.0078125, float("nan"), -0.0, float("inf")], dtype=torch.bfloat16)
    out = rescaled_rows(x, Scaling({0: np.array([1.5, 1.0, 2.0, 1.0])}))
    assert out[0] == 1.515625 and out.view(torch.int16)[1:].tolist() == x.view(torch.int16)[1:].tolist()
    with_offset = rescaled_rows(torch.tensor([2.0**-20], dtype=torch.bfloat16), Scaling({0: np.ones(1)}, 1.0))
    assert with_offset.item() == 2.0**-20  # 1 + 2^-20 - 1 would be 0 in bf16


def test_blocks_take_their_rows_of_the_factors():
    x = torch.arange(12.0).reshape(6, 2)
    scaling = Scaling({0: np.arange(1.0, 7.0), 1: np.array([1.0, 10.0])})
    whole = rescaled_rows(x, scaling)
    change = changes({"t": scaling})["t"]
    assert torch.equal(torch.cat([change(x[:4], 0), change(x[4:], 4)]), whole)
    assert whole[5].tolist() == [60.0, 660.0] and x[5].tolist() == [10.0, 11.0]


@pytest.mark.parametrize("octave", [-140, 140])
def test_a_factor_beyond_float32_is_applied_where_the_product_has_a_place(octave):
    x = torch.full((1, 1), 2.0 ** (-octave // 2), dtype=torch.bfloat16)
    assert rescaled_rows(x, Scaling({0: np.array([2.0**octave])})).item() == 2.0 ** (octave - octave // 2)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), octave=st.floats(-8, 8))
def test_a_product_is_never_further_than_half_a_step_of_its_dtype(dtype, offset, seed, octave):
    """Against exact rational arithmetic, plus what float64 itself loses, or float32, through which torch reaches 16
    bits.
    """
    from fractions import Fraction

    factor = 2.0**octave
    x = (0.3 * torch.randn(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)
    y = rescaled_rows(x, Scaling({0: np.full(16, factor)}, offset))
    info = torch.finfo(dtype)
    for old, new in zip(x.double().tolist(), y.double().tolist()):
        exact = (Fraction(old) + Fraction(offset)) * Fraction(factor) - Fraction(offset)
        step = max(2.0 ** (np.frexp(new)[1] - 1) * info.eps, info.tiny * info.eps)
        work = 2.0**-22 if dtype in DTYPES[2:] else 2.0**-51
        assert abs(Fraction(new) - exact) <= Fraction(step) / 2 + abs(exact + Fraction(offset)) * Fraction(
            2.0**-51
        ) + abs(exact) * Fraction(work)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), octave=st.integers(-20, 20))
def test_a_power_of_two_and_back_gives_the_very_bits(dtype, seed, octave):
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
    there = rescaled_rows(x, Scaling({0: np.full(64, 2.0**octave)}))
    assert torch.equal(rescaled_rows(there, Scaling({0: np.full(64, 2.0**-octave)})), x)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_stored_bytes_are_multiplied_to_the_same_bits_as_tensors(dtype, offset):
    """All 65,536 patterns of 16 bits, 200 octaves of the others; factors of every kind, among them ones and one that
    has no float32, along both axes.
    """
    of_torch, bits = TORCH_DTYPES[dtype], {2: torch.int16, 4: torch.int32, 8: torch.int64}
    generator = torch.Generator().manual_seed(0)
    if of_torch.itemsize == 2:
        block = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(of_torch).reshape(256, 256)
    else:
        octaves = torch.randint(-100, 100, (256, 256), generator=generator)
        block = torch.randn(256, 256, generator=generator, dtype=of_torch) * torch.exp2(octaves.to(of_torch))
    stored = block.view(torch.uint16).numpy() if of_torch.itemsize == 2 else block.numpy()
    draw = np.random.default_rng(0)
    powers, odd = np.exp2(draw.integers(-12, 12, 256).astype(float)), np.exp2(draw.uniform(-12, 12, 256))
    for factor in (powers, odd, np.full(256, 1e-40), np.ones(256)):
        factor[::7] = 1
        for axis in (0, 1):
            scaling = Scaling({axis: factor}, offset)
            expected = rescaled_rows(block, scaling)
            found = torch.from_numpy(rescaled_stored_rows(stored, dtype, scaling)).view(of_torch)
            number = ~expected.isnan()
            assert torch.equal(number, ~found.isnan())
            as_bits = bits[of_torch.itemsize]
            assert torch.equal(found.view(as_bits)[number], expected.view(as_bits)[number]), (axis, factor[1])
