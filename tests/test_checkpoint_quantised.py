"""Quantised checkpoints: looked at as their scales unpack them, never rescaled. The packing is written here a second
time, value by value, and the weights are known before they are packed.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import Reader, open_checkpoint
from wisca_core.cli import main
from wisca_core.equivalence.miniature import build_miniature
from wisca_core.equivalence.small_config import shrink
from wisca_core.errors import UnsupportedCheckpoint
from wisca_core.patterns.measure import measure
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options


def folder_of(path: Path, base: Path, tensors: dict[str, torch.Tensor], quantisation: dict | None) -> Path:
    path.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | (
        {"quantization_config": quantisation} if quantisation else {}
    )
    (path / "config.json").write_text(json.dumps(config))
    return path


def fp8_blocks(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(stored, scales, the weight that they stand for), block by block."""
    n_rows, n_columns = -(-weight.shape[0] // block), -(-weight.shape[1] // block)
    scales, stored, meant = torch.zeros(n_rows, n_columns), torch.zeros(weight.shape), torch.zeros(weight.shape)
    for i in range(n_rows):
        for j in range(n_columns):
            at = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scales[i, j] = weight[at].abs().max() / 448 * (1 + i + 2 * j)  # no two blocks of one scale
            stored[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn).float()
            meant[at] = stored[at] * scales[i, j]
    return stored.to(torch.float8_e4m3fn), scales, meant


def fp8_rows(weight):
    scale = weight.abs().amax(1) / 448
    stored = (weight / scale[:, None]).to(torch.float8_e4m3fn)
    return stored, scale, stored.float() * scale[:, None]


def gptq(weight: torch.Tensor, group_size: int, bits: int, less: int, seed: int):
    """qweight, qzeros, scales, g_idx and the weight they stand for, with groups in a shuffled order (act-order)."""
    rng = np.random.default_rng(seed)
    n_out, n_in = weight.shape
    per_word = 32 // bits
    q = rng.integers(0, 2**bits, (n_in, n_out))
    group = rng.permutation(n_in) // group_size
    n_groups = n_in // group_size
    zero = rng.integers(0, 2**bits, (n_groups, n_out))
    scales = torch.tensor(rng.uniform(0.01, 0.02, (n_groups, n_out)), dtype=torch.float16)
    words, zeros = [[0] * n_out for _ in range(n_in // per_word)], [[0] * (n_out // per_word) for _ in range(n_groups)]
    for i in range(n_in):
        for o in range(n_out):
            words[i // per_word][o] |= int(q[i, o]) << (bits * (i % per_word))
    for g in range(n_groups):
        for o in range(n_out):
            zeros[g][o // per_word] |= ((int(zero[g, o]) - less) % 2**bits) << (bits * (o % per_word))
    meant = torch.tensor(q - zero[group]).float() * scales[torch.tensor(group)].float()
    return _words(words), _words(zeros), scales, torch.tensor(group, dtype=torch.int32), meant.T


def awq(weight: torch.Tensor, group_size: int, seed: int):
    """Eight columns a word; the word's nibbles, lowest first, hold columns 0 2 4 6 1 3 5 7."""
    rng = np.random.default_rng(seed)
    n_out, n_in = weight.shape
    q, zero = rng.integers(0, 16, (n_in, n_out)), rng.integers(0, 16, (n_in // group_size, n_out))
    scales = torch.tensor(rng.uniform(0.01, 0.02, zero.shape), dtype=torch.float16)

    def packed(values):
        return _words(
            [
                [
                    sum(int(row[8 * w + c]) << (4 * n) for n, c in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
                    for w in range(n_out // 8)
                ]
                for row in values
            ]
        )

    meant = np.repeat(scales.float().numpy(), group_size, 0) * (q - np.repeat(zero, group_size, 0))
    return packed(q), packed(zero), scales, torch.tensor(meant, dtype=torch.float32).T


def four_bits(shape, seed: int, nested: bool):
    """bitsandbytes' names, and the weight: table[first nibble, then second] * largest of its block of 32 values."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    table, q = np.sort(rng.normal(size=16)).astype(np.float32), rng.integers(0, 16, rows * columns)
    stored = [(int(q[2 * i]) << 4) + int(q[2 * i + 1]) for i in range(len(q) // 2)]
    n_blocks = -(-len(q) // 32)
    told = {"quant_type": "nf4", "blocksize": 32, "dtype": "float32", "shape": [rows, columns]}
    if nested:
        codes, outer = (
            np.sort(rng.normal(size=256)).astype(np.float32),
            rng.uniform(0.5, 1.5, -(-n_blocks // 8)).astype(np.float32),
        )
        absmax = rng.integers(0, 256, n_blocks)
        largest = [float(codes[a]) * float(outer[b // 8]) + 0.75 for b, a in enumerate(absmax)]
        parts = {
            "absmax": torch.tensor(absmax, dtype=torch.uint8),
            "nested_absmax": torch.tensor(outer),
            "nested_quant_map": torch.tensor(codes),
        }
        told |= {"nested_blocksize": 8, "nested_dtype": "float32", "nested_offset": 0.75}
    else:
        largest = rng.uniform(0.1, 0.3, n_blocks).astype(np.float32).tolist()
        parts = {"absmax": torch.tensor(largest)}
    parts |= {
        "": torch.tensor(stored, dtype=torch.uint8).reshape(-1, 1),
        "quant_map": torch.tensor(table),
        "quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8),
    }
    meant = torch.tensor([float(table[v]) * largest[i // 32] for i, v in enumerate(q)]).reshape(rows, columns)
    return parts, meant


def packed_integers(shape, group_size: int, seed: int):
    """compressed-tensors' names: along a row, lowest bits first, 8 added."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    q = rng.integers(-8, 8, (rows, columns))
    words = [
        [sum((int(v) + 8) << (4 * i) for i, v in enumerate(row[at : at + 8])) for at in range(0, columns, 8)]
        for row in q
    ]
    scales = torch.tensor(rng.uniform(0.01, 0.02, (rows, columns // group_size)), dtype=torch.bfloat16)
    meant = torch.tensor(
        [[float(v) * float(scales[r, c // group_size]) for c, v in enumerate(row)] for r, row in enumerate(q)]
    )
    return {
        "weight_packed": _words(words),
        "weight_scale": scales,
        "weight_shape": torch.tensor([rows, columns]),
    }, meant


def _words(values) -> torch.Tensor:
    return torch.tensor(np.array(values, dtype=np.uint32).view(np.int32))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Widths that every packing divides."""
    from transformers import LlamaConfig

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 61,
    }
    folder = tmp_path_factory.mktemp("base")
    build_miniature(shrink(LlamaConfig().to_dict()) | sizes, folder, seed=5)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t.float() for name, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _quantised(base: Path, path: Path, kind: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder and, by name, the weights its quantised matrices stand for."""
    out, meant = {}, {}
    config = {
        "fp8 blocks": {"quant_method": "fp8", "weight_block_size": [24, 24]},
        "fp8 rows": {"quant_method": "compressed-tensors"},
        "fp8 tensor": {"quant_method": "compressed-tensors"},
        "int8 rows": {"quant_method": "compressed-tensors"},
        "bitsandbytes int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "gptq": {"quant_method": "gptq", "bits": 4},
        "gptq v2": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
        "gptq 8 bits": {"quant_method": "gptq", "bits": 8},
        "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
        "bitsandbytes nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "bitsandbytes nf4 nested": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "packed 4 bits": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
        },
    }[kind]
    for number, (name, weight) in enumerate(sorted(load_file(base / "model.safetensors").items())):
        stem = name.removesuffix(".weight")
        if "_proj" not in name:
            out[name] = weight
        elif kind == "fp8 blocks":
            out[name], out[f"{name}_scale_inv"], meant[name] = fp8_blocks(weight, 24)
        elif kind == "fp8 rows":
            out[name], scale, meant[name] = fp8_rows(weight)
            out[f"{name}_scale"] = scale[:, None]
        elif kind == "fp8 tensor":
            scale = weight.abs().max() / 448
            out[name] = (weight / scale).to(torch.float8_e4m3fn)
            out |= {f"{name}_scale": scale.reshape(1), f"{stem}.input_scale": torch.ones(1)}
            meant[name] = out[name].float() * scale
        elif kind == "int8 rows":
            scale = weight.abs().amax(1, keepdim=True) / 127
            out[name], out[f"{name}_scale"] = (weight / scale).round().to(torch.int8), scale.to(torch.bfloat16)
            meant[name] = out[name].float() * out[f"{name}_scale"].float()
        elif kind == "bitsandbytes int8":
            largest = weight.abs().amax(1)
            out[name] = (weight / largest[:, None] * 127).round().to(torch.int8)
            out |= {f"{stem}.SCB": largest, f"{stem}.weight_format": torch.tensor(0, dtype=torch.uint8)}
            meant[name] = torch.tensor(
                [[v / 127 * m for v in row] for row, m in zip(out[name].tolist(), largest.tolist())]
            )
        elif kind.startswith("bitsandbytes nf4"):
            parts, meant[name] = four_bits(weight.shape, number, nested=kind.endswith("nested"))
            out |= {f"{name}{'.' if part else ''}{part}": tensor for part, tensor in parts.items()}
        elif kind == "packed 4 bits":
            parts, meant[name] = packed_integers(weight.shape, 16, number)
            out |= {f"{stem}.{part}": tensor for part, tensor in parts.items()}
        elif kind == "awq":
            out[f"{stem}.qweight"], out[f"{stem}.qzeros"], out[f"{stem}.scales"], meant[name] = awq(weight, 16, number)
        else:
            parts = gptq(weight, 16, config["bits"], 0 if kind == "gptq v2" else 1, number)
            out |= dict(zip((f"{stem}.{n}" for n in ("qweight", "qzeros", "scales", "g_idx")), parts))
            meant[name] = parts[-1]
    return folder_of(path, base, out, config), meant


@pytest.mark.parametrize(
    "kind",
    [
        "fp8 blocks",
        "fp8 rows",
        "fp8 tensor",
        "int8 rows",
        "bitsandbytes int8",
        "gptq",
        "gptq v2",
        "gptq 8 bits",
        "awq",
        "bitsandbytes nf4",
        "bitsandbytes nf4 nested",
        "packed 4 bits",
    ],
)
def test_the_weights_are_those_that_were_packed(base, tmp_path, kind):
    path, meant = _quantised(base, tmp_path / "model", kind)
    checkpoint = open_checkpoint(path)
    assert "is quantised" in checkpoint.look_only and len(checkpoint.recipes) == len(meant) == 14
    with Reader(checkpoint) as reader:
        for name, weight in meant.items():
            got = reader.tensor(name)
            assert got.shape == weight.shape and got.dtype == torch.float32
            assert torch.allclose(got, weight, rtol=1e-6, atol=1e-6 if kind.endswith("nested") else 0), (
                name
            )  # a sum of floats there
            assert torch.equal(reader.rows(name, 5, 13), got[5:13])
            blocks = [(first, block.clone()) for first, block in reader.blocks(name, 300)]
            assert torch.equal(torch.cat([block for _, block in blocks]), got) and [f for f, _ in blocks] == sorted(
                {f for f, _ in blocks}
            )
            assert b"".join(map(bytes, reader.raw(name))) == got.numpy().tobytes()
    # measured like the model whose plain weights they are
    plain = folder_of(tmp_path / "plain", base, load_file(base / "model.safetensors") | meant, None)
    tables = [decide(measure(c, find_sites(c)), Options()).groups("l2") for c in (checkpoint, open_checkpoint(plain))]
    assert len(tables[0]) == 8
    for column in ("left", "right", "log2_ratio"):
        assert np.allclose(tables[0][column], tables[1][column], rtol=1e-6), column


def test_a_quantised_model_is_inspected_and_never_rescaled(base, tmp_path, capsys):
    path, _ = _quantised(base, tmp_path / "model", "fp8 blocks")
    assert main(["inspect", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "Look only: the checkpoint is quantised, fp8 (quantization_config in config.json)" in said
        and "4 pairs found" in said
    )
    assert "F8_E4M3" in said
    assert main(["rescale", str(path), str(tmp_path / "out")]) == 2 and not (tmp_path / "out").exists()
    assert "can be looked at, not rescaled: the checkpoint is quantised" in capsys.readouterr().err
    assert main(["verify", str(path), str(path)]) == 2


def test_nothing_writes_a_quantised_model_even_where_asked_directly(base, tmp_path):
    from wisca_core.equivalence.checking import full_check
    from wisca_core.equivalence.proving import prove
    from wisca_core.exporting.export import export
    from wisca_core.planning.plan import make_plan

    checkpoint = open_checkpoint(_quantised(base, tmp_path / "model", "gptq")[0])
    sites = find_sites(checkpoint)
    plan = make_plan(decide(measure(checkpoint, sites), Options()))
    for attempt in (
        lambda: export(
            checkpoint, sites, plan, tmp_path / "out", prove(open_checkpoint(base), find_sites(open_checkpoint(base)))
        ),
        lambda: full_check(checkpoint, sites, plan),
    ):
        with pytest.raises(UnsupportedCheckpoint, match="can be looked at, not rescaled"):
            attempt()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "config", "named"),
    [
        (
            {
                "weight": torch.zeros(8, 1, dtype=torch.uint8),
                "weight.absmax": torch.ones(1),
                "weight.quant_map": torch.ones(16),
            },
            {"load_in_4bit": True},
            "bitsandbytes",
        ),
        ({"weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn)}, None, "fp8"),  # no scale
        (
            {"weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn), "weight_scale": torch.ones(3)},
            {"quant_method": "fp8"},
            "fp8",
        ),
        (
            {"weight_packed": torch.zeros(4, 1, dtype=torch.int32), "weight_scale": torch.ones(4, 1)},
            {"quant_method": "compressed-tensors"},
            "compressed-tensors",
        ),
        (
            {
                "qweight": torch.zeros(3, 32, dtype=torch.int32),
                "qzeros": torch.zeros(1, 3, dtype=torch.int32),
                "scales": torch.ones(1, 32),
                "g_idx": torch.zeros(32, dtype=torch.int32),
            },
            {"quant_method": "gptq", "bits": 3},
            "GPTQ",
        ),
        (
            {"qweight": torch.zeros(8, 4, dtype=torch.int32)},
            {"quant_method": "awq", "bits": 4, "version": "gemv"},
            "AWQ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_formats_that_are_not_unpacked_are_named_and_listed(base, tmp_path, capsys, extra, config, named):
    plain = {n: t for n, t in load_file(base / "model.safetensors").items() if "layers.0.self_attn.q_proj" not in n}
    tensors = plain | {
        f"model.layers.0.self_attn.q_proj.{n}"
        if "_blocks" not in n and "_scales" not in n
        else f"model.layers.0.mlp.experts.{n}": t
        for n, t in extra.items()
    }
    path = folder_of(tmp_path / "model", base, tensors, config)
    checkpoint = open_checkpoint(path)
    assert not checkpoint.recipes and not checkpoint.look_only
    assert main(["inspect", str(path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"the checkpoint is quantised ({named}" in said and "self_attn" in said
    assert main(["rescale", str(path), str(tmp_path / "out")]) in (1, 2) and not (tmp_path / "out").exists()


def test_beside_quantised_experts_the_plain_attention_is_looked_at(base, tmp_path):
    tensors = load_file(base / "model.safetensors")
    plain = {n: t for n, t in tensors.items() if "mlp" not in n}
    experts = {
        f"model.layers.{i}.mlp.experts.{n}": torch.zeros(2, 4, 2, 16, dtype=torch.uint8)
        for i in (0, 1)
        for n in ("down_proj_blocks", "down_proj_scales")
    }
    checkpoint = open_checkpoint(folder_of(tmp_path / "model", base, plain | experts, {"quant_method": "mxfp4"}))
    assert "MXFP4" in checkpoint.look_only and "2 quantised expert matrices are not unpacked" in checkpoint.look_only
    sites = find_sites(checkpoint)
    assert len(sites.sites) == 4 and sites.sites == find_sites(open_checkpoint(base)).sites


def test_damaged_groups_and_foreign_layouts_are_named(base, tmp_path):
    path, _ = _quantised(base, tmp_path / "gptq", "gptq")
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.g_idx"
    save_file(tensors | {name: torch.full_like(tensors[name], 99)}, path / "model.safetensors")
    with (
        Reader(open_checkpoint(path)) as reader,
        pytest.raises(UnsupportedCheckpoint, match="names groups that have no scale"),
    ):
        reader.tensor("model.layers.0.self_attn.q_proj.weight")
    path, _ = _quantised(base, tmp_path / "int8", "bitsandbytes int8")
    tensors = load_file(path / "model.safetensors")
    save_file(
        tensors | {"model.layers.0.self_attn.q_proj.weight_format": torch.tensor(1, dtype=torch.uint8)},
        path / "model.safetensors",
    )
    with Reader(open_checkpoint(path)) as reader, pytest.raises(UnsupportedCheckpoint, match="layout of bitsandbytes"):
        reader.tensor("model.layers.0.self_attn.q_proj.weight")


def test_custom_code_is_named_and_never_run(base, tmp_path, capsys):
    path = folder_of(tmp_path / "model", base, load_file(base / "model.safetensors"), None)
    config = json.loads((path / "config.json").read_text()) | {
        "model_type": "mine",
        "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "modeling_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert main(["inspect", str(path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "It brings its own code (auto_map), which is never run" in said
        and "model.layers.*.self_attn.q_proj.weight" in said
    )
    assert main(["rescale", str(path), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
