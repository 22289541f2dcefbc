"""Reading weights in pieces gives the bytes that safetensors gives, and never those of a file that changed."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from wisca_core.checkpoint import TORCH_DTYPES, Reader, open_checkpoint, quantisation, reader
from wisca_core.errors import CheckpointChanged, UnsupportedCheckpoint

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit (NaN too)."""
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    shapes = {"matrix": (37, 24), "vector": (101,), "experts": (3, 5, 7), "row": (1, 999)}
    out = {
        f"{str(dtype)[6:]}.{name}": random(*shape, dtype=dtype) for dtype in FLOATS for name, shape in shapes.items()
    }
    out["nan"] = torch.tensor([float("nan"), float("inf"), -0.0], dtype=torch.bfloat16)
    out |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "ids": torch.arange(9),
        "mask": torch.tensor([True, False]),
    }
    out["fp8"] = random(6, 4).to(torch.float8_e4m3fn)
    return out


@pytest.fixture
def folder(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("disk_bytes", [64, 8 * 2**20])
@pytest.mark.parametrize("max_elements", [1, 50, 131072])
def test_blocks_rows_tensor_and_raw_equal_load_file(folder, monkeypatch, disk_bytes, max_elements):
    monkeypatch.setattr(reader, "DISK_BYTES", disk_bytes)
    expected = load_file(folder / "model.safetensors")
    with Reader(open_checkpoint(folder)) as read:
        for name, value in expected.items():
            rows = value.reshape(1) if value.dim() == 0 else value
            assert same(read.tensor(name), value)
            assert same(read.rows(name, 0, len(rows)), rows)
            assert same(read.rows(name, len(rows) // 3, len(rows) // 2), rows[len(rows) // 3 : len(rows) // 2])
            seen = 0
            for start, block in read.blocks(name, max_elements):
                assert start == seen and same(block, rows[start : start + len(block)])
                assert len(block) == 1 or block.numel() <= max_elements
                seen += len(block)
            assert seen == len(rows)
            stored = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert b"".join(bytes(piece) for piece in read.raw(name)) == stored


def test_a_row_longer_than_a_block_comes_as_one_row(folder):
    with Reader(open_checkpoint(folder)) as read:
        blocks = [(start, tuple(block.shape)) for start, block in read.blocks("float32.matrix", max_elements=10)]
    assert blocks == [(row, (1, 24)) for row in range(37)]


def test_two_tensors_read_in_blocks_at_once_do_not_share_memory(folder):
    expected = load_file(folder / "model.safetensors")
    with Reader(open_checkpoint(folder)) as read:
        pairs = list(zip(read.blocks("float32.matrix", 24), read.blocks("bfloat16.matrix", 24)))
        for (_, a), (_, b) in zip(read.blocks("float32.matrix"), read.blocks("bfloat16.matrix")):
            assert same(a, expected["float32.matrix"]) and same(b, expected["bfloat16.matrix"])
    assert len(pairs) == 37


def test_a_whole_tensor_owns_its_memory(folder):
    expected = load_file(folder / "model.safetensors")
    with Reader(open_checkpoint(folder)) as read:
        first = read.tensor("float32.matrix")
        read.tensor("float32.experts")
        list(read.blocks("float32.row"))
    assert same(first, expected["float32.matrix"])


@pytest.mark.parametrize("missing", [("preadv",), ("preadv", "pread")])
def test_systems_without_preadv_read_the_same(folder, monkeypatch, missing):
    import importlib.util

    for name in missing:
        monkeypatch.delattr(os, name)
    spec = importlib.util.spec_from_file_location("reader_elsewhere", reader.__file__)
    elsewhere = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(elsewhere)
    expected = load_file(folder / "model.safetensors")
    with elsewhere.Reader(open_checkpoint(folder)) as read:
        assert all(same(read.tensor(name), value) for name, value in expected.items())
        assert same(next(read.blocks("bfloat16.matrix"))[1], expected["bfloat16.matrix"])


def test_names_and_rows_that_are_not_there_are_python_errors(folder):
    with Reader(open_checkpoint(folder)) as read:
        with pytest.raises(KeyError):
            read.tensor("no.such.tensor")
        with pytest.raises(IndexError, match="float32.matrix has 37 rows, not 30 to 38"):
            read.rows("float32.matrix", 30, 38)


def test_a_big_endian_machine_is_refused(folder, monkeypatch):
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(UnsupportedCheckpoint, match="big-endian"):
        Reader(open_checkpoint(folder))


# What is opened


def test_a_checkpoint_says_what_is_stored_where(tmp_path):
    save_file({"b": torch.ones(2, 3), "a": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    checkpoint = open_checkpoint(tmp_path)
    n_header = struct.unpack("<Q", (tmp_path / "model.safetensors").read_bytes()[:8])[0]
    assert [(t.name, t.dtype, t.shape, t.offset - n_header - 8, t.n_bytes) for t in checkpoint.tensors] == [
        ("b", "F32", (2, 3), 0, 24),
        ("a", "BF16", (4,), 24, 8),
    ]
    assert (checkpoint.kind, checkpoint.weight_files, checkpoint.index_file) == (
        "safetensors",
        ("model.safetensors",),
        None,
    )
    assert checkpoint.n_parameters == 10 and checkpoint.config["model_type"] == "llama"
    status = os.stat(tmp_path / "model.safetensors")
    assert checkpoint.stamps == ((status.st_size, status.st_mtime_ns),)


def test_integer_tensors_are_not_parameters(tmp_path):
    save_file(
        {"w": torch.ones(3), "position_ids": torch.arange(512), "on": torch.tensor([True])},
        tmp_path / "model.safetensors",
    )
    assert open_checkpoint(tmp_path).n_parameters == 3


def test_shards_are_read_as_one_model(tmp_path):
    files = {f"model-0000{k}-of-00002.safetensors": {f"w{k}": random(5, k)} for k in (1, 2)}
    for name, content in files.items():
        save_file(content, tmp_path / name)
    weight_map = {tensor: name for name, content in files.items() for tensor in content}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    steps = []
    checkpoint = open_checkpoint(tmp_path, progress=lambda step, done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    assert checkpoint.index_file == "model.safetensors.index.json" and checkpoint.remarks == ()
    assert {tensor.name: tensor.file for tensor in checkpoint.tensors} == weight_map
    with Reader(checkpoint) as read:
        assert same(read.tensor("w1"), random(5, 1)) and same(read.tensor("w2"), random(5, 2))


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_a_file_beside_its_config_opens_like_its_folder(tmp_path, name):
    save_file({"w": torch.ones(3)}, tmp_path / name)
    (tmp_path / "config.json").write_text('{"a": 1}')
    by_folder, by_file = open_checkpoint(tmp_path), open_checkpoint(str(tmp_path / name))
    assert by_folder.tensors == by_file.tensors and by_file.config == {"a": 1}
    assert (by_file.path, by_file.source) == (by_folder.path, str(tmp_path / name))


def test_safetensors_is_read_where_torch_files_lie_beside_it_and_that_is_said(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    torch.save({"other": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert [tensor.name for tensor in checkpoint.tensors] == ["w"]
    assert checkpoint.remarks == ("Read from model.safetensors; not looked at: pytorch_model.bin.",)


# Files that change


def rewrite(path, n_bytes: int) -> None:
    """Gives the file another size; its modification time stays, so that only the size can tell."""
    status = os.stat(path)
    os.truncate(path, n_bytes)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_file_that_changed_before_reading_is_refused(folder):
    checkpoint = open_checkpoint(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.raises(CheckpointChanged, match="model.safetensors: written to since"), Reader(checkpoint):
        pass


@pytest.mark.parametrize("method", ["tensor", "blocks", "raw", "rows"])
def test_a_file_truncated_while_it_is_open_is_refused(folder, method):
    checkpoint = open_checkpoint(folder)
    last = checkpoint.tensors[-1].name
    calls = {
        "tensor": lambda read: read.tensor(last),
        "rows": lambda read: read.rows(last, 0, 1),
        "blocks": lambda read: list(read.blocks(last)),
        "raw": lambda read: list(read.raw(last)),
    }
    with Reader(checkpoint) as read:
        calls[method](read)
        rewrite(folder / "model.safetensors", checkpoint.tensors[-1].offset)
        with pytest.raises(CheckpointChanged, match="model.safetensors"):
            calls[method](read)


def test_a_short_read_without_any_other_sign_is_refused(folder, monkeypatch):
    monkeypatch.setattr(reader, "_read_at", lambda fd, into, offset: 0)
    with Reader(open_checkpoint(folder)) as read, pytest.raises(CheckpointChanged, match="bytes short"):
        read.tensor("scalar")


def test_a_file_replaced_by_another_of_the_same_size_is_refused(folder, tensors):
    checkpoint = open_checkpoint(folder)
    with Reader(checkpoint) as read:
        save_file(tensors, folder / "new")
        os.utime(folder / "new", ns=(5, 5))
        os.replace(folder / "new", folder / "model.safetensors")
        assert same(read.tensor("nan"), tensors["nan"])  # the open file is still the old one
    with pytest.raises(CheckpointChanged), Reader(checkpoint):
        pass


# Quantised weights

W = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({}, {"a.weight": W}, None),
        ({"quantization_config": None}, {"a.weight": W}, None),
        ({"quantization_config": {"quant_method": "gptq"}}, {"a.weight": W}, "GPTQ"),
        ({"quantization_config": {"quant_method": "awq"}}, {"a.weight": W}, "AWQ"),
        ({"quantization_config": {"load_in_8bit": True}}, {"a.weight": W}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, {"a.weight": W}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "fp8"}}, {"a.weight": W}, "fp8"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, {"a.weight": W}, "MXFP4"),
        (
            {"text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}},
            {"a": W},
            "compressed-tensors",
        ),
        ({"quantization_config": {"quant_method": "new-one"}}, {"a.weight": W}, "new-one"),
        ({}, {"a.qweight": W.int(), "a.qzeros": W.int()}, "GPTQ or AWQ"),
        ({}, {"a.weight.absmax": W}, "bitsandbytes"),
        ({}, {"a.weight": W.to(torch.float8_e4m3fn)}, "fp8"),
        ({}, {"a.weight_scale_inv": W}, "fp8"),
        ({}, {"a.experts.down_proj_blocks": W.to(torch.uint8)}, "MXFP4"),
        ({}, {"a.weight": W.to(torch.int8)}, "integer weights"),
        ({}, {"position_ids": torch.arange(4), "a.weight": W}, None),
    ],
)
def test_quantised_weights_are_named_from_config_dtypes_and_names(tmp_path, config, tensors, words):
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    found = (
        quantisation(checkpoint) or checkpoint.look_only or None
    )  # what is not beside the experts may still be looked at
    assert found is None if words is None else words in found


def test_a_packed_dtype_is_listed_and_refused_only_as_numbers(tmp_path):
    header = json.dumps({"w.weight": {"dtype": "F4", "shape": [2, 8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(8)))
    checkpoint = open_checkpoint(tmp_path)
    assert quantisation(checkpoint).startswith("4-bit floats") and "F4" not in TORCH_DTYPES
    with Reader(checkpoint) as read:
        assert b"".join(bytes(piece) for piece in read.raw("w.weight")) == bytes(range(8))
        with pytest.raises(UnsupportedCheckpoint, match="w.weight is stored as F4"):
            read.tensor("w.weight")
