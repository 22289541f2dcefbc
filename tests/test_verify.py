"""Verdicts on two checkpoints: right exports are explained value by value, and every small wrong is not, with its
name.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wisca_core.checkpoint import open_checkpoint
from wisca_core.checkpoint.writer import write_weights
from wisca_core.equivalence.verify import BIT_IDENTICAL, DIFFERENT, ROUNDING, _bounds, _simplest, verify
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options
from wisca_core.rescale import Scaling, changes, rescaled_rows, scalings

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def rescaled_copy(opened, to: Path, cell_factors, granularity="channel") -> Path:
    """The checkpoint with these factors, written by the writer the export uses."""
    to.mkdir()
    shapes = {t.name: t.shape for t in opened.checkpoint.tensors}
    write_weights(opened.checkpoint, changes(scalings(opened.sites, cell_factors, granularity, shapes)), to)
    shutil.copyfile(opened.checkpoint.path / "config.json", to / "config.json")
    return to


def octaves(opened, rng, whole=False, reach=3.0):
    """Generic factors of every channel cell, or powers of two."""

    def one(n):
        octave = rng.uniform(-reach, reach, n)
        return np.exp2(np.rint(octave) if whole else octave)

    return {site.name: one(site.n_cells("channel")) for site in opened.sites.sites}


def balanced(opened, **options):
    decision = decide(opened.patterns, Options(**options))
    cells = decision.cells
    return {s.name: decision.factor[cells.first[i] : cells.first[i + 1]] for i, s in enumerate(opened.sites.sites)}


@pytest.fixture(scope="module")
def gqa(small_model):
    return small_model("llama", torch.bfloat16, num_key_value_heads=8, attention_bias=True)


@pytest.fixture(scope="module")
def right(gqa, look, tmp_path_factory) -> Path:
    """A right, rounded export of it: generic factors in every channel cell."""
    return rescaled_copy(
        look(gqa), tmp_path_factory.mktemp("right") / "out", octaves(look(gqa), np.random.default_rng(0))
    )


def test_a_right_rounded_bf16_export_is_equivalent_up_to_rounding(gqa, right):
    found = verify(open_checkpoint(gqa), open_checkpoint(right))
    assert (found.verdict, found.exit_code) == (ROUNDING, 0)
    assert found.n_changed == 2 * 7  # q k v o and three biases in two layers
    assert found.proof.passed and found.check.control_max_rel > 0 and not found.check.bit_identical
    assert 1 / 9 < found.smallest < 1 < found.largest < 9 and not found.powers_of_two
    assert "14 of" in found.reasons[0] and "rounded at random" in found.reasons[1]
    assert found.to_json()["verdict"] == ROUNDING


@pytest.mark.parametrize("granularity", ["tensor", "group", "channel"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_right_exports_of_every_dtype_and_granularity_are_explained(dtype, granularity, small_model, look, tmp_path):
    opened = look(small_model("qwen2", dtype, num_key_value_heads=8))
    out = rescaled_copy(opened, tmp_path / "out", balanced(opened, granularity=granularity), granularity)
    found = verify(opened.checkpoint, open_checkpoint(out), run_models=False)
    assert found.verdict == ROUNDING, found.reasons
    assert found.not_checked[-1] == "outputs of the models: not asked for"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gains_stored_as_one_plus_w_are_explained(dtype, small_model, look, tmp_path):
    opened = look(small_model("gemma3_text", dtype))
    for n, seed in enumerate(range(6)):
        factors = octaves(opened, np.random.default_rng(seed), reach=0.4)  # near 1: 1 + w nearly cancels
        out = rescaled_copy(opened, tmp_path / f"out{n}", factors)
        found = verify(opened.checkpoint, open_checkpoint(out), run_models=False)
        assert found.verdict == ROUNDING, found.reasons


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_powers_of_two_are_bit_identical(dtype, small_model, look, tmp_path):
    opened = look(small_model("llama", dtype, num_key_value_heads=8))
    out = rescaled_copy(opened, tmp_path / "out", octaves(opened, np.random.default_rng(1), whole=True))
    found = verify(opened.checkpoint, open_checkpoint(out))
    assert (found.verdict, found.exit_code) == (BIT_IDENTICAL, 0), found.reasons
    assert found.powers_of_two and found.check.bit_identical and found.check.n_equal == found.check.n_values > 10_000
    assert {found.smallest, found.largest} == {0.125, 8.0}


def test_an_identical_copy_is_bit_identical_without_a_run(gqa, edited):
    found = verify(open_checkpoint(gqa), open_checkpoint(edited(gqa)))
    assert (found.verdict, found.n_changed, found.n_factors) == (BIT_IDENTICAL, 0, 0)
    assert found.reasons == ("every tensor is bit-equal.",) and found.proof is None


def test_an_identical_copy_in_another_layout_is_bit_identical(gqa, tmp_path):
    """Order in the file and metadata are no part of the function."""
    shutil.copytree(gqa, tmp_path / "out")
    tensors = load_file(gqa / "model.safetensors")
    save_file(
        dict(reversed(tensors.items())),
        tmp_path / "out" / "model.safetensors",
        metadata={"format": "pt", "note": "moved"},
    )
    assert verify(open_checkpoint(gqa), open_checkpoint(tmp_path / "out")).verdict == BIT_IDENTICAL


Q, K, O = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qko")


def scale_part(name, part, factor):
    def change(tensors):
        tensors[name][part] = (tensors[name][part].float() * factor).to(tensors[name].dtype)

    return change


def set_value(name, at, value):
    def change(tensors):
        tensors[name].view(-1)[at] = value

    return change


def flip_row(tensors):
    tensors[K][3] *= -1


def swap_rows(tensors):
    tensors[Q][[0, 1]] = tensors[Q][[1, 0]]


WRONG = {
    "one matrix 1 % too large": (scale_part(Q, slice(None), 1.01), r"layers\.1\.self_attn\.q_proj\.weight"),
    "one channel 1 % off": (scale_part(K, slice(5, 6), 1.01), r"layers\.1\.self_attn\.k_proj\.weight"),
    "one input column of Wo 1 % off": (
        scale_part(O, (slice(None), slice(7, 8)), 0.99),
        r"layers\.1\.self_attn\.o_proj\.weight",
    ),
    "a row's sign flipped": (flip_row, r"layers\.1\.self_attn\.k_proj\.weight.*sign"),
    "two rows swapped": (swap_rows, r"layers\.1\.self_attn\.q_proj\.weight"),
    "one value zeroed": (set_value(O, 77, 0.0), r"layers\.1\.self_attn\.o_proj\.weight"),
    "one value NaN": (set_value(O, 77, float("nan")), r"layers\.1\.self_attn\.o_proj\.weight"),
    "one value infinite": (set_value(Q, 0, float("inf")), r"layers\.1\.self_attn\.q_proj\.weight"),
    "a bias left behind": (
        scale_part("model.layers.0.self_attn.v_proj.bias", slice(None), 1.5),
        r"layers\.0\.self_attn\.v_proj",
    ),
    "an embedding row changed": (
        scale_part("model.embed_tokens.weight", slice(9, 10), 1.01),
        r"embed_tokens\.weight differs",
    ),
    "one side of an MLP changed": (
        scale_part("model.layers.0.mlp.up_proj.weight", slice(None), 1.01),
        r"decoder\.0\.none\.mlp: no single factor explains both sides",
    ),
    "the gate of an MLP changed": (
        scale_part("model.layers.0.mlp.gate_proj.weight", slice(None), 1.01),
        r"mlp\.gate_proj\.weight differs",
    ),
    "the output bias scaled": (
        scale_part("model.layers.0.self_attn.o_proj.bias", slice(None), 2.0),
        r"o_proj\.bias differs",
    ),
    "a tensor missing": (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is only in the first"),
    "a tensor more": (lambda t: t.update(extra=torch.ones(3)), r"extra is only in the second"),
    "another dtype": (
        lambda t: t.update({Q: t[Q].float()}),
        r"1 of \d+ tensors are BF16 in the first and F32 in the second \(.*q_proj\.weight\)",
    ),
    "another shape": (lambda t: t.update({Q: t[Q][:-1]}), r"q_proj\.weight is BF16"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_small_wrong_in_a_right_export_is_not_equivalent_and_named(name, gqa, right, edited):
    change, words = WRONG[name]
    found = verify(open_checkpoint(gqa), open_checkpoint(edited(right, change)))
    assert (found.verdict, found.exit_code) == (DIFFERENT, 1)
    assert any(re.search(words, reason) for reason in found.reasons), found.reasons


@pytest.mark.parametrize("start", ["original", "export"])
def test_another_config_is_not_equivalent_even_with_right_weights(start, gqa, right, edited):
    def config(written):
        written["rope_parameters"]["rope_theta"] = 5e5

    found = verify(open_checkpoint(gqa), open_checkpoint(edited(gqa if start == "original" else right, config=config)))
    assert found.verdict == DIFFERENT and "config.json differs" in found.reasons[0]


def test_names_and_versions_in_config_do_not_matter(gqa, right, edited):
    def config(written):
        written |= {"_name_or_path": "elsewhere", "transformers_version": "9"}

    assert (
        verify(open_checkpoint(gqa), open_checkpoint(edited(right, config=config)), run_models=False).verdict
        == ROUNDING
    )


def test_weights_that_were_nan_before_and_are_left_alone_are_no_fault(gqa, look, edited, tmp_path):
    head = "model.layers.0.self_attn.k_proj.weight"
    sick = look(edited(gqa, set_value(head, 0, float("nan")), name="sick"))
    factors = balanced(sick, granularity="group")
    assert factors["decoder.0.self.qk"][0] == 1 != factors["decoder.0.self.qk"][1]
    out = rescaled_copy(sick, tmp_path / "out", factors, "group")
    assert verify(sick.checkpoint, open_checkpoint(out), run_models=False).verdict == ROUNDING
    worse = edited(out, set_value(head, 1, float("nan")), name="worse")
    found = verify(sick.checkpoint, open_checkpoint(worse), run_models=False)
    assert found.verdict == DIFFERENT and head in found.reasons[0]


def test_a_rescale_under_a_norm_that_absorbs_it_is_not_equivalent(small_model, edited):
    """In float32 its outputs look the same as those of a right one."""
    folder = small_model("qwen3", torch.float32)
    changed = edited(folder, lambda t: t.update({Q: t[Q] * 2}))
    found = verify(open_checkpoint(folder), open_checkpoint(changed))
    assert found.verdict == DIFFERENT and found.reasons == (f"{Q} differs and is in no pair that may be rescaled.",)


def test_a_tied_head_that_was_changed_on_the_way_to_safetensors_is_seen(tmp_path, small_model):
    """The torch file says that two names share a storage; a safetensors file may hold the second name with other
    values.
    """
    tensors = load_file(small_model("llama", torch.float32) / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for name in ("bin", "same", "other"):
        (tmp_path / name).mkdir()
        shutil.copyfile(small_model("llama", torch.float32) / "config.json", tmp_path / name / "config.json")
    torch.save(tensors, tmp_path / "bin" / "pytorch_model.bin")
    copied = {name: t.clone() for name, t in tensors.items()}
    save_file(copied, tmp_path / "same" / "model.safetensors", metadata={"format": "pt"})
    before = open_checkpoint(tmp_path / "bin")
    assert verify(before, open_checkpoint(tmp_path / "same")).verdict == BIT_IDENTICAL
    for name in before.aliases[0]:  # the name that is no tensor of its own in the torch file, and the one that is
        other = copied | {name: copied[name] + 1}
        save_file(other, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
        found = verify(before, open_checkpoint(tmp_path / "other"))
        assert found.verdict == DIFFERENT and found.reasons == (
            f"{name} differs and is in no pair that may be rescaled.",
        )


# ---- one value: which factors explain it


def neighbour(value: torch.Tensor, steps: int) -> torch.Tensor:
    """The value that many representable numbers further from zero."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    return (value.view(kind) + steps).view(value.dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), octave=st.floats(-12, 12), spread=st.sampled_from([1e-3, 0.02, 1.0, 300.0]))
