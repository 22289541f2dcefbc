"""torch ``.bin`` files: the same values as torch.load, found without running the pickle; everything else refused."""

import argparse
import collections
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from wisca_core.checkpoint import Reader, open_checkpoint
from wisca_core.errors import UnreadableInput, UnsafeInput


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    as_bytes = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


def saved(folder, value: object, name: str = "pytorch_model.bin", **options):
    torch.save(value, folder / name, **options)
    return folder


def test_every_tensor_equals_torch_load(tmp_path):
    torch.manual_seed(0)
    state = torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7)
    ).state_dict()  # OrderedDict with _metadata
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        state[str(dtype)] = torch.randn(6, 9).to(dtype)
    state |= {
        "u16": torch.arange(5).to(torch.uint16),
        "mask": torch.tensor([True, False]),
        "i8": torch.arange(3).to(torch.int8),
    }
    state |= {
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
        "slice": torch.arange(10.0)[3:7],
        "scalar": torch.tensor(2.5),
    }
    state |= {
        "empty": torch.empty(0, 3),
        "one row": torch.randn(4, 6)[1:2],
        "column of one": torch.randn(4, 6)[:, :1][2:3],
    }
    checkpoint = open_checkpoint(saved(tmp_path, state))
    expected = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert checkpoint.kind == "torch" and checkpoint.aliases == ()
    assert {tensor.name for tensor in checkpoint.tensors} == set(expected)
    with Reader(checkpoint) as read:
        for name, value in expected.items():
            assert same(read.tensor(name), value), name


def test_two_names_on_one_storage_are_one_tensor_and_an_alias(tmp_path):
    embedding = torch.randn(6, 4)
    state = {
        "wte.weight": embedding,
        "other": torch.ones(2),
        "lm_head.weight": embedding,
        "again": embedding.view(6, 4),
    }
    checkpoint = open_checkpoint(saved(tmp_path, state))
    assert {tensor.name for tensor in checkpoint.tensors} == {"wte.weight", "other"}
    assert checkpoint.aliases == (("lm_head.weight", "wte.weight"), ("again", "wte.weight"))
    assert checkpoint.n_parameters == 26
    with Reader(checkpoint) as read:
        assert same(read.tensor("lm_head.weight"), embedding)


def test_shards_with_an_index_are_read_and_aliases_count_as_indexed(tmp_path):
    w = torch.randn(3, 3)
    saved(tmp_path, {"a": w, "tied": w}, "pytorch_model-00001-of-00002.bin")
    saved(tmp_path, {"b": w + 1}, "pytorch_model-00002-of-00002.bin")
    files = {"a": 1, "tied": 1, "b": 2}
    weight_map = {name: f"pytorch_model-0000{k}-of-00002.bin" for name, k in files.items()}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.index_file, checkpoint.remarks) == ("pytorch_model.bin.index.json", ())
    with Reader(checkpoint) as read:
        assert same(read.tensor("b"), w + 1) and same(read.tensor("tied"), w)


def test_a_single_torch_file_opens_by_its_path(tmp_path):
    saved(tmp_path, {"a": torch.ones(2)}, "weights.pt")
    assert open_checkpoint(tmp_path / "weights.pt").weight_files == ("weights.pt",)


