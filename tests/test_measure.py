"""The table of channels against sums worked out by hand and in float64, for every dtype, axis and layout."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import TensorInfo, open_checkpoint
from wisca_core.errors import Cancelled, CheckpointChanged
from wisca_core.patterns import measure as module
from wisca_core.patterns.measure import measure
from wisca_core.patterns.store import cached_patterns, measured_patterns, n_bytes_to_read
from wisca_core.patterns.summary import PairSummary, layer_ratios, sentence, summaries
from wisca_core.patterns.table import LOST_BITS, Patterns, header_digest, norm
from wisca_core.planning.decide import decide
from wisca_core.planning.head import head_detail
from wisca_core.planning.options import Options
from wisca_core.words import times

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def one_head(tmp_path, q, k=None, dtype=torch.float32):
    """A Llama of one layer with one head of 2 channels on a width of 4; q and k as given, v and o of ones."""
    config = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 2, "hidden_size": 4}
    layer = "model.layers.0.self_attn."
    ones = torch.ones(2, 4)
    tensors = {"q": q, "k": ones if k is None else k, "v": ones, "o": torch.ones(4, 2)}
    tmp_path.mkdir(exist_ok=True)
    save_file(
        {f"{layer}{n}_proj.weight": t.to(dtype).clone() for n, t in tensors.items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    return checkpoint, find_sites(checkpoint)


def rows_of(patterns, role):
    legs = patterns.legs
    leg = legs[(legs["role"] == role) & legs["measured"]].iloc[0]
    return {name: column[leg["first"] : leg["stop"]] for name, column in patterns.rows.items()}


def test_a_channel_by_hand(tmp_path):
    q = torch.tensor([[1.0, -2.0, 0.0, 4.0], [0.5, 0.5, -0.5, -0.5]])
    patterns = measure(*one_head(tmp_path, q))
    rows = rows_of(patterns, "q")
    assert rows["l1"].tolist() == [7, 2] and rows["l2_sq"].tolist() == [21, 1] and rows["max"].tolist() == [4, 0.5]
    assert rows["min_abs"].tolist() == [1, 0.5] and rows["n_zero"].tolist() == [1, 0] and rows["n"].tolist() == [4, 4]
    assert rows["n_nonfinite"].tolist() == [0, 0] and rows["index"].tolist() == [0, 1] == rows["channel"].tolist()
    o = rows_of(patterns, "o")
    assert o["l1"].tolist() == [4, 4] and o["n"].tolist() == [4, 4]
    stats = {"n": 8.0, "l1": 9.0, "l2_sq": 22.0, "max": 4.0}
    assert [float(norm(name, stats)) for name in ("l1", "l2", "max", "rms", "mean")] == [
        9,
        22**0.5,
        4,
        (22 / 8) ** 0.5,
        9 / 8,
    ]
    assert float(norm("l2", stats, 2.0)) == 2 * 22**0.5


def test_zeros_and_values_that_are_not_finite_are_counted_and_never_repaired(tmp_path):
    nan, inf = float("nan"), float("inf")
    rows = rows_of(measure(*one_head(tmp_path, torch.tensor([[nan, 1.0, 0.0, -inf], [0.0, 0.0, -0.0, 0.0]]))), "q")
    assert rows["n_nonfinite"].tolist() == [2, 0] and rows["n_zero"].tolist() == [1, 4]
    assert not np.isfinite(rows["l1"][0]) and rows["l1"][1] == 0 == rows["max"][1]
    assert rows["min_abs"][0] == 1 and np.isinf(rows["min_abs"][1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_values_are_exact(dtype, tmp_path):
    """Squares of these leave float32 on both sides; subnormal numbers are numbers."""
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps
    big = 2.0**100 if info.max > 1e38 else 32768.0
    small = 2.0**-100 if info.max > 1e38 else 2.0**-20
    q = torch.tensor([[big, -big, big, big], [small, small, -small, smallest]], dtype=torch.float64)
    rows = rows_of(measure(*one_head(tmp_path, q, dtype=dtype)), "q")
    assert rows["l1"].tolist() == [4 * big, 3 * small + smallest] and rows["max"].tolist() == [big, small]
    assert rows["l2_sq"].tolist() == [4 * big**2, 3 * small**2 + smallest**2] and rows["min_abs"].tolist() == [
        big,
        smallest,
    ]
    assert rows["n_zero"].tolist() == [0, 0]


LAYOUTS = {
    "gqa": ("llama", {"num_key_value_heads": 8, "attention_bias": True}),
    "conv1d": ("gpt2", {}),
    "fused by head": ("gpt_neox", {}),
    "fused groups": ("phi3", {"num_key_value_heads": 8}),
    "gains": ("qwen3", {}),
    "1 + w": ("gemma3_text", {}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_equals_float64_arithmetic_on_the_tensor(layout, dtype, small_model):
    model_type, changes = LAYOUTS[layout]
    folder = small_model(model_type, dtype, **changes)
    checkpoint = open_checkpoint(folder)
    sites = find_sites(checkpoint)
    patterns = measure(checkpoint, sites)
    tensors = load_file(folder / "model.safetensors")
    n_rows = 0
    for _, leg_row in patterns.legs.iterrows():
        leg = sites.sites[leg_row["site"]].legs[leg_row["leg"]]
        span = slice(leg_row["first"], leg_row["stop"])
        w = (tensors[leg.tensor].double() + leg.offset).abs().movedim(leg.axis, 0)
        w = w.reshape(len(w), -1)[torch.from_numpy(leg.index.indices().copy())]
        rows = {name: column[span] for name, column in patterns.rows.items()}
        for name, expected in {"l1": w.sum(1), "l2_sq": (w * w).sum(1), "max": w.amax(1), "min_abs": w.amin(1)}.items():
            assert np.allclose(rows[name], expected.numpy(), rtol=1e-6 if dtype in DTYPES[2:] else 1e-13, atol=0), (
                leg.tensor,
                name,
            )
        assert (
            (rows["n"] == w.shape[1]).all()
            and (rows["group"] == leg.groups()).all()
            and (rows["head"] == leg.heads()).all()
        )
        n_rows += len(w)
    assert (
        n_rows == len(patterns.rows["l1"])
        and {leg.tensor for s in sites.sites for leg in s.legs} == patterns.digests.keys()
    )


def test_bf16_is_never_accumulated_in_bf16(tmp_path):
    """100,000 weights of spread 0.02: torch's own sum in bf16 is off by over a thousandth, this table by less than a
    millionth.
    """
    w = (0.02 * torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))).bfloat16()
    config = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 2,
        "hidden_size": 50_000,
    }
    layer = "model.layers.0.self_attn."
    save_file(
        {f"{layer}{n}_proj.weight": w.clone() for n in "qkv"} | {f"{layer}o_proj.weight": w.T.contiguous()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    patterns = measure(checkpoint, find_sites(checkpoint))
    exact = [float(sum(Fraction(v) for v in row.abs().double().tolist())) for row in w]
    for role in "qkvo":  # o in blocks along the other axis
        assert np.allclose(rows_of(patterns, role)["l1"], exact, rtol=1e-6, atol=0)
    running = torch.zeros((), dtype=torch.bfloat16)
    for part in w[0].abs().reshape(-1, 100):
        running += part.sum()
    assert abs(float(running) / exact[0] - 1) > 1e-3


def test_many_small_blocks_give_the_same_table_as_one(small_model, monkeypatch):
    folder = small_model("gpt2", torch.float16)
    checkpoint = open_checkpoint(folder)
    sites = find_sites(checkpoint)
    one = measure(checkpoint, sites)
    monkeypatch.setattr(module, "BLOCK", 50)
    monkeypatch.setattr(module, "_ROWS", 3)
    many = measure(checkpoint, sites)
    for name, column in one.rows.items():
        assert np.allclose(column, many.rows[name], rtol=1e-6, atol=0), name
    assert one.digests == many.digests


# kept axes: lines of a matrix, of one too narrow for the fast way, of odd width, experts along each axis, gains
SHAPES = [
    ((300, 512), (0,)),
    ((300, 512), (1,)),
    ((700, 130), (1,)),
    ((40, 6), (0,)),
    ((40, 6), (1,)),
    ((33, 257), (0,)),
    ((33, 257), (1,)),
    ((3, 300, 128), (0, 1)),
    ((3, 300, 128), (0, 2)),
    ((3, 300, 128), (1, 2)),
    ((3, 300, 128), (1,)),
    ((8, 64), (0, 1)),
    ((1000,), (0,)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, axes", SHAPES, ids=str)
def test_blocks_with_zeros_tiny_huge_and_broken_values_equal_float64(shape, axes, dtype, monkeypatch):
    """Along any axes: pruned weights, dead lines, lines that float32 squares lose, an infinity, a NaN; block by
    block.
    """
    generator = torch.Generator().manual_seed(7)
    w = 0.02 * torch.randn(shape, generator=generator, dtype=torch.float64)
    w[torch.rand(shape, generator=generator) < 0.3] = 0
    w[torch.rand(shape, generator=generator) < 0.1] *= 1e-5  # subnormal in F16
    first = w.movedim(axes[-1], 0)
    first[1] = 0
    first[2] *= 1e-3 if dtype == torch.float16 else 1e-18
    first[3] *= 1e5 if dtype == torch.float16 else 1e18
    w = w.to(dtype)
    w.reshape(-1)[-1], w.reshape(-1)[-w.shape[-1] // 2] = float("inf"), float("nan")
    name = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    info = TensorInfo("w", name, shape, "", 0, w.nbytes)
    over = tuple(d for d in range(len(shape)) if d not in axes)
    wide = w.double().abs().permute(*axes, *over).reshape(math.prod(shape[d] for d in axes), -1)
    finite = wide.isfinite()
    expected = {
        "n": torch.full((len(wide),), wide.shape[1]),
        "l1": wide.sum(1),
        "l2_sq": (wide * wide).sum(1),
        "max": wide.amax(1),
        "min_abs": wide.masked_fill(~finite | (wide == 0), torch.inf).amin(1),
        "n_zero": (wide == 0).sum(1),
        "n_nonfinite": (~finite).sum(1),
    }
    for block in (1 << 17, 1000):
        monkeypatch.setattr(module, "BLOCK", block)
        stats = module._AxisStats(info, axes, 0.0, module._Buffers())
        data = w.contiguous().view(torch.uint8).numpy().reshape(-1)
        rows = max(1, block // stats.width) * stats.width
        for start in range(0, w.numel(), rows):
            stats.add(start, memoryview(data)[start * w.itemsize : (start + rows) * w.itemsize])
        found = stats.finish()
        for column, of_wide in expected.items():
            assert np.allclose(found[column], of_wide.numpy(), rtol=1e-6, atol=0, equal_nan=True), column
        assert sum(found["n_nonfinite"]) == 2 and sum(found["n_zero"]) == (w == 0).sum()


@pytest.mark.parametrize("value", (0.0119, 0.3331, 7.77))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("axis", (0, 1))
def test_sums_of_equal_values_equal_float64(axis, dtype, value):
    """Ternary weights and gains at their start: the roundings of a running float32 sum all go one way, none cancels."""
    w = torch.full((2048, 4096), value, dtype=dtype)
    w[::3] *= -1
    info = TensorInfo("w", {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype], tuple(w.shape), "", 0, w.nbytes)
    stats = module._AxisStats(info, (axis,), 0.0, module._Buffers())
    data = memoryview(w.view(torch.uint8).numpy().reshape(-1))
    for start in range(0, w.numel(), module.BLOCK):
        stats.add(start, data[start * w.itemsize : (start + module.BLOCK) * w.itemsize])
    found, wide = stats.finish(), w.double()
    assert np.allclose(found["l1"], wide.abs().sum(1 - axis).numpy(), rtol=1e-6, atol=0)
    assert np.allclose(found["l2_sq"], (wide * wide).sum(1 - axis).numpy(), rtol=1e-6, atol=0)


# ---- bits that F16 loses


def test_the_bits_lost_by_every_f16_pattern_equal_brute_force(tmp_path):
    """All 65,536 bit patterns: halved k times and back, is it the same value?"""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    matrix = patterns.view(256, 256)
    info = TensorInfo("w", "F16", (256, 256), "", 0, 131072)
    for axis in (0, 1):
        stats = module._AxisStats(info, (axis,), 0.0, module._Buffers())
        for start in range(0, 256, 100):
            rows = matrix[start : start + 100]
            stats.add(256 * start, memoryview(rows.view(torch.uint8).numpy().reshape(-1)))
        lost = stats.finish()["lost"]
        for k in range(1, LOST_BITS + 1):
            halved = (matrix.double() * 2.0**-k).half()
            changed = matrix.isfinite() & (halved.double() * 2.0**k != matrix.double())
            assert lost[:, k - 1].tolist() == changed.sum(1 - axis).tolist()


# ---- digests and the kept table


def test_a_digest_changes_exactly_when_a_byte_does(small_model, edited):
    folder = small_model("llama", torch.bfloat16)
    checkpoint = open_checkpoint(folder)
    sites = find_sites(checkpoint)
    first = measure(checkpoint, sites)
    name = "model.layers.1.self_attn.k_proj.weight"

    def flip(tensors):
        tensors[name].view(torch.int16).view(-1)[-1] ^= 1

    def flip_elsewhere(tensors):
        tensors["model.norm.weight"].view(torch.int16)[0] ^= 1

    again = measure(open_checkpoint(edited(folder, name="same")), sites)
    assert dict(again.digests) == dict(first.digests) and again.header == first.header
    touched = list(first.digests)
    assert again.fingerprint(touched) == first.fingerprint(list(reversed(touched)))
    other = measure(open_checkpoint(edited(folder, flip, name="other")), sites)
    assert {n for n in first.digests if first.digests[n] != other.digests[n]} == {name}
    assert other.fingerprint([name]) != first.fingerprint([name]) and other.fingerprint(
        ["model.layers.0.self_attn.k_proj.weight"]
    ) == first.fingerprint(["model.layers.0.self_attn.k_proj.weight"])
    elsewhere = measure(open_checkpoint(edited(folder, flip_elsewhere, name="elsewhere")), sites)
    assert dict(elsewhere.digests) == dict(first.digests)
    renamed = open_checkpoint(
        edited(folder, lambda t: t.update({"model.norm2.weight": t.pop("model.norm.weight")}), name="renamed")
    )
    assert header_digest(renamed) != first.header


def same_table(a: Patterns, b: Patterns) -> bool:
    return (
        all(np.array_equal(a.rows[n], b.rows[n], equal_nan=True) for n in a.rows)
        and a.rows.keys() == b.rows.keys()
        and dict(a.digests) == dict(b.digests)
        and (a.header, dict(a.dtypes)) == (b.header, dict(b.dtypes))
    )


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "measurements"


def test_a_checkpoint_is_read_once_and_again_when_its_files_change(own_home, small_model, edited, monkeypatch):
    folder = edited(small_model("llama", torch.float16))
    checkpoint = open_checkpoint(folder)
    sites = find_sites(checkpoint)
    assert cached_patterns(checkpoint, sites) is None
    first = measured_patterns(checkpoint, sites)
    with monkeypatch.context() as patch:
        patch.setattr("wisca_core.patterns.measure.measure", lambda *_: pytest.fail("read twice"))
        assert same_table(measured_patterns(open_checkpoint(folder), sites), first) and "lost" in first.rows
    import os

    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert cached_patterns(open_checkpoint(folder), sites) is None
    assert n_bytes_to_read(checkpoint, sites) == sum(checkpoint.by_name[n].n_bytes for n in first.digests)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other zip", "pickle"])
def test_a_damaged_kept_table_is_measured_again(damage, own_home, small_model):
    checkpoint = open_checkpoint(small_model("opt", torch.float32))
    sites = find_sites(checkpoint)
    first = measured_patterns(checkpoint, sites)
    (path,) = own_home.glob("*.npz")
    data = path.read_bytes()
    if damage == "other zip":
        with path.open("wb") as file:
            np.savez(file, words=np.frombuffer(b'["a list"]', np.uint8))
    elif damage == "pickle":
        with path.open("wb") as file:
            np.savez(file, words=np.array([{"an": "object"}], dtype=object))
    else:
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello"}[damage])
    assert cached_patterns(checkpoint, sites) is None
    assert same_table(measured_patterns(checkpoint, sites), first) and same_table(
        cached_patterns(checkpoint, sites), first
    )


def test_a_pass_can_be_cancelled_and_sees_a_file_that_changes(own_home, small_model, edited):
    folder = edited(small_model("llama", torch.float32))
    checkpoint = open_checkpoint(folder)
    sites = find_sites(checkpoint)
    seen = []

    def cancel(step, done, total):
        seen.append((done, total))
        if done:
            raise Cancelled("enough")

    threads = torch.get_num_threads()
    with pytest.raises(Cancelled):
        measured_patterns(checkpoint, sites, cancel)
    assert len(seen) == 2 and torch.get_num_threads() == threads and not list(own_home.glob("*"))

    def touch(step, done, total):
        (folder / "model.safetensors").touch()

    with pytest.raises(CheckpointChanged):
        measured_patterns(checkpoint, sites, touch)
    assert not list(own_home.glob("*"))


def test_a_model_without_sites_has_an_empty_table_and_every_view_of_it_works(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "foo"}')
    checkpoint = open_checkpoint(tmp_path)
    patterns = measure(checkpoint, find_sites(checkpoint))
    decision = decide(patterns, Options())
    assert (
        len(patterns.legs) == 0 and decision.n_changed == 0 and decision.refusals == () and len(decision.groups()) == 0
    )
    assert len(decision.heads()) == 0 and decision.effects["values"] == 0 and decision.row_factor.shape == (0,)
    assert patterns.fingerprint([]) and decision.bit_identical and summaries(decision.groups(), "l1") == {}


# ---- words and one head


def test_the_summary_by_hand(tmp_path):
    """Q sums to 8 and K to 2: four times heavier in the only layer, none of it size; V and O are level."""
    checkpoint, sites = one_head(tmp_path, torch.ones(2, 4), torch.full((2, 4), 0.25))
    groups = decide(measure(checkpoint, sites), Options()).groups()
    found = summaries(groups, "l1")
    assert (found["qk"].heavier, found["qk"].ratio, found["qk"].size, found["qk"].ratio_after) == ("query", 4, 1, 1)
    assert (found["qk"].n_cells, found["qk"].within_2x, found["qk"].within_2x_after) == (1, 0, 1)
    assert found["vo"].heavier == "" and "level in the median layer" in sentence(found["vo"])
    assert sentence(found["qk"]) == "The query side is 4.0× heavier in the median layer."
    assert layer_ratios(groups, "l1")["log2_ratio"].tolist() == [2, 0]
    assert (times(1.234), times(12.34), times(1234.5)) == ("1.23×", "12.3×", "1,234×")


def summary(
    heavier: str, ratio: float, size_heavier: str, size: float, rest_heavier: str, rest: float, pair: str = "qk"
) -> PairSummary:
    return PairSummary(
        pair, "decoder.self", "", heavier, ratio, size, size_heavier, rest, rest_heavier, 1.0, "", 4, 4, 4, 4, 0
    )


def test_a_balanced_model_is_called_level_and_no_part_is_larger_than_its_whole():
    level = summary("query", 1.01, "query", 8.0, "key", 7.9)
    assert sentence(level) == (
        "Query and key are level in the median layer (query 1.01×): size alone would make the query side 8.0× heavier, "
        "but the entries of the key side are 7.9× larger."
    )
    assert (
        not level.size_is_part
        and sentence(summary("", 1.0, "", 1.0, "", 1.0)) == "Query and key are level in the median layer."
    )
    assert (
        sentence(summary("A", 1.05, "", 1.0, "A", 1.05, "lora"))
        == "A and B are level in the median adapted layer (A 1.05×)."
    )
    # 4.0 of 3.9 is no part of it
    more = summary("output", 3.9, "output", 4.0, "value", 1.03, "vo")
    assert (
        sentence(more)
        == "The output side is 3.9× heavier in the median layer; size alone would make it 4.0×, and the rest leans "
        "1.03× to the value side."
    )
    part = summary("query", 4.3, "query", 4.0, "query", 1.08)
    assert (
        part.size_is_part
        and sentence(part) == "The query side is 4.3× heavier in the median layer; 4.0× of that is size, 1.08× is not."
    )


def test_size_is_told_from_the_rest(small_model, look):
    """Three query heads a KV head with the same spread: the whole of an L1 ratio of three is size, and of an L2 its
    root.
    """
    groups = decide(look(small_model("llama", num_key_value_heads=8)).patterns, Options()).groups()
    s = summaries(groups, "l1")["qk"]
    assert (
        s.size == pytest.approx(3)
        and s.size_heavier == "query"
        and s.ratio == pytest.approx(3, rel=0.1)
        and s.rest < 1.1
    )
    l2 = decide(look(small_model("llama", num_key_value_heads=8)).patterns, Options(norm="l2")).groups()
    assert summaries(l2, "l2")["qk"].size == pytest.approx(3**0.5)


@pytest.mark.parametrize(
    "model_type, site, group",
    [
        ("llama", "decoder.1.self.qk", 1),
        ("gpt2", "decoder.0.self.vo", 2),
        ("phi3", "decoder.0.self.vo", 0),
        ("gemma3_text", "decoder.1.self.qk", 0),
    ],
)
def test_the_detail_of_a_head_equals_the_table_and_the_factors(model_type, site, group, small_model, look):
    opened = look(
        small_model(
            model_type,
            torch.float32,
            **({} if model_type == "gpt2" else {"num_key_value_heads": 2, "num_attention_heads": 4}),
        )
    )
    decision = decide(opened.patterns, Options(granularity="channel"))
    detail = head_detail(opened.checkpoint, decision, site, group)
    table = decision.groups()
    row = table[(table["name"] == site) & (table["group"] == group)].iloc[0]
    left, right = detail.roles
    assert [left.l1[0], right.l1[0]] == pytest.approx([row["left"], row["right"]], rel=1e-9)
    assert [left.l1[1], right.l1[1]] == pytest.approx([row["left_after"], row["right_after"]], rel=1e-9)
    assert left.percent.sum() == pytest.approx(100) == right.percent_after.sum()
    assert left.channel_l1.sum() == pytest.approx(left.l1[0]) and right.channel_l1_after.sum() == pytest.approx(
        right.l1[1]
    )
    if detail.spectrum:
        product = detail.spectrum["product"]
        assert len(product) == len(detail.spectrum["left"]) and product[0] > 0
    else:
        assert "gains" in detail.spectrum_note
    if site.endswith("qk"):
        assert np.allclose(left.channel_l1_after, right.channel_l1_after, rtol=1e-9)  # balanced in every rotary pair
        width, theta = opened.sites[site].rotary[1:]
        assert detail.turns[0] == pytest.approx(2 * np.pi) and detail.turns[1] == pytest.approx(
            2 * np.pi * theta ** (2 / width)
        )
    with pytest.raises(IndexError):
        head_detail(opened.checkpoint, decision, site, 99)


def test_the_singular_values_of_the_product_by_hand(tmp_path):
    """q rows 3 e0 and e1, k rows 2 e0 and 5 e2: q^T k has the singular values 6 and 5."""
    q = torch.tensor([[3.0, 0, 0, 0], [0, 1.0, 0, 0]])
    k = torch.tensor([[2.0, 0, 0, 0], [0, 0, 5.0, 0]])
    checkpoint, sites = one_head(tmp_path, q, k)
    detail = head_detail(
        checkpoint, decide(measure(checkpoint, sites), Options(granularity="channel")), "decoder.0.self.qk", 0
    )
    assert np.allclose(detail.spectrum["product"], [6, 5]) and np.allclose(detail.spectrum["left"], [3, 1])
    # one rotary pair of both channels: s = (7 / 4) ** 0.5 on the left
    assert np.allclose(detail.spectrum["left_after"], np.array([3, 1]) * (7 / 4) ** 0.5)
    assert np.allclose(detail.spectrum["right_after"], np.array([5, 2]) / (7 / 4) ** 0.5)