def test_a_value_times_its_factor_rounded_is_always_explained_by_that_factor(dtype, offset, seed, octave, spread):
    factor = 2.0**octave
    x = (spread * torch.randn(64, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)
    y = rescaled_rows(x, Scaling({0: np.full(64, factor)}, offset))
    low, high, bad = _bounds(x, y, offset)
    finite = y.isfinite()
    assert ((low <= factor) & (factor <= high))[finite].all() and not bad[finite].any() and bad[~finite].all()


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), octave=st.floats(-4, 4), up=st.booleans())
def test_a_value_three_steps_off_is_never_explained_by_the_factor(dtype, seed, octave, up):
    """One step beyond the bound and one for the rounding of a right value itself."""
    factor = 2.0**octave
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = (x.sign() * (0.1 + x.abs())).to(dtype)
    y = rescaled_rows(x, Scaling({0: np.full(64, factor)}))
    low, high, bad = _bounds(x, neighbour(y, 3 if up else -3), 0.0)
    assert (bad | (low > factor) | (high < factor)).all()


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), octave=st.floats(-4, 4), at=st.integers(0, 255), steps=st.sampled_from([-4, 4]))
def test_one_value_four_steps_off_among_256_leaves_no_factor(dtype, seed, octave, at, steps):
    """Within one unit of every value the others pin the factor to less than a unit; four steps are two at the least."""
    x = torch.randn(256, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = (x.sign() * (0.1 + x.abs())).to(dtype)
    y = rescaled_rows(x, Scaling({0: np.full(256, 2.0**octave)}))
    low, high, bad = _bounds(x, y, 0.0)
    assert low.amax() <= 2.0**octave <= high.amin() and not bad.any()
    y[at] = neighbour(y[at], steps)
    low, high, bad = _bounds(x, y, 0.0)
    assert bad.any() or low.amax() > high.amin()


def test_bounds_by_hand():
    """bf16 has 8 significant bits: at 3 the step is 2^-6, so y = 3 from x = 2 allows 1.5 within 2^-7."""
    x, y = (torch.tensor([[v]], dtype=torch.bfloat16) for v in (2.0, 3.0))
    low, high, bad = _bounds(x, y, 0.0)
    assert abs(low.item() - (3 - 2**-6) / 2) < 1e-15 and abs(high.item() - (3 + 2**-6) / 2) < 1e-15 and not bad.item()
    # an offset of 1: stored 0.5 (gain 1.5) to stored 2 (gain 3); the step at 2 is 2^-6
    low, high, _ = _bounds(torch.tensor([[0.5]]).bfloat16(), torch.tensor([[2.0]]).bfloat16(), 1.0)
    assert abs(low.item() - (3 - 2**-6) / 1.5) < 1e-14 and abs(high.item() - (3 + 2**-6) / 1.5) < 1e-14
    zero, one, nan = (torch.tensor([[v]]).bfloat16() for v in (0.0, 1.0, float("nan")))
    cases = {
        "zero stays": (zero, zero, False),
        "zero grows": (zero, one, True),
        "sign": (one, -one, True),
        "nan stays": (nan, nan, False),
        "nan comes": (one, nan, True),
        "nan goes": (nan, one, True),
    }
    for name, (before, after, is_bad) in cases.items():
        assert _bounds(before, after, 0.0)[2].item() is is_bad, name
    low, high, _ = _bounds(zero, zero, 0.0)
    assert (low.item(), high.item()) == (0.0, float("inf"))


def test_the_simplest_factor_of_an_interval():
    low = np.array([0.9, 1.9, 2.9, 0.0, 0.1, 4.0, 0.4])
    high = np.array([1.1, 2.2, 3.1, np.inf, np.inf, np.inf, 0.6])
    expected = [1.0, 2.0, (2.9 * 3.1) ** 0.5, 1.0, 1.0, 4.0, 0.5]
    assert np.allclose(_simplest(low, high), expected, rtol=1e-15, atol=0)