class Runs:
    """Pickles to a call that leaves a file behind when it is run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"w": x}, lambda x: {"w": torch.ones(2), "x": [x]}])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, wrap, protocol):
    saved(tmp_path, wrap(Runs(tmp_path / "ran")), pickle_protocol=protocol)
    with pytest.raises(UnsafeInput, match="contains code: refused .*mkdir.* convert it, which runs the code in it"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"w": np.ones(3)}, "numpy"),
        ({"w": np.float32(1)}, "numpy"),
        ({"w": torch.nn.Linear(2, 2)}, "torch.nn"),
        ({"w": torch.ones(2, 2).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"w": collections.Counter("a")}, "Counter"),
        ({"w": print}, "print"),
    ],
)
def test_anything_but_plain_tensors_is_refused_by_name(tmp_path, value, name):
    with pytest.raises(UnsafeInput, match=f"contains code: refused .*{name}"):
        open_checkpoint(saved(tmp_path, value))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"epoch": 3, "w": torch.ones(2)}, "the entry epoch is a int, expected tensors only"),
        ({"weights": {"w": torch.ones(2)}}, "the entry weights is a dict.*save its model state dict alone"),
        ([torch.ones(2)], "holds a list, expected a dict of tensors"),
        (torch.ones(2), "holds a Tensor, expected a dict of tensors"),
        ({3: torch.ones(2)}, "the tensor name '3' is no text"),
        ({"a\u202e": torch.ones(2)}, "has control or invisible characters"),
        ({"w": torch.ones(3, 4).t()}, "tensor w is not contiguous"),
        ({"w": torch.ones(10)[::2]}, "tensor w is not contiguous"),
        (
            {"w": torch.ones(1).expand(10**9)},
            "tensor w has stride 0: it claims 1000000000 values, larger than its storage",
        ),
        ({"w": torch.ones(4, 4)[0], "v": torch.ones(2)}, None),
        ({"state_dict": {"w": torch.ones(2), "v": torch.ones(3)}, "epoch": 3}, None),
    ],
)
def test_entries_that_are_no_plain_tensors_are_refused(tmp_path, value, message):
    saved(tmp_path, value)
    if message is None:
        assert len(open_checkpoint(tmp_path).tensors) == 2
        return
    with pytest.raises(UnreadableInput, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("part", [lambda w: w[:2], lambda w: w.view(-1), lambda w: w[2:]])
def test_different_views_of_one_storage_are_refused(tmp_path, part):
    whole = torch.randn(4, 4)
    with pytest.raises(UnreadableInput, match="tensors whole and part are different views of one storage"):
        open_checkpoint(saved(tmp_path, {"whole": whole, "part": part(whole)}))


def test_formats_before_torch_1_6_are_refused_with_how_to_convert(tmp_path):
    saved(tmp_path, {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeInput, match="before 1.6.*convert it"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(UnsafeInput, match="contains code"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_torchscript_program_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/x.py"):
            archive.writestr(name, b"\x80\x02}.")
    with pytest.raises(UnsafeInput, match="TorchScript"):
        open_checkpoint(tmp_path)


def rezipped(folder, change, compression=zipfile.ZIP_STORED):
    """The file saved in ``folder`` with each (name, content) changed; None leaves a record out."""
    with zipfile.ZipFile(folder / "pytorch_model.bin") as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", compression) as archive:
        for name, content in records:
            if (new := change(name, content)) is not None:
                archive.writestr(name, new)


def test_a_compressed_record_is_refused_without_unpacking_it(tmp_path):
    saved(tmp_path, {"w": torch.zeros(2_000_000)})
    rezipped(tmp_path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert os.path.getsize(tmp_path / "pytorch_model.bin") < 20_000
    with pytest.raises(UnsafeInput, match="record .* is compressed or encrypted"):
        open_checkpoint(tmp_path)


def test_a_file_rewritten_without_compression_still_reads(tmp_path):
    saved(tmp_path, {"w": torch.arange(5.0)})
    rezipped(tmp_path, lambda name, content: content)
    with Reader(open_checkpoint(tmp_path)) as read:
        assert same(read.tensor("w"), torch.arange(5.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, content: None if name.endswith("data/0") else content, "the storage of tensor w is missing"),
        (
            lambda name, content: content[:-4] if name.endswith("data/0") else content,
            "has a storage of 20 bytes, the file holds 16",
        ),
        (lambda name, content: None if name.endswith("data.pkl") else content, "0 data.pkl records, expected one"),
        (lambda name, content: b"big" if name.endswith("byteorder") else content, "byte order big, expected little"),
        (lambda name, content: content[:-1] if name.endswith("data.pkl") else content, "data.pkl is damaged"),
        (lambda name, content: b"" if name.endswith("data.pkl") else content, "data.pkl is damaged"),
    ],
)
def test_records_that_do_not_fit_together_are_refused(tmp_path, change, message):
    saved(tmp_path, {"w": torch.arange(5.0)})
    rezipped(tmp_path, change)
    with pytest.raises(UnreadableInput, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a torch file: it is empty"),
        (b"<html>404</html>", "this is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (bytes(257) + b"ustar", "the pickle or tar format torch wrote before 1.6"),
        (b"hello", "not a torch file: expected the zip"),
        (b"PK\x03\x04" + bytes(50), "ends early or is damaged"),
        (b"\x40\0\0\0\0\0\0\0{}" + bytes(90), "looks like a safetensors file"),
    ],
)
def test_a_file_that_is_no_torch_file_is_named(tmp_path, content, message):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UnreadableInput, match=message):
        open_checkpoint(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    content = (saved(tmp_path, {"w": torch.arange(500.0)}) / "pytorch_model.bin").read_bytes()
    for keep in (len(content) - 1, len(content) // 2, 100):
        (tmp_path / "pytorch_model.bin").write_bytes(content[:keep])
        with pytest.raises(UnreadableInput, match="pytorch_model.bin"):
            open_checkpoint(tmp_path)


def pickled(folder, program: bytes) -> None:
    saved(folder, {"w": torch.arange(5.0)})
    rezipped(folder, lambda name, content: program if name.endswith("data.pkl") else content)


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\5tQ"


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (b"K\0K\5\x85K\1\x85\x89)t", None),
        (b"K\1K\5\x85K\1\x85\x89)t", "needs 24 bytes of a storage that has 20"),
        (b"K\0K\6\x85K\1\x85\x89)t", "needs 24 bytes"),
        (b"J\xff\xff\xff\xffK\5\x85K\1\x85\x89)t", "impossible shape"),
        (b"K\0J\xff\xff\xff\xff\x85K\1\x85\x89)t", "impossible shape"),
        (b"K\0K\5\x85K\1K\1\x86\x89)t", "impossible shape"),
        (b"K\0\x8a\x09\0\0\0\0\0\0\0\0\1\x85K\1\x85\x89)t", "product overflows"),
        (b"K\0K\5K\1\x85\x89)t", "data.pkl is damaged"),
        (b"K\0X\1\0\0\0a\x85K\1\x85\x89)t", "data.pkl is damaged"),
        (b"t", "data.pkl is damaged"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(tmp_path, end, message):
    pickled(tmp_path, b"\x80\x02}X\1\0\0\0w" + TENSOR + end + b"Rs.")
    if message is None:
        with Reader(open_checkpoint(tmp_path)) as read:
            assert same(read.tensor("w"), torch.arange(5.0))
        return
    with pytest.raises(UnreadableInput, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "program",
    [
        b"(" * 100_000 + b".",
        b"}" + b"(" * 50_000 + b"t" * 50_000 + b".",
        b"}(" + b")" + b"q\0h\0h\0\x86" * 200 + b"K\1u.",  # a key of 2^200 nested tuples
        b")" + b"q\0h\0h\0\x86" * 200 + b"X\1\0\0\0a\x93.",  # the same as a module name
        TENSOR + b"K\0(" + b"K\2" * 100_000 + b"tq\1h\1\x89)tR.",  # a shape of 100,000 axes
        b"t.",
        b"}r\xff\xff\xff\x7f.",  # a memo index of 2^31
        b"X\xff\xff\xff\x7fa.",
        b"\x8b\xff\xff\xff\x7f1.",
        b"h\0.",
        b"0.",
        b"R.",
        b"}K\1\x85b.",
        b"cos\nsystem\n(X\2\0\0\0idtR.",
        b"(X\2\0\0\0idios\nsystem\n.",
        b"(cos\nsystem\nX\2\0\0\0ido.",
        b"\x82\1.",
        b"ccollections\nOrderedDict\n)\x81.",
        b"ccollections\nOrderedDict\n}b.",
        b"Pid\n.",
        b"}.trailing",
        b"I" + b"9" * 5000 + b"\n.",
    ],
)
def test_hostile_pickles_end_in_a_named_error(tmp_path, program):
    pickled(tmp_path, b"\x80\x02" + program)
    with pytest.raises(UnreadableInput, match="pytorch_model.bin"):
        open_checkpoint(tmp_path)


def test_flipped_bytes_of_a_small_file_parse_or_raise_a_named_error(tmp_path):
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(5.0), "b": torch.ones(2).bfloat16()}, buffer)
    content = buffer.getvalue()
    (tmp_path / "pytorch_model.bin").touch()
    refused = 0
    for at in range(0, len(content), 4):
        changed = bytearray(content)
        changed[at] ^= 0xFF
        (tmp_path / "pytorch_model.bin").write_bytes(changed)
        try:
            open_checkpoint(tmp_path)
        except UnreadableInput:
            refused += 1
    assert refused > 80
